"""Texts that are longer than a model reads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from sentence_transformers import SentenceTransformer

#: Texts tokenised at once.
CHUNK = 1000


def find_too_long(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    above: Literal["truncate", "refuse"] = "truncate",
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> list[int]:
    """Find the texts with more tokens than ``model.max_seq_length``, which ``encode`` truncates without a word.

    Args:
        model: a model for text.
        texts: any number of texts.
        above: what to do about longer ones: ``"truncate"`` says in one warning how many there are and leaves the
            truncation to ``encode``; ``"refuse"`` raises.
        prompt: what ``encode`` is to put before each text, whose tokens count. Default: the prompt of that name.
        prompt_name: one of ``model.prompts``, such as ``"query"``; default: the model's default prompt, or none.

    Returns:
        Their places in ``texts``.

    Raises:
        TypeError: for one text alone, or something among the texts that is none.
        ValueError: for ``"refuse"`` and a text above the limit, another word than these two, or a prompt that the model has
            not.
    """
    if above not in ("truncate", "refuse"):
        raise ValueError(f"The 'above' must be 'truncate' or 'refuse'. Got {above!r} instead.")
    if isinstance(texts, str):
        raise TypeError("The 'texts' must be a sequence of texts. Got one text instead: put it into a list.")
    if (place := next((place for place, text in enumerate(texts) if not isinstance(text, str)), None)) is not None:
        raise TypeError(f"The 'texts' must be texts. Got {type(texts[place]).__name__} at place {place} instead.")
    before = _prompt(model, prompt, prompt_name)
    limit = model.max_seq_length
    if not isinstance(limit, int):  # a static embedding reads any number of tokens
        return []
    found, most = longer_than(model.tokenizer, [before + text for text in texts] if before else texts, limit)
    if found:
        told = f"{len(found)} of {len(texts)} texts (the first at place {found[0]}) have {_more(limit, most)}"
        if above == "refuse":
            raise ValueError(
                f"The texts must have at most {limit} tokens. Got {told}, instead: split them, raise 'max_seq_length', or let "
                "them be truncated."
            )
        warnings.warn(f"{told}, and are truncated there.", UserWarning, stacklevel=2)
    return found


def _prompt(model: SentenceTransformer, prompt: str | None, prompt_name: str | None) -> str:
    """What ``encode`` of these arguments puts before a text."""
    if prompt is not None:
        return prompt
    if prompt_name is not None and prompt_name not in model.prompts:
        raise ValueError(
            f"The 'prompt_name' must be one of the model's ({', '.join(map(repr, model.prompts)) or 'it has none'}). "
            f"Got {prompt_name!r} instead."
        )
    return model.prompts.get(model.default_prompt_name if prompt_name is None else prompt_name) or ""


def longer_than(tokenizer: Any, texts: Sequence[str], limit: int) -> tuple[list[int], int]:
    """The places of the texts with more than ``limit`` tokens, special ones included, and how many the longest has."""
    found, most = [], 0
    for start in range(0, len(texts), CHUNK):
        tokens = tokenizer(list(texts[start : start + CHUNK]), truncation=False, verbose=False)["input_ids"]
        lengths = [len(numbers) for numbers in tokens]
        found += [start + place for place, length in enumerate(lengths) if length > limit]
        most = max(most, *lengths)
    return found, most


def tell_too_long(tokenizer: Any, columns: Sequence[Sequence[str]], limit: int) -> str | None:
    """Of a table's texts those with more than ``limit`` tokens, to be put into a sentence; None where there are none."""
    found = [longer_than(tokenizer, column, limit) for column in columns]
    places = [place for column, _ in found for place in column]
    if not places:
        return None
    count, most = sum(map(len, columns)), max(longest for _, longest in found)
    return f"{len(places)} of {count} texts (the first in row {min(places)}) have {_more(limit, most)}"


def _more(limit: int, most: int) -> str:
    return f"more tokens than the model's {limit}, up to {most}"
