"""What an option may be, for the whole package: one rule, and one sentence for what is something else."""

from __future__ import annotations

from numbers import Real
from typing import Any

__all__ = ["check_whole_number", "is_number"]


def check_whole_number(what: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
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
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        alternative = ", or None" if optional else ""
        raise ValueError(f"The {what} must be a whole number from {least}{alternative}. Got {value!r} instead.")


def is_number(value: Any, least: float = float("-inf"), most: float = float("inf")) -> bool:
    """Whether ``value`` is a number, of Python or numpy, from ``least`` to ``most``; NaN, True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most
