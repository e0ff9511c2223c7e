"""How many texts a teacher is asked at once, and what happens when its memory does not take them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Budget", "ask_within", "is_out_of_memory"]

logger = logging.getLogger(__name__)


class Budget:
    """What one batch may hold; it shrinks when memory runs out, and stays so.

    Args:
        texts: most texts of a batch, where their tokens are not known.
        tokens: most tokens of a batch, the padding counted; None for teachers whose tokens are not known. A text that has
            more than that is a batch of its own.
    """

    def __init__(self, texts: int, tokens: int | None = None) -> None:
        self.texts = texts
        self.tokens = tokens

    def halve(self) -> None:
        self.texts = max(1, self.texts // 2)
        if self.tokens is not None:
            self.tokens = max(1, self.tokens // 2)

    def __str__(self) -> str:
        return f"{self.texts} texts" if self.tokens is None else f"{self.tokens} tokens"

    def batches(self, places: np.ndarray, lengths: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The places (n,) of texts in batches: in order, or the longest first where the texts' ``lengths`` (texts,) are given.

        The longest first, so that memory runs out at once if ever. The budget is read at each batch.
        """
        if lengths is not None:
            places = places[np.argsort(-lengths[places], kind="stable")]
        start = 0
        while start < len(places):
            end = start + self._fitting(places[start:], lengths)
            yield places[start:end]
            start = end

    def fits(self, places: np.ndarray, lengths: np.ndarray | None = None) -> bool:
        """Whether the texts, the longest first, make one batch."""
        return self._fitting(places, lengths) >= len(places)

    def _fitting(self, places: np.ndarray, lengths: np.ndarray | None) -> int:
        if lengths is None or self.tokens is None:
            return self.texts
        return max(1, self.tokens // max(1, int(lengths[places[0]])))


def ask_within(
    budget: Budget,
    ask: Callable[[list[str]], Any],
    texts: Sequence[str],
    places: np.ndarray,
    lengths: np.ndarray | None,
    *,
    who: str,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Ask for the texts at ``places``, in batches within the budget, which shrinks when memory runs out.

    Returns:
        Places, and what ``ask`` returned for their texts.

    Raises:
        MemoryError: one text alone does not fit.
    """
    for part in budget.batches(places, lengths):
        reason = None
        try:
            answer = ask([texts[place] for place in part])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1:
                raise MemoryError(
                    f"Teacher '{who}' must fit into memory with one text at least. Got out of memory with one text of "
                    f"{len(texts[part[0]])} characters; give it a lower max_seq_length, a smaller dtype, or another device."
                ) from error
            reason = str(error).partition("\n")[0]
        if reason is None:
            yield part, answer
            continue
        # Out here nothing holds the frames of the failure any more, nor the tensors in them.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        while budget.fits(part, lengths):
            budget.halve()
        logger.warning(
            "Teacher '%s' ran out of memory with %d texts; from here on a batch holds at most %s. (%s)",
            *(who, len(part), budget, reason),
        )
        yield from ask_within(budget, ask, texts, part, lengths, who=who)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    # On the CPU, torch has no class of its own for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ("not enough memory", "can't allocate memory", "out of memory")
    )
