"""What is distilled: a sentence-transformers model, a function, or vectors that exist already, all asked the same way.

A teacher has a ``name``, which is its folder in a `TeacherStore`, and an identity, which says whether two vectors of the
same text may stand side by side: the ``revision`` (a commit, or a checksum of what the vectors depend on) and the
``settings`` that change vectors (dtype, max_seq_length, truncate_dim). A text reaches the teacher in a `Variant`, the
prompt (and, for models with a Router, the task) of the text's role.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from st_distill.options import check_whole_number
from st_distill.teacher.batches import Budget, ask_within
from st_distill.teacher.models import LazyModel, LoadedModel
from st_distill.teacher.source import Function, Source, Variant
from st_distill.vectors import BLOCK, Vectors, shorten

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# sentence_transformers, datasets and pyarrow are imported where they are needed: opening a store, or asking a function,
# needs none of them, and they take seconds.

__all__ = ["Teacher", "check_name"]

#: Texts of a batch where nothing else is said, and tokens of one for a model on the CPU.
_TEXTS = 32
_TOKENS_ON_CPU = 2048
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(?<!\.)")


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
        batch_size: most texts per call of a function. For a model, how many texts of full length (max_seq_length, of which
            at most 512 tokens count) a forward pass holds: it holds more texts that are shorter, fewer that are longer,
            and always about as many tokens. Default: 32, and for a model on the CPU as many as have 2048 tokens together,
            which its caches serve best. Where memory runs out, it is halved, and a warning is logged.
        batch_tokens: the most tokens per forward pass of a model, padding included, instead of what batch_size comes to.
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
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        max_seq_length: int | None = None,
        truncate_dim: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        dtype = _dtype_name(dtype)
        _check_device(device)
        check_whole_number("'batch_tokens' parameter of Teacher", batch_tokens, optional=True)
        check_whole_number("'max_seq_length' parameter of Teacher", max_seq_length, optional=True)
        check_whole_number("'truncate_dim' parameter of Teacher", truncate_dim, optional=True)
        source: Source
        loading = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code or None}
        if isinstance(model, str | os.PathLike):
            source = LazyModel(
                os.fspath(model),
                revision=revision,
                dtype=dtype,
                device=device,
                trust_remote_code=trust_remote_code,
                max_seq_length=max_seq_length,
            )
        elif _is_sentence_transformer(model):
            _refuse("a SentenceTransformer, which is loaded already", loading)
            source = LoadedModel(model, revision=revision, max_seq_length=max_seq_length)
        elif callable(model):
            _refuse("a function", loading | {"max_seq_length": max_seq_length, "batch_tokens": batch_tokens})
            source = Function(model, revision=revision)
        else:
            raise TypeError(
                "The 'model' parameter of Teacher must be a SentenceTransformer, its name or folder, or a function. "
                f"Got {type(model).__name__} instead. Vectors that exist already go into Teacher.from_vectors."
            )
        settings = {"dtype": dtype, "max_seq_length": max_seq_length}
        self._set_up(source, prompts, name, batch_size, batch_tokens, truncate_dim, settings)

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
                the file later; a store that has another vector of a text refuses to be built further.
            truncate_dim: keep only so many dimensions, the first ones.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError, ValueError: what is given is not vectors with their texts.
        """
        check_whole_number("'truncate_dim' parameter of Teacher", truncate_dim, optional=True)
        source = Vectors(vectors, texts=texts, column=column, text_column=text_column, revision=revision)
        teacher = cls.__new__(cls)
        teacher._set_up(source, None, name, BLOCK, None, truncate_dim, {})
        return teacher

    def _set_up(
        self,
        source: Source | Vectors,
        prompts: str | Mapping[str, str] | Mapping[str | None, str] | None,
        name: str | None,
        batch_size: int | None,
        batch_tokens: int | None,
        truncate_dim: int | None,
        settings: dict[str, Any],
    ) -> None:
        self._source = source
        self._prompts = _checked_prompts(prompts)
        self.name = check_name(name if name is not None else getattr(source, "default_name", None))
        check_whole_number("'batch_size' parameter of Teacher", batch_size, optional=True)
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self._budget: Budget | None = None
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
        texts = list(texts)
        vectors = np.zeros((0, self._dimension or 0), dtype=np.float32)
        for places, block in self.encode_blocks(texts, self.variant(role)):
            if not len(vectors):
                vectors = np.empty((len(texts), block.shape[1]), dtype=np.float32)
            vectors[places] = block
        return vectors

    def encode_blocks(self, texts: list[str], variant: Variant) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `encode`, for a `Variant` instead of a role, in as many blocks as the teacher is asked in.

        Returns:
            Places (n,) in ``texts`` and their vectors (n, dimension), each text once. A model is asked the longest first.

        Raises:
            MemoryError: one text alone does not fit into memory.
        """
        if isinstance(self._source, Vectors):
            if texts:
                yield np.arange(len(texts)), self._checked(texts, self._source.find(texts))
            return
        source = self._source
        lengths = source.lengths(texts, variant) if texts else None
        if self._budget is None:
            self._budget = Budget(self.batch_size or _TEXTS, self._tokens() if lengths is not None else None)

        def ask(batch: list[str]) -> np.ndarray:
            return self._checked(batch, source.ask(batch, variant))

        yield from ask_within(self._budget, ask, texts, np.arange(len(texts)), lengths, who=self.name)

    def _tokens(self) -> int | None:
        """The most tokens of a batch."""
        source = self._source
        if self.batch_tokens is not None or not isinstance(source, LazyModel | LoadedModel):
            return self.batch_tokens
        if self.batch_size is None and source.device_type() == "cpu":
            return _TOKENS_ON_CPU
        return (self.batch_size or _TEXTS) * source.full_length()

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
            if isinstance(self._source, Vectors):
                advice = f"make that vector again, or take it and its text out of {self.label}."
            else:
                advice = "a teacher in float16 overflows so: try dtype='bfloat16' or 'float32'."
            raise ValueError(
                f"Teacher '{self.name}' must return finite numbers. Got NaN or infinity for the text "
                f"{shorten(texts[place])} ({where}); {advice}"
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


def _check_device(device: Any) -> None:
    if device is None or isinstance(device, torch.device):
        return
    try:
        torch.device(device if isinstance(device, str) else "")
    except RuntimeError:
        raise ValueError(
            "The 'device' parameter of Teacher must be a device as torch names it, such as 'cpu' or 'cuda:1', or None for the "
            f"best there is. Got {device!r} instead."
        ) from None


def _is_sentence_transformer(model: Any) -> bool:
    if not isinstance(model, torch.nn.Module):
        return False
    from sentence_transformers import SentenceTransformer

    return isinstance(model, SentenceTransformer)
