"""Where the time of a training step goes, and what the recipe adds to the student's own forward and backward.

    python benchmarks/overhead.py --model sentence-transformers/all-MiniLM-L6-v2

The trainer trains the model with JasperDistill, five dimensions and row-number labels of two teachers with 12,288 dimensions
together. Beside it stands the bare loop: forward, backward and optimiser step on batches that are ready. What a step of
the trainer costs beyond that is the recipe's: tokenising, labels, losses, logging.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.util import batch_to_device
from step import Clock, random_teacher, with_projection

from st_distill import TeacherStore, losses

Seconds = dict[str, list[float]]


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


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


def trainer_step(
    student: SentenceTransformer, dataset: Dataset, store: TeacherStore, options: Any, folder: str
) -> Seconds:
    """Seconds of each part of the trainer's steps, the first left out."""
    loss = losses.JasperDistill(student, teacher=store, dims=dims_of(student))
    clock = Clock()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        max_steps=options.steps + 2,
        per_device_train_batch_size=options.batch,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = SentenceTransformerTrainer(
        model=student, args=arguments, train_dataset=dataset, loss=loss, callbacks=[clock]
    )
    seconds: Seconds = defaultdict(list)
    with (
        timed(trainer.data_collator, "preprocess_fn", seconds["tokenising"]),
        timed(store, "gather", seconds["labels"]),
        timed(student, "forward", seconds["student, forward"]),
        timed(trainer, "compute_loss", seconds["loss"]),
        timed(trainer.accelerator, "backward", seconds["backward, losses included"]),
    ):
        trainer.train()
    whole = clock.steps()[1:]
    parts = {name: values[-len(whole) :] for name, values in seconds.items()}
    inside = zip(parts.pop("loss"), parts["labels"], parts["student, forward"])
    parts["losses, forward"] = [loss - labels - forward for loss, labels, forward in inside]
    parts["the trainer's step"] = whole
    return parts


def bare_step(student: SentenceTransformer, texts: list[str], options: Any) -> list[float]:
    """Seconds of forward, backward and optimiser step on batches that are tokenised already, the first two left out."""
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


def dims_of(student: SentenceTransformer) -> list[int]:
    return [student.get_embedding_dimension() // divisor for divisor in (1, 2, 4, 8, 16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder of the student")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="steps of each kind in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    model = SentenceTransformer(options.model)
    model.max_seq_length = options.tokens
    texts = [f"{number} " + "word " * options.tokens for number in range(options.batch * (options.steps + 2))]
    parts: Seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        teachers = [random_teacher("a", 4096), random_teacher("b", 8192)]
        store = TeacherStore.create(f"{folder}/store", texts, teachers, show_progress=False)
        rows = store.add_labels(Dataset.from_dict({"text": texts}), ["text"])
        width = model.get_embedding_dimension()
        student = with_projection(model, [width // divisor for divisor in (1, 2, 4, 8, 16)], store.dimension)
        for _ in range(options.rounds):
            for name, seconds in trainer_step(student, rows, store, options, folder).items():
                parts[name] += seconds
            parts["bare forward, backward, optimiser"] += bare_step(student, texts, options)
    medians = {name: statistics.median(seconds) for name, seconds in parts.items()}
    whole = medians["the trainer's step"]
    for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        print(f"{name:<36} {1000 * seconds:8.1f} ms  {100 * seconds / whole:5.1f} %")
    print(f"the trainer's step / the bare one: {whole / medians['bare forward, backward, optimiser']:.3f}")


if __name__ == "__main__":
    main()
