"""How many tokens of a text a model reads: what its encoder can, and what it is set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sentence_transformers import SentenceTransformer
from torch import nn

from st_distill.modules import Transformer
from st_distill.options import check_whole_number, is_number

__all__ = [
    "check_max_seq_length",
    "check_own_length",
    "most_tokens",
    "positions_of",
    "reading",
    "set_max_seq_length",
]


def most_tokens(model: SentenceTransformer) -> int | None:
    """The most tokens that the model's text encoder can read, special ones included; None where there is no such limit."""
    first = model[0]
    encoder = first.text_encoder if isinstance(first, Transformer) else model.transformers_model
    return None if encoder is None else positions_of(encoder)


def positions_of(encoder: nn.Module) -> int | None:
    """The most tokens that an encoder of transformers has positions for, as `most_tokens`; it needs no weights."""
    positions = getattr(encoder.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:  # XLNet has -1
        return None
    # RoBERTa and its like count from behind the position of padding.
    taken = (
        part.padding_idx + 1
        for part in encoder.modules()
        if isinstance(getattr(part, "padding_idx", None), int)
        and isinstance(getattr(part, "position_embeddings", None), nn.Embedding)
    )
    return positions - next(taken, 0)


def check_max_seq_length(model: SentenceTransformer, tokens: int) -> None:
    """Raise ValueError for more tokens than the model's encoder can read, fewer than 2, and a model without such an encoder."""
    check_whole_number("'max_seq_length'", tokens, least=2)
    if model.transformers_model is None:
        raise ValueError(
            f"The 'max_seq_length' is for a model with an encoder of transformers. Got one that begins with "
            f"{type(model[0]).__name__} instead: leave it out."
        )
    most = most_tokens(model)
    if most is not None and tokens > most:
        raise ValueError(
            f"The 'max_seq_length' must be at most the {most} tokens that the model's encoder can read. Got {tokens} instead: "
            "take fewer, or another model."
        )


def set_max_seq_length(model: SentenceTransformer, tokens: int) -> None:
    """Let the model read so many tokens of a text, more or fewer than it was saved with.

    Raises:
        ValueError: as `check_max_seq_length`.
    """
    check_max_seq_length(model, tokens)
    model.max_seq_length = tokens


def check_own_length(model: SentenceTransformer) -> None:
    """Raise ValueError for a model that was saved to read fewer than one token of a text, or no number of them."""
    tokens = model.max_seq_length
    if tokens is not None and not is_number(tokens, 1):
        raise ValueError(
            f"The 'max_seq_length' of the model must be a number from 1. Got {tokens!r}, which stands in its files "
            "(sentence_bert_config.json, as a rule): mend it, or give a 'max_seq_length' here."
        )


@contextmanager
def reading(model: SentenceTransformer, tokens: int | None) -> Iterator[None]:
    """Within this, the model reads so many tokens of a text; None: as many as ever.

    Raises:
        ValueError: as `check_max_seq_length` and `check_own_length`.
    """
    before = model.max_seq_length
    if tokens is not None:
        set_max_seq_length(model, tokens)
    check_own_length(model)
    try:
        yield
    finally:
        if tokens is not None:
            model.max_seq_length = before
