"""What a recipe costs at 8 million, 100 million and 1 billion texts: the tables of docs/scaling.md.

    python benchmarks/scaling.py                                       # with the assumptions below
    python benchmarks/scaling.py --tokens 512 --gpus 64 --utilisation 0.3
    python benchmarks/scaling.py --measure                             # bytes and seconds a text of the store, on this machine

All is arithmetic on the arguments: a token costs 2 FLOPs a parameter forward and 4 backward; bytes are those of the store's
format. Only ``--measure`` runs anything.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

SCALES = (8_000_000, 100_000_000, 1_000_000_000)
#: Bytes of a vector: per dimension, and per row (int8 has a float32 scale).
DTYPES = {"float32": (4, 0), "float16": (2, 0), "bfloat16": (2, 0), "int8": (1, 4)}
#: Bytes a text beside the vector: its number in the shard, and in the index its hash and its row.
IN_SHARD, IN_INDEX = 8, 32


def table(title: str, rows: dict[str, list[str]], scales: tuple[int, ...]) -> None:
    print(f"\n{title}\n\n| | {' | '.join(amount(scale) for scale in scales)} |")
    print("|---" * (len(scales) + 1) + "|")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(values)} |")


def amount(number: float) -> str:
    for limit, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= limit:
            return f"{number / limit:.3g} {word}"
    return f"{number:.3g}"


def size(number: float) -> str:
    for limit, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def hours(seconds: float) -> str:
    number = seconds / 3600
    return f"{number:.2g} h" if number < 10 else f"{number:,.0f} h"


def storage(options: argparse.Namespace) -> dict[str, list[str]]:
    rows = {}
    for dimension in options.teacher_dims:
        for dtype, (per_dimension, per_row) in DTYPES.items():
            text = dimension * per_dimension + per_row + IN_SHARD + IN_INDEX
            rows[f"{dimension} dimensions, {dtype}"] = [size(scale * text) for scale in options.texts]
    rows["index in memory, each process"] = [size(scale * IN_INDEX) for scale in options.texts]
    rows[f"shards of {options.shard_rows:,} rows"] = [f"{math.ceil(n / options.shard_rows):,}" for n in options.texts]
    return rows


def compute(options: argparse.Namespace) -> dict[str, list[str]]:
    rate = options.peak * options.utilisation

    def gpu_hours(parameters: float, flops: float, done: float = 1.0) -> list[str]:
        return [
            f"{hours(total)}, {hours(total / options.gpus)} on {options.gpus}"
            for total in (done * scale * options.tokens * flops * parameters / rate for scale in options.texts)
        ]

    student, part = options.student_parameters, options.last_layers
    return {
        "teacher, every text once": gpu_hours(options.teacher_parameters, 2),
        "stage 1, projection (encoder forward once)": gpu_hours(student, 2),
        f"stage 2, last {part:.0%} of the encoder, a pass": gpu_hours(student, 2 + 4 * part),
        "stage 3, everything, a pass": gpu_hours(student, 6),
        "store's own work, one process": [hours(scale * options.overhead) for scale in options.texts],
    }


def network(options: argparse.Namespace) -> dict[str, list[str]]:
    others = (options.gpus - 1) / options.gpus
    rows = {
        f"steps of {amount(options.joint_batch)} texts": [
            amount(scale / options.joint_batch) for scale in options.texts
        ],
    }
    for dimension in options.teacher_dims:
        # With gathering every process reads the teacher's vectors of the whole joint batch.
        each = dimension * DTYPES["float16"][0]
        rows[f"teacher's vectors read, {dimension} x float16, each process"] = [size(n * each) for n in options.texts]
    gradients = 2 * others * 4 * options.student_parameters
    gathered = 2 * others * options.joint_batch * options.width * 4
    rows["gradients, each GPU, a step (float32 all-reduce)"] = [size(gradients)] * len(options.texts)
    rows["embeddings, each GPU, a step (all-gather and back)"] = [size(gathered)] * len(options.texts)
    rows["both, each GPU, a pass"] = [size((gradients + gathered) * n / options.joint_batch) for n in options.texts]
    return rows


def measure(options: argparse.Namespace) -> None:
    import numpy as np

    from st_distill import Teacher, TeacherStore

    count = options.measured_texts
    for dimension in (16, *options.teacher_dims):
        vectors = np.random.default_rng(0).standard_normal((options.shard_rows, dimension), dtype=np.float32)
        teacher = Teacher(
            lambda texts, vectors=vectors: vectors[: len(texts)], name="free", revision="1", batch_size=1024
        )
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            texts = [f"the text of number {number}" for number in range(count)]
            TeacherStore.create(folder, texts, teacher, dtype="float16", show_progress=False)
            seconds = time.perf_counter() - begin
            total = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(
            f"{dimension} x float16: {total / count:.1f} bytes and {1e6 * seconds / count:.1f} us a text ({count:,} texts)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=float, nargs="+", default=list(SCALES), help="numbers of texts")
    parser.add_argument("--tokens", type=float, default=256, help="tokens a text, on average, padding included")
    parser.add_argument("--teacher-parameters", type=float, default=7e9)
    parser.add_argument("--teacher-dims", type=int, nargs="+", default=[3584, 4096])
    parser.add_argument("--student-parameters", type=float, default=1.5e9)
    parser.add_argument("--last-layers", type=float, default=3 / 28, help="share of the encoder that stage 2 trains")
    parser.add_argument("--width", type=int, default=1792, help="of the student's embeddings, all heads together")
    parser.add_argument("--joint-batch", type=float, default=1024, help="texts a step, all processes together")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of a GPU: H100 or H200, bf16, dense")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--overhead", type=float, default=11e-6, help="seconds a text that the store itself takes")
    parser.add_argument("--shard-rows", type=int, default=16384)
    parser.add_argument("--measure", action="store_true", help="measure the store's bytes and seconds a text")
    parser.add_argument("--measured-texts", type=int, default=20_000)
    options = parser.parse_args()
    if options.measure:
        measure(options)
        return
    table("Storage", storage(options), options.texts)
    table("GPU hours", compute(options), options.texts)
    table("Network and disk", network(options), options.texts)


if __name__ == "__main__":
    main()
