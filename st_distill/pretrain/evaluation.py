"""How well a model finds masked words, and whether that holds at lengths it was not trained at.

Every length is measured on the same tokens, masked alike: held-out documents of the greatest length are cut into pieces of
each length, so that lengths differ in how much of a document is seen around a masked word, and in nothing else but what is left
over at a document's end, less than one piece.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from st_distill.pretrain.corpus import Padding
from st_distill.pretrain.heads import places_of, predict
from st_distill.pretrain.masking import IGNORED, WordMasker
from st_distill.pretrain.tokenizer import Tokens, WordTokenizer
from st_distill.teacher.batches import is_out_of_memory

__all__ = ["held_out_documents", "masked_accuracy", "report_accuracy"]

logger = logging.getLogger(__name__)


def held_out_documents(texts: Iterable[str], tokenizer: WordTokenizer, *, length: int) -> list[Tokens]:
    """The beginnings, ``length`` tokens long with the tokenizer's special ones (which are not in them), of long documents.

    Raises:
        ValueError: where no document is so long, saying how long the longest one is.
    """
    room, documents, longest, count = length - tokenizer.added, [], 0, 0
    for tokens in tokenizer.contents(list(texts), limit=room):
        count += 1
        longest = max(longest, len(tokens.input_ids))
        if len(tokens.input_ids) == room:
            documents.append(tokens)
    if not documents:
        raise ValueError(
            f"The evaluation's documents must have {length} tokens, the greatest of its lengths. Got {count} documents, the "
            f"longest with {longest + tokenizer.added}: give longer ones, or smaller 'lengths'."
        )
    logger.info("Evaluation: %d of %d documents have %d tokens.", len(documents), count, length)
    return documents


@torch.no_grad()
def masked_accuracy(
    model: nn.Module,
    tokenizer: WordTokenizer,
    masker: WordMasker,
    documents: Sequence[Tokens],
    *,
    lengths: Sequence[int],
    batch_tokens: int = 8192,
    autocast: torch.dtype | None = None,
) -> dict[str, Any]:
    """Loss and accuracy at masked tokens, at several lengths.

    Args:
        model: a masked-language model of transformers.
        tokenizer: of the documents.
        masker: which words are masked; those of epoch 0.
        documents: as `held_out_documents` gives them for the greatest of the lengths.
        lengths: in tokens, special ones included.
        batch_tokens: tokens that the model is given at a time; one piece at least.
        autocast: half precision to compute in.

    Returns:
        ``lengths``: for each, as text: ``accuracy`` (0 to 1), ``loss`` (nats per masked token), ``masked`` (tokens measured)
        and ``pieces``. Beside them what needs no model: ``unigram_entropy`` (nats) and ``commonest`` (the share of the
        commonest token, which is the accuracy of always answering it), both of the documents' tokens. ``documents``: how
        many.

    Raises:
        MemoryError: where one piece does not fit, naming its length.
    """
    was_training = model.training
    model.eval()
    try:
        measured = {
            str(length): _at_length(
                model, tokenizer, masker, documents, length=length, batch_tokens=batch_tokens, autocast=autocast
            )
            for length in lengths
        }
    finally:
        model.train(was_training)
    tokens = np.concatenate([document.input_ids[document.words >= 0] for document in documents])
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    return {
        "lengths": measured,
        "unigram_entropy": float(-(shares * np.log(shares)).sum()),
        "commonest": float(shares.max()),
        "documents": len(documents),
    }


def _at_length(
    model: nn.Module,
    tokenizer: WordTokenizer,
    masker: WordMasker,
    documents: Sequence[Tokens],
    *,
    length: int,
    batch_tokens: int,
    autocast: torch.dtype | None,
) -> dict[str, Any]:
    device = next(model.parameters()).device
    padding = Padding(int(tokenizer.tokenizer.pad_token_id))
    loss, right, masked = 0.0, 0, 0
    pieces = [piece for document in documents for piece in _pieces(document, tokenizer, masker, length)]
    count = max(1, batch_tokens // length)
    for start in range(0, len(pieces), count):
        batch = {name: value.to(device) for name, value in padding(pieces[start : start + count]).items()}
        places, targets = places_of(batch.pop("labels"), IGNORED)
        try:
            with _precision(device, autocast):
                logits = predict(model, batch, places, core=model)
            loss += float(functional.cross_entropy(logits.float(), targets, reduction="sum"))
            right += int((logits.argmax(-1) == targets).sum())
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"The model must fit into memory with {len(batch['input_ids'])} texts of {length} tokens. It does not: lower "
                "the evaluation's batch_tokens or its greatest length, or choose an attention that needs less memory."
            ) from error
        masked += len(targets)
    return {"accuracy": right / masked, "loss": loss / masked, "masked": masked, "pieces": len(pieces)}


def _pieces(document: Tokens, tokenizer: WordTokenizer, masker: WordMasker, length: int) -> list[dict[str, Tensor]]:
    """A document masked as a whole, and then cut; what is left over at its end is not measured."""
    masked = masker(document.input_ids, document.words, epoch=0)
    room = length - tokenizer.added
    pieces = []
    for start in range(0, len(masked.input_ids) - room + 1, room):
        ids = masked.input_ids[start : start + room].astype(np.int32)
        input_ids = tokenizer.framed(Tokens(ids, np.zeros(room, np.int32))).input_ids
        labels = np.full(length, IGNORED)
        before = len(tokenizer.before)
        labels[before : before + room] = masked.labels[start : start + room]
        pieces.append({"input_ids": torch.from_numpy(input_ids.astype(np.int64)), "labels": torch.from_numpy(labels)})
    return pieces


def _precision(device: torch.device, autocast: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if autocast is None else torch.autocast(device.type, autocast)


def report_accuracy(results: dict[str, Any]) -> str:
    """What `masked_accuracy` measured, as a table to print."""
    lines = [f"{'tokens':>8} {'accuracy':>9} {'loss':>8}"]
    for length, figures in results["lengths"].items():
        lines.append(f"{length:>8} {100 * figures['accuracy']:>8.2f}% {figures['loss']:>8.3f}")
    commonest, entropy = 100 * results["commonest"], results["unigram_entropy"]
    lines.append(f"Always the commonest token: {commonest:.2f}%; unigram entropy: {entropy:.3f} nats.")
    return "\n".join(lines)
