"""What the teacher store costs: to build, to read, in fidelity.

    python benchmarks/store.py build --model MINILM --data DATA         rate beside SentenceTransformer.encode
    python benchmarks/store.py memory --model MINILM --data DATA        memory of a build
    python benchmarks/store.py scale                                    cost per text from 10 thousand to 1 million
    python benchmarks/store.py read                                     a batch of labels from the page cache
    python benchmarks/store.py larger                                   a store larger than the memory, by order of reading
    python benchmarks/store.py fidelity --model MINILM --data DATA      what each dtype loses
    python benchmarks/store.py import                                   memory of taking over parquet, or a dataset's column

MINILM is the name or folder of a model, DATA a folder with wikisplit/*.parquet and novel_parts_4k/*.parquet.

``larger`` reads 1.5 GB of vectors with 400 MB of page cache. Without more it drops the store's files from the page cache
whenever 400 MB have been read from the disk. With ``--cgroup FOLDER``, the folder of a memory control group that has a limit,
it reads inside that group, where the kernel keeps the limit::

    mkdir /sys/fs/cgroup/small && echo 400M > /sys/fs/cgroup/small/memory.max
    python benchmarks/store.py larger --cgroup /sys/fs/cgroup/small

(in version 1 of control groups: /sys/fs/cgroup/memory/small, and memory.limit_in_bytes).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk
from sentence_transformers import SentenceTransformer

from st_distill import Teacher, TeacherStore
from st_distill.sampler import StoreOrderBatchSampler
from st_distill.store.dtypes import DTYPES

#: What a build is measured beside; "encode in calls" is what published code does, with 10,000 texts a call.
WAYS = ("store", "encode", "encode in calls", "arrival order")


def peak() -> str:
    """The most memory that this process has had."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"


def sentences(data: Path, count: int) -> list[str]:
    found = pq.read_table(sorted((data / "wikisplit").glob("*.parquet"))[0]).column("complex").to_pylist()
    return list(dict.fromkeys(found))[:count]


def mixed(model: SentenceTransformer, data: Path, count: int) -> list[str]:
    """Sentences, and a tenth as many pieces of novels, of 256 tokens each, shuffled."""
    texts = sentences(data, count)
    pieces: list[str] = []
    for novel in pq.read_table(sorted((data / "novel_parts_4k").glob("*.parquet"))).column("text").to_pylist():
        tokens = model.tokenizer(novel, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = tokens["offset_mapping"]
        parts = [offsets[start : start + 254] for start in range(0, len(offsets), 254)]
        pieces += [novel[part[0][0] : part[-1][1]] for part in parts]
        if len(pieces) >= count // 10:
            break
    texts += pieces[: count // 10]
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))]


def unsorted(model: SentenceTransformer, texts: list[str]) -> None:
    for start in range(0, len(texts), 32):
        model.encode(texts[start : start + 32], batch_size=32, show_progress_bar=False)


def in_calls(model: SentenceTransformer, texts: list[str], count: int) -> np.ndarray:
    """As published code does it: one `encode` for so many texts after another, each sorted by itself."""
    calls = [texts[start : start + count] for start in range(0, len(texts), count)]
    return np.concatenate([model.encode(call, batch_size=32, show_progress_bar=False) for call in calls])


def build(options: argparse.Namespace) -> None:
    model = SentenceTransformer(options.model)
    model.max_seq_length = 256
    texts = mixed(model, options.data, options.texts)
    model.encode(texts[:64], show_progress_bar=False)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS if name in options.ways}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            # In another order each round, so that none is always the first or the warmest.
            ways = {
                "store": partial(
                    TeacherStore.create,
                    *(f"{folder}/{number}", texts, Teacher(model, name="m", revision="1")),
                    show_progress=False,
                ),
                "encode": lambda: model.encode(texts, batch_size=32, show_progress_bar=False),
                "encode in calls": lambda: in_calls(model, texts, options.per_call),
                "arrival order": lambda: unsorted(model, texts),
            }
            first = number % len(seconds)
            for name in [*seconds][first:] + [*seconds][:first]:
                started = time.perf_counter()
                ways[name]()
                seconds[name].append(time.perf_counter() - started)
    rates = {name: len(texts) / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} texts/s (median of {options.rounds})")
    for name in [*rates][1:] if "store" in rates else []:
        print(f"store / {name}: {rates['store'] / rates[name]:.3f}", flush=True)
    sizes = ["--texts", str(min(options.texts, 1000)), "--model", options.model, "--data", str(options.data)]
    subprocess.run([sys.executable, __file__, "memory", *sizes], check=True)


def memory(options: argparse.Namespace) -> None:
    """The store alone, from a model's name, as a recipe builds it: the texts are made in this process, used in another."""
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        texts.write_text(json.dumps(mixed(SentenceTransformer(options.model), options.data, options.texts)))
        command = [sys.executable, __file__, "memory", "--model", options.model, "--data", str(options.data)]
        subprocess.run([*command, "--folder", folder], check=True)


def memory_once(options: argparse.Namespace) -> None:
    texts = json.loads(Path(options.folder, "texts.json").read_text())
    before = peak()
    teacher = Teacher(options.model, name="m", max_seq_length=256)
    TeacherStore.create(Path(options.folder) / "store", texts, teacher, show_progress=False)
    print(f"the store alone, {len(texts)} texts: peak memory {peak()} (before {before})")


def free_teacher(dimension: int) -> Teacher:
    vectors = np.random.default_rng(0).standard_normal((1024, dimension), dtype=np.float32)
    return Teacher(lambda texts: vectors[: len(texts)], name="free", revision="1", batch_size=1024)


def scale_once(options: argparse.Namespace) -> None:
    texts = [f"This is sentence number {number}, and it is as long as many are." for number in range(options.texts)]
    teacher = free_teacher(384)
    with tempfile.TemporaryDirectory() as folder:
        TeacherStore.create(f"{folder}/warm", texts[:64], teacher, show_progress=False)
        seconds = []
        for number in range(options.rounds):
            started = time.perf_counter()
            TeacherStore.create(f"{folder}/{number}", texts, teacher, show_progress=False)
            seconds.append(time.perf_counter() - started)
    print(f"{options.texts}: {1e6 * statistics.median(seconds) / len(texts):.2f} us/text, peak memory {peak()}")


def scale(options: argparse.Namespace) -> None:
    for texts, rounds in [(10_000, 21), (100_000, 7), (1_000_000, 3)]:  # a process each, for the memory of each
        command = [sys.executable, __file__, "scale", "--texts", str(texts), "--rounds", str(rounds)]
        subprocess.run(command, check=True)


def milliseconds(function, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def drop_cache(folder: Path) -> None:
    for path in folder.rglob("*.npy"):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def opened_cold(path: Path) -> TeacherStore:
    # Pages that a process has mapped are not dropped, and a store refers to itself: only the collector lets go of its maps.
    gc.collect()
    drop_cache(path)
    return TeacherStore.open(path)


def stored(store: TeacherStore, ids: np.ndarray) -> None:
    for teacher in store.teachers:
        store.stored(ids, teacher=teacher)


def open_or_make(options: argparse.Namespace, name: str, dimensions: list[int]) -> TeacherStore:
    path = Path(options.folder) / f"{name}-{options.rows}-{options.shard_rows}"
    if path.exists():
        return TeacherStore.open(path)
    teachers = [free_teacher(dimension) for dimension in dimensions]
    for number, teacher in enumerate(teachers):
        teacher.name = f"free{number}"
    texts = [f"text {number}" for number in range(options.rows)]
    return TeacherStore.create(path, texts, teachers, shard_rows=options.shard_rows, show_progress=False)


def in_random_order(rows: int) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(0).permutation(rows), rows // 128)


def in_windows(store: TeacherStore, rows: int, shards: int) -> StoreOrderBatchSampler:
    dataset = Dataset.from_dict({"label": list(range(rows))})
    return StoreOrderBatchSampler(dataset, 128, False, store=store, window_shards=shards)


def read(options: argparse.Namespace) -> None:
    generator = np.random.default_rng(0)
    one = open_or_make(options, "one", [12_288]).path
    four = open_or_make(options, "four", [3072] * 4).path
    for name, path in [("1 teacher of 12288", one), ("4 teachers of 3072", four)]:
        store = TeacherStore.open(path)
        for where, high in [("in one shard", options.shard_rows), ("anywhere", options.rows)]:
            ids = generator.integers(0, high, 128)
            rows = milliseconds(partial(stored, store, ids), 50)
            label = milliseconds(partial(store.gather, ids), 50)
            print(f"{name}, 128 rows {where}, cached: float16 rows {rows:.2f} ms, label {label:.2f} ms")


def from_disk() -> int:
    """Bytes that this process has had read from the disk, reading ahead included."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def limit_of(cgroup: Path) -> int:
    for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
        if (cgroup / name).exists():
            return int((cgroup / name).read_text())
    raise ValueError(f"'--cgroup' must be the folder of a memory control group. Got {cgroup} instead.")


def larger(options: argparse.Namespace) -> None:
    path = open_or_make(options, "one", [12_288]).path
    size = TeacherStore.open(path).describe()["teachers"]["free0"]["bytes"]
    limit = 1_000_000 * options.limit
    how = f"page cache dropped at every {options.limit} MB read"
    if options.cgroup is not None:
        limit = limit_of(options.cgroup)
        how = f"in a control group of {limit / 1e6:.0f} MB"
        # What this process holds already stays with the group it came from: the limit is on what it reads.
        (options.cgroup / "cgroup.procs").write_text(str(os.getpid()))
    print(f"{size / 1e6:.0f} MB of vectors, {how}")
    for name, batches in [
        ("random order", in_random_order(options.rows)),
        ("windows of 2 shards", in_windows(TeacherStore.open(path), options.rows, 2)),
    ]:
        seconds, rows, disk, since = 0.0, 0, 0, 0
        store = opened_cold(path)
        for batch in batches:
            if since >= limit and options.cgroup is None:
                del store
                store, since = opened_cold(path), 0
            before, started = from_disk(), time.perf_counter()
            store.gather(batch)
            seconds += time.perf_counter() - started
            rows += len(batch)
            read_now = from_disk() - before
            disk, since = disk + read_now, since + read_now
            if seconds > options.seconds:
                break
        del store
        print(
            f"{name}: {rows / seconds:.0f} rows/s, {disk / 1e6:.0f} MB from the disk for {rows} rows, "
            f"{disk * options.rows / (rows * size):.2f} times their vectors",
            flush=True,
        )


def fidelity(options: argparse.Namespace) -> None:
    model = SentenceTransformer(options.model)
    texts = sentences(options.data, options.texts)
    vectors = model.encode(texts, show_progress_bar=False).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = vectors @ vectors.T
    print("| dtype | bytes per number | 1 - cosine, mean | worst | change of similarity, mean | worst |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for dtype, stored in DTYPES.items():
            teacher = Teacher.from_vectors(vectors, texts=texts, name="t")
            store = TeacherStore.create(f"{folder}/{dtype}", texts, teacher, dtype=dtype, show_progress=False)
            kept = store.gather(store.ids(texts)).numpy().astype(np.float64)
            kept /= np.linalg.norm(kept, axis=1, keepdims=True)
            # Half the squared distance of unit vectors is 1 - cosine, without the cancellation.
            loss = ((kept - vectors) ** 2).sum(axis=1) / 2
            change = np.abs(kept @ kept.T - similarities)
            print(
                f"| {dtype} | {stored.array.itemsize} | {loss.mean():.1e} | {loss.max():.1e} | {change.mean():.1e} | "
                f"{change.max():.1e} |"
            )


def write_vectors(folder: Path, rows: int, width: int) -> None:
    """The same random vectors and texts as a parquet file and as a dataset."""
    schema = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32()))])
    with pq.ParquetWriter(folder / "vectors.parquet", schema) as writer:
        generator = np.random.default_rng(0)
        for start in range(0, rows, 10_000):
            flat = generator.standard_normal(10_000 * width, dtype=np.float32)
            lists = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, width, dtype=np.int32), flat)
            texts = pa.array([f"text {number}" for number in range(start, start + 10_000)])
            writer.write_table(pa.table({"text": texts, "vector": lists}, schema=schema))
    read = Dataset.from_parquet(str(folder / "vectors.parquet"), cache_dir=str(folder / "cache"))
    read.save_to_disk(str(folder / "dataset"))


class Own(threading.Thread):
    """The most memory of its own that this process has had meanwhile: without the pages of files that it has mapped, which the
    system takes back when it needs them.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.now()
        self.most = self.before
        self.ended = threading.Event()

    @staticmethod
    def now() -> int:
        """In megabytes."""
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) // 1024

    def run(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, self.now())


def import_once(options: argparse.Namespace) -> None:
    folder, rows = Path(options.folder), options.texts
    texts = (f"text {number}" for number in range(rows))
    if options.kind == "parquet":
        vectors, more = folder / "vectors.parquet", {}
    else:
        vectors, more = load_from_disk(str(folder / "dataset")), {"column": "vector"}
    if options.kind == "column":
        vectors, more = vectors["vector"], {"texts": vectors["text"]}
    memory = Own()
    memory.start()
    started = time.perf_counter()
    teacher = Teacher.from_vectors(vectors, name="t", **more)
    TeacherStore.create(folder / f"store-{options.kind}", texts, teacher, show_progress=False)
    seconds = time.perf_counter() - started
    memory.ended.set()
    width = teacher.encode(["text 0"]).shape[1]
    print(
        f"{options.kind}, {rows} vectors of {width} ({rows * width * 4 / 1e6:.0f} MB): {1e6 * seconds / rows:.0f} us/vector, "
        f"{memory.most - memory.before} MB of its own beyond the {memory.before} MB before"
    )


def import_vectors(options: argparse.Namespace) -> None:
    """In a process each, which has not made the vectors: the memory is that of the import."""
    for rows in [100_000, 500_000] if options.texts is None else [options.texts]:
        with tempfile.TemporaryDirectory() as folder:
            write_vectors(Path(folder), rows, 384)
            for kind in ("parquet", "dataset", "column") if options.kind is None else [options.kind]:
                command = [sys.executable, __file__, "import", "--texts", str(rows), "--kind", kind, "--folder", folder]
                subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in {
        "build": build,
        "memory": memory,
        "scale": scale,
        "read": read,
        "larger": larger,
        "fidelity": fidelity,
        "import": import_vectors,
    }.items():
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        if name in ("build", "memory", "fidelity"):
            command.add_argument("--model", required=True, help="name or folder of the teacher")
            command.add_argument("--data", type=Path, required=True, help="folder of the data sets")
        defaults = {"build": 3000, "memory": 1000, "fidelity": 2000}
        command.add_argument("--texts", type=int, default=defaults.get(name), help="how many texts")
        if name == "build":
            command.add_argument(
                "--ways", nargs="+", default=list(WAYS), choices=WAYS, metavar="WAY", help=f"of {', '.join(WAYS)}"
            )
            command.add_argument("--per-call", type=int, default=10_000, help="texts of each of the 'encode in calls'")
        command.add_argument("--rounds", type=int, default=1)
        command.add_argument("--kind", choices=("parquet", "dataset", "column"))
        command.add_argument("--folder", help="where the store for reading is kept, or is already")
        command.add_argument("--rows", type=int, default=61_440 if name == "larger" else 81_920)
        command.add_argument("--limit", type=int, default=400, help="megabytes of page cache")
        command.add_argument("--seconds", type=float, default=60.0, help="the most that an order is read for")
        command.add_argument("--cgroup", type=Path, help="folder of a memory control group to read in")
        command.add_argument("--shard-rows", type=int, default=4096)
    options = parser.parse_args()
    if options.function is scale and options.texts is not None:
        options.function = partial(scale_once)
    if options.function is memory and options.folder is not None:
        options.function = memory_once
    if options.function is import_vectors and options.folder is not None:
        options.function = import_once
    with tempfile.TemporaryDirectory() as folder:
        if options.function in (read, larger):
            options.folder = options.folder or folder
        options.function(options)


if __name__ == "__main__":
    main()
