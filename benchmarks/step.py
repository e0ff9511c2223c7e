"""What JasperDistill adds to a training step: the trainer's step beside the same step with EmbedDistillLoss.

    python benchmarks/step.py --model sentence-transformers/all-MiniLM-L6-v2

JasperDistill has five dimensions and row-number labels of two teachers with 12,288 dimensions together; EmbedDistillLoss has
one vector of 384 dimensions a row, in the dataset. Both train the same model on the same texts of 64 tokens, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss
from torch import nn
from transformers import TrainerCallback

from st_distill import Teacher, TeacherStore, losses
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.matryoshka import random_rotation


class Clock(TrainerCallback):
    """Seconds from the end of one step to the end of the next, batches and labels included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def steps(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:])]


def random_teacher(name: str, dimension: int) -> Teacher:
    generator = np.random.default_rng(dimension)
    return Teacher(
        lambda texts: generator.standard_normal((len(texts), dimension), dtype=np.float32), name=name, revision="random"
    )


def measure(
    model: SentenceTransformer, dataset: Dataset, loss: nn.Module, batch: int, steps: int, folder: str
) -> list[float]:
    clock = Clock()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        max_steps=steps + 2,
        per_device_train_batch_size=batch,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1000,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[clock]).train()
    return clock.steps()[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder of the student")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="steps of each loss in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    model = SentenceTransformer(options.model)
    model.max_seq_length = options.tokens
    texts = [f"{number} " + "word " * options.tokens for number in range(options.batch * (options.steps + 2))]
    width = model.get_embedding_dimension()
    with tempfile.TemporaryDirectory() as folder:
        store = TeacherStore.create(
            f"{folder}/store", texts, [random_teacher("a", 4096), random_teacher("b", 8192)], show_progress=False
        )
        rows = store.add_labels(Dataset.from_dict({"text": texts}), ["text"])
        labels = np.random.default_rng(0).standard_normal((len(texts), width)).tolist()
        vectors = Dataset.from_dict({"text": texts, "label": labels})
        dims = [width // divisor for divisor in (1, 2, 4, 8, 16)]
        student = with_projection(model, dims, store.dimension)
        times: dict[str, list[float]] = {"EmbedDistillLoss": [], "JasperDistill": []}
        for _ in range(options.rounds):
            times["EmbedDistillLoss"] += measure(
                model, vectors, EmbedDistillLoss(model), options.batch, options.steps, folder
            )
            times["JasperDistill"] += measure(
                student,
                rows,
                losses.JasperDistill(student, teacher=store, dims=dims),
                options.batch,
                options.steps,
                folder,
            )
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {1000 * seconds:.0f} ms a step (median of {len(times[name])})")
    print(f"ratio: {medians['JasperDistill'] / medians['EmbedDistillLoss']:.3f}")


def with_projection(model: SentenceTransformer, dims: list[int], teacher: int) -> SentenceTransformer:
    projection = MatryoshkaProjection(dims[0], dims, rotation=random_rotation(teacher, dims[0]))
    return SentenceTransformer(modules=[model[0], model[1], projection], device=str(model.device))


if __name__ == "__main__":
    main()
