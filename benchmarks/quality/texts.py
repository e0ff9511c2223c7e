"""The training texts: pairs of related texts in a stated mixture, without any text that a task is measured on.

Shares of the rows (`SHARES`), each row a pair:

- sentences: STS-B train, WikiSplit, and SNLI's dev set (premise and hypothesis), without their labels;
- questions: CLINC150's training texts, paired at random, without their labels;
- abstracts: from SciFact's corpus, the title with a piece of 1 to 3 sentences, or two such pieces of one document;
- novels: two neighbouring pieces of 30 to 80 words from the novels that no task uses.

A text that a task is measured on is left out where it is the same to the letter. Of the 74,661 texts of 40,000 pairs 67 equal
such a one but for case and punctuation (test: 16 of STS-B, 11 of CLINC150, 12 of the closeness to the teacher, none of
SciFact's queries and of the novels; dev: 17, 12 and 3).

SciFact's documents are themselves searched in the task, so their texts are known to the student, as they are to whoever
distils for a corpus of their own; its queries are not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas
import torch
from datasets import Dataset
from torch import Tensor

#: Share of each source in the rows.
SHARES = {"sentences": 0.6, "questions": 0.15, "abstracts": 0.2, "novels": 0.05}
#: Novels, in the order of a seeded shuffle: for training, for choosing, and the rest for the final table.
NOVELS = {"train": 15, "dev": 10}
#: How the pairs of abstracts and novels are cut, see `training_pairs`.
FORMS = ("related", "long", "pieces")
#: Words from one pair of a novel to the next, which no pair exceeds.
_NOVEL_STEP = 240
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


def training_pairs(data: Path, *, rows: int, without: set[str], form: str = "related", seed: int = 0) -> Dataset:
    """``rows`` pairs (columns first, second) in the mixture of `SHARES`, shuffled.

    Args:
        data: folder of the data.
        rows: pairs in all; a source that has fewer gives what it has.
        without: texts that may not occur.
        form: ``related``; ``long``: the second text of an abstract's pair is the whole document, and of a novel's 140 to 160
            words; ``pieces``: those of abstracts have 1 to 10 sentences, where the document has as many.
        seed: of the choice and the cuts.
    """
    generator = random.Random(seed)
    sources = {
        "sentences": _sentences,
        "questions": _questions,
        "abstracts": {"long": _documents, "pieces": partial(_abstracts, most=10)}.get(form, _abstracts),
        "novels": partial(_novels, second=(140, 160)) if form == "long" else _novels,
    }
    chosen: list[Pair] = []
    for name, source in sources.items():
        pairs = [pair for pair in dict.fromkeys(source(data, generator)) if without.isdisjoint(pair)]
        generator.shuffle(pairs)
        chosen += pairs[: round(SHARES[name] * rows)]
    generator.shuffle(chosen)
    return Dataset.from_dict({"first": [pair[0] for pair in chosen], "second": [pair[1] for pair in chosen]})


def variant(pairs: Dataset, name: str, vectors: Tensor | None = None, *, seed: int = 0) -> Dataset:
    """The training pairs in another order or form, for trials; each text stays in as many rows, but for what is said.

    - ``related``: as they are;
    - ``strangers``: the second texts in another order, so that only chance brings related ones into one batch;
    - ``neighbours``: rows of two pairs (columns first to fourth), the second pair being near the first by the teacher;
    - ``shuffled``: the words of one text in twenty in another order;
    - ``short``: the rows whose texts together have at most 60 words, some of them again in the places of the others.

    Args:
        pairs: columns first and second.
        name: of the variant.
        vectors: (rows, width) the teacher's unit vectors of the first texts, for ``neighbours``.
        seed: of the choices.
    """
    generator = random.Random(seed)
    first, second = list(pairs["first"]), list(pairs["second"])
    if name == "strangers":
        generator.shuffle(second)
    elif name == "shuffled":
        first, second = ([_shuffled_words(text, generator) for text in texts] for texts in (first, second))
    elif name == "short":
        kept = [row for row in range(len(first)) if len(first[row].split()) + len(second[row].split()) <= 60]
        kept += generator.choices(kept, k=len(first) - len(kept))
        first, second = ([texts[row] for row in kept] for texts in (first, second))
    elif name == "neighbours" and vectors is not None:
        couples = _couples(vectors)
        columns = {
            "first": [first[one] for one, _ in couples],
            "second": [second[one] for one, _ in couples],
            "third": [first[other] for _, other in couples],
            "fourth": [second[other] for _, other in couples],
        }
        return Dataset.from_dict(columns)
    elif name != "related":
        raise ValueError(f"The variant of the texts must be one that the description names. Got '{name}' instead.")
    return Dataset.from_dict({"first": first, "second": second})


def _shuffled_words(text: str, generator: random.Random) -> str:
    if generator.random() >= 0.05:
        return text
    words = text.split()
    generator.shuffle(words)
    return " ".join(words)


def _couples(vectors: Tensor, candidates: int = 50) -> list[tuple[int, int]]:
    """Each row with the nearest one that is still free, among its nearest ``candidates``; rows left over go in pairs."""
    free = torch.ones(len(vectors), dtype=torch.bool)
    couples, left = [], []
    for start in range(0, len(vectors), 1024):
        part = vectors[start : start + 1024] @ vectors.T
        nearest = part.topk(min(candidates + 1, len(vectors))).indices
        for row, near in enumerate(nearest.tolist(), start):
            if not free[row]:
                continue
            free[row] = False
            other = next((other for other in near if free[other]), None)
            if other is None:
                left.append(row)
            else:
                free[other] = False
                couples.append((row, other))
    return couples + list(zip(left[::2], left[1::2]))


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


def _abstracts(data: Path, generator: random.Random, *, most: int = 3) -> Iterator[Pair]:
    for document in pandas.read_parquet(data / "scifact/corpus.parquet").itertuples():
        sentences = _SENTENCE_END.split(document.text.strip())
        first = _piece(sentences, generator, most)
        yield document.title, first
        if len(sentences) > 1:
            middle = generator.randint(1, len(sentences) - 1)
            yield _piece(sentences[:middle], generator, most), _piece(sentences[middle:], generator, most)


def _documents(data: Path, generator: random.Random) -> Iterator[Pair]:
    for document in pandas.read_parquet(data / "scifact/corpus.parquet").itertuples():
        yield _piece(_SENTENCE_END.split(document.text.strip()), generator), f"{document.title} {document.text}"


def _piece(sentences: list[str], generator: random.Random, most: int = 3) -> str:
    count = generator.randint(1, min(most, len(sentences)))
    start = generator.randint(0, len(sentences) - count)
    return " ".join(sentences[start : start + count])


def _novels(data: Path, generator: random.Random, *, second: tuple[int, int] = (30, 80)) -> Iterator[Pair]:
    for text in novels_of(data, "train")["text"]:
        words, place = text.split(), 0
        while len(words) - place > _NOVEL_STEP:
            middle = place + generator.randint(30, 80)
            end = middle + generator.randint(*second)
            yield " ".join(words[place:middle]), " ".join(words[middle:end])
            place += _NOVEL_STEP
