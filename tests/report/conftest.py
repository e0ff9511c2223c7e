from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value
from report_material import HOSTILE, TEACHER
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_distill.recipe import Recipe, run

FAST = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_bert, sentences, images) -> Path:
    """The work folder of a run of three stages, the last with pictures, on texts that mean ill."""
    folder = tmp_path_factory.mktemp("run")
    transformer = Transformer(tiny_bert, max_seq_length=32)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "first"))
    texts = [f"{a} and {b}" for a in sentences[:6] for b in sentences[8:]]
    Dataset.from_dict({"text": texts}).to_parquet(folder / "texts.parquet")
    Dataset.from_dict({"text": [*sentences, *HOSTILE]}).to_parquet(folder / "held-out.parquet")
    Dataset.from_dict({"query": sentences[:6], "document": texts[:6]}).to_parquet(folder / "pairs.parquet")
    captions = [f"{colour} square {place}" for colour in ("red", "green", "blue", "yellow") for place in "abcd"]
    captions[0] = HOSTILE[0]
    features = Features({"image": Image(), "caption": Value("string")})
    pictures = Dataset.from_dict({"image": images, "caption": captions}, features=features)
    pictures.to_parquet(folder / "images.parquet")
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 16,
    }
    recipe = Recipe(
        output=str(folder / "small"),
        student={"model": tiny_bert, "layers": [0, 3], "max_seq_length": 16, "pooling": "mean"},
        teachers=[{"model": str(folder / "first"), "name": TEACHER}],
        texts=[{"path": str(folder / "texts.parquet")}],
        images={"path": str(folder / "images.parquet"), "vision": vision},
        projection={"dims": [24, 16, 8]},
        stages=[
            {"train": "projection", "steps": 4, "batch": 8, "arguments": FAST},
            {"train": "all", "steps": 8, "batch": 8, "learning_rate": 1e-3, "arguments": FAST},
            {"train": "vision", "steps": 6, "batch": 8, "learning_rate": 1e-3, "arguments": FAST},
        ],
        evaluation={
            "texts": str(folder / "held-out.parquet"),
            "retrieval": str(folder / "pairs.parquet"),
            "images": str(folder / "images.parquet"),
        },
    )
    run(recipe, show_progress=False)
    return folder / "small-run"
