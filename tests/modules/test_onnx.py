from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertForQuestionAnswering

from st_distill.errors import MissingExtraError
from st_distill.modules import (
    AlibiBertConfig,
    AlibiBertForMaskedLM,
    AlibiBertForSequenceClassification,
    AlibiBertModel,
)
from st_distill.modules.onnx import export_onnx

exporter_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture
def make_session(tmp_path):
    """A function that exports a model and reads the file with onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")

    def make(model):
        export_onnx(model, tmp_path / "model.onnx")
        return onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])

    return make


@exporter_warnings
def test_onnxruntime_gives_the_same_states(tiny_alibi, make_session):
    model = AlibiBertModel.from_pretrained(tiny_alibi).eval()
    session = make_session(model)
    for lengths in ([16], [2048], [16, 9, 5]):
        ids = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1) % (model.config.vocab_size - 5) + 5
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        with torch.no_grad():
            expected = model(ids, mask).last_hidden_state
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


@exporter_warnings
def test_onnxruntime_gives_the_same_vectors_of_texts(tiny_alibi, sentences, make_session):
    transformer = Transformer(tiny_alibi)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    session = make_session(model)
    assert [output.name for output in session.get_outputs()] == ["sentence_embedding"]
    texts = [sentences[0], "the dog runs " * 100, *sentences[1:5]]
    features = model.tokenizer(texts, padding=True, return_tensors="np")
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(session.run(None, inputs)[0], model.encode(texts), atol=1e-5)


@exporter_warnings
@pytest.mark.parametrize("head", ["words", "classes of the first token", "classes of the mean"])
def test_onnxruntime_gives_the_same_logits(head, tiny_alibi, make_session):
    config = AlibiBertConfig.from_pretrained(tiny_alibi, num_labels=3, initializer_range=0.1)
    config.classifier_pooling = "mean" if head.endswith("mean") else "cls"
    model = (AlibiBertForMaskedLM if head == "words" else AlibiBertForSequenceClassification)(config).eval()
    session = make_session(model)
    assert [output.name for output in session.get_outputs()] == ["logits"]
    for lengths in ([16], [300], [16, 9, 5]):
        ids = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1) % (model.config.vocab_size - 5) + 5
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        with torch.no_grad():
            expected = model(ids, mask).logits
        (found,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_model_of_other_outputs_is_refused(tiny_bert, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    model = BertForQuestionAnswering.from_pretrained(tiny_bert).train()
    with pytest.raises(ValueError, match="Got BertForQuestionAnswering instead, which gives start_logits, end_logits"):
        export_onnx(model, tmp_path / "model.onnx")
    assert model.training


def test_a_missing_extra_names_the_line_that_installs_it(tiny_alibi, tmp_path, monkeypatch):
    model = AlibiBertModel.from_pretrained(tiny_alibi)
    with pytest.raises(ValueError, match="'path' must end in '.onnx'. Got .*model instead"):
        export_onnx(model, tmp_path / "model")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(MissingExtraError, match="needs onnxscript.*pip install 'st-distill\\[onnx\\]'"):
        export_onnx(model, tmp_path / "model.onnx")
