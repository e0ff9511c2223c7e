"""A model in the place of MiniLM, and made data in the places of the public ones, a thousandth of their size."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import BertConfig

NOVELS = 5
#: Of a part; two of them together have the 4,096 tokens that the tests measure at.
WORDS_OF_A_PART = 2200


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder as the docstrings of benchmarks/pretraining.py, pairs.py and stsb.py describe it."""
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    words = [consonant + vowel + end for consonant in "bdgklmnprst" for vowel in "aeiou" for end in "nrst"]

    def text(count: int) -> str:
        return " ".join(generator.choices(words, k=count))

    def pairs(first: str, second: str, count: int, **columns: list) -> dict[str, list]:
        return {first: [text(8) for _ in range(count)], second: [text(8) for _ in range(count)], **columns}

    parts = [
        {"doc": f"novel {n}", "part": str(p), "text": text(WORDS_OF_A_PART)} for n in range(NOVELS) for p in (1, 2)
    ]
    documents, queries = [f"d{n}" for n in range(40)], [f"q{n}" for n in range(24)]
    judged = {"query_id": queries, "corpus_id": documents[:24], "score": [1] * 24}
    tables = {
        "novel_parts_4k/parts": {name: [part[name] for part in parts] for name in ("doc", "part", "text")},
        "wikitext2_validtest/articles": {"text": [text(300) for _ in range(2)]},
        **{f"wikisplit/{part}": pairs("complex", "split", 40) for part in ("tune", "validation", "test")},
        "snli_devtest/dev": pairs("premise", "hypothesis", 80, label=["entailment", "neutral"] * 40),
        **{
            f"stsb/{part}": pairs("sentence1", "sentence2", 8, score=list(range(8)))
            for part in ("train", "dev", "test")
        },
        "scifact/corpus": {
            "_id": documents,
            "title": [text(3) for _ in documents],
            "text": [text(20) for _ in documents],
        },
        "scifact/queries": {"_id": queries, "text": [text(6) for _ in queries]},
        "scifact/qrels_train": judged,
        "scifact/qrels_test": judged,
    }
    for name, columns in tables.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def minilm(tmp_path_factory) -> str:
    """Folder of a model of all-MiniLM-L6-v2's shape, without weights: what a recipe asks before it runs."""
    folder = str(tmp_path_factory.mktemp("minilm"))
    BertConfig(hidden_size=384, num_hidden_layers=6).save_pretrained(folder)
    return folder
