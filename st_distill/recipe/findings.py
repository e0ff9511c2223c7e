"""What the rules of a recipe stand on: its parts and lines, the mistakes found so far, and what its models say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from st_distill.checksums import require_whole
from st_distill.errors import Problem, one_line
from st_distill.nearest import suggest
from st_distill.recipe.columns import Kind
from st_distill.recipe.conversion import convert, default_of
from st_distill.recipe.load import Document
from st_distill.recipe.models import ModelFacts, UnknownModel, read_model
from st_distill.recipe.schema import ImageSource, Recipe, Texts
from st_distill.recipe.sources import columns_of, missing_text, mixed_column, name_of, without_text
from st_distill.teacher.models import explain_in_training
from st_distill.words import FieldPath, Found

__all__ = ["Findings"]


#: Fields of a transformers configuration that no model does without where it has them.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


class Findings:
    """The mistakes of one recipe, and the rules that every subject needs. What has been found wrong is left alone."""

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
        defaults = {option.name: default_of(option) for option in fields(part)}
        for name in names:
            if getattr(part, name) != defaults[name]:
                self.error((*path, name), f"means nothing for {what}; remove it")

    def unique(self, field: str, names: list[str | None]) -> None:
        for index, name in enumerate(names):
            twin = names.index(name)
            if twin < index and self.sound((field, index, "train"), (field, twin, "train")):
                self.error((field, index), f"the name '{name}' is there twice; give each a 'name' of its own")

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

    # --- models ------------------------------------------------------------------------------------------------------

    def model(self, path: FieldPath, name: str | None, revision: str | None, trusted: bool) -> ModelFacts | None:
        """What a model's configuration says, or None where it cannot be known; what is wrong is reported once."""
        if not name or not self.sound((*path, "model"), (*path, "revision")):
            return None
        key = (name, revision)
        if key not in self.models:
            self.models[key] = None
            try:
                require_whole(name)
                self.models[key] = read_model(name, revision)
            except UnknownModel as unknown:
                self.warn((*path, "model"), str(unknown))
            except ValueError as error:
                self.error((*path, "model"), str(error).rstrip("."))
        model = self.models[key]
        if model is not None and model.published_alibi and not trusted:
            self.error(
                (*path, "model"),
                f"'{name}' is an ALiBi encoder in the published layout, which transformers takes for a plain BERT; write it "
                "anew by st_distill.modules.load_published(folder).save_pretrained(other), with its tokenizer, and name that",
            )
        elif model is not None and model.in_training and not trusted:
            self.error((*path, "model"), explain_in_training(name))
        elif model is not None and model.code is not None and not trusted:
            self.error(
                (*path, "model"),
                f"'{name}' needs code of its own ({model.code}); if you trust it, give --set "
                f"{'.'.join(map(str, path))}.trust_remote_code=true (in Python: trust_remote_code=True)",
            )
        return model

    def configuration(self, path: FieldPath, given: Mapping[str, Any]) -> PretrainedConfig | None:
        """The transformers configuration that a mapping with its model_type describes; None where it is wrong."""
        fields = dict(given)
        kind = fields.pop("model_type", None)
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            if kind is None:
                self.error(path, "'model_type' is missing, such as siglip_vision_model or bert")
            else:
                offer = suggest(str(kind), CONFIG_MAPPING)
                self.error((*path, "model_type"), f"transformers knows no model type '{kind}'{offer}")
            return None
        config_class = CONFIG_MAPPING[kind]
        known = config_class().to_dict()
        for name in list(fields):
            if name not in known:
                self.error((*path, name), f"unknown field of {config_class.__name__}{suggest(name, known)}")
                del fields[name]
        try:
            config = config_class(**fields)
        except Exception as error:  # configurations validate themselves, each by exceptions of its own
            blamed = next((name for name in fields if f"'{name}'" in str(error)), None)
            self.error((*path, blamed) if blamed else path, one_line(error))
            return None
        for name in _SIZES:
            value = getattr(config, name, None)
            if isinstance(value, int) and value < 1:
                self.error((*path, name), f"must be at least 1, got {value}")
                return None
        heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
        if isinstance(heads, int) and isinstance(width, int) and width % heads:
            self.error(
                (*path, "num_attention_heads" if "num_attention_heads" in fields else "hidden_size"),
                f"hidden_size must be a multiple of num_attention_heads, got {width} and {heads}",
            )
            return None
        return config

    @property
    def student_model(self) -> ModelFacts | None:
        student = self.recipe.student
        return None if student is None else self.models.get((student.model, student.revision))

    @property
    def student_depth(self) -> int | None:
        if self.recipe.student is not None and self.recipe.student.layers:
            return len(self.recipe.student.layers)
        return None if self.student_model is None else self.student_model.depth

    # --- sources -----------------------------------------------------------------------------------------------------

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

    def texts(
        self, path: FieldPath, texts: Texts, *, numbers: bool = False, learnt: bool = False
    ) -> dict[str, Kind] | None:
        """Checks a source of texts and returns its chosen columns with what they hold, where they can be known.

        Args:
            path: of the source.
            texts: the source.
            numbers: whether columns of numbers may be among the chosen ones.
            learnt: whether stages may learn from it, whose batches it then has a share of.
        """
        if not isinstance(texts, Texts):
            return None
        if not learnt:
            self.unused(path, texts, "texts that no stage learns from", ("share",))
        kinds = self.source(path, texts)
        if kinds is not None and not kinds:  # a text format's columns are those of its rows
            self.error(path, f"{name_of(texts)} has no rows")
            return None
        if kinds is None or not self.sound((*path, "columns")):
            return None
        mixed = mixed_column(texts, kinds)
        for index, name in enumerate(texts.columns or []):
            if name not in kinds:
                self.error((*path, "columns", index), f"there is no such column{suggest(name, kinds, always=True)}")
            elif mixed is None and kinds[name] != "text" and not (numbers and kinds[name] == "number"):
                self.error((*path, "columns", index), "this column holds no texts; name another one")
        names = texts.columns if texts.columns is not None else list(kinds)
        chosen = {name: kinds[name] for name in names if name in kinds}
        for field in ("roles", "prompts"):
            for name in getattr(texts, field) or {}:
                if name not in names:
                    known = [name for name, kind in chosen.items() if kind == "text"]
                    self.error((*path, field, name), f"there is no such column{suggest(name, known, always=True)}")
        if mixed is not None:
            self.error(path, mixed.rstrip("."))
        elif "text" not in chosen.values() and len(chosen) == len(names):
            self.error(path, f"there is no column of texts, only {', '.join(kinds)}")
        self.whole(path, texts, [name for name, kind in chosen.items() if kind == "text"])
        return chosen

    def whole(self, path: FieldPath, source: Texts | ImageSource, columns: list[str]) -> None:
        """No text of these columns is missing, as far as that is seen without reading all: a run reads it, and would end."""
        try:
            if (missing := missing_text(source, columns)) is not None:
                self.error(path, without_text(source, *missing).rstrip("."))
        except ValueError as error:
            self.error((*path, "path"), one_line(error))
