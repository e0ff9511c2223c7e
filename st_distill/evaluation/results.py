"""Tasks measured, and their figures as a table, JSON and CSV."""

from __future__ import annotations

import csv
import io
import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer

from st_distill.evaluation.base import checked_dims, checked_list, dims_of, width_of
from st_distill.evaluation.columns import KINDS
from st_distill.evaluation.sweep import Precision, SweepEvaluator, checked_precisions
from st_distill.evaluation.tasks import Task, distinct_names

__all__ = ["CSV_HEADER", "csv_of_results", "evaluate_tasks", "with_averages"]

logger = logging.getLogger(__name__)

#: Of the table of `csv_of_results`.
CSV_HEADER = ("task", "kind", "dimension", "precision", "metric", "main", "score")


def evaluate_tasks(
    model: SentenceTransformer,
    tasks: Sequence[Task],
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[Precision] = ("float32",),
    prompts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure a model on tasks, at every dimension and precision, each task's texts encoded once.

    Args:
        model: any sentence-transformers model.
        tasks: what `read_task` gave.
        dims: prefixes of the vectors; None: the full width alone.
        precisions: of float32, int8 and binary.
        prompts: put before the texts instead of the model's own, as in `SweepEvaluator`.

    Returns:
        A dictionary that JSON can hold: "dims", "precisions", "tasks" (each with its "name", by `distinct_names`, "kind",
        "metric", number of "examples", and "scores": dimension to precision to metric to figure, None where it is not
        defined) and "averages", see `with_averages`.
    """
    for task in checked_list("tasks", tasks, "tasks"):
        if not isinstance(task, Task):
            raise TypeError(
                f"The 'tasks' parameter must hold what read_task gives. Got {type(task).__name__} in it instead: "
                "read it first."
            )
    wanted, kept = dims_of(checked_dims(dims), width_of(model)), checked_precisions(precisions)
    measured = []
    for task, name in zip(tasks, distinct_names(task.name for task in tasks)):
        logger.info("%s, %s, %d example%s.", name, task.kind, task.examples, "" if task.examples == 1 else "s")
        found = SweepEvaluator(task.evaluator, dims=wanted, precisions=kept, prompts=prompts)(model)
        scores = {str(dim): {precision: _of(found, dim, precision) for precision in kept} for dim in wanted}
        measured.append(
            {
                "name": name,
                "kind": task.kind,
                "metric": task.metric,
                "examples": task.examples,
                "scores": scores,
            }
        )
    results = {"dims": list(wanted), "precisions": list(kept), "tasks": measured}
    return with_averages(results)


def _of(found: Mapping[str, float], dim: int, precision: Precision) -> dict[str, float | None]:
    suffix = f"_{dim}" if precision == "float32" else f"_{dim}_{precision}"
    return {
        metric.removesuffix(suffix): float(value) if math.isfinite(value) else None
        for metric, value in found.items()
        if metric.endswith(suffix)
    }


def with_averages(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results with their tasks in the order of `KINDS`, and the means of the tasks' metrics as "averages".

    These are dimension to precision to ``{"kinds": {kind: mean over its tasks}, "tasks": mean over all tasks, "mean of
    kinds": mean over the kinds}``, as MTEB's tables have them; None where one of the figures is not defined, or there is none.
    """

    def mean(values: Iterable[float | None]) -> float | None:
        values = list(values)
        defined = [value for value in values if value is not None]
        return statistics.fmean(defined) if defined and len(defined) == len(values) else None

    known = [*KINDS, *sorted({task["kind"] for task in results["tasks"]} - set(KINDS))]
    tasks = sorted(results["tasks"], key=lambda task: known.index(task["kind"]))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for dim in map(str, results["dims"]):
        found[dim] = {}
        for precision in results["precisions"]:
            by_kind: dict[str, list[float | None]] = {}
            for task in tasks:
                by_kind.setdefault(task["kind"], []).append(task["scores"][dim][precision][task["metric"]])
            kinds = {kind: mean(scores) for kind, scores in by_kind.items()}
            found[dim][precision] = {
                "kinds": kinds,
                "tasks": mean(score for scores in by_kind.values() for score in scores),
                "mean of kinds": mean(kinds.values()),
            }
    return {**results, "tasks": tasks, "averages": found}


def csv_of_results(results: Mapping[str, Any]) -> str:
    """Every figure as a row: task, kind, dimension, precision, metric, whether it is the task's main one, and the score."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for task in results["tasks"]:
        for dim, by_precision in task["scores"].items():
            for precision, scores in by_precision.items():
                for metric, score in scores.items():
                    is_main = metric == task["metric"]
                    writer.writerow([task["name"], task["kind"], dim, precision, metric, is_main, score])
    return file.getvalue()
