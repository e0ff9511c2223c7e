"""The tasks that a command line or a recipe names, in words, mappings or a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from st_distill.evaluation.columns import KINDS
from st_distill.evaluation.task_file import entries_of_file, is_task_file
from st_distill.evaluation.tasks import TaskSpec, default_name, distinct_names, parts_of_name
from st_distill.options import in_yaml

__all__ = ["MTEB", "tasks_of_entries", "tasks_of_words"]

#: What stands before the name of a task of MTEB.
MTEB = "mteb:"

_FIELDS = [field.name for field in fields(TaskSpec)]
#: What tells two tasks of one name apart: fields whose value says enough, and others.
_PLAIN = ("config", "split", "kind", "revision")
_NAMED = ("limit", "train_split", "samples_per_label", "experiments")


def tasks_of_words(words: Sequence[str], defaults: Mapping[str, Any]) -> tuple[list[TaskSpec], list[str]]:
    """The tasks from data, and the names of those of MTEB.

    Args:
        words: of each task a file, a folder or the name of a data set on the hub, ``kind:`` before it or not; ``mteb:``
            and the name of a task of MTEB; or a YAML file with a list ``tasks`` of such words and of mappings with the
            fields of `TaskSpec`.
        defaults: fields of `TaskSpec` for what does not have its own.

    A task without a name of its own, whose default one another has too, gets as many of its folders in front as tell them
    apart. Of one source in several tasks, and of a name that is given twice, each gets what its fields say besides behind it
    (``pairs (validation)``), or else a number. A name that is given stays as it is.

    Raises:
        ValueError: for what is none of these, and for a name that is given to two tasks.
    """
    specs: list[TaskSpec] = []
    names: list[str] = []
    for word in words:
        entries: list[Any] = [word]
        place = ""
        if is_task_file(word):
            place = f" of {word}"
            entries = entries_of_file(word)
        more_specs, more_names = _read(entries, defaults, place)
        specs += more_specs
        names += more_names
    return _told_apart(specs, names), names


def tasks_of_entries(
    entries: Sequence[str | Mapping[str, Any]], defaults: Mapping[str, Any]
) -> tuple[list[TaskSpec], list[str]]:
    """As `tasks_of_words`, of a list of words and of mappings with the fields of `TaskSpec`."""
    specs, names = _read(entries, defaults, "")
    return _told_apart(specs, names), names


def _read(entries: Sequence[Any], defaults: Mapping[str, Any], place: str) -> tuple[list[TaskSpec], list[str]]:
    """The tasks as they stand in a list, and ``place`` in an error's sentence."""
    if isinstance(entries, (str, Mapping)):
        raise TypeError(f"The 'tasks'{place} must be a list. Got {entries!r} instead: put it in a list.")
    specs: list[TaskSpec] = []
    names: list[str] = []
    for entry in entries:
        if isinstance(entry, str) and entry.startswith(MTEB):
            names.append(_mteb_name(entry, place))
        elif isinstance(entry, str):
            specs.append(_spec(entry, defaults))
        elif isinstance(entry, Mapping):
            if unknown := [str(name) for name in entry if name not in _FIELDS]:
                raise ValueError(f"A task{place} must have fields of {', '.join(_FIELDS)}. Got '{unknown[0]}' instead.")
            if "source" not in entry:
                raise ValueError(f"A task{place} must have a 'source', its file, folder or data set. Got none instead.")
            source = entry["source"]
            if isinstance(source, str) and source.startswith(MTEB):
                if beside := [str(field) for field in entry if field != "source"]:
                    raise ValueError(
                        f"The task '{source}'{place} is as MTEB has it, and takes no other fields. Got '{beside[0]}' beside "
                        "it: leave it out."
                    )
                names.append(_mteb_name(source, place))
            else:
                specs.append(TaskSpec(**{**defaults, **entry}))
        else:
            raise ValueError(f"A task{place} must be a word or a mapping of fields. Got {in_yaml(entry)} instead.")
    return specs, names


def _mteb_name(word: str, place: str) -> str:
    name = word.removeprefix(MTEB)
    if not name.strip():
        raise ValueError(
            f"A task{place} must have its name after {MTEB}, as in {MTEB}STSBenchmark. Got '{word}' alone."
        )
    return name


def _told_apart(specs: list[TaskSpec], names: Sequence[str]) -> list[TaskSpec]:
    """The tasks; those without a name get one where others have theirs: with as much of their sources in front as tells them
    apart, or with what is theirs behind."""
    given = [spec.name for spec in specs if spec.name is not None]
    for place, name in enumerate(given):
        if name in given[:place] or name in names:
            raise ValueError(
                f"The 'name' of a task must be its alone. Got '{name}' for two of them: give each a name of its own."
            )
    unnamed = [spec for spec in specs if spec.name is None]
    own = [default_name(spec.source) for spec in unnamed]
    told = []
    for spec, name in zip(unnamed, own):
        twins = [other for other, theirs in zip(unnamed, own) if theirs == name and other.source != spec.source]
        told.append(_with_folders(spec, twins) if twins or name in given or name in names else name)
    said = [
        _with_fields(spec, name, [other for other, theirs in zip(unnamed, told) if theirs == name])
        for spec, name in zip(unnamed, told)
    ]
    distinct = iter(zip(own, distinct_names(said, taken=[*given, *names])))
    return [spec if spec.name is not None else _named(spec, *next(distinct)) for spec in specs]


def _named(spec: TaskSpec, own: str, name: str) -> TaskSpec:
    return spec if name == own else replace(spec, name=name)


def _with_fields(spec: TaskSpec, name: str, twins: Sequence[TaskSpec]) -> str:
    """The name with those fields of a task behind it that others of that name have not."""
    said = []
    for field in (*_PLAIN, *_NAMED):
        value = getattr(spec, field)
        if value != getattr(TaskSpec, field) and any(getattr(twin, field) != value for twin in twins):
            told = "all" if value is None else str(value)
            said.append(told if field in _PLAIN else f"{field.replace('_', ' ')} {told}")
    return f"{name} ({'; '.join(said)})" if said else name


def _with_folders(spec: TaskSpec, twins: Sequence[TaskSpec]) -> str:
    for with_split in (False, True):
        own, *others = (parts_of_name(each.source, with_split=with_split) for each in (spec, *twins))
        for depth in range(2, max(map(len, (own, *others))) + 1):
            if all(own[-depth:] != other[-depth:] for other in others):
                return "/".join(own[-depth:])
    return Path(spec.source).name  # files that differ in their endings alone


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
