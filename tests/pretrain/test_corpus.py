from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from st_distill.pretrain.corpus import EpochSampler, MaskedRows, MaskedStream, Padding, rows_of, write_rows
from st_distill.pretrain.masking import IGNORED, WordMasker
from st_distill.pretrain.tokenizer import Tokens


@pytest.fixture
def masker(wordpiece):
    return WordMasker(mask_id=wordpiece.tokenizer.mask_token_id, ordinary_ids=wordpiece.ordinary_ids)


def test_the_beginning_of_each_document(tokenizer, documents):
    rows = list(rows_of(["", *documents, "   "], tokenizer, max_length=32, packing=False))
    assert len(rows) == len(documents)
    for text, row in zip(documents, rows):
        whole = tokenizer.tokenizer(text).input_ids
        assert row.input_ids.tolist() == (whole if len(whole) <= 32 else [*whole[:31], whole[-1]])
        assert (row.words[[0, -1]] == -1).all()


def test_packed_rows_hold_every_token_once(tokenizer, documents):
    rows = list(rows_of(documents, tokenizer, max_length=32, packing=True))
    assert {len(row.input_ids) for row in rows[:-1]} == {32}
    inner = np.concatenate([row.input_ids[1:-1] for row in rows])
    separator = tokenizer.tokenizer.sep_token_id
    ids = [tokenizer.tokenizer(text, add_special_tokens=False).input_ids for text in documents]
    assert inner[inner != separator].tolist() == list(itertools.chain.from_iterable(ids))
    assert not any(row.input_ids[1] == separator for row in rows)
    for row in rows:
        assert ((row.words == -1) == np.isin(row.input_ids, tokenizer.tokenizer.all_special_ids)).all()
        # The words of two documents in a row keep numbers of their own.
        changes = np.flatnonzero(np.diff(row.words))
        numbers = [row.words[0], *row.words[changes + 1]]
        words = [number for number in numbers if number >= 0]
        assert len(words) == len(set(words))


class Digits:
    """A tokenizer of figures: each is a token and a word; 100 stands before a text, and what is given after it."""

    def __init__(self, *after):
        self.after = np.array(after, np.int32)
        self.added = 1 + len(after)

    def contents(self, texts, *, limit=None):
        for text in texts:
            yield Tokens(np.array(list(map(int, text)), np.int32), np.arange(len(text), dtype=np.int32))

    def framed(self, tokens):
        return Tokens(
            np.array([100, *tokens.input_ids, *self.after]), np.array([-1, *tokens.words, *[-1] * len(self.after)])
        )


@pytest.mark.parametrize(
    ("texts", "after", "rows"),
    [
        # a document ends where its row does; one fills a row and a half; the last row is full
        (["1234", "5", "67"], [102], [[1, 2, 3, 4], [5, 102, 6, 7]]),
        (["12", "3456", "78"], [102], [[1, 2, 102, 3], [4, 5, 6, 102], [7, 8]]),
        (["12345678", "9"], [102], [[1, 2, 3, 4], [5, 6, 7, 8], [9]]),
        # of two separators the first has room
        (["123", "4"], [102, 103], [[1, 2, 3, 102], [4]]),
    ],
)
def test_a_row_begins_with_words(texts, after, rows):
    found = list(rows_of(texts, Digits(*after), max_length=4 + 1 + len(after), packing=True))
    assert [row.input_ids.tolist() for row in found] == [[100, *row, *after] for row in rows]
    for row in found:
        assert ((row.words == -1) == (row.input_ids >= 100)).all()


def test_rows_are_kept(wordpiece, documents, tmp_path):
    path = tmp_path / "corpus" / "rows.arrow"
    rows = list(rows_of(documents, wordpiece, max_length=24, packing=False))
    assert len(write_rows(path, rows)) == len(rows)
    again = write_rows(path, iter(()))
    assert again[3]["input_ids"] == rows[3].input_ids.tolist()
    with pytest.raises(ValueError, match="The corpus must have documents with words. Got none"):
        write_rows(tmp_path / "none.arrow", iter(()))
    assert [file.name for file in tmp_path.iterdir()] == ["corpus"]


def test_no_room_for_a_word(wordpiece, documents):
    with pytest.raises(ValueError, match="The 'max_length' must be above 2"):
        list(rows_of(documents, wordpiece, max_length=2, packing=False))


def batches(data, batch_size, workers=0, *, sampler=None, count=12):
    loader = DataLoader(data, batch_size, sampler=sampler, num_workers=workers, collate_fn=Padding(0))
    rows = (
        [row for batch in loader for row in zip(batch["input_ids"], batch["attention_mask"], batch["labels"])]
        if (sampler is not None)
        else [
            row
            for batch in itertools.islice(loader, count // batch_size)
            for row in zip(batch["input_ids"], batch["attention_mask"], batch["labels"])
        ]
    )
    return [(ids[mask == 1].tolist(), labels[mask == 1].tolist()) for ids, mask, labels in rows]


def test_masks_do_not_depend_on_batches_and_workers(wordpiece, documents, masker, tmp_path):
    rows = write_rows(tmp_path / "rows.arrow", rows_of(documents, wordpiece, max_length=24, packing=False))
    data, order = MaskedRows(rows, masker), EpochSampler(len(rows), seed=3)
    first = batches(data, 5, sampler=order)
    assert first == batches(data, 12, workers=2, sampler=order)
    order.epoch = 1
    second = batches(data, 5, sampler=order)
    assert sorted(map(len, (ids for ids, _ in first))) == sorted(map(len, (ids for ids, _ in second)))
    assert first != second


def test_a_stream_is_read_over_and_over(wordpiece, documents, masker):
    def make(**options):
        options = {"packing": False, "buffer": 10, "batch_rows": 4, "seed": 3, **options}
        return MaskedStream(lambda: iter(documents[:9]), wordpiece, masker, max_length=24, **options)

    rows = list(itertools.islice(make(), 27))
    originals = [torch.where(row["labels"] == IGNORED, row["input_ids"], row["labels"]).tolist() for row in rows]
    passes = [originals[start : start + 9] for start in (0, 9, 18)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert passes[0] != passes[1]
    masks = [
        dict(zip(map(tuple, part), (row["labels"].tolist() for row in rows[9 * n :]))) for n, part in enumerate(passes)
    ]
    assert masks[0] != masks[1]
    # The order is the same however many workers share the batches out among themselves.
    assert batches(make(), 4, count=24) == batches(make(), 4, workers=2, count=24)
    packed = list(itertools.islice(make(packing=True), 5))
    assert {len(row["input_ids"]) for row in packed} == {24}


def test_a_stream_without_words_does_not_turn_forever(wordpiece, masker):
    stream = MaskedStream(
        lambda: iter(["", " "]), wordpiece, masker, max_length=24, packing=False, buffer=2, batch_rows=1, seed=0
    )
    with pytest.raises(ValueError, match="The corpus must have documents with words"):
        next(iter(stream))


def test_padding_is_not_predicted():
    rows = [{"input_ids": torch.arange(n), "labels": torch.arange(n)} for n in (3, 5)]
    batch = Padding(9, multiple=4)(rows)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 9, 9, 9, 9, 9], [0, 1, 2, 3, 4, 9, 9, 9]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5]
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
