"""What the diagnoses are given: what is of another kind is refused, in a sentence that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_matrix", "check_list", "check_name", "check_text", "shown"]

#: Characters of a text in a sentence.
_SHOWN = 60


def check_list(name: str, texts: Any, *, indexed: bool = False) -> None:
    """Raise TypeError unless ``texts`` can be gone through, and, where it is ``indexed``, has a length and rows by number."""
    if isinstance(texts, str):
        raise TypeError(
            f"The '{name}' must be a list of texts. Got the one text {shown(texts)!r} instead: put it in a list."
        )
    has_rows = hasattr(texts, "__len__") and hasattr(texts, "__getitem__")
    if isinstance(texts, (bytes, Mapping)) or not isinstance(texts, Iterable) or (indexed and not has_rows):
        raise TypeError(f"The '{name}' must be a list of texts. Got {type(texts).__name__} instead.")


def check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise TypeError(f"A text must be a str. Got {shown(repr(text))} instead: leave it out, or write it as text.")


def check_name(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"The '{name}' must be a text. Got {type(value).__name__} instead.")


def as_matrix(name: str, vectors: Any) -> Tensor:
    """``vectors`` as a float tensor (texts, dim) on the CPU.

    Raises:
        TypeError: for what holds anything but numbers.
        ValueError: for numbers of another shape.
    """
    wanted = f"The '{name}' must be a matrix of numbers, of shape (texts, dim)."
    if isinstance(vectors, (list, tuple)) and vectors and all(isinstance(vector, Tensor) for vector in vectors):
        vectors = [vector.detach().cpu().float().numpy() for vector in vectors]
    is_real = not isinstance(vectors, Tensor) or not vectors.is_complex()
    got = type(vectors).__name__
    if not isinstance(vectors, Tensor):
        try:
            # A tensor takes no array that is read backwards, and warns of one that cannot be written to, such as a file's.
            vectors = np.require(vectors, requirements=["C", "W"])
        except ValueError as error:  # vectors of several lengths
            raise ValueError(f"{wanted} Got vectors of different dimensions instead.") from error
        is_real = vectors.dtype.kind in "biuf"
    if not is_real:
        what = {"O": "values that are no numbers", "U": "texts"}.get(
            getattr(vectors.dtype, "kind", ""), str(vectors.dtype)
        )
        raise TypeError(
            f"{wanted} Got {f'{got} of {what}' if vectors.ndim else got} instead: give what model.encode gives."
        )
    matrix = torch.as_tensor(vectors).detach().to_dense().float().cpu()
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{wanted} Got the shape {tuple(matrix.shape)} instead.")
    return matrix


def shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
