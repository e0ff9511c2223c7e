"""Models of sentence-transformers as sources of vectors."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from st_distill import files
from st_distill.checksums import require_whole
from st_distill.teacher.identity import cache_folder, commit_of, folder_revision, hub_names, model_checksum
from st_distill.teacher.source import Variant

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: What the libraries raise for files that are not a model's; anything else is theirs or the machine's.
OF_FILES = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, SafetensorError)


def _has_router(type_names: Iterable[str]) -> bool:
    return any(type_name.rpartition(".")[2] == "Router" for type_name in type_names)


def _without_surrogates(texts: list[str]) -> list[str]:
    """The texts as tokenizers can take them: an unpaired surrogate has no UTF-8, and stops a build after hours."""
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError:
        return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    return texts


_FULL_LENGTH = 512  # tokens per text that a batch is sized for by default, however long a text the model may take
_COUNTED = 256  # texts whose tokens are counted at a time: a tokenizer takes 100 bytes and more per token
_CHARACTERS = 16  # per token, beyond which a text is cut before it is counted: hardly any has so many


def _tokenizer(model: SentenceTransformer) -> Any:
    """The model's tokenizer, where it is one of transformers'; None for words, images, and models of no module that has one."""
    from transformers import PreTrainedTokenizerBase

    tokenizer = getattr(model[0], "tokenizer", None)
    return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None


class _Model:
    """What models have in common, loaded by us or not."""

    max_seq_length: int | None

    def _load(self) -> SentenceTransformer:
        raise NotImplementedError

    def full_length(self) -> int:
        """Tokens of the longest text that batches are sized for."""
        limit = self.max_seq_length or self._load().max_seq_length
        return min(limit or _FULL_LENGTH, _FULL_LENGTH)

    def device_type(self) -> str:
        """Kind of the device that the model is on, such as "cpu"."""
        return self._load().device.type

    def lengths(self, texts: list[str], variant: Variant) -> np.ndarray | None:
        model = self._load()
        tokenizer = _tokenizer(model)
        if tokenizer is None:
            return None
        limit = self.max_seq_length or model.max_seq_length
        characters = None if limit is None else _CHARACTERS * limit
        options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        prompt = len(tokenizer([variant.prompt], add_special_tokens=False, **options)["input_ids"][0])
        lengths = np.empty(len(texts), dtype=np.int64)
        for start in range(0, len(texts), _COUNTED):
            chunk = _without_surrogates([text[:characters] for text in texts[start : start + _COUNTED]])
            lengths[start : start + len(chunk)] = [len(tokens) for tokens in tokenizer(chunk, **options)["input_ids"]]
        lengths += prompt
        return lengths if limit is None else np.minimum(lengths, limit)

    def ask(self, texts: list[str], variant: Variant) -> Any:
        model = self._load()
        own_length = model.max_seq_length if self.max_seq_length is not None else None
        if self.max_seq_length is not None:
            model.max_seq_length = self.max_seq_length
        try:
            return model.encode(
                _without_surrogates(texts),
                prompt=variant.prompt,
                batch_size=len(texts),
                show_progress_bar=False,
                convert_to_numpy=True,
                **({} if variant.task is None else {"task": variant.task}),
            )
        finally:
            if self.max_seq_length is not None:
                model.max_seq_length = own_length


def explain_in_training(name: str) -> str:
    """What to do with the model of a run's stage, which is not code of a stranger."""
    return (
        f"'{name}' is a student in training, with modules of st-distill's own; write it as a standard model with "
        f"{shlex.join(['st-distill', 'export', name])} FOLDER, and name that"
    )


def load_model(name: str, *, of: str, **options: Any) -> SentenceTransformer:
    """A SentenceTransformer by its name or folder, with the class's own options.

    Args:
        name: the model's.
        of: whose it is, for the error: "teacher", "student".

    Raises:
        ValueError: there is no such model, or its files are damaged; the libraries have an exception for each case. Or the
            model is an ALiBi encoder in the published layout, of which they make an ordinary BERT.
    """
    from sentence_transformers import SentenceTransformer

    from st_distill.modules.alibi_checkpoint import refuse_published  # which registers the ALiBi encoder too

    require_whole(name)
    try:
        model = SentenceTransformer(name, **options)
    except OF_FILES as error:
        if "'st_distill.modules." in str(error):
            raise ValueError(f"The {of}'s model is not a standard one: {explain_in_training(name)}.") from None
        raise ValueError(
            f"The {of}'s model '{name}' could not be loaded; check its name or folder. The loader says: {error}"
        ) from error
    refuse_published(model, name)
    return model


def _prompts_as_loaded(prompts: Mapping[str, str | None], default_name: str | None) -> tuple[Mapping[str, str], str]:
    # encode_query and encode_document take an empty prompt, not the default one, where a model has none of its own.
    by_role = {"query": "", "document": ""} | {role: prompt for role, prompt in prompts.items() if prompt is not None}
    return by_role, by_role.get(default_name, "") if default_name is not None else ""


class LoadedModel(_Model):
    """A SentenceTransformer that the user made.

    Raises:
        ValueError: for an ALiBi encoder in the published layout that has been loaded as an ordinary BERT.
    """

    def __init__(self, model: SentenceTransformer, *, revision: str | None, max_seq_length: int | None) -> None:
        from st_distill.modules.alibi_checkpoint import refuse_published

        self.model = model
        self.max_seq_length = max_seq_length
        self._revision = revision
        source = getattr(model.model_card_data, "base_model", None)
        if not source:
            configuration = getattr(getattr(model[0], "auto_model", None), "config", None)
            source = getattr(configuration, "_name_or_path", None)
        self.default_name = os.path.basename(str(source).rstrip("/\\")) if source else None
        self.label = self.default_name or type(model).__name__
        refuse_published(model, self.label)

    def revision(self) -> str:
        # Not kept: the model may be trained between two calls.
        return self._revision if self._revision is not None else model_checksum(self.model)

    def prompts(self) -> tuple[Mapping[str, str], str]:
        return _prompts_as_loaded(self.model.prompts, self.model.default_prompt_name)

    def task(self, role: str) -> str | None:
        return role if _has_router(type(module).__name__ for module in self.model) else None

    def _load(self) -> SentenceTransformer:
        return self.model

    def release(self) -> None:
        """The model is the user's."""


class LazyModel(_Model):
    """A SentenceTransformer by its name on the hub or its folder, loaded when the first text needs it."""

    def __init__(
        self,
        model: str,
        *,
        revision: str | None,
        dtype: str | None,
        device: str | torch.device | None,
        trust_remote_code: bool,
        max_seq_length: int | None,
    ) -> None:
        if not model:
            raise ValueError("The 'model' parameter of Teacher must name a model or a folder. Got '' instead.")
        self.model_name = model
        self.is_folder = os.path.isdir(model)
        if not self.is_folder and (model.count("/") > 1 or os.path.isabs(model) or model.startswith((".", "~"))):
            raise FileNotFoundError(
                f"The 'model' parameter of Teacher must be a folder that exists, or a name on the hub. Got '{model}' "
                "instead, which is neither."
            )
        self.default_name = os.path.basename(os.path.abspath(model)) if self.is_folder else model.rpartition("/")[2]
        self.label = self.default_name if self.is_folder else model
        self.max_seq_length = max_seq_length
        self._given_revision = revision
        self._commit: str | None = None
        self._options: dict[str, Any] = {
            "device": None if device is None else str(device),
            "trust_remote_code": trust_remote_code,
            "model_kwargs": None if dtype is None else {"dtype": dtype},
        }
        self._model: SentenceTransformer | None = None

    def revision(self) -> str:
        if not self.is_folder:
            if self._commit is None:
                self._commit = commit_of(self.model_name, self._given_revision)
            # No commit is known where neither the hub nor its cache answers; what was loaded has a checksum.
            return self._commit or self._given_revision or model_checksum(self._load())
        return self._given_revision or folder_revision(Path(self.model_name))

    def prompts(self) -> tuple[Mapping[str, str], str]:
        configuration = self._json("config_sentence_transformers.json") or {}
        return _prompts_as_loaded(configuration.get("prompts") or {}, configuration.get("default_prompt_name"))

    def task(self, role: str) -> str | None:
        modules = self._json("modules.json") or []
        return role if _has_router(module["type"] for module in modules) else None

    def release(self) -> None:
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _json(self, file: str) -> Any:
        """One of the model's small files, or None where it has none."""
        if self.is_folder:
            path = Path(self.model_name) / file
            return files.read_json(path) if path.exists() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        for name in hub_names(self.model_name):
            try:
                path = Path(hf_hub_download(name, file, revision=self._loaded_revision(), cache_dir=cache_folder()))
                return files.read_json(path)
            except EntryNotFoundError:
                # That includes a file that is in no cache while the hub is out of reach: it may exist, but then the
                # model is not in the cache either, and loading it says so.
                continue
            except (OSError, ValueError):  # no such repository, no network
                continue
        return None

    def _loaded_revision(self) -> str | None:
        if self._commit is None and not self.is_folder:
            self._commit = commit_of(self.model_name, self._given_revision)
        return self._commit or self._given_revision

    def _load(self) -> SentenceTransformer:
        if self._model is None:
            # A folder's revision is the user's own word for its content; only the hub knows what to do with one.
            revision = None if self.is_folder else self._loaded_revision()
            options = dict(self._options)
            if options["device"] is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
                # Else all processes of torchrun would load it on the machine's first GPU.
                options["device"] = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
            wanted = torch.device(options["device"] or "cpu")
            if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
                raise ValueError(
                    f"The teacher's device must be one of this machine's, which has {torch.cuda.device_count()} of kind cuda. "
                    f"Got '{options['device']}' instead; leave it out for the best there is."
                )
            self._model = load_model(self.model_name, of="teacher", revision=revision, **options)
        return self._model
