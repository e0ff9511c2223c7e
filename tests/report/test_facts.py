from __future__ import annotations

from pathlib import Path

import pytest

from st_distill.evaluation.results import with_averages
from st_distill.recipe import Recipe
from st_distill.report import task_report
from st_distill.report.facts import headline, origin, recipe_text, size_rows, stage_rows, storage_rows, task_rows
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
    scores = {"20": score}
    results = {
        "fidelity": {"neighbours": 3, "spearman": scores, "overlap": scores},
        "retrieval": {"scores": {model: {"ndcg@10": scores} for model in ("student", "a")}},
        "similarity": {
            "scores": {"student": {"spearman": scores}, "a": {"spearman": scores}, "b": {"spearman": {"20": 0}}}
        },
        "images": {"images": 4, "captions": 4, "recall@1": scores, "chance@1": 0.25},
    }
    facts = headline(results, [])
    assert [fact.value for fact in facts] == ["-", "-", "-", "-"]
    assert facts[1].note == "nDCG@10, times 100, 20 dimensions"
    assert facts[2].note == "Spearman's correlation, times 100, 20 dimensions; b: 0.0"


def test_tasks_have_the_rows_of_the_text():
    def task(name: str, kind: str, score: float) -> dict:
        scores = {"20": {"float32": {"main": score}, "int8": {"main": score}}}
        return {"name": name, "kind": kind, "metric": "main", "scores": scores}

    tasks = [task("a", "sts", 0.5), task("b", "sts", 0.7), task("c", "pair_classification", 0.2)]
    measured = with_averages({"dims": [20], "precisions": ["float32", "int8"], "tasks": tasks})
    table = task_rows({"tasks": measured})
    assert table.header == ("Task", "20", "20 int8")
    assert table.rows == [
        ("c (pair classification, main)", "20.0", "20.0"),
        ("a (sts, main)", "50.0", "50.0"),
        ("b (sts, main)", "70.0", "70.0"),
        ("mean of 2 (sts)", "60.0", "60.0"),
        ("mean of tasks", "46.7", "46.7"),
        ("mean of kinds", "40.0", "40.0"),
    ]
    told = [line.split()[-2:] for line in task_report(measured).splitlines()[4:]]
    assert told == [list(row[1:]) for row in table.rows]
    assert task_rows({"tasks": {**measured, "tasks": []}}) is None


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


def test_the_recipe_is_shown_without_the_folders_of_this_machine():
    text = (
        "student: {model: /home/someone/models/base}\n"
        "texts: [/home/someone/texts.parquet, data/home/x.parquet, '/x']\n"
        "output: '/'\nwork: out/x\n"
    )
    assert recipe_text(Run(Path("nowhere"), None, text, (), {}, {})) == (
        "student: {model: …/base}\ntexts: […/texts.parquet, data/home/x.parquet, '…/x']\noutput: '/'\nwork: out/x\n"
    )
    assert recipe_text(Run(Path("nowhere"), None, None, (), {}, {})) is None


@pytest.mark.parametrize("word", ["=", "2001-99-99", "1:99", "0b1", "yes"])
def test_the_words_of_a_recipe_are_those_of_yaml_1_2(word):
    text = f"teachers:\n- model: /a/b\n  prompts: {{query: {word}}}\n"
    assert recipe_text(Run(Path("nowhere"), None, text, (), {}, {})) == text.replace("/a/b", "…/b")


def test_sizes():
    # Memory is measured with the speed.
    assert size_rows(RESULTS, []) == (
        ("Model", "Runs on", "Parameters", "Weights", "Texts per second"),
        [("student", "torch", "17.5 M", "70 MB", "340"), ("b", "torch", "22.7 M", "91 MB", "-")],
    )
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
