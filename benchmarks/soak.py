"""A long stage and a large store: memory that stays flat, no file left open, no thread left.

    python benchmarks/soak.py                                    # 20,000 steps and 1,000,000 rows: minutes on two cores
    python benchmarks/soak.py stage --steps 2000

Memory is the process's own (``RssAnon`` of /proc, so Linux alone): pages of mapped shards belong to the system. The slope is
that of the straight line through the readings behind the first quarter. Ends with exit code 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import TrainerCallback

from st_distill import Teacher, TeacherStore
from st_distill.losses import JasperDistill
from st_distill.recipe import Recipe, run, stages

#: The most that memory may grow, in MB per 1,000 steps.
SLOPE = 1.0
WORDS = [f"word{number}" for number in range(200)]


@dataclass
class Readings:
    """Memory, open files and threads of this process at some steps."""

    steps: list[int] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def read(self, step: int) -> None:
        gc.collect()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        self.steps.append(step)
        self.megabytes.append(int(status.partition("RssAnon:")[2].split()[0]) / 1024)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(len(os.listdir("/proc/self/task")))

    def report(self, title: str, seconds: float, threads_before: int) -> bool:
        """Print the readings, and say whether they are within the limits."""
        warm = len(self.steps) // 4
        slope = 1000 * np.polyfit(self.steps[warm:], self.megabytes[warm:], 1)[0]
        left = threading.active_count() - threads_before
        print(
            f"{title}: {self.steps[-1]:,} steps in {seconds:.0f} s; "
            f"{self.megabytes[warm]:.1f} MB at step {self.steps[warm]:,}, {self.megabytes[-1]:.1f} MB at the end, "
            f"{slope:+.3f} MB per 1,000 steps; open files {self.files[warm]} and {self.files[-1]}; "
            f"threads {self.threads[warm]} and {self.threads[-1]}, {left} of Python left afterwards"
        )
        flat = self.files[-1] <= self.files[warm] and self.threads[-1] <= self.threads[warm]
        return bool(slope < SLOPE and flat and left == 0)


def tiny_model(seed: int) -> SentenceTransformer:
    """A model of one table, 32 wide: a step is the trainer, the loss and the store, and hardly anything else."""
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(seed).normal(size=(len(WORDS) + 1, 32)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def texts_of(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=6)) for _ in range(count)]


def stage(steps: int, folder: Path) -> bool:
    """One stage of a recipe, with checkpoints."""
    tiny_model(0).save(str(folder / "student"))
    tiny_model(1).save(str(folder / "teacher"))
    (folder / "texts.txt").write_text("\n".join(texts_of(2000)), encoding="utf-8")
    arguments = {"use_cpu": True, "disable_tqdm": True, "save_steps": 1000, "logging_steps": 100}
    recipe = Recipe(
        output=str(folder / "out"),
        student={"model": str(folder / "student")},
        teachers=[str(folder / "teacher")],
        texts=[str(folder / "texts.txt")],
        projection={"dims": [32, 8]},
        stages=[{"train": "all", "steps": steps, "batch": 8, "arguments": arguments}],
    )
    readings, threads = Readings(), threading.active_count()

    class Reading(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step % max(1, steps // 100) == 0:
                readings.read(state.global_step)

    shown = stages.show_progress_of

    def with_readings(trainer, *given) -> None:
        trainer.add_callback(Reading())
        shown(trainer, *given)

    stages.show_progress_of = with_readings
    started = time.perf_counter()
    try:
        run(recipe, show_progress=False)
    finally:
        stages.show_progress_of = shown
    return readings.report("A stage", time.perf_counter() - started, threads)


def store(rows: int, steps: int, folder: Path) -> bool:
    """A store of many rows, opened and read at random places again and again: ids, labels, and the loss's own way to them."""
    threads, started = threading.active_count(), time.perf_counter()

    def vectors(texts: list[str]) -> np.ndarray:
        numbers = np.array([int(text[5:]) for text in texts])
        return np.sin(np.outer(numbers + 1, np.arange(1, 33, dtype=np.float32)))

    teacher = Teacher(vectors, name="sines", revision="1", batch_size=4096)
    whole = TeacherStore.create(folder / "store", (f"text {n}" for n in range(rows)), teacher, show_progress=False)
    print(f"A store of {len(whole):,} rows built in {time.perf_counter() - started:.0f} s")
    generator, readings, started = np.random.default_rng(0), Readings(), time.perf_counter()
    loss = JasperDistill(tiny_model(0), teacher=whole)
    for step in range(1, steps + 1):
        numbers = generator.integers(0, rows, size=32)
        texts = [f"text {number}" for number in numbers]
        found = whole.gather(whole.ids(texts)) if step % 100 else TeacherStore.open(folder / "store").gather(numbers)
        if step % 50 == 0:
            expected = torch.nn.functional.normalize(torch.from_numpy(vectors(texts)).float())
            torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=0)
            loss([{"input_ids": torch.arange(32), "offsets": torch.arange(32)}], torch.from_numpy(numbers))
        if step % max(1, steps // 100) == 0:
            readings.read(step)
    return readings.report("Reading it", time.perf_counter() - started, threads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("stage", "store"), help="both by default")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    flat = True
    with tempfile.TemporaryDirectory() as folder:
        if options.what != "store":
            flat &= stage(options.steps, Path(folder))
        if options.what != "stage":
            flat &= store(options.rows, options.steps, Path(folder))
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
