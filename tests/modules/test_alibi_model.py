from __future__ import annotations

import json
import math
import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from st_distill.modules import (
    AlibiBertConfig,
    AlibiBertForMaskedLM,
    AlibiBertForSequenceClassification,
    AlibiBertModel,
    alibi_attention,
)

KINDS = ("eager", "sdpa", "blockwise")
LENGTHS = [37, 5, 1, 9, 23]

LOAD_ELSEWHERE = """
import json, sys
import numpy as np
try:
    import st_distill
except ImportError:
    pass
else:
    sys.exit("st_distill can be imported here")
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = SentenceTransformer(f"{folder}/model", device="cpu", trust_remote_code=True)
np.save(f"{folder}/vectors.npy", model.encode(texts))
model.save(f"{folder}/again")
masked = AutoModelForMaskedLM.from_pretrained(f"{folder}/masked", trust_remote_code=True)
assert type(masked).__name__ == "AlibiBertForMaskedLM", type(masked)
"""


@pytest.fixture
def model(tiny_alibi):
    return AlibiBertModel.from_pretrained(tiny_alibi).eval()


@pytest.fixture
def config(model):
    return model.config


@pytest.fixture
def batch(config):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def sentence_model(tiny_alibi):
    transformer = Transformer(tiny_alibi, max_seq_length=8192)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


@pytest.mark.parametrize("kind", [*KINDS, "flex_attention"])
def test_padding_never_changes_a_vector(kind, model, batch, monkeypatch):
    monkeypatch.setattr(alibi_attention, "BLOCK", 8)
    model.set_attn_implementation(kind)
    with torch.no_grad():
        together = model(**batch).last_hidden_state
        for row, length in enumerate(LENGTHS[:2]):
            alone = model(batch["input_ids"][row : row + 1, :length]).last_hidden_state
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=0)
            assert not together[row, length:].any()


def test_only_distances_matter(model):
    """Without position embeddings a text may begin anywhere: padding on its left changes nothing."""
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        alone = model(ids).last_hidden_state
        left = model(
            torch.cat([torch.zeros(1, 7, dtype=torch.long), ids], 1),
            torch.cat([torch.zeros(1, 7), torch.ones(1, 20)], 1),
        )
    torch.testing.assert_close(left.last_hidden_state[:, 7:], alone, atol=1e-5, rtol=0)
    backwards = model(ids.flip(1)).last_hidden_state.flip(1)
    torch.testing.assert_close(backwards, alone, atol=1e-5, rtol=0)  # symmetric


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree(kind, checkpointing, model, batch, monkeypatch):
    monkeypatch.setattr(alibi_attention, "BLOCK", 8)
    found = []
    for attention, saved in (("eager", False), (kind, checkpointing)):
        model.set_attn_implementation(attention)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if saved:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        (model(**batch).last_hidden_state * torch.linspace(-1, 1, 24)).pow(2).mean().backward()
        found.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("kind", ["sdpa", "blockwise"])
def test_compiled(kind, model, batch):
    model.set_attn_implementation(kind)
    compiled = torch.compile(model, backend="eager", fullgraph=kind != "blockwise", dynamic=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch)[0], model(**batch)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind, model, batch):
    model.set_attn_implementation(kind)
    exact = model(**batch).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch).last_hidden_state
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0)
    found.float().pow(2).sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype, tiny_alibi, model, batch):
    half = AlibiBertModel.from_pretrained(tiny_alibi, dtype=dtype).eval()
    with torch.no_grad():
        found, exact = half(**batch).last_hidden_state, model(**batch).last_hidden_state
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0)


def test_hidden_states_and_weights(model, batch):
    found = model(**batch, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert model(**batch, return_dict=False)[0].shape == (5, 37, 24)
    with pytest.raises(ValueError, match="'output_attentions' need attn_implementation='eager'. Got 'blockwise'"):
        model(**batch, output_attentions=True)
    model.set_attn_implementation("eager")
    weights = model(**batch, output_attentions=True).attentions
    assert [weight.shape for weight in weights] == [(5, 3, 37, 37)] * 2
    assert not weights[0][1, :, :, 5:].any()


def test_bad_input(model, batch):
    with pytest.raises(ValueError, match="must have at most 8192 tokens.*Got 8193 instead: truncate"):
        model(torch.ones(1, 8193, dtype=torch.long))
    with pytest.raises(ValueError, match="must have the shape \\(5, 37\\), as the texts. Got \\(5, 1, 37\\) instead"):
        model(batch["input_ids"], batch["attention_mask"][:, None])
    for inputs in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": torch.zeros(5, 37, 24)}):
        with pytest.raises(ValueError, match="Exactly one of 'input_ids' and 'inputs_embeds'"):
            model(**inputs)
    with pytest.raises(ValueError, match="must be 'blockwise', 'sdpa', 'eager', 'flex_attention'. Got 'paged'"):
        AlibiBertModel._from_config(model.config, attn_implementation="paged")


@pytest.mark.parametrize("kind", [*KINDS, "flex_attention"])
def test_rows_of_padding_alone(kind, model, batch):
    model.set_attn_implementation(kind)
    with torch.no_grad():
        nothing = model(batch["input_ids"], torch.zeros_like(batch["attention_mask"])).last_hidden_state
    assert nothing.shape == (5, 37, 24)
    assert not nothing.any()


@pytest.mark.parametrize("kind", ["blockwise", "sdpa"])
def test_memory_that_does_not_suffice(kind, model, batch, monkeypatch):
    def attend(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore.")

    model.set_attn_implementation(kind)
    monkeypatch.setattr(alibi_attention.PLANS[kind], "attend", attend)
    with pytest.raises(torch.OutOfMemoryError, match="A batch of 5 texts, the longest of 37 tokens.*smaller") as error:
        model(**batch)
    assert ("'blockwise', make" in str(error.value)) == (kind == "sdpa")
    assert "CUDA out of memory." in str(error.value)


def test_masked_lm_loss(config, batch):
    masked = AlibiBertForMaskedLM(config).eval()
    assert masked.cls.predictions.decoder.weight is masked.bert.embeddings.word_embeddings.weight
    labels = torch.where((torch.arange(37) % 3 == 0) & (batch["attention_mask"] == 1), batch["input_ids"], -100)
    found = masked(**batch, labels=labels)
    assert found.logits.shape == (5, 37, config.vocab_size)
    count = int((labels != -100).sum())
    summed = masked(**batch, labels=labels, num_items_in_batch=torch.tensor(1)).loss
    torch.testing.assert_close(summed, found.loss * count)
    masked.config.sparse_prediction = True
    sparse = masked(**batch, labels=labels)
    assert sparse.logits.shape == (count, config.vocab_size)
    torch.testing.assert_close(sparse.loss, found.loss)
    masked.config.sparse_prediction = False
    with torch.no_grad():
        masked.cls.predictions.decoder.weight.zero_()
        masked.cls.predictions.decoder.bias.zero_()
    assert masked(**batch, labels=labels).loss.item() == pytest.approx(math.log(config.vocab_size))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.tensor([0, 1, 2, 1, 0]), "single_label_classification"),
        (torch.rand(5), "regression"),
        (torch.rand(5, 3).round(), "multi_label_classification"),
    ],
    ids=["classes", "numbers", "several"],
)
def test_sequence_classification(pooling, labels, problem, config, batch):
    config.classifier_pooling = pooling
    config.num_labels = 1 if problem == "regression" else 3
    classifier = AlibiBertForSequenceClassification(config).eval()
    found = classifier(**batch, labels=labels)
    assert found.logits.shape == (5, config.num_labels)
    assert found.loss.isfinite()
    assert config.problem_type == problem
    left = classifier(batch["input_ids"].roll(3, 1), batch["attention_mask"].roll(3, 1)).logits
    torch.testing.assert_close(left[1:], found.logits[1:], atol=1e-5, rtol=0)  # row 0 has no padding to roll into


def test_auto_classes(tiny_alibi):
    assert type(AutoModel.from_pretrained(tiny_alibi)) is AlibiBertModel
    for auto, wanted in (
        (AutoModelForMaskedLM, AlibiBertForMaskedLM),
        (AutoModelForSequenceClassification, AlibiBertForSequenceClassification),
    ):
        assert type(auto.from_config(AlibiBertConfig.from_pretrained(tiny_alibi))) is wanted


def test_sentence_transformers(sentence_model, sentences, tmp_path):
    assert sentence_model.max_seq_length == 8192
    texts = [sentences[0], "", "the dog runs " * 300, *sentences[1:5]]
    together = sentence_model.encode(texts)
    alone = np.concatenate([sentence_model.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.isfinite(sentence_model.encode("a " * 9000)).all()
    sentence_model.save(str(tmp_path))
    assert np.array_equal(
        SentenceTransformer(str(tmp_path), device="cpu").encode(texts[:4]), sentence_model.encode(texts[:4])
    )


def test_another_environment_without_st_distill(sentence_model, config, sentences, tmp_path):
    """The folder's own modelling files load there, give the same vectors, and are saved again."""
    sentence_model.save(str(tmp_path / "model"))
    AlibiBertForMaskedLM(config).save_pretrained(tmp_path / "masked")
    texts = [sentences[0], "", "the dog runs " * 200]
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(np.__file__).parents[1].iterdir():
        if "st_distill" not in entry.name and not entry.name.startswith("__editable__"):
            (packages / entry.name).symlink_to(entry)
    venv.create(tmp_path / "environment", with_pip=False)
    python = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {**os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [str(python), "-c", LOAD_ELSEWHERE, str(tmp_path), json.dumps(texts)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "vectors.npy"), sentence_model.encode(texts))
    files = {"alibi_model.py", "alibi_attention.py", "alibi_config.py"}
    for folder in ("model", "again", "masked"):
        assert files == {path.name for path in (tmp_path / folder).glob("*.py")}
    assert np.array_equal(
        SentenceTransformer(str(tmp_path / "again"), device="cpu").encode(texts), sentence_model.encode(texts)
    )
