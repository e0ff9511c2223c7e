from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules.input_module import InputModule
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    SequentialEvaluator,
)

from st_distill import evaluation
from st_distill.evaluation import (
    DimensionSweep,
    ImageRetrievalEvaluator,
    TeacherFidelityEvaluator,
    evaluate,
    model_size,
    retrieval_evaluator,
    similarity_evaluator,
    throughput,
)


class Lookup(InputModule):
    """A text's or an image's vector from a table; images are known by the colour of their first pixel."""

    modalities = ["text", "image"]

    def __init__(self, table: dict) -> None:
        super().__init__()
        self.table = {key: torch.as_tensor(vector, dtype=torch.float32) for key, vector in table.items()}
        self.seen: list = []

    def preprocess(self, inputs, prompt=None, **options):
        keys = [(prompt or "") + item if isinstance(item, str) else item.getpixel((0, 0)) for item in inputs]
        self.seen += keys
        return {"sentence_embedding": torch.stack([self.table[key] for key in keys])}

    def forward(self, features, **options):
        return features

    def get_embedding_dimension(self) -> int:
        return len(next(iter(self.table.values())))

    def save(self, output_path, *args, **options) -> None:
        raise NotImplementedError


def lookup(table: dict) -> SentenceTransformer:
    return SentenceTransformer(modules=[Lookup(table)], device="cpu")


def on_circle(degrees: dict[str, float]) -> dict[str, list[float]]:
    return {text: [math.cos(math.radians(angle)), math.sin(math.radians(angle))] for text, angle in degrees.items()}


def random_table(count: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {f"text {row}": generator.normal(size=width) for row in range(count)}


# --- Fidelity ---------------------------------------------------------------------------------------------------------


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


def test_ranks_of_ties_are_shared():
    assert evaluation._ranks(np.array([7.0, 3.0, 3.0, 9.0, 9.0, 9.0])).tolist() == [3, 1.5, 1.5, 5, 5, 5]


def test_collapsed_student_scores_zero_not_nan():
    student = lookup({f"text {row}": [1.0, 1.0] for row in range(20)})
    teacher = np.stack(list(random_table(20, 4).values()))
    scores = TeacherFidelityEvaluator([f"text {row}" for row in range(20)], teacher)(student)
    assert scores["spearman_2"] == 0
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
    monkeypatch.setattr(evaluation, "_CHUNK", 4)
    assert TeacherFidelityEvaluator(list(table), teacher)(lookup(table)) == pytest.approx(whole)


def test_dimensions_come_from_one_encoding():
    table = random_table(12, 8)
    model = lookup(table)
    teacher = np.stack(list(table.values()))[:, :4]
    scores = TeacherFidelityEvaluator(list(table), teacher, dims=[2, 8, 4], neighbours=3)(model)
    assert list(scores) == ["spearman_8", "overlap3_8", "spearman_4", "overlap3_4", "spearman_2", "overlap3_2"]
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
        ({"texts": ["a", "b"]}, ValueError, "at least 3 texts. Got 2"),
        ({"teacher_vectors": np.ones((2, 3))}, ValueError, "equal length.*Got 3 and 2"),
        ({"teacher_vectors": np.ones(3)}, ValueError, r"one row per text. Got the shape \(3,\)"),
        ({"teacher_vectors": np.array([[1.0], [np.nan], [np.inf]])}, ValueError, "in 2 rows, the first of them 1"),
        ({"neighbours": 3}, ValueError, "below the number of texts, 3. Got 3"),
        ({"neighbours": 0}, ValueError, "'neighbours' parameter must be a whole number"),
        ({"dims": []}, ValueError, "non-empty list"),
        ({"dims": [0]}, ValueError, "Got 0 in it"),
        ({"dims": [True]}, ValueError, "Got True in it"),
        ({"max_pairs": 0}, ValueError, "'max_pairs'"),
    ],
)
def test_bad_input_has_its_sentence(changes, error, match):
    arguments = {"texts": ["a", "b", "c"], "teacher_vectors": np.eye(3), "neighbours": 1} | changes
    with pytest.raises(error, match=match):
        TeacherFidelityEvaluator(arguments.pop("texts"), arguments.pop("teacher_vectors"), **arguments)


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


# --- Retrieval and similarity -----------------------------------------------------------------------------------------


def test_retrieval_equals_the_library_at_each_dimension(make_student, sentences):
    model = make_student()
    queries, documents = sentences[:8], sentences[8:]
    ours = retrieval_evaluator(queries, documents, dims=[32, 8], name="pairs", write_csv=False)(model)
    ids = [str(row) for row in range(8)]
    for dim in (32, 8):
        theirs = InformationRetrievalEvaluator(
            dict(zip(ids, queries)), dict(zip(ids, documents)), {row: {row} for row in ids}, truncate_dim=dim
        )(model)
        assert ours[f"pairs_cosine_ndcg@10_{dim}"] == pytest.approx(theirs["cosine_ndcg@10"])
        assert ours[f"pairs_cosine_accuracy@1_{dim}"] == pytest.approx(theirs["cosine_accuracy@1"])


def test_retrieval_known_by_hand():
    model = lookup(on_circle({"q1": 0, "q2": 90, "d1": 5, "d2": 20, "d3": 200}))
    # q1 finds d1 first; q2 has d2 and d3: d2 comes first, d3 second.
    scores = retrieval_evaluator(["q1", "q2", "q2"], ["d1", "d2", "d3"])(model)
    assert scores["cosine_accuracy@1_2"] == 1
    # q2: d2 (70 degrees), d1 (85), d3 (110): found at ranks 1 and 3.
    expected = (1 + (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))) / 2
    assert scores["cosine_ndcg@10_2"] == pytest.approx(expected)


def test_each_text_is_encoded_once():
    table = random_table(10, 8)
    model = lookup(table)
    texts = list(table)
    retrieval_evaluator(texts[:5], texts[5:], dims=[8, 4, 2])(model)
    assert sorted(model[0].seen) == sorted(texts)


def test_similarity_equals_the_library_at_each_dimension(make_student, sentences):
    model = make_student()
    columns = sentences[:8], sentences[8:], [0.1, 0.9, 0.3, 0.4, 0.6, 0.5, 0.2, 0.8]
    evaluator = similarity_evaluator(*columns, dims=[32, 8], name="sts")
    assert evaluator.primary_metric == "sts_spearman_cosine_32"
    ours = evaluator(model)
    for dim in (32, 8):
        theirs = EmbeddingSimilarityEvaluator(*columns, truncate_dim=dim)(model)
        assert ours[f"sts_spearman_cosine_{dim}"] == pytest.approx(theirs["spearman_cosine"])
        assert ours[f"sts_pearson_cosine_{dim}"] == pytest.approx(theirs["pearson_cosine"], abs=1e-5)


def test_sweep_of_any_evaluator_and_its_files(tmp_path, make_student, sentences):
    model = make_student()
    pattern = EmbeddingSimilarityEvaluator(sentences[:8], sentences[8:], list(range(8)), name="sts")
    sweep = DimensionSweep(pattern, dims=[32, 16])
    for _ in range(2):
        assert sweep.primary_metric in (None, "sts_spearman_cosine_32")
        scores = sweep(model, str(tmp_path))
    assert sweep.primary_metric in scores
    assert pattern.truncate_dim is None
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == [f"similarity_evaluation_sts_{dim}_results.csv" for dim in (16, 32)]
    for file in files:
        header, *rows = (tmp_path / file).read_text().splitlines()
        assert header == "epoch,steps,cosine_pearson,cosine_spearman"
        assert len(rows) == 2
    assert len(model.model_card_data.eval_results_dict) == 2  # one for each dimension, not for each run


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncate_dim": 8},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"truncate_dim": 16, "precision": "ubinary"},
        {"convert_to_tensor": True},
    ],
)
def test_vectors_cut_from_one_encoding_are_those_of_encode(options, make_student, sentences):
    model = make_student()
    encoded = evaluation._EncodedOnce(model)
    for method in ("encode", "encode_query", "encode_document"):
        ours, theirs = (getattr(source, method)(sentences, **options) for source in (encoded, model))
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_sweep_needs_an_evaluator_that_truncates():
    with pytest.raises(TypeError, match="with a truncate_dim. Got SequentialEvaluator"):
        DimensionSweep(SequentialEvaluator([]))


def test_retrieval_and_similarity_check_their_columns():
    with pytest.raises(ValueError, match="'queries' and 'documents'.*Got 1 and 2"):
        retrieval_evaluator(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_evaluator([], [])
    with pytest.raises(ValueError, match="'sentences1' and 'scores'.*Got 2 and 1"):
        similarity_evaluator(["a", "b"], ["c", "d"], [1.0])
    with pytest.raises(ValueError, match="two different scores"):
        similarity_evaluator(["a", "b"], ["c", "d"], [1.0, 1.0])


# --- Images -----------------------------------------------------------------------------------------------------------


def test_image_retrieval_known_by_hand(images):
    pictures = [images[0], images[4], images[8], images[12]]
    colours = [picture.getpixel((0, 0)) for picture in pictures]
    table = on_circle({"warm": 0, "cold": 90, "other": 180})
    # Two images are "warm": at 10 and 100 degrees; "cold" lies at 82, "other" at 95.
    table |= dict(zip(colours, on_circle(dict(zip("abcd", (10, 100, 82, 95)))).values()))
    evaluator = ImageRetrievalEvaluator(pictures, ["warm", "warm", "cold", "other"], at=(1, 2, 10), dims=[2])
    assert evaluator.primary_metric == "recall@10_2"
    scores = evaluator(lookup(table))
    # warm: the image at 10 degrees comes first. cold: 95 lies nearer to 90 than 82. other: 100 lies nearer than 95.
    assert scores["recall@1_2"] == pytest.approx(1 / 3)
    assert scores["recall@2_2"] == 1
    assert scores["recall@10_2"] == 1
    assert scores["chance@1"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert scores["chance@2"] == pytest.approx((1 - 1 / 6 + 1 / 2 + 1 / 2) / 3)
    assert scores["chance@10"] == 1


def test_images_all_alike_find_nothing(images):
    pictures = images[::4]
    colours = {picture.getpixel((0, 0)): [1.0, 0.0] for picture in pictures}
    texts = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 1.0], "d": [0.5, 0.2]}
    scores = ImageRetrievalEvaluator(pictures, list(texts), at=(1, 3))(lookup(colours | texts))
    assert scores["recall@1_2"] == scores["recall@3_2"] == 0


def test_image_retrieval_checks_its_columns(images):
    with pytest.raises(ValueError, match="'images' and 'captions'.*Got 16 and 1"):
        ImageRetrievalEvaluator(images, ["a"])
    with pytest.raises(ValueError, match="at least one image"):
        ImageRetrievalEvaluator([], [])
    with pytest.raises(ValueError, match="'at' parameter"):
        ImageRetrievalEvaluator(images[:1], ["a"], at=(0,))


# --- In a trainer, size, speed, everything ----------------------------------------------------------------------------


def test_evaluators_work_in_the_trainer(tmp_path, make_student, sentences):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = make_student()
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            metric_for_best_model="eval_spearman_32",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"anchor": sentences[:8], "positive": sentences[8:]}),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=[
            retrieval_evaluator(sentences[:8], sentences[8:], dims=[32, 16]),
            TeacherFidelityEvaluator(sentences, torch.eye(16), dims=[32, 16]),
        ],
    )
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_spearman_32", "eval_overlap10_16", "eval_cosine_ndcg@10_32"} <= logged
    assert trainer.evaluate()["eval_sequential_score"] == trainer.evaluate()["eval_spearman_32"]


def test_model_size_counts_shared_weights_once():
    layer = torch.nn.Linear(3, 2)
    assert model_size(layer) == {"parameters": 8, "megabytes": 32e-6}
    assert model_size(torch.nn.Sequential(layer, layer))["parameters"] == 8
    assert model_size(layer.half())["megabytes"] == 16e-6


def test_throughput_is_the_median_pass(monkeypatch):
    table = random_table(6, 3)
    model = lookup(table)
    # Three passes of 2, 1 and 4 seconds.
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 24.0])
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(clock))
    assert throughput(model, list(table), batch_size=4) == 3
    assert len(model[0].seen) == 4 + 3 * 6
    with pytest.raises(ValueError, match="at least one text"):
        throughput(model, [])


@pytest.mark.filterwarnings("ignore:An input array is constant")  # by scipy; the teacher below provokes it
def test_everything_at_once_is_json(make_student, sentences):
    student, teacher = make_student(), lookup(dict(zip(sentences, np.eye(16))))
    results = evaluate(
        student,
        teachers={"eye": teacher},
        dims=[8, 32, 16],
        texts=sentences,
        teacher_vectors=np.eye(16),
        retrieval=(sentences[:8], sentences[8:]),
        similarity=(sentences[:8], sentences[8:], range(8)),
        speed=sentences,
    )
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["dims"] == [32, 16, 8]
    assert results["fidelity"]["neighbours"] == 10
    assert list(results["retrieval"]["scores"]["student"]["ndcg@10"]) == ["32", "16", "8"]
    assert list(results["retrieval"]["scores"]["eye"]["ndcg@10"]) == ["16", "8"]
    # All similarities of the teacher are 0 here, so that its correlation is not defined.
    assert results["similarity"]["scores"]["eye"]["spearman"]["16"] is None
    assert results["models"]["student"]["texts_per_second"] > 0
    assert "images" not in results


def test_evaluate_images_and_its_errors(images):
    pictures = images[::4]
    table = {picture.getpixel((0, 0)): row for picture, row in zip(pictures, np.eye(4))}
    table |= dict(zip("abcd", np.eye(4)))
    results = evaluate(lookup(table), images=(pictures, list("abcd")))
    assert results["images"]["recall@1"] == {"4": 1.0}
    assert results["images"]["chance@1"] == 0.25
    with pytest.raises(ValueError, match="'teacher_vectors' parameter must come with 'texts'"):
        evaluate(lookup(table), texts=list("abcd"))
    with pytest.raises(ValueError, match="name a teacher 'student'"):
        evaluate(lookup(table), teachers={"student": lookup(table)})
