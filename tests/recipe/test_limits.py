"""Texts that the student does not read to their end, and students that are not what they say."""

from __future__ import annotations

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_distill.modules import load_published
from st_distill.recipe.check import check
from st_distill.recipe.models import load_model
from st_distill.recipe.schema import Recipe, Stage, Student, Texts
from st_distill.recipe.start import tell_too_long_texts
from st_distill.recipe.trainer import StageTrainer

TEXTS = ["a cat", "", "the dog " * 20]


def recipe(**student) -> Recipe:
    pairs = Stage(
        train="all",
        losses={},
        also=[{"loss": "MultipleNegativesRankingLoss", "texts": [Texts(data=TEXTS)]}],
        steps=1,
    )
    return Recipe(output="out/unused", student=Student(**student), texts=[Texts(data=TEXTS)], stages=[pairs])


_ALSO = "stages[0].also[0].texts[0]"


def messages(found: Recipe, *places: str) -> list[str]:
    places = places or ("texts[0]", "student.too_long")
    return [problem.message for problem in check(found) if problem.path in places]


def test_texts_of_further_losses_and_prompts_count(tiny_bert):
    told = "1 of 3 texts (the first in row 2) have more tokens"
    short = messages(recipe(model=tiny_bert, too_long="refuse", max_seq_length=16), _ALSO)
    assert [message.startswith(told) for message in short].count(True) == 1
    prompted = recipe(model=tiny_bert, too_long="refuse", max_seq_length=48)
    assert messages(prompted, "texts[0]") == []
    prompted.texts[0] = Texts(data=TEXTS, prompts={"text": "a cat and a dog and a cat "})
    assert messages(prompted, "texts[0]")[0].startswith(told)


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


def test_a_published_folder_is_no_student_before_it_is_written_anew(published, tmp_path):
    (said,) = [problem.message for problem in check(recipe(model=str(published))) if problem.path == "student.model"]
    assert "is an ALiBi encoder in the published layout, which transformers takes for a plain BERT" in said
    with pytest.raises(ValueError, match="holds an ALiBi BERT in the published layout"):
        load_model(str(published))
    new = tmp_path / "new"
    shutil.copytree(published, new, ignore=lambda *_: ["config.json", "model.safetensors", "modules.json", "1_Pooling"])
    load_published(published).save_pretrained(new)
    assert not [problem for problem in check(recipe(model=str(new))) if problem.path.startswith("student")]


def test_blockwise_is_the_alibi_encoder_s(tiny_bert, tiny_alibi):
    def said(model):
        problems = check(recipe(model=model, attn_implementation="blockwise"))
        return [problem.message for problem in problems if problem.path == "student.attn_implementation"]

    assert said(tiny_alibi) == []
    assert said(tiny_bert) == ["blockwise is the ALiBi encoder's; leave it out, or set sdpa"]


def test_a_published_encoder_within_a_sentence_transformers_folder_is_refused(published, make_student, tmp_path):
    folder = tmp_path / "whole"
    (folder / "0_Transformer").mkdir(parents=True)
    shutil.copytree(published, folder / "0_Transformer", dirs_exist_ok=True)
    kind = "sentence_transformers.sentence_transformer.modules.Transformer"
    module = {"idx": 0, "name": "0", "path": "0_Transformer", "type": kind}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(ValueError, match="holds an ALiBi BERT in the published layout"):
        load_model(str(folder))


@pytest.fixture
def trainer(make_student, tmp_path) -> StageTrainer:
    """Two pairs, the longer text of 32 tokens, and one step."""
    student = make_student()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True
    )
    texts = ["a cat", "the dog " * 20]
    data = Dataset.from_dict({"anchor": texts, "positive": texts})
    return StageTrainer(model=student, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(student))


def failing_with(error):
    def fail(*given, **options):
        raise error

    return fail


def test_a_step_that_does_not_fit_in_memory_is_told_with_its_length(trainer, monkeypatch):
    """In the backward pass too, where no model has a word to say."""
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    monkeypatch.setattr(trainer.accelerator, "backward", failing_with(error))
    told = (
        r"A step of 4 texts, the longest of 32 tokens, does not fit in memory\. Give a smaller 'batch'.*gradient_checkp"
    )
    with pytest.raises(torch.OutOfMemoryError, match=told):
        trainer.train()


def test_what_the_encoder_has_told_of_memory_is_told_once(trainer, monkeypatch):
    error = torch.OutOfMemoryError("A batch of 2 texts, the longest of 9 tokens, does not fit in memory: truncate")
    monkeypatch.setattr(trainer, "compute_loss", failing_with(error))
    with pytest.raises(torch.OutOfMemoryError, match="^A batch of 2 texts"):
        trainer.train()


def test_other_errors_of_a_step_stay_as_they_are(trainer, monkeypatch):
    monkeypatch.setattr(trainer.accelerator, "backward", failing_with(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        trainer.train()
