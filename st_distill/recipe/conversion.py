"""From plain data (mappings, lists, numbers, texts) to the dataclasses of a recipe and back, with every mistake at once."""

from __future__ import annotations

import math
import numbers
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

from st_distill.credentials import speaks_of_token
from st_distill.errors import Problem, RecipeError
from st_distill.nearest import any_of, nearest, offer, suggest
from st_distill.words import FieldPath, Found, describe, listed, show_path

__all__ = ["Part", "as_mapping", "build", "convert", "default_of", "expected", "hints"]


class Part:
    """What the dataclasses share: conversion of what they are given, with every mistake at once."""

    #: The field that a part is when only a name is given: ``student: some/model``.
    short_for: ClassVar[str | None] = None
    #: What other libraries call a field, by which it may be looked for.
    also_called: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *args: Any, **given: Any) -> Self:
        # A dataclass's own error says neither which field was meant nor which there are.
        names = [option.name for option in fields(cls)]  # type: ignore[arg-type]
        if unknown := [name for name in given if name not in names]:
            raise RecipeError(
                [Problem(path=f"{cls.__name__}.{name}", message=_unknown_field(cls, name, names)) for name in unknown]
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        found: list[Found] = []
        for option in fields(self):  # type: ignore[arg-type]
            value = _convert_field(type(self), option, getattr(self, option.name), (option.name,), found)
            setattr(self, option.name, value)
        if found:
            owner = type(self).__name__
            raise RecipeError([Problem(path=show_path((owner, *path)), message=message) for path, message in found])
        self.fill()

    def fill(self) -> None:
        """Give a value to fields whose default follows from other fields."""


_P = TypeVar("_P", bound=Part)


class _Invalid:
    """Stands for a value that could not be converted, and was reported."""


_INVALID = _Invalid()
_MOST = 2**63 - 1  # beyond which Python and torch count no rows
_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def build(cls: type[_P], data: Any, found: list[Found]) -> _P:
    """A part made of plain data (mappings, lists, numbers, texts), with every mistake appended to ``found``.

    What is missing or wrong is left at its default, or None where there is none, so that the rest can be looked at too:
    use the result only where ``found`` stays empty, or with that in mind.
    """
    part = _convert_part(cls, data, (), found)
    return _assemble(cls, {}) if isinstance(part, _Invalid) else part


def convert(value: Any, hint: Any, path: FieldPath, found: list[Found]) -> Any:
    """``value`` as the type that ``hint`` says, or a marker after appending to ``found`` what is wrong with it.

    Types that a recipe knows nothing of are not looked at.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint, path, found)
    if origin is Literal:
        if value in get_args(hint):
            return value
        return _reject(path, found, _unknown_word(value, [str(word) for word in get_args(hint)]))
    if hint is list or origin is list:
        return _convert_list(value, hint, path, found)
    if hint is dict or origin is dict:
        return _convert_dict(value, hint, path, found)
    if isinstance(hint, type):
        if issubclass(hint, Part):
            return _convert_part(hint, value, path, found)
        if issubclass(hint, Enum):
            words = [str(member.value) for member in hint]
            if value in words or isinstance(value, hint):
                return value
            return _reject(path, found, _unknown_word(value, words))
        if hint in _WORDS:
            return _convert_scalar(value, hint, path, found)
    return value


def _reject(path: FieldPath, found: list[Found], message: str) -> _Invalid:
    found.append((path, message))
    return _INVALID


def _unknown_word(value: Any, words: list[str]) -> str:
    if not isinstance(value, str) or speaks_of_token(value):
        return f"expected {any_of(words)}, got {describe(value)}"
    return f"unknown value '{value}'{suggest(value, words, always=True)}"


def _convert_scalar(value: Any, hint: Any, path: FieldPath, found: list[Found]) -> Any:
    if hint is str:
        if isinstance(value, str):
            return str(value)
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        quote = "; put it in quotes" if isinstance(value, (bool, numbers.Number)) else ""
        return _reject(path, found, f"expected text, got {describe(value)}{quote}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        words = isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "true", "false", "y", "n")
        hint_text = "; write true or false, without quotes" if words else ""
        return _reject(path, found, f"expected true or false, got {describe(value)}{hint_text}")
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and not _is_finite(value):
        finite = "; it must be finite" if value in (math.inf, -math.inf) else ""
        return _reject(path, found, f"expected {_WORDS[hint]}, got {describe(value)}{finite}")
    if is_number and hint is float:
        return float(value)
    if is_number and value == int(value):
        if abs(value) > _MOST:
            return _reject(path, found, f"expected {_WORDS[hint]}, got a number beyond all measure")
        return int(value)
    quoted = "; write it without quotes" if isinstance(value, str) and _is_number(value) else ""
    return _reject(path, found, f"expected {_WORDS[hint]}, got {describe(value)}{quoted}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _convert_list(value: Any, hint: Any, path: FieldPath, found: list[Found]) -> Any:
    (item,) = get_args(hint) or (Any,)
    if not isinstance(value, (list, tuple)):
        is_one = (
            isinstance(value, (str, int, float)) and not isinstance(value, bool) and not speaks_of_token(str(value))
        )
        brackets = f"; write [{value}]" if is_one else ""
        return _reject(path, found, f"expected {expected(hint)}, got {describe(value)}{brackets}")
    converted = [convert(entry, item, (*path, index), found) for index, entry in enumerate(value)]
    return _INVALID if any(isinstance(entry, _Invalid) for entry in converted) else converted


def _convert_dict(value: Any, hint: Any, path: FieldPath, found: list[Found]) -> Any:
    _, item = get_args(hint) or (str, Any)
    if not isinstance(value, Mapping):
        return _reject(path, found, f"expected {expected(hint)}, got {describe(value)}")
    converted = {}
    for key, entry in value.items():
        if not isinstance(key, str):
            return _reject((*path, str(key)), found, f"a name must be text, got {describe(key)}")
        converted[key] = convert(entry, item, (*path, key), found)
    return _INVALID if any(isinstance(entry, _Invalid) for entry in converted.values()) else converted


def _convert_union(value: Any, hint: Any, path: FieldPath, found: list[Found]) -> Any:
    options = [option for option in get_args(hint) if option is not type(None)]
    if value is None and len(options) < len(get_args(hint)):
        return None
    words = [option for option in options if isinstance(option, type) and issubclass(option, Enum)]
    if words and isinstance(value, str):
        options = words
    if len(options) == 1:
        return convert(value, options[0], path, found)
    attempts: list[list[Found]] = []
    for option in options:
        attempt: list[Found] = []
        converted = convert(value, option, path, attempt)
        if not attempt:
            return converted
        attempts.append(attempt)
    # An attempt that got inside the value was of the right kind, and its complaints are the useful ones.
    inside = [attempt for attempt in attempts if any(len(where) > len(path) for where, _ in attempt)]
    if inside:
        found.extend(inside[0])
        return _INVALID
    literals = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    if isinstance(value, str) and literals:
        options = [option for option in options if get_origin(option) is not Literal]
        kinds = [f"'{word}'" for word in literals] + [expected(option) for option in options]
        return _reject(path, found, f"expected {any_of(kinds)}, got {describe(value)}{suggest(value, literals)}")
    return _reject(path, found, f"expected {any_of([expected(o) for o in options])}, got {describe(value)}")


def _convert_part(cls: type[_P], value: Any, path: FieldPath, found: list[Found]) -> _P | _Invalid:
    if isinstance(value, cls):
        return value
    names = [option.name for option in fields(cls)]  # type: ignore[arg-type]
    if isinstance(value, (str, os.PathLike)) and cls.short_for is not None:
        value = {cls.short_for: value}
    elif hasattr(value, "column_names") and "data" in names:
        value = {"data": value}
    if not isinstance(value, Mapping):
        return _reject(path, found, f"expected a mapping with {listed(names)}, got {describe(value)}")
    unknown = [str(key) for key in value if key not in names]
    for key in unknown:
        found.append(((*path, key), _unknown_field(cls, key, names)))
    # A required field that is only misspelt has been reported already.
    misspelt = {nearest(key, names) for key in unknown}
    values = {}
    for option in fields(cls):  # type: ignore[arg-type]
        if option.name in value:
            converted = _convert_field(cls, option, value[option.name], (*path, option.name), found)
            if not isinstance(converted, _Invalid):
                values[option.name] = converted
        elif default_of(option) is MISSING and option.name not in misspelt:
            found.append((path, f"'{option.name}' is missing: {option.metadata['help']}"))
    return _assemble(cls, values)


def _unknown_field(cls: type[Part], name: str, names: list[str]) -> str:
    meant = cls.also_called.get(name)
    return f"unknown field{suggest(name, names, always=True) if meant is None else offer(meant)}"


def _convert_field(cls: type, option: Field[Any], value: Any, path: FieldPath, found: list[Found]) -> Any:
    hint = hints(cls)[option.name]
    if _is_list_of_named(hint) and not isinstance(value, (list, tuple)):
        value = [value]
    before = len(found)
    converted = convert(value, hint, path, found)
    if len(found) == before:
        for rule in option.metadata["rules"]:
            found.extend(((*path, *inner), message) for inner, message in rule(converted))
    return converted if len(found) == before or is_dataclass(converted) or _has_parts(converted) else _INVALID


def _is_list_of_named(hint: Any) -> bool:
    """Whether a field takes several parts that a name alone can stand for, so that one may come without its list."""
    item = get_args(hint)[0] if get_origin(hint) is list else None
    return isinstance(item, type) and issubclass(item, Part) and item.short_for is not None


def _has_parts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, Part) for entry in value)


def _assemble(cls: type[_P], values: dict[str, Any]) -> _P:
    """An instance without the checks of its constructor, None standing for what is required and absent."""
    part = object.__new__(cls)
    for option in fields(cls):  # type: ignore[arg-type]
        default = default_of(option)
        setattr(part, option.name, values.get(option.name, None if default is MISSING else default))
    part.fill()
    return part


def default_of(option: Field[Any]) -> Any:
    return option.default_factory() if option.default_factory is not MISSING else option.default


@cache
def hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def expected(hint: Any) -> str:
    origin = get_origin(hint)
    if hint is list or origin is list:
        (item,) = get_args(hint) or (Any,)
        plural = {int: "whole numbers", float: "numbers", str: "texts"}.get(item)
        return f"a list of {plural}" if plural else "a list"
    if hint is dict or origin is dict:
        return "a mapping"
    if origin is Literal:
        return any_of([f"'{word}'" for word in get_args(hint)])
    if isinstance(hint, type) and issubclass(hint, Part):
        return "a mapping"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def as_mapping(part: Part) -> dict[str, Any]:
    """A part as plain mappings and lists, fields at their default left out."""
    plain = {}
    for option in fields(part):  # type: ignore[arg-type]
        value, default = getattr(part, option.name), default_of(option)
        if default is MISSING or type(value) is not type(default) or value != default:
            plain[option.name] = _as_plain(value)
    return plain


def _as_plain(value: Any) -> Any:
    if isinstance(value, Part):
        return as_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_as_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _as_plain(entry) for key, entry in value.items()}
    return value
