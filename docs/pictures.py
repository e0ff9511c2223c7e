"""The pictures of the guide: ``python docs/pictures.py FOLDER``, and part of `make docs`. None is kept in the tree."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from st_distill import functional
from st_distill.report.pictures import COLOURS

_INK, _MUTED, _RULE, _PAPER, _BLUE, _ORANGE, _GREEN = (
    COLOURS[name][0] for name in ("ink", "muted", "rule", "paper", "line1", "line2", "line3")
)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "st-distill",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "figure.facecolor": _PAPER,  # a card of its own, the same on a light and on a dark page
    "savefig.facecolor": _PAPER,
}


def draw(folder: Path) -> None:
    """Write every picture as SVG into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(_STYLE):
        for picture in (_labels, _stages, _losses, _heads):
            name = picture.__name__.strip("_")
            picture().savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose coordinates are tenths of an inch, from the lower left."""
    figure = Figure(figsize=(width / 10, height / 10))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, *, colour: str | None = None) -> None:
    """A rounded box; one with a colour is filled with it."""
    shape = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.6",
        facecolor=colour or _PAPER,
        edgecolor=colour or _MUTED,
    )
    axes.add_patch(shape)
    axes.text(
        x + width / 2,
        y + height / 2,
        text,
        ha="center",
        va="center",
        color=_PAPER if colour else _INK,
        linespacing=1.35,
    )


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, colour: str = _MUTED) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour, shrinkA=0, shrinkB=0))


def _labels() -> Figure:
    """From the teachers to a text's label."""
    figure, axes = _canvas(74, 27)
    _box(axes, 1, 10, 9, 6, "a text")
    for y, name, width, colour, weight in ((17, "teacher A", 13, _BLUE, "1"), (3, "teacher B", 20, _ORANGE, "0.5")):
        _box(axes, 15, y, 12, 6, name)
        _arrow(axes, (10, 13), (15, y + 3))
        _arrow(axes, (27, y + 3), (31, y + 3))
        _box(axes, 31, y + 1.5, width * 0.6, 3, "", colour=colour)
        axes.text(31, y - 0.4, f"length 1, times {weight}", va="top", color=_MUTED)
    _arrow(axes, (39.5, 20), (49, 14.2))
    _arrow(axes, (43.5, 6), (49, 11.8))
    for x, width, colour in ((49.5, 9, _BLUE), (58.5, 14, _ORANGE)):
        _box(axes, x, 11.5, width, 3, "", colour=colour)
    axes.text(49.5, 10.2, "the label: side by side,\nlength 1 again", va="top", color=_MUTED, linespacing=1.3)
    return figure


def _stages() -> Figure:
    """What each stage trains."""
    figure, axes = _canvas(78, 51)
    names = ["1. projection", "2. last layers", "3. all", "4. vision"]
    parts = ["projection", "layer n", "…", "layer 2", "layer 1", "embeddings"]
    trained = [1, 2, 6, 0]
    for column, (name, count) in enumerate(zip(names, trained, strict=True)):
        x = 2 + 16.5 * column
        axes.text(x + 6.5, 48, name, ha="center", va="center", weight="bold")
        for row, part in enumerate(parts):
            _box(axes, x, 40 - 5.2 * row, 13, 4.2, part, colour=_BLUE if row < count else None)
    x = 2 + 16.5 * 3
    _box(axes, x, 6.4, 13, 5.4, "vision encoder,\nits projection", colour=_BLUE)
    _arrow(axes, (x + 6.5, 11.8), (x + 6.5, 14.0), colour=_BLUE)
    teachers = [("the teachers' label", 2, 46), ("the caption's\nown vector", x, 13)]
    for text, left, width in teachers:
        axes.plot([left, left + width], [5.2, 5.2], color=_ORANGE, linewidth=2)
        axes.text(left + width / 2, 4.5, text, ha="center", va="top", color=_ORANGE)
    for y, text, colour in ((32, "trained", _BLUE), (26, "frozen", None)):
        _box(axes, 68, y, 8.5, 4.2, text, colour=colour)
    return figure


def _losses() -> Figure:
    """The three terms on one small batch, by the functions of `st_distill.functional` themselves."""
    teacher = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [0.8, 0.6], [0.3, 1.0], [-0.5, 0.9]]), dim=1)
    student = torch.nn.functional.normalize(torch.tensor([[1.0, -0.2], [0.9, 0.3], [0.7, 0.7], [-0.4, 0.8]]), dim=1)
    cosine = functional.cosine_distill(student, teacher)
    similarity = functional.similarity_distill(student, teacher)
    triplet = functional.triplet_distill(student, teacher)
    figure = Figure(figsize=(8.2, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    left.set_title(f"cosine: {cosine:.3f}", fontsize=10.5)
    for (tx, ty), (sx, sy) in zip(teacher.tolist(), student.tolist(), strict=True):
        left.annotate("", (tx, ty), (0, 0), arrowprops={"arrowstyle": "-|>", "color": _ORANGE})
        left.annotate("", (sx, sy), (0, 0), arrowprops={"arrowstyle": "-|>", "color": _BLUE})
    left.set(xlim=(-0.9, 1.15), ylim=(-0.35, 1.15), aspect="equal")
    left.set_xlabel("each text's angle\nbetween student and teacher")

    middle.set_title(f"similarity: {similarity:.3f}", fontsize=10.5)
    difference = (student @ student.T - teacher @ teacher.T).numpy()
    middle.imshow(difference, cmap="PuOr_r", vmin=-1, vmax=1)
    for row in range(4):
        for column in range(4):
            middle.text(column, row, f"{difference[row, column]:+.2f}", ha="center", va="center", fontsize=8.5)
    middle.set_xlabel("student's similarity of two texts\nless the teacher's")

    right.set_title(f"triplet: {triplet:.4f}", fontsize=10.5)
    pairs = torch.triu_indices(4, 4, offset=1)
    sides = [(vectors @ vectors.T)[pairs[0], pairs[1]].tolist() for vectors in (teacher, student)]
    ranks = [[sorted(side).index(value) for value in side] for side in sides]
    for pair, (teacher_rank, student_rank) in enumerate(zip(*ranks, strict=True)):
        crossed = any(
            (teacher_rank - ranks[0][other]) * (student_rank - ranks[1][other]) < 0 for other in range(len(ranks[0]))
        )
        right.plot([0, 1], [teacher_rank, student_rank], marker="o", color=_BLUE if crossed else _MUTED)
        first, second = pairs[:, pair].tolist()
        right.text(-0.08, teacher_rank, f"{'abcd'[first]}{'abcd'[second]}", ha="right", va="center", fontsize=8.5)
    right.text(0, -0.75, "teacher", ha="center", color=_ORANGE)
    right.text(1, -0.75, "student", ha="center", color=_BLUE)
    right.set(xlim=(-0.4, 1.3), ylim=(-1.1, 5.4))
    right.set_xlabel("pairs of texts, the nearest on top:\nlines that cross are wrong")

    for axes in (left, middle, right):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure


def _heads() -> Figure:
    """Nested and independent heads."""
    figure, axes = _canvas(76, 25)
    dims = [(512, 30.0, _BLUE), (256, 15.0, _ORANGE), (128, 7.5, _GREEN)]
    axes.text(1, 22, "nested: one map, whose beginnings count too", weight="bold")
    axes.text(43, 22, "independent: a map for each", weight="bold")
    for row, (dim, width, colour) in enumerate(dims):
        y = 15 - 5.5 * row
        axes.add_patch(FancyBboxPatch((1, y), 30, 3.2, boxstyle="round,pad=0", facecolor="none", edgecolor=_RULE))
        for start, end, piece in ((0, 7.5, _GREEN), (7.5, 15, _ORANGE), (15, 30, _BLUE)):
            if end <= width:
                axes.add_patch(FancyBboxPatch((1 + start, y), end - start, 3.2, boxstyle="round,pad=0", color=piece))
        axes.text(32, y + 1.6, f"{dim}", va="center", color=_MUTED)
        axes.add_patch(FancyBboxPatch((43, y), width * 0.9, 3.2, boxstyle="round,pad=0", color=colour))
        axes.text(44 + width * 0.9, y + 1.6, f"{dim}", va="center", color=_MUTED)
    return figure


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
