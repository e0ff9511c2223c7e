"""Texts that the student does not read to their end, and students that are not what they say."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_distill.modules.alibi_checkpoint import load_published, save_published
from st_distill.modules.alibi_model import AlibiBertModel
from st_distill.recipe.check import check
from st_distill.recipe.models import load_model
from st_distill.recipe.schema import Recipe, Stage, Student, Texts
from st_distill.recipe.start import tell_too_long_texts

TEXTS = ["a cat", "", "the dog " * 20]


def recipe(**student) -> Recipe:
    pairs = Stage(
        train="all",
        losses={},
        also=[{"loss": "MultipleNegativesRankingLoss", "texts": [Texts(data=TEXTS)]}],
        steps=1,
    )
    return Recipe(output="out/unused", student=Student(**student), texts=[Texts(data=TEXTS)], stages=[pairs])


def messages(found: Recipe) -> list[str]:
    return [problem.message for problem in check(found) if problem.path in ("texts[0]", "student.too_long")]


@pytest.mark.parametrize(
    ("student", "found"),
    [
        (
            {"too_long": "refuse", "max_seq_length": 16},
            "1 of 3 texts (the first in row 2) have more tokens than the model's 16",
        ),
        ({"too_long": "refuse"}, None),
        ({"max_seq_length": 16}, None),
    ],
)
def test_too_long_texts_are_refused_where_the_recipe_asks(student, found, tiny_bert):
    said = messages(recipe(model=tiny_bert, **student))
    if found is None:
        assert said == []
    else:
        assert len(said) == 1
        assert said[0].startswith(f"{found}, up to 42")
        assert said[0].endswith("split them, raise max_seq_length, or set too_long: truncate")


def test_a_saved_model_has_its_own_limit(make_student, tmp_path):
    make_student(max_seq_length=16).save(str(tmp_path / "model"))
    assert "more tokens than the model's 16" in messages(recipe(model=str(tmp_path / "model"), too_long="refuse"))[0]


def test_too_long_texts_are_told_once(make_student, caplog):
    with caplog.at_level(logging.WARNING, "st_distill"):
        tell_too_long_texts(make_student(max_seq_length=16), [Texts(data=TEXTS), Texts(data=TEXTS[:2])])
    told = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    assert len(told) == 1
    assert "1 of 3 texts (the first in row 2)" in told[0]
    assert "are truncated there" in told[0]


def test_an_alibi_encoder_reads_empty_and_too_long_texts(tiny_alibi):
    model = SentenceTransformer(tiny_alibi, device="cpu")
    assert model.max_seq_length == 8192
    model.max_seq_length = 10
    together = model.encode(TEXTS)
    assert np.isfinite(together).all()
    for text, vector in zip(TEXTS, together):
        np.testing.assert_allclose(model.encode(text), vector, atol=1e-5)
    # Eight words and the two special tokens are what it reads.
    np.testing.assert_allclose(model.encode("the dog " * 4), together[2], atol=1e-5)


@pytest.fixture
def published(tiny_alibi, tmp_path):
    """Folder of an ALiBi encoder in the published layout, with its tokenizer."""
    folder = tmp_path / "published"
    shutil.copytree(tiny_alibi, folder, ignore=lambda *_: ["config.json", "model.safetensors"])
    save_published(AlibiBertModel.from_pretrained(tiny_alibi), folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    return folder


def test_a_published_folder_is_no_student_before_it_is_written_anew(published, tmp_path):
    (said,) = [problem.message for problem in check(recipe(model=str(published))) if problem.path == "student.model"]
    assert "is an ALiBi encoder in the published layout, which transformers takes for a plain BERT" in said
    with pytest.raises(ValueError, match="holds an ALiBi BERT in the published layout"):
        load_model(str(published))
    new = tmp_path / "new"
    shutil.copytree(published, new, ignore=lambda *_: ["config.json", "model.safetensors"])
    load_published(published).save_pretrained(new)
    assert not [problem for problem in check(recipe(model=str(new))) if problem.path.startswith("student")]


def test_blockwise_is_the_alibi_encoder_s(tiny_bert, tiny_alibi):
    def said(model):
        problems = check(recipe(model=model, attn_implementation="blockwise"))
        return [problem.message for problem in problems if problem.path == "student.attn_implementation"]

    assert said(tiny_alibi) == []
    assert said(tiny_bert) == ["blockwise is the ALiBi encoder's; leave it out, or set sdpa"]
