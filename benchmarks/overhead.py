"""Where the time of a training step goes, and what the recipe adds to the student's own forward and backward.

    python benchmarks/overhead.py --model sentence-transformers/all-MiniLM-L6-v2

The trainer trains the model with JasperDistill, five dimensions and row-number labels of two teachers with 12,288 dimensions
together. Beside it stands the bare loop: forward, backward and optimiser step on batches that are ready. What a step of
the trainer costs beyond that is the recipe's: tokenising, labels, losses, logging.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.util import batch_to_device
from shared import Clock, Setting, now, read_options, setting, training_arguments

from st_distill import losses

Seconds = dict[str, list[float]]


@contextmanager
def timed(owner: Any, method: str, seconds: list[float]) -> Iterator[None]:
    """Note how long each call of a method takes."""
    original: Callable[..., Any] = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = now()
        result = original(*args, **kwargs)
        seconds.append(now() - start)
        return result

    setattr(owner, method, call)
    try:
        yield
    finally:
        setattr(owner, method, original)


def trainer_step(on: Setting, options: argparse.Namespace) -> Seconds:
    """Seconds of each part of the trainer's steps, the first two left out."""
    loss = losses.JasperDistill(on.student, teacher=on.store, dims=on.dims)
    clock = Clock()
    arguments = training_arguments(options, on.folder, logging_steps=10)
    trainer = SentenceTransformerTrainer(
        model=on.student, args=arguments, train_dataset=on.rows, loss=loss, callbacks=[clock]
    )
    seconds: Seconds = defaultdict(list)
    with (
        timed(trainer.data_collator, "preprocess_fn", seconds["tokenising"]),
        timed(on.store, "gather", seconds["labels"]),
        timed(on.student, "forward", seconds["student, forward"]),
        timed(trainer, "compute_loss", seconds["loss"]),
        timed(trainer.accelerator, "backward", seconds["backward, losses included"]),
    ):
        trainer.train()
    whole = clock.steps()
    parts = {name: values[-len(whole) :] for name, values in seconds.items()}
    inside = zip(parts.pop("loss"), parts["labels"], parts["student, forward"])
    parts["losses, forward"] = [loss - labels - forward for loss, labels, forward in inside]
    parts["the trainer's step"] = whole
    return parts


def bare_step(on: Setting, options: argparse.Namespace) -> list[float]:
    """Seconds of forward, backward and optimiser step on batches that are tokenised already, the first two left out."""
    student, texts = on.student, on.texts
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    batches = [texts[start : start + options.batch] for start in range(0, len(texts), options.batch)]
    student.train()
    seconds = []
    for batch in batches[: options.steps + 2]:
        features = batch_to_device(student.preprocess(batch), student.device)
        start = now()
        student(features)["sentence_embedding"].square().sum().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(now() - start)
    return seconds[2:]


def main() -> None:
    options = read_options(__doc__, steps=4)
    parts: Seconds = defaultdict(list)
    with setting(options) as on:
        for _ in range(options.rounds):
            for name, seconds in trainer_step(on, options).items():
                parts[name] += seconds
            parts["bare forward, backward, optimiser"] += bare_step(on, options)
    medians = {name: statistics.median(seconds) for name, seconds in parts.items()}
    whole = medians["the trainer's step"]
    for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"{name:<36} {1000 * seconds:8.1f} ms  {100 * seconds / whole:5.1f} %")
    print(f"the trainer's step / the bare one: {whole / medians['bare forward, backward, optimiser']:.3f}")


if __name__ == "__main__":
    main()
