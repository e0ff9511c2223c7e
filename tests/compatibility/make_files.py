"""Writes the files of this version that later ones must read: once for each version that changes a format.

    python tests/compatibility/make_files.py

A store of two teachers and roles, in half precision and in bytes; a student as a run keeps it; what was exported of it; and the
vectors that all of them gave.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

import st_distill
from st_distill import Teacher, TeacherStore, export
from st_distill.modules import MatryoshkaProjection
from st_distill.recipe.stages import save_model

WORDS = ["[UNK]", "a", "cat", "sleeps", "in", "the", "house", "dog", "runs", "to", "river"]
TEXTS = ["a cat sleeps", "the dog runs to the river", "a house", "unheard of", ""]
ROWS = [(text, role) for text in TEXTS for role in ("query", None)]


def vectors_of(texts: list[str]) -> np.ndarray:
    """(texts, 6): different for different texts, the same on every machine."""
    codes = np.array([sum((place + 1) * code for place, code in enumerate(text.encode())) for text in texts])
    return np.sin(np.outer(codes + 1, np.arange(1, 7)))


def rows_of(store: TeacherStore) -> np.ndarray:
    """The row number of each of `ROWS`."""
    return np.array([store.ids([text], role=role)[0] for text, role in ROWS])


def build(folder: Path) -> None:
    first = Teacher(vectors_of, name="first", revision="1", prompts={"query": "q: "})
    second = Teacher(lambda texts: vectors_of(texts)[:, :3], name="second", revision="abc")
    TeacherStore.create(folder / "store", ROWS, first, dtype="float16", shard_rows=4, show_progress=False)
    store = TeacherStore.create(folder / "store", ROWS, second, dtype="int8", shard_rows=4, show_progress=False)

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = torch.randn(len(WORDS), 8).numpy()
    student = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=table), MatryoshkaProjection(8, [6, 2])],
        prompts={"query": "the "},
        device="cpu",
    )
    save_model(student, folder / "student")
    exported = export(student, folder / "exported")
    expected = {
        "store": store.gather(rows_of(store)).tolist(),
        "first": store.gather(rows_of(store), teachers=["first"]).tolist(),
        "student": student.encode(TEXTS, show_progress_bar=False).tolist(),
        "exported": exported.encode(TEXTS, show_progress_bar=False).tolist(),
    }
    (folder / "vectors.json").write_text(json.dumps(expected), encoding="utf-8")
    for name in ("lock", "README.md"):
        for path in folder.rglob(name):
            path.unlink()


if __name__ == "__main__":
    target = Path(__file__).parent / st_distill.__version__
    if target.exists():
        sys.exit(f"{target} is there already.")
    target.mkdir()
    build(target)
