from __future__ import annotations

import numpy as np
import pytest
import torch

from st_distill.modules import MatryoshkaProjection
from st_distill.recipe import frozen
from st_distill.recipe.frozen import FrozenEncoder, PooledVectors, with_frozen_encoder


@pytest.fixture
def asked(monkeypatch):
    """Every (text, prompt) that is embedded from here on."""
    embedded = []
    original = PooledVectors._encode

    def encode(self, texts, prompt):
        embedded.extend((text, prompt) for text in texts)
        return original(self, texts, prompt)

    monkeypatch.setattr(PooledVectors, "_encode", encode)
    return embedded


def pooled_vectors(folder, encoder, pairs) -> PooledVectors:
    return PooledVectors(folder, encoder, pairs, show_progress=False)


def test_the_vectors_are_the_encoders(tmp_path, make_student, sentences):
    encoder = make_student()
    pooled = pooled_vectors(tmp_path, encoder, [(text, None) for text in sentences])
    assert len(pooled) == len(set(sentences))
    vectors = pooled.gather(sentences[::-1])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, encoder.encode(sentences[::-1]), atol=1e-6)


def test_each_text_is_embedded_once_with_each_prompt(tmp_path, make_student, sentences, asked, monkeypatch):
    monkeypatch.setattr(frozen, "_CHUNK", 5)
    monkeypatch.setattr(frozen, "_ROWS", 6)
    encoder = make_student()
    encoder.prompts, encoder.default_prompt_name = {"every": "sun "}, "every"
    pairs = [(text, prompt) for prompt in (None, "query ") for text in [*sentences, *sentences]]
    pooled = pooled_vectors(tmp_path, encoder, pairs)
    assert len(asked) == len(set(asked)) == len(pooled) == 2 * len(set(sentences))
    np.testing.assert_allclose(
        pooled.gather(sentences, "query "), encoder.encode(sentences, prompt="query "), atol=1e-6
    )
    # No prompt is none, not the model's default one: so the trainer asks for training texts.
    np.testing.assert_allclose(pooled.gather(sentences), encoder.encode(sentences, prompt=""), atol=1e-6)


def test_a_killed_embedding_goes_on_where_it_was(tmp_path, make_student, sentences, asked, monkeypatch):
    monkeypatch.setattr(frozen, "_ROWS", 4)
    pairs = [(text, None) for text in dict.fromkeys(sentences)]
    encoder = make_student()
    whole = encoder.encode

    def encode(texts, **options):
        if pairs[9][0] in texts:
            raise KeyboardInterrupt
        return whole(texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "encode", encode)
        with pytest.raises(KeyboardInterrupt):
            pooled_vectors(tmp_path, encoder, pairs)
    asked.clear()
    pooled = pooled_vectors(tmp_path, encoder, pairs)
    assert [text for text, _ in asked] == [text for text, _ in pairs[8:]]
    np.testing.assert_allclose(pooled.gather(sentences), whole(sentences), atol=1e-6)


def test_other_texts_get_other_files(tmp_path, make_student, sentences):
    encoder = make_student()
    pooled_vectors(tmp_path, encoder, [(text, None) for text in sentences[:4]])
    pooled = pooled_vectors(tmp_path, encoder, [(text, None) for text in sentences[4:8]])
    np.testing.assert_allclose(pooled.gather(sentences[4:8]), encoder.encode(sentences[4:8]), atol=1e-6)


def test_a_text_that_was_not_there_is_embedded_when_asked_for(tmp_path, make_student, sentences, asked):
    encoder = make_student()
    pooled = pooled_vectors(tmp_path, encoder, [(text, None) for text in sentences[:4]])
    asked.clear()
    mixed = [sentences[0], "the other one", sentences[3]]
    np.testing.assert_allclose(pooled.gather(mixed), encoder.encode(mixed), atol=1e-6)
    assert asked == [("the other one", None)]


def test_the_model_sees_no_difference(tmp_path, make_student, sentences):
    model = make_student(MatryoshkaProjection(32, [8, 4]))
    encoder = make_student()
    encoder.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("2.")})
    trainee = with_frozen_encoder(model, pooled_vectors(tmp_path, encoder, [(text, None) for text in sentences]))
    np.testing.assert_allclose(trainee.encode(sentences), model.encode(sentences), atol=1e-6)
    with torch.no_grad():
        trainee[1].linears[0].weight.mul_(2.0)
    assert torch.equal(trainee[1].linears[0].weight, model[2].linears[0].weight)
    assert model.encode(sentences).shape == (16, 8)


def test_one_from_a_checkpoint_has_no_vectors(tmp_path):
    FrozenEncoder().save(str(tmp_path))
    with pytest.raises(ValueError, match="Continue the run that wrote it"):
        FrozenEncoder.load(str(tmp_path)).preprocess(["a text"])
