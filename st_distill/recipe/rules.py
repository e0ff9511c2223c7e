"""Rules for the fields of a recipe: each looks at a value of the right type and yields what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from st_distill.words import Found, describe

__all__ = [
    "Rule",
    "about",
    "above",
    "at_least",
    "below_one",
    "is_seed",
    "names_list",
    "not_empty",
    "numbers_list",
    "python_only",
]

Rule = Callable[[Any], Iterable[Found]]


def at_least(lowest: float) -> Rule:
    def rule(value: Any) -> Iterator[Found]:
        if value is not None and not value >= lowest:
            yield (), f"must be at least {lowest:g}, got {value:g}"

    return rule


def above(limit: float) -> Rule:
    def rule(value: Any) -> Iterator[Found]:
        if value is not None and not value > limit:
            yield (), f"must be above {limit:g}, got {value:g}"

    return rule


def below_one(value: Any) -> Iterator[Found]:
    if value is not None and not 0 <= value < 1:
        yield (), f"must be from 0 to below 1, got {value:g}"


def is_seed(value: Any) -> Iterator[Found]:
    # numpy takes no other
    if value is not None and not 0 <= value < 2**32:
        yield (), f"must be from 0 to {2**32 - 1}, got {value}"


def numbers_list(lowest: int, *, empty: bool = False, ascending: bool = False) -> Rule:
    def rule(value: Any) -> Iterator[Found]:
        if not isinstance(value, list):
            return
        if not value and not empty:
            yield (), "must not be empty"
        for index, number in enumerate(value):
            if number < lowest:
                yield (index,), f"must be at least {lowest}, got {number}"
            elif number in value[:index]:
                yield (index,), f"is there twice: {number}"
            elif ascending and index and number < value[index - 1]:
                yield (index,), f"must be in ascending order, got {number} after {value[index - 1]}"

    return rule


def names_list(value: Any) -> Iterator[Found]:
    if value is not None and not value:
        yield (), "must not be empty"
    for index, name in enumerate(value or []):
        if name in value[:index]:
            yield (index,), f"is there twice: '{name}'"


def not_empty(value: Any) -> Iterator[Found]:
    if value is not None and not value:
        yield (), "must not be empty"


def python_only(value: Any) -> Iterator[Found]:
    if value is not None and isinstance(value, (str, int, float, list, tuple, Mapping)):
        yield (), f"is an object given in Python, got {describe(value)}"


def about(help: str, *rules: Rule) -> dict[str, Any]:
    return {"help": help, "rules": rules}
