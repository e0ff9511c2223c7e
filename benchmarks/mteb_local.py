"""Tasks of MTEB by the way of ``st-distill eval MODEL mteb:NAME``, on local data, beside our own figures of the same data.

    python benchmarks/mteb_local.py --data DATA --model all-MiniLM-L6-v2 --dims 384,128
    python benchmarks/mteb_local.py --data DATA --model all-MiniLM-L6-v2 --tasks STSBenchmark,SciFact

DATA has STS-B as ``stsb/test.parquet`` (sentence1, sentence2, score) and, for SciFact, the folder ``scifact`` in BEIR's layout.
Needs the extra mteb, and no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer

from st_distill.evaluation import evaluate_tasks, read_task
from st_distill.evaluation.mteb_tasks import evaluate_mteb, find_mteb_tasks

#: Where DATA has the data of a task of MTEB.
PLACES = {"STSBenchmark": "stsb/test.parquet", "SciFact": "scifact"}


def local(task: Any, place: Path) -> Any:
    """A task of MTEB that reads these data instead of the hub's."""

    def load_data(**options: Any) -> None:
        if place.is_file():
            task.dataset = DatasetDict(test=Dataset.from_pandas(pd.read_parquet(place), preserve_index=False))
        else:
            task.dataset = {"default": {"test": collection(place)}}
        task.data_loaded = True

    task.load_data = load_data
    return task


def collection(folder: Path) -> dict[str, Any]:
    """Corpus, queries and relevance of a folder in BEIR's layout, as MTEB holds them."""
    corpus, queries, relevance = (
        pd.read_parquet(folder / f"{name}.parquet").astype({"_id": str} if name != "qrels_test" else str)
        for name in ("corpus", "queries", "qrels_test")
    )
    judged: dict[str, dict[str, int]] = {}
    for query, document, score in relevance[["query_id", "corpus_id", "score"]].itertuples(index=False):
        judged.setdefault(query, {})[document] = int(score)
    kept = queries[queries["_id"].isin(list(judged))]
    return {
        "corpus": Dataset.from_pandas(corpus.rename(columns={"_id": "id"}), preserve_index=False),
        "queries": Dataset.from_pandas(kept.rename(columns={"_id": "id"}), preserve_index=False),
        "relevant_docs": judged,
        "top_ranked": None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", default="STSBenchmark", help=f"of {','.join(PLACES)}")
    parser.add_argument("--dims", default="384", help="comma-separated")
    options = parser.parse_args()
    names, dims = options.tasks.split(","), [int(dim) for dim in options.dims.split(",")]
    model = SentenceTransformer(options.model, device="cpu")
    places = [options.data / PLACES[name] for name in names]
    tasks = [local(task, place) for task, place in zip(find_mteb_tasks(names), places)]
    theirs = evaluate_mteb(model, tasks, dims=dims)
    ours = evaluate_tasks(model, [task for place in places for task in read_task(str(place))], dims=dims)["tasks"]
    print(f"{'task':14}{'dimensions':>12}{'by MTEB':>10}{'ours':>10}")
    own_names = [read_task(str(place))[0].name for place in places]
    for own_name, name in zip(own_names, names):
        own = next(task for task in ours if task["name"] == own_name)
        measured = next(task for task in theirs if task["name"] == name)
        for dim in map(str, dims):
            figures = measured["scores"][dim]["float32"]["main_score"], own["scores"][dim]["float32"][own["metric"]]
            print(f"{name:14}{dim:>12}{100 * figures[0]:>10.2f}{100 * figures[1]:>10.2f}")


if __name__ == "__main__":
    main()
