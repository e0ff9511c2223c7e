"""Where every method's student starts, and the vectors of a finished one."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.quality.tasks import TOKENS, Task, all_texts
from st_distill.recipe.schema import Student

#: Layers of the teacher that a student keeps; none: a static embedding of its tokens.
LAYERS = {"3-layer": [0, 2, 5], "1-layer": [5], "static": None}


def start(name: str, teacher: str, out: Path, *, layers: list[int] | None = None) -> Student:
    """The student of that name as a recipe describes it; a static one has to be made (`make_static`) before it is built.

    Args:
        name: of `LAYERS`.
        teacher: name or folder of the teacher.
        out: where a static student goes.
        layers: keep these layers instead.
    """
    layers = layers or LAYERS[name]
    if layers is not None:
        return Student(model=teacher, layers=layers, max_seq_length=TOKENS)
    return Student(model=str(_static_folder(out)))


def make_static(teacher: str, out: Path) -> None:
    """Write the static student of a teacher into ``out``, unless it is there; one command at a time, by `Workshop`'s lock."""
    with FileLock(out / "lock"):
        if not (_static_folder(out) / "modules.json").exists():
            static_student(SentenceTransformer(teacher, device="cpu")).save(str(_static_folder(out)))


def _static_folder(out: Path) -> Path:
    return out / "students" / "static"


def static_student(teacher: SentenceTransformer) -> SentenceTransformer:
    """A static embedding whose token vectors are the teacher's of the token alone, weighted down where it is frequent.

    Frequency is Zipf's guess from the order of the vocabulary: weight = a / (a + p), a = 1e-3, after Arora et al. 2017.
    """
    tokenizer = teacher.tokenizer
    words = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [word.removeprefix("##") for word in words]
    vectors = normalize(teacher.encode(texts, batch_size=256, convert_to_tensor=True, show_progress_bar=False), dim=1)
    ranks = torch.arange(1, len(words) + 1)
    probability = (1 / ranks) / (1 / ranks).sum()
    weights = (vectors * (1e-3 / (1e-3 + probability))[:, None]).contiguous()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def encode(model: SentenceTransformer, tasks: list[Task]) -> tuple[dict[str, Tensor], float]:
    """The model's vectors (texts, width) of each task's texts, and the seconds that it took."""
    if isinstance(next(iter(model.children())), Transformer):
        model.max_seq_length = TOKENS
    texts = all_texts(tasks)
    started = time.perf_counter()
    vectors = model.encode(texts, batch_size=32, show_progress_bar=False)
    seconds = time.perf_counter() - started
    rows = {text: row for row, text in enumerate(texts)}
    return {
        task.name: torch.from_numpy(np.stack([vectors[rows[text]] for text in task.texts]).astype(np.float32))
        for task in tasks
    }, seconds
