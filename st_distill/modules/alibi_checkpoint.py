"""Weights of the published English ALiBi encoders: read by name, with every tensor accounted for, and written back.

The layout is the model's own; what a published state dictionary may have beside it is a ``bert.`` prefix, a pooler and a
masked-LM head (``cls.``), which are dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from st_distill.errors import one_line
from st_distill.modules.alibi_config import AlibiBertConfig, explain_other_model, explain_published
from st_distill.modules.alibi_model import AlibiBertModel, AlibiBertPreTrainedModel

#: How the names of tensors begin that an encoder has no place for.
DROPPED = ("pooler.", "cls.")
PREFIX = "bert."
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: More names than this in one error help nobody.
SHOWN = 5


def load_published(path: str | os.PathLike[str], *, attn_implementation: str | None = None) -> AlibiBertModel:
    """The encoder of a folder in the published layout, in float32.

    Args:
        path: a folder with the published ``config.json`` (whose ``model_type`` is "bert") and ``model.safetensors`` or
            ``pytorch_model.bin``.
        attn_implementation: as in transformers.

    Raises:
        ValueError: for what is no folder, one without these files, or with damaged ones, a plain BERT, or weights that are
            missing, surplus or misshaped.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"The 'path' must be a folder. Got {path} instead, which is none here{_download(path)}.")
    file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if file is None or not (path / "config.json").is_file():
        raise ValueError(
            f"The 'path' must be a folder with a config.json and a {' or '.join(WEIGHTS)}. Got {path} instead, which has not "
            "both."
        )
    config = published_config(_read_fields(path / "config.json"), place=path / "config.json")
    state = _read_weights(file)
    model = AlibiBertModel._from_config(config, attn_implementation=attn_implementation)
    try:
        load_published_state_dict(model, state)
    except ValueError as error:
        raise ValueError(f"The weights of {file} cannot be taken. {error}") from error
    return model.eval()


def _download(path: Path) -> str:
    """What to do about a name of the hub in the place of a folder."""
    if path.exists() or path.is_absolute() or not 1 <= len(path.parts) <= 2 or ".." in path.parts:
        return ""
    owner = path.parent.name or "OWNER"
    return f"; a model of the hub is fetched first: hf download {owner}/{path.name} --local-dir {path.name}"


def _read_fields(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The file {file} is not JSON ({one_line(error)}): download it again.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"The file {file} must hold a JSON object. Got {_kind(fields)} instead: download it again.")
    return fields


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # both libraries have an exception for each kind of damage
        if type(error).__name__ == "UnpicklingError":  # torch's own words are on how to run the file's code
            message = f"The file {file} must hold tensors and nothing else. It does not, or is damaged."
            raise ValueError(message) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"The file {file} cannot be read as weights ({reason}): if it is damaged, download it again."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"The file {file} must hold tensors by their names. Got {_kind(state)} instead.")
    other = next(
        (name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)), None
    )
    if other is not None:
        raise ValueError(
            f"The file {file} must hold tensors by their names. Got {_kind(state[other])} at {other!r} instead."
        )
    return state


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def is_published_alibi(fields: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of the published layout: an ALiBi encoder under the ``model_type`` of another."""
    return fields.get("position_embedding_type") == "alibi" and fields.get("model_type") != AlibiBertConfig.model_type


def refuse_published(model: nn.Module, place: Any) -> None:
    """Nothing, unless ``model`` is, or holds, what plain loaders build from the published layout.

    Args:
        model: a model as it was loaded, from a folder or the hub, whole or a module of another one.
        place: its folder or name, for the error.

    Raises:
        ValueError: where a class of transformers' own, which has position embeddings, has been built from the configuration
            of an ALiBi encoder. Code of the checkpoint's own (``trust_remote_code``) is another class.
    """
    for part in model.modules():
        own = isinstance(part, PreTrainedModel) and type(part).__module__.startswith("transformers.")
        if own and is_published_alibi(part.config.to_dict()):
            raise ValueError(explain_published(place))


def published_config(fields: Mapping[str, Any], *, place: Any = "The configuration") -> AlibiBertConfig:
    """The configuration that a published ``config.json`` means.

    Raises:
        ValueError: where it is a plain BERT's: no "alibi" as its ``position_embedding_type``; for a field that
            `AlibiBertConfig` refuses.
    """
    if fields.get("position_embedding_type") != "alibi" and fields.get("model_type") != AlibiBertConfig.model_type:
        raise ValueError(explain_other_model(dict(fields), place))
    known = set(AlibiBertConfig().to_dict()) - {
        "auto_map",
        "model_type",
        "architectures",
        "transformers_version",
        "dtype",
    }
    kept = {name: value for name, value in fields.items() if name in known}
    kept["feed_forward"] = fields.get("feed_forward_type", fields.get("feed_forward", "geglu"))
    try:
        return AlibiBertConfig(**kept)
    except Exception as error:  # transformers' own fields have exceptions of their own
        raise ValueError(f"{place} is not valid: {one_line(error)}.") from error


def load_published_state_dict(model: AlibiBertPreTrainedModel, state: Mapping[str, Tensor]) -> list[str]:
    """Load a published state dictionary into the encoder of ``model``; a head keeps the weights it has.

    Args:
        model: an `AlibiBertModel`, or a model with a head on one.
        state: name to tensor, with the ``bert.`` prefix or without. It is checked whole before a weight changes.

    Returns:
        The names that were dropped: those of a pooler and of a masked-LM head.

    Raises:
        ValueError: for a missing, a surplus or a misshaped tensor, naming all three kinds; for one that is there with the
            prefix and without; for position embeddings, which only a plain BERT has.
    """
    encoder = model.base_model
    if any(name.endswith("position_embeddings.weight") for name in state):
        raise ValueError(
            "The state dictionary must be an ALiBi encoder's. Got one with 'position_embeddings', a plain BERT's, instead: a "
            "model trained with them does not work without."
        )
    named = {name.removeprefix(PREFIX): name for name in state}
    twice = [name.removeprefix(PREFIX) for name in state if named[name.removeprefix(PREFIX)] != name]
    if twice:
        raise ValueError(
            f"The state dictionary must have each tensor once, with the prefix {PREFIX!r} or without. "
            f"Got {_several('twice', twice)}: take one of the two out."
        )
    dropped = [name for short, name in named.items() if short.startswith(DROPPED)]
    found = {short: state[name] for short, name in named.items() if not short.startswith(DROPPED)}
    # Older transformers saved the numbers of the positions, which are no weights.
    positions = found.pop("embeddings.position_ids", None)
    wanted = encoder.state_dict()
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    problems = [
        _several("missing", [name for name in wanted if name not in found]),
        _several("surplus", [named[name] for name in found if name not in wanted]),
        _several("misshaped", shapes),
    ]
    if any(problems):
        raise ValueError(
            f"The state dictionary must have the encoder's {len(wanted)} tensors and no others. "
            f"Got {len(found)}: {'; '.join(filter(None, problems))}. Compare the config's sizes with the checkpoint's."
        )
    encoder.load_state_dict(found)
    return dropped + ([] if positions is None else [named["embeddings.position_ids"]])


def published_state_dict(model: AlibiBertPreTrainedModel, *, prefix: str = "") -> dict[str, Tensor]:
    """The encoder's weights under their published names, on the CPU; the inverse of `load_published_state_dict`.

    Args:
        model: an `AlibiBertModel`, or a model with a head on one, whose head is left out.
        prefix: ``"bert."`` for names as a model with a head has them.
    """
    state = model.base_model.state_dict()
    return {prefix + name: weight.detach().cpu().contiguous() for name, weight in state.items()}


def save_published(model: AlibiBertPreTrainedModel, path: str | os.PathLike[str]) -> None:
    """Write the encoder as `load_published` reads it: a published ``config.json`` and ``model.safetensors``.

    Raises:
        ValueError: for a folder that has a ``config.json`` already.
    """
    path = Path(path)
    if (path / "config.json").exists():
        raise ValueError(f"The 'path' must be a folder without a config.json. Got {path} instead: choose another one.")
    path.mkdir(parents=True, exist_ok=True)
    config = model.config
    fields = {
        name: getattr(config, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "max_position_embeddings",
            "type_vocab_size",
            "layer_norm_eps",
            "initializer_range",
            "pad_token_id",
        )
    }
    published = {"model_type": "bert", "position_embedding_type": "alibi", "feed_forward_type": config.feed_forward}
    (path / "config.json").write_text(json.dumps({**published, **fields}, indent=2) + "\n", encoding="utf-8")
    save_file(published_state_dict(model), path / "model.safetensors", metadata={"format": "pt"})


def _several(what: str, names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})" if names else ""
