"""One picture per claim: quality against dimension, against the time of training, and against the size of the model."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality.methods import DIMS
from benchmarks.quality.results import TASKS, Line, chosen, groups, labels, made_with, main_score
from st_distill.report.pictures import COLOURS

#: The methods of the pictures and what the legend calls them; the table has all.
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
_TEACHERS = ("teacher", "teacher-pca", "teacher-learned")
_DIM = 128
#: Method to (colour, marker), the same in every picture.
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


def draw(lines: list[Line], split: str, out: Path, *, steps: int | None = None, batch: int | None = None) -> list[str]:
    """Write dimension-<student>.svg for every student, size.svg, and time.svg where the time is known, into ``out``.

    Args:
        lines: the results.
        split: "dev" or "test".
        out: a folder.
        steps, batch: of what was trained, only runs of so many steps and pairs a step; time.svg has runs of all lengths.

    Returns:
        Sentences: which runs time.svg is of, and what is left out of the pictures.
    """
    out.mkdir(parents=True, exist_ok=True)
    lines = [line for line in chosen(lines, batch=batch) if line["split"] == split and line["name"] in LABELS]
    alike = _one_setting(chosen(lines, steps=steps))
    like = _of_like_runs(lines, alike)
    with rc_context(_STYLE):
        for student in sorted({line["student"] for line in lines} - {"teacher"}):
            _against_dimension(alike, split, student, out / f"dimension-{student}.svg")
        told = _against_time(like, out / "time.svg")
        _against_size(alike, out / "size.svg")
    drawn, named = {line["run"] for line in like}, labels(lines)
    others = {f"{named[line['run']]}, {line['student']}": None for line in lines if line["run"] not in drawn}
    return told + [f"no picture has {other}: later runs of that name are of another kind" for other in others]


def _one_setting(lines: list[Line]) -> list[Line]:
    """Of each method and student the runs that are equal but for their seeds: where there are several kinds, the last."""
    kinds: dict[tuple[str, str], dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        kinds[line["name"], line["student"]][json.dumps(made_with(line), sort_keys=True)].append(line)
    return [line for by_settings in kinds.values() for line in list(by_settings.values())[-1]]


def _of_like_runs(lines: list[Line], alike: list[Line]) -> list[Line]:
    """Those of the lines whose runs differ from one of ``alike`` in steps and seeds alone."""

    def kind(line: Line) -> tuple[str, str, str]:
        return line["name"], line["student"], json.dumps(made_with(line, "steps"), sort_keys=True)

    kinds = set(map(kind, alike))
    return [line for line in lines if kind(line) in kinds]


def _against_dimension(lines: list[Line], split: str, student: str, path: Path) -> None:
    figure, axes = _figure(f"Quality against dimension, {student} student", "dimensions kept")
    for name, by_dim in groups(lines, split, student).items():
        points = sorted((dim, statistics.fmean(scores["mean"])) for dim, scores in by_dim.items() if scores["mean"])
        _line(axes, name, points, "--" if name in _TEACHERS else "-")
    axes.set_xscale("log", base=2)
    axes.set_xticks(DIMS, list(map(str, DIMS)), minor=False)
    _save(figure, axes, path)


def _against_time(lines: list[Line], path: Path) -> list[str]:
    """The runs of the three-layer student, and the teacher on each of its axes as a level; sentences on what is drawn.

    Of several seeds the mean: of all in quality, in time of those that have noted it. The time is that of the processors. Other
    work on the machine lengthens it too, by its use of the caches.
    """
    figure, axes = _figure(f"Quality against time of training, {_DIM} dimensions", "training, minutes of one processor")
    by_steps: dict[str, dict[int, list[list[Line]]]] = defaultdict(lambda: defaultdict(list))
    for of_run in _runs([line for line in lines if line["student"] == "3-layer"]):
        by_steps[of_run[0]["name"]][of_run[0]["settings"]["steps"]].append(of_run)
    told, is_empty = [], True
    for name, runs in by_steps.items():
        points: Points = []
        for steps, of_seeds in sorted(runs.items()):
            # Whatever was not trained took no time. Runs of before the processors' time was noted have none.
            known = [
                run[0].get("cpu_seconds", 0.0) for run in of_seeds if "cpu_seconds" in run[0] or not run[0]["seconds"]
            ]
            about = f"{name} of {steps} steps" if of_seeds[0][0]["seconds"] else name
            if not known:
                told.append(f"time.svg leaves out {about}, whose time is not known")
                continue
            score = statistics.fmean(main_score(line) for run in of_seeds for line in run)
            points.append((statistics.fmean(known) / 60, score))
            part = "" if len(known) == len(of_seeds) else f", the time of {len(known)}"
            told.append(f"time.svg has {about}, {len(of_seeds)} seed{'s' if len(of_seeds) > 1 else ''}{part}")
            is_empty = is_empty and not of_seeds[0][0]["seconds"]
        if points:
            _line(axes, name, sorted(points), "-")
    if is_empty:
        return told
    teachers = [line for line in lines if line["name"] in _TEACHERS]
    for style, (name, points) in zip(("--", ":", "-."), _by_name(_runs(teachers), "seconds").items()):
        axes.axhline(points[0][1], color=COLOURS["muted"][0], linestyle=style, label=LABELS[name])
    axes.set_xlim(left=0)
    _save(figure, axes, path)
    return told


def _against_size(lines: list[Line], path: Path) -> None:
    """Each method's runs of every student, of several seeds their mean."""
    figure, axes = _figure(f"Quality against size, {_DIM} dimensions", "parameters, millions")
    for name, points in _by_name(_runs(lines), "parameters").items():
        means = {size: statistics.fmean(score for other, score in points if other == size) for size, _ in points}
        _line(axes, name, sorted((size / 1e6, score) for size, score in means.items()), ":")
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
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=label, ylabel="mean of the tasks, x 100")
    return figure, axes


def _line(axes: Axes, name: str, points: Points, style: str) -> None:
    colour, marker = _LOOKS[name]
    axes.plot(*zip(*points), color=COLOURS[colour][0], marker=marker, linestyle=style, label=LABELS[name])


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
