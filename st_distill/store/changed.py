"""Whether vectors that lie somewhere are still those that a `TeacherStore` took over."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from st_distill import files
from st_distill.store.dtypes import DTYPES
from st_distill.store.format import Contents, TeacherShard, hash_texts
from st_distill.store.shards import unit_rows
from st_distill.teacher import Variant

__all__ = ["changed_text"]

#: How far two roundings of one number may lie apart, in steps of what is stored; float32 has those of the scaling itself.
_STEPS = {"float32": 8}


def changed_text(
    contents: Contents, name: str, variant: Variant, blocks: Iterable[tuple[list[str], np.ndarray]]
) -> str | None:
    """The first text whose vector among ``blocks`` (the texts, and vectors (n, dimension)) is another than the stored one.

    Of a text that comes again the first vector counts, as where they are taken over. A file of the store that has changed
    since it was written is no reason: it is damaged, which `check_vectors` says.

    Args:
        contents: of the store.
        name: of the teacher, whose dimension the vectors have.
        variant: prompt and task that the stored ones were made with.
    """
    entry = contents.description.teachers[name]
    column = contents.positions.get(name, {}).get(variant)
    if column is None:
        return None
    starts = entry.starts()
    is_whole: dict[int, bool] = {}
    is_new = np.full(len(contents.hashes), True)
    for texts, vectors in blocks:
        numbers = contents.table.find(hash_texts(texts))
        rows = np.flatnonzero(numbers >= 0)
        rows = rows[np.sort(np.unique(numbers[rows], return_index=True)[1])]
        rows = rows[is_new[numbers[rows]]]
        is_new[numbers[rows]] = False
        positions = column.get(numbers[rows])
        rows, positions = rows[positions >= 0], positions[positions >= 0]
        shards = np.searchsorted(starts, positions, side="right") - 1
        for number in np.unique(shards).tolist():
            shard, here = entry.shards[number], np.flatnonzero(shards == number)
            stored = np.load(contents.path(shard.vectors), mmap_mode="r", allow_pickle=False)
            differs = _differs(vectors[rows[here]], stored[positions[here] - starts[number]], entry.dtype)
            if differs.any() and number not in is_whole:
                is_whole[number] = _is_whole(contents, shard)
            if differs.any() and is_whole[number]:
                return texts[rows[here[np.argmax(differs)]]]
    return None


def _differs(vectors: np.ndarray, stored: np.ndarray, dtype: str) -> np.ndarray:
    """Which of the ``vectors`` (n, dimension) would be stored as something else, beyond roundings: bool (n,)."""
    encoded = np.ascontiguousarray(DTYPES[dtype].encode(unit_rows(vectors))[0])
    differs = (encoded != stored).any(axis=1)
    # The bits of two floats of one sign, as whole numbers, lie as far apart as there are floats between them.
    bits = np.dtype(f"i{encoded.itemsize}")
    apart = encoded[differs].view(bits).astype(np.int64) - np.ascontiguousarray(stored[differs]).view(bits)
    differs[differs] = (np.abs(apart) > _STEPS.get(dtype, 1)).any(axis=1)
    return differs


def _is_whole(contents: Contents, shard: TeacherShard) -> bool:
    return files.describe(contents.path(shard.vectors)).sha256 == shard.vectors.sha256
