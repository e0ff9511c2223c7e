"""Models whose vectors are known by hand, and what tasks come to with them."""

from __future__ import annotations

import math

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.input_module import InputModule

from st_distill.evaluation import Task, TaskSpec, evaluate_tasks, read_task

#: Texts on a circle, in degrees.
ANGLES = {"a": 0, "b": 10, "c": 50, "d": 60, "e": 170, "f": 180}


class Lookup(InputModule):
    """A text's or an image's vector from a table; images are known by the colour of their first pixel."""

    modalities = ["text", "image"]

    def __init__(self, table: dict) -> None:
        super().__init__()
        self.table = {key: torch.as_tensor(vector, dtype=torch.float32) for key, vector in table.items()}
        self.seen: list = []

    def preprocess(self, inputs, prompt=None, **options):
        keys = [(prompt or "") + item if isinstance(item, str) else item.getpixel((0, 0)) for item in inputs]
        self.seen += keys
        return {"sentence_embedding": torch.stack([self.table[key] for key in keys])}

    def forward(self, features, **options):
        return features

    def get_embedding_dimension(self) -> int:
        return len(next(iter(self.table.values())))

    def save(self, output_path, *args, **options) -> None:
        raise NotImplementedError


def lookup(table: dict) -> SentenceTransformer:
    return SentenceTransformer(modules=[Lookup(table)], device="cpu")


def on_circle(degrees: dict[str, float]) -> dict[str, list[float]]:
    return {text: [math.cos(math.radians(angle)), math.sin(math.radians(angle))] for text, angle in degrees.items()}


def random_table(count: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {f"text {row}": generator.normal(size=width) for row in range(count)}


def only(source: TaskSpec | str) -> Task:
    """The one task of a source."""
    (task,) = read_task(source)
    return task


def measure(task: Task, angles: dict[str, float] = ANGLES) -> float | None:
    """The main figure of a task, by a model with these texts on a circle."""
    return evaluate_tasks(lookup(on_circle(angles)), [task])["tasks"][0]["scores"]["2"]["float32"][task.metric]
