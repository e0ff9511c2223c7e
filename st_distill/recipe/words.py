"""How a recipe's mistakes are worded: where a value stands, what it is, and the name it may have been meant to be."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["FieldPath", "Found", "any_of", "describe", "folder_name", "listed", "nearest", "show_path", "suggest"]

#: Where a value stands in a recipe: ``("stages", 1, "learning_rate")``.
FieldPath = tuple[str | int, ...]
#: A mistake found on the way, before it is known in which line it stands.
Found = tuple[FieldPath, str]


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of ``words`` that is spelt most like ``word`` or has its initials, or None where none is alike."""
    choices = {choice.lower(): choice for choice in words}
    initials = {"".join(part[:1] for part in choice.split("_")): choice for choice in choices.values() if "_" in choice}
    if word.lower() in initials:  # lr: learning_rate
        return initials[word.lower()]
    matches = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.6)
    return choices[matches[0]] if matches else None


def suggest(word: str, words: Iterable[str], *, always: bool = False) -> str:
    """``"; did you mean 'x'?"``, or, with ``always``, all the words where none is alike."""
    words = list(words)
    if (match := nearest(word, words)) is not None:
        return f"; did you mean '{match}'?"
    return f"; it may be {any_of(words)}" if always and words else ""


def show_path(path: FieldPath) -> str:
    """``("stages", 1, "steps")`` as ``stages[1].steps``."""
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


def folder_name(name: str) -> str:
    allowed = (letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return "".join(allowed).strip(".")[:100] or "teacher"


def any_of(words: list[str]) -> str:
    words = [str(word) for word in dict.fromkeys(words)]
    if len(words) > 12:
        words = [*words[:12], f"{len(words) - 12} more"]
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def listed(words: list[str]) -> str:
    return f"{', '.join(words[:4])}, ..." if len(words) > 4 else ", ".join(words)


def describe(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, numbers.Number):
        return f"the number {value}" if len(str(value)) <= 40 else "a number beyond all measure"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
