"""The image module: a trained text encoder gets eyes, and its text vectors do not move by a bit.

An image becomes a few visual tokens (vision encoder, pixel shuffle, projection), which take the place of word embeddings
in the text encoder: Jasper's way (arXiv 2412.19048). One model then reads text, images, and images with text.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer as StandardTransformer
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AyaVisionConfig,
    AyaVisionModel,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from st_distill.alignment import align_weights
from st_distill.modules.image_loading import load_image
from st_distill.modules.image_tokenizer import LITERAL, NOTHING, chat_template, forget_length, image_tokenizer
from st_distill.modules.poolerless import without_pooler
from st_distill.modules.vision_encoder import (
    choose_tokens,
    load_vision_encoder,
    patch_grid,
    pixel_size,
    processor_patch_size,
    siglip_processor,
)

__all__ = ["Transformer"]


_PROBES = (
    "",
    "a",
    "A small red square, on a blue circle.",
    " leading and trailing space \n\tand lines\r\n\n",
    "Grüße, 日本語, हिन्दी, \u200b\u00ad\ufeff e\u0301 🙂",
    "<image> [MASK] [unused1] <s> </s> <|image_pad|> <|endoftext|>",
    "a long text, " * 400,
)


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
    makes transparent pixels white (before 5.20 black); what it clips (16-bit grey) is read rightly by ``load_image``. Images
    given as bytes, as the ``{"bytes", "path"}`` mapping of a datasets Image column, or as a ``Path`` are read by
    ``load_image`` too, in this module alone, not in the standard one.

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
                ``inputs_embeds`` and returns no more than a language model does (Qwen2, ...), or BERT, RoBERTa or XLM-R,
                which become an ELECTRA: the same network without a pooler, with the same vectors.
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
        text_encoder = without_pooler(copy.deepcopy(align_weights(module.model)))
        parameter = next(text_encoder.parameters())
        vision_encoder, found_processor = load_vision_encoder(vision, dict(vision_kwargs or {}))
        vision_encoder = vision_encoder.to(device=parameter.device, dtype=parameter.dtype)
        image_processor = (
            copy.deepcopy(image_processor) or found_processor or siglip_processor(vision_encoder.config.image_size)
        )
        image_processor.do_convert_rgb = True  # not the default of every version
        pixels, side, strategy = patch_grid(vision_encoder, image_processor)

        tokenizer, image_token, image_token_id = image_tokenizer(
            module.tokenizer, module.max_seq_length, text_encoder.get_input_embeddings().num_embeddings
        )
        rows = text_encoder.get_input_embeddings().num_embeddings
        if image_token_id >= rows:
            text_encoder.resize_token_embeddings(image_token_id + 1, mean_resizing=False)

        room = None
        if module.max_seq_length is not None:
            room = module.max_seq_length - tokenizer.num_special_tokens_to_add()
        tokens, factor = choose_tokens(tokens, side, room)

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
            patch_size=processor_patch_size(pixels, side // factor),
            vision_feature_select_strategy="full",
            image_token=image_token,
            chat_template=chat_template(image_token[0], tokenizer.truncation_side),
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
        size = pixel_size(self.processor.image_processor)
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
        size = pixel_size(self.processor.image_processor)
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
        forget_length(self.processor.tokenizer)
        super().save(output_path, *args, **kwargs)

    def to_standard(self) -> list[StandardTransformer]:
        """This module as sentence-transformers' own Transformer, around the same model and processor, with its vectors."""
        forget_length(self.processor.tokenizer)
        standard = StandardTransformer.__new__(StandardTransformer)
        standard.__dict__.update(self.__dict__)
        # The dictionary of submodules is the one thing that the two must not share.
        standard.__dict__["_modules"] = dict(self._modules)
        return [standard]


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
    texts = [*_PROBES, after.processor.image_token * 2, escape, f"{escape}{NOTHING}{escape}{LITERAL} a"]
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
