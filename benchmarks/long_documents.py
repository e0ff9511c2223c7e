"""Same-book retrieval at 512, 2048 and 8192 tokens: an ALiBi student, taught on short texts by a teacher of 256 tokens.

    python benchmarks/pretraining.py --data DATA --model alibi_bert                       # the encoder, see there
    python -m benchmarks.long_documents --data DATA --teacher MINILM --encoder out/pretraining/alibi_bert

DATA is as in benchmarks/pretraining.py and benchmarks/stsb.py. The student learns from MINILM's vectors of sentences (those of
benchmarks/stsb.py) and of passages of 120 words from the novels that the pretraining has seen. A query is one part of a novel
(about 4,000 words) that neither has seen; relevant are the other parts of its novel, among the parts of all novels. The same
command with the same ``--out`` continues what was stopped. To look whether it runs, add ``--steps 4 --limit 64 --queries 2
--documents 6``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.pretraining import cut, held_out_novels
from benchmarks.quality.tasks import ndcg
from benchmarks.stsb import training_pairs
from st_distill.files import write_json
from st_distill.recipe import Recipe, run

LENGTHS = [512, 2048, 8192]
#: The teacher reads 256 tokens.
PASSAGE = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="name or folder of all-MiniLM-L6-v2")
    parser.add_argument("--encoder", required=True, help="folder of a pretrained ALiBi encoder")
    parser.add_argument("--out", type=Path, default=Path("out/long-documents"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--limit", type=int, help="the first so many texts of each source")
    parser.add_argument("--queries", type=int, help="the first so many queries of each novel")
    parser.add_argument("--documents", type=int, help="the first so many parts of each novel")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    student = distilled(options)
    novels = Novels(options)
    results = {}
    for name, model, lengths in (
        ("student", student, LENGTHS),
        ("teacher", SentenceTransformer(options.teacher), [256]),
    ):
        for length in lengths:
            results[f"{name} at {length}"] = novels.measure(model, length)
            print(f"{name:8} {length:5} tokens: nDCG@10 {100 * results[f'{name} at {length}']:.1f}", flush=True)
    print(f"{len(novels.queries)} queries, {len(novels.texts)} parts; chance {100 * novels.chance():.1f}")
    write_json(options.out / "results.json", results)


def distilled(options: argparse.Namespace) -> SentenceTransformer:
    output = options.out / "model"
    if not (output / "modules.json").is_file():
        recipe = Recipe(
            output=str(output),
            student={"model": options.encoder, "pooling": "mean", "max_seq_length": 256, "attn_implementation": "sdpa"},
            teachers=[{"model": options.teacher, "name": "teacher"}],
            texts=[{"path": str(path), "limit": options.limit} for path in training_texts(options)],
            projection={"dims": [256, 128, 64]},
            stages=[
                {
                    "name": "all",
                    "train": "all",
                    "learning_rate": options.learning_rate,
                    "steps": options.steps,
                    "batch": 64,
                    "group_by_length": True,
                    "arguments": {"warmup_steps": 0.1, "disable_tqdm": True},
                }
            ],
        )
        run(recipe, resume=(recipe.work_folder / "run.json").is_file())
    return SentenceTransformer(str(output), trust_remote_code=True)


def training_texts(options: argparse.Namespace) -> list[Path]:
    """Files of pairs of sentences, which share a batch, and of passages from the novels that are not held out."""
    files = [options.out / "sentences.parquet", options.out / "passages.parquet"]
    if not files[-1].is_file():
        pq.write_table(pa.table(training_pairs(options.data)), files[0])
        parts = read_parts(options.data)
        held_out = held_out_novels(list(parts))
        seen = [text for name, texts in parts.items() if name not in held_out for text in texts]
        pq.write_table(pa.table({"text": [piece for text in seen for piece in cut(text, words=PASSAGE)]}), files[1])
    return files


def read_parts(data: Path) -> dict[str, list[str]]:
    """The parts of every novel, in their order."""
    rows = pq.read_table(data / "novel_parts_4k" / "parts.parquet").to_pylist()
    novels: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["doc"], int(row["part"]))):
        novels.setdefault(row["doc"], []).append(row["text"])
    return novels


class Novels:
    """Parts of all novels; those of the held-out ones are the queries."""

    def __init__(self, options: argparse.Namespace) -> None:
        novels = {name: parts[: options.documents] for name, parts in read_parts(options.data).items()}
        held_out = held_out_novels(list(novels))
        self.texts = [text for parts in novels.values() for text in parts]
        self.books = [name for name, parts in novels.items() for _ in parts]
        places = {name: [place for place, book in enumerate(self.books) if book == name] for name in held_out}
        self.queries = [place for found in places.values() for place in found[: options.queries]]
        self.relevant = torch.tensor(
            [[float(book == self.books[query]) for book in self.books] for query in self.queries]
        )
        self.relevant[torch.arange(len(self.queries)), self.queries] = 0.0

    def measure(self, model: SentenceTransformer, length: int) -> float:
        model.max_seq_length = length
        # One text at a time: the long ones would otherwise be padded to the longest.
        size = max(1, 8192 // length)
        vectors = model.encode(self.texts, batch_size=size, convert_to_tensor=True, normalize_embeddings=True).cpu()
        return ndcg(self._others(vectors[self.queries] @ vectors.T), self.relevant)

    def chance(self) -> float:
        generator = torch.Generator().manual_seed(0)
        return ndcg(self._others(torch.rand(len(self.queries), len(self.texts), generator=generator)), self.relevant)

    def _others(self, scores: Tensor) -> Tensor:
        scores[torch.arange(len(self.queries)), self.queries] = -torch.inf
        return scores


if __name__ == "__main__":
    main()
