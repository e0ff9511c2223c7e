"""One picture per claim: quality against dimension, against the seconds of training, and against the size of the model."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.quality.results import TASKS, Line, groups, main_score

_LABEL = "mean of the tasks"


def draw(lines: list[Line], split: str, out: Path) -> None:
    """Write dimension-<student>.png for every student, and time.png and size.png, into ``out``."""
    for student in sorted({line["student"] for line in lines} - {"teacher"}):
        _against_dimension(lines, split, student, out / f"dimension-{student}.png")
    for field, label in (("seconds", "training, seconds"), ("parameters", "parameters")):
        _against(lines, split, field, label, out / f"{'time' if field == 'seconds' else 'size'}.png")


def _against_dimension(lines: list[Line], split: str, student: str, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, by_dim in groups(lines, split, student).items():
        points = sorted((dim, statistics.fmean(scores["mean"])) for dim, scores in by_dim.items() if scores["mean"])
        style = "--" if name.startswith("teacher") else "-"
        axes.plot([point[0] for point in points], [point[1] for point in points], style, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("dimensions")
    axes.set_title(student)
    _save(figure, axes, path)


def _against(lines: list[Line], split: str, field: str, label: str, path: Path) -> None:
    """The mean at 128 dimensions of every run that trained, against one of its fields."""
    runs: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line["split"] == split and line["dim"] == 128 and line["task"] in TASKS:
            runs[line["run"]].append(line)
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for of_run in runs.values():
        if len(of_run) == len(TASKS):
            points[of_run[0]["name"]].append((of_run[0][field], statistics.fmean(map(main_score, of_run))))
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, values in points.items():
        axes.plot(*zip(*sorted(values)), marker="o", linestyle="none" if field == "seconds" else ":", label=name)
    if field == "parameters":
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_title("128 dimensions")
    _save(figure, axes, path)


def _save(figure: pyplot.Figure, axes: pyplot.Axes, path: Path) -> None:
    axes.set_ylabel(_LABEL)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
