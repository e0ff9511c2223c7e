"""A batch of texts of all lengths, embedded without the padding that its longest text would cost the others.

The batch stays the batch: its losses compare all of its texts. Only the encoder sees it in parts of like length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers.base.losses.gradcache import _create_minibatch
from torch import Tensor, nn

__all__ = ["embed_by_length", "split_by_length"]

#: The most parts of a batch, where the lengths decide.
MOST_PARTS = 6
#: What one more forward pass has to save to be worth it, in tokens: on the CPU, and where kernels have to be launched. The
#: second is an estimate, of some milliseconds at a million tokens a second.
_PART_TOKENS = 128
_PART_TOKENS_OF_ACCELERATORS = 4096
#: Rows of a batch that are looked at as the first of a part.
_MOST_STARTS = 256
_NEVER = np.int64(2**40)


def embed_by_length(model: nn.Module, features: dict[str, Any], parts: int | None = None) -> Tensor:
    """(rows, width) embeddings of one column's features, as ``model(features)`` gives them.

    Args:
        model: the student.
        features: what ``model.preprocess`` returned, padded at the end; others are embedded in one part.
        parts: into how many parts of like length; None: as many as are worth it.
    """
    lengths = _lengths(features)
    if lengths is None:
        return model(features)["sentence_embedding"]
    device = features["attention_mask"].device
    part_tokens = _PART_TOKENS if device.type == "cpu" else _PART_TOKENS_OF_ACCELERATORS
    ends = split_by_length(lengths, parts, part_tokens=part_tokens)
    if len(ends) < 2:
        return model(features)["sentence_embedding"]
    order = torch.from_numpy(np.argsort(-lengths, kind="stable")).to(device)
    rows = {name: _taken(value, order) for name, value in features.items()}
    embeddings = [
        model(_create_minibatch(rows, start, end))["sentence_embedding"] for start, end in zip([0, *ends], ends)
    ]
    return torch.cat(embeddings)[order.argsort()]


def split_by_length(lengths: np.ndarray, parts: int | None = None, *, part_tokens: int = _PART_TOKENS) -> list[int]:
    """Where the parts end when the rows are sorted from the longest to the shortest: those with the least padding.

    Args:
        lengths: (rows,) tokens of each row, at least one row.
        parts: how many parts, or as many as there are rows; None: at most `MOST_PARTS`, each further one of which saves
            ``part_tokens`` or more.
        part_tokens: what a forward pass is worth, in tokens.
    """
    ordered, rows = -np.sort(-lengths), len(lengths)
    # A part begins at one of these rows, which are every row of a batch that is not very large.
    starts = np.arange(0, rows, -(-rows // _MOST_STARTS))
    ends = np.append(starts[1:], rows)
    most = min(MOST_PARTS if parts is None else parts, len(starts))
    # alone[i, j]: tokens, padding included, of one part from start i to end j.
    alone = np.where(
        ends[None, :] > starts[:, None], (ends[None, :] - starts[:, None]) * ordered[starts][:, None], _NEVER
    )
    least, froms = [alone[0]], [np.zeros(len(starts), dtype=np.int64)]
    for _ in range(1, most):
        # The last part from start i to end j, after the best parts of what lies before i.
        together = np.append(_NEVER, least[-1][:-1])[:, None] + alone
        froms.append(together.argmin(axis=0))
        least.append(together.min(axis=0))
    if parts is None:
        most = 1 + int(np.argmin([cost[-1] + part_tokens * number for number, cost in enumerate(least)]))
    chosen = [len(ends) - 1]
    for number in range(most - 1, 0, -1):
        chosen.append(int(froms[number][chosen[-1]]) - 1)
    return [int(ends[place]) for place in reversed(chosen)]


def _lengths(features: dict[str, Any]) -> np.ndarray | None:
    """(rows,) width of each row without the padding at its end; None where rows cannot be taken apart."""
    mask = features.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or "cu_seq_lens_q" in features:
        return None
    # Pictures and sounds have axes of their own.
    if any(value.ndim and len(value) != len(mask) for value in features.values() if isinstance(value, Tensor)):
        return None
    if any(name.startswith(("pixel", "image", "video", "audio")) for name in features) or len(mask) < 2:
        return None
    # The place of the last token, so that padding at the start is kept.
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).clamp(min=1).cpu().numpy()


def _taken(value: Any, order: Tensor) -> Any:
    return value[order] if isinstance(value, Tensor) and value.ndim else value
