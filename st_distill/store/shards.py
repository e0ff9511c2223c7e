"""The files of a `TeacherStore` while they are written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from st_distill import files
from st_distill.arrays import ArrayWriter, close_together
from st_distill.store.dtypes import DTYPES, SCALES
from st_distill.store.format import HASH_BYTES, File, IndexShard, TeacherShard
from st_distill.teacher import Variant

__all__ = ["NewIndexShard", "NewTeacherShard"]


class _Files:
    """Several arrays that become files together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.writers: dict[str, ArrayWriter] = {}
        self.is_closed = False

    def open(self, kind: str, path: Path, dtype: np.dtype, columns: int | None = None) -> ArrayWriter:
        self.writers[kind] = ArrayWriter(path, dtype, columns)
        return self.writers[kind]

    def described(self, written: dict[Path, files.Written]) -> dict[str, File]:
        return {
            kind: File(writer.path.relative_to(self._folder).as_posix(), *written[writer.path])
            for kind, writer in self.writers.items()
        }

    def discard(self) -> None:
        for writer in self.writers.values():
            writer.discard()


class NewTeacherShard(_Files):
    """Vectors of one teacher with one prompt, with their text numbers.

    Args:
        folder: of the store.
        stem: the files' names up to the first dot.
        dtype: of the stored vectors, by name.
        dimension: of the vectors.
        variant: prompt and task that they were made with.
    """

    def __init__(self, folder: Path, stem: Path, dtype: str, dimension: int, variant: Variant) -> None:
        super().__init__(folder)
        self.variant = variant
        self.started = time.monotonic()
        self._dtype = DTYPES[dtype]
        self._vectors = self.open("vectors", stem.with_name(f"{stem.name}.npy"), self._dtype.array, dimension)
        self._texts = self.open("texts", stem.with_name(f"{stem.name}.texts.npy"), np.dtype("<i8"))
        if self._dtype.has_scales:
            self._scales = self.open("scales", stem.with_name(f"{stem.name}.scales.npy"), SCALES)

    @property
    def rows(self) -> int:
        return self._vectors.rows

    def append(self, vectors: np.ndarray, numbers: np.ndarray) -> None:
        """Add vectors (rows, dimension) of any length, which are stored at unit length, and their text numbers (rows,)."""
        stored, scales = self._dtype.encode(unit_rows(vectors))
        self._texts.append(numbers)
        if scales is not None:
            self._scales.append(scales)
        self._vectors.append(stored)

    def shard(self, written: dict[Path, files.Written]) -> TeacherShard:
        """How the description has it, when its files are closed."""
        described = self.described(written)
        return TeacherShard(
            self.rows,
            *self.variant,
            vectors=described["vectors"],
            texts=described["texts"],
            scales=described.get("scales"),
        )


class NewIndexShard(_Files):
    """New texts' hashes (texts, 16), and new rows' text and role numbers (rows, 2)."""

    def __init__(self, folder: Path, stem: Path, hashes: Sequence[np.ndarray], pairs: Sequence[np.ndarray]) -> None:
        super().__init__(folder)
        for kind, arrays, dtype, columns in [("hashes", hashes, "u1", HASH_BYTES), ("pairs", pairs, "<i8", 2)]:
            writer = self.open(kind, stem.with_name(f"{stem.name}.{kind}.npy"), np.dtype(dtype), columns)
            try:
                for array in arrays:
                    writer.append(array)
            except BaseException:
                self.discard()
                raise

    def shard(self, written: dict[Path, files.Written]) -> IndexShard:
        """How the description has it, when its files are closed."""
        return IndexShard(self.writers["hashes"].rows, self.writers["pairs"].rows, **self.described(written))


def close(*shards: NewTeacherShard | NewIndexShard) -> dict[Path, files.Written]:
    """Give the shards' files their names, flushed to the disk; size and checksum by path."""
    writers = [writer for shard in shards for writer in shard.writers.values()]
    written = close_together(writers)
    for shard in shards:
        shard.is_closed = True
    return dict(zip([writer.path for writer in writers], written))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The rows at unit length, zeros as they are."""
    # By the largest entry first: the squares of large numbers overflow float32, those of small ones vanish.
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    lengths = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    return np.divide(scaled, lengths, out=scaled, where=lengths > 0)
