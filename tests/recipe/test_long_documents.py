"""The ALiBi encoder as the student of a recipe: taught on short texts, used on long ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_distill.cli import main
from st_distill.exporting import load_student

EXAMPLE = Path(__file__).parents[2] / "examples" / "long_documents.yaml"


@pytest.fixture
def words(make_student, tiny_alibi, sentences, tmp_path) -> list[str]:
    """The example on the command line, with a teacher that reads 16 tokens, and two steps a stage."""
    make_student(max_seq_length=16).save(str(tmp_path / "teacher"))
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "texts.parquet")
    changes = {
        "output": tmp_path / "long",
        "student.model": tiny_alibi,
        "student.max_seq_length": 32,
        "student.attn_implementation": "blockwise",
        "teachers.0.model": tmp_path / "teacher",
        "texts": f"[{tmp_path / 'texts.parquet'}]",
        "projection.dims": "[24, 16]",
        "stages.projection.steps": 2,
        "stages.all.steps": 2,
        "stages.all.batch": 8,
        "stages.projection.batch": 8,
        "stages.all.arguments.disable_tqdm": "true",
        "stages.projection.arguments": "{disable_tqdm: true}",
    }
    return [str(EXAMPLE), *(word for name, value in changes.items() for word in ("--set", f"{name}={value}"))]


def test_a_student_of_short_texts_reads_long_ones(words, sentences, tmp_path, capsys):
    assert main(["check", *words]) == 0
    assert main(["run", *words]) == 0
    model = SentenceTransformer(str(tmp_path / "long"), trust_remote_code=True, device="cpu")
    assert model.max_seq_length == 8192
    assert load_student(tmp_path / "long-run" / "stages" / "2-all" / "model").max_seq_length == 32
    long = " ".join(sentences * 30)
    short, whole = model.encode([sentences[0], long], convert_to_tensor=True)
    assert len(model.tokenizer(long)["input_ids"]) > 2000
    assert torch.isfinite(whole).all()
    np.testing.assert_allclose(model.encode(sentences[0]), short.numpy(), atol=1e-5)  # next to a long text or alone
    assert model.encode(long, truncate_dim=16).shape == (16,)
    model.max_seq_length = 32
    assert not np.allclose(whole.numpy(), model.encode(long), atol=1e-3)  # the rest of the text was read
    # Another length is another export, and no other training.
    assert main(["run", *words, "--resume", "--set", "student.export_max_seq_length=100"]) == 0
    assert SentenceTransformer(str(tmp_path / "long"), trust_remote_code=True, device="cpu").max_seq_length == 100


def test_the_papers_recipe_with_this_student(make_student, tiny_alibi, sentences, tmp_path):
    """Both systems together: the stages of texts of `jasper`, with two teachers; every head is exported for 8,192 tokens."""
    for name in ("one", "two"):
        make_student(max_seq_length=16).save(str(tmp_path / name))
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "texts.parquet")
    (tmp_path / "recipe.yaml").write_text(f"""\
preset: jasper
output: {tmp_path}/out
student: {{model: {tiny_alibi}, max_seq_length: 32, export_max_seq_length: 8192}}
teachers: [{tmp_path}/one, {tmp_path}/two]
texts: {tmp_path}/texts.parquet
images: null
projection: {{dims: [24, 16]}}
stages:
  projection: {{steps: 2, batch: 8, arguments: {{use_cpu: true, disable_tqdm: true}}}}
  last-layers: {{train: {{last_layers: 1}}, steps: 2, batch: 8, arguments: {{use_cpu: true, disable_tqdm: true}}}}
  dimensions: {{dims: [24, 16], steps: 2, batch: 8, arguments: {{use_cpu: true, disable_tqdm: true}}}}
  vision: null
""")
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
    assert main(["run", str(tmp_path / "recipe.yaml")]) == 0
    assert sorted(path.name for path in (tmp_path / "out-run" / "stages").iterdir()) == [
        "1-projection",
        "2-last-layers",
        "3-dimensions",
    ]
    for name, width in (("out", 24), ("out-24", 24), ("out-16", 16)):
        model = SentenceTransformer(str(tmp_path / name), trust_remote_code=True, device="cpu")
        assert model.max_seq_length == 8192
        vector = model.encode(" ".join(sentences * 30))
        assert vector.shape == (width,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
