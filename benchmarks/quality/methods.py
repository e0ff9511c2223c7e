"""The methods: the same student start, texts, batches (texts of like length, pairs together) and steps for all that train.

| method | what |
|---|---|
| cosine | sentence-transformers' EmbedDistillLoss, cosine |
| cosine-matryoshka | the same inside its MatryoshkaLoss |
| published | the published recipe as its public code does it: one head, three losses in one stage, prefixes |
| untrained | the student as it starts |
| teacher | the teacher, truncated |
| teacher-random, teacher-pca, teacher-learned | the same on random, principal (of its training vectors), learned axes |
| teacher-whitened | the same on its principal axes, each divided by its spread: no rotation, the similarities are others |
| st-distill | this package's default recipe (`recipe`) |

None of them drops anything in training; `--dropout model` gives each the dropout of the model itself.
The published code starts its head at random. Here it starts as the identity, with which the student starts where the others
do; ``published-random`` is the other.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MatryoshkaLoss
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.quality.experiments import Experiment, applied
from benchmarks.quality.plan import plan_of
from benchmarks.quality.students import make_static, start
from benchmarks.quality.teacher import NAME, Workshop
from st_distill import losses, run
from st_distill.exporting import load_student
from st_distill.losses import TeacherRows
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.matryoshka import find_projection
from st_distill.modules.rotation import learned_rotation, principal_rotation, random_rotation
from st_distill.recipe.load import load_recipe
from st_distill.recipe.schema import Recipe
from st_distill.recipe.student import build_student, dropout_of
from st_distill.sampler import LengthGroupedBatchSampler

DIMS = [384, 256, 128, 64, 32]
#: Peak learning rate of a student's encoder.
RATES = {"3-layer": 6e-4, "1-layer": 6e-4, "static": 1e-2}
#: The loss of the published recipe (arXiv 2412.19048, section 3), whatever the package's own defaults are.
PUBLISHED: dict[str, Any] = {
    "weights": {"cosine": 10.0, "similarity": 200.0, "triplet": 20.0},
    "margin": 0.015,
    "cosine_dims": None,
    "bits": False,
}


@dataclass(frozen=True)
class Settings:
    """What a run is made with; every line of its results repeats it."""

    method: str
    student: str = "3-layer"
    seed: int = 0
    steps: int = 600
    batch: int = 64
    rate: float | None = None
    layers: tuple[int, ...] | None = None
    #: Share of the activations that training drops; None: the library's way, the model's own share.
    dropout: float | None = 0.0
    #: Whether training computes in bfloat16 (autocast); measuring never does.
    bf16: bool = False
    #: Of st-distill alone: the stages and each one's share of the steps.
    stages: tuple[tuple[str, float], ...] = (("all", 1.0),)
    #: Of st-distill alone: the form of its texts, a lexical teacher's weight, what `experiments` change.
    texts: str = "related"
    lexical: float = 0.0
    experiment: Experiment = field(default_factory=Experiment)
    #: Of st-distill alone: changes to the recipe, as on its command line.
    overrides: tuple[str, ...] = field(default=())

    @property
    def learning_rate(self) -> float:
        return RATES[self.student] if self.rate is None else self.rate

    def as_dict(self) -> dict[str, Any]:
        # An experiment as what it changes, so that a run keeps its name when there are more options.
        plain = asdict(Experiment())
        changed = {name: value for name, value in asdict(self.experiment).items() if value != plain[name]}
        settings = {"rate": self.learning_rate, "overrides": list(self.overrides), "experiment": changed}
        return {**asdict(self), **settings}


@dataclass
class Trained:
    """A finished student, the seconds that its training took on the clock and of the processors, and the rotation between the
    teacher's space and its own."""

    model: SentenceTransformer
    seconds: float
    cpu_seconds: float
    rotation: Tensor | None = None
    in_teacher_space: bool = True


class FromStore(nn.Module):
    """Gives a sentence-transformers loss the teacher's vectors as labels, where the dataset has the row numbers."""

    def __init__(self, loss: nn.Module, store: TeacherRows) -> None:
        super().__init__()
        self.loss = loss
        self.store = store

    def forward(self, features: Any, labels: Tensor) -> Tensor:
        return self.loss(features, self.store.gather(labels))


def train(settings: Settings, shop: Workshop, folder: Path) -> Trained:
    """Train the student of ``settings``; ``folder`` is for what the run writes."""
    if settings.student == "static":
        make_static(shop.teacher_name, shop.out)
    if settings.method == "st-distill":
        return _with_recipe(settings, shop, folder)
    model = build_student(_start(settings, shop), device="cpu")
    if settings.method == "untrained":
        return Trained(model, 0.0, 0.0, in_teacher_space=False)
    set_seed(settings.seed)
    build = LOSSES[settings.method]
    loss = build(model, shop.store)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=0.1,
        seed=settings.seed,
        batch_sampler=LengthGroupedBatchSampler,
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        use_cpu=True,
        bf16=settings.bf16,
        dataloader_pin_memory=False,
    )
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=shop.pairs, loss=loss)
    started = _now()
    with dropout_of(model, settings.dropout):
        trainer.train()
    return Trained(model.eval(), *_since(started))


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(started: tuple[float, float]) -> tuple[float, float]:
    clock, processors = _now()
    return clock - started[0], processors - started[1]


def _start(settings: Settings, shop: Workshop) -> Any:
    layers = None if settings.layers is None else list(settings.layers)
    return start(settings.student, shop.teacher_name, shop.out, layers=layers)


def _embed_distill(model: SentenceTransformer, store: TeacherRows) -> nn.Module:
    return FromStore(EmbedDistillLoss(model, distance_metric="cosine"), store)


def _embed_distill_matryoshka(model: SentenceTransformer, store: TeacherRows) -> nn.Module:
    return FromStore(MatryoshkaLoss(model, EmbedDistillLoss(model, distance_metric="cosine"), DIMS), store)


def _published(model: SentenceTransformer, store: TeacherRows) -> nn.Module:
    head = MatryoshkaProjection(model.get_embedding_dimension(), DIMS, heads="nested")
    head.start_identity()
    model.append(head)
    return losses.JasperDistill(model, teacher=store, dims=DIMS, **PUBLISHED)


def _published_random(model: SentenceTransformer, store: TeacherRows) -> nn.Module:
    model.append(MatryoshkaProjection(model.get_embedding_dimension(), DIMS, heads="nested"))
    return losses.JasperDistill(model, teacher=store, dims=DIMS, **PUBLISHED)


LOSSES: dict[str, Callable[[SentenceTransformer, TeacherRows], nn.Module]] = {
    "cosine": _embed_distill,
    "cosine-matryoshka": _embed_distill_matryoshka,
    "published": _published,
    "published-random": _published_random,
}
#: Methods that train, and those that do not.
METHODS = [*LOSSES, "untrained", "st-distill"]
TEACHERS = ["teacher", "teacher-random", "teacher-pca", "teacher-learned", "teacher-whitened"]


def recipe(settings: Settings, shop: Workshop, folder: Path) -> dict[str, Any]:
    """The default recipe as plain data; its stages share the settings' steps out among themselves."""
    student = _start(settings, shop)
    teachers: list[dict[str, Any]] = [{"model": shop.teacher_name, "name": NAME}]
    if settings.lexical:
        teachers.append({"model": shop.lexical_teacher(), "name": "lexical", "weight": settings.lexical})
    # A batch holds as many texts, whatever the columns are.
    rows = settings.batch // 2 if settings.texts == "neighbours" else settings.batch
    arguments = {"warmup_steps": 0.1, "use_cpu": True, "bf16": settings.bf16}
    shared = {"batch": rows, "group_by_length": True, "arguments": arguments}
    kinds: dict[str, tuple[Any, float]] = {
        "projection": ("projection", 1e-4),
        "last-layer": ({"last_layers": 1}, 2e-4),
        "all": ("all", settings.learning_rate),
    }
    # One layer, or none, is all there is to train.
    parts = settings.stages if len(student.layers or []) > 1 else (("all", 1.0),)
    return {
        "output": str(folder / "model"),
        "work": str(folder / "work"),
        "seed": settings.seed,
        "student": {key: value for key, value in asdict(student).items() if value},
        "teachers": teachers,
        "texts": [{"path": str(shop.pairs_file(settings.texts))}],
        "projection": {"dims": DIMS},
        "stages": [
            {
                "name": name,
                "train": kinds[name][0],
                "steps": max(1, round(share * settings.steps)),
                "learning_rate": kinds[name][1],
                "dropout": settings.dropout,
                **shared,
            }
            for name, share in parts
        ],
    }


def draft(settings: Settings, teacher: str) -> Recipe:
    """The recipe of a run, before there are its texts or its student.

    Raises:
        ValueError: it does not take the overrides; a `RecipeError` with each mistake.
    """
    with tempfile.TemporaryDirectory() as folder:
        nowhere = SimpleNamespace(
            teacher_name=teacher,
            out=Path(folder),
            pairs_file=lambda form: "texts.parquet",
            lexical_teacher=lambda: "lexical",
        )
        return _load(settings, nowhere, Path(folder))  # type: ignore[arg-type]


def plan(settings: Settings, teacher: str) -> str | None:
    """What a run of these settings is trained by now (`benchmarks.quality.plan`); None for a method without a recipe."""
    if settings.method != "st-distill":
        return None
    return plan_of(draft(settings, teacher), is_static=settings.student == "static")


def _load(settings: Settings, shop: Workshop, folder: Path) -> Recipe:
    """Write the recipe of a run into its folder, and read it with the overrides."""
    file = folder / "recipe.yaml"
    # JSON is YAML, too.
    file.write_text(json.dumps(recipe(settings, shop, folder), indent=1), encoding="utf-8")
    return load_recipe(str(file), settings.overrides)


def _with_recipe(settings: Settings, shop: Workshop, folder: Path) -> Trained:
    shutil.rmtree(folder / "work", ignore_errors=True)
    spec = _load(settings, shop, folder)  # before the copy: the texts that it makes are embedded into the shop's store
    shop.copy_store(folder / "work")
    started = _now()
    with applied(settings.experiment, shop.teacher_name, spec.student.layers):
        run(spec, show_progress=False)
    took = _since(started)
    last = sorted((folder / "work").glob("stages/*/model"))[-1]
    projection = find_projection(load_student(last, device="cpu"))
    assert projection is not None
    follows = not settings.lexical and projection.teacher_head is None
    model = SentenceTransformer(spec.output, device="cpu")
    return Trained(model, *took, projection.rotation, in_teacher_space=follows)


def teacher_axes(name: str, shop: Workshop) -> Tensor | None:
    """(width, width) the axes of one of `TEACHERS`, found from its vectors of the training texts; None: its own."""
    if name == "teacher":
        return None
    if name == "teacher-random":
        return random_rotation(DIMS[0], DIMS[0])
    vectors = shop.training_vectors()
    principal = principal_rotation(torch.split(vectors, 8192), DIMS[0])
    if name == "teacher-pca":
        return principal
    if name == "teacher-whitened":
        return principal / (vectors @ principal).square().mean(0).sqrt()
    generator = torch.Generator().manual_seed(0)
    batches = (vectors[torch.randperm(len(vectors), generator=generator)[:512]] for _ in itertools.count())
    return learned_rotation(batches, principal, DIMS)
