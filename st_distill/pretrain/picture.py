"""The picture of masked-word accuracy over lengths, as figure 2 of Jina Embeddings 2 (arXiv 2310.19923)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from st_distill.errors import MissingExtraError
from st_distill.files import replacing

__all__ = ["draw_accuracy"]


def draw_accuracy(
    results: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str], *, trained_at: int | None = None
) -> None:
    """Draw accuracy over length, a line for each model, into a PNG file.

    Args:
        results: for each model's name what `st_distill.pretrain.evaluation.masked_accuracy` returned.
        path: of the file, which is replaced.
        trained_at: marks this length, in tokens.

    Raises:
        MissingExtraError: where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", extra="plot", purpose="Drawing") from None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    lengths = sorted({int(length) for measured in results.values() for length in measured["lengths"]})
    for name, measured in results.items():
        own = sorted(measured["lengths"], key=int)
        accuracy = [100 * measured["lengths"][length]["accuracy"] for length in own]
        axes.plot([int(length) for length in own], accuracy, marker="o", label=name)
    if trained_at is not None:
        axes.axvline(trained_at, color="grey", linestyle=":", label=f"trained at {trained_at}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, labels=[str(length) for length in lengths])
    axes.minorticks_off()
    highest = max(figures["accuracy"] for measured in results.values() for figures in measured["lengths"].values())
    axes.set_ylim(0, max(1.0, 120 * highest))
    axes.set_xlabel("tokens of a text")
    axes.set_ylabel("masked words found (%)")
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
