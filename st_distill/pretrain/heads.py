"""Predictions of a masked-language model at the tokens that are asked for, and at no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["places_of", "predict"]


def predict(model: nn.Module, inputs: dict[str, Tensor], places: Tensor, *, core: nn.Module | None = None) -> Tensor:
    """What the model says at some of a batch's tokens.

    The last layer, from the width of the model to the vocabulary, is the dearest of a small one. Where the model has it as
    its output embeddings, it only sees the rows that are asked for.

    Args:
        model: a masked-language model of transformers, as it is called (wrapped, compiled).
        inputs: of its forward, (rows, length) each.
        places: numbers of the tokens in the flattened batch, int64 (n,), from 0 to rows x length - 1.
        core: the model inside ``model``, where that is wrapped; None where all tokens are to be predicted first.

    Returns:
        Logits (n, vocabulary), in the model's precision.
    """
    if core is None:
        logits = model(**inputs).logits
    else:
        with _looking_at(core, places):
            logits = model(**inputs).logits
    return logits if logits.dim() == 2 else logits.reshape(-1, logits.shape[-1])[places]


@contextmanager
def _looking_at(model: nn.Module, places: Tensor) -> Iterator[None]:
    def choose(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        return (hidden.reshape(-1, hidden.shape[-1])[places], *others)

    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        yield
        return
    handle = layer.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def places_of(labels: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """Numbers of the tokens of a flattened batch that have a label, and their labels, both int64 (n,)."""
    flat = labels.reshape(-1)
    places = torch.nonzero(flat != ignored).reshape(-1)
    return places, flat[places]
