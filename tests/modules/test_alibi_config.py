from __future__ import annotations

import pytest

from st_distill.modules import AlibiBertConfig, AlibiBertModel


@pytest.mark.parametrize(("size", "millions"), [("small", 33), ("base", 137), ("large", 435)])
def test_presets_have_the_published_number_of_parameters(size, millions):
    import torch

    with torch.device("meta"):
        model = AlibiBertModel(AlibiBertConfig.preset(size))
    assert round(model.num_parameters() / 1e6) in (millions - 1, millions)  # 32.4 M are published as 33 M
    assert model.config.hidden_size // model.config.num_attention_heads == 64
    assert model.config.feed_forward == ("reglu" if size == "large" else "geglu")


def test_a_preset_can_be_changed():
    config = AlibiBertConfig.preset("small", vocab_size=100)
    assert (config.vocab_size, config.num_hidden_layers) == (100, 4)
    with pytest.raises(ValueError, match="'size' must be 'small', 'base', 'large'. Got 'huge' instead"):
        AlibiBertConfig.preset("huge")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 10, "num_attention_heads": 3}, "multiple of 'num_attention_heads', 3. Got 10 instead"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' of AlibiBertConfig must be a whole number from 1. Got 0"),
        ({"hidden_dropout_prob": 1.5}, "'hidden_dropout_prob' of AlibiBertConfig must be from 0 to below 1. Got 1.5"),
        ({"feed_forward": "swiglu"}, "must be 'geglu' or 'reglu'. Got 'swiglu' instead"),
        ({"classifier_pooling": "max"}, "must be 'cls' or 'mean'. Got 'max' instead"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        AlibiBertConfig(**fields)


def test_it_is_saved_and_loaded(tmp_path):
    config = AlibiBertConfig.preset("small", sparse_prediction=True, num_labels=5)
    config.save_pretrained(tmp_path)
    loaded = AlibiBertConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "transformers_version": loaded.transformers_version}
    assert loaded.num_labels == 5


def test_a_plain_bert_is_refused(tiny_bert, tmp_path):
    for load in (AlibiBertConfig.from_pretrained, AlibiBertModel.from_pretrained):
        with pytest.raises(ValueError, match="Got the type 'bert' instead: a model trained with position embeddings"):
            load(tiny_bert)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "position_embedding_type": "alibi"}')
    with pytest.raises(ValueError, match="plain loaders silently build an ordinary BERT.*load_published"):
        AlibiBertConfig.from_pretrained(tmp_path)
