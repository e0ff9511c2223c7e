from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from st_distill import sampler
from st_distill.sampler import LengthGroupedBatchSampler


def make(count: int = 1000, batch_size: int = 10, drop_last: bool = False, seed: int = 0) -> LengthGroupedBatchSampler:
    lengths = torch.randint(1, 400, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    dataset = Dataset.from_dict({"text": ["x" * length for length in lengths], "label": list(range(count))})
    return LengthGroupedBatchSampler(dataset, batch_size, drop_last, ["label"], torch.Generator(), seed)


@pytest.mark.parametrize(("count", "drop_last"), [(1000, False), (1003, False), (1003, True), (7, False), (7, True)])
def test_every_row_once(count, drop_last):
    batches = list(make(count, drop_last=drop_last))
    rows = [row for batch in batches for row in batch]
    assert len(rows) == len(set(rows)) == (count // 10 * 10 if drop_last else count)
    assert len(batches) == len(make(count, drop_last=drop_last))
    assert sum(len(batch) < 10 for batch in batches) <= 1


def test_batches_are_of_like_length_in_a_random_order(monkeypatch):
    monkeypatch.setattr(sampler, "_WINDOW", 50)
    grouped = make()
    spreads = [int(grouped.lengths[batch].max() - grouped.lengths[batch].min()) for batch in grouped]
    assert max(spreads) < 40  # of 399
    firsts = [int(grouped.lengths[batch[0]]) for batch in grouped]
    assert firsts != sorted(firsts)


def test_the_order_follows_seed_and_epoch():
    first, second = make(), make()
    assert list(first) == list(second)
    second.set_epoch(1)
    assert list(first) != list(second)
    assert list(make(seed=1)) == list(second)


def test_a_dataset_without_texts():
    with pytest.raises(ValueError, match=r"need a column of texts. Got the columns \['label'\]"):
        LengthGroupedBatchSampler(Dataset.from_dict({"label": [1, 2]}), 2, False, ["label"])
