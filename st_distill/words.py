"""How a recipe's mistakes are worded: where a value stands, and what it is."""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping
from typing import Any

from st_distill.credentials import speaks_of_token

__all__ = ["FieldPath", "Found", "describe", "folder_name", "listed", "show_path"]

#: Where a value stands in a recipe: ``("stages", 1, "learning_rate")``.
FieldPath = tuple[str | int, ...]
#: A mistake found on the way, before it is known in which line it stands.
Found = tuple[FieldPath, str]


def show_path(path: FieldPath) -> str:
    """``("stages", 1, "steps")`` as ``stages[1].steps``; of a name that is none and may hold a token, its beginning alone."""
    shown = ""
    for part in path:
        if isinstance(part, str) and speaks_of_token(part):
            part = re.sub(r"(?<=\w)[^\w].*", "…", part, flags=re.DOTALL)
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown


def folder_name(name: str) -> str:
    allowed = (letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return "".join(allowed).strip(".")[:100] or "teacher"


def listed(words: list[str]) -> str:
    return f"{', '.join(words[:4])}, ..." if len(words) > 4 else ", ".join(words)


def describe(value: Any) -> str:
    """What a value is, in a sentence; a text that may hold a token (`speaks_of_token`) is not repeated."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if speaks_of_token(value):
            return "a text"
        return f"the text '{value if len(value) <= 60 else value[:57] + '...'}'"
    if isinstance(value, numbers.Number):
        return f"the number {value}" if len(str(value)) <= 40 else "a number beyond all measure"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
