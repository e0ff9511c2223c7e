"""Documents as rows of tokens: kept on disk, or read while the training goes on; masked when they are asked for."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.arrow_writer import ArrowWriter
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from st_distill.files import is_whole, replacing, sha256, write_checksum
from st_distill.pretrain.masking import IGNORED, WordMasker
from st_distill.pretrain.tokenizer import Tokens, WordTokenizer

__all__ = ["EpochSampler", "MaskedRows", "MaskedStream", "Padding", "rows_of", "write_rows"]

logger = logging.getLogger(__name__)

_FEATURES = datasets.Features({name: datasets.List(datasets.Value("int32")) for name in Tokens._fields})
#: Documents that are tokenised together.
_CHUNK = 256


def rows_of(texts: Iterable[str], tokenizer: WordTokenizer, *, max_length: int, packing: bool) -> Iterator[Tokens]:
    """The rows that documents become, none of them longer than ``max_length`` tokens, special ones included.

    Without packing, a row is the beginning of a document. With it, the documents are put end to end, with the tokenizer's
    separator between two of them in a row, and cut into rows of full length; only the last may be shorter. A word that a row
    ends in goes on as a word of its own in the next. What has no words is left out.
    """
    room = max_length - tokenizer.added
    if room < 1:
        raise ValueError(
            f"The 'max_length' must be above {tokenizer.added}, the tokenizer's special tokens. Got {max_length}."
        )
    every = itertools.chain.from_iterable(
        tokenizer.contents(chunk, limit=None if packing else room) for chunk in _chunks(filter(_has_words, texts))
    )
    contents = (tokens for tokens in every if (tokens.words >= 0).any())
    for tokens in _packed(contents, tokenizer.after, room) if packing else contents:
        yield tokenizer.framed(tokens)


def _has_words(text: str) -> bool:
    # A byte-level tokenizer takes spaces alone for a word.
    return bool(text) and not text.isspace()


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, _CHUNK)):
        yield chunk


def _packed(contents: Iterable[Tokens], separator: np.ndarray, room: int) -> Iterator[Tokens]:
    ids, words = np.empty(0, np.int32), np.empty(0, np.int32)
    for tokens in contents:
        # A row's end separates as well: where one is full, or filled by the separator's beginning, the next begins with words.
        between = separator[: room - len(ids)] if len(ids) else separator[:0]
        # Numbers of words start anew in every document, and only differ from those beside them if they go on counting.
        following = np.where(tokens.words < 0, -1, tokens.words + words.max(initial=-1) + 1)
        ids = np.concatenate([ids, between, tokens.input_ids])
        words = np.concatenate([words, np.full(len(between), -1, np.int32), following.astype(np.int32)])
        while len(ids) >= room:
            yield Tokens(ids[:room], words[:room])
            ids, words = ids[room:], words[room:]
    if (words >= 0).any():
        yield Tokens(ids, words)


def write_rows(path: Path, rows: Iterable[Tokens]) -> datasets.Dataset:
    """The rows as an Arrow file, read from there; what is at ``path`` already is taken as it is, if it is as it was written.

    Raises:
        ValueError: where there are no rows.
    """
    if not is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            with ArrowWriter(stream=file, features=_FEATURES) as writer:
                for row in rows:
                    writer.write(row._asdict())
                count, _ = writer.finalize(close_stream=False)
            if count == 0:
                raise ValueError("The corpus must have documents with words. Got none: see its columns.")
        write_checksum(path, sha256(path))
    return datasets.Dataset.from_file(str(path))


class EpochSampler(Sampler[tuple[int, int]]):
    """Pairs of an epoch and a row, in an order that the seed and the epoch decide.

    The epoch travels with the row, so that workers of a data loader know it, however long they live. Whoever trains sets
    ``epoch``.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        for row in np.random.default_rng([self.seed, epoch]).permutation(self.count):
            yield epoch, int(row)

    def __len__(self) -> int:
        return self.count


class MaskedRows(Dataset[dict[str, Tensor]]):
    """Rows of tokens, masked for the epoch they are asked for: ``rows[epoch, index]``, as `EpochSampler` gives them."""

    def __init__(self, rows: datasets.Dataset, masker: WordMasker) -> None:
        self.rows = rows.with_format("numpy")
        self.masker = masker

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = place
        row = self.rows[index]
        return _masked(Tokens(row["input_ids"], row["words"]), self.masker, epoch)


class MaskedStream(IterableDataset[dict[str, Tensor]]):
    """Documents read, shuffled, tokenised and masked on the way to the model, over and over.

    Every pass over them is an epoch. The order follows from the seed alone, whatever the number of workers: each of them
    reads all the texts, and tokenises those of its own batches.

    Args:
        texts: a function that begins to read the documents anew.
        tokenizer: of the documents.
        masker: of the rows.
        max_length: tokens of a row at most.
        packing: see `rows_of`; then one worker alone may read.
        buffer: documents that are held to be shuffled among each other.
        batch_rows: rows that a worker makes before it is the next one's turn: those of a batch.
        seed: of the shuffling.
    """

    def __init__(
        self,
        texts: Callable[[], Iterable[str]],
        tokenizer: WordTokenizer,
        masker: WordMasker,
        *,
        max_length: int,
        packing: bool,
        buffer: int,
        batch_rows: int,
        seed: int,
    ) -> None:
        self.texts = texts
        self.tokenizer = tokenizer
        self.masker = masker
        self.max_length = max_length
        self.packing = packing
        self.buffer = buffer
        self.batch_rows = batch_rows
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if self.packing and turns > 1:
            raise ValueError(
                f"A packed stream is read by one worker. Got {turns}: set dataloader_num_workers to 0 or 1."
            )
        mine = (
            (epoch, text)
            for place, (epoch, text) in enumerate(self._texts())
            if place // self.batch_rows % turns == turn
        )
        for epoch, texts in itertools.groupby(mine, key=lambda pair: pair[0]):
            chosen = (text for _, text in texts)
            for tokens in rows_of(chosen, self.tokenizer, max_length=self.max_length, packing=self.packing):
                yield _masked(tokens, self.masker, epoch)

    def _texts(self) -> Iterator[tuple[int, str]]:
        """Texts with words, shuffled, each with its epoch."""
        for epoch in itertools.count():
            empty = True
            for text in _shuffled(self.texts(), self.buffer, np.random.default_rng([self.seed, epoch])):
                # What has no word must not take a place in a batch; that a tokenizer finds none in letters is not seen here.
                if _has_words(text):
                    empty = False
                    yield epoch, text
            if empty:
                raise ValueError("The corpus must have documents with words. Got none: see its columns.")


def _shuffled(texts: Iterable[str], buffer: int, generator: np.random.Generator) -> Iterator[str]:
    held: list[str] = []
    for text in texts:
        if len(held) < buffer:
            held.append(text)
            continue
        place = int(generator.integers(buffer))
        held[place], text = text, held[place]
        yield text
    generator.shuffle(held)
    yield from held


def _masked(tokens: Tokens, masker: WordMasker, epoch: int) -> dict[str, Tensor]:
    masked = masker(tokens.input_ids, tokens.words, epoch=epoch)
    return {"input_ids": torch.from_numpy(masked.input_ids), "labels": torch.from_numpy(masked.labels)}


class Padding:
    """Puts rows of tokens into one batch: ``input_ids``, ``attention_mask`` and ``labels``, each int64 (rows, longest).

    Args:
        pad_id: the token behind a shorter row, which is not attended to and not predicted.
        multiple: the length of a batch is rounded up to a multiple of this, which half precision is faster with.
    """

    def __init__(self, pad_id: int, *, multiple: int = 1) -> None:
        self.pad_id = pad_id
        self.multiple = multiple

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), -(-longest // self.multiple) * self.multiple)
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORED),
        }
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][place, :length] = row["input_ids"]
            batch["attention_mask"][place, :length] = 1
            batch["labels"][place, :length] = row["labels"]
        return batch
