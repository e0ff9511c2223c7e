"""What is damaged in a store, found file by file, and mended: index files from the texts, vectors by the teachers."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from st_distill import files
from st_distill.store.dtypes import DTYPES, SCALES
from st_distill.store.format import (
    DESCRIPTION,
    HASH_BYTES,
    Description,
    Entry,
    File,
    Hashes,
    TeacherShard,
    hash_texts,
    read_description,
    write_description,
)
from st_distill.store.texts import read_texts
from st_distill.teacher import Teacher

__all__ = ["Damage", "check_vectors", "find_damage", "mend_store"]

_ROWS = 4096  # vectors looked at together
_UNIT = 0.05  # how far from 1 a length may be: int8 rounds most, by less than this


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not what was written, by its name in the store's folder, and in what way."""

    file: str
    what: str


def find_damage(folder: str | os.PathLike[str], zeros: Counter[str] | None = None) -> list[Damage]:
    """Everything that is wrong with a store: each file's presence, size, checksum, shape, dtype and values.

    Reads every byte. The lengths of vectors are looked at too: each is 1, or 0. Those of length 0, which are no damage, are
    counted in ``zeros`` by teacher.
    """
    zeros = Counter() if zeros is None else zeros
    folder = Path(folder)
    try:
        description = read_description(folder)
    except (OSError, ValueError) as error:
        return [Damage(DESCRIPTION, str(error))]
    found = []
    try:
        files.read_record(files.copy_of(folder / DESCRIPTION))
    except FileNotFoundError:
        pass  # a store of before there were copies
    except ValueError as error:
        found.append(Damage(files.copy_of(DESCRIPTION).name, str(error)))
    texts = sum(shard.texts for shard in description.index)
    limits = (texts, len(description.roles))
    for part in description.index:
        found += _wrong(folder, part.hashes, (part.texts, HASH_BYTES), np.dtype("u1"))
        found += _wrong(folder, part.pairs, (part.rows, 2), np.dtype("<i8"), below=limits)
    for name, entry, shard in _shards(description):
        found += _wrong(folder, shard.texts, (shard.rows,), np.dtype("<i8"), below=(texts,))
        if shard.scales is not None:
            found += _wrong(folder, shard.scales, (shard.rows,), SCALES)
        found += _wrong_vectors(folder, name, entry, shard, zeros)
    return found


def check_vectors(folder: str | os.PathLike[str]) -> None:
    """Compare every file of vectors with its checksum, as opening a store does not: they may be very many.

    Raises:
        ValueError: a file has changed since it was written; the sentence names the command that mends the store.
    """
    folder = Path(folder)
    named = [file for _, _, shard in _shards(read_description(folder)) for file in shard.files]

    def changed(file: File) -> str | None:
        what = files.difference(folder / file.file, file.bytes, file.sha256)
        return None if what is None else f"in {folder / file.file}, {what}"

    with ThreadPoolExecutor(max_workers=8) as pool:
        for what in pool.map(changed, named):
            if what is not None:
                raise ValueError(f"The store is damaged: {what}. Restore this file, or {files.mending(folder)}.")


def mend_store(
    folder: str | os.PathLike[str],
    texts: Iterable[Any],
    teachers: Sequence[Teacher],
    *,
    roles: str | None = None,
) -> list[Damage]:
    """Mend a store as far as it goes without its teachers: afterwards `TeacherStore.create`, with the same texts and teachers,
    embeds the vectors that were damaged, which this has taken out.

    The description comes back from its copy, index files from the texts, if these give them to the last byte. Vectors are
    taken out only where the texts and the teachers are there to embed them again. Only for the holder of the store's lock.

    Args:
        folder: of the store.
        texts, teachers, roles: as `TeacherStore.create` takes them.

    Returns:
        What cannot be mended, and why.
    """
    folder = Path(folder)
    try:
        description = read_description(folder)
    except (OSError, ValueError):
        _restore_description(folder)
        try:
            description = read_description(folder)
        except (OSError, ValueError) as error:
            why = f"{error} Its copy cannot be read either: restore one of them, or embed all texts again in a new folder."
            return [Damage(DESCRIPTION, why)]
    damaged = {damage.file: damage.what for damage in find_damage(folder)}
    lost = _mend_index(folder, description, damaged, texts, roles)
    if not lost:
        lost = _take_out(folder, description, damaged, texts, teachers, roles)
    # The copy too, if it was what is damaged.
    write_description(folder, description)
    return lost


def _restore_description(folder: Path) -> None:
    path = folder / DESCRIPTION
    with contextlib.suppress(OSError, ValueError):
        files.write_record(path, files.read_record(files.copy_of(path)))


def _shards(description: Description) -> Iterator[tuple[str, Entry, TeacherShard]]:
    for name, entry in description.teachers.items():
        for shard in entry.shards:
            yield name, entry, shard


def _wrong(
    folder: Path, file: File, shape: tuple[int, ...], dtype: np.dtype[Any], *, below: tuple[int, ...] | None = None
) -> list[Damage]:
    """What is wrong with an array; ``below`` limits its columns of numbers."""
    path = folder / file.file
    if not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        return [Damage(file.file, "a link leads out of the store")]
    if what := files.difference(path, file.bytes, file.sha256):
        return [Damage(file.file, what)]
    try:
        header = files.read_array_header(path)
    except ValueError as error:
        return [Damage(file.file, str(error))]
    if header.shape != shape or header.dtype != dtype:
        what = f"there is {header.dtype} of shape {header.shape}, where {DESCRIPTION} says {dtype} of shape {shape}"
        return [Damage(file.file, what)]
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if below is not None and len(values) and (values.min() < 0 or (values.max(axis=0) >= np.array(below)).any()):
        return [Damage(file.file, "there are numbers outside the store's texts and roles")]
    if dtype.kind == "f" and len(shape) == 1 and not np.isfinite(values).all():
        return [Damage(file.file, "there is NaN or infinity")]
    return []


def _wrong_vectors(folder: Path, name: str, entry: Entry, shard: TeacherShard, zeros: Counter[str]) -> list[Damage]:
    dtype = DTYPES[entry.dtype]
    if found := _wrong(folder, shard.vectors, (shard.rows, entry.dimension or 0), dtype.array):
        return found
    stored = np.load(folder / shard.vectors.file, mmap_mode="r", allow_pickle=False)
    for start in range(0, shard.rows, _ROWS):
        numbers = dtype.decode(np.array(stored[start : start + _ROWS])).float().numpy()
        if not np.isfinite(numbers).all():
            row = start + int(np.argmin(np.isfinite(numbers).all(axis=1)))
            return [Damage(shard.vectors.file, f"there is NaN or infinity in row {row}")]
        lengths = np.sqrt(np.einsum("ij,ij->i", numbers, numbers, dtype=np.float64))
        zeros[name] += int((lengths == 0).sum())
        if dtype.has_scales:
            continue  # a row is a direction alone; its length is in the scale
        wrong = (lengths > 0) & (np.abs(lengths - 1) > _UNIT)
        if wrong.any():
            row = int(np.argmax(wrong))
            return [
                Damage(shard.vectors.file, f"row {start + row} has the length {lengths[row]:.3g}, where 1 was written")
            ]
    return []


# --- mending -----------------------------------------------------------------------------------------------------------


def _mend_index(
    folder: Path, description: Description, damaged: dict[str, str], texts: Iterable[Any], roles: str | None
) -> list[Damage]:
    """Write damaged index files again, if the texts give exactly what they held."""
    index_files = [file for part in description.index for file in (part.hashes, part.pairs)]
    if not any(file.file in damaged for file in index_files):
        return []
    hashes, of_pairs, role_numbers = _registered(texts, roles, description.roles)
    hashes = _complete(folder, [(part.hashes, part.texts) for part in description.index], damaged, hashes)
    # Text numbers are places among the hashes, so these come first.
    table = Hashes()
    table.add(hashes)
    numbers = table.find(of_pairs)
    pairs = np.stack([numbers, role_numbers], axis=1)[numbers >= 0]
    pairs = _complete(folder, [(part.pairs, part.rows) for part in description.index], damaged, pairs)
    lost, first_text, first_row = [], 0, 0
    for part in description.index:
        for file, array, first, count in [
            (part.hashes, hashes, first_text, part.texts),
            (part.pairs, pairs, first_row, part.rows),
        ]:
            if file.file in damaged and not _rewritten(folder, file, array[first : first + count]):
                why = "and the texts do not give it again: restore this file, or embed all texts again in a new folder"
                lost.append(Damage(file.file, f"{damaged[file.file]}, {why}"))
        first_text += part.texts
        first_row += part.rows
    return lost


def _registered(texts: Iterable[Any], roles: str | None, known: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In the order of a first build: the texts' hashes (texts, 16), and the hash (rows, 16) and role number (rows,) of
    each (text, role) pair.
    """
    hashes: dict[bytes, None] = {}
    pairs: dict[tuple[bytes, int], None] = {}
    for chunk, chunk_roles in read_texts(texts, roles):
        rows = [row.tobytes() for row in hash_texts(chunk)]
        hashes |= dict.fromkeys(rows)
        # A build enters a chunk's rows role by role.
        for role in dict.fromkeys(chunk_roles):
            if role in known:
                pairs |= {(row, known.index(role)): None for row, own in zip(rows, chunk_roles) if own == role}
    return (
        np.frombuffer(b"".join(hashes), dtype="u1").reshape(-1, HASH_BYTES),
        np.frombuffer(b"".join(row for row, _ in pairs), dtype="u1").reshape(-1, HASH_BYTES),
        np.array([role for _, role in pairs], dtype="<i8"),
    )


def _complete(
    folder: Path, parts: list[tuple[File, int]], damaged: dict[str, str], candidates: np.ndarray
) -> np.ndarray:
    """The rows of all files: undamaged ones as they are, and in the places of the others the candidates that are in none."""
    files_of = [file.file for file, _ in parts if file.file not in damaged]
    whole = {name: np.load(folder / name, allow_pickle=False) for name in files_of}
    taken = {row.tobytes() for array in whole.values() for row in array}
    free = np.array([row.tobytes() not in taken for row in candidates], dtype=bool)
    candidates = candidates[free]
    arrays, used = [candidates[:0]], 0
    for file, count in parts:
        if file.file in whole:
            arrays.append(whole[file.file])
        else:
            arrays.append(candidates[used : used + count])
            used += count
    return np.concatenate(arrays)


def _rewritten(folder: Path, file: File, rows: np.ndarray) -> bool:
    """Write an index file; kept if it is what it was, to the last byte."""
    path = folder / file.file
    path.parent.mkdir(parents=True, exist_ok=True)
    # The next build removes what is called so, should this one be killed.
    again = path.with_name(f"{path.stem}.again{files.TEMPORARY}")
    writer = files.ArrayWriter(again, rows.dtype, rows.shape[1])
    writer.append(rows)
    written = writer.close()
    if written.sha256 != file.sha256:
        again.unlink()
        return False
    os.replace(again, path)
    files.flush_folder(path.parent)
    return True


def _take_out(
    folder: Path,
    description: Description,
    damaged: dict[str, str],
    texts: Iterable[Any],
    teachers: Sequence[Teacher],
    roles: str | None,
) -> list[Damage]:
    """Take damaged shards out of the description, where they can be embedded again."""
    lost: list[Damage] = []
    given = {teacher.name for teacher in teachers}
    present: dict[str, set[int]] | None = None
    for name, entry in description.teachers.items():
        broken = [shard for shard in entry.shards if any(file.file in damaged for file in shard.files)]
        if broken and present is None:
            present = _present(folder, description, texts, roles)
        kept = [shard for shard in entry.shards if shard not in broken]
        for shard in broken:
            file = next(file.file for file in shard.files if file.file in damaged)
            askable = {
                number
                for role, numbers in (present or {}).items()
                if entry.roles.get(role) == shard.variant
                for number in numbers
            }
            missing = _wanted(folder, description, entry, shard, damaged) - askable
            if name not in given:
                why = f"and teacher '{name}' is not given to embed its texts again"
            elif missing:
                why = f"and {len(missing)} of its texts are not given to embed them again"
            else:
                continue
            lost.append(Damage(file, f"{damaged[file]}, {why}"))
            kept.append(shard)
        description.teachers[name] = replace(entry, shards=[shard for shard in entry.shards if shard in kept])
    return lost


def _present(folder: Path, description: Description, texts: Iterable[Any], roles: str | None) -> dict[str, set[int]]:
    """By role, the numbers of those of the store's texts that are given."""
    table = Hashes()
    for part in description.index:
        table.add(np.load(folder / part.hashes.file, allow_pickle=False))
    found: dict[str, set[int]] = {}
    for chunk, chunk_roles in read_texts(texts, roles):
        for role, number in zip(chunk_roles, table.find(hash_texts(chunk)).tolist()):
            found.setdefault(role, set()).add(number)
    return found


def _wanted(
    folder: Path, description: Description, entry: Entry, shard: TeacherShard, damaged: dict[str, str]
) -> set[int]:
    """Numbers of the texts whose vectors a damaged shard held."""

    def texts_of(shard: TeacherShard) -> set[int]:
        return set(np.load(folder / shard.texts.file, allow_pickle=False).tolist())

    if shard.texts.file not in damaged:
        return texts_of(shard)
    # Which they were is lost: those that have the shard's prompt, and that no other shard has.
    roles = [number for number, role in enumerate(description.roles) if entry.roles.get(role) == shard.variant]
    pairs = np.concatenate([np.load(folder / part.pairs.file, allow_pickle=False) for part in description.index])
    wanted = set(pairs[np.isin(pairs[:, 1], roles), 0].tolist())
    for other in entry.shards:
        if other.variant == shard.variant and other.texts.file not in damaged:
            wanted -= texts_of(other)
    return wanted
