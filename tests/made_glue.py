"""A made-up GLUE: nine folders of files, a few rows each, that a model can learn from a word."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

#: Of each task: the columns of its texts and the values of its label.
COLUMNS = {
    "mnli": (["premise", "hypothesis"], [0, 1, 2]),
    "qqp": (["question1", "question2"], [0, 1]),
    "qnli": (["question", "sentence"], [0, 1]),
    "sst2": (["sentence"], [0, 1]),
    "cola": (["sentence"], [0, 1]),
    "stsb": (["sentence1", "sentence2"], [0.0, 2.5, 5.0]),
    "mrpc": (["sentence1", "sentence2"], [0, 1]),
    "rte": (["sentence1", "sentence2"], [0, 1]),
    "wnli": (["sentence1", "sentence2"], [0, 1]),
}
_WORDS = ["red", "green", "blue"]


def _rows(name: str, count: int) -> list[dict]:
    columns, labels = COLUMNS[name]
    rows = []
    for number in range(count):
        kind = number % len(labels)
        texts = dict.fromkeys(columns, f"a {_WORDS[kind]} {'cat' if number % 2 else 'dog'}")
        rows.append({**texts, "label": labels[kind], "idx": number})
    return rows


def write_glue(folder: Path, tasks: Iterable[str] = COLUMNS) -> Path:
    """Write the tasks, as parquet files; QNLI as jsonl."""
    for name in tasks:
        (folder / name).mkdir(parents=True)
        held_out = ["validation_matched", "validation_mismatched"] if name == "mnli" else ["validation"]
        for part, count in [("train", 24), *((part, 12) for part in held_out)]:
            rows = _rows(name, count)
            if name == "qnli":
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (folder / name / f"{part}.jsonl").write_text(lines)
            else:
                pq.write_table(pa.Table.from_pylist(rows), folder / name / f"{part}.parquet")
    return folder
