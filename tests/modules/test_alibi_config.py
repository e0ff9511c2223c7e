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
        ({"hidden_dropout_prob": 1.5}, "'hidden_dropout_prob' .* must be a number from 0 to below 1. Got 1.5"),
        ({"hidden_dropout_prob": 1}, "'hidden_dropout_prob' .* must be a number from 0 to below 1. Got 1 instead"),
        ({"attention_probs_dropout_prob": "0.1"}, "'attention_probs_dropout_prob' .* must be a number.* Got '0.1'"),
        ({"hidden_dropout_prob": None}, "'hidden_dropout_prob' .* must be a number.* Got None instead"),
        ({"classifier_dropout": True}, "'classifier_dropout' .* must be a number.* Got True instead"),
        ({"classifier_dropout": float("nan")}, "'classifier_dropout' .* must be a number.* Got nan instead"),
        ({"layer_norm_eps": 0}, "'layer_norm_eps' of AlibiBertConfig must be a number above 0. Got 0 instead"),
        ({"layer_norm_eps": "1e-12"}, "must be a number above 0. Got '1e-12' instead"),
        ({"initializer_range": -0.02}, "'initializer_range' .* must be a number from 0. Got -0.02 instead"),
        ({"vocab_size": 9, "pad_token_id": 9}, "'pad_token_id' .* token of the vocabulary, 0 to 8, or None. Got 9"),
        ({"pad_token_id": -1}, "'pad_token_id' .* token of the vocabulary, 0 to 30527, or None. Got -1 instead"),
        ({"pad_token_id": "[PAD]"}, "'pad_token_id' .* token of the vocabulary.* Got '\\[PAD\\]' instead"),
        ({"sparse_prediction": "no"}, "'sparse_prediction' of AlibiBertConfig must be True or False. Got 'no' instead"),
        ({"feed_forward": "swiglu"}, "must be 'geglu' or 'reglu'. Got 'swiglu' instead"),
        ({"classifier_pooling": "max"}, "must be 'cls' or 'mean'. Got 'max' instead"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        AlibiBertConfig(**fields)


def test_the_ends_of_the_ranges():
    config = AlibiBertConfig(vocab_size=9, pad_token_id=8, hidden_dropout_prob=0, initializer_range=0)
    assert (config.pad_token_id, config.hidden_dropout_prob, config.initializer_range) == (8, 0, 0)
    assert AlibiBertConfig(pad_token_id=None).pad_token_id is None


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
