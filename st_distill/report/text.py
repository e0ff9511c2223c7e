"""What ``st_distill.evaluation.evaluate`` found, as plain text for a terminal and as JSON for a program."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from st_distill.figures import percent, quality_columns, task_table
from st_distill.files import write_json, write_text

__all__ = ["findings_report", "report", "task_report", "write_report"]


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
    columns = quality_columns(results)
    if not columns:
        return None
    notes: list[str] = []
    if fidelity := results.get("fidelity"):
        nearest = fidelity["neighbours"]
        notes += [
            f"spearman: student's and teacher's similarities over pairs of {_count(fidelity['texts'], 'held-out text')}",
            f"overlap@{nearest}: of a text's {nearest} nearest by the teacher, how many the student has among its own",
        ]
    if retrieval := results.get("retrieval"):
        notes.append(f"ndcg@10: retrieval, {_count(retrieval['pairs'], 'query and document pair')}")
    if similarity := results.get("similarity"):
        notes.append(f"sts: spearman with the given scores of {_count(similarity['pairs'], 'pair')}")
    headers = [column.metric if column.model is None else f"{column.metric} {column.model}" for column in columns]
    rows = [["dimensions", *headers]]
    rows += [[dim, *(percent(column.scores.get(dim)) for column in columns)] for dim in map(str, results["dims"])]
    return "\n".join(notes), _aligned(rows)


def _images(images: Mapping[str, Any], dims: Sequence[int]) -> str:
    at = [key for key in images if key.startswith("recall@")]
    rows = [["dimensions", *at], *([str(dim), *(percent(images[key][str(dim)]) for key in at)] for dim in dims)]
    rows.append(["chance", *(percent(images[key.replace("recall", "chance")]) for key in at)])
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
    headers, rows = task_table(results)
    table = [["task", "kind", "metric", *headers], *rows]
    parts = ["Tasks by dimension, times 100", _aligned(table, words=3)] if rows else []
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
