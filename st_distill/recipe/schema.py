"""What a recipe says: dataclasses whose fields are the one place where each option is described.

They are made in Python, ``Recipe(output="out/small", student=Student(model="..."), ...)``, with plain mappings wherever a
part is expected, or read from YAML by `st_distill.recipe.load`. Both ways go through `st_distill.recipe.conversion`, which
finds every wrong type and range at once. What needs several fields, files or model configurations is looked at by
`st_distill.recipe.check`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from st_distill.files import is_folder_name
from st_distill.nearest import nearest, suggest
from st_distill.recipe.conversion import Part
from st_distill.recipe.patterns import pattern_error
from st_distill.recipe.rules import (
    about,
    above,
    at_least,
    below_one,
    is_seed,
    names_list,
    not_empty,
    numbers_list,
    python_only,
)
from st_distill.recipe.source_schema import Images, ImageSource, Texts
from st_distill.words import Found, folder_name

__all__ = [
    "Evaluation",
    "ImageSource",
    "Images",
    "Objective",
    "Projection",
    "Recipe",
    "Stage",
    "Student",
    "TeacherSpec",
    "Texts",
]


#: Terms of the distillation loss, with the paper's weights (arXiv 2412.19048, section 3).
PAPER_LOSSES = {"cosine": 10.0, "similarity": 200.0, "triplet": 20.0}
#: With bits, and without: docs/ablations.md has what each was worth.
_LOSSES_WITH_BITS = {"cosine": 10.0, "similarity": 20.0}
_LOSSES = {"cosine": 10.0}
#: What ``train`` may say in one word.
TRAIN_WORDS = ("projection", "all", "vision")
#: Stage fields that are short for a training argument, and what a stage uses where neither is given.
SHORTHAND_ARGUMENTS = {
    "learning_rate": "learning_rate",
    "steps": "max_steps",
    "epochs": "num_train_epochs",
    "batch": "per_device_train_batch_size",
}
STAGE_DEFAULTS = {"learning_rate": 1e-4, "per_device_train_batch_size": 128}


# --- rules: each looks at a value of the right type and yields what is wrong with it ----------------------------------


def file_name(value: Any) -> Iterator[Found]:
    if value is not None and not is_folder_name(value):
        allowance = "up to 100 letters, digits, '-', '_' and inner '.'"
        yield (), f"names a folder, so it must be of {allowance}, got '{value}'"


def _train_rule(value: Any) -> Iterator[Found]:
    if isinstance(value, str) and value not in TRAIN_WORDS:
        if value == "last_layers":
            yield (), "says not how many layers; write {last_layers: 3}"
        elif set(value) & set("*?[.^$\\|") and not nearest(value, TRAIN_WORDS):
            yield (), f"a regular expression for parameter names must stand in a list; write ['{value}']"
        else:
            kinds = (
                f"{', '.join(TRAIN_WORDS)}, {{last_layers: 3}}, or a list of regular expressions for parameter names"
            )
            yield (), f"unknown value '{value}'{suggest(value, TRAIN_WORDS) or f'; it may be {kinds}'}"
    elif isinstance(value, dict):
        for key in value:
            if key != "last_layers":
                yield (key,), f"unknown field{suggest(key, ['last_layers'], always=True)}"
        if "last_layers" in value and value["last_layers"] < 1:
            yield ("last_layers",), f"must be at least 1, got {value['last_layers']}"
        if not value:
            yield (), "must not be empty; write {last_layers: 3}"
    elif isinstance(value, list):
        yield from names_list(value)
        for index, pattern in enumerate(value):
            if error := pattern_error(pattern):
                yield (index,), f"is not a regular expression: {error}"


def _losses_rule(value: Any) -> Iterator[Found]:
    for name, weight in (value or {}).items():
        if name not in PAPER_LOSSES:
            yield (name,), f"unknown loss{suggest(name, PAPER_LOSSES, always=True)}"
        elif weight < 0:
            yield (name,), f"a weight must be at least 0, got {weight:g}"


# --- the parts of a recipe ---------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Student(Part):
    """The model that is trained."""

    short_for: ClassVar[str | None] = "model"

    model: str = field(metadata=about("name or folder of a sentence-transformers or transformers model", not_empty))
    layers: list[int] | None = field(
        default=None,
        metadata=about("encoder layers to keep, from 0; all by default", numbers_list(0, ascending=True)),
    )
    max_seq_length: int | None = field(
        default=None, metadata=about("tokens per text in training; the model's own", at_least(2))
    )
    export_max_seq_length: int | None = field(
        default=None,
        metadata=about(
            "tokens per text that the finished model reads, and is measured with, such as 8192 of an ALiBi encoder that has "
            "learned on 512; those of training by default",
            at_least(2),
        ),
    )
    too_long: Literal["truncate", "refuse"] = field(
        default="truncate",
        metadata=about(
            "what becomes of texts with more tokens: truncate says so once (of each source's first 1000); refuse looks at all "
            "before the run, and is a mistake where there are any"
        ),
    )
    pooling: Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"] | None = field(
        default=None, metadata=about("pooling of a plain transformers model; mean by default")
    )
    load_in_4bit: bool = field(
        default=False,
        metadata=about(
            "hold the encoder in 4 bits while adapters (lora) are trained, as QLoRA does; needs bitsandbytes"
        ),
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention", "blockwise"] | None = field(
        default=None,
        metadata=about(
            "attention kernel in training, as transformers names it; the model's own by default. flash_attention_2 needs half "
            "precision (arguments: {bf16: true}), and its batches have no padding. blockwise is the ALiBi encoder's alone"
        ),
    )
    revision: str | None = field(default=None, metadata=about("branch, tag or commit on the hub"))
    trust_remote_code: bool = field(
        default=False, metadata=about("whether code of the model's own may run; not from a file, by --set alone")
    )


@dataclass(kw_only=True)
class TeacherSpec(Part):
    """A teacher: a model, or vectors that exist already."""

    short_for: ClassVar[str | None] = "model"

    name: str | None = field(
        default=None, metadata=about("names it in the store; the last part of the model's name by default", file_name)
    )
    model: str | None = field(
        default=None, metadata=about("name or folder of a sentence-transformers model", not_empty)
    )
    vectors: str | None = field(
        default=None, metadata=about("vectors on disk: npy, parquet, or a datasets folder", not_empty)
    )
    teacher: Any = field(default=None, metadata=about("a Teacher or a callable, in Python", python_only))
    column: str | None = field(
        default=None, metadata=about("column of the vectors; the only one of vectors by default", not_empty)
    )
    text_column: str | None = field(
        default=None,
        metadata=about("column of the texts that the vectors belong to; the only one of texts by default", not_empty),
    )
    texts: Texts | None = field(
        default=None, metadata=about("the texts that the vectors belong to, in their order, where no column has them")
    )
    weight: float = field(
        default=1.0, metadata=about("its share in the concatenation of the teachers' vectors", above(0))
    )
    prompts: str | dict[str, str] = field(
        default_factory=dict,
        metadata=about("prompt of every text, or of each role (query, document); the model's own for other roles"),
    )
    revision: str | None = field(default=None, metadata=about("branch, tag or commit on the hub"))
    dtype: Literal["float32", "float16", "bfloat16"] | None = field(
        default=None, metadata=about("precision that the teacher computes in; its own by default")
    )
    device: str | None = field(
        default=None, metadata=about("device of the teacher (cpu, cuda:1); the best one there is")
    )
    batch_size: int | None = field(
        default=None,
        metadata=about(
            "texts of full length embedded at a time; more of shorter ones, as many tokens together; 32 by default, on the "
            "CPU 2048 tokens",
            at_least(1),
        ),
    )
    batch_tokens: int | None = field(
        default=None, metadata=about("tokens embedded at a time, instead of what batch_size comes to", at_least(1))
    )
    max_seq_length: int | None = field(default=None, metadata=about("tokens per text; the model's own", at_least(2)))
    truncate_dim: int | None = field(default=None, metadata=about("keep the first so many dimensions", at_least(1)))
    trust_remote_code: bool = field(
        default=False, metadata=about("whether code of the model's own may run; not from a file, by --set alone")
    )

    def fill(self) -> None:
        if self.name is None:
            named = Path(self.model).name if self.model else Path(self.vectors).stem if self.vectors else None
            self.name = folder_name(named or str(getattr(self.teacher, "name", None) or "teacher"))


@dataclass(kw_only=True)
class Projection(Part):
    """The linear map from the pooled vector to the embeddings."""

    dims: list[int] = field(metadata=about("dimensions of the embeddings; the largest is the model's", numbers_list(1)))
    start: Literal["ridge", "random", "identity"] | None = field(
        default=None,
        metadata=about(
            "ridge: closed-form regression of the teacher's vectors; random; identity: the pooled vector itself, on the axes "
            "of the rotation. By default identity for a student made of its one teacher's layers, the last among them, and "
            "ridge for any other"
        ),
    )
    rotation: Literal["none", "random", "principal", "learned"] = field(
        default="learned",
        metadata=about(
            "which axes of the teacher's space the dimensions follow; learned: those of which every prefix keeps each "
            "text's neighbours"
        ),
    )
    heads: Literal["nested", "independent", "none"] | None = field(
        default=None,
        metadata=about(
            "nested: every dimension is a prefix of one map; independent: a map for each, as in the paper; none: no map, a "
            "static embedding takes the ridge start into its table, another student's own first coordinates are trained. By "
            "default nested, and none for a static embedding that ridge starts and every stage trains whole"
        ),
    )
    teacher_head: bool = field(
        default=False,
        metadata=about("a further head of the teachers' full width, in training alone (the paper's FC1)"),
    )


@dataclass(kw_only=True)
class Objective(Part):
    """A loss of sentence-transformers, beside the stage's distillation losses or, with ``losses: {}``, alone."""

    loss: str = field(metadata=about("class name in sentence_transformers.losses", not_empty))
    texts: list[Texts] = field(
        default_factory=list,
        metadata=about(
            "its texts, with the columns that the loss expects, each batch from one source; the recipe's own by default"
        ),
    )
    options: dict[str, Any] = field(default_factory=dict, metadata=about("further arguments of the loss"))


@dataclass(kw_only=True)
class Stage(Part):
    """One run of the trainer: what is trained, on which losses, for how long."""

    also_called = {**{argument: name for name, argument in SHORTHAND_ARGUMENTS.items()}, "batch_size": "batch"}

    name: str | None = field(default=None, metadata=about("names its folder; by default what is trained", file_name))
    train: str | dict[str, int] | list[str] = field(
        metadata=about(
            "projection; {last_layers: n}: the projection and the last n encoder layers; all; vision: the vision encoder "
            "and its projection; or a list of regular expressions, each found somewhere in a parameter's name",
            _train_rule,
        )
    )
    lora: dict[str, Any] | None = field(
        default=None,
        metadata=about(
            "train low-rank adapters of the encoder layers that train names instead of their weights, and merge them when the "
            "stage ends: r, lora_alpha, lora_dropout, target_modules, exclude_modules, layers_to_transform, rank_pattern, "
            "alpha_pattern, use_rslora, use_dora and init_lora_weights (true or gaussian) of peft.LoraConfig"
        ),
    )
    losses: dict[str, float] | None = field(
        default=None,
        metadata=about(
            "weight of each term: cosine, similarity, triplet; what is left out is not computed. By default {cosine: 10}, with "
            "bits {cosine: 10, similarity: 20}, and with a teacher_head and for vision the paper's {cosine: 10, similarity: "
            "200, triplet: 20}. {}: the stage learns from 'also' alone, without teachers",
            _losses_rule,
        ),
    )
    margin: float = field(default=0.015, metadata=about("margin of the triplet term", at_least(0)))
    dims: list[int] | Literal["full"] | None = field(
        default=None,
        metadata=about(
            "dimensions that similarity and triplet are averaged over; all of the projection's by default; full: the "
            "teacher head alone, or the widest one where there is none",
            numbers_list(1),
        ),
    )
    cosine_dims: list[int] | Literal["full"] | None = field(
        default=None,
        metadata=about(
            "dimensions of the cosine term; by default those of 'dims', full with a teacher_head, every head where vision is "
            "trained",
            numbers_list(1),
        ),
    )
    cosine_weights: Literal["equal", "proportional"] | None = field(
        default=None,
        metadata=about(
            "weights of these dimensions in the cosine term's average; proportional: to the dimension, which is the default "
            "but where vision is trained"
        ),
    )
    bits: bool = field(
        default=False,
        metadata=about(
            "average similarity and triplet over the signs of the vectors as well, for embeddings that are to be stored as bits"
        ),
    )
    learning_rate: float | None = field(default=None, metadata=about("peak learning rate; 1e-4 by default", above(0)))
    dropout: float | None = field(
        default=0.0,
        metadata=about(
            "share of its activations that the student drops while it learns; null: as its configuration says. A teacher "
            "tells the student everything about a text, so that dropout takes more than it gives",
            below_one,
        ),
    )
    steps: int | None = field(default=None, metadata=about("optimiser steps; or give epochs", at_least(1)))
    epochs: float | None = field(default=None, metadata=about("passes over the data; or give steps", above(0)))
    batch: int | None = field(default=None, metadata=about("rows a batch on each device; 128 by default", at_least(1)))
    gather_across_devices: bool = field(
        default=True,
        metadata=about("with several processes: take the losses over the joint batch of all, as one process would"),
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata=about(
            "texts in memory at a time, by gradient caching: for batches larger than memory, at the price of a second "
            "forward pass; of 'also', for the losses called Cached",
            at_least(1),
        ),
    )
    length_parts: int | None = field(
        default=None,
        metadata=about(
            "into how many parts of like length the encoder takes a batch, each padded to its own longest text; by default "
            "as many as are worth it, with several processes 1",
            at_least(1),
        ),
    )
    group_by_length: bool = field(
        default=False, metadata=about("batches of texts of like length, which need less padding")
    )
    window_shards: int | None = field(
        default=None,
        metadata=about(
            "shuffle within windows of so many files of the store: for teachers' vectors that do not fit into memory",
            at_least(1),
        ),
    )
    also: list[Objective] = field(default_factory=list, metadata=about("losses of sentence-transformers"))
    arguments: dict[str, Any] = field(
        default_factory=dict, metadata=about("any field of SentenceTransformerTrainingArguments")
    )

    def fill(self) -> None:
        if self.name is not None:
            return
        if isinstance(self.train, dict):
            self.name = f"last-{self.train.get('last_layers')}-layers"
        else:
            self.name = self.train if isinstance(self.train, str) else "parameters"

    @property
    def trains_vision(self) -> bool:
        return self.train == "vision"

    @property
    def distils(self) -> bool:
        """Whether it learns from teachers, and not from ``also`` alone."""
        return self.losses is None or any(weight > 0 for weight in self.losses.values())

    def weights(self, projection: Projection | None) -> dict[str, float]:
        """The terms that are computed, those of weight 0 left out; their default follows from the recipe's projection."""
        losses = self.losses
        if losses is None:
            # Relations can be learned in any coordinates. Where the student has the teachers' they only disturb
            # (docs/ablations.md); with a head of the teachers' width the cosine term teaches that head alone.
            if self.trains_vision or (projection is not None and projection.teacher_head):
                losses = PAPER_LOSSES
            else:
                losses = _LOSSES_WITH_BITS if self.bits else _LOSSES
        return {name: weight for name, weight in losses.items() if weight > 0}

    def heads_of_cosine(self, projection: Projection | None) -> list[int] | Literal["full"]:
        """Dimensions of the cosine term; 'full': the teacher head, or the widest where there is none."""
        if self.cosine_dims is not None:
            return self.cosine_dims
        if projection is None or (projection.teacher_head and not self.trains_vision):
            return "full"
        return projection.dims if self.trains_vision else self.dims or projection.dims

    def weights_of_cosine(self) -> Literal["equal", "proportional"]:
        """How the dimensions of the cosine term are averaged."""
        return self.cosine_weights or ("equal" if self.trains_vision else "proportional")

    def effective_batch(self, processes: int = 1) -> int:
        """Rows that an optimiser step sees: rows a device, times accumulation, times processes."""
        arguments = self.training_arguments()
        rows: int = arguments["per_device_train_batch_size"] * arguments.get("gradient_accumulation_steps", 1)
        return rows * processes

    def training_arguments(self) -> dict[str, Any]:
        """Keyword arguments for SentenceTransformerTrainingArguments: ``arguments`` and what the shorthand stands for.

        Raises:
            ValueError: where a shorthand field and its argument are both given.
        """
        given = {
            argument: getattr(self, short)
            for short, argument in SHORTHAND_ARGUMENTS.items()
            if getattr(self, short) is not None
        }
        for short, argument in SHORTHAND_ARGUMENTS.items():
            if argument in given and argument in self.arguments:
                raise ValueError(
                    f"Stage '{self.name}' gives both '{short}' and the argument '{argument}', which mean the same. Remove one."
                )
        return {**STAGE_DEFAULTS, **self.arguments, **given}


@dataclass(kw_only=True)
class Evaluation(Part):
    """What the finished model is measured on."""

    texts: Texts | None = field(
        default=None, metadata=about("held-out texts: how closely the student follows the teachers")
    )
    similarity: Texts | None = field(
        default=None,
        metadata=about("pairs of texts with a score, for a rank correlation (two columns of texts, one of numbers)"),
    )
    retrieval: Texts | None = field(
        default=None, metadata=about("queries and the document of each (two columns of texts)")
    )
    images: ImageSource | None = field(
        default=None, metadata=about("held-out pictures and captions: how often a caption finds its picture")
    )
    tasks: list[str | dict[str, Any]] = field(
        default_factory=list,
        metadata=about(
            "tasks as st-distill eval takes them, words or mappings, on which the student alone is measured; docs/evaluation.md"
        ),
    )
    teachers: bool = field(
        default=True, metadata=about("whether the teachers' models answer too, and are timed, beside the student")
    )


@dataclass(kw_only=True)
class Recipe(Part):
    """The whole: from which student, teachers and data, by which stages, to which model."""

    output: str = field(metadata=about("folder of the finished model", not_empty))
    work: str | None = field(
        default=None,
        metadata=about("folder of the teachers' vectors, checkpoints and state; <output>-run by default", not_empty),
    )
    seed: int = field(default=42, metadata=about("of everything random", is_seed))
    student: Student = field(metadata=about("the model that is trained"))
    teachers: list[TeacherSpec] = field(default_factory=list, metadata=about("the models it learns from"))
    texts: list[Texts] = field(
        default_factory=list, metadata=about("the texts it learns on, from one or several sources")
    )
    store_dtype: Literal["float32", "float16", "bfloat16", "int8"] = field(
        default="float16",
        metadata=about("precision of the teachers' vectors on disk; docs/store.md says what each loses"),
    )
    images: Images | None = field(default=None, metadata=about("pictures, for the stages that train vision"))
    projection: Projection | None = field(
        default=None,
        metadata=about("the embeddings it is to give; by default those of its pooling, where no stage distils"),
    )
    stages: list[Stage] = field(metadata=about("what is trained, one after another", not_empty))
    evaluation: Evaluation | None = field(default=None, metadata=about("what the finished model is measured on"))
    diagnosis: bool = field(
        default=True,
        metadata=about("look for what goes wrong before, in and after training, and say it; docs/diagnosis.md"),
    )
    export_teacher: bool = field(
        default=False,
        metadata=about(
            "also write the teacher in the student's space, to <output>-teacher: documents embedded by it are found by the "
            "student's queries, at every dimension"
        ),
    )

    def sources(self, objective: Objective) -> list[Texts]:
        """The texts of a loss of ``also``: its own, or the recipe's."""
        return objective.texts or self.texts

    @property
    def teacher_output(self) -> Path:
        """Where ``export_teacher`` writes the teacher: ``<output>-teacher``."""
        return Path(f"{self.output.rstrip('/')}-teacher")

    def learned_texts(self) -> Iterator[tuple[tuple[str | int, ...], Texts]]:
        """Every source of texts that the student learns from, with its place in the recipe."""
        for index, texts in enumerate(self.texts):
            yield ("texts", index), texts
        for number, stage in enumerate(self.stages):
            for place, objective in enumerate(stage.also):
                for index, texts in enumerate(objective.texts):
                    yield ("stages", number, "also", place, "texts", index), texts

    @property
    def work_folder(self) -> Path:
        """``work``, or ``<output>-run``."""
        return Path(self.work if self.work is not None else f"{self.output.rstrip('/')}-run")
