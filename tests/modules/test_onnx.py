from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from st_distill.errors import MissingExtraError
from st_distill.modules import AlibiBertModel
from st_distill.modules.onnx import export_onnx


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # the exporter's own
def test_onnxruntime_gives_the_same_vectors(tiny_alibi, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = AlibiBertModel.from_pretrained(tiny_alibi).eval()
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for lengths in ([16], [2048], [16, 9, 5]):
        ids = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1) % (model.config.vocab_size - 5) + 5
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        with torch.no_grad():
            expected = model(ids, mask).last_hidden_state
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_missing_extra_names_the_line_that_installs_it(tiny_alibi, tmp_path, monkeypatch):
    model = AlibiBertModel.from_pretrained(tiny_alibi)
    with pytest.raises(ValueError, match="'path' must end in '.onnx'. Got .*model instead"):
        export_onnx(model, tmp_path / "model")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(MissingExtraError, match="needs onnxscript.*pip install 'st-distill\\[onnx\\]'"):
        export_onnx(model, tmp_path / "model.onnx")
