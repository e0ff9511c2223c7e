"""The world that the pages speak of: tiny models and files under the names that the pages use."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from made_glue import write_glue
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from sentence_transformers.sentence_transformer.modules import Transformer as TextTransformer

from st_distill import cli, export
from st_distill.modules import AlibiBertModel, MatryoshkaProjection, Transformer
from st_distill.modules.alibi_checkpoint import save_published

#: Names on the hub that pages teach and start with, and names of folders of the reader's own.
ENCODERS = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/static-retrieval-mrl-en-v1",
    "mixedbread-ai/mxbai-embed-large-v1",
    "Snowflake/snowflake-arctic-embed-l-v2.0",
    "teacher-one",
    "teacher-two",
)


#: The recipe that the commands speak of, as small as it can be with the stages and dimensions that they name.
_RECIPE = """
output: out/small
student: {model: sentence-transformers/all-MiniLM-L6-v2, layers: [0, 2, 5]}
teachers: [teacher-one, teacher-two]
texts: my-texts.parquet
projection: {dims: [384, 256, 128, 64], rotation: principal}
stages:
  - {name: projection, train: projection, steps: 1, batch: 4}
  - {name: last-layers, train: {last_layers: 2}, steps: 1, batch: 4}
  - {name: all, train: all, steps: 1, batch: 4}
"""

#: The recipe of the page on pretraining, likewise.
_PRETRAINING = """
output: out/encoder
encoder:
  config: {model_type: alibi_bert, num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 16}
tokenizer: {train: wordpiece, vocab_size: 300}
texts: my-texts.parquet
steps: 2
batch: 4
evaluation: {texts: long-texts.parquet, lengths: [8, 16, 32]}
"""


#: The recipes of the README's long documents: pairs, and pairs with a hard negative each.
_PAIRS = """
output: out/{name}
student: {{model: out/{student}, {pooling} max_seq_length: 32}}
texts: {texts}.parquet
stages: [{{train: all, losses: {{}}, also: [{{loss: MultipleNegativesRankingLoss}}], steps: 1, batch: 4}}]
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory, tiny_bert, tiny_alibi, sentences, images) -> Path:
    """A folder with every model and file; each page works in a copy."""
    folder = tmp_path_factory.mktemp("library")
    _save_models(folder, tiny_bert, tiny_alibi)
    _save_texts(folder, sentences)
    pictures = folder / "my-pictures"
    pictures.mkdir()
    with open(pictures / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "caption"])
        for number, image in enumerate(images):
            image.save(pictures / f"{number}.png")
            rows.writerow([f"{number}.png", sentences[number]])
    return folder


@pytest.fixture
def world(library, tmp_path, monkeypatch) -> Path:
    """The working directory of a page."""
    folder = tmp_path / "world"
    shutil.copytree(library, folder)
    monkeypatch.chdir(folder)
    return folder


def _save_models(folder: Path, tiny_bert: str, tiny_alibi: str) -> None:
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForMaskedLM,
        BertModel,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )
    from transformers import SiglipVisionModel as VisionModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    # As wide and as deep as MiniLM, so that dimensions and layers on the pages are possible ones.
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=128,
    )
    for name in ENCODERS:
        place = folder / "plain" / name
        BertModel(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
        _pooled(place, Normalize()).save(str(folder / name))
    shutil.rmtree(folder / "plain")

    vision = SiglipVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=224, patch_size=16
    )
    VisionModel(vision).save_pretrained(folder / "google" / "siglip-base-patch16-224")
    SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(
        folder / "google" / "siglip-base-patch16-224"
    )

    small = _pooled(tiny_bert)
    small.save(str(folder / "small-encoder"))
    small.append(MatryoshkaProjection(32, [384, 256, 128, 64]))
    export(small, folder / "out" / "small")
    eyes = Transformer.from_encoders(small, {"model_type": "siglip_vision_model", **vision.to_diff_dict()})
    export(SentenceTransformer(modules=[eyes, *list(small.children())[1:]], device="cpu"), folder / "out" / "jasper")
    long = _pooled(tiny_alibi)
    long.append(MatryoshkaProjection(long.get_embedding_dimension(), [512]))
    export(long, folder / "out" / "long")
    shutil.copytree(tiny_alibi, folder / "out" / "encoder")
    _pooled(tiny_alibi).save(str(folder / "out" / "pairs"))
    save_published(AlibiBertModel.from_pretrained(tiny_alibi), folder / "jina-embeddings-v2-base-en")
    BertForMaskedLM(config).save_pretrained(folder / "bert-base-uncased")
    tokenizer.save_pretrained(folder / "bert-base-uncased")


@pytest.fixture(scope="session")
def run_library(library, tmp_path_factory) -> Path:
    """The same with a finished run of recipe.yaml."""
    folder = tmp_path_factory.mktemp("run") / "library"
    shutil.copytree(library, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["run", "recipe.yaml"]) == 0
    return folder


@pytest.fixture
def world_of_a_run(run_library, tmp_path, monkeypatch) -> Path:
    """The working directory of a page of commands."""
    folder = tmp_path / "world"
    shutil.copytree(run_library, folder)
    monkeypatch.chdir(folder)
    return folder


def _pooled(encoder: str | Path, *modules: Dense | Normalize) -> SentenceTransformer:
    transformer = TextTransformer(str(encoder))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling, *modules], device="cpu")


def _save_texts(folder: Path, texts: list[str]) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(texts), 384)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    (folder / "texts.txt").write_text("\n".join(texts))
    halves = {"first": texts[:8], "second": texts[8:]}
    scored = {"sentence1": halves["first"], "sentence2": halves["second"], "score": [0.1 * n for n in range(8)]}
    tables = {
        "my-texts": {"text": texts},
        "long-texts": {"text": [" ".join(2 * texts)] * 4},
        "questions": {"question": [f"{text}?" for text in texts], "answer": texts},
        "titles": {"title": halves["first"], "body": halves["second"]},
        "hard": {"question": halves["first"], "answer": halves["second"], "negative_1": halves["first"][::-1]},
        "vectors": {"text": texts, "embedding": vectors.tolist()},
        "data/stsb/dev": scored,
        "data/stsb/test": scored,
        "data/clinc150/test": {"text": texts, "label": [number % 2 for number in range(len(texts))]},
        "data/books": {"text": texts, "title": [f"book {number % 4}" for number in range(len(texts))]},
    }
    for name, columns in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns).to_parquet(folder / f"{name}.parquet")
    for name in ("scifact", "reports-whole", "reports-in-pieces"):
        collection = {
            "corpus": {"_id": [f"d{number}" for number in range(8)], "text": halves["second"]},
            "queries": {"_id": [f"q{number}" for number in range(8)], "text": halves["first"]},
            "qrels_test": {
                "query-id": [f"q{number}" for number in range(8)],
                "corpus-id": [f"d{number}" for number in range(8)],
                "score": [1] * 8,
            },
        }
        (folder / "data" / name).mkdir()
        for part, columns in collection.items():
            Dataset.from_dict(columns).to_parquet(folder / "data" / name / f"{part}.parquet")
    (folder / "recipe.yaml").write_text(_RECIPE)
    (folder / "pretraining.yaml").write_text(_PRETRAINING)
    for name, student, pooling, pairs in (
        ("pairs", "encoder", "pooling: mean,", "questions"),
        ("hard", "pairs", "", "hard"),
    ):
        content = _PAIRS.format(name=name, student=student, pooling=pooling, texts=pairs)
        (folder / f"{name}.yaml").write_text(content)
    write_glue(folder / "data" / "glue", ["mnli", "rte"])
    write_glue(folder / "nyu-mll" / "glue", ["cola", "rte", "stsb"])
