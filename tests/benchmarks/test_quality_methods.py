"""The quality benchmark's methods, students, axes and trials: that each is what its name says, and nothing else."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from benchmarks.quality import methods, students
from benchmarks.quality.__main__ import trial_settings
from benchmarks.quality.experiments import Experiment
from benchmarks.quality.methods import DIMS, LOSSES, FromStore, Settings, draft, plan, recipe, teacher_axes
from benchmarks.quality.plan import plan_of
from benchmarks.quality.students import LAYERS, start
from benchmarks.quality.trials import TRIALS
from st_distill.files import write_json
from st_distill.losses import JasperDistill
from st_distill.recipe.load import load_recipe

PAPER = {"cosine": 10.0, "similarity": 200.0, "triplet": 20.0}
USUAL = {"steps": 150, "batch": 64, "dropout": 0.0, "bf16": False, "student": "3-layer", "seed": 0}


def described(settings: Settings, teacher: str) -> dict[str, Any]:
    """All that settings say of a run: each field of the recipe, of the experiment, and the form of the texts."""
    spec = draft(settings, teacher)
    parts = {"student": asdict(spec.student), "projection": asdict(spec.projection), "": asdict(settings.experiment)}
    parts |= {stage.name: asdict(stage) for stage in spec.stages}
    parts |= {teacher.name: asdict(teacher) for teacher in spec.teachers}
    fields = {f"{part}.{name}".lstrip("."): value for part, fields in parts.items() for name, value in fields.items()}
    return fields | {"texts": settings.texts, "stages": [stage.name for stage in spec.stages]}


def changes(name: str, teacher: str) -> dict[str, Any]:
    """What a trial has that the plain one has not, or has otherwise; but for what another teacher or stage is by default."""
    plain = described(Settings("st-distill", **USUAL), teacher)
    found = described(trial_settings(name, [], USUAL, {}), teacher)
    of_parts = {"lexical", "projection", "last-layer"}
    return {
        field: value
        for field, value in found.items()
        if value != plain.get(field, value) or (field.split(".")[0] in of_parts and field not in plain)
    }


# Most names end in the value of a field.
@pytest.mark.parametrize("name", TRIALS)
def test_a_trials_name_says_the_value(name, minilm):
    found = changes(name, minilm)
    if layers := re.fullmatch("layers-([0-9-]+)", name):
        assert found == {"student.layers": [int(layer) for layer in layers[1].split("-")]}
    elif rotation := re.fullmatch("rotation-(.+)", name):
        assert found == {"projection.rotation": rotation[1]}
    elif rate := re.fullmatch("rate-(.+)", name):
        assert found == {"all.learning_rate": float(rate[1])}
    elif weight := re.fullmatch("(neighbours|hidden)-(.+)", name):
        assert found == {weight[1]: float(weight[2])}
    elif batch := re.fullmatch("batch-(.+)", name):  # of as many pairs in all
        assert found == {"all.batch": int(batch[1]), "all.steps": 150 * 64 // int(batch[1])}
    elif weight := re.fullmatch("lexical-(.+)", name):
        assert (found["lexical.weight"], found["lexical.model"]) == (float(weight[1]), "lexical")
        assert {field.split(".")[0] for field in found} == {"lexical"}
    elif (form := re.fullmatch("texts-(.+)", name)) and form[1] != "neighbours":
        assert found == {"texts": form[1]}
    else:
        assert name in {*NAMED, "three-stages", "paper", "ridge-only"}


NAMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "start-ridge": {"projection.start": "ridge"},
    "teacher-head": {"projection.teacher_head": True},
    "cosine-full": {"all.cosine_dims": "full"},
    "equal-weights": {"all.cosine_weights": "equal"},
    "relations": {"all.losses": PAPER},
    "relations-for-prefixes": {"all.losses": PAPER, "all.cosine_dims": "full"},
    "relations-tenth": {"all.losses": {"cosine": 10.0, "similarity": 20.0, "triplet": 2.0}},
    "similarity-20": {"all.losses": {"cosine": 10.0, "similarity": 20.0}},
    "triplet-2": {"all.losses": {"cosine": 10.0, "triplet": 2.0}},
    "triplet-2-margin-0": {"all.losses": {"cosine": 10.0, "triplet": 2.0}, "all.margin": 0.0},
    "bits": {"all.losses": {"cosine": 10.0, "similarity": 20.0}, "all.bits": True},
    "relations-later": {"all.losses": PAPER, "relations_after": 0.5},
    "centred": {"all.losses": PAPER, "centred": True},
    "own-teacher": {"all.losses": PAPER, "own_teacher": True},
    "short-first": {"prefix_power": 0.5},
    "spread": {"spread": 5.0},
    "layers-mean": {"mean_layers": True},
    "average": {"average": 0.3},
    "projection-rate": {
        "all.arguments": {
            "warmup_steps": 0.1,
            "use_cpu": True,
            "bf16": False,
            "learning_rate_mapping": {"linears": 3e-3},
        }
    },
    "random-batches": {"all.group_by_length": False},
    # Rows of four texts, of which a batch has half as many.
    "texts-neighbours": {"texts": "neighbours", "all.batch": 32},
    "relations-neighbours": {"texts": "neighbours", "all.batch": 32, "all.losses": PAPER},
}


@pytest.mark.parametrize("name", NAMED)
def test_a_trial_changes_what_its_name_says_alone(name, minilm):
    assert changes(name, minilm) == NAMED[name]


@pytest.mark.parametrize("name", ["three-stages", "paper"])
def test_trials_of_three_stages(name, minilm):
    """A tenth, a fifth and the rest of the steps: the projection, the last layer too, everything."""
    stages = draft(trial_settings(name, [], USUAL, {}), minilm).stages
    assert [stage.train for stage in stages] == ["projection", {"last_layers": 1}, "all"]
    assert [stage.steps for stage in stages] == [15, 30, 105]
    assert [stage.learning_rate for stage in stages] == [1e-4, 2e-4, 6e-4]
    assert [stage.losses for stage in stages] == [PAPER if name == "paper" else None] * 3
    assert [stage.cosine_dims for stage in stages] == ["full" if name == "paper" else None] * 3


def test_the_ridge_start_alone(minilm):
    spec = draft(trial_settings("ridge-only", [], USUAL, {}), minilm)
    assert [(stage.train, stage.steps) for stage in spec.stages] == [("projection", 1)]
    assert spec.projection.start == "ridge"


def test_trials_of_another_recipe_have_another_plan(minilm):
    trials = {name: trial_settings(name, [], USUAL, {}) for name in TRIALS}
    usual = Settings("st-distill", **USUAL)
    same = {name for name, settings in trials.items() if plan(settings, minilm) == plan(usual, minilm)}
    # What is no recipe's field: an experiment, unless it has relations too, and the form of the texts.
    changed = {name for name, settings in trials.items() if settings.experiment != Experiment()}
    forms = {name for name in TRIALS if name.startswith("texts-") and name != "texts-neighbours"}
    assert same == {"plain"} | changed - {"relations-later", "centred", "own-teacher"} | forms


def test_the_default_is_that_of_the_preset(minilm):
    given = ["texts=texts.parquet", f"teachers=[{minilm}]", "stages.all.arguments.bf16=false", "stages.all.steps=300"]
    student = f"student={{model: {minilm}, layers: [0, 2, 5], max_seq_length: 256}}"
    preset = load_recipe("default", [student, *given])
    assert plan_of(preset, is_static=False) == plan(Settings("st-distill", steps=300, batch=32), minilm)


@pytest.mark.parametrize(("student", "count"), [("3-layer", 3), ("1-layer", 1)])
def test_students_keep_as_many_layers_the_last_among_them(student, count, tmp_path):
    spec = start(student, "teacher", tmp_path)
    assert (spec.model, len(spec.layers), spec.layers[-1], spec.max_seq_length) == ("teacher", count, 5, 256)
    assert start(student, "teacher", tmp_path, layers=[4]).layers == [4]


def test_one_layer_or_none_has_one_stage(minilm):
    stages = (("projection", 0.1), ("all", 0.9))
    for student, names in (("3-layer", ["projection", "all"]), ("1-layer", ["all"]), ("static", ["all"])):
        assert [stage.name for stage in draft(Settings("st-distill", student, stages=stages), minilm).stages] == names


def test_a_recipe_takes_the_settings(minilm, tmp_path):
    asked = []
    shop = SimpleNamespace(
        out=tmp_path,
        teacher_name=minilm,
        pairs_file=lambda form: asked.append(form) or tmp_path / f"{form}.parquet",
    )
    settings = Settings("st-distill", seed=3, steps=7, batch=6, rate=0.5, dropout=None, bf16=True, texts="long")
    spec = recipe(settings, shop, tmp_path)
    (stage,) = spec["stages"]
    assert (spec["seed"], stage["steps"], stage["batch"], stage["learning_rate"], stage["dropout"]) == (
        3,
        7,
        6,
        0.5,
        None,
    )
    assert stage["arguments"]["bf16"]
    assert asked == ["long"]
    assert spec["texts"] == [{"path": f"{tmp_path}/long.parquet"}]


def test_the_time_of_a_run_has_no_embedding_of_its_own_texts(minilm, tmp_path, monkeypatch):
    """Making the texts embeds them into the store, which is copied after it; the time begins when both are done."""
    done = []
    shop = SimpleNamespace(
        out=tmp_path,
        teacher_name=minilm,
        pairs_file=lambda form: done.append(form) or tmp_path / f"{form}.parquet",
        copy_store=lambda folder: done.append("copied"),
    )

    class Stop(Exception):
        pass

    def run(spec, **options):
        raise Stop

    monkeypatch.setattr(methods, "run", run)
    monkeypatch.setattr(methods, "_now", lambda: done.append("time"))
    with pytest.raises(Stop):
        methods.train(Settings("st-distill", texts="pieces"), shop, tmp_path)
    assert done == ["pieces", "copied", "time"]


def test_one_command_at_a_time_makes_the_static_student(tmp_path, monkeypatch):
    made = []

    def static_student(teacher):
        with pytest.raises(Timeout):
            FileLock(tmp_path / "lock", timeout=0).acquire()
        made.append(teacher)
        return SimpleNamespace(save=lambda folder: write_json(Path(folder) / "modules.json", []))

    monkeypatch.setattr(students, "SentenceTransformer", lambda name, **options: name)
    monkeypatch.setattr(students, "static_student", static_student)
    (tmp_path / "students" / "static").mkdir(parents=True)
    for _ in range(2):
        students.make_static("teacher", tmp_path)
    assert made == ["teacher"]


@pytest.fixture
def model(make_student) -> SentenceTransformer:
    """A static student as wide as the teacher."""
    return SentenceTransformer(modules=[StaticEmbedding(make_student().tokenizer, embedding_dim=DIMS[0])], device="cpu")


class Rows:
    """The teacher's vectors, in the place of a store."""

    dimension = DIMS[0]

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        return self.vectors[ids]


@pytest.mark.parametrize(("method", "opposite"), [("cosine", 2.0), ("cosine-matryoshka", 2.0 * len(DIMS))])
def test_the_librarys_losses_of_vectors_alike_and_opposite(method, opposite, model, sentences):
    features = [model.preprocess(sentences[:4])]
    vectors = model(features[0])["sentence_embedding"].detach()
    for sign, value in ((1, 0.0), (-1, opposite)):
        loss = LOSSES[method](model, Rows(sign * vectors))
        assert isinstance(loss, FromStore)
        assert loss(features, torch.arange(4)).item() == pytest.approx(value, abs=1e-5)


def test_of_the_librarys_losses_one_looks_at_prefixes(model, sentences):
    """The teacher is the student, but for its last 128 coordinates."""
    features = [model.preprocess(sentences[:4])]
    vectors = model(features[0])["sentence_embedding"].detach()
    vectors[:, 256:] *= -1
    whole = LOSSES["cosine"](model, Rows(vectors))(features, torch.arange(4)).item()
    assert whole > 0.1
    nested = LOSSES["cosine-matryoshka"](model, Rows(vectors))(features, torch.arange(4)).item()
    assert nested == pytest.approx(whole, rel=1e-4)  # the other prefixes are right


@pytest.mark.parametrize("method", ["published", "published-random"])
def test_the_published_recipe_is_the_papers(method, model, sentences):
    before = model.encode(sentences[:4], convert_to_tensor=True)
    loss = LOSSES[method](model, Rows(torch.eye(DIMS[0])))
    assert isinstance(loss, JasperDistill)
    assert loss.get_config_dict() == {"weights": PAPER, "margin": 0.015, "dims": [384, 256, 128, 64, 32]}
    assert model[1].heads == "nested"
    after = model.encode(sentences[:4], convert_to_tensor=True)
    assert torch.allclose(before, after, atol=1e-6) == (method == "published")


def test_the_published_recipe_does_not_follow_the_packages_defaults(model, monkeypatch):
    monkeypatch.setattr("st_distill.losses.PAPER_WEIGHTS", {"cosine": 1.0, "similarity": 0.0, "triplet": 0.0})
    assert LOSSES["published"](model, Rows(torch.eye(DIMS[0]))).weights == PAPER


def test_the_untrained_student_is_the_start(make_student, tmp_path, monkeypatch):
    monkeypatch.setattr(students, "TOKENS", 64)  # the teacher here reads no more
    teacher = make_student()
    teacher.save(str(tmp_path / "teacher"))
    shop = SimpleNamespace(teacher_name=str(tmp_path / "teacher"), out=tmp_path)
    trained = methods.train(Settings("untrained", layers=(0, 3)), shop, tmp_path)
    assert (trained.seconds, trained.cpu_seconds, trained.in_teacher_space) == (0.0, 0.0, False)
    layers, kept = trained.model[0].model.encoder.layer, [teacher[0].model.encoder.layer[place] for place in (0, 3)]
    for ours, theirs in zip(layers, kept, strict=True):
        assert torch.equal(ours.output.dense.weight, theirs.output.dense.weight)


class TestTeacherAxes:
    """Vectors of 8 dimensions, of which each is half as long as the one before, turned at random."""

    @pytest.fixture
    def shop(self, monkeypatch) -> SimpleNamespace:
        monkeypatch.setattr(methods, "DIMS", [8, 4, 2])
        generator = torch.Generator().manual_seed(0)
        spread = torch.randn(64, 8, generator=generator) * 0.5 ** torch.arange(8)
        turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
        vectors = torch.nn.functional.normalize(spread @ turn, dim=1)
        return SimpleNamespace(training_vectors=lambda: vectors)

    def test_the_teachers_own_are_none(self, shop):
        assert teacher_axes("teacher", shop) is None

    @pytest.mark.parametrize("name", ["teacher-random", "teacher-pca", "teacher-learned"])
    def test_a_rotation_leaves_the_similarities(self, name, shop):
        axes = teacher_axes(name, shop)
        assert torch.allclose(axes.T @ axes, torch.eye(8), atol=1e-5)
        assert not torch.allclose(axes.abs(), torch.eye(8), atol=0.1)

    @pytest.mark.parametrize(("name", "falls"), [("teacher-pca", True), ("teacher-random", False)])
    def test_principal_axes_go_by_their_spread(self, name, falls, shop):
        spread = (shop.training_vectors() @ teacher_axes(name, shop)).square().mean(0)
        assert bool((spread.diff() < 0).all()) == falls

    def test_whitened_axes_are_the_principal_ones_of_equal_spread(self, shop):
        axes = teacher_axes("teacher-whitened", shop)
        spread = (shop.training_vectors() @ axes).square().mean(0)
        assert torch.allclose(spread, torch.ones(8), rtol=1e-4)
        cosines = torch.nn.functional.normalize(axes, dim=0) * teacher_axes("teacher-pca", shop)
        assert torch.allclose(cosines.sum(0), torch.ones(8), atol=1e-4)

    def test_learned_axes_keep_more_neighbours_in_a_prefix(self, shop):
        """The similarities of the first two dimensions are nearer to the whole ones than those of random axes."""
        vectors = shop.training_vectors()

        def off(name: str) -> float:
            part = torch.nn.functional.normalize((vectors @ teacher_axes(name, shop))[:, :2], dim=1)
            return float((part @ part.T - vectors @ vectors.T).square().mean())

        assert off("teacher-learned") < 0.7 * off("teacher-random")


def test_every_student_has_a_rate():
    assert methods.RATES.keys() == LAYERS.keys()
