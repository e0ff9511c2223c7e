"""An encoder as an ONNX file, for texts of any length."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_distill.errors import MissingExtraError

#: An ONNX file holds at most 2 GB; the weights of a larger model go into a second file beside it.
LARGEST = 1_500_000_000


class _Graph(nn.Module):
    """Token numbers and mask in, one tensor out: vectors of texts, or of tokens where there is no pooling."""

    def __init__(self, model: SentenceTransformer | PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if isinstance(self.model, SentenceTransformer):
            return self.model(features)["sentence_embedding"]
        return self.model(**features).last_hidden_state


def export_onnx(model: SentenceTransformer | PreTrainedModel, path: str | os.PathLike[str]) -> None:
    """Write the encoder as ONNX, with a dynamic batch and length.

    Inputs are ``input_ids`` and ``attention_mask``, (batch, length) int64. The output is ``sentence_embedding``, (batch,
    dimensions), of a sentence-transformers model, or ``last_hidden_state``, (batch, length, width), of a transformers model.
    The graph computes attention as the eager kind does: with the memory of heads x length x length.

    Args:
        model: a sentence-transformers model for text, or a transformers encoder.
        path: the file, which ends in ``.onnx``. Weights above 1.5 GB go into a second file beside it.

    Raises:
        MissingExtraError: where onnx or onnxscript is not installed.
        ValueError: for a path that does not end in ``.onnx``.
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
    try:
        torch.onnx.export(
            _Graph(model).eval(),
            (tokens, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding" if isinstance(model, SentenceTransformer) else "last_hidden_state"],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            external_data=weights > LARGEST,
            verbose=False,
        )
    finally:
        model.train(training)
