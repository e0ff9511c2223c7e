"""The plan that a run of the quality benchmark notes, and what becomes of runs of another one."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality import measure, methods
from benchmarks.quality.measure import checked_plan, run_method
from benchmarks.quality.methods import METHODS, Settings, Trained, plan
from benchmarks.quality.plan import plan_of
from benchmarks.quality.results import labels, read, run_name
from st_distill.recipe import schema
from st_distill.recipe.schema import Stage

PLAIN = Settings("st-distill")


def overridden(*overrides: str) -> Settings:
    return Settings("st-distill", overrides=overrides)


def test_a_plan_is_of_eight_digits_and_of_no_folder(minilm, tmp_path):
    elsewhere = str(shutil.copytree(minilm, tmp_path / "elsewhere"))
    assert re.fullmatch("[0-9a-f]{8}", plan(PLAIN, minilm))
    assert plan(PLAIN, elsewhere) == plan(PLAIN, minilm)


def test_defaults_that_are_named_make_no_other_plan(minilm):
    start = ("projection.start=identity", "projection.rotation=learned", "projection.heads=nested")
    losses = ("stages.all.losses={cosine: 10}", "stages.all.cosine_weights=proportional")
    assert plan(overridden(*start, *losses, "store_dtype=float16"), minilm) == plan(PLAIN, minilm)
    static = Settings("st-distill", "static", overrides=("projection.start=ridge", "projection.heads=none"))
    assert plan(static, minilm) == plan(Settings("st-distill", "static"), minilm)


@pytest.mark.parametrize(
    "override",
    [
        *("diagnosis=false", "teachers.teacher.device=cpu", "teachers.teacher.batch_size=8", "student.too_long=refuse"),
        *("seed=7", "stages.all.steps=3", "stages.all.mini_batch_size=8", "stages.all.arguments.logging_steps=7"),
        "stages.all.margin=0.5",  # of a term that is not trained
        "stages.all.losses={cosine: 10, triplet: 0}",
    ],
)
def test_what_leaves_the_result_as_it_is_makes_no_other_plan(override, minilm):
    assert plan(overridden(override), minilm) == plan(PLAIN, minilm)


def test_what_changes_the_result_makes_another_plan(minilm):
    overrides = [
        *("projection.start=ridge", "projection.rotation=principal", "projection.dims=[384]", "student.layers=[0, 5]"),
        *("stages.all.losses={cosine: 1}", "stages.all.cosine_weights=equal", "stages.all.cosine_dims=full"),
        *("stages.all.losses={cosine: 10, triplet: 2}", "stages.all.dropout=0.1", "stages.all.learning_rate=1e-3"),
        *("stages.all.arguments.warmup_steps=0", "stages.all.batch=3", "stages.all.group_by_length=false"),
        *("teachers.teacher.truncate_dim=128", "texts.0.limit=5", "store_dtype=int8"),
    ]
    plans = {plan(overridden(override), minilm) for override in overrides}
    assert len(plans | {plan(PLAIN, minilm)}) == len(overrides) + 1
    with_margin = ("stages.all.losses={cosine: 10, triplet: 2}", "stages.all.margin=0")
    assert plan(overridden(*with_margin), minilm) not in plans


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (schema, "_LOSSES", {"cosine": 10.0, "similarity": 20.0}),
        (Stage, "weights_of_cosine", lambda stage: "equal"),
        (Stage, "heads_of_cosine", lambda stage, projection: "full"),
        ("benchmarks.quality.plan", "chosen_start", lambda *given: "ridge"),
        ("benchmarks.quality.methods", "RATES", {"3-layer": 1e-4}),
    ],
    ids=["losses", "weights of the dimensions", "dimensions of the cosine", "start", "rate"],
)
def test_another_default_makes_another_plan(owner, name, value, minilm, monkeypatch):
    before = plan(PLAIN, minilm)
    owner = sys.modules[owner] if isinstance(owner, str) else owner
    monkeypatch.setattr(owner, name, value)
    assert plan(PLAIN, minilm) != before


def test_methods_without_a_recipe_have_no_plan(minilm):
    assert [method for method in METHODS if plan(Settings(method), minilm) is not None] == ["st-distill"]


def line_of(settings: Settings, noted: str | None, **more) -> dict:
    line = {"run": run_name("plain", settings), "name": "plain", "student": settings.student, "seed": settings.seed}
    line |= {"split": "dev", "task": "sts", "dim": 384, "settings": settings.as_dict(), "scores": {"spearman": 0.5}}
    line |= {"seconds": 60.0, "parameters": 1_000_000, "texts_per_second": 100.0}
    return {**line, **({} if noted is None else {"plan": noted}), **more}


@pytest.mark.parametrize("student", ["3-layer", "1-layer", "static"])
def test_the_plan_is_that_of_the_recipe_that_is_run(student, minilm, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def run(spec, **options):
        raise Stop(plan_of(spec, is_static=student == "static"))

    shop = SimpleNamespace(
        out=tmp_path,
        teacher_name=minilm,
        copy_store=lambda folder: None,
        pairs_file=lambda form: tmp_path / f"{form}.parquet",
        lexical_teacher=lambda: str(tmp_path / "lexical"),
    )
    monkeypatch.setattr(methods, "run", run)
    monkeypatch.setattr(methods, "make_static", lambda teacher, out: None)
    for settings in (Settings("st-distill", student), Settings("st-distill", student, lexical=0.3)):
        with pytest.raises(Stop, match=plan(settings, minilm)):
            methods.train(settings, shop, tmp_path)


class Shop(SimpleNamespace):
    """The output folder alone, with lines of results and the teacher's folder."""

    def __init__(self, out: Path, teacher: str, *lines: dict) -> None:
        super().__init__(out=out, results=out / "results.jsonl", teacher_name=teacher)
        out.mkdir(parents=True, exist_ok=True)
        self.results.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("noted", "was"), [("0badcafe", "by the plan 0badcafe"), (None, "without a plan")])
def test_a_run_of_another_plan_is_refused(noted, was, minilm, tmp_path):
    run, folder = run_name("plain", PLAIN), tmp_path / "runs" / run_name("plain", PLAIN)
    remedy = f"name another --out, or remove its lines and the folder {folder}."
    rest = f"has the run {run} {was}, and the recipe's defaults would train it by {plan(PLAIN, minilm)} now: {remedy}"
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/results.jsonl {rest}")):
        checked_plan(Shop(tmp_path, minilm, line_of(PLAIN, noted)), "plain", PLAIN)
    folder.mkdir(parents=True)
    (folder / "trained.json").write_text(json.dumps({"seconds": 1.0} | ({} if noted is None else {"plan": noted})))
    with pytest.raises(
        ValueError, match=re.escape(f"{folder}/trained.json {rest}")
    ):  # the lines gone, the student kept
        checked_plan(Shop(tmp_path, minilm), "plain", PLAIN)


def test_runs_of_this_plan_and_of_other_settings_are_none_of_another(minilm, tmp_path):
    now, other = plan(PLAIN, minilm), Settings("st-distill", seed=1)
    shop = Shop(tmp_path, minilm, line_of(PLAIN, now), line_of(other, "0badcafe"))
    assert checked_plan(shop, "plain", PLAIN) == now
    cosine = Settings("cosine")
    assert checked_plan(Shop(tmp_path, minilm, line_of(cosine, None)), "plain", cosine) is None


def test_the_command_refuses_before_any_work(tiny_bert, tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "scifact").mkdir(parents=True)
    settings = Settings("st-distill", steps=7)
    run = run_name("st-distill", settings)
    shop = Shop(tmp_path / "out", tiny_bert, line_of(settings, None, run=run))
    words = ["--data", str(tmp_path / "data"), "--teacher", tiny_bert, "--out", str(shop.out), "--steps", "7"]
    monkeypatch.setattr(sys, "argv", ["quality", "run", "--methods", "untrained", "st-distill", *words])
    monkeypatch.setattr(command, "run_teachers", lambda shop, split: pytest.fail("the teachers were measured"))
    with pytest.raises(SystemExit):
        command.main()
    assert f"{shop.results} has the run {run} without a plan" in capsys.readouterr().err
    assert len(read(shop.results)) == 1


def test_lines_note_the_plan_and_another_split_is_measured_of_the_same_student(
    make_student, minilm, tmp_path, monkeypatch
):
    trained = []

    def train(*given) -> Trained:
        trained.append(given)
        return Trained(make_student(), 1.0, 1.0)

    shop = Shop(tmp_path, minilm)
    shop.tasks = lambda split: [SimpleNamespace(texts=["a cat", "a dog"])]
    monkeypatch.setattr(measure, "train", train)
    monkeypatch.setattr(measure, "throughput", lambda model, texts: 100.0)
    monkeypatch.setattr(measure, "encode", lambda model, tasks: ({}, 1.0))
    monkeypatch.setattr(measure, "score", lambda *given, **more: [{"task": "sts", "dim": 384, "scores": {}}])
    for splits in (["dev"], ["dev", "test"]):
        run_method(shop, "plain", PLAIN, splits)
    run_method(shop, "cosine", Settings("cosine"), ["dev"])
    noted = [(line["name"], line["split"], line["plan"]) for line in read(shop.results)]
    now = plan(PLAIN, minilm)
    assert noted == [("plain", "dev", now), ("plain", "test", now), ("cosine", "dev", None)]
    assert len(trained) == 2
    shop.results.unlink()
    run_method(shop, "plain", PLAIN, ["dev"])
    assert [line["plan"] for line in read(shop.results)] == [now]
    assert len(trained) == 2


def test_runs_of_several_plans_have_no_mean():
    seeds = [Settings("st-distill", seed=seed) for seed in range(3)]
    lines = [line_of(settings, noted) for settings, noted in zip(seeds, ("aaaaaaaa", "bbbbbbbb", None))]
    assert list(labels(lines).values()) == [
        'plain (plan "aaaaaaaa")',
        'plain (plan "bbbbbbbb")',
        "plain (plan as it was)",
    ]
    longer = [line_of(PLAIN, "aaaaaaaa"), line_of(Settings("st-distill", rate=1e-3), "cccccccc")]
    assert list(labels(longer).values()) == ["plain (rate 0.0006)", "plain (rate 0.001)"]
