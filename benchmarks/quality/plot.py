"""One picture per claim: quality against dimension, against the time of training, and against the size of the model."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.methods import DIMS
from benchmarks.quality.results import TASKS, Line, groups, main_score
from st_distill.report.pictures import COLOURS

#: What the legend calls a method; others go by their own name.
LABELS = {
    "st-distill": "st-distill, default recipe",
    "cosine-matryoshka": "EmbedDistillLoss in MatryoshkaLoss",
    "cosine": "EmbedDistillLoss",
    "published": "the published recipe",
    "untrained": "student, not trained",
    "teacher": "teacher, cut",
    "teacher-pca": "teacher, cut on principal axes",
    "teacher-learned": "teacher, cut on learned axes",
}
#: Of the teacher's axes the pictures show these; the table has all.
_TEACHERS = ("teacher", "teacher-pca", "teacher-learned")
_DIM = 128
#: Method to (colour, marker), the same in every picture; others than these share one.
_LOOKS = {
    "st-distill": ("line1", "o"),
    "cosine-matryoshka": ("line2", "s"),
    "cosine": ("line3", "P"),
    "published": ("line4", "^"),
    "untrained": ("line5", "v"),
    "teacher": ("muted", "o"),
    "teacher-pca": ("muted", "D"),
    "teacher-learned": ("muted", "X"),
}
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOURS["rule"][0],
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.fonttype": "none",
    "svg.hashsalt": "st-distill",
    "figure.facecolor": COLOURS["paper"][0],  # a card of its own, the same on a light and on a dark page
    "savefig.facecolor": COLOURS["paper"][0],
    "font.family": ["DejaVu Sans"],
}

Points = list[tuple[float, float]]


def draw(lines: list[Line], split: str, out: Path) -> None:
    """Write dimension-<student>.svg for every student, and time.svg and size.svg, into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [line for line in lines if line["split"] == split]
    with rc_context(_STYLE):
        for student in sorted({line["student"] for line in lines} - {"teacher"}):
            _against_dimension(lines, split, student, out / f"dimension-{student}.svg")
        _against_time(lines, out / "time.svg")
        _against_size(lines, out / "size.svg")


def _against_dimension(lines: list[Line], split: str, student: str, path: Path) -> None:
    figure, axes = _figure(f"Quality against dimension, {student} student", "dimensions kept")
    for name, by_dim in groups(lines, split, student).items():
        if name.startswith("teacher") and name not in _TEACHERS:
            continue
        points = sorted((dim, statistics.fmean(scores["mean"])) for dim, scores in by_dim.items() if scores["mean"])
        _line(axes, name, points, "--" if name in _TEACHERS else "-")
    axes.set_xscale("log", base=2)
    axes.set_xticks(DIMS, list(map(str, DIMS)), minor=False)
    _save(figure, axes, path)


def _against_time(lines: list[Line], path: Path) -> None:
    """The runs of the three-layer student, and the teacher as levels to be reached."""
    figure, axes = _figure(f"Quality against time of training, {_DIM} dimensions", "training, minutes")
    runs = _runs([line for line in lines if line["student"] in ("3-layer", "teacher")])
    for name, points in _by_name(runs, "seconds").items():
        if name.startswith("teacher"):
            if name in _TEACHERS:
                axes.axhline(points[0][1], color=COLOURS["muted"][0], linestyle="--", linewidth=1)
                axes.annotate(
                    LABELS[name], (1, points[0][1]), xycoords=("axes fraction", "data"), ha="right", va="bottom"
                )
            continue
        _line(axes, name, sorted((seconds / 60, score) for seconds, score in points), "none")
    axes.set_xlim(left=0)
    _save(figure, axes, path)


def _against_size(lines: list[Line], path: Path) -> None:
    """Each method's best run of every student."""
    figure, axes = _figure(f"Quality against size, {_DIM} dimensions", "parameters, millions")
    for name, points in _by_name(_runs(lines), "parameters").items():
        if name.startswith("teacher") and name not in _TEACHERS:
            continue
        best = {size: max(score for other, score in points if other == size) for size, _ in points}
        _line(axes, name, sorted((size / 1e6, score) for size, score in best.items()), ":")
    _save(figure, axes, path)


def _runs(lines: list[Line]) -> list[list[Line]]:
    """The lines at one dimension of each run that has all tasks."""
    runs: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line["dim"] == _DIM and line["task"] in TASKS:
            runs[line["run"]].append(line)
    return [of_run for of_run in runs.values() if len(of_run) == len(TASKS)]


def _by_name(runs: list[list[Line]], field: str) -> dict[str, Points]:
    points: dict[str, Points] = defaultdict(list)
    for of_run in runs:
        points[of_run[0]["name"]].append((of_run[0][field], statistics.fmean(map(main_score, of_run))))
    return points


def _figure(title: str, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=label, ylabel="mean of the tasks, x 100")
    return figure, axes


def _line(axes: Axes, name: str, points: Points, style: str) -> None:
    method, _, runs = name.partition(" (")
    colour, marker = _LOOKS.get(method, ("line6", "."))
    label = LABELS.get(method, method) + (f" ({runs}" if runs else "")
    axes.plot(*zip(*points), color=COLOURS[colour][0], marker=marker, linestyle=style, label=label)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
