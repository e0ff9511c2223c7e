"""What an option may be, for the whole package: one rule, and one sentence for what is something else."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

__all__ = ["check_distinct", "check_path", "check_whole_number", "in_yaml", "is_number"]

#: Python's words that YAML has otherwise.
_YAML_WORDS = {"None": "null", "True": "true", "False": "false"}


def check_whole_number(
    what: str, value: Any, *, least: int = 1, optional: bool = False, written: Callable[[Any], str] = repr
) -> None:
    """Raise ValueError unless ``value`` is a whole number from ``least``, or None where that is ``optional``.

    True and False are no numbers here, though Python counts with them: an option that was meant is another one then.

    >>> check_whole_number("'steps' of a stage", 0)
    Traceback (most recent call last):
    ValueError: The 'steps' of a stage must be a whole number from 1. Got 0 instead.

    Args:
        what: the option, as a sentence goes on after "The".
        value: what was given.
        least: the smallest.
        optional: whether None is let pass.
        written: how the sentence shows a value, None among them: as Python has it, or as YAML (`in_yaml`).
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        alternative = f", or {written(None)}" if optional else ""
        raise ValueError(f"The {what} must be a whole number from {least}{alternative}. Got {written(value)} instead.")


def check_distinct(what: str, values: Sequence[Any]) -> None:
    """Raise ValueError where one of the values is there twice: another one may have been meant.

    >>> check_distinct("'dims' parameter", [8, 4, 8])
    Traceback (most recent call last):
    ValueError: The 'dims' parameter must name each once. Got 8 twice: take one of them out.
    """
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"The {what} must name each once. Got {value!r} twice: take one of them out.")


def check_path(what: str, value: Any, *, wanted: str = "a path, as a text or a pathlib.Path") -> None:
    """Raise TypeError unless ``value`` is a path.

    >>> check_path("'path' parameter", None)
    Traceback (most recent call last):
    TypeError: The 'path' parameter must be a path, as a text or a pathlib.Path. Got NoneType instead.

    Args:
        what: the option, as a sentence goes on after "The".
        value: what was given.
        wanted: what may be given, where that is more than a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"The {what} must be {wanted}. Got {type(value).__name__} instead.")


def in_yaml(value: Any) -> str:
    """A value as it stands in a YAML file, for a sentence.

    >>> in_yaml(None), in_yaml("None")
    ('null', "'None'")
    """
    return _YAML_WORDS.get(repr(value), repr(value))


def is_number(value: Any, least: float = float("-inf"), most: float = float("inf")) -> bool:
    """Whether ``value`` is a number, of Python or numpy, from ``least`` to ``most``; NaN, True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most
