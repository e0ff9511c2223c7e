"""What a model's files say about it, from its folder, the hub's cache or the hub; no weights are read."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer, PretrainedConfig

from st_distill.checksums import require_whole
from st_distill.errors import one_line, sentence
from st_distill.exporting import load_student
from st_distill.files import read_small, require_plain, require_plain_files
from st_distill.limits import set_max_seq_length
from st_distill.modules.alibi_checkpoint import is_published_alibi
from st_distill.modules.alibi_config import explain_published
from st_distill.nearest import suggest_path

__all__ = [
    "ModelFacts",
    "UnknownModel",
    "encoder_without_weights",
    "load_model",
    "read_config",
    "read_model",
    "read_prompts",
    "text_tokenizer",
    "why_not",
]


class UnknownModel(Exception):
    """Something that cannot be looked at from here, and may well be right."""


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say about it without its weights; None for what they do not say."""

    code: str | None  # what of it needs code of its own
    is_standard: bool  # a sentence-transformers model, with modules of its own
    is_static: bool  # a static embedding, with a projection or normalisation behind it at most
    ends_pooled: bool  # the final vector is the pooled one, normalised at most
    depth: int | None
    positions: int | None
    pooled: int | None  # width of the pooled vector
    width: int | None  # width of the final vector
    config: PretrainedConfig | None  # of the text encoder, where the model is nothing else
    in_training: bool = False  # a student that a stage has left, with modules of st-distill's own
    published_alibi: bool = False  # an ALiBi encoder whose configuration says that it is a BERT

    @property
    def is_of_texts(self) -> bool:
        """Whether it is known to take texts alone; False also where nothing is known."""
        return self.config is not None and hasattr(self.config, "vocab_size") and self.code is None


def read_model(name: str, revision: str | None) -> ModelFacts:
    """Raises ValueError for what is no model, and `UnknownModel` for one that is out of reach."""
    try:
        return _understand_model(name, revision)
    except (TypeError, KeyError, AttributeError) as error:  # JSON of another shape than a model's
        raise ValueError(f"the files of '{name}' do not describe a model: {one_line(error)}") from None


def _understand_model(name: str, revision: str | None) -> ModelFacts:
    modules = _read_json(name, "modules.json", revision)
    if modules is None:
        config, folder = read_config(name, revision), ""
    else:
        folder = modules[0].get("path", "") if modules else ""
        config = _read_json(name, _joined(folder, "config.json"), revision) or {}
    kind = config.get("model_type")
    depth = positions = hidden = code = built = whole = None
    if kind in CONFIG_MAPPING and not is_published_alibi(config):
        try:
            whole = CONFIG_MAPPING[kind].from_dict(config)
            built = whole.get_text_config()
        except Exception as error:  # configurations validate themselves, each by exceptions of its own
            raise ValueError(f"the configuration of '{name}' is not valid: {one_line(error)}") from error
        depth, hidden = getattr(built, "num_hidden_layers", None), getattr(built, "hidden_size", None)
        positions = getattr(built, "max_position_embeddings", None)
    elif "auto_map" in config:
        code = f"model type '{kind}'"
    pooled = width = hidden
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules or []]
    for module in modules or []:
        if module["type"].startswith("sentence_transformers."):
            last = module["type"].rsplit(".", 1)[-1]
            settings = _read_json(name, _joined(module["path"], "config.json"), revision) or {}
            if last == "Pooling":
                pooled = width = _pooled_width(settings)
            elif last == "Dense":
                width = settings.get("out_features")
            elif last not in ("Transformer", "Normalize", "Dropout"):
                pooled = width = None
        else:
            pooled = width = None
            code = f"module '{module['type']}'"
    if modules is not None and width is not None:
        cut = (_read_json(name, "config_sentence_transformers.json", revision) or {}).get("truncate_dim")
        width = min(width, cut) if isinstance(cut, int) else width
    return ModelFacts(
        code=code,
        is_standard=modules is not None,
        is_static=kinds[:1] == ["StaticEmbedding"] and (len(kinds) == 1 or kinds[1] in ("Dense", "Normalize")),
        ends_pooled=kinds in ([], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]),
        depth=depth,
        positions=positions,
        pooled=pooled,
        width=width,
        config=built if built is whole else None,
        in_training=any(module["type"].startswith("st_distill.modules.") for module in modules or []),
        published_alibi=is_published_alibi(config),
    )


def text_tokenizer(
    name: str, revision: str | None, *, trusted: bool, here_alone: bool = False
) -> tuple[Any, int | None]:
    """The tokenizer of a model, and the most tokens that sentence-transformers lets a text of it have; None for no limit.

    ``here_alone``: only where this machine has it already. Raises ValueError where there is none, and for a folder that holds a
    pipe, say.
    """
    require_plain_files(name)
    modules = _read_json(name, "modules.json", revision) or [{}]
    folder = modules[0].get("path", "")
    repository = name if "/" in name or Path(name).is_dir() else f"sentence-transformers/{name}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            repository, revision=revision, subfolder=folder, trust_remote_code=trusted, local_files_only=here_alone
        )
    except Exception as error:  # files of any shape, and whatever a network does
        raise ValueError(f"the tokenizer of '{name}' cannot be loaded: {one_line(error)}") from error
    config = _read_json(name, _joined(folder, "config.json"), revision) or {}
    settings = _read_json(name, _joined(folder, "sentence_bert_config.json"), revision) or {}
    limits = [settings.get("max_seq_length"), tokenizer.model_max_length, config.get("max_position_embeddings")]
    # A tokenizer that knows of no limit says 10^30.
    return tokenizer, min((limit for limit in limits if isinstance(limit, int) and limit < 10**9), default=None)


def encoder_without_weights(facts: ModelFacts) -> nn.Module | None:
    """The text encoder as its configuration describes it, on the meta device; None where that does not say."""
    if facts.config is None:
        return None
    try:
        with torch.device("meta"):
            return AutoModel.from_config(facts.config)
    except Exception:  # each architecture has needs of its own, and a run finds out
        return None


def _pooled_width(settings: dict[str, Any]) -> int | None:
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
    modes = settings.get("pooling_mode")
    if modes is None:
        count = sum(value is True for name, value in settings.items() if name.startswith("pooling_mode_"))
    else:
        count = 1 if isinstance(modes, str) else len(modes)
    return width * max(count, 1) if isinstance(width, int) else None


def read_config(name: str, revision: str | None) -> dict[str, Any]:
    config = _read_json(name, "config.json", revision)
    if config is None:
        raise ValueError(f"'{name}' holds no model: it has neither config.json nor modules.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str | None):
        raise ValueError(f"the config.json of '{name}' does not describe a model")
    return config


def read_prompts(name: str, revision: str | None) -> tuple[dict[str, str], str | None, str]:
    """A sentence-transformers model's prompts, the name of its default one, and its model card, empty where it has none.

    Raises:
        ValueError: for what is no model.
        UnknownModel: for one that is out of reach.
    """
    config = _read_json(name, "config_sentence_transformers.json", revision) or {}
    prompts = config.get("prompts") if isinstance(config, dict) else None
    own = {role: prompt for role, prompt in (prompts or {}).items() if isinstance(prompt, str)}
    card = _model_file(name, "README.md", revision)
    written = "" if card is None else read_small(card).decode("utf-8", "replace")
    return own, config.get("default_prompt_name") if isinstance(config, dict) else None, written


def _read_json(name: str, file: str, revision: str | None) -> Any:
    """A JSON file of a model, or None where the model has no such file."""
    path = _model_file(name, file, revision)
    if path is None:
        return None
    try:
        return json.loads(read_small(path).decode("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from error


def _model_file(name: str, file: str, revision: str | None) -> Path | None:
    folder = Path(name)
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # a name that is too long, say
        raise ValueError(f"'{name}' can be neither a folder nor a model of the hub: {error.strerror}") from None
    if is_folder:
        path = folder / file
        if not path.exists():
            return None
        require_plain(path)
        return path
    if folder.is_file():
        raise ValueError(f"'{name}' is a file; name the model's folder")
    if _looks_like_a_folder(name):
        raise ValueError(f"there is no folder '{name}'{suggest_path(folder, _may_be_a_model)}")
    # sentence-transformers' own models may be given by their last name.
    repository = name if "/" in name else f"sentence-transformers/{name}"
    cached = try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None or isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str):
        return None  # the model is in the cache, and this file is not part of it
    if constants.HF_HUB_OFFLINE:
        raise UnknownModel(
            f"'{name}' is not in the local cache, and the hub is switched off (HF_HUB_OFFLINE): not checked"
        )
    if not _hub_answers():
        raise UnknownModel(f"'{name}' is not in the local cache, and the hub does not answer: not checked")
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except GatedRepoError:
        raise UnknownModel(f"'{name}' is gated on the hub: accept its terms there and log in; not checked") from None
    except RepositoryNotFoundError:
        raise ValueError(f"the hub has no model '{name}', or not for you: see its spelling, or log in") from None
    except RevisionNotFoundError:
        raise ValueError(f"the hub's '{name}' has no revision '{revision}'") from None
    except EntryNotFoundError:
        return None
    except Exception as error:  # whatever a network does
        raise UnknownModel(f"'{name}' could not be looked up on the hub ({one_line(error)}): not checked") from None


def _may_be_a_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in ("modules.json", "config.json"))


@cache
def _hub_answers() -> bool:
    """Asked once: the hub's own client tries for half a minute, for every file."""
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _looks_like_a_folder(name: str) -> bool:
    path = Path(name)
    has_parent = len(path.parts) > 1 and path.parent.is_dir()
    return name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name or len(path.parts) > 2 or has_parent


def _joined(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def load_model(name: str, *, max_seq_length: int | None = None) -> SentenceTransformer:
    """A sentence-transformers model by its name or folder, a student in training too.

    Args:
        name: its name or folder.
        max_seq_length: tokens of a text that it is to read; None: as many as it was saved with.

    Raises:
        ValueError: where it cannot be loaded, with what is in its place, and for more tokens than its encoder can read.
    """
    try:
        facts = read_model(name, None)
    except (UnknownModel, ValueError):
        facts = None  # what is wrong is said where the loading fails
    if facts is not None and facts.published_alibi:
        raise ValueError(explain_published(name))
    if (Path(name) / "modules.json").is_file():
        model = load_student(name)  # a student in training has modules that only st-distill knows
    else:
        require_whole(name)
        try:
            model = SentenceTransformer(name)
        except (OSError, ValueError) as error:
            raise ValueError(sentence(f"The model cannot be loaded: {why_not(name, error)}")) from error
    if max_seq_length is not None:
        set_max_seq_length(model, max_seq_length)
    return model


def why_not(name: str, error: Exception) -> str:
    """Why a model cannot be loaded: the library speaks of files of the hub, where ours knows what is in the model's place."""
    try:
        read_model(name, None)
    except (UnknownModel, ValueError) as found:
        return one_line(found).removesuffix(": not checked")
    return one_line(error)
