"""Several tasks, of which one fails."""

from __future__ import annotations

import re

import numpy as np
import pytest
from data_files import write
from lookup import ANGLES, lookup, on_circle

from st_distill.evaluation import evaluate, evaluate_tasks, measure_entries, read_task
from st_distill.evaluation.measuring import measure_tasks, require_modalities
from st_distill.evaluation.results import csv_of_results
from st_distill.report import report, task_report

PAIRS = [{"sentence1": "a", "sentence2": text, "score": score} for text, score in (("b", 3), ("c", 2), ("d", 1))]


@pytest.fixture
def sources(tmp_path):
    """A task that the model below has no vectors for, and one that it is perfect in."""
    strange = [row | {"sentence1": "strange"} for row in PAIRS]
    return [write(tmp_path / "strange.jsonl", strange), write(tmp_path / "pairs.jsonl", PAIRS)]


def test_what_is_measured_stays_where_another_task_fails(sources, caplog):
    model = lookup(on_circle(ANGLES))
    results = measure_tasks(model, [task for source in sources for task in read_task(source)], dims=[2])
    (measured,) = results["tasks"]
    assert measured["name"] == "pairs"
    assert measured["scores"]["2"]["float32"]["spearman_cosine"] == pytest.approx(1)
    assert results["averages"]["2"]["float32"]["tasks"] == pytest.approx(1)
    assert results["failed"] == [{"name": "strange", "error": "KeyError: 'strange'"}]
    assert "The part 'strange' of the evaluation could not be measured: KeyError: 'strange'" in caplog.text
    assert task_report(results).splitlines()[-1] == "Not measured: strange (KeyError: 'strange')"


BROKEN = (
    r"The vectors of the model hold NaN or infinity, in 1 of \d texts, the first being 'b': nothing can be measured"
)


def broken(value):
    """A model that knows all texts of the pairs, with a number in the vector of b that is none."""
    table = on_circle(ANGLES)
    return lookup(table | {"b": [table["b"][0], value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precisions", [["float32"], ["int8"]])
def test_vectors_that_are_not_finite_have_no_figures(value, precisions, sources, tmp_path):
    questions = [{"query": row["sentence1"], "document": row["sentence2"]} for row in PAIRS]
    labelled = [{"text": text, "label": "xxyyzz"[row]} for row, text in enumerate(ANGLES)]
    sources = [sources[1], write(tmp_path / "questions.jsonl", questions), write(tmp_path / "sets.jsonl", labelled)]
    tasks = [task for source in sources for task in read_task(source)]
    results = measure_tasks(broken(value), tasks, precisions=precisions)
    assert results["tasks"] == []
    assert [entry["name"] for entry in results["failed"]] == ["pairs", "questions", "sets"]
    assert all(re.match(BROKEN, entry["error"]) for entry in results["failed"])
    assert "Not measured: pairs (The vectors of the model hold NaN or infinity" in task_report(results)


def test_a_recipes_parts_have_no_figures_of_vectors_that_are_not_finite(images):
    model, texts = broken(float("nan")), list("abcd")
    parts = {
        "fidelity": {"texts": texts, "teacher_vectors": np.eye(4)},
        "retrieval": {"retrieval": (texts[:2], texts[2:])},
        "similarity": {"similarity": (texts[:2], texts[2:], [0, 1])},
    }
    for part in parts.values():
        with pytest.raises(ValueError, match=f"^{BROKEN}"):
            evaluate(model, **part)
    with pytest.raises(ValueError, match=f"^The teacher 'other' cannot be measured: {BROKEN}"):
        evaluate(lookup(on_circle(ANGLES)), teachers={"other": model}, **parts["retrieval"])
    colours = [picture.getpixel((0, 0)) for picture in images[::4]]
    pictures = lookup(on_circle(ANGLES) | dict(zip(colours, [[1, 0], [float("nan"), 1], [0, 1], [float("inf"), 1]])))
    with pytest.raises(ValueError, match="in 2 of 4 inputs, the first being that of row 1: nothing can be measured"):
        evaluate(pictures, images=(images[::4], texts))


def test_all_that_fail_leave_results_too(sources):
    results = measure_entries(lookup(on_circle(ANGLES)), [sources[0], "data/nothing", "mteb:Nothing at all"])
    assert results["tasks"] == []
    assert [entry["name"] for entry in results["failed"]] == ["nothing", "Nothing at all", "strange"]
    assert results["averages"]["2"]["float32"] == {"kinds": {}, "tasks": None, "mean of kinds": None}
    assert report({"dims": [2], "tasks": results}).startswith("Not measured: nothing (There is no file or folder")


def test_a_source_twice_has_two_names(sources, tmp_path):
    write(tmp_path / "both" / "test.jsonl", PAIRS)
    write(tmp_path / "both" / "dev.jsonl", [row | {"score": -row["score"]} for row in PAIRS])
    entries = [str(tmp_path / "both"), {"source": str(tmp_path / "both"), "split": "dev"}, sources[0], sources[0]]
    results = measure_entries(lookup(on_circle(ANGLES)), entries)
    figures = {task["name"]: task["scores"]["2"]["float32"]["spearman_cosine"] for task in results["tasks"]}
    assert figures == {"both": pytest.approx(1), "both (dev)": pytest.approx(-1)}
    assert [entry["name"] for entry in results["failed"]] == ["strange", "strange (2)"]
    lines = task_report(results).splitlines()
    assert [line.split("  ")[0] for line in lines[4:6]] == ["both", "both (dev)"]
    assert "\nboth (dev),sts,2,float32,spearman_cosine,True,-" in csv_of_results(results)
    tasks = [read_task(sources[1])[0]] * 2
    assert [task["name"] for task in evaluate_tasks(lookup(on_circle(ANGLES)), tasks)["tasks"]] == [
        "pairs",
        "pairs (2)",
    ]


def test_pictures_are_refused_by_a_model_of_texts(images, tmp_path, make_student):
    images[0].save(tmp_path / "a.png")
    tasks = read_task(write(tmp_path / "metadata.csv", [{"file_name": "a.png", "caption": "red"}]))
    with pytest.raises(
        ValueError, match=r"'metadata \(text to image\)' has inputs of the kind image, which the model does not"
    ):
        require_modalities(make_student(), tasks)
    require_modalities(lookup(on_circle(ANGLES)), tasks)  # takes both
    failed = measure_tasks(make_student(), tasks)["failed"]
    assert [entry["name"] for entry in failed] == ["metadata (text to image)", "metadata (image to text)"]
