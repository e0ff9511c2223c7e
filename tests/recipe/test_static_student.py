"""A table of word vectors as the student of a recipe: where the ridge start goes, and what is left of the projection."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding

from st_distill.exporting import load_student
from st_distill.modules.matryoshka import find_projection
from st_distill.recipe import Recipe, check, run

ARGUMENTS = {"disable_tqdm": True, "report_to": "none", "use_cpu": True}


@pytest.fixture
def make_recipe(make_student, sentences, tmp_path):
    """A table of 20 columns that learns from a BERT of 32 dimensions, in one stage."""
    teacher = make_student()
    teacher.save(str(tmp_path / "teacher"))
    table = torch.randn(len(teacher.tokenizer), 20, generator=torch.Generator().manual_seed(0))
    words = StaticEmbedding(teacher.tokenizer, embedding_weights=table)
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path / "table"))
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "texts.parquet")

    def make(stages, *, output="out", **projection) -> Recipe:
        return Recipe(
            output=str(tmp_path / output),
            student={"model": str(tmp_path / "table")},
            teachers=[{"model": str(tmp_path / "teacher")}],
            texts=[{"path": str(tmp_path / "texts.parquet")}],
            projection={"dims": [24, 8], **projection},
            stages=[{"steps": 2, "batch": 8, "arguments": ARGUMENTS, **stage} for stage in stages],
            diagnosis=False,
        )

    return make


def kinds(model: SentenceTransformer) -> list[type]:
    return [type(module) for module in model.children()]


def test_the_table_takes_the_start(make_recipe, sentences, tmp_path):
    run(make_recipe([{"train": "all"}]), show_progress=False)
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert kinds(model) == [StaticEmbedding, Normalize]
    assert model.encode(sentences[:3]).shape == (3, 24)
    (stage,) = (tmp_path / "out-run" / "stages").iterdir()
    projection = find_projection(load_student(stage / "model"))
    assert projection.heads == "none"
    assert projection.rotation.shape == (32, 24)


def test_the_start_is_that_of_a_projection(make_recipe, sentences, tmp_path):
    """One step at a rate of next to nothing: what was solved, in the table and in a Dense."""
    stage = {"train": "all", "steps": 1, "learning_rate": 1e-12}
    run(make_recipe([stage]), show_progress=False)
    folded = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(sentences)
    run(make_recipe([stage], output="nested", heads="nested"), show_progress=False)
    model = SentenceTransformer(str(tmp_path / "nested"), device="cpu")
    assert kinds(model) == [StaticEmbedding, Dense, Normalize]
    assert torch.allclose(torch.tensor(folded), torch.tensor(model.encode(sentences)), atol=1e-5)


def test_a_stage_of_the_projection_alone_keeps_it(make_recipe, tmp_path):
    run(make_recipe([{"train": "projection"}, {"train": "all"}]), show_progress=False)
    assert kinds(SentenceTransformer(str(tmp_path / "out"), device="cpu")) == [StaticEmbedding, Dense, Normalize]


@pytest.mark.parametrize("field", ["max_seq_length", "export_max_seq_length"])
def test_a_table_reads_texts_of_any_length(field, make_recipe):
    recipe = make_recipe([{"train": "all"}])
    setattr(recipe.student, field, 16)
    (problem,) = check(recipe)
    assert str(problem) == f"student.{field}: a static embedding reads texts of any length; leave it out"
