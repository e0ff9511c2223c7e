from __future__ import annotations

import pytest

from st_distill.evaluation.results import with_averages
from st_distill.figures import percent, quality_columns, scores_of, task_table

NAN = float("nan")


@pytest.mark.parametrize(("share", "told"), [(0.0714, "7.1"), (0, "0.0"), (-0.5, "-50.0"), (None, "-"), (NAN, "-")])
def test_a_share_that_is_no_number_is_a_dash(share, told):
    assert percent(share) == told


def test_the_columns_of_what_was_measured():
    results = {
        "fidelity": {"neighbours": 3, "spearman": {"8": 0.5}, "overlap": {"8": NAN}},
        "retrieval": {"scores": {"student": {"ndcg@10": {"8": NAN}}, "large": {"ndcg@10": {}}}},
        "similarity": {"scores": {"student": {"spearman": {"8": None, "4": 0.25}}}},
    }
    assert quality_columns(results) == [
        ("spearman", None, {"8": 0.5}),
        ("overlap@3", None, {"8": None}),
        ("ndcg@10", "student", {"8": None}),
        ("ndcg@10", "large", {}),
        ("sts", "student", {"8": None, "4": 0.25}),
    ]
    assert scores_of(results, "spearman") == {"student": {"8": 0.5}}
    assert scores_of(results, "ndcg@10") == {"student": {"8": None}, "large": {}}
    assert scores_of({"retrieval": None}, "ndcg@10") == {}


def task(name: str, kind: str, score: float, coarse: float | None) -> dict:
    scores = {"8": {"float32": {"main": score, "other": 1.0}, "int8": {"main": coarse, "other": 1.0}}}
    return {"name": name, "kind": kind, "metric": "main", "scores": scores}


def test_tasks_have_their_means():
    tasks = [task("a", "sts", 0.5, 0.4), task("b", "retrieval", 0.2, 0.1), task("c", "sts", 0.7, None)]
    headers, rows = task_table(with_averages({"dims": [8], "precisions": ["float32", "int8"], "tasks": tasks}))
    assert headers == ["8", "8 int8"]
    assert rows == [
        ("b", "retrieval", "main", "20.0", "10.0"),
        ("a", "sts", "main", "50.0", "40.0"),
        ("c", "sts", "main", "70.0", "-"),
        ("mean of 2", "sts", "", "60.0", "-"),
        ("mean of tasks", "", "", "46.7", "-"),
        ("mean of kinds", "", "", "40.0", "-"),
    ]
    assert task_table(with_averages({"dims": [8], "precisions": ["float32"], "tasks": tasks[:1]}))[1] == [
        ("a", "sts", "main", "50.0")
    ]
