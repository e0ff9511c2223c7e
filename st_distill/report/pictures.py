"""The report's charts. Each is drawn once, by matplotlib: as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import PIL.Image

from st_distill.figures import defined, percent
from st_distill.report.samples import Retrieved, Thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Picture", "bars", "by_dimension", "gallery_png", "over_steps", "similarity_scatter"]

#: The page's colours, name to (in light, in dark). On its background each line colour has a contrast of at least 3, and
#: "ink" and "muted" one of at least 4.5.
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#57606a", "#a3adb8"),
    "rule": ("#d4dae1", "#39424d"),
    "paper": ("#fefefe", "#12171d"),
    "line1": ("#0a62c4", "#6fb3ff"),
    "line2": ("#b04a06", "#f2a25c"),
    "line3": ("#14763a", "#5fd08a"),
    "line4": ("#8a3ec8", "#cfa6ff"),
    "line5": ("#b3255f", "#ff8fbc"),
    "line6": ("#6b6200", "#d9cb4a"),
}
_INK, _MUTED, _RULE, _PAPER = (COLOURS[name][0] for name in ("ink", "muted", "rule", "paper"))
_LINES = [light for name, (light, _) in COLOURS.items() if name.startswith("line")]
# Nobody needs to tell two lines apart by their colour.
_MARKERS = ["o", "s", "^", "D", "v", "P"]
_DASHES: list[Any] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]
_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
# 1 unit of the SVG is 1/72 inch: at this width a phone shows the letters at about the size of its text.
_WIDTH, _HEIGHT = 5.4, 3.5
_PNG_DPI = 200
#: Values that span more than this factor stand on a logarithmic axis.
_SPAN = 20


@dataclass(frozen=True)
class Picture:
    """A chart.

    Attributes:
        name: of its file, and of its place in the page.
        title: what it shows, in a few words.
        description: what is to be seen in it, in a sentence: the text alternative.
        svg: to be put into an HTML page.
        png: the same in light colours, at 200 dots per inch.
        header, rows: the numbers that are drawn, as a table.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _figure(width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True)
    axes.set_axisbelow(True)
    return figure, axes


def _style() -> Any:
    from matplotlib import rc_context

    return rc_context(
        {
            "svg.fonttype": "none",  # letters stay letters: smaller, sharper, and in the page's font
            "svg.hashsalt": "st-distill",
            "text.parse_math": False,  # a dollar sign in a name is one
            "axes.unicode_minus": True,
            "font.family": ["DejaVu Sans"],
            "font.size": 12.5,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "axes.edgecolor": _MUTED,
            "axes.facecolor": "none",
            "xtick.color": _MUTED,
            "ytick.color": _MUTED,
            "grid.color": _RULE,
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "legend.fontsize": 11.5,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
        }
    )


def printable(text: str) -> str:
    """``text`` without what neither XML nor UTF-8 can hold: control characters and unpaired surrogates."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def _label(text: str) -> str:
    # matplotlib leaves out of a legend what begins with an underscore.
    text = " ".join(printable(text).split()).lstrip("_") or "unnamed"
    return text if len(text) <= 28 else text[:27] + "…"


def _legend(figure: Figure, **options: Any) -> None:
    """Above the axes, where it covers nothing."""
    labels = figure.axes[0].get_legend_handles_labels()[1]
    columns = max(1, min(len(labels), 46 // (max(map(len, labels)) + 6)))
    figure.legend(loc="outside upper left", ncols=columns, **options)


def _finished(
    figure: Figure, name: str, title: str, description: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    with warnings.catch_warnings():
        # A name in letters that the font lacks: the page has other fonts, the PNG shows boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=_PNG_DPI, facecolor=_PAPER, metadata={"Title": printable(title)})
    inline = _inlined(svg.getvalue(), name, title, description)
    table = tuple(tuple(row) for row in rows)
    return Picture(name, title, description, inline, png.getvalue(), tuple(header), table)


def _inlined(svg: str, name: str, title: str, description: str) -> str:
    """An SVG file as part of a page: colours by the page's variables, ids of its own, a name and a text alternative."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}metadata":
                parent.remove(child)
        if (identity := parent.attrib.pop("id", None)) in used:
            parent.set("id", f"{name}-{identity}")
        if (target := parent.attrib.pop(_XLINK_HREF, None)) is not None:
            parent.set("href", f"#{name}-{target[1:]}")
        for key, value in parent.attrib.items():
            parent.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-description", "class": "chart"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(
            f"{{{_SVG}}}{tag}", {"id": f"{name}-{'title' if tag == 'title' else 'description'}"}
        )
        element.text = printable(text)
        root.insert(place, element)
    inline = ElementTree.tostring(root, encoding="unicode")
    for colour, (light, _) in COLOURS.items():
        inline = inline.replace(light, f"var(--{colour})")
    return inline


def _times_100(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return {dim: None if score is None else 100 * score for dim, score in defined(scores).items()}


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def by_dimension(
    name: str,
    title: str,
    label: str,
    series: Mapping[str, Mapping[str, float | None]],
    *,
    chance: float | None = None,
) -> Picture:
    """Scores times 100 against the number of dimensions, a line for each model.

    Args:
        name, title: as in `Picture`.
        label: of the axis of scores.
        series: model to (dimension, in decimal digits, to score from 0 to 1); a score may be None, NaN or absent.
        chance: the score of a guess, drawn as a level line; None: no line.
    """
    series = {model: _times_100(scores) for model, scores in series.items()}
    dims = sorted({dim for scores in series.values() for dim in scores}, key=int)
    places = {dim: place for place, dim in enumerate(dims)}
    with _style():
        figure, axes = _figure()
        for index, (model, scores) in enumerate(series.items()):
            known = [(places[dim], score) for dim in dims if (score := scores.get(dim)) is not None]
            axes.plot(
                [place for place, _ in known],
                [score for _, score in known],
                color=_LINES[index % len(_LINES)],
                linestyle=_DASHES[index % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)],
                label=_label(model),
            )
        if chance is not None:
            axes.axhline(100 * chance, color=_MUTED, linestyle=":", linewidth=1.2, label="chance")
        axes.set_xticks(range(len(dims)), dims)
        axes.set_xlabel("dimensions")
        axes.set_ylabel(label)
        _legend(figure)
        rows = [[dim, *(_score(scores.get(dim)) for scores in series.values())] for dim in reversed(dims)]
        return _finished(figure, name, title, _of_dimensions(label, series, dims), ["dimensions", *series], rows)


def _of_dimensions(label: str, series: Mapping[str, Mapping[str, float | None]], dims: Sequence[str]) -> str:
    parts = []
    for model, scores in series.items():
        known = [dim for dim in reversed(dims) if scores.get(dim) is not None]
        if known:
            span = f"{_score(scores[known[0]])} at {known[0]} dimensions"
            if len(known) > 1:
                span += f", {_score(scores[known[-1]])} at {known[-1]}"
            parts.append(f"{model} {span}")
    return f"Line chart of {label} against dimensions: {'; '.join(parts) or 'no score is known'}."


def over_steps(name: str, title: str, history: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> Picture:
    """Terms of a loss over the steps of a stage; on a logarithmic axis where they span more than `_SPAN`.

    A single term that is the total is one line.

    Args:
        name, title: as in `Picture`.
        history: what the trainer logged, each entry with its "step".
        terms: the keys to draw, "loss" the total; an entry may lack one, or have None.
    """
    lines = {
        term: [(entry["step"], float(entry[term])) for entry in history if entry.get(term) is not None]
        for term in terms
    }
    lines = {term: points for term, points in lines.items() if points}
    names = {term: term for term in lines}
    if len(lines) == 2 and _are_one(lines):
        # The total is the one that the trainer does not round.
        (term,) = lines.keys() - {"loss"}
        del lines[term]
        names = {"loss": f"{term}, the total"}
    values = [value for points in lines.values() for _, value in points]
    with _style():
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

        figure, axes = _figure()
        for index, (term, points) in enumerate(lines.items()):
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                color=_INK if term == "loss" else _LINES[index % len(_LINES)],
                linestyle=_DASHES[index % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)] if len(points) < 20 else None,
                label="total" if names[term] == "loss" else _label(names[term]),
            )
        if min(values) > 0 and max(values) / min(values) > _SPAN:
            axes.set_yscale("log")
            # Its own labels are powers in TeX.
            plain = FuncFormatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_formatter(plain)
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            # Two decades may hold one power of ten, from which nothing can be read.
            axes.yaxis.set_minor_formatter(plain if max(values) / min(values) < 1000 else NullFormatter())
        steps = [step for points in lines.values() for step, _ in points]
        if len(set(steps)) == 1:
            axes.set_xlim(steps[0] - 1, steps[0] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel("loss, weighted")
        _legend(figure)
        changes = [
            f"{names[term]} from {_number(points[0][1])} to {_number(points[-1][1])}" for term, points in lines.items()
        ]
        rows = [
            [str(entry["step"]), *(_number(entry.get(term)) for term in lines)]
            for entry in history
            if any(entry.get(term) is not None for term in lines)
        ]
        description = f"Line chart over {rows[0][0]} to {rows[-1][0]} steps: {'; '.join(changes)}."
        return _finished(figure, name, title, description, ["step", *(names[term] for term in lines)], rows)


def _are_one(lines: Mapping[str, Sequence[tuple[int, float]]]) -> bool:
    """Whether two lines, one of them "loss", are a total and its only term, of which one would hide the other."""
    first, second = lines.values()
    return (
        "loss" in lines
        and [step for step, _ in first] == [step for step, _ in second]
        # The trainer rounds the terms to four places.
        and all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for (_, a), (_, b) in zip(first, second))
    )


def similarity_scatter(
    name: str, title: str, groups: Mapping[str, Sequence[tuple[float, float]]], correlation: float | None
) -> Picture:
    """The student's similarity of two texts against the teacher's, a point for each pair of texts.

    Args:
        name, title: as in `Picture`.
        groups: label to (teacher's, student's) similarities.
        correlation: Spearman's, to be said in the description.
    """
    points = [point for group in groups.values() for point in group]
    low = min(min(point) for point in points)
    with _style():
        figure, axes = _figure(_WIDTH, 4.4)
        for index, (label, group) in enumerate(groups.items()):
            axes.plot(
                [teacher for teacher, _ in group],
                [student for _, student in group],
                linestyle="none",
                marker=_MARKERS[index],
                markersize=2.6,
                markeredgewidth=0,
                alpha=0.6,
                color=_LINES[index],
                label=label,
            )
        axes.plot([low, 1], [low, 1], color=_MUTED, linestyle="--", linewidth=1.2, label="equal")
        axes.set_xlabel("similarity by the teachers")
        axes.set_ylabel("similarity by the student")
        axes.set_aspect("equal", adjustable="box")
        _legend(figure, markerscale=2)
        tenths: dict[int, list[float]] = {}
        for teacher, student in points:
            tenths.setdefault(min(9, math.floor(10 * teacher)), []).append(student)
        rows = [
            [f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}", str(len(found)), f"{sum(found) / len(found):.2f}"]
            for tenth, found in sorted(tenths.items())
        ]
        told = (
            "" if correlation is None else f" Spearman's correlation over held-out pairs x 100: {percent(correlation)}."
        )
        description = f"Scatter chart of {len(points):,} pairs of held-out texts around the line of equality.{told}"
        header = ["similarity by the teachers", "pairs", "mean similarity by the student"]
        return _finished(figure, name, title, description, header, rows)


def bars(name: str, title: str, label: str, values: Mapping[str, float]) -> Picture:
    """One horizontal bar for each value, with its number; points on a logarithmic axis where the values, all above 0, span
    more than `_SPAN`, of which bars would show the largest alone."""
    is_wide = min(values.values()) > 0 and max(values.values()) / min(values.values()) > _SPAN
    with _style():
        figure, axes = _figure(_WIDTH, 1.0 + 0.42 * len(values))
        axes.grid(is_wide, axis="x")
        axes.grid(False, axis="y")
        places, lengths = range(len(values)), list(values.values())
        if is_wide:
            from matplotlib.ticker import FuncFormatter, NullFormatter

            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.plot(lengths, places, linestyle="none", marker=_MARKERS[0], markersize=8, color=_LINES[0])
            for value, place in zip(lengths, places):
                axes.annotate(f"{value:,.0f}", (value, place), xytext=(8, 0), textcoords="offset points", va="center")
        else:
            drawn = axes.barh(places, lengths, color=_LINES[0], height=0.62)
            axes.bar_label(drawn, labels=[f"{value:,.0f}" for value in lengths], padding=4)
        axes.set_yticks(places, [_label(key) for key in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        rows = [[key, f"{value:,.0f}"] for key, value in values.items()]
        kind = "Chart" if is_wide else "Bar chart"
        description = f"{kind} of {label}: {'; '.join(f'{key} {value}' for key, value in rows)}."
        return _finished(figure, name, title, description, ["", label], rows)


#: Of the gallery, in inches: the side of a picture, what is between two, and the height of a caption and of a heading.
_SIDE, _GAP, _LINE, _HEADING = 0.88, 0.15, 0.24, 0.36


def gallery_png(found: Mapping[str, Sequence[Retrieved]]) -> bytes:
    """Captions with the pictures that the student finds for them, as a PNG; in a page they are elements of their own.

    Args:
        found: heading to the captions below it, at least one in all.
    """
    row = _LINE + _SIDE + 0.3 + _GAP
    height = _GAP + sum(_HEADING + row * len(entries) for entries in found.values() if entries)
    with _style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_WIDTH, height), facecolor=_PAPER)
        top = height - _GAP
        for heading, entries in found.items():
            if entries:
                _write(figure, top, heading, weight="bold")
                top -= _HEADING
            for entry in entries:
                _write(figure, top, entry.caption, fontsize=10)
                ranked = list(enumerate(entry.found, start=1))
                if entry.missed is not None:
                    ranked.append((entry.rank, entry.missed))
                for place, (rank, thumbnail) in enumerate(ranked):
                    _frame(figure, _GAP + place * (_SIDE + _GAP), top - _LINE - _SIDE, rank, thumbnail)
                top -= row
        png = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph \d+")
            figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Title": "Pictures that captions find"})
    return png.getvalue()


def _write(figure: Figure, top: float, text: str, **options: Any) -> None:
    """A line of text at the left, its upper edge ``top`` inches above the figure's lower one."""
    text = " ".join(printable(text).split())
    shown = text if len(text) <= 64 else text[:63] + "…"
    figure.text(_GAP / _WIDTH, top / figure.get_figheight(), shown, va="top", **options)


def _frame(figure: Figure, left: float, bottom: float, rank: int, thumbnail: Thumbnail) -> None:
    """A picture with its rank, framed by whether it is a right one."""
    height = figure.get_figheight()
    axes = figure.add_axes((left / _WIDTH, bottom / height, _SIDE / _WIDTH, _SIDE / height), xticks=[], yticks=[])
    side = max(thumbnail.width, thumbnail.height)
    with PIL.Image.open(io.BytesIO(thumbnail.data)) as picture:
        axes.imshow(picture.convert("RGB"), interpolation="nearest")
    axes.set(
        xlim=((thumbnail.width - side) / 2 - 0.5, (thumbnail.width + side) / 2 - 0.5),
        ylim=((thumbnail.height + side) / 2 - 0.5, (thumbnail.height - side) / 2 - 0.5),
    )
    colour = _LINES[2] if thumbnail.right else _LINES[1]
    axes.spines[:].set(color=colour, linewidth=2, linestyle="-" if thumbnail.right else "--")
    axes.set_xlabel(f"{rank}: {'right' if thumbnail.right else 'wrong'}", color=colour, fontsize=9.5, labelpad=3)
