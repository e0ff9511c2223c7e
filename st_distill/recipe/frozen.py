"""A stage that trains the projection alone: the frozen encoder before it embeds each text once, whatever the epochs."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from st_distill.arrays import ArrayWriter
from st_distill.files import is_whole, write_checksum
from st_distill.progress import TextsProgress
from st_distill.recipe.schema import Stage, Texts
from st_distill.store.format import Hashes, hash_texts
from st_distill.teacher import Teacher

__all__ = [
    "POOLED",
    "FrozenEncoder",
    "PooledVectors",
    "pooled_vectors",
    "reads_pooled_vectors",
    "with_frozen_encoder",
]

POOLED = "pooled"
"""The folder of the vectors, within the work folder."""

_CHUNK = 4096  # texts looked up at a time
_EPOCHS = 3.0  # the trainer's own default
_OPEN_FILES = 128  # each open map holds a file descriptor, of which a process has few
_ROWS = 8192  # vectors in a file, which is what a kill can lose


class PooledVectors:
    """The pooled vectors of an encoder that does not change, float32 on disk, made once for each distinct text.

    A file holds the vectors of ``_ROWS`` distinct texts, and is named by them: one that is there, and has the checksum that
    lies beside it, is not made again, so a killed run goes on where it was.

    Args:
        folder: for the files; its name must identify the encoder.
        encoder: the student up to its pooled vector.
        texts: (text, prompt) pairs, in an order that is the same whenever the run is continued.
        show_progress: show a progress bar.
    """

    def __init__(
        self,
        folder: Path,
        encoder: SentenceTransformer,
        texts: Iterable[tuple[str, str | None]],
        *,
        show_progress: bool = True,
    ) -> None:
        self._folder = folder
        self._encoder = encoder
        self._table = Hashes()
        self._paths: list[Path] = []
        self._map = functools.lru_cache(maxsize=_OPEN_FILES)(self._open)
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        waiting: list[tuple[bytes, str, str | None]] = []
        with TextsProgress("frozen encoder", total=None, show=show_progress) as progress:
            for distinct in self._distinct(texts):
                waiting += distinct
                while len(waiting) >= _ROWS:
                    self._add(waiting[:_ROWS], progress)
                    del waiting[:_ROWS]
            if waiting:
                self._add(waiting, progress)

    def __len__(self) -> int:
        """Number of distinct texts."""
        return self._count

    def gather(self, texts: Sequence[str], prompt: str | None = None) -> np.ndarray:
        """The texts' pooled vectors, float32 (texts, width); one that was not among the texts is embedded now."""
        numbers = self._table.find(_hashes((text, prompt) for text in texts))
        vectors = np.empty((len(texts), self._encoder.get_embedding_dimension()), dtype=np.float32)
        for file in np.unique(numbers[numbers >= 0] // _ROWS).tolist():
            here = np.flatnonzero(numbers // _ROWS == file)
            vectors[here] = self._map(file)[numbers[here] - file * _ROWS]
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            vectors[unknown] = self._encode([texts[place] for place in unknown.tolist()], prompt)
        return vectors

    def _distinct(self, texts: Iterable[tuple[str, str | None]]) -> Iterator[list[tuple[bytes, str, str | None]]]:
        """The texts that were not seen before, each with its hash, which gets the next number."""
        iterator = iter(texts)
        while chunk := list(itertools.islice(iterator, _CHUNK)):
            hashes = _hashes(chunk)
            fresh: dict[bytes, tuple[str, str | None]] = {}
            for place in np.flatnonzero(self._table.find(hashes) < 0).tolist():
                fresh.setdefault(hashes[place].tobytes(), chunk[place])
            if fresh:
                added = np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, hashes.shape[1])
                self._table.add(added)
                self._count += len(fresh)
                yield [(key, *pair) for key, pair in fresh.items()]

    def _add(self, rows: list[tuple[bytes, str, str | None]], progress: TextsProgress) -> None:
        digest = hashlib.sha256(b"".join(key for key, _, _ in rows)).hexdigest()[:16]
        path = self._folder / f"{len(self._paths):05d}-{digest}.npy"
        if not is_whole(path):
            progress.begin()
            vectors = np.empty((len(rows), self._encoder.get_embedding_dimension()), dtype=np.float32)
            for prompt in dict.fromkeys(prompt for _, _, prompt in rows):
                places = [place for place, row in enumerate(rows) if row[2] == prompt]
                vectors[places] = self._encode([rows[place][1] for place in places], prompt)
            writer = ArrayWriter(path, vectors.dtype, vectors.shape[1])
            writer.append(vectors)
            write_checksum(path, writer.close().sha256)
            progress.update(len(rows))
        self._paths.append(path)

    def _open(self, file: int) -> np.ndarray:
        return np.load(self._paths[file], mmap_mode="r", allow_pickle=False)

    def _encode(self, texts: list[str], prompt: str | None) -> np.ndarray:
        # An empty prompt, because none at all means the model's default one, which the trainer does not use.
        return self._encoder.encode(texts, prompt=prompt or "", show_progress_bar=False).astype(np.float32, copy=False)


class FrozenEncoder(InputModule):
    """Stands in for the encoder and pooling of a student whose projection alone is trained.

    Args:
        pooled: where the vectors are; None only for a copy that is loaded from a checkpoint for its other modules' weights.
    """

    config_keys: list[str] = []

    def __init__(self, pooled: PooledVectors | None = None) -> None:
        super().__init__()
        self._pooled = pooled

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """``sentence_embedding``: the pooled vectors of the texts, float32 (texts, width)."""
        if self._pooled is None:
            raise ValueError(
                "A FrozenEncoder from a checkpoint has no vectors. Continue the run that wrote it instead."
            )
        return {"sentence_embedding": torch.from_numpy(self._pooled.gather(inputs, prompt))}

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        return {**features}  # the projection writes into what it is given

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> Self:
        return cls()


def reads_pooled_vectors(stage: Stage, rows: int, *, processes: int) -> bool:
    """Whether the stage trains the projection alone, and sees its rows of texts more than once."""
    if stage.train != "projection" or stage.also or stage.lora is not None:
        return False
    arguments = stage.training_arguments()
    if (steps := arguments.get("max_steps", -1)) > 0:
        return steps * stage.effective_batch(processes) > rows
    return arguments.get("num_train_epochs", _EPOCHS) > 1


def pooled_vectors(
    work: Path, encoder: SentenceTransformer, labelled: Iterable[tuple[Dataset, Texts]], *, show_progress: bool
) -> PooledVectors:
    """The encoder's vectors of all texts, each with the student's own prompt for its column."""
    identity = Teacher(encoder, name="student").revision.rpartition(":")[2]
    prompted = (
        (text, source.prompts.get(column))
        for dataset, source in labelled
        for column in dataset.column_names
        if column != "label"
        for text in dataset[column]
    )
    return PooledVectors(work / POOLED / identity, encoder, prompted, show_progress=show_progress)


def with_frozen_encoder(model: SentenceTransformer, pooled: PooledVectors) -> SentenceTransformer:
    """The student with its pooled vectors read instead of computed; the projection is the student's own."""
    *_, projection = model.children()
    frozen = SentenceTransformer(
        modules=[FrozenEncoder(pooled), projection],
        device=str(model.device),
        similarity_fn_name=model.similarity_fn_name,
    )
    frozen.model_card_data = model.model_card_data
    return frozen


def _hashes(pairs: Iterable[tuple[str, str | None]]) -> np.ndarray:
    # No text holds this separator by itself in front of another prompt's text: the prompt's length comes first.
    return hash_texts([f"{len(prompt or '')}\0{prompt or ''}{text}" for text, prompt in pairs])
