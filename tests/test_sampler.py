from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from torch.utils.data import ConcatDataset, RandomSampler

from st_distill import Teacher, TeacherStore, losses, sampler
from st_distill.sampler import LengthGroupedBatchSampler, SharedBatchSampler, StoreOrderBatchSampler


def make(
    count: int = 1000, batch_size: int = 10, drop_last: bool = False, seed: int = 0, **options
) -> LengthGroupedBatchSampler:
    lengths = torch.randint(1, 400, (count,), generator=torch.Generator().manual_seed(1)).tolist()
    dataset = Dataset.from_dict({"text": ["x" * length for length in lengths], "label": list(range(count))})
    return LengthGroupedBatchSampler(dataset, batch_size, drop_last, ["label"], torch.Generator(), seed, **options)


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


@pytest.mark.parametrize(("share", "mixed"), [(0.0, 0), (0.25, 25), (1.0, 100)])
def test_a_share_of_the_batches_is_random(share, mixed):
    batches = list(make(random_share=share))
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    lengths = make().lengths
    assert sum(np.ptp(lengths[batch]) > 100 for batch in batches) == mixed  # of 399, ten drawn at random span 330


def test_no_share():
    with pytest.raises(
        ValueError, match=r"'random_share' of LengthGroupedBatchSampler must be a number from 0 to 1. Got 2"
    ):
        make(random_share=2)


def test_the_order_follows_seed_and_epoch():
    first, second = make(), make()
    assert list(first) == list(second)
    second.set_epoch(1)
    assert list(first) != list(second)
    assert list(make(seed=1)) == list(second)


def test_a_dataset_without_texts():
    with pytest.raises(ValueError, match=r"need a column of texts. Got the columns \['label'\]"):
        LengthGroupedBatchSampler(Dataset.from_dict({"label": [1, 2]}), 2, False, ["label"])


# --- in the order of a store

ROWS = 100


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A hundred rows in ten shards; row numbers do not follow the shards, because the teacher is asked the longest first."""
    teacher = Teacher(lambda texts: np.ones((len(texts), 32)), name="t", revision="1")
    path = tmp_path_factory.mktemp("store") / "s"
    return TeacherStore.create(
        path, ["cat " * number for number in range(ROWS)], teacher, shard_rows=10, show_progress=False
    )


def in_store_order(store, batch_size=5, drop_last=False, *, labels=range(ROWS), seed=0, **options):
    dataset = Dataset.from_dict({"text": ["x"] * len(labels), "label": list(labels)})
    return StoreOrderBatchSampler(
        dataset, batch_size, drop_last, ["label"], torch.Generator(), seed, store=store, **options
    )


@pytest.mark.parametrize(("batch_size", "drop_last"), [(5, False), (7, False), (7, True), (200, False), (200, True)])
@pytest.mark.parametrize("window_shards", [1, 3, 50])
def test_every_row_of_the_store_once(store, batch_size, drop_last, window_shards):
    batches = in_store_order(store, batch_size, drop_last, window_shards=window_shards)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == len(set(rows)) == (ROWS // batch_size * batch_size if drop_last else ROWS)
    assert len(list(batches)) == len(batches)
    assert all(len(batch) == batch_size for batch in list(batches)[:-1])


def test_a_window_has_few_shards_which_differ_by_epoch(store):
    batches = in_store_order(store, window_shards=2)
    windows = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        rows = np.array(list(batches)).reshape(5, 20)
        assert [len(set(store.shards(window))) for window in rows] == [2] * 5
        assert any(len(set(store.shards(batch))) == 2 for batch in rows.reshape(20, 5))  # shuffled
        windows.append({frozenset(store.shards(window).tolist()) for window in rows})
    assert windows[0] != windows[1]
    assert list(batches) == list(in_store_order(store, window_shards=2, seed=1))


def test_labels_decide_and_not_places(store):
    labels = [[row, 0] for row in reversed(range(ROWS))]
    batches = in_store_order(store.view(), 10, labels=labels, window_shards=1)
    for batch in batches:
        assert len({int(store.shards([ROWS - 1 - place])[0]) for place in batch}) == 1


def test_a_store_order_that_cannot_be(store):
    with pytest.raises(ValueError, match=r"need a label column of row numbers. Got the columns \['text'\]"):
        StoreOrderBatchSampler(Dataset.from_dict({"text": ["a"]}), 2, False, ["label"], store=store)
    with pytest.raises(ValueError, match="at least one row. Got an empty one"):
        in_store_order(store, labels=[])
    with pytest.raises(ValueError, match="'window_shards' .* from 1. Got 0"):
        in_store_order(store, window_shards=0)


def test_the_trainer_takes_it(store, make_student, tmp_path):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    student = make_student()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        batch_sampler=functools.partial(StoreOrderBatchSampler, store=store, window_shards=2),
    )
    dataset = Dataset.from_dict({"text": ["a cat"] * ROWS, "label": list(range(ROWS))})
    loss = losses.CosineDistill(student, teacher=store)
    trainer = SentenceTransformerTrainer(model=student, args=arguments, train_dataset=dataset, loss=loss)
    assert isinstance(trainer.get_train_dataloader().batch_sampler, StoreOrderBatchSampler)
    assert trainer.train().global_step == 2


class TestShares:
    def make(self, shares, rows=(400, 40), *, seed=0) -> SharedBatchSampler:
        parts = [list(range(count)) for count in rows]
        generator = torch.Generator()
        samplers = [DefaultBatchSampler(RandomSampler(part, generator=generator), 4, False) for part in parts]
        return SharedBatchSampler(ConcatDataset(parts), samplers, generator, seed, shares=shares)

    def test_batches_of_one_source_by_their_shares(self):
        batches = list(self.make([1, 3]))
        assert len(batches) == 110
        second = [batch for batch in batches if min(batch) >= 400]
        assert all(max(batch) < 400 for batch in batches if batch not in second)
        assert 70 < len(second) < 95  # 82.5 on average; by rows it would be 10
        # The second one is gone through again and again, each time in whole and in another order.
        passes = [[row for batch in second[start : start + 10] for row in batch] for start in (0, 10)]
        assert sorted(passes[0]) == sorted(passes[1]) == list(range(400, 440))
        assert passes[0] != passes[1]

    def test_the_order_follows_seed_and_epoch(self):
        first, again = self.make([2, 1]), self.make([2, 1])
        assert list(first) == list(again) == list(first)
        again.set_epoch(1)
        assert list(first) != list(again)
        assert list(first) != list(self.make([2, 1], seed=1))

    def test_a_source_without_batches_is_passed_over(self):
        dataset = Dataset.from_dict({"text": ["a", "a", "a"]})
        empty = NoDuplicatesBatchSampler(dataset, 4, True, generator=torch.Generator())
        other = DefaultBatchSampler(RandomSampler(range(8)), 4, True)
        batches = SharedBatchSampler(ConcatDataset([dataset, range(8)]), [empty, other], shares=[1, 1])
        assert all(min(batch) >= 3 for batch in batches)

    @pytest.mark.parametrize("shares", [[1], [1, 0], [1, float("inf")]])
    def test_wrong_shares(self, shares):
        with pytest.raises(ValueError, match="must be 2 numbers above 0, one for each dataset. Got"):
            self.make(shares)
