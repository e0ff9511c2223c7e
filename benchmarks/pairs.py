"""Pairs, then hard negatives: SciFact test nDCG@10 and STS-B test Spearman of an encoder before and after each.

    python benchmarks/pretraining.py --data DATA --model alibi_bert                       # the encoder, see there
    python -m benchmarks.pairs --data DATA --encoder out/pretraining/alibi_bert
    python -m benchmarks.pairs --data DATA --encoder MINILM --out out/pairs-minilm        # any other model

DATA holds parquet files: wikisplit/{tune,validation} (complex, split), snli_devtest/dev (premise, hypothesis, label: pairs are
the entailments), scifact/{corpus,queries,qrels_train,qrels_test} and stsb/test. Sentences of the STS-B test are left out. The
negatives of the SciFact training queries are mined by the model of pairs among all documents. The same command with the same
``--out`` continues what was stopped. To look whether it runs, add ``--steps 2 2 --limit 64``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas
from sentence_transformers import SentenceTransformer

from benchmarks.quality.tasks import Search, Similarity
from st_distill.files import write_json
from st_distill.mining import mine_negatives
from st_distill.recipe import Recipe, Texts, run

BOTH_WAYS = {"scale": 20, "directions": ["query_to_doc", "doc_to_query"], "partition_mode": "per_direction"}
RANKING = "MultipleNegativesRankingLoss"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True, help="name or folder of an encoder")
    parser.add_argument("--out", type=Path, default=Path("out/pairs-benchmark"))
    parser.add_argument("--steps", type=int, nargs=2, default=[1000, 200], metavar=("PAIRS", "HARD"))
    parser.add_argument("--negatives", type=int, default=7, help="of each pair; 15 in the paper")
    parser.add_argument("--limit", type=int, help="the first so many texts of every source, and documents of SciFact")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    pooling = None if is_embedding_model(options.encoder) else "mean"
    start = SentenceTransformer(options.encoder)
    measured = {"before": measure(start, options)}
    report(measured)
    pairs = trained(
        options,
        "pairs",
        {"model": options.encoder, "pooling": pooling, "max_seq_length": 128},
        pair_sources(options),
        {"steps": options.steps[0], "batch": 64, "learning_rate": 2e-4},
    )
    measured["pairs"] = measure(SentenceTransformer(pairs, trust_remote_code=True), options)
    report(measured)
    hard = trained(
        options,
        "hard",
        {"model": pairs, "max_seq_length": 256, "trust_remote_code": True},
        [{"path": str(hard_negatives(options, pairs))}],
        {"steps": options.steps[1], "batch": 16, "learning_rate": 5e-5},
    )
    measured["hard negatives"] = measure(SentenceTransformer(hard, trust_remote_code=True), options)
    report(measured)
    write_json(options.out / "results.json", measured)


def is_embedding_model(name: str) -> bool:
    return not Path(name).is_dir() or (Path(name) / "modules.json").is_file()


def trained(
    options: argparse.Namespace, name: str, student: dict[str, Any], texts: list[dict[str, Any]], stage: dict[str, Any]
) -> str:
    """Folder of the model after one training, which is done unless it is there."""
    output = options.out / name
    if not (output / "modules.json").is_file():
        recipe = Recipe(
            output=str(output),
            student=student,
            texts=texts,
            stages=[
                {
                    "name": name,
                    "train": "all",
                    "losses": {},
                    "also": [{"loss": RANKING, "options": BOTH_WAYS}],
                    "arguments": {"warmup_steps": 0.1, "disable_tqdm": True},
                    **stage,
                }
            ],
        )
        run(recipe, resume=(recipe.work_folder / "run.json").is_file())
    return str(output)


def pair_sources(options: argparse.Namespace) -> list[dict[str, Any]]:
    tests = pandas.read_parquet(options.data / "stsb/test.parquet")
    tested = {*tests["sentence1"], *tests["sentence2"]}
    wiki = pandas.concat(
        pandas.read_parquet(options.data / f"wikisplit/{part}.parquet", columns=["complex", "split"])
        for part in ("tune", "validation")
    )
    entailed = pandas.read_parquet(options.data / "snli_devtest/dev.parquet")
    entailed = entailed[entailed["label"] == "entailment"][["premise", "hypothesis"]]
    sources = []
    for name, frame in (("wikisplit", wiki), ("snli", entailed)):
        kept = frame[~frame.isin(tested).any(axis=1)].drop_duplicates().set_axis(["anchor", "positive"], axis=1)
        file = options.out / f"{name}.parquet"
        kept.to_parquet(file, index=False)
        sources.append({"path": str(file), "limit": options.limit})
    return sources


def hard_negatives(options: argparse.Namespace, model: str) -> Path:
    """Training queries of SciFact with a right document each, and the documents that the model takes for right."""
    file = options.out / "hard.parquet"
    if not file.is_file():
        corpus = pandas.read_parquet(options.data / "scifact/corpus.parquet").set_index("_id")
        documents = corpus["title"] + " " + corpus["text"]
        queries = pandas.read_parquet(options.data / "scifact/queries.parquet").set_index("_id")["text"]
        judged = pandas.read_parquet(options.data / "scifact/qrels_train.parquet")
        judged = judged[judged["score"] > 0]
        pairs = pandas.DataFrame(
            {
                "anchor": queries[judged["query_id"]].to_numpy(),
                "positive": documents[judged["corpus_id"]].to_numpy(),
            }
        )
        pairs.to_parquet(options.out / "scifact.parquet", index=False)
        pandas.DataFrame({"text": documents}).to_parquet(options.out / "documents.parquet", index=False)
        mine_negatives(
            SentenceTransformer(model, trust_remote_code=True),
            Texts(path=str(options.out / "scifact.parquet"), limit=options.limit),
            file,
            corpus=Texts(path=str(options.out / "documents.parquet"), limit=options.limit),
            negatives=options.negatives,
        )
    return file


def measure(model: SentenceTransformer, options: argparse.Namespace) -> dict[str, float]:
    model.max_seq_length = 256
    figures = {}
    for task in (Search(options.data, "test"), Similarity(options.data, "test")):
        texts = task.texts if options.limit is None else [text[:20] for text in task.texts]
        vectors = model.encode(texts, convert_to_tensor=True, show_progress_bar=False).cpu().float()
        scores = task.score(vectors, vectors)
        metric = next(iter(scores))
        figures[f"{task.name} {metric}"] = scores[metric]
    return figures


def report(measured: dict[str, dict[str, float]]) -> None:
    step, figures = list(measured.items())[-1]
    print(f"{step:15}", ", ".join(f"{name} {100 * value:.2f}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
