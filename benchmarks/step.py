"""What JasperDistill adds to a training step: the trainer's step beside the same step with EmbedDistillLoss.

    python benchmarks/step.py --model sentence-transformers/all-MiniLM-L6-v2

JasperDistill has five dimensions and row-number labels of two teachers with 12,288 dimensions together; EmbedDistillLoss has
one vector of 384 dimensions a row, in the dataset. Both train the same model on the same texts of 64 tokens, in turns.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from shared import Clock, read_options, setting, training_arguments
from torch import nn

from st_distill import losses


def measure(
    model: SentenceTransformer, dataset: Dataset, loss: nn.Module, options: argparse.Namespace, folder: Path
) -> list[float]:
    clock = Clock()
    arguments = training_arguments(options, folder, logging_steps=1000)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[clock]).train()
    return clock.steps()


def main() -> None:
    options = read_options(__doc__, steps=6)
    times: dict[str, list[float]] = {"EmbedDistillLoss": [], "JasperDistill": []}
    with setting(options) as on:
        generator = np.random.default_rng(0)
        labels = generator.standard_normal((len(on.texts), on.model.get_embedding_dimension())).tolist()
        vectors = Dataset.from_dict({"text": on.texts, "label": labels})
        for _ in range(options.rounds):
            plain = EmbedDistillLoss(on.model)
            times["EmbedDistillLoss"] += measure(on.model, vectors, plain, options, on.folder)
            jasper = losses.JasperDistill(on.student, teacher=on.store, dims=on.dims)
            times["JasperDistill"] += measure(on.student, on.rows, jasper, options, on.folder)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {1000 * seconds:.0f} ms a step (median of {len(times[name])})")
    print(f"ratio: {medians['JasperDistill'] / medians['EmbedDistillLoss']:.3f}")


if __name__ == "__main__":
    main()
