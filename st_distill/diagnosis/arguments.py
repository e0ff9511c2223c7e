"""What the diagnoses are given: what is of another kind is refused, in a sentence that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["check_list", "check_name", "check_text", "shown"]

#: Characters of a text in a sentence.
_SHOWN = 60


def check_list(name: str, texts: Any, *, indexed: bool = False) -> None:
    """Raise TypeError unless ``texts`` can be gone through, and, where it is ``indexed``, has a length and rows by number."""
    if isinstance(texts, str):
        raise TypeError(
            f"The '{name}' must be a list of texts. Got the one text {shown(texts)!r} instead: put it in a list."
        )
    has_rows = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    if isinstance(texts, (bytes, Mapping)) or not isinstance(texts, Iterable) or (indexed and not has_rows):
        raise TypeError(f"The '{name}' must be a list of texts. Got {type(texts).__name__} instead.")


def check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"A text must be a str. Got {shown(repr(text))} instead: leave it out, or write it as text.")


def check_name(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"The '{name}' must be a text. Got {type(value).__name__} instead.")


def shown(text: str) -> str:
    text = " ".join(text.split()) or repr(text)[1:-1]  # spaces alone are shown as they are
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
