"""Models whose vectors are known by hand."""

from __future__ import annotations

import math

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.input_module import InputModule


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
