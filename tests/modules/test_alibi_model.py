from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import venv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn import functional
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from st_distill.modules import (
    AlibiBertConfig,
    AlibiBertForMaskedLM,
    AlibiBertForSequenceClassification,
    AlibiBertModel,
    alibi_attention,
)
from st_distill.modules.alibi_model import FeedForward, Layer

KINDS = ("eager", "sdpa", "blockwise")
LENGTHS = [37, 5, 1, 9, 23]

checkpointing_by_another_name = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
)

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

TOO_MANY_LOGITS = """
import resource, torch
from st_distill.modules import AlibiBertConfig, AlibiBertForMaskedLM
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=200_000)
model = AlibiBertForMaskedLM(AlibiBertConfig(**sizes)).eval()
ids = torch.ones(1, 2000, dtype=torch.long)
labels = torch.where(torch.arange(2000) < 20, 1, -100)[None]
model.bert(ids)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29,) * 2)
with torch.no_grad():
    for given in (None, labels):
        try:
            model(ids, labels=given)
        except torch.OutOfMemoryError as error:
            print(error)
    model.config.sparse_prediction = True
    print(list(model(ids, labels=labels).logits.shape))
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


class WrittenOut(alibi_attention.Plan):
    """torch's own attention, with the slopes of three heads by hand."""

    def attend(self, query, key, value, dropout):
        places = torch.arange(self.length)
        slopes = torch.tensor([1 / 16, 1 / 256, 1 / 4], dtype=query.dtype)[:, None, None]
        bias = (-slopes * (places[:, None] - places).abs()).masked_fill(~self.mask[:, None, None], -torch.inf)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias), None


@pytest.fixture
def strong_model(model):
    """Weights so large that the words, and not their distance alone, decide who attends to whom; without dropout."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight *= 12
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def gradients(model, batch):
    """The gradient of every weight, and the states."""
    model.zero_grad()
    states = model(**batch).last_hidden_state
    direction = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(states.dtype)
    (states * direction).sum().backward()
    return {"states": states.detach().double()} | {
        name.removeprefix("_orig_mod."): weight.grad.double() for name, weight in model.named_parameters()
    }


def assert_same_gradients(found, expected):
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        if name.endswith("key.bias"):  # it adds the same to all scores of a query
            assert max(gradient.norm(), found[name].norm()) < 1e-5 * largest
            continue
        assert gradient.norm() > 1e-3 * largest
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@checkpointing_by_another_name
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, checkpointing, strong_model, batch, monkeypatch):
    monkeypatch.setattr(alibi_attention, "BLOCK", 8)
    monkeypatch.setitem(alibi_attention.PLANS, "written out", WrittenOut)
    exact = copy.deepcopy(strong_model).double()
    exact.set_attn_implementation("written out")
    strong_model.set_attn_implementation(kind)
    if checkpointing:
        strong_model.gradient_checkpointing_enable()
    assert_same_gradients(gradients(strong_model, batch), gradients(exact, batch))


@checkpointing_by_another_name
def test_gradient_checkpointing_runs_each_layer_again(model, batch):
    calls = Counter()
    for number, layer in enumerate(model.encoder.layer):
        # transformers leaves the layer's own hooks outside of what is computed again
        layer.attention.register_forward_pre_hook(lambda *_, number=number: calls.update([number]))
    for repeats in (1, 2):
        calls.clear()
        states = model.train()(**batch).last_hidden_state
        assert calls == {0: 1, 1: 1}
        states.sum().backward()
        assert calls == {0: repeats, 1: repeats}
        model.gradient_checkpointing_enable()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # dynamo's own
@pytest.mark.parametrize("kind", ["sdpa", "blockwise"])
def test_compiled(kind, strong_model, batch):
    strong_model.set_attn_implementation(kind)
    strong_model.encoder.layer = strong_model.encoder.layer[:1]  # the compiler takes its time
    compiled = torch.compile(strong_model, backend="aot_eager", fullgraph=kind != "blockwise", dynamic=True)
    expected = gradients(strong_model, batch)
    assert_same_gradients(gradients(compiled, batch), expected)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_compiled_by_inductor(strong_model, batch, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what an earlier run compiled would be taken
    strong_model.set_attn_implementation("sdpa")
    strong_model.encoder.layer = strong_model.encoder.layer[:1]  # the compiler takes its time
    compiled = torch.compile(strong_model, fullgraph=True, options={"compile_threads": 1})
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch)[0], strong_model(**batch)[0], atol=1e-5, rtol=0)


def test_feed_forward_known_by_hand():
    """Width 2, one unit between: the first half of `gated_layers` is the one that is activated."""
    found = {}
    for kind in ("geglu", "reglu"):
        config = AlibiBertConfig(hidden_size=2, num_attention_heads=1, intermediate_size=1, feed_forward=kind)
        mlp = FeedForward(config).eval()
        mlp.load_state_dict(
            {
                "gated_layers.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
                "wo.weight": torch.tensor([[10.0], [100.0]]),
                "wo.bias": torch.tensor([0.5, 0.25]),
                "layernorm.weight": torch.ones(2),
                "layernorm.bias": torch.zeros(2),
            }
        )
        mlp.layernorm = torch.nn.Identity()  # of two numbers it leaves the signs alone
        found[kind] = mlp(torch.tensor([[1.0, -2.0], [-1.0, 2.0]]))
    # gelu(1) = 0.841345 and gelu(-1) = -0.158655, times -2 and 2
    expected = torch.tensor([[1.5 - 16.8269, -1.75 - 168.269], [-0.5 - 3.1731, 2.25 - 31.731]])
    torch.testing.assert_close(found["geglu"], expected, atol=1e-3, rtol=0)
    assert found["reglu"].tolist() == [[1.5 - 20, -1.75 - 200], [-0.5, 2.25]]


def test_post_layer_norm_known_by_hand(model, batch):
    """The sum is normalised, behind the attention and behind the feed-forward, and nothing is added after that."""
    config = AlibiBertConfig(hidden_size=4, num_attention_heads=1, intermediate_size=1, feed_forward="reglu")
    layer = Layer(config).eval()
    for name, weight in layer.named_parameters():
        if "LayerNorm" not in name and "layernorm" not in name:
            torch.nn.init.zeros_(weight)
    with torch.no_grad():
        # 2 2 0 0 becomes 3 1 1 3, and normalised 1 -1 -1 1; the first and last number make 2, which is added to the last two.
        layer.attention.output.dense.bias.copy_(torch.tensor([1.0, -1.0, 1.0, 3.0]))
        layer.mlp.gated_layers.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]]))
        layer.mlp.wo.weight.copy_(torch.tensor([[0.0], [0.0], [2.0], [2.0]]))
        states = torch.tensor([[[2.0, 2.0, 0.0, 0.0]]])
        found, _ = layer(states, alibi_attention.EagerPlan([0.5], None, states))
        every = model(**batch, output_hidden_states=True).hidden_states
    # 1 -1 3 5 has the mean 2 and the variance 5.
    torch.testing.assert_close(found, torch.tensor([[[-1.0, -3.0, 1.0, 3.0]]]) / math.sqrt(5))
    assert len(every) == 3
    for states in every:
        words = states[batch["attention_mask"] == 1]
        torch.testing.assert_close(words.mean(-1), torch.zeros(len(words)), atol=1e-5, rtol=0)
        torch.testing.assert_close(words.var(-1, correction=0), torch.ones(len(words)), atol=1e-3, rtol=0)


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


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (0, 0)])
@pytest.mark.parametrize("kind", [*KINDS, "flex_attention"])
def test_batches_of_nothing(kind, shape, masked, model):
    model.set_attn_implementation(kind)
    with torch.no_grad():
        ids = torch.zeros(shape, dtype=torch.long)
        assert model(ids, torch.ones_like(ids) if masked else None).last_hidden_state.shape == (*shape, 24)


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory of a process")
def test_logits_that_do_not_fit_in_memory():
    """1.6 GB of them where half a GB is left; those of 20 labelled tokens fit."""
    done = subprocess.run([sys.executable, "-c", TOO_MANY_LOGITS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, labelled, remedied = done.stdout.splitlines()
    told = "A batch of 1 texts, the longest of 2000 tokens, does not fit in memory in the masked-LM head, of 200000"
    assert plain.startswith(f"{told} logits for a token: make the batch smaller")
    assert labelled.startswith(f"{told} logits for a token: set the config's sparse_prediction, for labelled tokens")
    assert "can't allocate memory" in labelled
    assert remedied == "[20, 200000]"


def test_a_classification_head_that_does_not_fit_in_memory(config, batch, monkeypatch):
    def fail(*args):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    classifier = AlibiBertForSequenceClassification(config)
    monkeypatch.setattr(classifier.classifier, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError, match="of 37 tokens, does not fit in memory in the classification head"):
        classifier(**batch)


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
