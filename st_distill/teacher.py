"""What is distilled: a sentence-transformers model, a function, or vectors that exist already, all asked the same way.

A teacher has a ``name``, which is its folder in a `TeacherStore`, and an identity, which says whether two vectors of the
same text may stand side by side: the ``revision`` (a commit, or a checksum of what the vectors depend on) and the
``settings`` that change vectors (dtype, max_seq_length, truncate_dim). A text reaches the teacher in a `Variant`, the
prompt (and, for models with a Router, the task) of the text's role.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from st_distill import files
from st_distill.vectors import BLOCK, Vectors, shorten

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# sentence_transformers, datasets and pyarrow are imported where they are needed: opening a store, or asking a function,
# needs none of them, and they take seconds.

__all__ = ["Teacher", "Variant"]

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(?<!\.)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Variant(NamedTuple):
    """How a text is put to a teacher: the ``prompt`` before it, and the ``task`` a Router model takes it for."""

    prompt: str
    task: str | None


class _Source(Protocol):
    """Where a teacher's vectors come from."""

    label: str
    """Says what it is, in the store's description."""

    def revision(self) -> str: ...

    def prompts(self) -> tuple[Mapping[str, str], str]:
        """The source's own prompts by role, and the one for all other roles."""

    def task(self, role: str) -> str | None: ...

    def encode(self, texts: list[str], variant: Variant, batch_size: int) -> Iterator[tuple[list[str], Any]]:
        """The texts in one or several blocks, with whatever the source returns for each."""

    def release(self) -> None: ...


class Teacher:
    """Something that turns texts into vectors to learn from.

    Args:
        model: a SentenceTransformer; the name or folder of one, which is loaded when the first text needs it; or a
            function ``texts -> vectors``, that takes a list of at most ``batch_size`` texts and returns an array or
            tensor of shape (texts, dimension). A function with an argument ``prompt`` is given the prompt; otherwise
            the prompt is put before each text. For vectors on disk see `from_vectors`.
        prompts: what stands before a text: a string for every role, or ``{role: prompt}``. A role that is not in the
            mapping gets the model's own prompt, as ``encode_query`` and ``encode_document`` have it; a role that the
            model has no prompt for either gets the model's default prompt, or none. The key None is for texts without
            a role.
        name: names the teacher and its folder in a store. By default the last part of the model's name, or the name of
            the function (its ``name`` attribute).
        revision: what identifies the model's state. For a name on the hub a branch, tag or commit, and the identity is
            the commit. For a folder or a SentenceTransformer the default is a checksum of the content: weights,
            configuration, tokenizer. Required for a function (or as its ``revision`` attribute).
        dtype: dtype that a model is loaded in ("float32", "float16", "bfloat16"); by default its own.
        device: device that a model is loaded on; by default the best there is.
        batch_size: texts per forward pass, or per call of a function.
        max_seq_length: tokens per text; by default the model's own.
        truncate_dim: keep only so many dimensions, the first ones.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        TypeError, ValueError: an argument that cannot be right, before anything is loaded.
    """

    def __init__(
        self,
        model: SentenceTransformer | Callable[..., Any] | str | os.PathLike[str],
        prompts: str | Mapping[str, str] | Mapping[str | None, str] | None = None,
        *,
        name: str | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        max_seq_length: int | None = None,
        truncate_dim: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        dtype = _dtype_name(dtype)
        _at_least_one("max_seq_length", max_seq_length, optional=True)
        _at_least_one("truncate_dim", truncate_dim, optional=True)
        source: _Source
        loading = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code or None}
        if isinstance(model, str | os.PathLike):
            source = _LazyModel(
                os.fspath(model),
                revision=revision,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                max_seq_length=max_seq_length,
            )
        elif _is_sentence_transformer(model):
            _refuse("a SentenceTransformer, which is loaded already", loading)
            source = _LoadedModel(model, revision=revision, max_seq_length=max_seq_length)
        elif callable(model):
            _refuse("a function", loading | {"max_seq_length": max_seq_length})
            source = _Function(model, revision=revision)
        else:
            raise TypeError(
                "The 'model' parameter of Teacher must be a SentenceTransformer, its name or folder, or a function. "
                f"Got {type(model).__name__} instead. Vectors that exist already go into Teacher.from_vectors."
            )
        settings = {"dtype": dtype, "max_seq_length": max_seq_length}
        self._set_up(source, prompts, name, batch_size, truncate_dim, settings)

    @classmethod
    def from_vectors(
        cls,
        vectors: Any,
        *,
        texts: Iterable[str] | str | os.PathLike[str] | None = None,
        column: str | None = None,
        text_column: str | None = None,
        name: str | None = None,
        revision: str | None = None,
        truncate_dim: int | None = None,
    ) -> Teacher:
        """A teacher whose vectors exist already: bought from an API, or made elsewhere.

        They are read a block at a time, whatever their number. A text that occurs twice has the vector of its first
        occurrence. Roles have no prompts here: a text has the same vector in every role.

        Args:
            vectors: an npy file; a parquet file or a folder of them; a folder of ``Dataset.save_to_disk``; a
                ``datasets.Dataset`` or one of its columns; an array (texts, dimension).
            texts: the texts that the vectors belong to, in the same order: an iterable, or a file (txt with a text per
                line; jsonl with a string, or an object with ``text_column``, per line; parquet). Not needed where
                ``text_column`` has them.
            column: the column of the vectors, for tables; by default the only one that holds lists of numbers.
            text_column: the column of the texts; by default the only one that holds strings.
            name: names the teacher and its folder in a store; by default the name of the file without its ending.
            revision: what identifies the vectors. By default a checksum of the first row, so that rows may be added to
                the file later; give another one (with another name, or a new store) when vectors were replaced.
            truncate_dim: keep only so many dimensions, the first ones.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError, ValueError: what is given is not vectors with their texts.
        """
        _at_least_one("truncate_dim", truncate_dim, optional=True)
        source = Vectors(vectors, texts=texts, column=column, text_column=text_column, revision=revision)
        teacher = cls.__new__(cls)
        teacher._set_up(source, None, name, BLOCK, truncate_dim, {})
        return teacher

    def _set_up(
        self,
        source: _Source,
        prompts: str | Mapping[str, str] | Mapping[str | None, str] | None,
        name: str | None,
        batch_size: int,
        truncate_dim: int | None,
        settings: dict[str, Any],
    ) -> None:
        self._source = source
        self._prompts = _checked_prompts(prompts)
        self.name = check_name(name if name is not None else getattr(source, "default_name", None))
        _at_least_one("batch_size", batch_size)
        self.batch_size = batch_size
        self.truncate_dim = truncate_dim
        self._settings = settings | {"truncate_dim": truncate_dim}
        self._dimension: int | None = None

    def __repr__(self) -> str:
        return f"Teacher({self._source.label!r}, name={self.name!r})"

    @property
    def label(self) -> str:
        """What the teacher is made of: the model's name, the function's, the file's."""
        return self._source.label

    @property
    def revision(self) -> str:
        """What identifies the teacher's vectors, together with `settings`; nothing is loaded for it.

        For a folder or a SentenceTransformer it is computed from the content at every call (about a second per 2 GB).
        """
        return self._source.revision()

    @property
    def settings(self) -> dict[str, str | int]:
        """The options that change vectors, as far as they were given."""
        return {key: value for key, value in self._settings.items() if value is not None}

    @property
    def is_stored(self) -> bool:
        """Whether the vectors exist already (`from_vectors`), and only texts among them can be asked for."""
        return isinstance(self._source, Vectors)

    def variant(self, role: str | None = None) -> Variant:
        """How a text of this role is put to the teacher; no weights are loaded for it."""
        own, default = ({}, "") if isinstance(self._prompts, str) else self._source.prompts()
        if isinstance(self._prompts, str):
            prompt = self._prompts
        elif role in self._prompts:
            prompt = self._prompts[role]
        else:
            prompt = own.get(role, default) if role is not None else default
        return Variant(prompt, None if role is None else self._source.task(role))

    def encode(self, texts: Sequence[str], *, role: str | None = None) -> np.ndarray:
        """The teacher's vectors as it gives them, float32 (texts, dimension).

        Raises:
            ValueError: the teacher returned something else than one finite vector of constant width per text, or has
                no vector for a text.
        """
        if not len(texts):
            return np.zeros((0, self._dimension or 0), dtype=np.float32)
        return np.concatenate(list(self.encode_blocks(texts, self.variant(role))))

    def encode_blocks(self, texts: Sequence[str], variant: Variant) -> Iterator[np.ndarray]:
        """As `encode`, for a `Variant` instead of a role, in as many blocks as the teacher is asked in."""
        for block, returned in self._source.encode(list(texts), variant, self.batch_size):
            yield self._checked(block, returned)

    def blocks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        """Stored vectors alone: all of them, in blocks of texts and vectors, float32 (texts, dimension)."""
        if not isinstance(self._source, Vectors):
            raise ValueError(f"Teacher '{self.name}' has no stored vectors. Ask it by 'encode'.")
        row = 0
        for texts, vectors in self._source.blocks():
            yield texts, self._checked(texts, vectors, row)
            row += len(texts)

    def release(self) -> None:
        """Give back the memory of a model that was loaded here; it is loaded again when it is needed."""
        self._source.release()

    def _checked(self, texts: Sequence[str], returned: Any, first: int | None = None) -> np.ndarray:
        """The teacher's answer as float32 (texts, dimension), or the sentence that says what is wrong with it."""
        try:
            if isinstance(returned, torch.Tensor):
                returned = returned.detach().cpu().float().numpy()
            array = np.asarray(returned)
        except ValueError:  # rows of several widths
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "fiu":
            raise ValueError(
                f"Teacher '{self.name}' must return an array of numbers (texts, dimension), all rows of one width. "
                f"Got a {type(returned).__name__} that is none."
            )
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and found below
            vectors = array.astype(np.float32, copy=False)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise ValueError(
                f"Teacher '{self.name}' must return an array of shape (texts, dimension) for {len(texts)} texts. "
                f"Got the shape {vectors.shape} instead."
            )
        if len(vectors) != len(texts):
            raise ValueError(
                f"Teacher '{self.name}' must return a vector for every text. Got {len(vectors)} vectors for "
                f"{len(texts)} texts instead."
            )
        if self.truncate_dim is not None:
            if vectors.shape[1] < self.truncate_dim:
                raise ValueError(
                    f"The 'truncate_dim' of teacher '{self.name}' must be at most its dimension, {vectors.shape[1]}. "
                    f"Got {self.truncate_dim} instead."
                )
            vectors = vectors[:, : self.truncate_dim]
        if self._dimension is None:
            self._dimension = vectors.shape[1]
        elif vectors.shape[1] != self._dimension:
            raise ValueError(
                f"Teacher '{self.name}' must return vectors of one dimension. Got {vectors.shape[1]} after "
                f"{self._dimension}, first for the text {shorten(texts[0])}."
            )
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            place = int(np.argmin(finite))
            where = f"row {place} of {len(texts)}" if first is None else f"row {first + place}"
            raise ValueError(
                f"Teacher '{self.name}' must return finite numbers. Got NaN or infinity for the text "
                f"{shorten(texts[place])} ({where}); a teacher in float16 overflows so: try dtype='bfloat16' or 'float32'."
            )
        return vectors


def check_name(name: str | None) -> str:
    """A teacher's name, if it can be a folder's name everywhere."""
    if name is None:
        raise ValueError("The 'name' parameter of Teacher must be given, because there is none to derive it from.")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            "The 'name' parameter of Teacher must be up to 100 letters, digits, '-', '_' and '.', and begin with no dot "
            f"and end with none, because it names a folder. Got {name!r} instead; choose one: Teacher(..., name='teacher')."
        )
    return name


def _checked_prompts(prompts: Any) -> str | dict[str | None, str]:
    if prompts is None:
        return {}
    if isinstance(prompts, str):
        return prompts
    if isinstance(prompts, Mapping) and all(
        (role is None or isinstance(role, str)) and isinstance(prompt, str) for role, prompt in prompts.items()
    ):
        return dict(prompts)
    raise TypeError(
        "The 'prompts' parameter of Teacher must be a string, or a mapping of roles to strings such as "
        f"{{'query': 'query: '}}. Got {prompts!r} instead."
    )


def _at_least_one(option: str, value: Any, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"The '{option}' parameter of Teacher must be a whole number from 1. Got {value!r} instead.")


def _refuse(what: str, options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise ValueError(
                f"The '{option}' parameter of Teacher is for a model that is loaded by its name or folder. The model is "
                f"{what}: leave it out."
            )


def _dtype_name(dtype: str | torch.dtype | None) -> str | None:
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name not in (None, "float32", "float16", "bfloat16"):
        raise ValueError(
            "The 'dtype' parameter of Teacher must be 'float32', 'float16', 'bfloat16', or None for the model's own. "
            f"Got {dtype!r} instead."
        )
    return name


def _is_sentence_transformer(model: Any) -> bool:
    if not isinstance(model, torch.nn.Module):
        return False
    from sentence_transformers import SentenceTransformer

    return isinstance(model, SentenceTransformer)


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


def _encode_with_model(
    model: SentenceTransformer, texts: list[str], variant: Variant, batch_size: int, max_seq_length: int | None
) -> Iterator[tuple[list[str], Any]]:
    own_length = model.max_seq_length if max_seq_length is not None else None
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    try:
        vectors = model.encode(
            _without_surrogates(texts),
            prompt=variant.prompt,
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            **({} if variant.task is None else {"task": variant.task}),
        )
    finally:
        if max_seq_length is not None:
            model.max_seq_length = own_length
    yield texts, vectors


def _prompts_as_loaded(prompts: Mapping[str, str | None], default_name: str | None) -> tuple[Mapping[str, str], str]:
    # encode_query and encode_document take an empty prompt, not the default one, where a model has none of its own.
    by_role = {"query": "", "document": ""} | {role: prompt for role, prompt in prompts.items() if prompt is not None}
    return by_role, by_role.get(default_name, "") if default_name is not None else ""


class _LoadedModel:
    """A SentenceTransformer that the user made."""

    def __init__(self, model: SentenceTransformer, *, revision: str | None, max_seq_length: int | None) -> None:
        self.model = model
        self.max_seq_length = max_seq_length
        self._revision = revision
        source = getattr(model.model_card_data, "base_model", None)
        if not source:
            configuration = getattr(getattr(model[0], "auto_model", None), "config", None)
            source = getattr(configuration, "_name_or_path", None)
        self.default_name = os.path.basename(str(source).rstrip("/\\")) if source else None
        self.label = self.default_name or type(model).__name__

    def revision(self) -> str:
        # Not kept: the model may be trained between two calls.
        return self._revision if self._revision is not None else _model_checksum(self.model)

    def prompts(self) -> tuple[Mapping[str, str], str]:
        return _prompts_as_loaded(self.model.prompts, self.model.default_prompt_name)

    def task(self, role: str) -> str | None:
        return role if _has_router(type(module).__name__ for module in self.model) else None

    def encode(self, texts: list[str], variant: Variant, batch_size: int) -> Iterator[tuple[list[str], Any]]:
        return _encode_with_model(self.model, texts, variant, batch_size, self.max_seq_length)

    def release(self) -> None:
        """The model is the user's."""


class _LazyModel:
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
                self._commit = _commit_of(self.model_name, self._given_revision)
            # No commit is known where neither the hub nor its cache answers; what was loaded has a checksum.
            return self._commit or self._given_revision or _model_checksum(self._load())
        return self._given_revision or _folder_revision(Path(self.model_name))

    def prompts(self) -> tuple[Mapping[str, str], str]:
        configuration = self._json("config_sentence_transformers.json") or {}
        return _prompts_as_loaded(configuration.get("prompts") or {}, configuration.get("default_prompt_name"))

    def task(self, role: str) -> str | None:
        modules = self._json("modules.json") or []
        return role if _has_router(module["type"] for module in modules) else None

    def encode(self, texts: list[str], variant: Variant, batch_size: int) -> Iterator[tuple[list[str], Any]]:
        return _encode_with_model(self._load(), texts, variant, batch_size, self.max_seq_length)

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

        for name in _hub_names(self.model_name):
            try:
                path = Path(hf_hub_download(name, file, revision=self._loaded_revision(), cache_dir=_cache_folder()))
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
            self._commit = _commit_of(self.model_name, self._given_revision)
        return self._commit or self._given_revision

    def _load(self) -> SentenceTransformer:
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            # A folder's revision is the user's own word for its content; only the hub knows what to do with one.
            revision = None if self.is_folder else self._loaded_revision()
            try:
                self._model = SentenceTransformer(self.model_name, revision=revision, **self._options)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"The teacher's model '{self.model_name}' could not be loaded; check its name or folder. The loader "
                    f"says: {error}"
                ) from error
        return self._model


class _Function:
    """A function of the user's own."""

    def __init__(self, function: Callable[..., Any], *, revision: str | None) -> None:
        revision = revision if revision is not None else getattr(function, "revision", None)
        if not isinstance(revision, str) or not revision:
            raise ValueError(
                "The 'revision' parameter of Teacher must be given for a function (or be its attribute), because it tells "
                f"its vectors from those of another version. Got {revision!r} instead; pass revision='1', say."
            )
        self.function = function
        self._revision = revision
        own_name = getattr(function, "__name__", type(function).__name__)
        name = getattr(function, "name", None)
        self.default_name = name if name is not None else own_name
        self.label = f"function {own_name}"
        try:
            self._takes_prompt = "prompt" in inspect.signature(function).parameters
        except (TypeError, ValueError):  # a builtin has no signature to look at
            self._takes_prompt = False

    def revision(self) -> str:
        return self._revision

    def prompts(self) -> tuple[Mapping[str, str], str]:
        return {}, ""

    def task(self, role: str) -> str | None:
        return None

    def encode(self, texts: list[str], variant: Variant, batch_size: int) -> Iterator[tuple[list[str], Any]]:
        for start in range(0, len(texts), batch_size):
            block = texts[start : start + batch_size]
            if self._takes_prompt:
                yield block, self.function(block, prompt=variant.prompt)
            else:
                yield block, self.function([variant.prompt + text for text in block] if variant.prompt else block)

    def release(self) -> None:
        """The function is the user's."""


def _cache_folder() -> str | None:
    return os.getenv("SENTENCE_TRANSFORMERS_HOME")


def _hub_names(name: str) -> list[str]:
    """The repositories a name may mean: sentence-transformers puts its own organisation before a bare one."""
    return [name] if "/" in name else [f"sentence-transformers/{name}", name]


def _commit_of(name: str, revision: str | None) -> str | None:
    """The commit that a model on the hub is at, from the hub or, where that does not answer, from its cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    for repository in _hub_names(name):
        with contextlib.suppress(Exception):  # offline, no such repository, none that one may see, hub out of order
            return HfApi().model_info(repository, revision=revision, timeout=10).sha
        for file in ("modules.json", "config.json"):
            path = try_to_load_from_cache(repository, file, cache_dir=_cache_folder(), revision=revision)
            if isinstance(path, str):
                return _commit_in(Path(path).parent)
    return None


def _commit_in(folder: Path) -> str | None:
    """The commit, where the folder is a snapshot in the hub's cache."""
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


_NOT_THE_MODEL = re.compile(
    r"\..*|.*\.(md|png|jpe?g|svg|onnx|log)|training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|trainer_state\.json"
    r"|rng_state.*\.pth|checkpoint-.*|runs|eval|onnx|openvino"
)


def _folder_revision(folder: Path) -> str:
    """A checksum of everything in a model's folder that its vectors may depend on.

    Whole files, not samples of them: a fine-tuned bias or a single token's row must be seen. Unknown files count too:
    better an identity that changes without need than one that does not change. It takes about as long as reading the
    files, which loading the model does as well.
    """
    if commit := _commit_in(folder.resolve()):
        return commit
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _NOT_THE_MODEL.fullmatch(name)]
        paths += [Path(parent) / name for name in names if not _NOT_THE_MODEL.fullmatch(name)]
    paths.sort()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        checksums = list(pool.map(files.sha256, paths))
    digest = hashlib.sha256()
    for path, checksum in zip(paths, checksums):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{checksum}\n".encode("utf-8", "surrogatepass"))
    return f"content:{digest.hexdigest()[:40]}"


def _model_checksum(model: SentenceTransformer) -> str:
    """A checksum of a loaded model: its modules with their configuration, its tokenizer, its weights."""
    digest = hashlib.sha256()
    for module in model.modules():
        digest.update(type(module).__qualname__.encode())
        if hasattr(module, "get_config_dict"):
            digest.update(_sorted_json(module.get_config_dict(), without=()))
    configuration = getattr(getattr(model[0], "auto_model", None), "config", None)
    if configuration is not None:
        digest.update(_sorted_json(configuration.to_dict(), without=("_name_or_path",)))
    digest.update(str(model.max_seq_length).encode())
    tokenizer: Any = getattr(model[0], "tokenizer", None)
    if hasattr(tokenizer, "backend_tokenizer"):
        # Each call of the tokenizer leaves its own padding and truncation there.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        digest.update(_sorted_json(state, without=("padding", "truncation")))
    elif hasattr(tokenizer, "get_vocab"):
        digest.update(json.dumps(sorted(map(str, tokenizer.get_vocab()))).encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if model.truncate_dim is not None:
        digest.update(f"truncate_dim={model.truncate_dim}".encode())
    return f"content:{digest.hexdigest()[:40]}"


def _sorted_json(value: Mapping[str, Any], *, without: Iterable[str]) -> bytes:
    kept = {key: field for key, field in value.items() if key not in set(without)}
    return json.dumps(kept, sort_keys=True, default=str).encode()
