"""Every mistake of a recipe at once, before any work starts. No weights are loaded; configurations are read."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import torch
from sentence_transformers.sentence_transformer import losses as standard_losses
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.utils import is_flash_attn_2_available, is_torch_bf16_gpu_available

from st_distill.errors import Problem, RecipeError, format_problems, one_line
from st_distill.exporting import may_be_replaced
from st_distill.files import read_array_header
from st_distill.recipe import quantized, schema
from st_distill.recipe.arguments import HARDWARE, RESERVED, complaints, hints_of, range_complaint
from st_distill.recipe.data import LABEL_COLUMNS, Kind, columns_of, existing_path
from st_distill.recipe.load import Document, in_order, read_document
from st_distill.recipe.models import ModelFacts, UnknownModel, encoder_without_weights, read_config, read_model
from st_distill.recipe.schema import (
    SHORTHAND_ARGUMENTS,
    FieldPath,
    Found,
    Images,
    ImageSource,
    Objective,
    Recipe,
    Stage,
    TeacherSpec,
    Texts,
    as_mapping,
    convert,
    suggest,
)
from st_distill.teacher import Teacher

__all__ = ["check", "format_problems"]


def check(recipe: Recipe | str | os.PathLike[str], overrides: Sequence[str] = ()) -> list[Problem]:
    """What is wrong with a recipe, by line; an empty list, or one of warnings alone, can run.

    Args:
        recipe: a recipe made in Python, a YAML file, or the name of a preset.
        overrides: assignments ``a.b=value``, as `load_recipe` takes them, for a file or preset.

    It finds unknown names, with the nearest valid one, wrong types, values out of range, fields that contradict each
    other, files and columns that are not there, model folders without a model, and dimensions and layers that a model's
    configuration does not have. A hub's model is looked at where its configuration is in the local cache or the hub can
    be reached; otherwise, and for settings that this machine has not the hardware for, there is a warning.
    """
    if isinstance(recipe, Recipe):
        document = Document(as_mapping(recipe))
    else:
        try:
            document = read_document(os.fspath(recipe), overrides)
        except RecipeError as error:
            return error.problems
    built, problems = document.build()
    rules = _Rules(document, built, problems)
    rules.run()
    return in_order(problems)


class _Rules:
    """The rules that need more than one field. They leave alone what has been found wrong already."""

    def __init__(self, document: Document, recipe: Recipe, problems: list[Problem]) -> None:
        self.document = document
        self.recipe = recipe
        self.problems = problems
        self.wrong = document.wrong
        self.models: dict[tuple[str, str | None], ModelFacts | None] = {}

    def error(self, path: FieldPath, message: str) -> None:
        self.problems.append(self.document.problem(path, message))

    def warn(self, path: FieldPath, message: str) -> None:
        self.problems.append(self.document.problem(path, message, warning=True))

    def sound(self, *paths: FieldPath) -> bool:
        """Whether nothing has been found wrong at, or inside, these fields."""
        return not any(wrong[: len(path)] == path for path in paths for wrong in self.wrong)

    def run(self) -> None:
        self.folders()
        self.student()
        self.teachers()
        for index, texts in enumerate(self.recipe.texts or []):
            self.texts(("texts", index), texts)
        self.projection()
        self.stages()
        self.images()
        self.evaluation()

    # --- folders -------------------------------------------------------------------------------------------------------

    def folders(self) -> None:
        if not self.recipe.output or not self.sound(("output",), ("work",)):
            return
        where: FieldPath = ("work",) if self.recipe.work is not None else ("output",)
        try:
            output, work = _absolute(self.recipe.output), _absolute(self.recipe.work_folder)
            files = [name for name, path in (("output", output), ("work", work)) if path.exists() and not path.is_dir()]
        except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
            self.error(where, f"cannot be a folder: {one_line(error)}")
            return
        if output == work:
            self.error(where, "output and work must be two folders; leave work out for <output>-run")
        elif output in work.parents or work in output.parents:
            inner, outer = ("work", "output") if output in work.parents else ("output", "work")
            self.error(
                where, f"the {inner} folder must not be inside the {outer} folder; leave work out for <output>-run"
            )
        for name in files:
            self.error((name,), "is a file; name a folder")
        if files:
            return
        projection = self.recipe.projection
        heads = projection.dims if projection is not None and projection.heads == "independent" else []
        for target in (output, *(output.with_name(f"{output.name}-{dim}") for dim in heads)):
            if not may_be_replaced(target):
                self.error(("output",), f"'{target}' holds other files than an export's; name a new folder")
        if work.is_dir() and any(work.iterdir()) and not any((work / name).exists() for name in _OF_A_RUN):
            self.error(where, f"'{self.recipe.work_folder}' holds other files than a run's; name a new folder")
        students = [] if self.recipe.student is None else [self.recipe.student.model]
        for model in (*students, *(teacher.model for teacher in self.recipe.teachers)):
            if model is not None and _absolute(model) in (output, work):
                self.error(("output",), f"'{model}' is a model that the recipe reads; name another folder")

    # --- models --------------------------------------------------------------------------------------------------------

    def model(self, path: FieldPath, name: str | None, revision: str | None, trusted: bool) -> ModelFacts | None:
        """What a model's configuration says, or None where it cannot be known; what is wrong is reported once."""
        if not name or not self.sound((*path, "model"), (*path, "revision")):
            return None
        key = (name, revision)
        if key not in self.models:
            self.models[key] = None
            try:
                self.models[key] = read_model(name, revision)
            except UnknownModel as unknown:
                self.warn((*path, "model"), str(unknown))
            except ValueError as error:
                self.error((*path, "model"), str(error).rstrip("."))
        model = self.models[key]
        if model is not None and model.code is not None and not trusted:
            self.error(
                (*path, "model"),
                f"'{name}' needs code of its own ({model.code}); set trust_remote_code: true if you trust it",
            )
        return model

    def student(self) -> None:
        student, path = self.recipe.student, ("student",)
        if student is None:
            return
        if student.load_in_4bit and not quantized.INSTALLED:
            self.error((*path, "load_in_4bit"), str(quantized.missing()))
        model = self.model(path, student.model, student.revision, student.trust_remote_code)
        if model is None:
            return
        if student.pooling is not None and model.is_standard:
            self.error(
                (*path, "pooling"),
                f"'{student.model}' is a sentence-transformers model with a pooling of its own; leave pooling out",
            )
        if student.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
            self.error(
                (*path, "attn_implementation"),
                "flash_attention_2 needs a GPU and a package that is not there: pip install flash-attn --no-build-isolation",
            )
        if model.depth is not None and self.sound((*path, "layers")):
            for index, layer in enumerate(student.layers or []):
                if layer >= model.depth:
                    self.error(
                        (*path, "layers", index),
                        f"the student has {model.depth} layers, so a layer is 0 to {model.depth - 1}, got {layer}",
                    )
        longest = model.positions
        if longest is not None and student.max_seq_length is not None and student.max_seq_length > longest:
            self.error(
                (*path, "max_seq_length"),
                f"the student takes at most {longest} tokens, got {student.max_seq_length}",
            )

    @property
    def student_model(self) -> ModelFacts | None:
        student = self.recipe.student
        return None if student is None else self.models.get((student.model, student.revision))

    @property
    def student_depth(self) -> int | None:
        if self.recipe.student is not None and self.recipe.student.layers:
            return len(self.recipe.student.layers)
        return None if self.student_model is None else self.student_model.depth

    # --- teachers ------------------------------------------------------------------------------------------------------

    def teachers(self) -> None:
        self.teacher_widths = [
            self.teacher(("teachers", index), teacher) for index, teacher in enumerate(self.recipe.teachers or [])
        ]
        self.unique("teachers", [teacher.name for teacher in self.recipe.teachers or []])

    @property
    def teacher_width(self) -> int | None:
        """Width of the teachers' vectors together, where all are known."""
        if not self.teacher_widths or not self.sound(("teachers",)):
            return None
        known = [width for width in self.teacher_widths if width is not None]
        return sum(known) if len(known) == len(self.teacher_widths) else None

    def unique(self, field: str, names: list[str | None]) -> None:
        for index, name in enumerate(names):
            twin = names.index(name)
            if twin < index and self.sound((field, index, "train"), (field, twin, "train")):
                self.error((field, index), f"the name '{name}' is there twice; give each a 'name' of its own")

    def teacher(self, path: FieldPath, teacher: TeacherSpec) -> int | None:
        """Checks a teacher and returns the width of its vectors, if that can be known."""
        if not self.one_of(path, teacher, ("model", "vectors", "teacher")):
            return None
        if teacher.teacher is not None:
            self.python_teacher(path, teacher)
            return _own_width(teacher.teacher)
        if teacher.vectors is not None:
            self.unused(path, teacher, "vectors that exist already", _ONLY_MODELS)
            width = self.vectors(path, teacher)
        else:
            self.unused(path, teacher, "a model", ("column", "text_column", "texts"))
            model = self.model(path, teacher.model, teacher.revision, teacher.trust_remote_code)
            width = None if model is None else model.width
        if width is not None and teacher.truncate_dim is not None:
            if teacher.truncate_dim > width:
                self.error((*path, "truncate_dim"), f"the teacher has {width} dimensions, got {teacher.truncate_dim}")
            return min(width, teacher.truncate_dim)
        return width

    def python_teacher(self, path: FieldPath, teacher: TeacherSpec) -> None:
        given = teacher.teacher
        if isinstance(given, Teacher):
            self.unused(path, teacher, "a Teacher, which has its own", (*_ONLY_MODELS, "revision", "truncate_dim"))
            if teacher.name != given.name:
                self.error((*path, "name"), f"the Teacher is called '{given.name}', got '{teacher.name}'; remove it")
        elif not callable(given):
            self.error((*path, "teacher"), f"must be a Teacher or a function, got a {type(given).__name__}")
        elif isinstance(given, torch.nn.Module):
            return
        elif teacher.revision is None and not isinstance(getattr(given, "revision", None), str):
            self.error(
                path,
                "a function needs a 'revision', which tells its vectors from those of another version; any text will do",
            )

    def vectors(self, path: FieldPath, teacher: TeacherSpec) -> int | None:
        if teacher.texts is not None:
            self.texts((*path, "texts"), teacher.texts)
        try:
            file = existing_path(str(teacher.vectors))
            if file.suffix == ".npy":
                if teacher.texts is None and self.sound((*path, "texts")):
                    self.error(path, "vectors in an npy file need 'texts', in the same order")
                shape = read_array_header(file).shape
                if len(shape) != 2:
                    raise ValueError(f"{file} must hold an array (texts, dimension). Got the shape {shape} instead.")
                return shape[1]
            if file.suffix == ".parquet":
                return self.parquet_vectors(path, teacher, file)
            if not file.is_dir():
                raise ValueError(f"{file} must be an npy or parquet file, or a folder that save_to_disk wrote.")
        except ValueError as error:
            self.error((*path, "vectors"), str(error).rstrip("."))
        return None

    def parquet_vectors(self, path: FieldPath, teacher: TeacherSpec, file: Path) -> int | None:
        try:
            parquet = pq.ParquetFile(file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        with parquet:
            names = parquet.schema_arrow.names
            missing = False
            for field in ("column", "text_column"):
                name = getattr(teacher, field)
                if name is not None and name not in names:
                    self.error((*path, field), f"{file} has no column '{name}'{suggest(name, names, always=True)}")
                    missing = True
            if missing or teacher.column is None:
                return None
            for batch in parquet.iter_batches(batch_size=1, columns=[teacher.column]):
                first = batch.column(0)[0].as_py()
                return len(first) if isinstance(first, list) else None
        return None

    # --- sources -------------------------------------------------------------------------------------------------------

    def one_of(self, path: FieldPath, part: Any, names: tuple[str, ...]) -> bool:
        """Whether exactly one of these fields is given."""
        if not self.sound(*((*path, name) for name in names)):
            return False
        given = [name for name in names if getattr(part, name) is not None]
        if len(given) > 1:
            self.error((*path, given[1]), f"only one of {' and '.join(given)} can be given")
        elif not given:
            self.error(path, f"one of {', '.join(names[:-1])} or {names[-1]} must be given")
        return len(given) == 1

    def unused(self, path: FieldPath, part: Any, what: str, names: Iterable[str]) -> None:
        defaults = {option.name: schema.default_of(option) for option in fields(part)}
        for name in names:
            if getattr(part, name) != defaults[name]:
                self.error((*path, name), f"means nothing for {what}; remove it")

    def source(self, path: FieldPath, source: Texts | ImageSource) -> dict[str, Kind] | None:
        """Columns of a source, or None where they cannot be known; what is wrong with it is reported."""
        if not self.one_of(path, source, ("path", "dataset", "data")):
            return None
        if source.dataset is None:
            self.unused(path, source, "what is not a dataset of the hub", ("config", "revision"))
        if source.data is not None:
            self.unused(path, source, "data given as it is", ("split",))
        try:
            return columns_of(source)
        except ValueError as error:
            self.error((*path, "path"), str(error).rstrip("."))
            return None

    def texts(self, path: FieldPath, texts: Texts, *, numbers: bool = False) -> dict[str, Kind] | None:
        """Checks a source of texts and returns its chosen columns with what they hold, where they can be known."""
        if not isinstance(texts, Texts):
            return None
        kinds = self.source(path, texts)
        if kinds is None or not self.sound((*path, "columns")):
            return None
        for index, name in enumerate(texts.columns or []):
            if name not in kinds:
                self.error((*path, "columns", index), f"there is no such column{suggest(name, kinds, always=True)}")
            elif kinds[name] != "text" and not (numbers and kinds[name] == "number"):
                self.error((*path, "columns", index), "this column holds no texts; name another one")
        names = texts.columns if texts.columns is not None else list(kinds)
        chosen = {name: kinds[name] for name in names if name in kinds}
        for field in ("roles", "prompts"):
            for name in getattr(texts, field) or {}:
                if name not in names:
                    known = [name for name, kind in chosen.items() if kind == "text"]
                    self.error((*path, field, name), f"there is no such column{suggest(name, known, always=True)}")
        if "text" not in chosen.values() and len(chosen) == len(names):
            self.error(path, f"there is no column of texts, only {', '.join(kinds) or 'none at all'}")
        return chosen

    # --- projection ----------------------------------------------------------------------------------------------------

    def projection(self) -> None:
        projection, path = self.recipe.projection, ("projection",)
        if projection is None or not projection.dims or not self.sound(path):
            return
        widest, where = max(projection.dims), (*path, "dims", projection.dims.index(max(projection.dims)))
        student, teacher = self.student_model, self.teacher_width
        distils = [stage for stage in self.recipe.stages or [] if not stage.trains_vision and stage.weights]
        if projection.start == "identity":
            widths = [widest] if not projection.teacher_head else [widest, teacher or 0]
            if student is not None and student.pooled is not None and max(widths) > student.pooled:
                self.error(
                    where if max(widths) == widest else (*path, "teacher_head"),
                    f"an identity start needs heads no wider than the student's {student.pooled} dimensions, got "
                    f"{max(widths)}; leave that one out, or set start: ridge",
                )
            if projection.rotation != "none" and any("cosine" in stage.weights for stage in distils):
                self.warn(
                    (*path, "rotation"),
                    "an identity start keeps the student's own axes, which a rotated teacher does not have; set rotation: none",
                )
        if not self.recipe.teachers:
            for field, words in (("start", ("ridge",)), ("rotation", ("principal",))):
                if getattr(projection, field) in words and self.sound(("teachers",)):
                    self.error((*path, field), f"'{getattr(projection, field)}' needs a teacher to learn from")
        if teacher is None or widest <= teacher:
            return
        too_wide = f"{widest} is above the teachers' {teacher} dimensions"
        if projection.start == "ridge":
            self.error(where, f"{too_wide}, which a ridge start cannot give; leave it out, or set start: random")
        elif projection.rotation != "none":
            self.error(where, f"{too_wide}, which a rotation needs; leave it out, or set rotation: none")
        elif any(self.compares(stage, widest) for stage in distils):
            self.error(
                where,
                f"{too_wide}, which the cosine term needs; leave it out, set teacher_head: true, or leave the term out",
            )

    def compares(self, stage: Stage, dim: int) -> bool:
        """Whether the cosine term of a stage compares this, the widest, head with the teachers' coordinates."""
        if "cosine" not in stage.weights:
            return False
        if isinstance(stage.cosine_dims, list):
            return dim in stage.cosine_dims
        return not self.recipe.projection.teacher_head

    # --- stages --------------------------------------------------------------------------------------------------------

    def stages(self) -> None:
        stages = self.recipe.stages or []
        self.unique("stages", [stage.name for stage in stages])
        seen_vision = False
        for index, stage in enumerate(stages):
            path: FieldPath = ("stages", index)
            if seen_vision and not stage.trains_vision and self.sound((*path, "train")):
                self.error((*path, "train"), "stages that train texts must stand before those that train vision")
            seen_vision = seen_vision or stage.trains_vision
            self.stage(path, stage)
        if any(stage.weights and not stage.trains_vision for stage in stages):
            for field, what in (("teachers", "a teacher to learn from"), ("texts", "texts to learn on")):
                if not getattr(self.recipe, field) and self.sound((field,)):
                    self.error((field,), f"a stage with distillation losses needs {what}")

    def stage(self, path: FieldPath, stage: Stage) -> None:
        self.train(path, stage)
        self.duration(path, stage)
        self.stage_dims(path, stage)
        self.lora(path, stage)
        for index, objective in enumerate(stage.also or []):
            self.objective((*path, "also", index), objective)
        if self.sound((*path, "losses"), (*path, "also")) and not stage.weights and not stage.also:
            self.error(
                (*path, "losses"), "the stage has nothing to learn from: give a loss a weight above 0, or 'also'"
            )
        self.batch(path, stage)
        self.arguments(path, stage)

    def train(self, path: FieldPath, stage: Stage) -> None:
        if not self.sound((*path, "train")):
            return
        where = (*path, "train")
        if isinstance(stage.train, dict):
            depth, count = self.student_depth, stage.train.get("last_layers")
            if depth is not None and count is not None and count > depth and self.sound(("student", "layers")):
                self.error((*where, "last_layers"), f"the student has {depth} layers, got {count}")
        if stage.trains_vision:
            if self.recipe.images is None and self.sound(("images",)):
                self.error(where, "training vision needs 'images'")
            if stage.also:
                self.error(
                    (*path, "also"), "the text encoder is frozen while vision is trained; give this to another stage"
                )
        elif self.recipe.images is not None and isinstance(stage.train, list) and not self.recipe.texts:
            self.error(where, "only a stage with train: vision learns from images")
        elif isinstance(stage.train, list) and (encoder := self.encoder(stage)) is not None:
            names = [f"{prefix}{name}" for name, _ in encoder.named_parameters() for prefix in _PREFIXES]
            names += [f"{place}.linears.{head}.{kind}" for place, head, kind in product(_PLACES, _HEADS, _KINDS)]
            for index, pattern in enumerate(stage.train):
                if not any(re.search(pattern, name) for name in names):
                    self.error((*where, index), f"'{pattern}' is found in no parameter's name, such as '{names[0]}'")

    def encoder(self, stage: Stage) -> torch.nn.Module | None:
        """The student's text encoder without weights, for a stage whose student has no vision encoder yet."""
        before = self.recipe.stages[: self.recipe.stages.index(stage)]
        if self.student_model is None or any(earlier.trains_vision for earlier in before):
            return None
        return encoder_without_weights(self.student_model)

    def duration(self, path: FieldPath, stage: Stage) -> None:
        shorts = [(*path, short) for short in SHORTHAND_ARGUMENTS]
        if not self.sound(*shorts, (*path, "arguments")):
            return
        for short, argument in SHORTHAND_ARGUMENTS.items():
            if getattr(stage, short) is not None and argument in stage.arguments:
                self.error((*path, "arguments", argument), f"means the same as '{short}'; remove one of them")
        given = [
            short
            for short in ("steps", "epochs")
            if getattr(stage, short) is not None or SHORTHAND_ARGUMENTS[short] in stage.arguments
        ]
        if len(given) == 2:
            where = (*path, "epochs") if stage.epochs is not None else (*path, "arguments", "num_train_epochs")
            self.error(where, "steps and epochs are both given; remove one of them")
        elif not given:
            self.error(path, "says not how long to train; give steps or epochs")

    def stage_dims(self, path: FieldPath, stage: Stage) -> None:
        if self.recipe.projection is None or not self.recipe.projection.dims or not self.sound(("projection", "dims")):
            return
        for field in ("dims", "cosine_dims"):
            value = getattr(stage, field)
            if not isinstance(value, list) or not self.sound((*path, field)):
                continue
            for index, dim in enumerate(value):
                if dim not in self.recipe.projection.dims:
                    shown = ", ".join(map(str, self.recipe.projection.dims))
                    self.error((*path, field, index), f"{dim} is not among the projection's dims ({shown})")

    def batch(self, path: FieldPath, stage: Stage) -> None:
        if not self.sound((*path, "batch"), (*path, "arguments"), (*path, "losses")):
            return
        where = (*path, "batch") if stage.batch is not None else (*path, "arguments", "per_device_train_batch_size")
        batch = stage.batch if stage.batch is not None else stage.arguments.get("per_device_train_batch_size")
        relations = [name for name in ("similarity", "triplet") if name in stage.weights]
        if batch == 1 and relations:
            self.error(
                where, f"{' and '.join(relations)} compare the rows of a batch, so it must have at least 2 of them"
            )
        elif batch == 2 and "triplet" in relations:
            self.warn(where, "the triplet term is always 0 in a batch of 2 rows; take at least 3")
        if stage.window_shards is not None:
            for other in ("group_by_length", "also"):
                if getattr(stage, other):
                    self.error(
                        (*path, "window_shards"), f"orders the batches by the store, which leaves no room for '{other}'"
                    )
        if batch == 1 and any("Negatives" in str(objective.loss) for objective in stage.also or []):
            self.error(where, "a loss with in-batch negatives needs a batch of at least 2 rows")

    def lora(self, path: FieldPath, stage: Stage) -> None:
        where = (*path, "lora")
        student = self.recipe.student
        in_4bit = student is not None and student.load_in_4bit
        trains_encoder = stage.train not in ("projection", "vision")
        if in_4bit and trains_encoder and stage.lora is None and self.sound((*path, "train"), where):
            self.error(
                where, "weights in 4 bits (student.load_in_4bit) cannot be trained themselves; give lora: {r: 16}"
            )
        if stage.lora is None or not self.sound(where):
            return
        if stage.train in ("projection", "vision"):
            self.error(
                where, f"adapters belong to the text encoder's layers, which train: {stage.train} does not train"
            )
        hints = hints_of(peft.LoraConfig)
        options = self.options(where, stage.lora, hints, {})
        for name in ("r", "lora_alpha"):
            if name in options and options[name] < 1:
                self.error((*where, name), f"must be at least 1, got {options.pop(name)}")
        if "lora_dropout" in options and not 0 <= options["lora_dropout"] < 1:
            self.error((*where, "lora_dropout"), f"must be from 0 to below 1, got {options.pop('lora_dropout'):g}")
        targets, encoder = options.get("target_modules"), self.encoder(stage)
        if isinstance(targets, list) and encoder is not None:
            names = [name for name, _ in encoder.named_modules()]
            for index, target in enumerate(targets):
                if not any(f".{name}".endswith(f".{target}") for name in names):
                    ends = sorted({name.rpartition(".")[2] for name in names} - {""})
                    self.error(
                        (*where, "target_modules", index), f"the encoder has no '{target}'{suggest(str(target), ends)}"
                    )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peft.LoraConfig(**options)
        except (ValueError, TypeError, ImportError) as error:
            self.error(where, one_line(error))

    def options(
        self, path: FieldPath, given: Mapping[str, Any], hints: Mapping[str, Any], reserved: Mapping[str, str]
    ) -> dict[str, Any]:
        """The given options that are known and of the right type; the others are reported."""
        known = [name for name in hints if not name.startswith("_")]
        good = {}
        for name, value in given.items():
            where = (*path, name)
            if name in reserved:
                self.error(where, reserved[name])
            elif name not in known:
                self.error(where, f"unknown field{suggest(name, known)}")
            else:
                found: list[Found] = []
                converted = convert(value, hints[name], where, found)
                for inner, message in found:
                    self.error(inner, message)
                if not found:
                    good[name] = converted
        return good

    def objective(self, path: FieldPath, objective: Objective) -> None:
        columns = self.texts((*path, "texts"), objective.texts, numbers=True)
        for name, kind in (columns or {}).items():
            if kind == "number" and objective.texts.columns is not None and name not in LABEL_COLUMNS:
                self.error(
                    (*path, "texts", "columns"),
                    f"the trainer takes a column of numbers for labels only if it is called {' or '.join(LABEL_COLUMNS)}, "
                    f"got '{name}'; rename it",
                )
        if not objective.loss or not self.sound((*path, "loss")):
            return
        known = _standard_losses()
        loss = known.get(objective.loss)
        if loss is None:
            reason = suggest(objective.loss, known)
            if objective.loss in standard_losses.__all__:
                reason = ", or one that needs a model or another loss as its argument, which a recipe cannot give"
            self.error((*path, "loss"), f"'{objective.loss}' is no loss of sentence-transformers{reason}")
            return
        if not self.sound((*path, "options")):
            return
        parameters = list(inspect.signature(loss).parameters.values())[1:]
        names = [parameter.name for parameter in parameters]
        for name in objective.options:
            if name not in names:
                offer = suggest(name, names, always=True)
                self.error((*path, "options", name), f"{objective.loss} has no such argument{offer}")
        for parameter in parameters:
            if parameter.default is inspect.Parameter.empty and parameter.name not in objective.options:
                self.error(path, f"{objective.loss} needs options: {{{parameter.name}: ...}}")

    # --- training arguments --------------------------------------------------------------------------------------------

    def arguments(self, path: FieldPath, stage: Stage) -> None:
        where = (*path, "arguments")
        if not self.sound(where):
            return
        before = len(self.problems)
        good = self.options(where, stage.arguments, hints_of(SentenceTransformerTrainingArguments), RESERVED)
        for name in list(good):
            if (complaint := range_complaint(name, good[name])) is not None:
                self.error((*where, name), complaint)
                del good[name]
        if good.pop("warmup_ratio", None) is not None:
            self.warn((*where, "warmup_ratio"), "is deprecated; give warmup_steps the same number, a share below 1")
        self.hardware(where, good)
        self.evaluates(where, good)
        reported = {problem.path for problem in self.problems[before:] if problem.level == "error"}
        for short, argument in SHORTHAND_ARGUMENTS.items():
            if getattr(stage, short) is not None and argument not in stage.arguments and self.sound((*path, short)):
                good[argument] = getattr(stage, short)
        places = {argument: (*path, short) for short, argument in SHORTHAND_ARGUMENTS.items()}
        for blamed, message in complaints(good):
            inner = (*where, blamed) if blamed in stage.arguments else places.get(str(blamed), where)
            if schema.show_path(inner) not in reported:
                self.error(inner, message)

    def evaluates(self, where: FieldPath, good: dict[str, Any]) -> None:
        """Evaluation during training needs something to evaluate on."""
        asks = str(good.get("eval_strategy", "no")) != "no"
        held_out = self.recipe.evaluation is not None and self.recipe.evaluation.texts is not None
        if asks and not held_out and self.sound(("evaluation",)):
            self.error((*where, "eval_strategy"), "evaluating while training needs texts in the recipe's 'evaluation'")
        for name in ("load_best_model_at_end", "metric_for_best_model"):
            if good.get(name) and not asks and "eval_strategy" not in self.given(where):
                self.error((*where, name), "needs evaluation during training; set eval_strategy: steps or epoch")
                del good[name]

    def given(self, where: FieldPath) -> Iterable[str]:
        return self.recipe.stages[int(where[1])].arguments

    def hardware(self, where: FieldPath, good: dict[str, Any]) -> None:
        """What depends on the machine: a recipe may be checked on another one than it runs on."""
        for names in (("bf16", "fp16"), ("bf16_full_eval", "fp16_full_eval")):
            if all(good.get(name) for name in names):
                self.error((*where, names[1]), f"only one of {' and '.join(names)} can be true")
        on_cpu = bool(good.get("use_cpu"))
        if (good.get("bf16") or good.get("bf16_full_eval")) and not on_cpu and not is_torch_bf16_gpu_available():
            name = "bf16" if good.get("bf16") else "bf16_full_eval"
            self.warn(
                (*where, name), "no accelerator of this machine computes in bf16; add use_cpu: true to run it here"
            )
        if good.get("fp16") and (on_cpu or not torch.accelerator.is_available()):
            self.warn((*where, "fp16"), "needs an accelerator, which this machine does not have")
        if good.get("tf32") and not torch.cuda.is_available():
            self.warn((*where, "tf32"), "needs an Nvidia GPU, which this machine does not have")
        if good.get("deepspeed"):
            if isinstance(good["deepspeed"], str) and not Path(good["deepspeed"]).is_file():
                self.error((*where, "deepspeed"), f"there is no file '{good['deepspeed']}'")
            if importlib.util.find_spec("deepspeed") is None:
                self.warn((*where, "deepspeed"), "needs a package that is not installed. Run: pip install deepspeed")
        for name in HARDWARE:
            good.pop(name, None)

    # --- images and evaluation -----------------------------------------------------------------------------------------

    @property
    def trains_vision(self) -> bool:
        return any(stage.trains_vision for stage in self.recipe.stages or [])

    def images(self) -> None:
        images, path = self.recipe.images, ("images",)
        if images is None:
            return
        if not self.trains_vision and self.sound(("stages",)):
            # Without a source they are what is left of a preset whose vision stage has been taken out.
            if any((images.path, images.dataset, images.data is not None)):
                self.warn(path, "no stage trains vision, so these are not used")
            return
        self.pictures(path, images)
        if images.vision is None and self.sound((*path, "vision")):
            self.error(path, "'vision' is missing: name a vision encoder, or give its configuration")
        elif isinstance(images.vision, str):
            self.vision_model(path, images)
        elif images.vision is not None:
            self.vision_config((*path, "vision"), images)

    def pictures(self, path: FieldPath, source: ImageSource) -> None:
        kinds = self.source(path, source)
        if kinds is None:
            return
        image = "file_name" if source.image not in kinds and "file_name" in kinds else source.image
        for field, name, wanted, what in (
            ("image", image, ("image", "text"), "pictures or their paths"),
            ("caption", source.caption, ("text",), "texts"),
        ):
            if name not in kinds:
                self.error((*path, field), f"there is no column '{name}'{suggest(name, kinds, always=True)}")
            elif kinds[name] not in wanted:
                self.error((*path, field), f"the column '{name}' must hold {what}, and it does not")

    def vision_model(self, path: FieldPath, images: Images) -> None:
        try:
            config = read_config(str(images.vision), None)
        except UnknownModel as unknown:
            self.warn((*path, "vision"), str(unknown))
            return
        except ValueError as error:
            self.error((*path, "vision"), str(error).rstrip("."))
            return
        config = config.get("vision_config") or config
        kind = CONFIG_MAPPING[config["model_type"]] if config.get("model_type") in CONFIG_MAPPING else None
        if kind is not None:
            built = kind.from_dict(config)
            if not _sees(built):
                self.error(
                    (*path, "vision"), f"'{images.vision}' is no vision encoder; SigLIP, CLIP, ViT and DINOv2 are"
                )
            else:
                # The image processor may have another size than the configuration, so this is no more than likely.
                self.visual_tokens(path, images, built, self.warn)

    def vision_config(self, path: FieldPath, images: Images) -> None:
        given = dict(typing.cast("dict[str, Any]", images.vision))
        kind = given.pop("model_type", None)
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            if kind is None:
                self.error(path, "'model_type' is missing, such as siglip_vision_model")
            else:
                offer = suggest(str(kind), CONFIG_MAPPING)
                self.error((*path, "model_type"), f"transformers knows no model type '{kind}'{offer}")
            return
        config_class = CONFIG_MAPPING[kind]
        known = config_class().to_dict()
        for name in list(given):
            if name not in known:
                self.error((*path, name), f"unknown field of {config_class.__name__}{suggest(name, known)}")
                del given[name]
        try:
            config = config_class(**given)
        except Exception as error:  # configurations validate themselves, each by exceptions of its own
            blamed = next((name for name in given if f"'{name}'" in str(error)), None)
            self.error((*path, blamed) if blamed else path, one_line(error))
            return
        if not _sees(config):
            self.error((*path, "model_type"), f"'{kind}' is no vision encoder; siglip_vision_model and vit are")
            return
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
        for name in sizes:
            value = getattr(config, name, None)
            if isinstance(value, int) and value < 1:
                self.error((*path, name), f"must be at least 1, got {value}")
                return
        heads = getattr(config, "num_attention_heads", None)
        if isinstance(heads, int) and config.hidden_size % heads:
            self.error(
                (*path, "num_attention_heads" if "num_attention_heads" in given else "hidden_size"),
                f"hidden_size must be a multiple of num_attention_heads, got {config.hidden_size} and {heads}",
            )
        self.visual_tokens(path[:-1], images, config, self.error)

    def visual_tokens(
        self, path: FieldPath, images: Images, config: PretrainedConfig, report: Callable[[FieldPath, str], None]
    ) -> None:
        """The patches, a square, are pooled in smaller squares, so only some numbers of tokens are possible."""
        patch = getattr(config, "patch_size", None)
        if not isinstance(patch, int) or images.tokens is None or not self.sound((*path, "tokens")):
            return
        side = config.image_size // patch
        if not 1 <= side <= _MOST_PATCHES:
            self.error(
                (*path, "vision"), f"image_size and patch_size give {side} x {side} patches, which is not possible"
            )
            return
        possible = [(side // factor) ** 2 for factor in range(side, 0, -1) if side % factor == 0]
        if images.tokens not in possible:
            report(
                (*path, "tokens"),
                f"{side} x {side} patches give {', '.join(map(str, possible))} tokens, got {images.tokens}",
            )
        longest = self.recipe.student.max_seq_length if self.recipe.student is not None else None
        if longest is not None and images.tokens >= longest:
            self.error(
                (*path, "tokens"), f"must be below the student's max_seq_length of {longest}, got {images.tokens}"
            )

    def evaluation(self) -> None:
        evaluation, path = self.recipe.evaluation, ("evaluation",)
        if evaluation is None:
            return
        for index, teacher in enumerate(self.recipe.teachers or []):
            if evaluation.teachers and teacher.model is not None and teacher.name == "student":
                self.error(
                    ("teachers", index, "name"),
                    "'student' is taken in the evaluation's tables; give this teacher another name",
                )
        if evaluation.texts is not None:
            self.texts((*path, "texts"), evaluation.texts)
            if not self.recipe.teachers and self.sound(("teachers",)):
                self.error((*path, "texts"), "closeness to the teachers needs a teacher")
        for field, numbers in (("similarity", 1), ("retrieval", 0)):
            source = getattr(evaluation, field)
            if source is None:
                continue
            columns = self.texts((*path, field), source, numbers=numbers > 0)
            if columns is None or not self.sound((*path, field, "columns")):
                continue
            kinds = list(columns.values())
            wanted = ["text", "text", "number"][: 2 + numbers]
            what = "two columns of texts" + (" and then one of numbers" if numbers else "")
            if source.columns is not None and len(columns) == len(source.columns) and kinds != wanted:
                self.error((*path, field, "columns"), f"must be {what}")
            elif source.columns is None and (kinds.count("text") < 2 or kinds.count("number") < numbers):
                self.error((*path, field), f"must have {what}, got {', '.join(columns)}")
        if evaluation.images is not None:
            self.pictures((*path, "images"), evaluation.images)
            if not self.trains_vision and self.sound(("stages",)):
                self.warn((*path, "images"), "no stage trains vision, so the student has to be an image model already")


#: Names that the parts of a student may have before their own: the encoder's, and the projection's.
_PREFIXES = ("0.model.", "0.auto_model.")
_PLACES, _HEADS, _KINDS = range(1, 6), range(12), ("weight", "bias")
#: What a work folder has in it, from its first moment on.
_OF_A_RUN = ("run.json", "teachers", "lock")
#: Patches of a side; a picture with more of them is a mistake in the configuration.
_MOST_PATCHES = 1024
_ONLY_MODELS = ("prompts", "dtype", "device", "batch_size", "batch_tokens", "max_seq_length", "trust_remote_code")


def _sees(config: PretrainedConfig) -> bool:
    return isinstance(getattr(config, "image_size", None), int) and getattr(config, "hidden_size", None) is not None


def _own_width(teacher: Any) -> int | None:
    measure = getattr(teacher, "get_embedding_dimension", None)
    return measure() if callable(measure) else None


@cache
def _standard_losses() -> dict[str, type]:
    """The losses that plain options can make: no enumerations, no data loaders, none around another loss or model."""
    known = {}
    for name in standard_losses.__all__:
        loss = getattr(standard_losses, name)
        if not inspect.isclass(loss) or issubclass(loss, Enum) or not issubclass(loss, torch.nn.Module):
            continue
        if not {"loss", "guide"} & set(inspect.signature(loss).parameters):
            known[name] = loss
    return known


def _absolute(path: str | Path) -> Path:
    return Path(path).resolve()
