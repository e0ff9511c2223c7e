"""What ``st_distill.evaluation.evaluate`` found, as plain text for a terminal and as JSON for a program."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from st_distill.files import write_json, write_text

__all__ = ["findings_report", "report", "task_report", "write_report"]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _aligned(rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Columns two spaces apart, the first ``words`` to the left, numbers to the right; a rule below the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def _quality(results: Mapping[str, Any]) -> tuple[str, str] | None:
    """What the columns of the table by dimension mean, and the table."""
    dims = [str(dim) for dim in results["dims"]]
    notes: list[str] = []
    columns: list[tuple[str, Mapping[str, float | None]]] = []
    fidelity = results.get("fidelity")
    if fidelity:
        nearest = fidelity["neighbours"]
        columns += [("spearman", fidelity["spearman"]), (f"overlap@{nearest}", fidelity["overlap"])]
        notes += [
            f"spearman: student's and teacher's similarities over pairs of {_count(fidelity['texts'], 'held-out text')}",
            f"overlap@{nearest}: of a text's {nearest} nearest by the teacher, how many the student has among its own",
        ]
    retrieval = results.get("retrieval")
    if retrieval:
        columns += [(f"ndcg@10 {name}", scores["ndcg@10"]) for name, scores in retrieval["scores"].items()]
        notes += [f"ndcg@10: retrieval, {_count(retrieval['pairs'], 'query and document pair')}"]
    similarity = results.get("similarity")
    if similarity:
        columns += [(f"sts {name}", scores["spearman"]) for name, scores in similarity["scores"].items()]
        notes += [f"sts: spearman with the given scores of {_count(similarity['pairs'], 'pair')}"]
    if not columns:
        return None
    rows = [["dimensions", *(header for header, _ in columns)]]
    rows += [[dim, *(_percent(scores.get(dim)) for _, scores in columns)] for dim in dims]
    return "\n".join(notes), _aligned(rows)


def _images(images: Mapping[str, Any], dims: Sequence[int]) -> str:
    at = [key for key in images if key.startswith("recall@")]
    rows = [["dimensions", *at], *([str(dim), *(_percent(images[key][str(dim)]) for key in at)] for dim in dims)]
    rows.append(["chance", *(_percent(images[key.replace("recall", "chance")]) for key in at)])
    return (
        f"Text to image: {_count(images['captions'], 'caption')} among {_count(images['images'], 'unseen image')}\n\n"
        + _aligned(rows)
    )


def _models(models: Mapping[str, Mapping[str, float]]) -> str:
    rows = [["model", "parameters", "size", "texts per second"]]
    for name, model in models.items():
        speed = model.get("texts_per_second")
        rows.append(
            [
                name,
                f"{model['parameters'] / 1e6:.1f} M",
                f"{model['megabytes']:.0f} MB",
                "-" if speed is None else f"{speed:,.0f}",
            ]
        )
    return _aligned(rows)


def _not_measured(failed: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(f"Not measured: {entry['name']} ({entry['error']})" for entry in failed)


def report(results: Mapping[str, Any]) -> str:
    """The tables, as plain text of several lines without a final newline.

    Shares and correlations stand times 100; "-" is a dimension that a model does not have.

    Args:
        results: what ``st_distill.evaluation.evaluate`` returned, or the same read back from JSON.
    """
    parts = []
    quality = _quality(results)
    if quality:
        notes, table = quality
        parts.append(f"Quality by dimension, times 100\n\n{table}\n\n{notes}")
    if results.get("images"):
        parts.append(_images(results["images"], results["dims"]))
    if results.get("tasks"):
        parts.append(task_report(results["tasks"]))
    if results.get("models"):
        parts.append(_models(results["models"]))
    if results.get("failed"):
        parts.append(_not_measured(results["failed"]))
    return "\n\n".join(parts)


def findings_report(findings: Sequence[Mapping[str, str]]) -> str:
    """What looked wrong in a run, a paragraph each, as plain text without a final newline.

    Args:
        findings: each a `st_distill.diagnosis.Finding`'s fields and "when", of which there is one at least.
    """
    told = [
        f"{entry['name']} ({entry['when']}): {entry['seen']}.\n  That means: {entry['means']}.\n"
        f"  What to do: {entry['remedy']}."
        for entry in findings
    ]
    return "\n\n".join(["What looks wrong", *told])


def task_report(results: Mapping[str, Any]) -> str:
    """The tasks' main metrics times 100, with the averages of the kinds, as plain text without a final newline.

    Args:
        results: what ``st_distill.evaluation.evaluate_tasks`` returned, or the same read back from JSON.
    """
    places = [(str(dim), precision) for precision in results["precisions"] for dim in results["dims"]]
    headers = [dim if precision == "float32" else f"{dim} {precision}" for dim, precision in places]
    rows = [["task", "kind", "metric", *headers]]

    def average(label: str, kind: str, find: Callable[[Mapping[str, Any]], float | None]) -> None:
        means = [_percent(find(results["averages"][dim][precision])) for dim, precision in places]
        rows.append([label, kind, "", *means])

    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for task in results["tasks"]:
        by_kind.setdefault(task["kind"], []).append(task)
    for kind, tasks in by_kind.items():
        for task in tasks:
            scores = [task["scores"][dim][precision][task["metric"]] for dim, precision in places]
            rows.append([task["name"], kind, task["metric"], *map(_percent, scores)])
        if len(tasks) > 1:
            average(f"mean of {len(tasks)}", kind, lambda means, kind=kind: means["kinds"][kind])  # type: ignore[misc]
    if len(by_kind) > 1:
        average("mean of tasks", "", lambda means: means["tasks"])
        average("mean of kinds", "", lambda means: means["mean of kinds"])
    parts = ["Tasks by dimension, times 100", _aligned(rows, words=3)] if results["tasks"] else []
    if results.get("failed"):
        parts.append(_not_measured(results["failed"]))
    return "\n\n".join(parts)


def write_report(results: Mapping[str, Any], folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``evaluation.json`` (the results) and ``evaluation.txt`` (the tables) into ``folder``; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers, text = folder / "evaluation.json", folder / "evaluation.txt"
    write_json(numbers, results)
    write_text(text, report(results) + "\n")
    return numbers, text
