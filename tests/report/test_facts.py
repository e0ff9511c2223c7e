from __future__ import annotations

from pathlib import Path

import pytest

from st_distill.recipe import Recipe
from st_distill.report.facts import headline, origin, size_rows, stage_rows, storage_rows
from st_distill.report.run import Run, StageRun
from st_distill.report.speed import Speed

RESULTS = {
    "dims": [384, 20],
    "fidelity": {"texts": 9, "neighbours": 3, "spearman": {"384": 0.9, "20": 0.5}, "overlap": {"384": 0.5, "20": 0.25}},
    "retrieval": {
        "pairs": 6,
        "scores": {
            "student": {"ndcg@10": {"384": 0.5}},
            "a": {"ndcg@10": {"384": 0.4}},
            "b": {"ndcg@10": {"384": 0.625}},
        },
    },
    "models": {
        "student": {"parameters": 17_500_000, "megabytes": 70.0, "texts_per_second": 340.0},
        "b": {"parameters": 22_700_000, "megabytes": 90.9},
    },
}
SPEEDS = [
    Speed("student", "torch", 1234.5, 210.0, "cpu"),
    Speed("student", "onnxruntime", None, None, "", "no such operator"),
    Speed("b", "torch", 175.0, None, "cpu"),
]


def a_run(*stages: StageRun) -> Run:
    return Run(Path("nowhere"), None, None, stages, RESULTS, {})


def test_the_figures_that_decide():
    facts = {fact.name: (fact.value, fact.note) for fact in headline(RESULTS, SPEEDS)}
    assert facts["Agreement"][0] == "90.0"
    assert facts["Retrieval"] == ("50.0", "nDCG@10, times 100, 384 dimensions; b: 62.5")
    assert facts["Parameters"] == ("17.5 M", "70 MB; b: 22.7 M")
    assert facts["Speed"] == ("1,234", "texts per second; b: 175")
    assert {fact.name: fact.value for fact in headline(RESULTS, [])}["Speed"] == "340"
    assert headline({}, []) == []


@pytest.mark.parametrize("score", [None, float("nan")])
def test_a_figure_that_is_no_number_is_a_dash(score):
    images = {"images": 4, "captions": 4, "recall@1": {"20": score}, "chance@1": 0.25}
    results = {"fidelity": {"spearman": {"20": score}}, "images": images}
    assert [fact.value for fact in headline(results, [])] == ["-", "-"]


def test_the_origin_names_no_folders_but_those_that_tell_apart():
    recipe = Recipe(
        output="out",
        student={"model": "/data/secret/student"},
        teachers=[
            {"model": "/data/secret/large/model", "name": "large"},
            {"model": "/data/secret/other/model", "name": "other"},
            "someone/model",
            {"vectors": "secret/api.parquet", "name": "api"},
        ],
        texts=["/data/secret/texts.parquet", {"dataset": "someone/texts"}],
        images={"path": "/data/secret/pictures", "vision": "someone/eyes"},
        stages=[{"train": "all", "steps": 1}],
    )
    facts = origin(Run(Path("nowhere"), recipe, None, (), {}, {}))
    assert [(fact.name, fact.value) for fact in facts] == [
        ("Student", "student"),
        ("Teacher large", "large/model"),
        ("Teacher other", "other/model"),
        ("Teacher model", "someone/model"),
        ("Teacher api", "vectors in api.parquet"),
        ("Texts", "texts.parquet"),
        ("Texts", "someone/texts"),
        ("Pictures", "pictures"),
    ]
    assert facts[-1].note == "vision encoder: someone/eyes"


def test_sizes():
    assert size_rows(RESULTS, []).rows == [
        ("student", "torch", "17.5 M", "70 MB", "340", "-"),
        ("b", "torch", "22.7 M", "91 MB", "-", "-"),
    ]
    assert size_rows(RESULTS, SPEEDS).rows == [
        ("student", "torch, cpu", "17.5 M", "70 MB", "1,234", "210 MB"),
        ("student", "onnxruntime", "17.5 M", "70 MB", "failed", "-"),
        ("b", "torch, cpu", "22.7 M", "91 MB", "175", "-"),
    ]


def test_a_million_vectors():
    # 384 x 4 bytes; 20 bits are 3 bytes.
    assert storage_rows(a_run()).rows == [
        ("student, 384", "1.536 GB", "0.384 GB", "0.048 GB"),
        ("student, 20", "0.080 GB", "0.020 GB", "0.003 GB"),
    ]


def test_stages():
    history = (
        {"step": 1, "loss": 4.0, "cosine": 1.0},
        {"step": 20, "loss": 2.5, "learning_rate": 0.1, "total_flos": 1e9},
        {"eval_x": 1.0},
    )
    done = StageRun("all", True, {"train_runtime": 90.0, "train_samples_per_second": 1600.0}, history)
    assert done.terms == ["loss", "cosine"]
    assert stage_rows(a_run(done, StageRun("vision", False, {}, ()))).rows == [
        ("1. all", "", "20", "-", "1.5", "1,600", "4 to 2.5"),
        ("2. vision", "", "-", "-", "-", "-", "not done"),
    ]
