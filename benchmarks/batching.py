"""What less padding saves in training, and whether it changes what is learned.

    python benchmarks/batching.py --data DATA --model sentence-transformers/all-MiniLM-L6-v2

DATA holds parquet files: wikisplit/tune (complex) and novel_parts_4k/*.parquet (text), whose parts are cut to pieces of 256
tokens. A student of the model's layers 0, 2 and 5 learns from the model itself, with random batches padded to their longest
text, with random batches that the encoder takes in parts of like length (what the losses do by themselves), with
LengthGroupedBatchSampler, and with one that leaves a quarter of the batches random, from the same start, on the same texts, for
as many of them. The loss on held-out texts is the mean over the same random batches of all lengths for every student, for its
relations are those within a batch. Whether one way ends higher is judged by the difference from random batches with the same
seed, beside its standard error over the seeds. ``--terms cosine`` learns from the cosine alone, which knows no batch.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from functools import partial
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
from st_distill.recipe import Student
from st_distill.recipe.schema import PAPER_LOSSES
from st_distill.recipe.student import build_student
from st_distill.sampler import LengthGroupedBatchSampler

TOKENS = 256
DIMS = [384, 128, 32]
RANDOM = "random batches"
#: The loss's ``length_parts`` and the trainer's further arguments of each way.
WAYS: dict[str, tuple[int | None, dict[str, Any]]] = {
    RANDOM: (1, {}),
    "random batches in parts": (None, {}),
    "by length": (1, {"batch_sampler": LengthGroupedBatchSampler}),
    "by length, a quarter random": (1, {"batch_sampler": partial(LengthGroupedBatchSampler, random_share=0.25)}),
}


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
    teacher: str, store: TeacherStore, texts: list[str], options: Any, *, way: str, seed: int
) -> tuple[float, Any]:
    """Real tokens per second, and the trained student."""
    torch.manual_seed(seed)
    parts, more = WAYS[way]
    student = build_student(Student(model=teacher, layers=[0, 2, 5], max_seq_length=TOKENS))
    # As after a recipe's start: half of its teacher's layers give vectors that are near the teacher's already.
    student.append(MatryoshkaProjection(384, DIMS).to(student.device))
    student[-1].start_identity()
    dataset = store.add_labels(Dataset.from_dict({"text": texts}), ["text"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=options.passes,
            learning_rate=2e-4,
            per_device_train_batch_size=options.batch,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            dataloader_pin_memory=torch.cuda.is_available(),
            **more,
        )
        loss = build_loss(student, store, options.terms, length_parts=parts)
        trainer = SentenceTransformerTrainer(model=student, args=arguments, train_dataset=dataset, loss=loss)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    tokens = sum(len(ids) for ids in student.tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"])
    return options.passes * tokens / seconds, student


def build_loss(student: SentenceTransformer, store: TeacherStore, terms: list[str], **more: Any) -> Any:
    """The paper's loss, or some of its terms; the cosine alone is that of every dimension, as in a recipe by default."""
    weights = {name: PAPER_LOSSES[name] for name in terms}
    cosine_dims = DIMS if terms == ["cosine"] else None
    return losses.JasperDistill(student, teacher=store, dims=DIMS, cosine_dims=cosine_dims, weights=weights, **more)


@torch.no_grad()
def held_out_terms(
    student: SentenceTransformer, store: TeacherStore, texts: list[str], options: Any
) -> dict[str, float]:
    """The terms of the loss, each the mean over batches of the texts as they come."""
    student.eval()
    loss, batch = build_loss(student, store, options.terms), options.batch
    terms: dict[str, list[float]] = defaultdict(list)
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        features = batch_to_device(student.preprocess(part), student.device)
        for name, term in loss([features], torch.from_numpy(store.ids(part))).items():
            terms[name].append(float(term))
    return {name: statistics.fmean(values) for name, values in terms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument(
        "--model", required=True, help="name or folder of all-MiniLM-L6-v2, teacher and start of the student"
    )
    parser.add_argument("--texts", type=int, default=1536)
    parser.add_argument("--passes", type=int, default=4, help="times that the texts are learnt from")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=16, help="batches of held-out texts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--terms", nargs="+", choices=list(PAPER_LOSSES), default=list(PAPER_LOSSES))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    if options.seeds < 2 or RANDOM not in options.ways:
        parser.error(f"At least two --seeds are needed to judge by, and '{RANDOM}' among the --ways to compare with.")

    tokenizer = SentenceTransformer(options.model).tokenizer
    count = options.held_out * options.batch
    texts = mixed_texts(options.data, tokenizer, options.texts + count, seed=0)
    held_out, texts = texts[:count], texts[count:]
    rates: dict[str, list[float]] = defaultdict(list)
    terms: dict[str, list[dict[str, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        store = TeacherStore.create(folder, [*texts, *held_out], Teacher(options.model, name="teacher"))
        for seed in range(options.seeds):
            for way in options.ways:
                rate, student = train(options.model, store, texts, options, way=way, seed=seed)
                rates[way].append(rate)
                terms[way].append(held_out_terms(student, store, held_out, options))
    for way in options.ways:
        parts = {name: statistics.fmean(found[name] for found in terms[way]) for name in terms[way][0]}
        rate, usual = statistics.median(rates[way]), statistics.median(rates[RANDOM])
        print(f"{way}: {rate:.0f} real tokens a second, {rate / usual:.2f} times random batches")
        totals = [sum(found.values()) for found in terms[way]]
        print(
            f"  held-out loss {statistics.fmean(totals):.3f}, standard deviation over {options.seeds} seeds "
            f"{statistics.stdev(totals):.3f} ("
            + ", ".join(f"{name} {value:.3f}" for name, value in parts.items())
            + ")"
        )
        if way != RANDOM:
            changes = [total - sum(usual.values()) for total, usual in zip(totals, terms[RANDOM])]
            error = statistics.stdev(changes) / math.sqrt(options.seeds)
            print(f"  beside random batches {statistics.fmean(changes):+.3f}, standard error {error:.3f}")


if __name__ == "__main__":
    main()
