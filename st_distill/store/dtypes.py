"""How vectors of unit length are kept in an npy file, and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["DTYPES", "StoredDtype"]

SCALES = np.dtype("<f4")
_LARGEST = 127  # of an int8 in size, on both sides of zero


@dataclass(frozen=True)
class StoredDtype:
    """A dtype that a store can have.

    ``array`` is what the npy files hold. ``encode`` takes float32 (rows, dimension) to that dtype, and to the float32 scale
    per row, by which the stored row is multiplied, where ``has_scales``. ``decode`` takes stored rows to a tensor of numbers
    in proportion to the vectors: the scales are not in it, because whoever reads divides by the length of the row.
    """

    array: np.dtype[Any]
    has_scales: bool
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    decode: Callable[[np.ndarray], torch.Tensor]


def _plain(dtype: str) -> StoredDtype:
    array = np.dtype(dtype)
    return StoredDtype(array, False, lambda rows: (rows.astype(array, copy=False), None), torch.from_numpy)


def _to_bfloat16(rows: np.ndarray) -> tuple[np.ndarray, None]:
    # numpy has no bfloat16; torch rounds to the nearest, and its bits are kept.
    rounded = torch.from_numpy(np.ascontiguousarray(rows)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view("<u2"), None


def _from_bfloat16(stored: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(stored.view("<i2")).view(torch.bfloat16)


def _to_int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.abs(rows).max(axis=1) / np.float32(_LARGEST)
    scaled = np.divide(rows, scales[:, None], out=np.zeros_like(rows), where=scales[:, None] > 0)
    return np.rint(scaled).astype(np.int8), scales.astype(SCALES)


DTYPES: dict[str, StoredDtype] = {
    "float32": _plain("<f4"),
    "float16": _plain("<f2"),
    "bfloat16": StoredDtype(np.dtype("<u2"), False, _to_bfloat16, _from_bfloat16),
    "int8": StoredDtype(np.dtype("i1"), True, _to_int8, torch.from_numpy),
}
"""By name. The vectors have unit length, so that no number overflows in any of them."""
