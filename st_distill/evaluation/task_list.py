"""The tasks that a command line or a recipe names, in words, mappings or a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from sentence_transformers import SentenceTransformer

from st_distill.evaluation.columns import KINDS
from st_distill.evaluation.mteb_tasks import evaluate_mteb, find_mteb_tasks
from st_distill.evaluation.results import evaluate_tasks, with_averages
from st_distill.evaluation.tasks import TaskSpec, read_task

__all__ = ["MTEB", "is_task_file", "measure_entries", "tasks_of_entries", "tasks_of_words"]

#: What stands before the name of a task of MTEB.
MTEB = "mteb:"

_FIELDS = [field.name for field in dataclasses.fields(TaskSpec)]


def is_task_file(word: str) -> bool:
    """Whether a word names a YAML file with ``tasks`` in it, which no recipe has."""
    path = Path(word)
    return path.suffix in (".yaml", ".yml") and path.is_file() and "tasks" in _mapping(path)


def tasks_of_words(words: Sequence[str], defaults: Mapping[str, Any]) -> tuple[list[TaskSpec], list[str]]:
    """The tasks from data, and the names of those of MTEB.

    Args:
        words: of each task a file, a folder or the name of a data set on the hub, ``kind:`` before it or not; ``mteb:``
            and the name of a task of MTEB; or a YAML file with a list ``tasks`` of such words and of mappings with the
            fields of `TaskSpec`.
        defaults: fields of `TaskSpec` for what does not have its own.

    Raises:
        ValueError: for what is none of these.
    """
    specs: list[TaskSpec] = []
    names: list[str] = []
    for word in words:
        entries: list[Any] = [word]
        place = ""
        if is_task_file(word):
            place = f" of {word}"
            entries = _mapping(Path(word))["tasks"]
            if not isinstance(entries, list) or not entries:
                found = "an empty one" if entries == [] else type(entries).__name__
                raise ValueError(f"The 'tasks'{place} must be a list with a task in it. Got {found} instead.")
        more_specs, more_names = tasks_of_entries(entries, defaults, place=place)
        specs += more_specs
        names += more_names
    return specs, names


def tasks_of_entries(
    entries: Sequence[str | Mapping[str, Any]], defaults: Mapping[str, Any], *, place: str = ""
) -> tuple[list[TaskSpec], list[str]]:
    """As `tasks_of_words`, of a list of words and of mappings with the fields of `TaskSpec`.

    Args:
        entries: the list.
        defaults: as there.
        place: where it stands, for an error's sentence.
    """
    specs: list[TaskSpec] = []
    names: list[str] = []
    for entry in entries:
        if isinstance(entry, str) and entry.startswith(MTEB):
            names.append(entry.removeprefix(MTEB))
        elif isinstance(entry, str):
            specs.append(_spec(entry, defaults))
        elif isinstance(entry, Mapping):
            if unknown := [str(name) for name in entry if name not in _FIELDS]:
                raise ValueError(f"A task{place} must have fields of {', '.join(_FIELDS)}. Got '{unknown[0]}' instead.")
            if "source" not in entry:
                raise ValueError(f"A task{place} must have a 'source', its file, folder or data set. Got none instead.")
            specs.append(TaskSpec(**{**defaults, **entry}))
        else:
            raise ValueError(
                f"A task{place} must be a word or a mapping of fields. Got {type(entry).__name__} instead."
            )
    return specs, names


def measure_entries(
    model: SentenceTransformer, entries: Sequence[str | Mapping[str, Any]], *, dims: Sequence[int] | None = None
) -> dict[str, Any]:
    """Measure a model on tasks, those of MTEB included, in float32.

    Args:
        model: any sentence-transformers model.
        entries: as `tasks_of_entries` takes them.
        dims: prefixes of the vectors; None: the full width alone.

    Returns:
        What `st_distill.evaluation.evaluate_tasks` returns.
    """
    specs, names = tasks_of_entries(entries, {})
    results = evaluate_tasks(model, [task for spec in specs for task in read_task(spec)], dims=dims)
    if names:
        results["tasks"] += evaluate_mteb(model, find_mteb_tasks(names), dims=dims)
    return with_averages(results)


def _spec(word: str, defaults: Mapping[str, Any]) -> TaskSpec:
    kind, colon, source = word.partition(":")
    if colon and kind in KINDS:
        if not source:
            raise ValueError(f"A task must have its file, folder or data set after the kind. Got '{word}' alone.")
        return TaskSpec(**{**defaults, "source": source, "kind": kind})
    if colon and Path(source).exists() and not Path(word).exists():
        raise ValueError(f"The kind of a task must be one of {', '.join(KINDS)}. Got '{kind}' in '{word}' instead.")
    if (Path(word) / "run.json").is_file():
        raise ValueError(
            f"{word} is the work folder of a run, where a task is expected: its recipe is {word}/recipe.yaml."
        )
    if (Path(word) / "modules.json").is_file():
        raise ValueError(
            f"{word} is a model, where a task is expected: st-distill eval MODEL TASK takes the model first."
        )
    return TaskSpec(**{**defaults, "source": word})


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}  # a recipe's reader says where it is broken
    return content if isinstance(content, Mapping) else {}
