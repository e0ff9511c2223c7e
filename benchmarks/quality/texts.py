"""The training texts: pairs of related texts in a stated mixture, without any text that a task is measured on.

Shares of the rows (`SHARES`), each row a pair:

- sentences: STS-B train, WikiSplit, and SNLI's dev set (premise and hypothesis), without their labels;
- questions: CLINC150's training texts, paired at random, without their labels;
- abstracts: from SciFact's corpus, the title with a piece of 1 to 3 sentences, or two such pieces of one document;
- novels: two neighbouring pieces of 30 to 80 words from the novels that no task uses.

SciFact's documents are themselves searched in the task, so their texts are known to the student, as they are to whoever
distils for a corpus of their own; its queries are not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pandas
from datasets import Dataset

#: Share of each source in the rows.
SHARES = {"sentences": 0.6, "questions": 0.15, "abstracts": 0.2, "novels": 0.05}
#: Novels, in the order of a seeded shuffle: for training, for choosing, and the rest for the final table.
NOVELS = {"train": 15, "dev": 10}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

Pair = tuple[str, str]


def novels_of(data: Path, split: str) -> pandas.DataFrame:
    """The parts (doc, part, text) of the novels of one split: train, dev or test."""
    parts = pandas.read_parquet(data / "novel_parts_4k/parts.parquet")
    books = sorted(parts["doc"].unique())
    random.Random(0).shuffle(books)
    train, dev = NOVELS["train"], NOVELS["train"] + NOVELS["dev"]
    chosen = {"train": books[:train], "dev": books[train:dev], "test": books[dev:]}[split]
    return parts[parts["doc"].isin(chosen)].reset_index(drop=True)


def training_pairs(data: Path, *, rows: int, without: set[str], seed: int = 0) -> Dataset:
    """``rows`` pairs (columns first, second) in the mixture of `SHARES`, shuffled.

    Args:
        data: folder of the data.
        rows: pairs in all; a source that has fewer gives what it has.
        without: texts that may not occur.
        seed: of the choice and the cuts.
    """
    generator = random.Random(seed)
    sources = {"sentences": _sentences, "questions": _questions, "abstracts": _abstracts, "novels": _novels}
    chosen: list[Pair] = []
    for name, source in sources.items():
        pairs = [pair for pair in dict.fromkeys(source(data, generator)) if without.isdisjoint(pair)]
        generator.shuffle(pairs)
        chosen += pairs[: round(SHARES[name] * rows)]
    generator.shuffle(chosen)
    return Dataset.from_dict({"first": [pair[0] for pair in chosen], "second": [pair[1] for pair in chosen]})


def _sentences(data: Path, generator: random.Random) -> Iterator[Pair]:
    files = [("stsb/train", "sentence1", "sentence2")]
    files += [(f"wikisplit/{part}", "complex", "split") for part in ("tune", "validation", "test")]
    files += [("snli_devtest/dev", "premise", "hypothesis")]
    for file, first, second in files:
        frame = pandas.read_parquet(data / f"{file}.parquet", columns=[first, second])
        yield from zip(frame[first], frame[second])


def _questions(data: Path, generator: random.Random) -> Iterator[Pair]:
    texts = list(dict.fromkeys(pandas.read_parquet(data / "clinc150/train.parquet")["text"]))
    generator.shuffle(texts)
    yield from zip(texts[::2], texts[1::2])


def _abstracts(data: Path, generator: random.Random) -> Iterator[Pair]:
    for document in pandas.read_parquet(data / "scifact/corpus.parquet").itertuples():
        sentences = _SENTENCE_END.split(document.text.strip())
        first = _piece(sentences, generator)
        yield document.title, first
        if len(sentences) > 1:
            middle = generator.randint(1, len(sentences) - 1)
            yield _piece(sentences[:middle], generator), _piece(sentences[middle:], generator)


def _piece(sentences: list[str], generator: random.Random) -> str:
    count = generator.randint(1, min(3, len(sentences)))
    start = generator.randint(0, len(sentences) - count)
    return " ".join(sentences[start : start + count])


def _novels(data: Path, generator: random.Random) -> Iterator[Pair]:
    for text in novels_of(data, "train")["text"]:
        words, place = text.split(), 0
        while len(words) - place > 240:
            middle = place + generator.randint(30, 80)
            end = middle + generator.randint(30, 80)
            yield " ".join(words[place:middle]), " ".join(words[middle:end])
            place += 240
