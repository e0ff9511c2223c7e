"""Building the student, and choosing what of it a stage trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
from sentence_transformers.sentence_transformer.modules import Transformer as TextTransformer
from torch import nn

from st_distill.alignment import align_weights
from st_distill.limits import check_max_seq_length, set_max_seq_length
from st_distill.modules import MatryoshkaProjection, Transformer
from st_distill.recipe.patterns import matching
from st_distill.recipe.schema import Student
from st_distill.teacher.models import load_model


def build_student(spec: Student, *, device: str | None = None, whole: bool = False) -> SentenceTransformer:
    """The student up to its pooled vector: a sentence-transformers model, or a transformers model with a pooling.

    A projection or normalisation that the model ends in is left off, because the recipe's own projection takes its place;
    ``whole`` keeps it, for a recipe without one.
    """
    model = load_model(
        spec.model, of="student", revision=spec.revision, trust_remote_code=spec.trust_remote_code, device=device
    )
    modules: list[nn.Module] = []
    for module in model.children():
        if isinstance(module, (Dense, Normalize)) and not whole:
            break
        modules.append(module)
    if spec.pooling is not None and isinstance(modules[0], TextTransformer):
        modules = [modules[0], Pooling(modules[0].get_embedding_dimension(), pooling_mode=spec.pooling)]
    if spec.layers is not None:
        prune_layers(modules[0], spec.layers)
    student = SentenceTransformer(
        modules=modules,
        device=device,
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name="cosine",
    )
    student.model_card_data = model.model_card_data
    student.model_card_data.register_model(student)
    if spec.max_seq_length is not None:
        set_max_seq_length(student, spec.max_seq_length)
    if spec.export_max_seq_length is not None:
        check_max_seq_length(student, spec.export_max_seq_length)  # and not after hours
    return align_weights(choose_attention(student, spec))


def choose_attention(model: SentenceTransformer, spec: Student) -> SentenceTransformer:
    """The model, with the attention kernel that the recipe names; a saved model does not remember it."""
    if spec.attn_implementation is not None:
        model.transformers_model.set_attn_implementation(spec.attn_implementation)
    return model


def encoder_layers(module: nn.Module) -> nn.ModuleList:
    """The text encoder's list of layers, whatever the architecture calls it.

    Raises:
        ValueError: where the module has no list of that length.
    """
    encoder = module.text_encoder if isinstance(module, Transformer) else module
    lists = [child for child in encoder.modules() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise ValueError(
            f"The student's encoder must have a list of layers. Got {type(encoder).__name__}, which has none."
        )
    # Layers hold nearly all the weights of a transformer, and their list is found before any list inside a layer.
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))


def prune_layers(transformer: nn.Module, layers: Sequence[int]) -> None:
    """Keep only these encoder layers (numbered from 0, in this order) of a sentence-transformers Transformer."""
    kept = encoder_layers(transformer)
    depth = len(kept)
    if not layers or len(set(layers)) < len(layers) or not all(0 <= layer < depth for layer in layers):
        raise ValueError(
            f"The student's 'layers' must be distinct numbers from 0 to {depth - 1}. Got {list(layers)} instead."
        )
    chosen = [kept[layer] for layer in layers]
    del kept[len(chosen) :]
    for index, layer in enumerate(chosen):
        kept[index] = layer
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index
    config = next(
        part.config for part in transformer.modules() if hasattr(part, "config") and hasattr(part.config, "to_dict")
    )
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]


def trained_parameters(model: SentenceTransformer, train: str | Mapping[str, int] | Sequence[str]) -> set[str]:
    """Names of the parameters that a stage trains; see `Stage.train`.

    Raises:
        ValueError: where nothing matches, or the model has not the part.
    """
    names = [name for name, _ in model.named_parameters()]
    prefixes = {f"{index}." for index, module in model.named_children() if isinstance(module, MatryoshkaProjection)}
    projection = {name for name in names if any(name.startswith(prefix) for prefix in prefixes)}
    if train == "all":
        return set(names)
    if train == "projection":
        chosen = projection
    elif train == "vision":
        first = next(iter(model.children()))
        if not isinstance(first, Transformer):
            raise ValueError(
                "A stage can train 'vision' only where the model has a vision encoder. Got a text model instead."
            )
        chosen = {f"0.{name}" for name in first.vision_parameter_names()}
    elif isinstance(train, Mapping):
        layers = encoder_layers(next(iter(model.children())))
        count = train["last_layers"]
        if count > len(layers):
            raise ValueError(
                f"The stage's 'last_layers' must be at most the student's {len(layers)}. Got {count} instead."
            )
        trained = {id(parameter) for layer in list(layers)[len(layers) - count :] for parameter in layer.parameters()}
        chosen = projection | {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    else:
        patterns, chosen = [train] if isinstance(train, str) else list(train), set()
        for pattern in patterns:
            found = matching(pattern, names)
            if not found:
                raise ValueError(
                    f"The pattern {pattern!r} matches none of the model's parameters, such as {names[0]!r}."
                )
            chosen |= set(found)
    if not chosen:
        raise ValueError(f"The stage trains {train!r}, but the model has no such parameters.")
    return chosen


@contextmanager
def training_only(model: nn.Module, trained: set[str]) -> Iterator[None]:
    """Within this, only the parameters in ``trained`` require gradients, and frozen modules run without dropout."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    hooks = [module.register_forward_pre_hook(_stay_in_evaluation) for module in _frozen_modules(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.get(name, True))


@contextmanager
def dropout_of(model: nn.Module, share: float | None) -> Iterator[None]:
    """Within this, every dropout of the model drops ``share`` of its inputs in training; None leaves each as it is.

    Adapters of peft keep their own (``lora_dropout``).
    """
    before: list[tuple[nn.Module, str, Real]] = []
    for name, module in model.named_modules() if share is not None else ():
        if "lora_" in name:
            continue
        # Attention drops by a function in many models, and keeps the share as a plain number.
        names = ["p"] if isinstance(module, nn.Dropout) else [name for name in vars(module) if "dropout" in name]
        values = [(name, getattr(module, name)) for name in names]
        before += [(module, name, value) for name, value in values if isinstance(value, Real)]
    for module, name, _ in before:
        setattr(module, name, share)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _stay_in_evaluation(module: nn.Module, inputs: Any) -> None:
    # The trainer puts the whole model into training mode before every step, so this is said before every forward.
    module.eval()


def _frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The largest modules of which every parameter is frozen."""
    for child in model.children():
        parameters = list(child.parameters())
        is_called = not isinstance(child, (nn.ModuleList, nn.ModuleDict))
        if is_called and parameters and not any(parameter.requires_grad for parameter in parameters):
            yield child
        elif parameters:
            yield from _frozen_modules(child)
