"""Which words of a document are hidden from the model, and what stands in their place."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

__all__ = ["IGNORED", "Masked", "WordMasker"]

#: The label of a position that is not to be predicted, as torch's cross entropy ignores it by default.
IGNORED = -100


class Masked(NamedTuple):
    """A document as the model sees it, and what it is to say: both int64 (tokens,).

    ``labels`` is `IGNORED` but at the selected tokens, where it is the token that the document has there.
    """

    input_ids: np.ndarray
    labels: np.ndarray


class WordMasker:
    """Hides whole words of documents, another choice in every epoch (BERT's procedure, arXiv 1810.04805, on whole words).

    Of a document of n words, n times ``share`` are selected, rounded up or down at random so that the share holds on
    average, and one at least. Every token of a selected word is to be predicted; each of them by itself becomes the mask
    token, a random token, or stays.

    The choice follows from the seed, the epoch and the document's own tokens, and from nothing else: not from the batch,
    its size, the order of the documents, or the process that makes it. Equal documents are masked alike within an epoch.

    Args:
        mask_id: the mask token.
        ordinary_ids: the tokens that a random one is drawn from: the vocabulary without special tokens.
        share: of a document's words, above 0 and up to 1.
        mask: of the selected tokens, how many become the mask token, from 0 to 1.
        random: of the selected tokens, how many become a random token, from 0 to 1; the rest stay.
        seed: at least 0.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        ordinary_ids: np.ndarray,
        share: float = 0.3,
        mask: float = 0.8,
        random: float = 0.1,
        seed: int = 42,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"The 'share' must be above 0 and at most 1. Got {share} instead.")
        if mask < 0 or random < 0 or mask + random > 1 + 1e-9:
            raise ValueError(
                f"The 'mask' and 'random' must be at least 0 and together at most 1. Got {mask} and {random}."
            )
        self.mask_id = mask_id
        self.ordinary_ids = np.asarray(ordinary_ids, np.int64)
        self.share = share
        self.mask = mask
        self.random = random
        self.seed = seed

    def __call__(self, input_ids: np.ndarray, words: np.ndarray, *, epoch: int) -> Masked:
        """Mask one document.

        Args:
            input_ids: its tokens (tokens,).
            words: the number of each token's word (tokens,), -1 for special tokens, which are never masked. Tokens of one
                word stand together.
            epoch: at least 0.
        """
        input_ids = np.asarray(input_ids, np.int64)
        generator = np.random.default_rng([self.seed, epoch, _content_key(input_ids)])
        selected = self._selected(np.asarray(words), generator)
        count = int(selected.sum())
        draws = generator.random(count)
        # Drawn whether they are needed or not, so that the draws after them do not depend on how many are.
        strangers = self.ordinary_ids[generator.integers(len(self.ordinary_ids), size=count)]
        shown = np.where(draws < self.mask, self.mask_id, input_ids[selected])
        shown = np.where((draws >= self.mask) & (draws < self.mask + self.random), strangers, shown)
        labels = np.where(selected, input_ids, IGNORED)
        input_ids = input_ids.copy()
        input_ids[selected] = shown
        return Masked(input_ids, labels)

    def _selected(self, words: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Whether each token belongs to a selected word, bool (tokens,)."""
        is_word = words >= 0
        starts = is_word & (words != np.concatenate([[-1], words[:-1]]))
        count = int(starts.sum())
        if count == 0:
            return np.zeros(len(words), bool)
        wanted = max(1, int(self.share * count + generator.random()))
        chosen = np.zeros(count, bool)
        chosen[generator.choice(count, wanted, replace=False)] = True
        return is_word & chosen[np.maximum(np.cumsum(starts) - 1, 0)]


def _content_key(input_ids: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(input_ids.tobytes(), digest_size=8).digest(), "little")
