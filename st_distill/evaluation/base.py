"""What the evaluators share: how they check what they are given, how they encode, and where their figures go."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import BaseEvaluator
from torch.nn.functional import normalize

from st_distill.options import check_distinct, check_whole_number
from st_distill.tables import is_utf8


def checked_dims(dims: Sequence[int] | None) -> tuple[int, ...] | None:
    """``dims``, largest first; None stays None (the model's full width)."""
    if dims is None:
        return None
    if isinstance(dims, str) or not isinstance(dims, Sequence) or not dims:
        raise ValueError(f"The 'dims' parameter must be a non-empty list of dimensions, or None. Got {dims!r} instead.")
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"The 'dims' parameter must hold whole numbers of at least 1. Got {dim!r} in it instead.")
    check_distinct("'dims' parameter", dims)
    return tuple(sorted(dims, reverse=True))


def checked_model(name: str, model: SentenceTransformer) -> SentenceTransformer:
    if not hasattr(model, "encode") or not hasattr(model, "get_embedding_dimension"):
        raise TypeError(
            f"The '{name}' parameter must be a SentenceTransformer. Got {type(model).__name__} instead: load it first."
        )
    return model


def width_of(model: SentenceTransformer) -> int:
    checked_model("model", model)
    width = model.get_embedding_dimension()
    if width is None:
        raise ValueError("The 'model' parameter must be a model that knows its dimension. Got one that does not.")
    return width


def dims_of(dims: tuple[int, ...] | None, width: int) -> tuple[int, ...]:
    """The dimensions to judge vectors of ``width`` at; sentence-transformers would keep a narrower one silently."""
    if dims is None:
        return (width,)
    if dims[0] > width:
        raise ValueError(
            f"The 'dims' parameter asks for {dims[0]} dimensions, but the model's vectors have {width}: "
            f"leave out the dimensions above {width}, or lift the model's truncate_dim."
        )
    return dims


def checked_positive(name: str, value: int) -> int:
    check_whole_number(f"'{name}' parameter", value)
    return value


def checked_texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"The '{name}' parameter must be a list of texts. Got a single text instead: put it in a list.")
    texts = checked_list(name, texts, "texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"The '{name}' parameter must hold texts alone. Got {type(text).__name__} at row {row} instead: "
                "drop the row or turn it into a text."
            )
        if not is_utf8(text):
            raise ValueError(
                f"The '{name}' parameter must hold texts that UTF-8 can hold, without unpaired surrogates. Got "
                f"{textwrap.shorten(text, 60, placeholder=' ...')!r} at row {row} instead: mend the row or drop it."
            )
    return texts


def checked_labels(name: str, labels: Sequence[Any]) -> list[Any]:
    """The labels as plain values: texts, or whole numbers."""
    labels = [label.item() if hasattr(label, "item") else label for label in checked_list(name, labels, "labels")]
    for row, label in enumerate(labels):
        is_whole = isinstance(label, (int, float)) and float(label).is_integer()
        if not (is_whole or isinstance(label, str)) or isinstance(label, str) != isinstance(labels[0], str):
            raise TypeError(
                f"The '{name}' parameter must hold texts alone, or whole numbers alone. Got {label!r} at row {row} instead: "
                "drop the row, or turn all of them into texts."
            )
    return labels


def checked_prompt(name: str, prompt: str | None) -> str | None:
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(f"The '{name}' parameter must be a text, or None. Got {prompt!r} instead.")
    return prompt


def checked_numbers(name: str, numbers: Sequence[float]) -> list[float]:
    """The numbers, also where they are in letters."""
    found = []
    for row, number in enumerate(checked_list(name, numbers, "numbers")):
        try:
            found.append(float(number))
        except (TypeError, ValueError):
            found.append(math.nan)
        if not math.isfinite(found[-1]):
            raise ValueError(
                f"The '{name}' parameter must hold finite numbers. Got {number!r} at row {row} instead: mend the row or drop "
                "it."
            )
    return found


def checked_list(name: str, values: Any, of: str) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"The '{name}' parameter must be a list of {of}. Got {type(values).__name__} instead.")
    return values.tolist() if isinstance(values, (np.ndarray, torch.Tensor)) else list(values)


def same_length(first: str, first_values: Sequence[Any], second: str, second_values: Sequence[Any]) -> None:
    if len(first_values) != len(second_values):
        raise ValueError(
            f"The '{first}' and '{second}' parameters must be of equal length, row i of one belonging to row i of the "
            f"other. Got {len(first_values)} and {len(second_values)} rows instead."
        )


def encode(model: SentenceTransformer, inputs: list[Any], **options: Any) -> torch.Tensor:
    """Vectors of ``inputs``, float32 (rows, width), on the model's device, of whatever length the model gives them.

    Raises:
        TypeError: for what is no model.
        ValueError: for vectors that are not finite.
    """
    checked_model("model", model)
    return checked_vectors(model.encode(inputs, convert_to_tensor=True, **options).float(), inputs)


def checked_vectors(vectors: torch.Tensor, inputs: Sequence[Any]) -> torch.Tensor:
    """``vectors`` (rows, width) of ``inputs``; ValueError where they are not finite, since a ranking of NaN has figures too."""
    finite = vectors.isfinite()
    if finite.all():
        return vectors
    bad = (~finite).any(dim=1).nonzero().flatten().tolist()
    first = inputs[bad[0]]
    is_text = isinstance(first, str)
    shown = repr(textwrap.shorten(first, 60, placeholder=" ...")) if is_text else f"that of row {bad[0]}"
    raise ValueError(
        f"The vectors of the model hold NaN or infinity, in {len(bad)} of {len(vectors)} {'texts' if is_text else 'inputs'}, "
        f"the first being {shown}: nothing can be measured. Mend the model's weights, or load it in float32."
    )


def prefix(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """The first ``dim`` columns of ``vectors`` (rows, width), each row of length 1; a zero row stays zero."""
    return normalize(vectors[:, :dim], dim=1)


def append_row(output_path: str | None, file_name: str, metrics: dict[str, float], epoch: int, steps: int) -> None:
    """Add a row to a CSV file in the folder that a trainer names; nothing without one."""
    if output_path is None:
        return
    path = Path(output_path) / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["epoch", "steps", *metrics])
        writer.writerow([epoch, steps, *metrics.values()])


class Evaluator(BaseEvaluator):
    """What our evaluators share: metrics named like sentence-transformers' own, in the model card and in a CSV file."""

    def __init__(self, name: str, csv_name: str, write_csv: bool) -> None:
        super().__init__()
        self.name = name
        self.write_csv = write_csv
        self.csv_file = f"{csv_name}{'_' + name if name else ''}_results.csv"

    def report(
        self,
        model: SentenceTransformer,
        metrics: dict[str, float],
        output_path: str | None,
        epoch: int,
        steps: int,
    ) -> dict[str, float]:
        """The metrics with the evaluator's name before them, after they went to the file and the model card."""
        if self.write_csv:
            append_row(output_path, self.csv_file, metrics, epoch, steps)
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics
