"""What was measured of a model, as the figures of a table: in a terminal, on a page, on a model card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Column", "defined", "percent", "quality_columns", "scores_of", "task_table"]

Scores = dict[str, float | None]
"""Dimension, in decimal digits, to score; None where it is not defined."""


class Column(NamedTuple):
    """Scores of one metric.

    Attributes:
        metric: "spearman" and "overlap@10" (or another number) of the student against its teachers, "ndcg@10" of retrieval,
            "sts" of similarity.
        model: "student", or a teacher; None where the student is compared with its teachers.
        scores: at each dimension that the model has.
    """

    metric: str
    model: str | None
    scores: Scores


def defined(scores: Mapping[str, float | None]) -> Scores:
    """The scores, with None for one that is no number: an evaluator gives NaN, and JSON has null."""
    return {dim: None if score is None or math.isnan(score) else score for dim, score in scores.items()}


def percent(share: float | None) -> str:
    """A share or a correlation times 100; a dash for None and NaN."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def quality_columns(results: Mapping[str, Any]) -> list[Column]:
    """The columns of the table by dimension that are about texts.

    Args:
        results: what ``st_distill.evaluation.evaluate`` returned, or the same read back from JSON.
    """
    columns = []
    if fidelity := results.get("fidelity"):
        columns.append(Column("spearman", None, defined(fidelity["spearman"])))
        columns.append(Column(f"overlap@{fidelity['neighbours']}", None, defined(fidelity["overlap"])))
    for part, key, metric in (("retrieval", "ndcg@10", "ndcg@10"), ("similarity", "spearman", "sts")):
        if measured := results.get(part):
            columns += [Column(metric, model, defined(own[key])) for model, own in measured["scores"].items()]
    return columns


def scores_of(results: Mapping[str, Any], metric: str) -> dict[str, Scores]:
    """Model to scores of one of the metrics of `quality_columns`; empty where it was not measured."""
    return {column.model or "student": column.scores for column in quality_columns(results) if column.metric == metric}


def task_table(results: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The tasks' main metrics times 100, with the means of each kind, of the tasks and of the kinds.

    Args:
        results: what ``st_distill.evaluation.evaluate_tasks`` returned, or the same read back from JSON.

    Returns:
        A heading for each dimension and precision, and rows of name, kind, metric and figures; of a mean the metric is empty,
        and the kind too where it is one over several.
    """
    places = [(str(dim), precision) for precision in results["precisions"] for dim in results["dims"]]
    averages = [results["averages"][dim][precision] for dim, precision in places]
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for task in results["tasks"]:
        by_kind.setdefault(task["kind"], []).append(task)
    rows: list[tuple[str, ...]] = []
    for kind, tasks in by_kind.items():
        for task in tasks:
            scores = [task["scores"][dim][precision][task["metric"]] for dim, precision in places]
            rows.append((task["name"], kind, task["metric"], *map(percent, scores)))
        if len(tasks) > 1:
            rows.append((f"mean of {len(tasks)}", kind, "", *(percent(means["kinds"][kind]) for means in averages)))
    if len(by_kind) > 1:
        for label, key in (("mean of tasks", "tasks"), ("mean of kinds", "mean of kinds")):
            rows.append((label, "", "", *(percent(means[key]) for means in averages)))
    return [dim if precision == "float32" else f"{dim} {precision}" for dim, precision in places], rows
