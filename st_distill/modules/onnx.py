"""An encoder as an ONNX file, for texts of any length."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_distill.errors import MissingExtraError

#: An ONNX file holds at most 2 GB; the weights of a larger model go into a second file beside it.
LARGEST = 1_500_000_000


#: What models give: vectors of texts, states of tokens, scores of a head. The first that a model has is exported.
OUTPUTS = ("sentence_embedding", "last_hidden_state", "logits")


class _Graph(nn.Module):
    """Token numbers and mask in, one tensor out, the output of that ``name``."""

    def __init__(self, model: SentenceTransformer | PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.name = ""

    def outputs(self, input_ids: Tensor, attention_mask: Tensor) -> Mapping[str, Tensor]:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(features) if isinstance(self.model, SentenceTransformer) else self.model(**features)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.outputs(input_ids, attention_mask)[self.name]


def export_onnx(model: SentenceTransformer | PreTrainedModel, path: str | os.PathLike[str]) -> None:
    """Write the encoder as ONNX, with a dynamic batch and length.

    Inputs are ``input_ids`` and ``attention_mask``, (batch, length) int64. The output is ``sentence_embedding``, (batch,
    dimensions), of a sentence-transformers model, ``last_hidden_state``, (batch, length, width), of a transformers encoder, or
    ``logits`` of one with a head: (batch, length, vocab_size) for masked words, (batch, labels) for classification. The graph
    computes attention as the eager kind does: with the memory of heads x length x length.

    Args:
        model: a sentence-transformers model for text, or a transformers encoder, with a head or without.
        path: the file, which ends in ``.onnx``. Weights above 1.5 GB go into a second file beside it.

    Raises:
        MissingExtraError: where onnx or onnxscript is not installed.
        ValueError: for a path that does not end in ``.onnx``, or a model with none of these outputs.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"The 'path' must end in '.onnx'. Got {path} instead.")
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra="onnx", purpose="Exporting to ONNX")
    path.parent.mkdir(parents=True, exist_ok=True)
    training = model.training
    device = next(model.parameters()).device
    # Sizes above 1, which an exported graph would take for fixed; one place of padding, so that the mask is in the graph.
    tokens = torch.ones(2, 16, dtype=torch.long, device=device)
    mask = torch.ones_like(tokens)
    mask[1, 15] = 0
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    graph = _Graph(model)
    try:
        graph.eval()
        with torch.no_grad():
            given = graph.outputs(tokens, mask)
        graph.name = next((name for name in OUTPUTS if name in given), "")
        if not graph.name:
            raise ValueError(
                f"The 'model' must give {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}. "
                f"Got {type(model).__name__} instead, which gives {', '.join(given)}."
            )
        torch.onnx.export(
            graph,
            (tokens, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=[graph.name],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            external_data=weights > LARGEST,
            verbose=False,
        )
    finally:
        model.train(training)
