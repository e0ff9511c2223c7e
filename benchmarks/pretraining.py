"""Masked-word accuracy over lengths: an encoder pretrained on short rows of text, measured at up to 8192 tokens.

DATA is a folder with ``novel_parts_4k/parts.parquet`` (doc, part, text: consecutive parts of about 4,000 words from 50
novels of github.com/computationalstylistics/100_english_novels) and ``wikitext2_validtest/articles.parquet`` (text: the
articles of WikiText-2's validation and test splits). Four novels are held out whole, their parts joined in twos. The others
are cut into pieces of about a row, so that all of a novel is seen and not only its beginning. Most steps are on rows of 128
tokens, which are four times as many for the same work, and the last ones on rows of 512.

    python benchmarks/pretraining.py --data DATA --model alibi_bert
    python benchmarks/pretraining.py --data DATA --model bert --beside out/pretraining/alibi_bert.results.json
    python benchmarks/pretraining.py --data DATA --out out/trial --steps 20 10 --width 64 --novels 6     # a minute or two

The second is the contrast: learned positions, of whose table of 8192 only the first 512 rows are ever trained. It has as many
weights in its layers (GEGLU has three matrices of twice the width, BERT's layer two of three times). The same command with
the same ``--out`` continues what was stopped; SIGTERM and Ctrl-C stop it with a checkpoint. On a GPU add ``--set
device_batch=256 --set arguments.dataloader_num_workers=8`` and more steps; ``--set`` changes a field of both parts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import st_distill.modules  # noqa: F401 - registers the ALiBi encoder
from st_distill.files import write_json
from st_distill.pretrain import evaluate_encoder, load_pretraining, pretrain
from st_distill.pretrain.evaluation import report_accuracy
from st_distill.pretrain.picture import draw_accuracy

HELD_OUT_NOVELS = 4
LENGTHS = [128, 512, 1024, 2048, 4096, 8192]
ROWS = (128, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/pretraining"))
    parser.add_argument("--model", choices=["alibi_bert", "bert"], default="alibi_bert")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[6000, 1000], metavar=("SHORT", "LONG"), help="on rows of 128 and of 512"
    )
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of a step")
    parser.add_argument(
        "--learning-rate", type=float, default=1.5e-3, help="peak on short rows; a quarter of it on long ones"
    )
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--novels", type=int, help="the first so many novels alone")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument(
        "--beside", type=Path, action="append", default=[], help="results of other runs, for the picture"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_documents(options)
    for part, length in enumerate(ROWS):
        train(options, part, length)
    figures = measure(options)
    print(report_accuracy(figures))
    print(report_goals(figures))
    others = {path.name.removesuffix(".results.json"): json.loads(path.read_text()) for path in options.beside}
    draw_accuracy({options.model: figures, **others}, options.out / "accuracy.png", trained_at=max(ROWS))
    print(f"The picture is {options.out / 'accuracy.png'}.")


def train(options: argparse.Namespace, part: int, length: int) -> None:
    """One part of the training, unless it is finished; the second goes on from the first one's model."""
    path = options.out / f"{options.model}-{length}.json"
    path.write_text(json.dumps(recipe(options, part, length)))  # JSON is YAML too
    if not output(options, length).is_dir():
        started = (options.out / f"{output(options, length).name}-run" / "run.json").is_file()
        pretrain(path, overrides=options.overrides, resume=started)


def output(options: argparse.Namespace, length: int) -> Path:
    """Of a part of the training; the second is the model's."""
    return options.out / (options.model if length == max(ROWS) else f"{options.model}-{length}")


def recipe(options: argparse.Namespace, part: int, length: int) -> dict[str, Any]:
    of_alibi = options.model == "alibi_bert"
    config = {
        "model_type": options.model,
        "num_hidden_layers": 4,
        "hidden_size": options.width,
        "num_attention_heads": max(1, options.width // 64),
        "intermediate_size": (2 if of_alibi else 3) * options.width,
        # A corpus as small as this is gone through a few times only, and never masked alike.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": max(LENGTHS),
    }
    first, steps = output(options, ROWS[0]), options.steps[part]
    return {
        "output": str(output(options, length)),
        "encoder": {**({"model": str(first)} if part else {"config": config}), "attn_implementation": "sdpa"},
        "tokenizer": {"model": str(first)} if part else {"train": "wordpiece", "vocab_size": 8000},
        "texts": [str(options.out / f"train-{length}.parquet")],
        "max_length": length,
        "batch": max(1, options.batch_tokens // length),
        "learning_rate": options.learning_rate / (4 if part else 1),
        "steps": steps,
        "arguments": {
            "bf16": True,
            "use_cpu": not torch.accelerator.is_available(),
            "optim": "adamw_torch_fused",
            "adam_beta2": 0.98,
            "adam_epsilon": 1e-6,
            "weight_decay": 0.01,
            "warmup_steps": 0.1,
            "save_steps": 250,
            "eval_strategy": "steps",
            "eval_steps": max(1, steps // 4),
            "disable_tqdm": True,
        },
        "evaluation": {"texts": [str(options.out / "held-out.parquet")], "lengths": [length]},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """At all lengths, in float32, whatever precision the training had; what was measured is read."""
    results = options.out / f"{options.model}.results.json"
    if results.is_file():
        return json.loads(results.read_text())
    evaluation = {"texts": [str(options.out / "held-out.parquet")], "lengths": LENGTHS}
    path = options.out / f"{options.model}-{max(ROWS)}.json"
    given = load_pretraining(path, [f"evaluation={json.dumps(evaluation)}", "arguments.bf16=false", *options.overrides])
    figures = evaluate_encoder(output(options, max(ROWS)), given)
    write_json(results, figures)
    return figures


def report_goals(figures: dict[str, Any]) -> str:
    at_512, at_4096 = figures["lengths"]["512"], figures["lengths"]["4096"]
    below = figures["unigram_entropy"] - at_512["loss"]
    return "\n".join(
        [
            f"Loss at 512 tokens below the unigram entropy by {below:.3f} nats (asked: 1 at least).",
            f"Accuracy at 512 over that of the commonest token: {at_512['accuracy'] / figures['commonest']:.2f} (asked: 2).",
            f"Accuracy at 4096 less that at 512: {100 * (at_4096['accuracy'] - at_512['accuracy']):+.2f} points (asked: -2).",
        ]
    )


def write_documents(options: argparse.Namespace) -> None:
    parts = pq.read_table(options.data / "novel_parts_4k" / "parts.parquet").to_pylist()
    articles = pq.read_table(options.data / "wikitext2_validtest" / "articles.parquet")["text"].to_pylist()
    novels: dict[str, list[str]] = {}
    for row in sorted(parts, key=lambda row: (row["doc"], int(row["part"]))):
        novels.setdefault(row["doc"], []).append(row["text"])
    names = list(novels)[: options.novels]
    held_out = held_out_novels(names)
    long_texts = [text for name in names if name not in held_out for text in novels[name]] + articles
    for length in ROWS:
        # Two thirds of a token is a word: pieces of a row's tokens, a little more.
        pieces = [piece for text in long_texts for piece in cut(text, words=int(0.8 * length))]
        pq.write_table(pa.table({"text": pieces}), options.out / f"train-{length}.parquet")
    whole = [text for name in held_out for text in joined(novels[name])]
    pq.write_table(pa.table({"text": whole}), options.out / "held-out.parquet")


def held_out_novels(names: list[str]) -> list[str]:
    """Every twelfth of 50 names; `benchmarks/long_documents.py` holds out the same."""
    return names[:: max(1, len(names) // HELD_OUT_NOVELS)][:HELD_OUT_NOVELS]


def cut(text: str, *, words: int) -> list[str]:
    every = text.split()
    return [" ".join(every[start : start + words]) for start in range(0, len(every), words)]


def joined(parts: list[str]) -> list[str]:
    """Two parts and more together have 8192 tokens."""
    return [" ".join(parts[start : start + 2]) for start in range(0, len(parts) - 1, 2)]


if __name__ == "__main__":
    main()
