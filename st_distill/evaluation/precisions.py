"""Vectors as they are stored in a lower precision, in the form that a comparison by cosine takes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings
from torch import Tensor

__all__ = ["as_stored", "int8_ranges"]


def int8_ranges(*parts: Tensor) -> np.ndarray:
    """One symmetric range for all dimensions, (2, dim), as sentence-transformers' ``quantize_embeddings`` takes it.

    It reaches as far as the largest number of all. So a step is as long in every dimension, and products of the stored
    numbers rank nearly as those of the vectors. With ranges of their own, dimensions that hardly vary would count as much
    as the others.

    Args:
        parts: vectors (rows, dim), each with a row at least.
    """
    largest = max(float(part.abs().max()) for part in parts)
    return np.full((2, parts[0].shape[1]), [[-largest], [largest]], dtype=np.float32)


def as_stored(vectors: Tensor, precision: Literal["int8", "binary"], ranges: np.ndarray | None = None) -> Tensor:
    """What sentence-transformers' ``quantize_embeddings`` stores of vectors (rows, dim), as floats on the CPU.

    Args:
        vectors: of unit length, where lengths are not to count.
        precision: int8 comes as -128 to 127; binary as -1 and 1, whose cosine orders as the Hamming distance does.
        ranges: of int8 (`int8_ranges`); what lies outside takes the nearest number.
    """
    numbers = vectors.cpu().numpy()
    if precision == "int8":
        stored = quantize_embeddings(numbers, precision="int8", ranges=ranges)
    else:
        bits = quantize_embeddings(numbers, precision="ubinary")
        stored = np.unpackbits(np.asarray(bits), axis=1, count=numbers.shape[1]).astype(np.int8) * 2 - 1
    return torch.from_numpy(np.asarray(stored, dtype=np.float32))
