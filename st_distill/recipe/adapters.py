"""Low-rank adapters (LoRA, arXiv 2106.09685) of a stage: put into the encoder, and merged into its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

from st_distill.recipe.patterns import matching
from st_distill.recipe.quantized import dequantized, is_quantized, restore
from st_distill.recipe.schema import Stage
from st_distill.recipe.student import encoder_layers

__all__ = ["FIELDS", "add_adapters", "layers_name", "load_adapters", "lora_config", "merge_adapters"]

#: What a recipe may say of adapters: those of peft.LoraConfig's fields that leave weights which can be merged.
FIELDS = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform"),
    *("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "init_lora_weights"),
)


def lora_config(stage: Stage, layers: str, depth: int, parameters: Iterable[str]) -> LoraConfig:
    """peft's configuration of a stage's adapters: in the layers that ``lora`` names, or else in those that ``train`` names.

    Args:
        stage: that has ``lora``.
        layers: name of the list of layers in the encoder: "encoder.layer", or "layers".
        depth: number of layers.
        parameters: names of the student's parameters, where ``train`` lists patterns for them.

    Raises:
        ValueError: where ``train`` lists patterns, and none is of a layer's parameter.
        ValueError, TypeError: peft's own, for what it does not take.
    """
    options: dict[str, Any] = {"lora_alpha": 16, **(stage.lora or {})}
    chosen = options.pop("layers_to_transform", None)
    if chosen is None and isinstance(stage.train, dict):
        chosen = list(range(depth - stage.train["last_layers"], depth))
    elif chosen is None and isinstance(stage.train, list):
        chosen = _layers_of(stage.train, layers, parameters)
    if chosen is not None:
        # Not by peft's layers_to_transform, which does not find layers at the root of the encoder (Qwen2's).
        kept = "|".join(str(index) for index in ([chosen] if isinstance(chosen, int) else chosen))
        excluded = options.get("exclude_modules") or []
        if not isinstance(excluded, str):
            excluded = "|".join(rf"(?:.*\.)?{re.escape(suffix)}" for suffix in excluded) or "(?!)"
        options["exclude_modules"] = rf"(?!{re.escape(layers)}\.(?:{kept})\.).*|(?:{excluded})"
    return LoraConfig(**options)


def _layers_of(patterns: list[str], layers: str, parameters: Iterable[str]) -> list[int]:
    """Numbers of the layers with a parameter in whose name one of the patterns is found."""
    place, parameters = re.compile(rf"\.{re.escape(layers)}\.(\d+)\."), list(parameters)
    found = [place.search(name) for pattern in patterns for name in matching(pattern, parameters)]
    numbers = sorted({int(match[1]) for match in found if match is not None})
    if not numbers:
        raise ValueError(
            f"Adapters belong to the text encoder's layers, and train: {patterns} names a parameter of none. Name one, such as "
            f"'{layers}.0.', write train: all for adapters in every layer, or leave lora out."
        )
    return numbers


def layers_name(encoder: nn.Module, layers: nn.ModuleList) -> str:
    """Name of a list of layers in the encoder."""
    return next(name for name, module in encoder.named_modules() if module is layers)


def add_adapters(model: SentenceTransformer, stage: Stage, base: Path) -> None:
    """Give the encoder the stage's adapters; `merge_adapters` puts them into its weights.

    Args:
        model: the student.
        stage: that has ``lora``.
        base: folder that the student was loaded from.
    """
    encoder = model.transformers_model
    # A checkpoint holds the adapters alone and names the model that they belong to.
    encoder.name_or_path = str(base.resolve())
    layers = encoder_layers(next(iter(model.children())))
    parameters = [name for name, _ in model.named_parameters()]
    encoder.add_adapter(lora_config(stage, layers_name(encoder, layers), len(layers), parameters))


def load_adapters(model: SentenceTransformer, checkpoint: Path) -> None:
    """Give the encoder's adapters the weights of a checkpoint; nothing where it has none.

    transformers 5.0 to 5.3 looks for them under other names than they are saved by, and leaves them as they began.
    """
    from peft import set_peft_model_state_dict

    encoder = model.transformers_model
    if getattr(encoder, "peft_config", None):
        for file in checkpoint.rglob("adapter_model.safetensors"):
            stored = {name.removeprefix("base_model.model."): value for name, value in load_file(file).items()}
            set_peft_model_state_dict(encoder, stored)


def merge_adapters(model: SentenceTransformer) -> None:
    """Put the adapters into the encoder's weights, which are whole afterwards if they were in 4 bits."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    encoder = model.transformers_model
    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            if is_quantized(layer):
                # peft would round the sum to 4 bits again.
                layer = dequantized(layer)
                for adapter in module.active_adapters:
                    layer.weight.data += module.get_delta_weight(adapter).to(layer.weight.dtype)
            else:
                module.merge()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, layer)
    encoder._hf_peft_config_loaded = False
    del encoder.peft_config
    restore(encoder)
