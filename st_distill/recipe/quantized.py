"""QLoRA (arXiv 2305.14314): the encoder's weights in 4 bits while adapters are trained, and whole again afterwards."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import BitsAndBytesConfig

from st_distill.errors import MissingExtraError
from st_distill.exporting import load_student

__all__ = ["INSTALLED", "dequantized", "is_quantized", "load_in_4bit", "missing", "restore"]

#: Whether the package that does it can be imported.
INSTALLED = importlib.util.find_spec("bitsandbytes") is not None


def missing() -> MissingExtraError:
    """The error for a machine without bitsandbytes."""
    return MissingExtraError("bitsandbytes", extra="qlora", purpose="A student in 4 bits")


def load_in_4bit(path: Path) -> SentenceTransformer:
    """A student from its folder, the linear layers of its encoder in 4 bits: nf4, with double quantisation.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if not INSTALLED:
        raise missing()
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    options = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if has_bf16 else torch.float32,
    )
    model = load_student(path, model_kwargs={"quantization_config": options})
    for module in model.modules():
        if is_quantized(module):
            # On a CPU of this kind the first vector made in evaluation packs the weights anew, for a kernel without gradient.
            module.support_avx512bf16_for_cpu = False
    return model


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a linear layer in 4 bits."""
    return type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes.")


def dequantized(layer: nn.Module) -> nn.Linear:
    """A plain linear layer with the weights that a layer in 4 bits stands for."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = layer.bias
    return linear


def restore(encoder: nn.Module) -> None:
    """Turns a transformers model in 4 bits into a plain one, in place, whose folder says nothing of 4 bits."""
    for name, module in list(encoder.named_modules()):
        if is_quantized(module):
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, dequantized(module))
    if getattr(encoder, "is_quantized", False):
        for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_quantized"):
            if name in vars(encoder):
                delattr(encoder, name)
        del encoder.config.quantization_config
