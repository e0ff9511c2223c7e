from __future__ import annotations

import numpy as np
import pytest

from st_distill.glue.results import PUBLISHED, average, figures, report_glue


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_average_is_the_printed_one(size):
    measured = {name: {"score": row[size]} for name, row in PUBLISHED.items() if name != "average"}
    assert round(average(measured), 1) == PUBLISHED["average"][size]
    del measured["wnli"]
    assert average(measured) is None


def test_figures_of_known_answers():
    labels = np.array([1, 1, 1, 0])
    found = figures(("accuracy", "f1"), np.array([1, 1, 0, 0]), labels)
    assert found == {"accuracy": 0.75, "f1": pytest.approx(0.8), "score": pytest.approx(0.775)}
    # Two right ones of class 1 and one of each kind of wrong one, none of class 0: (2 x 0 - 1 x 1) / sqrt(3 x 3 x 1 x 1).
    assert figures(("matthews",), np.array([1, 1, 0, 1]), labels)["matthews"] == pytest.approx(-1 / 3)
    found = figures(("pearson", "spearman"), np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    assert found["spearman"] == pytest.approx(1)
    assert 0.98 < found["pearson"] < 1


def test_the_same_answer_to_everything_has_no_correlation():
    found = figures(("pearson", "spearman"), np.array([2.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert found == {"pearson": None, "spearman": None, "score": None}
    assert figures(("accuracy", "f1"), np.zeros(2), np.ones(2))["score"] == 0


def test_the_report_has_the_paper_beside_it():
    row = {"score": 0.7, "metrics": {"accuracy": 0.8, "f1": 0.6}, "examples": 4}
    text = report_glue({"model": "m", "tasks": {"qqp": row}, "average": None})
    assert "qqp        70.0     78.9   80.7   80.9   accuracy 80.0, f1 60.0" in text.splitlines()[1]
    assert text.splitlines()[2] == "average       -     72.9   80.7   81.6"
