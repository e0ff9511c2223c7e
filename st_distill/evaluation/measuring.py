"""Tasks of every source measured one after the other, so that one that fails takes nothing from the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from st_distill.evaluation.base import checked_dims, dims_of, width_of
from st_distill.evaluation.failures import failure
from st_distill.evaluation.mteb_tasks import evaluate_mteb, find_mteb_tasks
from st_distill.evaluation.results import evaluate_tasks, with_averages
from st_distill.evaluation.sweep import Precision, checked_precisions
from st_distill.evaluation.task_list import tasks_of_entries
from st_distill.evaluation.tasks import Task, default_name, distinct_names, read_task
from st_distill.evaluation.truncation import tell_truncated, texts_of

__all__ = ["measure_entries", "measure_tasks", "require_modalities"]


def require_modalities(model: SentenceTransformer, tasks: Sequence[Task], mteb_tasks: Sequence[Any] = ()) -> None:
    """Refuse the tasks that hold what a model does not take, before anything is encoded.

    Raises:
        ValueError: for a task with pictures, say, and a model of texts alone.
    """
    known = [(task.name, task.modalities) for task in tasks]
    known += [(task.metadata.name, tuple(task.metadata.modalities)) for task in mteb_tasks]
    for name, modalities in known:
        for modality in modalities:
            if not model.supports(modality):
                raise ValueError(
                    f"The task '{name}' has inputs of the kind {modality}, which the model does not take: it takes "
                    f"{', '.join(map(str, model.modalities))}. Leave the task out, or measure a model that takes them."
                )


def measure_tasks(
    model: SentenceTransformer,
    tasks: Sequence[Task],
    mteb_tasks: Sequence[Any] = (),
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[Precision] = ("float32",),
    prompts: Mapping[str, str] | None = None,
    batch_size: int = 32,
    folder: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Measure a model on tasks from data and on those of MTEB; one that fails is told, and the others are measured.

    Texts that the model does not read to their end are told too: of all tasks from data before the first is measured, of a
    task of MTEB behind it.

    Args:
        model: any sentence-transformers model.
        tasks: what `read_task` gave.
        mteb_tasks: what `find_mteb_tasks` gave.
        dims, precisions, prompts: as in `evaluate_tasks`.
        batch_size: texts of MTEB's tasks encoded at a time.
        folder: where MTEB's own results go, as in `evaluate_mteb`.

    Returns:
        What `evaluate_tasks` returns; where tasks have failed, with "failed", a list of their "name" and "error" each.

    Raises:
        ValueError: for dimensions and precisions that the model has not.
    """
    how: dict[str, Any] = {
        "dims": dims_of(checked_dims(dims), width_of(model)),
        "precisions": checked_precisions(precisions),
        "prompts": prompts,
    }
    measured: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []

    def attempt(name: str, measure: Callable[[], list[dict[str, Any]]]) -> None:
        try:
            measured.extend({**entry, "name": name} for entry in measure())
        except Exception as error:  # of a model, of memory, of MTEB's code: the others are measured all the same
            failed.append(failure(name, error))

    names = distinct_names([*(task.name for task in tasks), *(task.metadata.name for task in mteb_tasks)])
    tell_truncated(model, {name: texts_of(task.evaluator, model, prompts) for name, task in zip(names, tasks)})
    for name, task in zip(names, tasks):
        attempt(name, lambda task=task: _measured(model, task, how))  # type: ignore[misc]
    for name, task in zip(names[len(tasks) :], mteb_tasks):
        attempt(
            name,
            lambda task=task: evaluate_mteb(model, [task], batch_size=batch_size, folder=folder, **how),  # type: ignore[misc]
        )
    results = {"dims": list(how["dims"]), "precisions": list(how["precisions"]), "tasks": measured}
    return with_averages(results) | ({"failed": failed} if failed else {})


def _measured(model: SentenceTransformer, task: Task, how: Mapping[str, Any]) -> list[dict[str, Any]]:
    require_modalities(model, [task])
    return evaluate_tasks(model, [task], **how)["tasks"]


def measure_entries(
    model: SentenceTransformer, entries: Sequence[str | Mapping[str, Any]], *, dims: Sequence[int] | None = None
) -> dict[str, Any]:
    """Measure a model on tasks, those of MTEB included, in float32.

    Args:
        model: any sentence-transformers model.
        entries: as `tasks_of_entries` takes them.
        dims: prefixes of the vectors; None: the full width alone.

    Returns:
        What `measure_tasks` returns; tasks whose data cannot be read are among those that have failed.
    """
    specs, names = tasks_of_entries(entries, {})
    tasks: list[Task] = []
    found: list[Any] = []
    failed: list[dict[str, str]] = []
    for spec in specs:
        try:
            tasks += read_task(spec)
        except Exception as error:
            failed.append(failure(spec.name or default_name(spec.source), error))
    for name in names:
        try:
            found += find_mteb_tasks([name])
        except (ValueError, ImportError) as error:
            failed.append(failure(name, error))
    results = measure_tasks(model, tasks, found, dims=dims)
    failed += results.get("failed", [])
    return results | ({"failed": failed} if failed else {})
