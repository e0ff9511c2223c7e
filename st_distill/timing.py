"""How fast a model is, by one rule for every backend."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["texts_per_second"]


def texts_per_second(
    encode: Callable[[Sequence[str]], Any], texts: Sequence[str], *, batch_size: int, repeats: int = 3
) -> float:
    """The median of ``repeats`` passes over ``texts``, at least one.

    One untimed batch comes first, since the first one also pays for starting threads and allocating memory.
    """
    encode(texts[:batch_size])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        encode(texts)
        seconds.append(time.perf_counter() - start)
    return len(texts) / statistics.median(seconds)
