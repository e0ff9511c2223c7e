"""The regular expressions of a recipe, which may take exponential time: each is given a few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable

import regex  # as re, but it can be told to stop

__all__ = ["SECONDS", "matching", "pattern_error"]

SECONDS = 2.0
"""What one pattern may take over all names; a harmless one takes a few microseconds a name."""


def pattern_error(pattern: str) -> str | None:
    """Why a text is not a regular expression; None where it is one."""
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        return str(error)
    return None


def matching(pattern: str, names: Iterable[str], *, whole: bool = False, seconds: float = SECONDS) -> list[str]:
    """The names in which a pattern is found somewhere; or, with ``whole``, those that are it from beginning to end.

    Raises:
        ValueError: for a pattern that takes longer than ``seconds``.
    """
    compiled, end = regex.compile(pattern), time.monotonic() + seconds
    find = compiled.fullmatch if whole else compiled.search
    try:
        return [name for name in names if find(name, timeout=max(end - time.monotonic(), 1e-3))]
    except TimeoutError:
        raise ValueError(
            f"The pattern {pattern!r} must match a name at once. It was still at it after {seconds:g} seconds: write it "
            "without a repetition in a repetition, such as (a+)+."
        ) from None
