"""Recipes from YAML and back.

A file lies over the preset that it names, and ``--set`` over both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from st_distill.credentials import credentials_in, speaks_of_token
from st_distill.errors import Problem, RecipeError
from st_distill.nearest import suggest
from st_distill.options import check_path
from st_distill.recipe.conversion import Part, as_mapping, build, default_of, hints
from st_distill.recipe.schema import Recipe, Stage, TeacherSpec
from st_distill.words import FieldPath, Found, show_path
from st_distill.yaml_tree import MAX_BYTES, Dumper, Entry, Place, parse, problem_at

__all__ = [
    "DISTILLATION",
    "Document",
    "Kind",
    "assignments",
    "dump_recipe",
    "in_order",
    "load_recipe",
    "load_record",
    "presets",
    "read_document",
]


@dataclass(frozen=True)
class Family:
    """What recipes of one kind are known by.

    Args:
        name: of the kind, in words.
        fields: those that no other kind has and one of which nearly every recipe of this one says.
        presets: folder of those that come with st-distill.
        taken: by which command, as the end of a sentence.
    """

    name: str
    fields: tuple[str, ...]
    presets: Path
    taken: str


@dataclass(frozen=True)
class Kind:
    """A kind of recipe: what its YAML is built into.

    Args:
        recipe: the dataclass of the whole. A list of parts that a name alone may stand for (`Part.short_for`) may be written
            without the list around a single entry.
        required: its required fields, in words.
        family: what it is known by.
        other: what those are known by that may be given in its place by mistake.
    """

    recipe: type[Part]
    required: str
    family: Family
    other: Family


_PACKAGE = Path(__file__).parents[1]
#: The two are here together because each is told from the other.
OF_DISTILLATION = Family(
    "distillation or pairs",
    ("student", "teachers", "projection", "stages"),
    _PACKAGE / "recipe" / "presets",
    "st-distill run takes it, and st-distill check looks at it alone",
)
OF_PRETRAINING = Family(
    "pretraining",
    ("encoder", "tokenizer"),
    _PACKAGE / "pretrain" / "presets",
    "st-distill pretrain takes it, and looks at it alone with --check",
)
DISTILLATION = Kind(Recipe, "output, student and stages", OF_DISTILLATION, OF_PRETRAINING)


def load_recipe(path_or_preset: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path_or_preset: a YAML file, or the name of a preset (see `presets`).
        overrides: assignments ``a.b=value`` that replace fields, the value being YAML: ``stages.projection.steps=10``
            (stages and teachers by name), ``stages.0.steps=10`` (or by number), ``images=null``.

    A recipe may say ``preset: jasper``: its fields are then laid over the preset's. Mappings are merged field by field,
    and stages by name, either as a list or as a mapping from names to fields; ``null`` takes a field, or a stage, out.
    Any other list replaces the preset's. Of a stage's ``steps`` and ``epochs`` the one that is given replaces either.
    A file may be a stranger's, so that ``trust_remote_code: true`` is taken from ``overrides`` alone.

    Raises:
        RecipeError: a ValueError with every syntax error, unknown field, wrong type and value out of range, each with its
            line. What needs several fields or the files is found by `st_distill.recipe.check.check`.
    """
    document = read_document(path_or_preset, overrides)
    recipe, problems = document.build()
    if problems:
        raise RecipeError(problems)
    return recipe


def load_record(path: str | Path) -> Recipe:
    """Read what a run has written into its work folder of its recipe, to show it: no model may be loaded by its word.

    Raises:
        RecipeError: as `load_recipe`, but for ``trust_remote_code: true``, which a run's user may have given.
    """
    recipe, problems = Document(read_document(path).data).build()
    if problems:
        raise RecipeError(problems)
    return recipe


def dump_recipe(recipe: Part) -> str:
    """The recipe as YAML, fields at their default left out; `load_recipe` reads it back to an equal recipe, but for
    ``trust_remote_code: true``, which it takes from no file.

    Raises:
        TypeError: for a recipe that holds Python objects (a Dataset, a callable teacher).
    """
    try:
        return yaml.dump(as_mapping(recipe), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    except yaml.representer.RepresenterError as error:
        raise TypeError(
            f"A recipe with Python objects cannot be written as YAML. Got a {type(error.args[-1]).__name__}. Save the data "
            "or the model to a folder and name that instead."
        ) from None


def presets(kind: Kind = DISTILLATION) -> dict[str, Path]:
    """Names of the recipes that come with st-distill, and their files."""
    return _presets(kind.family)


def _presets(family: Family) -> dict[str, Path]:
    return {path.stem: path for path in sorted(family.presets.glob("*.yaml"))}


class Document:
    """A recipe before it is a `Recipe`, or what its kind says: plain data, and where each value stands."""

    def __init__(
        self, data: dict[str, Any], places: dict[FieldPath, Place] | None = None, *, kind: Kind = DISTILLATION
    ) -> None:
        self.data = data
        self.kind = kind
        self._places = places or {}
        #: Fields that `build` has found wrong, and those that a misspelt one may have been meant for.
        self.wrong: set[FieldPath] = set()

    def build(self) -> tuple[Any, list[Problem]]:
        """The recipe, and what is wrong with it. Where anything is wrong the recipe has gaps."""
        found: list[Found] = []
        recipe = build(self.kind.recipe, self.data, found)
        for path, message in found:
            self.wrong.add(path)
            if message.startswith("unknown field") and (meant := re.search("did you mean '(.*)'", message)):
                self.wrong.add((*path[:-1], meant[1]))
        found += [(path, _untrusted(path)) for path in self._trusted_by_a_file()]
        return recipe, in_order(self.problem(path, message) for path, message in found)

    def credentials(self) -> list[Problem]:
        """A problem for each login and token, with which nothing else may be done: messages would repeat it."""
        return in_order(self.problem(path, _NOT_HERE) for path in credentials_in(self.data))

    def _trusted_by_a_file(self) -> Iterator[FieldPath]:
        """Where a file, not the user, lets code of a model run. What was made in Python has no places."""
        for path, place in self._places.items():
            if path[-1:] == ("trust_remote_code",) and place.line is not None and _at(self.data, path) is True:
                yield path

    def problem(self, path: FieldPath, message: str, *, warning: bool = False) -> Problem:
        """A problem at a field; its line is that of the field or of the nearest one around it."""
        around = next((path[:end] for end in range(len(path), -1, -1) if path[:end] in self._places), None)
        place = Place(None, None) if around is None else self._places[around]
        return Problem(
            path=show_path(path),
            message=message,
            line=place.line,
            source=place.source,
            level="warning" if warning else "error",
        )


_NOT_HERE = (
    "a login or a token does not belong in a recipe, which is kept and passed on; log in with 'hf auth login', or let the "
    "environment give it"
)


def _at(data: Any, path: FieldPath) -> Any:
    for step in path:
        data = data[step]
    return data


def _untrusted(path: FieldPath) -> str:
    return (
        "a file, which may be a stranger's, lets no code run; take this out and, if you trust the model, give --set "
        f"{'.'.join(map(str, path))}=true (in Python: overrides)"
    )


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by line, file by file; what stands in no file comes last."""
    return sorted(problems, key=lambda problem: (problem.line is None, problem.source or "", problem.line or 0))


def read_document(
    path_or_preset: str | os.PathLike[str], overrides: Sequence[str] = (), *, kind: Kind = DISTILLATION
) -> Document:
    """The data of a recipe file or preset with its overrides, before any field is looked at.

    Raises:
        RecipeError: where it cannot be read, an override does not fit, or it holds a login or token.
        TypeError: for something else than a file or a name.
    """
    check_path("recipe", path_or_preset, wanted="a YAML file or the name of a preset")
    root = _read_root(os.fspath(path_or_preset), kind)
    problems = []
    for override in overrides:
        try:
            _apply(root, override, kind)
        except _Misfit as misfit:
            problems.append(Problem(message=str(misfit), source=_shown(override)))
    if problems:
        raise RecipeError(problems)
    document = Document(root.plain(), dict(root.places()), kind=kind)
    if problems := document.credentials():
        raise RecipeError(problems)
    return document


# --- files and presets -------------------------------------------------------------------------------------------------


def _read_root(path_or_preset: str | Path, kind: Kind) -> Entry:
    path, known = Path(path_or_preset), presets(kind)
    if str(path_or_preset) in known and not path.is_file():
        return _read_yaml(known[str(path_or_preset)], f"preset {path_or_preset}", kind)
    if str(path_or_preset) in _presets(kind.other) and not path.is_file():
        raise RecipeError([Problem(message=f"the recipe '{path_or_preset}' {_is_of(kind.other)}")])
    if path.is_symlink() and not path.exists():
        raise RecipeError([Problem(message=f"the recipe '{path_or_preset}' is a link to what is not there")])
    if not path.is_file():
        beside = [str(file) for file in path.parent.glob("*.y*ml") if file.is_file()] if path.parent.is_dir() else []
        what = "is a folder" if path.is_dir() else "is a pipe or a device" if path.exists() else "is no file"
        offer = suggest(str(path_or_preset), [*beside, *known, *_presets(kind.other)])
        offer = offer or f"; give a YAML file or the name of a preset ({', '.join(known)})"
        raise RecipeError([Problem(message=f"the recipe '{path_or_preset}' {what}{offer}")])
    return _read_yaml(path, str(path_or_preset), kind)


def _is_of(other: Family) -> str:
    """What is said of a recipe of another kind."""
    return f"is one of {other.name}; {other.taken}"


def _over_preset(root: Entry, kind: Kind) -> Entry:
    """The recipe laid over the preset that it names, which may name another one."""
    if "preset" not in root.value:
        return root
    chosen, known = root.value.pop("preset"), presets(kind)
    if isinstance(chosen.value, str) and chosen.value in _presets(kind.other):
        raise RecipeError([problem_at(chosen.place, "preset", f"'{chosen.value}' {_is_of(kind.other)}")])
    if not isinstance(chosen.value, str) or chosen.value not in known:
        message = f"unknown preset '{chosen.plain()}'{suggest(str(chosen.plain()), known, always=True)}"
        raise RecipeError([problem_at(chosen.place, "preset", message)])
    return _merge(_read_yaml(known[chosen.value], f"preset {chosen.value}", kind), root, ())


def _read_yaml(path: Path, source: str, kind: Kind) -> Entry:
    top = Place(source, None)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError([problem_at(top, "", f"cannot be read: {error.strerror}")]) from error
    if len(content) > MAX_BYTES:
        raise RecipeError(
            [problem_at(top, "", f"is larger than {MAX_BYTES // 1_000_000} MB, which no recipe needs to be")]
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RecipeError([problem_at(Place(source, line), "", "is not UTF-8 text; save the file as UTF-8")]) from None
    root = parse(text, lambda line: Place(source, line))
    if root.value is None:
        raise RecipeError([problem_at(top, "", f"is empty; a recipe has at least {kind.required}")])
    if not isinstance(root.value, dict):
        raise RecipeError([problem_at(root.place, "", "must be a mapping of fields (output: ..., student: ...)")])
    if "preset" not in root.value and not any(name in root.value for name in kind.family.fields):
        strange = next((name for name in kind.other.fields if name in root.value), None)
        if strange is not None:
            message = f"the recipe {_is_of(kind.other)}"
            raise RecipeError([problem_at(root.value[strange].place, strange, message)])
    _unify(root, kind)
    return _over_preset(root, kind)


def _unify(root: Entry, kind: Kind) -> None:
    """Put the list around a single text source or teacher, so that it has one path everywhere."""
    for name, hint in hints(kind.recipe).items():  # type: ignore[arg-type]
        entry = root.value.get(name)
        part = _part_in(hint)
        is_list = get_origin(hint) is list and part is not None and part.short_for is not None
        if is_list and entry is not None and isinstance(entry.value, (dict, str)):
            root.value[name] = Entry([entry], entry.place)


def _part_in(hint: Any) -> type[Part] | None:
    """The part that a field holds, one or a list of them."""
    if isinstance(hint, type) and issubclass(hint, Part):
        return hint
    return next((part for inner in get_args(hint) if (part := _part_in(inner)) is not None), None)


def _merge(base: Entry, over: Entry, path: FieldPath) -> Entry:
    """``over`` laid on ``base``; see `load_recipe`."""
    if path == ("stages",) and isinstance(base.value, list):
        return _merge_stages(base, over)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(base.value)
    if path == ("stages", 0):
        _choose_duration(merged, over.value)
    for key, entry in over.value.items():
        if entry.value is None:
            merged.pop(key, None)
        elif path == ("stages", 0) and key == "train":
            # A choice, not a group of fields: half of the old one would be left in the new.
            merged[key] = entry
        else:
            merged[key] = _merge(merged[key], entry, (*path, key)) if key in merged else entry
    return Entry(merged, over.place)


def _choose_duration(stage: dict[str, Entry], given: Mapping[str, Entry]) -> None:
    """Steps and epochs exclude each other, so that what is laid over a stage takes the place of both."""
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if key in given and given[key].value is not None and other not in given:
            stage.pop(other, None)


def _merge_stages(base: Entry, over: Entry) -> Entry:
    if isinstance(over.value, dict):
        changes = [(name, entry) for name, entry in over.value.items()]
    elif isinstance(over.value, list):
        changes = [(_name_of(entry, Stage), entry) for entry in over.value]
    else:
        return over
    stages = {_name_of(entry, Stage): entry for entry in base.value}
    for name, entry in changes:
        if entry.value is None:
            if name not in stages:
                message = (
                    f"the preset has no stage '{name}' to take out{suggest(str(name), map(str, stages), always=True)}"
                )
                raise RecipeError([problem_at(entry.place, f"stages.{name}", message)])
            del stages[name]
        elif name in stages:
            stages[name] = _merge(stages[name], entry, ("stages", 0))
        else:
            if isinstance(over.value, dict) and isinstance(entry.value, dict):
                entry = Entry({"name": Entry(name, entry.place), **entry.value}, entry.place)
            stages[name] = entry
    return Entry(list(stages.values()), over.place)


def _name_of(entry: Entry, cls: type[Stage] | type[TeacherSpec]) -> str | None:
    part = build(cls, entry.plain(), [])
    return part.name


# --- overrides ---------------------------------------------------------------------------------------------------------


def _shown(override: str) -> str:
    """An override as messages have it: without its value, where that may be a token."""
    if not speaks_of_token(override):
        return f"--set {override}"
    target, equals, _ = override.partition("=")
    return f"--set {target}=…" if equals and re.fullmatch(r"[\w.\s-]+", target) else "--set …"


def _value(override: str, text: str) -> Entry:
    """The value that an override gives, which is YAML.

    Raises:
        _Misfit: it is not.
    """
    shown = _shown(override)
    try:
        return parse(text, lambda line: Place(shown, None))
    except RecipeError as error:
        what = "is not valid YAML" if speaks_of_token(override) else error.problems[0].message
        raise _Misfit(f"the value {what}") from None


def assignments(words: Sequence[str]) -> dict[str, Any]:
    """``["bf16=true"]`` as ``{"bf16": True}``; the values are YAML.

    Raises:
        ValueError: for what is no assignment, and a value that is not YAML.
    """
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip():
            raise ValueError(
                f"The option --set must be of the form field=value, such as bf16=true. Got {_shown(word)} instead."
            )
        try:
            found[name.strip()] = _value(word, text).plain()
        except _Misfit as misfit:
            raise ValueError(f"The option {_shown(word)} cannot be read: {misfit}.") from None
    return found


_NOWHERE: FieldPath = ()
_NAMED: dict[FieldPath, type[Stage] | type[TeacherSpec]] = {("stages",): Stage, ("teachers",): TeacherSpec}


class _Misfit(Exception):
    """An override that does not fit the recipe."""


def _apply(root: Entry, override: str, kind: Kind) -> None:
    target, equals, text = override.partition("=")
    keys = target.strip().split(".")
    if not equals or not all(keys) or "{" in target:
        raise _Misfit("is not of the form field.field=value, such as stages.projection.steps=10")
    value = _value(override, text)
    current, path = root, _NOWHERE
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(current.value, list):
            index = _index(current, key, path)
            if last and value.value is None:
                del current.value[index]
            elif last:
                current.value[index] = value
            else:
                current = current.value[index]
            path = (*path, index)
            continue
        if isinstance(current.value, str) and (short := _short_for(path, kind)) is not None:
            current.value = {short: Entry(current.value, current.place)}
        if not isinstance(current.value, dict):
            # A text may be a token.
            what = "a text" if isinstance(current.value, str) else repr(current.value)
            raise _Misfit(f"'{show_path(path)}' has no fields, it is {what}")
        path = (*path, key)
        if last and value.value is None:
            required = [option.name for option in fields(kind.recipe) if default_of(option) is MISSING]  # type: ignore[arg-type]
            if len(path) == 1 and key in required:
                raise _Misfit(f"leaves '{key}' out, which a recipe must have; give it a value")
            current.value.pop(key, None)
        elif last:
            if path[:1] == ("stages",) and len(path) == 3:
                _choose_duration(current.value, {key: value})
            current.value[key] = value
        else:
            current = current.value.setdefault(key, Entry({}, value.place))
            if current.value is None:
                current.value = {}
    _unify(root, kind)


def _short_for(path: FieldPath, kind: Kind) -> str | None:
    """The field that a name alone stands for, as in ``student: some/model``."""
    part: type[Part] | None = kind.recipe
    for step in path:
        if isinstance(step, str):
            part = None if part is None else _part_in(hints(part).get(step))  # type: ignore[arg-type]
    return None if part is None else part.short_for


def _index(entry: Entry, key: str, path: FieldPath) -> int:
    """The position in a list that a number or, for stages and teachers, a name says."""
    count = len(entry.value)
    if re.fullmatch(r"\d+", key):
        # Python reads no number of more than 4,300 digits.
        if len(key) > 20 or int(key) >= count:
            shown = key if len(key) <= 20 else f"{key[:20]}…"
            raise _Misfit(f"'{show_path(path)}' has no entry {shown}; it has {count}, numbered from 0")
        return int(key)
    cls = _NAMED.get(path)
    if cls is None:
        raise _Misfit(
            f"'{show_path(path)}' is a list, so a number must follow it, such as {show_path(path)}.0, got '{key}'"
        )
    names = [str(_name_of(part, cls)) for part in entry.value]
    if names.count(key) > 1:
        raise _Misfit(f"'{show_path(path)}' has several entries named '{key}'; give the number, from 0")
    if key not in names:
        raise _Misfit(f"'{show_path(path)}' has no entry '{key}'{suggest(key, names, always=True)}")
    return names.index(key)
