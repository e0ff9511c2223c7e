"""The image module: a trained text encoder gets eyes, and its text vectors do not move by a bit.

An image becomes a few visual tokens (vision encoder, pixel shuffle, projection), which take the place of word embeddings
in the text encoder: Jasper's way (arXiv 2412.19048). One model then reads text, images, and images with text.
"""

from __future__ import annotations

import copy
import io
import json
import os
import tempfile
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer as StandardTransformer
from tokenizers import AddedToken, Tokenizer, normalizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AyaVisionConfig,
    AyaVisionModel,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from st_distill.alignment import align_weights

__all__ = ["Transformer", "load_image"]

DEFAULT_TOKENS = 64
"""Visual tokens for an image when none are asked for: the possible number nearest to this one."""


# The chat template writes an escape character, which no tokenizer's vocabulary holds, in three ways: before "<image>" as
# the place of an image, before "t" as itself, and before "n" as nothing. The tokenizer's normalizer reads the last two
# back, so that every text, whatever is in it, reaches the tokenizer's own rules exactly as it was written.
_IMAGE, _LITERAL, _NOTHING = "<image>", "t", "n"
_TEMPLATE = """\
{%- set escape = '$escape' -%}
{%- set ns = namespace(images='', text='') -%}
{%- for message in messages -%}
    {%- if message.role in ['query', 'document'] -%}
        {{- raise_exception('this model takes no pairs: pass {"text": ..., "image": ...} for an image with text') -}}
    {%- endif -%}
    {%- if message.content is string -%}
        {%- set ns.text = ns.text + message.content -%}
    {%- else -%}
        {%- for item in message.content -%}
            {%- if item.type == 'image' -%}
                {%- set ns.images = ns.images + escape + '$image' -%}
            {%- elif item.type == 'text' -%}
                {%- set ns.text = ns.text + item.text -%}
            {%- else -%}
                {{- raise_exception('this model takes text and images, not ' ~ item.type) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- set text = ns.text | replace(escape, escape + '$literal') -%}
{%- if bos_token and text.startswith(bos_token) -%}
    {#- Or the processor would take the text for a finished prompt, and add no special tokens to the whole batch. -#}
    {%- set text = escape + '$nothing' + text -%}
{%- endif -%}
{{- $order -}}
"""

_PROBES = (
    "",
    "a",
    "A small red square, on a blue circle.",
    " leading and trailing space \n\tand lines\r\n\n",
    "Grüße, 日本語, हिन्दी, \u200b\u00ad\ufeff e\u0301 🙂",
    "<image> [MASK] [unused1] <s> </s> <|image_pad|> <|endoftext|>",
    "a long text, " * 400,
)

_UNUSED = "[unused{}]"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Transformer(StandardTransformer):
    """One transformer for text, images, and images with text, made of a trained text encoder and a vision encoder.

    It is sentence-transformers' own ``Transformer`` around standard classes of transformers (``AyaVisionModel`` with a
    ``LlavaProcessor``), so what ``to_standard`` gives needs neither this package nor ``trust_remote_code``. Make one with
    ``from_encoders``, and put the other modules of the text model behind it:

    >>> image_module = Transformer.from_encoders(text_model, "google/siglip-base-patch16-256")  # doctest: +SKIP
    >>> model = SentenceTransformer(
    ...     modules=[image_module, *list(text_model)[1:]], prompts=text_model.prompts
    ... )  # doctest: +SKIP
    >>> model.encode(["a cat", image, {"image": image, "text": "what is on the roof?"}])  # doctest: +SKIP

    **Text.** Every text gets the tokens, and so the vector, that the text encoder alone gives it: short, cut at the
    maximum length, empty, with a prompt, alone or among images, and with the image token in it. The image token is a
    private-use character followed by ``<image>``. Texts cannot write it: the chat template marks that character where a
    text has it, and the saved tokenizer's first normalizer takes the mark away again, after special tokens are recognised
    and before everything else. The token takes a free row of the embedding table; where there is none, an ``[unusedN]``
    entry of a WordPiece vocabulary; else the table grows by a last row. ``from_encoders`` compares the tokens and the
    vectors of some texts before and after, and refuses a text encoder for which they differ.
    One habit of sentence-transformers' image models remains: a string that as a whole is the URL (ending in .png, .jpg,
    ...) or the existing path of an image file is read as that image; ``{"text": string}`` reads it as text.

    **Images.** The visual tokens come first and the text after them (the other way round for a tokenizer that truncates
    on the left), so that truncation only ever shortens text. PIL images go through transformers' image processor, which
    makes transparent pixels white; what it clips (16-bit grey) is read rightly by ``load_image``. Images given as bytes, as
    the ``{"bytes", "path"}`` mapping of a datasets Image column, or as a ``Path`` are read by ``load_image`` too, in this
    module alone, not in the standard one.

    **Training.** ``train_vision_only`` freezes the text encoder. Parts without a trainable parameter run as in
    evaluation, that is without dropout, also while the model trains. ``vision_parameter_names`` lists what a stage that
    trains the vision encoder and its projection has to train.
    """

    @classmethod
    def from_encoders(
        cls,
        text: SentenceTransformer | StandardTransformer,
        vision: str | os.PathLike[str] | PretrainedConfig | Mapping[str, Any] | PreTrainedModel,
        *,
        tokens: int | None = None,
        image_processor: Any = None,
        projection_size: int | None = None,
        vision_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """A new module of both encoders, each with its weights as they are, and a fresh projection between them.

        The weights of ``text`` are copied, so the given model stays as it is (but ``align_weights`` may move them in
        memory). The vision encoder takes the text encoder's dtype and device. The projection
        (``AyaVisionMultiModalProjector``: pixel shuffle, LayerNorm, SwiGLU) starts random, from torch's generator, with the
        mean and the spread of the text encoder's word embeddings.

        Args:
            text: a SentenceTransformer, or its first module: a Transformer whose transformers model takes
                ``inputs_embeds`` and returns ``past_key_values`` (BERT, RoBERTa, XLM-R, Qwen2, ...).
            vision: a vision encoder whose output is a square grid of patches (SigLIP, CLIP, ViT, DINOv2, ...): a name or
                folder (of a model of both, the vision half is taken), a transformers model, or a configuration, or its
                fields with ``model_type``, for one that starts from random weights.
            tokens: visual tokens for each image: (side / f)**2 for a divisor f of the patch grid's side. None takes the
                possible number nearest to 64 that leaves half of the maximum length to text.
            image_processor: of transformers, for a vision encoder that brings none. None takes the vision encoder's, or
                a SigLIP processor of the encoder's image size (pixel values from -1 to 1).
            projection_size: width of the projection's hidden layer, even; half of it is the gate. None takes twice the
                text encoder's width.
            vision_kwargs: further arguments for ``AutoModel.from_pretrained``, such as ``revision``.

        Raises:
            TypeError: for a ``text`` that is no such module, or a ``vision`` of another type.
            ValueError: for encoders that do not fit together, a number of tokens that is not possible, or texts whose
                tokens or vectors would change.
        """
        module = _text_module(text)
        text_encoder = copy.deepcopy(align_weights(module.model))
        parameter = next(text_encoder.parameters())
        vision_encoder, found_processor = _vision_encoder(vision, dict(vision_kwargs or {}))
        vision_encoder = vision_encoder.to(device=parameter.device, dtype=parameter.dtype)
        image_processor = (
            copy.deepcopy(image_processor) or found_processor or _siglip_processor(vision_encoder.config.image_size)
        )
        image_processor.do_convert_rgb = True  # not the default of every version
        pixels, side, strategy = _patch_grid(vision_encoder, image_processor)

        tokenizer, image_token, image_token_id = _image_tokenizer(
            module.tokenizer, module.max_seq_length, text_encoder.get_input_embeddings().num_embeddings
        )
        rows = text_encoder.get_input_embeddings().num_embeddings
        if image_token_id >= rows:
            text_encoder.resize_token_embeddings(image_token_id + 1, mean_resizing=False)

        room = None
        if module.max_seq_length is not None:
            room = module.max_seq_length - tokenizer.num_special_tokens_to_add()
        tokens, factor = _tokens(tokens, side, room)

        width = text_encoder.config.hidden_size
        if projection_size is None:
            projection_size = 2 * width
        if projection_size < 2 or projection_size % 2:
            raise ValueError(
                f"The 'projection_size' of from_encoders must be an even number of at least 2. Got {projection_size} "
                "instead."
            )
        config = AyaVisionConfig(
            text_config=text_encoder.config,
            vision_config=vision_encoder.config,
            vision_feature_select_strategy=strategy,
            downsample_factor=factor,
            alignment_intermediate_size=projection_size,
            image_token_index=image_token_id,
            # There is no head to tie them to.
            tie_word_embeddings=False,
        )
        config.dtype = parameter.dtype
        model = _assemble(config, text_encoder, vision_encoder)

        processor = LlavaProcessor(
            image_processor=image_processor,
            tokenizer=tokenizer,
            patch_size=_processor_patch_size(pixels, side // factor),
            vision_feature_select_strategy="full",
            image_token=image_token,
            chat_template=_chat_template(image_token[0], tokenizer.truncation_side),
        )
        params = module.modality_config["text"]
        self = cls._around(
            model,
            processor,
            modality_config={
                "text": dict(params),
                "image": dict(params),
                "message": {**params, "format": "structured"},
            },
            module_output_name=module.module_output_name,
            processing_kwargs={**module.processing_kwargs, "chat_template": {"restore_suffix": False}},
            query_length=module.query_length,
            document_length=module.document_length,
        )
        _check_texts(module, self)
        return self.eval()

    @classmethod
    def _around(cls, model: PreTrainedModel, processor: LlavaProcessor, **settings: Any) -> Self:
        """The module around a model in memory: the library reads the processor and the configuration, no weights."""
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            processor.save_pretrained(folder)
            return cls(folder, model_kwargs={"prepared": model}, **settings)

    def _load_model(self, *args: Any, prepared: PreTrainedModel | None = None, **kwargs: Any) -> PreTrainedModel:
        return align_weights(super()._load_model(*args, **kwargs) if prepared is None else prepared)

    @property
    def text_encoder(self) -> PreTrainedModel:
        """The text encoder, a plain transformers model: text alone needs nothing else."""
        return self.model.language_model

    @property
    def vision_encoder(self) -> PreTrainedModel:
        """The vision encoder, a plain transformers model."""
        return self.model.vision_tower

    @property
    def projector(self) -> nn.Module:
        """What turns patches into visual tokens of the text encoder's width."""
        return self.model.multi_modal_projector

    @property
    def tokens(self) -> int:
        """Visual tokens of an image."""
        size = _pixel_size(self.processor.image_processor)
        return (size // self.processor.patch_size) ** 2

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The three parts by name: ``vision``, ``projector``, ``text``."""
        return {"vision": self.vision_encoder, "projector": self.projector, "text": self.text_encoder}

    def vision_parameter_names(self) -> list[str]:
        """Names, as in ``named_parameters()``, of the vision encoder's and the projection's parameters.

        What no visual token depends on is left out (an unused pooling head, a final norm behind the layer that is
        read), so that every parameter named gets a gradient, as DistributedDataParallel wants it.
        """
        weight = next(self.projector.parameters())
        size = _pixel_size(self.processor.image_processor)
        pixels = torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device)
        parts = [self.vision_encoder, self.projector]
        flags = [(parameter, parameter.requires_grad) for part in parts for parameter in part.parameters()]
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(True)
            for part in parts:
                part.eval()  # without gradient checkpointing, which hides the graph
            with torch.enable_grad():
                output = self.model.get_image_features(pixels, return_dict=True).pooler_output
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            self.train(self.training)
        used = _leaves(output)
        return [name for name, parameter in self.named_parameters() if id(parameter) in used]

    def train_vision_only(self) -> list[str]:
        """Freezes everything but the ``vision_parameter_names``, which it returns."""
        names = self.vision_parameter_names()
        chosen = set(names)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        self.train(self.training)
        return names

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode and hasattr(self, "model"):
            for part in self.parts.values():
                if not any(parameter.requires_grad for parameter in part.parameters()):
                    _without_dropout(part)
        return self

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        return super().preprocess([_readable(item) for item in inputs], prompt=prompt, **kwargs)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        _forget_length(self.processor.tokenizer)
        super().save(output_path, *args, **kwargs)

    def to_standard(self) -> list[StandardTransformer]:
        """This module as sentence-transformers' own Transformer, around the same model and processor, with its vectors."""
        _forget_length(self.processor.tokenizer)
        standard = StandardTransformer.__new__(StandardTransformer)
        standard.__dict__.update(self.__dict__)
        # The dictionary of submodules is the one thing that the two must not share.
        standard.__dict__["_modules"] = dict(self._modules)
        return [standard]


#: What a picture may come as. Pillow opens more, some by programs of the system: PostScript by Ghostscript.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_MAX_BYTES = 256 * 2**20  # of a file


def load_image(source: Any, *, row: int | str | None = None, timeout: float = 30.0) -> Image.Image:
    """An image as RGB, whatever it comes as; transparency becomes white, and an EXIF orientation is applied.

    Nothing is fetched but for an ``http(s)`` URL.

    Args:
        source: a PIL image, a path, an http(s) URL, the bytes of a file, or the ``{"bytes": ..., "path": ...}`` mapping
            of a datasets Image column.
        row: what a message calls the place of the image: a row number, or any name.
        timeout: seconds to wait for a URL.

    Returns:
        (width, height) of the image itself, mode RGB. 16-bit grey becomes 8-bit by its high byte.

    Raises:
        ValueError: in one sentence that names the row, for what is missing, not an image, damaged, or has more pixels
            than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    place = "" if row is None else f" of row {row}"
    try:
        with warnings.catch_warnings():
            # Pillow only warns of up to twice its limit; a row of a data set should not take the machine's memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else _open(source, timeout)
            return _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"The image{place} is too large: it has more pixels than PIL.Image.MAX_IMAGE_PIXELS "
            f"({Image.MAX_IMAGE_PIXELS}). Shrink it, or raise that limit if you trust the file."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"The image{place} cannot be read from {_shown(source)}: Pillow knows no such format."
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their format's code raises
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"The image{place} cannot be read from {_shown(source)}: {reason}.") from error


def _open(source: Any, timeout: float) -> Image.Image:
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            source = source["bytes"]
        elif source.get("path") is not None:
            source = source["path"]
        else:
            raise ValueError('it has neither "bytes" nor "path"')
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(bytes(source))
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=timeout) as answer:
            return _decoded(answer.read(_MAX_BYTES + 1))
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.exists() and not path.is_file():  # a device or a pipe has no end
            raise ValueError("it is no file")
        with path.open("rb") as file:
            return _decoded(file.read(_MAX_BYTES + 1))
    raise TypeError(
        'it must be a PIL image, a path, an http(s) URL, bytes, or a mapping with "bytes" or "path", '
        f"not {type(source).__name__}"
    )


def _decoded(content: bytes) -> Image.Image:
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES // 2**20} MiB")
    Image.init()
    return Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])


def _to_rgb(image: Image.Image) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # convert("RGB") would clip 16-bit grey to white; some versions of Pillow open it as "I", which may hold 8 bits too.
        grey = image.convert("I")
        wide = image.mode != "I" or np.asarray(grey).max() > 255
        image = (grey.point(lambda value: value * (1 / 257)) if wide else grey).convert("L")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _shown(source: Any) -> str:
    if isinstance(source, Mapping):
        return _shown(source["path"]) if source.get("path") is not None else "a mapping"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    return f"a {type(source).__name__}"


def _readable(item: Any) -> Any:
    """What sentence-transformers does not take as an image, as an image; everything else as it is."""
    if isinstance(item, (bytes, bytearray, os.PathLike)):
        return load_image(item)
    if isinstance(item, Mapping):
        if item and item.keys() <= {"bytes", "path"}:
            return load_image(item)
        if "image" in item:
            return {**item, "image": _readable(item["image"])}
    return item


def _text_module(text: Any) -> StandardTransformer:
    """The Transformer module of ``text``, when it is one that this module can give eyes to."""
    modules = list(text) if isinstance(text, SentenceTransformer) else [text]
    module = modules[0] if modules else None
    if not isinstance(module, StandardTransformer):
        raise TypeError(
            "The 'text' of from_encoders must be a SentenceTransformer whose first module is a Transformer, or that "
            f"module. Got {type(module).__name__} instead."
        )
    name = type(module.model).__name__
    if isinstance(module, Transformer) or "image" in module.modality_config:
        raise ValueError("The 'text' of from_encoders must be a text encoder. Got a model that already takes images.")
    if "message" in module.modality_config:
        raise ValueError(
            "The 'text' of from_encoders must tokenize texts as they are, but this one puts them through its chat "
            'template. Load it as Transformer(name, modality_config={"text": {"method": "forward", '
            '"method_output_name": "last_hidden_state"}}, module_output_name="token_embeddings"), and train it so.'
        )
    if module.modality_config.get("text", {}).get("method") != "forward" or module.backend != "torch":
        raise ValueError("The 'text' of from_encoders must call its torch model's forward for texts. Got another way.")
    if module.query_expansion is not None:
        raise ValueError("The 'text' of from_encoders must not expand queries. Set its 'query_expansion' to None.")
    if not isinstance(module.model, PreTrainedModel):
        raise TypeError(
            f"The 'text' of from_encoders must hold a plain transformers model. Got {name}; merge its adapters first "
            "(model.merge_and_unload())."
        )
    try:
        expected = AutoModel._model_mapping[type(module.model.config)]
    except KeyError:
        expected = None
    if type(module.model) is not expected:
        raise ValueError(
            "The 'text' of from_encoders must be a model that transformers.AutoModel makes from its configuration, "
            f"such as BertModel or Qwen2Model. Got {name}."
        )
    for other in modules[1:]:
        if getattr(other, "include_prompt", True) is False:
            raise ValueError(
                "The 'text' of from_encoders must pool its prompts too (include_prompt=True): sentence-transformers does "
                "not track the prompt's length in a model that takes images."
            )
    return module


def _vision_encoder(vision: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The vision encoder and, when it comes from a name or folder that has one, its image processor."""
    processor = None
    if isinstance(vision, PreTrainedModel):
        _check_vision_config(vision.config)
        return copy.deepcopy(vision), None
    if isinstance(vision, (str, os.PathLike)):
        name = os.fspath(vision)
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


def _siglip_processor(size: int) -> Any:
    """SigLIP's processor in the version (torchvision or Pillow) that AutoImageProcessor finds, without its warnings."""
    fields = {"image_processor_type": "SiglipImageProcessor", "size": {"height": size, "width": size}}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
        return AutoImageProcessor.from_pretrained(folder)


def _pixel_size(image_processor: Any) -> int:
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


def _patch_grid(vision: PreTrainedModel, image_processor: Any) -> tuple[int, int, str]:
    """Pixels of a side, patches of a side, and whether a class token stands before them ("default") or not ("full")."""
    pixels = _pixel_size(image_processor)
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


def _tokens(tokens: int | None, side: int, room: int | None) -> tuple[int, int]:
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


def _processor_patch_size(pixels: int, side: int) -> int:
    """The patch size for which LlavaProcessor's ``pixels // patch_size`` is ``side``."""
    size = pixels // side
    if pixels // size != side:
        raise ValueError(
            f"No patch size divides {pixels} pixels into {side} visual tokens a side; pass other 'tokens', or an "
            f"'image_processor' that makes images a multiple of {side} pixels wide."
        )
    return size


def _image_tokenizer(
    tokenizer: Any, max_length: int | None, embeddings: int
) -> tuple[PreTrainedTokenizerBase, str, int]:
    """A tokenizer with the image token that gives every text, as the chat template writes it, its former tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or getattr(tokenizer, "split_special_tokens", False):
        raise ValueError(
            "The 'text' of from_encoders must have a tokenizer of the tokenizers library that recognises special tokens. "
            f"Got {type(tokenizer).__name__}."
        )
    state = json.loads(backend.to_str())
    # Limits of an earlier call: they would be taken for the tokenizer's own on loading.
    state["truncation"] = state["padding"] = None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    escape = _escape(vocabulary)
    image_token = escape + _IMAGE
    first_free = max(vocabulary.values()) + 1
    if first_free >= embeddings and (name := _unused_entry(state, backend)) is not None:
        entries = state["model"]["vocab"]
        entries[image_token] = entries.pop(name)
    new = Tokenizer.from_str(json.dumps(state))
    own = [] if new.normalizer is None else [new.normalizer]
    new.normalizer = normalizers.Sequence(
        [normalizers.Replace(escape + _NOTHING, ""), normalizers.Replace(escape + _LITERAL, escape), *own]
    )
    new.add_special_tokens([AddedToken(image_token, special=True, normalized=False)])

    settings = {
        key: getattr(tokenizer, key)
        for key in ("padding_side", "truncation_side", "pad_token_type_id", "model_input_names", "add_prefix_space")
        if getattr(tokenizer, key, None) is not None
    }
    specials = {
        key: str(getattr(tokenizer, key)) for key in _SPECIAL_TOKENS if getattr(tokenizer, key, None) is not None
    }
    if max_length is not None:
        settings["model_max_length"] = max_length
    # PreTrainedTokenizerFast is the class that reads its rules from tokenizer.json, where a class such as BertTokenizer
    # makes its own again on loading. A processor takes a tokenizer's max_length for every call's, hence none.
    result = PreTrainedTokenizerFast(tokenizer_object=new, max_length=None, **specials, **settings)
    return result, image_token, new.get_vocab()[image_token]


def _escape(vocabulary: Mapping[str, int]) -> str:
    """A private-use character in no token."""
    used = set().union(*vocabulary)
    for code in range(0xE000, 0xF900):
        if chr(code) not in used:
            return chr(code)
    raise ValueError("The 'text' of from_encoders has a tokenizer whose vocabulary takes every private-use character.")


def _unused_entry(state: Mapping[str, Any], backend: Tokenizer) -> str | None:
    """An ``[unusedN]`` entry of a WordPiece vocabulary, which BERT-like models keep free and no text reaches."""
    if state["model"].get("type") != "WordPiece":
        return None
    added = {token["content"] for token in state["added_tokens"]}
    entries = state["model"]["vocab"]
    for number in range(len(entries), -1, -1):
        name = _UNUSED.format(number)
        if name in entries and name not in added and entries[name] not in backend.encode(name).ids:
            return name
    return None


def _chat_template(escape: str, truncation_side: str) -> str:
    fields = {
        # Jinja reads the escape sequence; the file stays readable.
        "$escape": f"\\u{ord(escape):04x}",
        "$image": _IMAGE,
        "$literal": _LITERAL,
        "$nothing": _NOTHING,
        "$order": "text + ns.images" if truncation_side == "left" else "ns.images + text",
    }
    template = _TEMPLATE
    for name, value in fields.items():
        template = template.replace(name, value)
    return template


def _forget_length(tokenizer: PreTrainedTokenizerBase) -> None:
    """Drops the last call's limits, which the tokenizers library would save as the tokenizer's own."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def _assemble(config: AyaVisionConfig, text: PreTrainedModel, vision: PreTrainedModel) -> AyaVisionModel:
    with torch.device("meta"):  # no second text encoder in memory
        model = AyaVisionModel(config)
    projector_class = type(model.multi_modal_projector)
    weights = text.get_input_embeddings().weight
    projector = projector_class(model.config)
    _start_projection(projector, weights.detach())
    model.multi_modal_projector = projector.to(device=weights.device, dtype=weights.dtype)
    # The encoders first, their configurations after: the model's own are copies, and must be theirs.
    model.language_model, model.vision_tower = text, vision
    model.config.text_config, model.config.vision_config = text.config, vision.config
    return model


@torch.no_grad()
def _start_projection(projector: nn.Module, embeddings: Tensor) -> None:
    """Gives visual tokens the mean and the spread of word embeddings, which the text encoder is used to."""
    sample = embeddings[:: max(1, len(embeddings) // 4096)].float().cpu()
    mean = sample.mean(dim=0)
    spread = (sample - mean).std()
    features = torch.randn(256, projector.linear_1.in_features)
    first, gate = projector.linear_1(projector.layernorm(features)).chunk(2, dim=-1)
    output = (projector.act(gate) * first) @ projector.linear_2.weight.T
    projector.linear_2.weight.mul_(spread / output.std())
    projector.linear_2.bias.copy_(mean)


def _leaves(tensors: Any) -> set[int]:
    """The ids of the parameters that the tensors depend on."""
    tensors = list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]
    pending = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen, leaves = set(pending), set()
    while pending:
        node = pending.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return leaves


def _without_dropout(part: nn.Module) -> None:
    """Evaluation mode, but for the layers that only checkpoint gradients when they are in training mode."""
    part.eval()
    for module in part.modules():
        if (
            isinstance(module, GradientCheckpointingLayer)
            and getattr(module, "gradient_checkpointing", False)
            # A layer that drops out by its own flag, instead of by a submodule's, must keep it off.
            and not isinstance(getattr(module, "dropout", None), float)
        ):
            module.training = True


@torch.no_grad()
def _check_texts(before: StandardTransformer, after: Transformer) -> None:
    """Raises unless some texts have the same tokens, and the same vectors, before and after."""
    escape = after.processor.image_token[0]
    texts = [*_PROBES, after.processor.image_token * 2, escape, f"{escape}{_NOTHING}{escape}{_LITERAL} a"]
    texts += [f"{token} a" for token in before.tokenizer.all_special_tokens]
    mode = before.model.training
    before.eval()
    after.eval()
    device = next(before.model.parameters()).device
    try:
        for batch in (texts, texts[1:2]):
            old, new = before.preprocess(batch), after.preprocess(batch)
            for key in ("input_ids", "attention_mask", "token_type_ids"):
                if (key in old) != (key in new) or (key in old and not torch.equal(old[key], new[key])):
                    raise ValueError(
                        f"The tokenizer of the 'text' of from_encoders ({type(before.tokenizer).__name__}) does something "
                        f"that its tokenizer.json does not say: the {key} of texts would change."
                    )
        vectors = []
        for module, features in ((before, old), (after, new)):
            features = {
                key: value.to(device) if isinstance(value, Tensor) else value for key, value in features.items()
            }
            vectors.append(module(features)[module.module_output_name])
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"The text encoder ({type(before.model).__name__}) of from_encoders does not work behind visual tokens "
            f"({' '.join(str(error).split())}). Use one like BERT, RoBERTa, XLM-R or Qwen2."
        ) from error
    finally:
        before.model.train(mode)
    if not torch.equal(*vectors):
        raise ValueError(
            f"The text encoder ({type(before.model).__name__}) of from_encoders gives other vectors when it starts from "
            "word embeddings. Use one like BERT, RoBERTa, XLM-R or Qwen2."
        )
