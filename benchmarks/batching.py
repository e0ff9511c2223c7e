"""What batches of texts of like length save in training, and whether they change what is learned.

    python benchmarks/batching.py --data DATA --model sentence-transformers/all-MiniLM-L6-v2

DATA holds parquet files: wikisplit/tune (complex) and novel_parts_4k/*.parquet (text), whose parts are cut to pieces of 256
tokens. A student of the model's layers 0, 2 and 5 learns from the model itself, once with random batches and once with
LengthGroupedBatchSampler, from the same start, on the same texts, for as many of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.util import batch_to_device

from st_distill import Teacher, TeacherStore, losses
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.matryoshka import random_rotation
from st_distill.recipe import Student
from st_distill.recipe.student import build_student
from st_distill.sampler import LengthGroupedBatchSampler

TOKENS = 256
DIMS = [384, 128, 32]


def mixed_texts(data: Path, tokenizer: Any, count: int, seed: int) -> list[str]:
    """``count`` texts: two sentences of wikisplit for each piece of a novel."""
    sentences = list(pandas.read_parquet(data / "wikisplit/tune.parquet")["complex"].drop_duplicates())
    generator = np.random.default_rng(seed)
    pieces: list[str] = []
    for file in sorted((data / "novel_parts_4k").glob("*.parquet")):
        for text in pandas.read_parquet(file)["text"]:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            pieces += [tokenizer.decode(ids[start : start + TOKENS - 2]) for start in range(0, len(ids), TOKENS - 2)]
            if len(pieces) >= count:
                break
    chosen = [*generator.permutation(sentences)[: count - count // 3], *generator.permutation(pieces)[: count // 3]]
    return generator.permutation(chosen).tolist()


def train(
    teacher: str, store: TeacherStore, texts: list[str], options: Any, *, grouped: bool, seed: int
) -> tuple[float, Any]:
    """Real tokens per second, and the trained student."""
    torch.manual_seed(seed)
    student = build_student(Student(model=teacher, layers=[0, 2, 5], max_seq_length=TOKENS))
    student.append(MatryoshkaProjection(384, DIMS, rotation=random_rotation(store.dimension, 384)).to(student.device))
    student[-1].start_identity()
    dataset = store.add_labels(Dataset.from_dict({"text": texts}), ["text"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            learning_rate=2e-4,
            per_device_train_batch_size=options.batch,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            dataloader_pin_memory=torch.cuda.is_available(),
            **({"batch_sampler": LengthGroupedBatchSampler} if grouped else {}),
        )
        loss = losses.JasperDistill(student, teacher=store, dims=DIMS)
        trainer = SentenceTransformerTrainer(model=student, args=arguments, train_dataset=dataset, loss=loss)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    tokens = sum(len(ids) for ids in student.tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"])
    return tokens / seconds, student


@torch.no_grad()
def held_out_loss(student: SentenceTransformer, store: TeacherStore, texts: list[str]) -> float:
    student.eval()
    loss = losses.JasperDistill(student, teacher=store, dims=DIMS)
    features = batch_to_device(student.preprocess(texts), student.device)
    return float(sum(loss([features], torch.from_numpy(store.ids(texts))).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument(
        "--model", required=True, help="name or folder of all-MiniLM-L6-v2, teacher and start of the student"
    )
    parser.add_argument("--texts", type=int, default=1536)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()

    tokenizer = SentenceTransformer(options.model).tokenizer
    texts = mixed_texts(options.data, tokenizer, options.texts + 192, seed=0)
    held_out, texts = texts[:192], texts[192:]
    rates: dict[bool, list[float]] = {False: [], True: []}
    held_out_losses: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        store = TeacherStore.create(folder, [*texts, *held_out], Teacher(options.model, name="teacher"))
        for seed in range(options.seeds):
            for grouped in (False, True):
                rate, student = train(options.model, store, texts, options, grouped=grouped, seed=seed)
                rates[grouped].append(rate)
                held_out_losses[grouped].append(held_out_loss(student, store, held_out))
    for grouped, name in ((False, "random batches"), (True, "grouped by length")):
        print(
            f"{name:<18} {statistics.median(rates[grouped]):7.0f} real tokens a second, held-out loss "
            + ", ".join(f"{value:.3f}" for value in held_out_losses[grouped])
        )
    print(f"ratio of medians: {statistics.median(rates[True]) / statistics.median(rates[False]):.2f}")


if __name__ == "__main__":
    main()
