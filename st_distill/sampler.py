"""Batches of texts of like length, for the trainer's ``batch_sampler`` argument."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler

__all__ = ["LengthGroupedBatchSampler"]

#: Batches that are sorted by length together: enough for little padding, few enough for batches to differ in every epoch.
_WINDOW = 64


class LengthGroupedBatchSampler(DefaultBatchSampler):
    """Shuffles the rows, sorts them by length within windows of 64 batches, and shuffles the batches.

    A batch is padded to its longest text, so that batches of like length hold fewer padding tokens. The order is the same
    for the same seed and epoch. Pass the class itself: ``SentenceTransformerTrainingArguments(batch_sampler=
    LengthGroupedBatchSampler)``; in a recipe, ``group_by_length: true``.

    Args:
        dataset: with at least one column of texts; a row's length is that of all its texts together, in characters.
        batch_size: rows in a batch.
        drop_last: leave out a last batch that is smaller.
        valid_label_columns: columns that are labels.
        generator: of the shuffling.
        seed: of the shuffling, to which the epoch is added.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        self.lengths = _lengths(dataset, valid_label_columns or [])

    def __iter__(self) -> Iterator[list[int]]:
        generator = self.generator or torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).numpy()
        window = self.batch_size * _WINDOW
        batches: list[list[int]] = []
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size].tolist() for i in range(0, len(part), self.batch_size)]
        # The one smaller batch, if any, is the last of the last window.
        if self.drop_last and batches and len(batches[-1]) < self.batch_size:
            batches.pop()
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]


def _lengths(dataset: Dataset, labels: list[str]) -> np.ndarray:
    lengths = np.zeros(len(dataset), dtype=np.int64)
    found = False
    for name, feature in dataset.features.items():
        if name in labels or getattr(feature, "dtype", None) not in ("string", "large_string"):
            continue
        found = True
        lengths += np.fromiter((len(text) for text in _column(dataset, name)), np.int64, len(dataset))
    if not found:
        raise ValueError(f"Batches by length need a column of texts. Got the columns {dataset.column_names} instead.")
    return lengths


def _column(dataset: Dataset, name: str) -> Iterator[Any]:
    for batch in dataset.select_columns([name]).iter(batch_size=1000):
        yield from batch[name]
