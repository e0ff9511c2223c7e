"""The vision encoder of the image module: where it comes from, its grid of patches, and how many tokens these become."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from st_distill.errors import writing
from st_distill.files import require_plain_files

DEFAULT_TOKENS = 64
"""Visual tokens for an image when none are asked for: the possible number nearest to this one."""


def load_vision_encoder(vision: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The vision encoder and, when it comes from a name or folder that has one, its image processor."""
    processor = None
    if isinstance(vision, PreTrainedModel):
        _check_vision_config(vision.config)
        return copy.deepcopy(vision), None
    if isinstance(vision, (str, os.PathLike)):
        name = os.fspath(vision)
        require_plain_files(name)
        config = AutoConfig.from_pretrained(name, **kwargs)
        config = getattr(config, "vision_config", None) or config
        _check_vision_config(config)
        _drop_pooling_head(config)
        model = _load_vision(name, config, kwargs)
        try:
            processor = AutoImageProcessor.from_pretrained(name, **kwargs)
        except (OSError, ValueError):
            processor = None
        return model, processor
    if isinstance(vision, Mapping):
        fields = dict(vision)
        kind = fields.pop("model_type", None)
        try:
            vision = AutoConfig.for_model(kind, **fields)
        except ValueError as error:
            raise ValueError(
                "The 'vision' of from_encoders needs a 'model_type' that transformers knows, such as "
                f"'siglip_vision_model' or 'vit'. Got {kind!r} instead."
            ) from error
    if not isinstance(vision, PretrainedConfig):
        raise TypeError(
            "The 'vision' of from_encoders must be a name, a folder, a transformers model, or its configuration. "
            f"Got {type(vision).__name__} instead."
        )
    config = copy.deepcopy(getattr(vision, "vision_config", None) or vision)
    _check_vision_config(config)
    _drop_pooling_head(config)
    return AutoModel.from_config(config), None


def _load_vision(name: str, config: PretrainedConfig, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The vision encoder of a checkpoint that may hold more, without the report on what it leaves out."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = AutoModel.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"The 'vision' of from_encoders lacks weights of {type(model).__name__}: {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}. Give the name or folder of a whole vision encoder."
        )
    return model


def _check_vision_config(config: PretrainedConfig) -> None:
    size = getattr(config, "image_size", None)
    if not isinstance(size, int) or getattr(config, "hidden_size", None) is None:
        raise ValueError(
            "The 'vision' of from_encoders must be a vision encoder with one image_size and one hidden_size, such as "
            f"SigLIP, CLIP, ViT or DINOv2. Got a model of type {config.model_type!r}."
        )


def _drop_pooling_head(config: PretrainedConfig) -> None:
    """SigLIP's pooling head is never read here; without it the model is smaller."""
    if config.model_type in ("siglip_vision_model", "siglip2_vision_model"):
        config.vision_use_head = False


def siglip_processor(size: int) -> Any:
    """SigLIP's processor in the version (torchvision or Pillow) that AutoImageProcessor finds, without its warnings."""
    fields = {"image_processor_type": "SiglipImageProcessor", "size": {"height": size, "width": size}}
    with tempfile.TemporaryDirectory() as folder, writing(folder):
        Path(folder, "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
        return AutoImageProcessor.from_pretrained(folder)


def pixel_size(image_processor: Any) -> int:
    """Width and height of what the processor makes of an image, which must be the same for every image."""
    sizes = set()
    for width, height in ((64, 64), (96, 48)):
        values = image_processor(Image.new("RGB", (width, height)), return_tensors="pt")["pixel_values"]
        sizes.add(tuple(values.shape))
    shape = next(iter(sizes))
    if len(sizes) > 1 or len(shape) != 4 or shape[:2] != (1, 3) or shape[2] != shape[3]:
        raise ValueError(
            "The image processor of from_encoders must make every image a square of one size, pixel values "
            f"(1, 3, size, size). Got {' and '.join(str(shape) for shape in sorted(sizes))}; pass another "
            "'image_processor', such as SiglipImageProcessor(size={'height': 224, 'width': 224})."
        )
    return int(shape[-1])


def patch_grid(vision: PreTrainedModel, image_processor: Any) -> tuple[int, int, str]:
    """Pixels of a side, patches of a side, and whether a class token stands before them ("default") or not ("full")."""
    pixels = pixel_size(image_processor)
    parameter = next(vision.parameters())
    values = torch.zeros(1, 3, pixels, pixels, device=parameter.device, dtype=parameter.dtype)
    mode = vision.training
    vision.eval()
    kind = type(vision).__name__
    try:
        with torch.no_grad():
            output = vision(pixel_values=values, output_hidden_states=True, return_dict=True)
    except Exception as error:
        raise ValueError(
            f"The vision encoder ({kind}) of from_encoders does not take the image processor's {pixels} x {pixels} "
            f"pixels: {' '.join(str(error).split())}"
        ) from error
    finally:
        vision.train(mode)
    states = getattr(output, "hidden_states", None)
    last = states[-1] if states else None
    if last is None or last.ndim != 3 or last.shape[-1] != vision.config.hidden_size:
        raise ValueError(
            f"The vision encoder ({kind}) of from_encoders must return hidden states of shape (1, patches, hidden_size), "
            f"as SigLIP, CLIP, ViT and DINOv2 do. Got {'none' if last is None else tuple(last.shape)}."
        )
    count = last.shape[1]
    patch = getattr(vision.config, "patch_size", None)
    # A patch size, where there is one, tells a class token and a square from a larger square.
    sides = [pixels // patch] if isinstance(patch, int) else [int(count**0.5), int((count - 1) ** 0.5)]
    for side in sides:
        if count == side**2:
            return pixels, side, "full"
        if count == side**2 + 1:
            return pixels, side, "default"
    raise ValueError(
        f"The vision encoder ({kind}) of from_encoders must return a square grid of patches, with or without one class "
        f"token before it. Got {count} hidden states for {pixels} x {pixels} pixels."
    )


def choose_tokens(tokens: int | None, side: int, room: int | None) -> tuple[int, int]:
    """The number of visual tokens and the factor by which the patch grid's side shrinks."""
    options = {(side // factor) ** 2: factor for factor in range(1, side + 1) if side % factor == 0}
    fitting = [option for option in options if room is None or option <= room]
    if not fitting:
        raise ValueError(f"The maximum length of the 'text' of from_encoders leaves room for {room} tokens: none.")
    if tokens is None:
        # Half of the maximum length stays free for text, where a smaller number allows it.
        roomy = [option for option in fitting if room is None or 2 * option <= room] or [min(fitting)]
        tokens = min(roomy, key=lambda option: max(option / DEFAULT_TOKENS, DEFAULT_TOKENS / option))
    if tokens not in fitting:
        possible = ", ".join(str(option) for option in sorted(fitting))
        limit = (
            "" if len(fitting) == len(options) else f", and the text encoder's maximum length leaves room for {room}"
        )
        raise ValueError(
            f"The 'tokens' of from_encoders must be one of {possible}: the vision encoder's patches are {side} x {side}"
            f"{limit}. Got {tokens} instead."
        )
    return tokens, options[tokens]


def processor_patch_size(pixels: int, side: int) -> int:
    """The patch size for which LlavaProcessor's ``pixels // patch_size`` is ``side``."""
    size = pixels // side
    if pixels // size != side:
        raise ValueError(
            f"No patch size divides {pixels} pixels into {side} visual tokens a side; pass other 'tokens', or an "
            f"'image_processor' that makes images a multiple of {side} pixels wide."
        )
    return size
