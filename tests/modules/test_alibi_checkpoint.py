from __future__ import annotations

import json

import pytest
import torch

from st_distill.modules import (
    AlibiBertForMaskedLM,
    AlibiBertModel,
    load_published,
    load_published_state_dict,
    published_state_dict,
    save_published,
)

#: The published layout, as the checkpoints of the English models have it, for one layer.
LAYER = [
    "attention.self.query.weight",
    "attention.self.query.bias",
    "attention.self.key.weight",
    "attention.self.key.bias",
    "attention.self.value.weight",
    "attention.self.value.bias",
    "attention.output.dense.weight",
    "attention.output.dense.bias",
    "attention.output.LayerNorm.weight",
    "attention.output.LayerNorm.bias",
    "mlp.gated_layers.weight",
    "mlp.wo.weight",
    "mlp.wo.bias",
    "mlp.layernorm.weight",
    "mlp.layernorm.bias",
]
EMBEDDINGS = ["word_embeddings.weight", "token_type_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"]


@pytest.fixture
def model(tiny_alibi):
    return AlibiBertModel.from_pretrained(tiny_alibi)


@pytest.fixture
def other(model):
    torch.manual_seed(1)
    return AlibiBertModel(model.config)


def test_the_names_are_the_published_ones(model):
    names = [f"embeddings.{name}" for name in EMBEDDINGS]
    names += [f"encoder.layer.{layer}.{name}" for layer in range(2) for name in LAYER]
    state = published_state_dict(model)
    assert sorted(state) == sorted(names)
    assert state["encoder.layer.0.mlp.gated_layers.weight"].shape == (2 * 32, 24)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_weights_are_loaded_and_written_back(prefix, model, other):
    state = published_state_dict(model, prefix=prefix)
    extra = {prefix + "pooler.dense.weight": torch.zeros(1), "cls.predictions.bias": torch.zeros(1)}
    assert load_published_state_dict(other, {**state, **extra}) == list(extra)
    back = published_state_dict(other, prefix=prefix)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_model_with_a_head_keeps_its_head(model):
    masked = AlibiBertForMaskedLM(model.config)
    bias = masked.cls.predictions.decoder.bias.detach().clone()
    load_published_state_dict(masked, published_state_dict(model))
    assert torch.equal(masked.cls.predictions.decoder.weight, model.embeddings.word_embeddings.weight)
    assert torch.equal(masked.cls.predictions.decoder.bias, bias)


def test_every_tensor_is_accounted_for(model, other):
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    state = published_state_dict(model)
    del state["encoder.layer.1.mlp.wo.bias"]
    state["encoder.layer.7.mlp.wo.bias"] = torch.zeros(24)
    state["embeddings.word_embeddings.weight"] = torch.zeros(3, 24)
    with pytest.raises(ValueError, match="must have the encoder's 34 tensors and no others. Got 34:") as error:
        load_published_state_dict(other, state)
    for part in (
        "1 missing (encoder.layer.1.mlp.wo.bias)",
        "1 surplus (encoder.layer.7.mlp.wo.bias)",
        "1 misshaped (embeddings.word_embeddings.weight (3, 24) instead of",
    ):
        assert part in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())


def test_a_tensor_that_is_there_twice(model, other):
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    name = "encoder.layer.0.mlp.wo.bias"
    for first, second in ((name, f"bert.{name}"), (f"bert.{name}", name)):
        state = published_state_dict(model)
        del state[name]
        with pytest.raises(ValueError, match=rf"must have each tensor once.* Got 1 twice \({name}\): take one"):
            load_published_state_dict(other, {**state, first: torch.zeros(24), second: torch.ones(24)})
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())


def test_a_plain_bert_is_refused(model):
    state = {**published_state_dict(model), "embeddings.position_embeddings.weight": torch.zeros(64, 24)}
    with pytest.raises(ValueError, match="Got one with 'position_embeddings', a plain BERT's"):
        load_published_state_dict(model, state)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_published_folder(weights, model, tmp_path):
    save_published(model, tmp_path / "published")
    fields = json.loads((tmp_path / "published" / "config.json").read_text())
    assert (fields["model_type"], fields["position_embedding_type"]) == ("bert", "alibi")
    if weights == "pytorch_model.bin":
        (tmp_path / "published" / "model.safetensors").unlink()
        torch.save(published_state_dict(model), tmp_path / "published" / weights)
    loaded = load_published(tmp_path / "published")
    ids = torch.arange(1, 30).view(1, -1)
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, model.eval()(ids).last_hidden_state)
    with pytest.raises(ValueError, match="must be a folder without a config.json"):
        save_published(model, tmp_path / "published")


def test_folders_that_are_none(tiny_bert, tmp_path):
    with pytest.raises(ValueError, match="must be a folder with a config.json and a model.safetensors"):
        load_published(tmp_path)
    with pytest.raises(ValueError, match="Got the type 'bert' instead"):
        load_published(tiny_bert)
    with pytest.raises(ValueError, match="must be a folder. Got .*config.json instead, which is none here\\.$"):
        load_published(f"{tiny_bert}/config.json")
    line = "hf download jinaai/jina-embeddings-v2-base-en --local-dir jina-embeddings-v2-base-en"
    with pytest.raises(ValueError, match=f"which is none here; a model of the hub is fetched first: {line}"):
        load_published("jinaai/jina-embeddings-v2-base-en")
    with pytest.raises(ValueError, match="hf download OWNER/some-model --local-dir some-model"):
        load_published("some-model")


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, "cannot be read as weights \\(.*download it again"),
        ("model.safetensors", lambda file: file.write_bytes(b""), "cannot be read as weights \\(.*download it again"),
        ("model.safetensors", lambda file: file.write_bytes(b"<html>" * 9), "cannot be read as weights"),
        ("config.json", cut, "is not JSON \\(.*: download it again"),
        ("config.json", lambda file: file.write_bytes(b"\xff\xfe{"), "is not JSON"),
        ("config.json", lambda file: file.write_text("[1, 2]"), "must hold a JSON object. Got a list instead"),
        (
            "config.json",
            lambda file: change(file, hidden_size="24"),
            "is not valid: The 'hidden_size' .* Got '24' instead",
        ),
        (
            "config.json",
            lambda file: change(file, layer_norm_eps=None),
            "is not valid: The 'layer_norm_eps' .* Got None",
        ),
    ],
)
def test_a_damaged_file_is_named(name, damage, message, model, tmp_path):
    save_published(model, tmp_path / "published")
    damage(tmp_path / "published" / name)
    with pytest.raises(ValueError, match=f"published.{name} {message}"):
        load_published(tmp_path / "published")


def change(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([1, 2], "must hold tensors by their names. Got a list instead"),
        ({"state_dict": {"a": torch.zeros(1)}}, "must hold tensors by their names. Got a dict at 'state_dict' instead"),
        ({"a": torch.nn.Linear(1, 1)}, "must hold tensors and nothing else. It does not, or is damaged"),
        ({"a": torch.zeros(1)}, "cannot be taken. The state dictionary must have the encoder's 34 tensors"),
    ],
)
def test_weights_of_something_else(saved, message, model, tmp_path):
    save_published(model, tmp_path / "published")
    (tmp_path / "published" / "model.safetensors").unlink()
    torch.save(saved, tmp_path / "published" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"pytorch_model.bin {message}"):
        load_published(tmp_path / "published")
    cut(tmp_path / "published" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read as weights \\(.*download it again"):
        load_published(tmp_path / "published")
