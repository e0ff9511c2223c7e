"""Masked-word accuracy over lengths: an encoder pretrained on short rows of text, measured at up to 8192 tokens.

DATA is a folder with ``novel_parts_4k/parts.parquet`` (doc, part, text: consecutive parts of about 4,000 words from 50
novels of github.com/computationalstylistics/100_english_novels) and ``wikitext2_validtest/articles.parquet`` (text: the
articles of WikiText-2's validation and test splits). Four novels are held out whole, their parts joined. The others are cut
into pieces of about a row, so that all of a novel is seen and not only its beginning.

    python benchmarks/pretraining.py --data DATA --model alibi_bert --steps 8000      # an hour or two on two cores
    python benchmarks/pretraining.py --data DATA --model bert --steps 8000            # the contrast: learned positions
    python benchmarks/pretraining.py --data DATA --model alibi_bert --steps 20 --width 64   # a minute

On a GPU add ``--set arguments.bf16=true --set device_batch=256 --set arguments.dataloader_num_workers=8`` and more steps. A
second run with the same ``--out`` continues the first. The pictures of two runs are put together with ``--beside FIGURES``, the
``results.json`` of the other one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import st_distill.modules  # noqa: F401 - registers the ALiBi encoder
from st_distill.pretrain import pretrain
from st_distill.pretrain.evaluation import report_accuracy
from st_distill.pretrain.picture import draw_accuracy

HELD_OUT_NOVELS = 4
LENGTHS = [512, 1024, 2048, 4096, 8192]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/pretraining"))
    parser.add_argument("--model", choices=["alibi_bert", "bert"], default="alibi_bert")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row in training")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], help="results.json of other runs, for the picture"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_documents(options)
    (options.out / f"{options.model}.json").write_text(json.dumps(recipe(options)))  # JSON is YAML too
    resume = (options.out / f"{options.model}-run" / "run.json").is_file()
    result = pretrain(options.out / f"{options.model}.json", overrides=options.overrides, resume=resume)
    print(report_accuracy(result.results))
    figures = {path.parent.name.removesuffix("-run"): json.loads(path.read_text()) for path in options.beside}
    draw_accuracy({options.model: result.results, **figures}, options.out / "accuracy.png", trained_at=options.length)
    print(f"The picture is {options.out / 'accuracy.png'}.")


def recipe(options: argparse.Namespace) -> dict:
    config = {
        "model_type": options.model,
        "num_hidden_layers": 4,
        "hidden_size": options.width,
        "num_attention_heads": max(1, options.width // 64),
        "intermediate_size": 4 * options.width,
        # Of a corpus as small as this every word is seen many times, but never masked alike.
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": max(LENGTHS),
    }
    return {
        "output": str(options.out / options.model),
        "encoder": {"config": config},
        "tokenizer": {"train": "wordpiece", "vocab_size": 8000},
        "texts": [str(options.out / "train.parquet")],
        "max_length": options.length,
        "batch": options.batch,
        "learning_rate": 1e-3,
        "steps": options.steps,
        "arguments": {
            "adam_beta2": 0.98,
            "adam_epsilon": 1e-6,
            "weight_decay": 0.01,
            "warmup_steps": 0.1,
            "eval_strategy": "steps",
            "eval_steps": max(1, options.steps // 10),
            "disable_tqdm": True,
        },
        "evaluation": {"texts": [str(options.out / "held-out.parquet")], "lengths": LENGTHS},
    }


def write_documents(options: argparse.Namespace) -> None:
    parts = pq.read_table(options.data / "novel_parts_4k" / "parts.parquet").to_pylist()
    articles = pq.read_table(options.data / "wikitext2_validtest" / "articles.parquet")["text"].to_pylist()
    novels: dict[str, list[str]] = {}
    for row in sorted(parts, key=lambda row: (row["doc"], int(row["part"]))):
        novels.setdefault(row["doc"], []).append(row["text"])
    names = list(novels)
    held_out = names[:: len(names) // HELD_OUT_NOVELS][:HELD_OUT_NOVELS]
    long_texts = [text for name in names if name not in held_out for text in novels[name]] + articles
    # Two thirds of a token is a word: pieces of a row's tokens, a little more.
    pieces = [piece for text in long_texts for piece in cut(text, words=int(0.8 * options.length))]
    pq.write_table(pa.table({"text": pieces}), options.out / "train.parquet")
    whole = [text for name in held_out for text in joined(novels[name])]
    pq.write_table(pa.table({"text": whole}), options.out / "held-out.parquet")


def cut(text: str, *, words: int) -> list[str]:
    every = text.split()
    return [" ".join(every[start : start + words]) for start in range(0, len(every), words)]


def joined(parts: list[str]) -> list[str]:
    """Two parts and more together have 8192 tokens."""
    return [" ".join(parts[start : start + 2]) for start in range(0, len(parts) - 1, 2)]


if __name__ == "__main__":
    main()
