from __future__ import annotations

import json

import pytest

from st_distill.report import findings_report, report, write_report


def by_dim(*scores: float) -> dict[str, float]:
    return dict(zip(["384", "32"], scores))


RESULTS = {
    "dims": [384, 32],
    "fidelity": {"texts": 1000, "neighbours": 10, "spearman": by_dim(0.951, 0.7), "overlap": by_dim(0.6, 0.25)},
    "retrieval": {
        "pairs": 400,
        "scores": {
            "student": {"accuracy@1": by_dim(0.5, 0.3), "ndcg@10": by_dim(0.65, 0.4)},
            "lsa": {"accuracy@1": {"32": 0.03}, "ndcg@10": {"32": 0.0714}},
        },
    },
    "images": {
        "images": 200,
        "captions": 1,
        "recall@1": by_dim(0.11, 0.09),
        "recall@10": by_dim(0.5, 0.4),
        "chance@1": 0.005,
        "chance@10": 0.05,
    },
    "models": {
        "student": {"parameters": 17_400_000, "megabytes": 69.6, "texts_per_second": 1447.4},
        "lsa": {"parameters": 1_600_000, "megabytes": 6.4},
    },
}


def test_table_of_everything():
    assert (
        report(RESULTS)
        == """\
Quality by dimension, times 100

dimensions  spearman  overlap@10  ndcg@10 student  ndcg@10 lsa
--------------------------------------------------------------
384             95.1        60.0             65.0            -
32              70.0        25.0             40.0          7.1

spearman: student's and teacher's similarities over pairs of 1,000 held-out texts
overlap@10: of a text's 10 nearest by the teacher, how many the student has among its own
ndcg@10: retrieval, 400 query and document pairs

Text to image: 1 caption among 200 unseen images

dimensions  recall@1  recall@10
-------------------------------
384             11.0       50.0
32               9.0       40.0
chance           0.5        5.0

model    parameters   size  texts per second
--------------------------------------------
student      17.4 M  70 MB             1,447
lsa           1.6 M   6 MB                 -"""
    )


def test_what_failed_stands_below_what_was_measured():
    failed = [{"name": "retrieval", "error": "the file is empty"}]
    assert report({"dims": [32], "models": RESULTS["models"], "failed": failed}).splitlines()[-2:] == [
        "",
        "Not measured: retrieval (the file is empty)",
    ]


@pytest.mark.parametrize("score", [None, float("nan")])
def test_what_was_not_measured_is_left_out(score):
    assert report({"dims": [32]}) == ""
    similarity = {"pairs": 5, "scores": {"student": {"spearman": {"32": score}}}}
    assert report({"dims": [32], "similarity": similarity}).splitlines() == [
        "Quality by dimension, times 100",
        "",
        "dimensions  sts student",
        "-----------------------",
        "32                    -",
        "",
        "sts: spearman with the given scores of 5 pairs",
    ]


def test_files_hold_the_same(tmp_path):
    numbers, text = write_report(RESULTS, tmp_path / "new" / "folder")
    read = json.loads(numbers.read_text())
    assert read == RESULTS
    assert text.read_text() == report(read) + "\n"


def test_what_looks_wrong():
    finding = {"when": "stage 2, all", "name": "collapsed", "seen": "all alike", "means": "bad", "remedy": "mend it"}
    assert (
        findings_report([finding])
        == """\
What looks wrong

collapsed (stage 2, all): all alike.
  That means: bad.
  What to do: mend it."""
    )
