"""Texts that are longer than a model reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

from sentence_transformers import SentenceTransformer

#: Texts tokenised at once.
CHUNK = 1000


def find_too_long(
    model: SentenceTransformer, texts: Sequence[str], *, above: Literal["truncate", "refuse"] = "truncate"
) -> list[int]:
    """Find the texts with more tokens than ``model.max_seq_length``, which ``encode`` truncates without a word.

    Args:
        model: a model for text.
        texts: any number of texts.
        above: what to do about longer ones: ``"truncate"`` says in one warning how many there are and leaves the
            truncation to ``encode``; ``"refuse"`` raises.

    Returns:
        Their places in ``texts``.

    Raises:
        ValueError: for ``"refuse"`` and a text above the limit, or another word than these two.
    """
    if above not in ("truncate", "refuse"):
        raise ValueError(f"The 'above' must be 'truncate' or 'refuse'. Got {above!r} instead.")
    limit = model.max_seq_length
    if limit is None:
        return []
    found, most = [], 0
    for start in range(0, len(texts), CHUNK):
        tokens = model.tokenizer(list(texts[start : start + CHUNK]), truncation=False, verbose=False)["input_ids"]
        lengths = [len(numbers) for numbers in tokens]
        found += [start + place for place, length in enumerate(lengths) if length > limit]
        most = max(most, *lengths)
    if found:
        those = f"{len(found)} of {len(texts)} texts (the first at place {found[0]}) have more tokens than the model's {limit}"
        if above == "refuse":
            raise ValueError(
                f"The texts must have at most {limit} tokens. Got {those}, up to {most}, instead: split them, raise "
                "'max_seq_length', or let them be truncated."
            )
        warnings.warn(f"{those}, up to {most}, and are truncated there.", UserWarning, stacklevel=2)
    return found
