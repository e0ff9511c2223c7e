"""The name that a misspelt one may have been meant to be, as the end of a sentence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["any_of", "nearest", "offer", "suggest", "suggest_path"]


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of ``words`` that is spelt most like ``word`` or has its initials, or None where none is alike."""
    choices = {choice.lower(): choice for choice in words}
    initials = {"".join(part[:1] for part in choice.split("_")): choice for choice in choices.values() if "_" in choice}
    if word.lower() in initials:  # lr: learning_rate
        return initials[word.lower()]
    matches = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.6)
    return choices[matches[0]] if matches else None


def offer(name: str) -> str:
    return f"; did you mean '{name}'?"


def suggest(word: str, words: Iterable[str], *, always: bool = False) -> str:
    """``"; did you mean 'x'?"``, or, with ``always``, all the words where none is alike."""
    words = list(words)
    if (match := nearest(word, words)) is not None:
        return offer(match)
    return f"; it may be {any_of(words)}" if always and words else ""


def suggest_path(path: Path, fits: Callable[[Path], bool] = Path.exists) -> str:
    """As `suggest`, of a file or folder that is not there: with the first part of its path that is not there spelt as what
    lies in its place, so that the whole ``fits``; or that this part is a link to nothing."""
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), None)
    if missing is None or not missing.parent.is_dir():
        return ""
    if missing.is_symlink():
        return f"; {missing} is a link to what is not there"
    within = path.relative_to(missing)
    beside = [entry.name for entry in missing.parent.iterdir() if fits(missing.parent / entry.name / within)]
    name = nearest(missing.name, beside)
    return "" if name is None else offer(str(missing.parent / name / within))


def any_of(words: list[str]) -> str:
    words = [str(word) for word in dict.fromkeys(words)]
    if len(words) > 12:
        words = [*words[:12], f"{len(words) - 12} more"]
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
