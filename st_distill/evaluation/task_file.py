"""A YAML file of tasks, and what is written in its place by mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from st_distill.nearest import nearest

__all__ = ["entries_of_file", "is_task_file"]


def is_task_file(word: str) -> bool:
    """Whether a word names a YAML file that is meant for tasks: one with ``tasks``, or with what no recipe has."""
    path = Path(word)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    try:
        content = _content(path)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return False  # a recipe's reader says where it is broken, or reads what is a date to this one
    return not isinstance(content, Mapping) or _meant(content) is not None


def entries_of_file(word: str) -> list[Any]:
    """What stands under ``tasks`` in a file that is meant for tasks.

    Raises:
        ValueError: where that is no list with a task in it, or not alone there.
    """
    content = _content(Path(word))
    wanted = f"{word} must have 'tasks', a list of files, folders and data sets."
    if not isinstance(content, Mapping):
        found = {type(None): "an empty file", list: "a list without that name"}.get(type(content), repr(content))
        raise ValueError(
            f"{wanted} Got {found} instead: write 'tasks:' and below it a line '- data/pairs.tsv' for each."
        )
    if (meant := _meant(content)) != "tasks":
        remedy = ": put it into the list." if meant == "source" else "; did you mean 'tasks'?"
        raise ValueError(f"{wanted} Got '{meant}' instead{remedy}")
    if unknown := [str(field) for field in content if field != "tasks"]:
        raise ValueError(
            f"{word} must have 'tasks' alone. Got '{unknown[0]}' beside it: say what is one task's there, and what is "
            "all tasks' as an option."
        )
    entries = content["tasks"]
    if not isinstance(entries, list) or not entries:
        found = type(entries).__name__ if entries or entries == {} else "an empty one"
        raise ValueError(f"The 'tasks' of {word} must be a list with a task in it. Got {found} instead.")
    return entries


def _content(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _meant(content: Mapping[Any, Any]) -> str | None:
    """The field that makes a mapping one of tasks: ``tasks``, a name like it, or the ``source`` of a single task."""
    names = [str(name) for name in content]
    alike = (name for name in names if nearest(name, ["tasks"]))
    return "tasks" if "tasks" in names else next(alike, "source" if "source" in names else None)
