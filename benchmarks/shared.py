"""What the benchmarks of a training step share: a student, texts of a fixed length, and two teachers with 12,288 dimensions."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import TrainerCallback

from st_distill import Teacher, TeacherStore
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.rotation import random_rotation


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next, batches and labels included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.ends.append(now())

    def steps(self) -> list[float]:
        """Of all steps but the first two."""
        return [after - before for before, after in zip(self.ends, self.ends[1:])][1:]


@dataclass
class Setting:
    """What is trained, on what.

    Args:
        model: the encoder, which outputs its pooled vectors.
        student: the same encoder with a projection to five dimensions.
        dims: the five dimensions.
        texts: as many as ``steps + 2`` batches take.
        store: vectors of two random teachers for the texts, 4,096 and 8,192 dimensions.
        rows: the texts with their row numbers in the store.
        folder: for what is written while training.
    """

    model: SentenceTransformer
    student: SentenceTransformer
    dims: list[int]
    texts: list[str]
    store: TeacherStore
    rows: Dataset
    folder: Path


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def read_options(description: str | None, *, steps: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder of the student")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=steps, help="steps of each kind in each round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def training_arguments(
    options: argparse.Namespace, folder: Path, *, logging_steps: int
) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=options.steps + 2,
        per_device_train_batch_size=options.batch,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=logging_steps,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


@contextmanager
def setting(options: argparse.Namespace) -> Iterator[Setting]:
    model = SentenceTransformer(options.model)
    model.max_seq_length = options.tokens
    width = model.get_embedding_dimension()
    dims = [width // divisor for divisor in (1, 2, 4, 8, 16)]
    texts = [f"{number} " + "word " * options.tokens for number in range(options.batch * (options.steps + 2))]
    with tempfile.TemporaryDirectory() as folder:
        teachers = [_random_teacher("a", 4096), _random_teacher("b", 8192)]
        store = TeacherStore.create(f"{folder}/store", texts, teachers, show_progress=False)
        projection = MatryoshkaProjection(width, dims, rotation=random_rotation(store.dimension, width))
        student = SentenceTransformer(modules=[model[0], model[1], projection], device=str(model.device))
        rows = store.add_labels(Dataset.from_dict({"text": texts}), ["text"])
        yield Setting(model, student, dims, texts, store, rows, Path(folder))


def _random_teacher(name: str, dimension: int) -> Teacher:
    generator = np.random.default_rng(dimension)
    return Teacher(
        lambda texts: generator.standard_normal((len(texts), dimension), dtype=np.float32), name=name, revision="random"
    )
