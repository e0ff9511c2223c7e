"""Vectors that a user gives, of every kind that libraries give them in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_matrix"]


def as_matrix(what: str, vectors: Any) -> Tensor:
    """``vectors`` as a float tensor (texts, dim) on the CPU.

    Args:
        what: the argument, as a sentence goes on after "The".
        vectors: an array, a tensor, or a list of vectors, of whichever kind.

    Raises:
        TypeError: for what holds anything but numbers.
        ValueError: for numbers of another shape.
    """
    wanted = f"The {what} must be a matrix of numbers, of shape (texts, dim)."
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
        values = {"O": "values that are no numbers", "U": "texts"}.get(
            getattr(vectors.dtype, "kind", ""), str(vectors.dtype)
        )
        raise TypeError(
            f"{wanted} Got {f'{got} of {values}' if vectors.ndim else got} instead: give what model.encode gives."
        )
    matrix = torch.as_tensor(vectors).detach().to_dense().float().cpu()
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{wanted} Got the shape {tuple(matrix.shape)} instead.")
    return matrix
