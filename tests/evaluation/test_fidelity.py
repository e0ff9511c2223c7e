from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from lookup import lookup, on_circle, random_table

from st_distill.evaluation import (
    TeacherFidelityEvaluator,
    fidelity,
    retrieval_evaluator,
)


def test_equal_geometry_is_one_whatever_rotation_and_length():
    table = random_table(40, 8)
    vectors = torch.tensor(np.stack(list(table.values())), dtype=torch.float32)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    lengths = torch.linspace(0.5, 3, 40)[:, None]
    scores = TeacherFidelityEvaluator(list(table), lengths * (vectors @ rotation))(lookup(table))
    assert scores["spearman_8"] == pytest.approx(1, abs=1e-3)
    assert scores["overlap10_8"] == pytest.approx(1, abs=0.02)


def test_spearman_known_by_hand():
    # Angles between the texts: student 10, 40, 30 degrees; teacher 40, 10, 30 in the same order: ranks reversed in part.
    student = lookup(on_circle({"a": 0, "b": 10, "c": 40}))
    opposite = np.array(list(on_circle({"a": 0, "b": 40, "c": 10}).values()))
    scores = TeacherFidelityEvaluator(["a", "b", "c"], opposite, neighbours=1)(student)
    assert scores["spearman_2"] == pytest.approx(-1)
    # Nearest by the student: a-b, b-a, c-b; by the teacher: a-c, b-c, c-a.
    assert scores["overlap1_2"] == 0


def test_alignment_known_by_hand():
    # One dimension that the teacher has too, beside another one, at right angles to it: 8 / (4 * sqrt(8)).
    student = lookup({"a": [1], "b": [-1], "c": [1], "d": [-1]})
    half = np.array([[1, 1], [-1, 1], [1, -1], [-1, -1]])
    scores = TeacherFidelityEvaluator(list("abcd"), half, neighbours=1)(student)
    assert scores["cka_1"] == pytest.approx(math.sqrt(0.5))
    assert "cosine_1" not in scores  # the teacher's width is 2
    assert TeacherFidelityEvaluator(list("abcd"), half[:, 1:], neighbours=1)(student)["cka_1"] == pytest.approx(0)


def test_alignment_does_not_see_a_rotation_and_the_cosine_does():
    angles = {"a": 0, "b": 70, "c": 95, "d": 260}
    turned = np.array(list(on_circle({text: angle + 60 for text, angle in angles.items()}).values()))
    scores = TeacherFidelityEvaluator(list(angles), 3 * turned, neighbours=1)(lookup(on_circle(angles)))
    assert scores["cka_2"] == pytest.approx(1)
    assert scores["cosine_2"] == pytest.approx(0.5)


def test_columns_are_compared_by_themselves():
    table = random_table(20, 4)
    teacher = np.stack(list(table.values()))
    teacher[10:] = np.stack(list(random_table(10, 4, seed=3).values()))
    columns = ["query"] * 10 + ["document"] * 10
    scores = TeacherFidelityEvaluator(list(table), teacher, columns=columns, neighbours=4)(lookup(table))
    assert scores["query_spearman_4"] == pytest.approx(1)
    assert scores["query_cosine_4"] == pytest.approx(1)
    assert abs(scores["document_spearman_4"]) < scores["spearman_4"] < 1
    with pytest.raises(ValueError, match="below the number of texts of the column 'query', 10. Got 10"):
        TeacherFidelityEvaluator(list(table), teacher, columns=columns)
    with pytest.raises(ValueError, match="'texts' and 'columns'.*Got 20 and 1"):
        TeacherFidelityEvaluator(list(table), teacher, columns=["query"])


def test_collapsed_student_scores_zero_not_nan():
    student = lookup({f"text {row}": [1.0, 1.0] for row in range(20)})
    teacher = np.stack(list(random_table(20, 4).values()))
    scores = TeacherFidelityEvaluator([f"text {row}" for row in range(20)], teacher)(student)
    assert scores["spearman_2"] == scores["cka_2"] == 0
    assert 0 <= scores["overlap10_2"] <= 1


def test_unrelated_student_is_at_chance():
    texts, teacher = list(random_table(200, 8)), np.stack(list(random_table(200, 8, seed=1).values()))
    scores = TeacherFidelityEvaluator(texts, teacher)(lookup(random_table(200, 8)))
    assert abs(scores["spearman_8"]) < 0.05
    assert scores["overlap10_8"] == pytest.approx(10 / 199, abs=0.02)


def test_sample_of_pairs_is_close_to_all_and_repeatable():
    table = random_table(150, 6)
    teacher = np.stack(list(table.values()))[:, :3]
    texts, model = list(table), lookup(table)
    everything = TeacherFidelityEvaluator(texts, teacher)(model)["spearman_6"]
    sampled = [TeacherFidelityEvaluator(texts, teacher, max_pairs=4000, seed=seed)(model) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0]["spearman_6"] == pytest.approx(everything, abs=0.05)


def test_blocks_do_not_change_the_result(monkeypatch):
    table = random_table(23, 5)
    teacher = np.stack(list(table.values()))[:, 1:]
    whole = TeacherFidelityEvaluator(list(table), teacher)(lookup(table))
    monkeypatch.setattr(fidelity, "_CHUNK", 4)
    assert TeacherFidelityEvaluator(list(table), teacher)(lookup(table)) == pytest.approx(whole)


def test_dimensions_come_from_one_encoding():
    table = random_table(12, 8)
    model = lookup(table)
    teacher = np.stack(list(table.values()))[:, :4]
    scores = TeacherFidelityEvaluator(list(table), teacher, dims=[2, 8, 4], neighbours=3)(model)
    assert [name for name in scores if "cka" not in name and "cosine" not in name] == [
        f"{metric}_{dim}" for dim in (8, 4, 2) for metric in ("spearman", "overlap3")
    ]
    assert scores["cosine_4"] == pytest.approx(1)
    assert scores["spearman_4"] == pytest.approx(1)
    assert len(model[0].seen) == 12


def test_prompt_reaches_the_student():
    table = {f"query: {text}": vector for text, vector in random_table(5, 3).items()}
    model = lookup(table)
    TeacherFidelityEvaluator(list(random_table(5, 3)), torch.eye(5), neighbours=2, prompt="query: ")(model)
    assert set(model[0].seen) == set(table)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"texts": "one text"}, TypeError, "'texts' parameter must be a list of texts"),
        ({"texts": ["a", None, "c"]}, TypeError, "NoneType at row 1"),
        ({"texts": ["a", "b"], "teacher_vectors": np.eye(2)}, ValueError, "at least 3 texts. Got 2"),
        ({"teacher_vectors": np.ones((2, 3))}, ValueError, "equal length.*Got 3 and 2"),
        ({"texts": None}, TypeError, "'texts' parameter must be a list of texts. Got NoneType instead"),
        ({"teacher_vectors": np.ones(3)}, ValueError, r"of shape \(texts, dim\). Got the shape \(3,\)"),
        (
            {"teacher_vectors": None},
            TypeError,
            "'teacher_vectors' parameter must be a matrix of numbers, .* Got NoneType",
        ),
        ({"teacher_vectors": [["1"]] * 3}, TypeError, "Got list of texts instead"),
        ({"teacher_vectors": [[1.0], [1.0], [1.0, 2.0]]}, ValueError, "Got vectors of different dimensions instead"),
        ({"columns": [None] * 3}, TypeError, "'columns' parameter must hold texts alone. Got NoneType at row 0"),
        ({"prompt": 3}, TypeError, "'prompt' parameter must be a text, or None. Got 3 instead"),
        ({"teacher_vectors": np.array([[1.0], [np.nan], [np.inf]])}, ValueError, "in 2 rows, the first of them 1"),
        ({"neighbours": 3}, ValueError, "below the number of texts, 3. Got 3"),
        ({"neighbours": 0}, ValueError, "'neighbours' parameter must be a whole number"),
        ({"dims": []}, ValueError, "non-empty list"),
        ({"dims": [0]}, ValueError, "Got 0 in it"),
        ({"dims": [8, 4, 8]}, ValueError, "must name each once. Got 8 twice: take one of them out"),
        ({"dims": [True]}, ValueError, "Got True in it"),
        ({"max_pairs": 0}, ValueError, "'max_pairs'"),
    ],
)
def test_bad_input_has_its_sentence(changes, error, match):
    arguments = {"texts": ["a", "b", "c"], "teacher_vectors": np.eye(3), "neighbours": 1} | changes
    with pytest.raises(error, match=match):
        TeacherFidelityEvaluator(arguments.pop("texts"), arguments.pop("teacher_vectors"), **arguments)


def test_teacher_vectors_of_every_kind():
    table = random_table(12, 8)
    array = np.stack(list(table.values()))
    expected = TeacherFidelityEvaluator(list(table), array[::-1].copy(), neighbours=3)(lookup(table))
    array.setflags(write=False)  # torch's warning would be an error here
    for given in (array[::-1], list(torch.tensor(array[::-1].copy())), array[::-1].tolist()):
        assert TeacherFidelityEvaluator(list(table), given, neighbours=3)(lookup(table)) == pytest.approx(expected)
    with pytest.raises(
        TypeError, match="The 'model' parameter must be a SentenceTransformer. Got str instead: load it"
    ):
        TeacherFidelityEvaluator(list(table), array, neighbours=3)("model")


def test_dimension_above_the_model():
    table = random_table(12, 8)
    evaluator = TeacherFidelityEvaluator(list(table), np.eye(12), dims=[16, 8])
    with pytest.raises(ValueError, match="asks for 16 dimensions, but the model's vectors have 8"):
        evaluator(lookup(table))
    with pytest.raises(ValueError, match="asks for 16 dimensions, but the model's vectors have 8"):
        retrieval_evaluator(list(table), list(table), dims=[16])(lookup(table))


def test_name_csv_and_model_card(tmp_path):
    table = random_table(12, 8)
    model = lookup(table)
    evaluator = TeacherFidelityEvaluator(list(table), np.eye(12), dims=[8, 4], name="held-out")
    assert evaluator.primary_metric == "spearman_8"
    for steps in (10, 20):
        scores = evaluator(model, str(tmp_path), 0.5, steps)
    assert evaluator.primary_metric == "held-out_spearman_8"
    assert evaluator.primary_metric in scores
    with (tmp_path / "teacher_fidelity_held-out_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["10", "20"]
    assert float(rows[1]["spearman_4"]) == scores["held-out_spearman_4"]
    assert model.model_card_data.eval_results_dict[evaluator] == scores


def test_vectors_that_are_there_already():
    vectors = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    evaluator = TeacherFidelityEvaluator([f"text {row}" for row in range(12)], vectors, neighbours=3)
    scores = evaluator.scores(vectors, [6, 2])
    assert scores["spearman_6"] == pytest.approx(1)
    assert scores["overlap3_6"] == 1
    assert scores["cosine_6"] == pytest.approx(1)
    assert scores["spearman_2"] < 0.9
