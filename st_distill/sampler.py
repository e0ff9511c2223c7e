"""Batches of texts of like length, or of vectors that lie together, for the trainer's ``batch_sampler`` argument."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler, MultiDatasetDefaultBatchSampler
from torch.utils.data import BatchSampler, ConcatDataset

from st_distill.options import check_whole_number, is_number

__all__ = ["LengthGroupedBatchSampler", "SharedBatchSampler", "StoreOrderBatchSampler"]

#: Batches that are sorted by length together: enough for little padding, few enough for batches to differ in every epoch.
_WINDOW = 64
#: Keeps the orders in which a dataset is gone through anew within an epoch apart from those of later epochs.
_EPOCHS = 100_003


class LengthGroupedBatchSampler(DefaultBatchSampler):
    """Shuffles the rows, sorts them by length within windows of 64 batches, and shuffles the batches.

    A batch is padded to its longest text, so that batches of like length hold fewer padding tokens. The order is the same
    for the same seed and epoch. Pass the class itself: ``SentenceTransformerTrainingArguments(batch_sampler=
    LengthGroupedBatchSampler)``; in a recipe, ``group_by_length: true``.

    A loss of relations sees only pairs of like length in such batches. A ``random_share`` of the batches, given by
    ``functools.partial``, shows it the others too, at the price of their padding.

    Args:
        dataset: with at least one column of texts; a row's length is that of all its texts together, in characters.
        batch_size: rows in a batch.
        drop_last: leave out a last batch that is smaller.
        valid_label_columns: columns that are labels.
        generator: of the shuffling.
        seed: of the shuffling, to which the epoch is added.
        random_share: share of the batches that is not sorted, from 0 to 1.

    Raises:
        TypeError: a text is none.
        ValueError: there is no column of texts, or ``random_share`` is no share.
    """

    def __init__(self, dataset: Dataset, *arguments: Any, random_share: float = 0.0, **options: Any) -> None:
        super().__init__(dataset, *arguments, **options)
        if not is_number(random_share, 0, 1):
            raise ValueError(
                f"The 'random_share' of LengthGroupedBatchSampler must be a number from 0 to 1. Got {random_share!r} instead."
            )
        self.random_share = random_share
        self.lengths = _lengths(dataset, self.valid_label_columns or [])

    def __iter__(self) -> Iterator[list[int]]:
        generator = _seeded(self)
        rows = torch.randperm(len(self.lengths), generator=generator).numpy()
        window = self.batch_size * _WINDOW
        sorted_from = int(self.random_share * (len(rows) // self.batch_size)) * self.batch_size
        for start in range(sorted_from, len(rows), window):
            part = rows[start : start + window]
            rows[start : start + window] = part[np.argsort(self.lengths[part], kind="stable")]
        batches = [rows[start : start + self.batch_size].tolist() for start in range(0, len(rows), self.batch_size)]
        # The one smaller batch, if any, is the last of the last window.
        if self.drop_last and batches and len(batches[-1]) < self.batch_size:
            batches.pop()
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]


class Shards(Protocol):
    """What `StoreOrderBatchSampler` needs of a `TeacherStore`, or of a view of one."""

    def shards(self, ids: Any) -> np.ndarray: ...


class StoreOrderBatchSampler(DefaultBatchSampler):
    """Shuffles the rows within windows of a few shards of the store, for a store that is larger than the memory.

    In a random order nearly every vector is a read of its own from the disk; in this one the files of a window are read
    once, and stay in memory as long as it lasts. Each epoch puts the shards in another order, and so into other windows.
    The order is the same for the same seed and epoch, and every row is in one batch. Give the store beforehand::

        SentenceTransformerTrainingArguments(batch_sampler=functools.partial(StoreOrderBatchSampler, store=store))

    Args:
        dataset: with a ``label`` column of row numbers, as `TeacherStore.add_labels` makes it; where rows have several, the
            first one counts.
        batch_size: rows in a batch.
        drop_last: leave out a last batch that is smaller.
        valid_label_columns: columns that are labels; the first one in the dataset has the row numbers.
        generator: of the shuffling.
        seed: of the shuffling, to which the epoch is added.
        store: that the row numbers belong to.
        window_shards: shards in a window. As many as fit into memory: a shard has (rows per shard) x (dimension of all
            teachers) x (bytes per number), which is 400 MB at 16,384 x 12,288 x 2.

    Raises:
        TypeError: ``store`` is none, or the labels are no whole numbers.
        ValueError: there is no row or no column of row numbers, or ``window_shards`` is no number of shards.
    """

    def __init__(
        self, dataset: Dataset, *arguments: Any, store: Shards, window_shards: int = 8, **options: Any
    ) -> None:
        super().__init__(dataset, *arguments, **options)
        check_whole_number("'window_shards' of StoreOrderBatchSampler", window_shards)
        if not hasattr(store, "shards"):
            raise TypeError(
                "The 'store' of StoreOrderBatchSampler must be a TeacherStore or a view of one. Got "
                f"{type(store).__name__} instead; open it by TeacherStore.open(path)."
            )
        names = [name for name in self.valid_label_columns or ["label"] if name in dataset.column_names]
        if not names:
            raise ValueError(
                f"Batches in the store's order need a label column of row numbers. Got the columns {dataset.column_names} "
                "instead; TeacherStore.add_labels adds one."
            )
        labels = dataset.select_columns(names[:1]).with_format("numpy")[:][names[0]]
        if len(dataset) == 0:
            raise ValueError(
                "Batches in the store's order need a dataset with at least one row. Got an empty one instead."
            )
        shards = store.shards(np.asarray(labels).reshape(len(dataset), -1)[:, 0])
        order = np.argsort(shards, kind="stable")
        self.window_shards = window_shards
        self._by_shard = np.split(order, np.flatnonzero(np.diff(shards[order])) + 1)

    def __iter__(self) -> Iterator[list[int]]:
        generator = _seeded(self)
        shards = torch.randperm(len(self._by_shard), generator=generator).tolist()
        left = np.empty(0, dtype=np.int64)
        for start in range(0, len(shards), self.window_shards):
            window = np.concatenate([self._by_shard[shard] for shard in shards[start : start + self.window_shards]])
            rows = np.concatenate([left, window[torch.randperm(len(window), generator=generator).numpy()]])
            whole = len(rows) // self.batch_size * self.batch_size
            for place in range(0, whole, self.batch_size):
                yield rows[place : place + self.batch_size].tolist()
            left = rows[whole:]
        if len(left) and not self.drop_last:
            yield left.tolist()


def _seeded(sampler: DefaultBatchSampler) -> torch.Generator:
    """The sampler's generator, at the start of its epoch."""
    generator = sampler.generator or torch.Generator()
    return generator.manual_seed(sampler.seed + sampler.epoch)


class SharedBatchSampler(MultiDatasetDefaultBatchSampler):
    """Draws the dataset of each batch by given shares, whatever the datasets' sizes.

    An epoch has as many batches as all datasets together. A dataset that is drawn more often than it has batches begins
    again in another order; of one that is drawn less, each epoch has others. The order is the same for the same seed and
    epoch. For the trainer's ``multi_dataset_batch_sampler``: ``functools.partial(SharedBatchSampler, shares=[3, 1])``; in a
    recipe, ``share`` of each source.

    Args:
        dataset: the datasets, one after another.
        batch_samplers: one for each.
        generator: of the shuffling.
        seed: of the shuffling, to which the epoch is added.
        shares: one for each, above 0; what counts is one against the other.

    Raises:
        ValueError: for another number of shares than of datasets, or one that is not above 0.
    """

    def __init__(
        self,
        dataset: ConcatDataset,
        batch_samplers: list[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        shares: Sequence[float],
    ) -> None:
        super().__init__(dataset, batch_samplers, generator, seed)
        if len(shares) != len(batch_samplers) or not all(is_number(share) and 0 < share < math.inf for share in shares):
            raise ValueError(
                f"The 'shares' of SharedBatchSampler must be {len(batch_samplers)} numbers above 0, one for each dataset. Got "
                f"{list(shares)} instead."
            )
        self.shares = torch.tensor(shares, dtype=torch.float64)

    def __iter__(self) -> Iterator[list[int]]:
        if self.generator is not None:
            self.generator.manual_seed(self.seed + self.epoch)
        # The datasets' own samplers share that one, and some seed it anew.
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        starts = [0, *self.dataset.cumulative_sizes[:-1]]
        passes = [self._passes(index) for index in range(len(starts))]
        for index in torch.multinomial(self.shares, len(self), replacement=True, generator=generator).tolist():
            if (batch := next(passes[index], None)) is not None:
                yield [starts[index] + row for row in batch]

    def _passes(self, index: int) -> Iterator[list[int]]:
        """The batches of one dataset, again and again."""
        sampler, count, found = self.batch_samplers[index], 0, True
        while found:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.epoch + count * _EPOCHS)
            found = False
            for batch in sampler:
                found = True
                yield batch
            count += 1

    def __len__(self) -> int:
        return sum(len(sampler) for sampler in self.batch_samplers)


def _lengths(dataset: Dataset, labels: list[str]) -> np.ndarray:
    lengths = np.zeros(len(dataset), dtype=np.int64)
    found = False
    for name, feature in dataset.features.items():
        if name in labels or getattr(feature, "dtype", None) not in ("string", "large_string"):
            continue
        found = True
        lengths += np.fromiter(_lengths_of(dataset, name), np.int64, len(dataset))
    if not found:
        raise ValueError(f"Batches by length need a column of texts. Got the columns {dataset.column_names} instead.")
    return lengths


def _lengths_of(dataset: Dataset, name: str) -> Iterator[int]:
    place = 0
    for batch in dataset.select_columns([name]).iter(batch_size=1000):
        for text in batch[name]:
            if not isinstance(text, str):
                raise TypeError(
                    f"Every text of column '{name}' must be a string for batches by length. Got {type(text).__name__} in row "
                    f"{place}; fill it in, or leave the row out."
                )
            yield len(text)
            place += 1
