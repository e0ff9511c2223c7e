"""What is damaged in a store, found file by file, and mended: index files from the texts, vectors by the teachers."""

from __future__ import annotations

import contextlib
import copy
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st_distill import files
from st_distill.arrays import ArrayWriter, read_array_header
from st_distill.store.build import SHARD_ROWS, SHARD_SECONDS, Builder, set_aside
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
    known_to_the_copy_alone,
    read_description,
    write_description,
)
from st_distill.store.processes import Alone, enter, journals
from st_distill.store.texts import INSTEAD_OF_LINK, check_create, check_links, links_in, prepare_folder, read_texts
from st_distill.teacher import Teacher, Variant

__all__ = ["Damage", "check_vectors", "find_damage", "mend_store"]

_ROWS = 4096  # vectors looked at together
_EMBED = "embed what is missing: st-distill embed RECIPE, or TeacherStore.create with the same texts and teachers"
_UNIT = 0.05  # how far from 1 a length may be: int8 rounds most, by less than this


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not what was written, by its name in the store's folder, and in what way.

    ``remedy`` stands where mending the store is none.
    """

    file: str
    what: str
    remedy: str | None = None


def find_damage(folder: str | os.PathLike[str], zeros: Counter[str] | None = None) -> list[Damage]:
    """Everything that is wrong with a store: each file's presence, size, checksum, shape, dtype and values, and rows that have
    no vector of a teacher that has others in their role.

    Reads every byte. The lengths of vectors are looked at too: each is 1, or 0. Those of length 0, which are no damage, are
    counted in ``zeros`` by teacher.
    """
    zeros = Counter() if zeros is None else zeros
    folder = Path(folder)
    if links := links_in(folder):  # what they lead to is nobody's business here
        what = "a link leads out of the store"
        return [Damage(link.relative_to(folder).as_posix(), what, INSTEAD_OF_LINK) for link in links]
    path, second = folder / DESCRIPTION, files.copy_of(folder / DESCRIPTION)
    try:
        description = read_description(folder)
    except (OSError, ValueError) as error:
        if not path.exists() and not second.exists():
            return [Damage(DESCRIPTION, "there is none yet: the first build is running, or was stopped", _EMBED)]
        return [Damage(DESCRIPTION, _without_remedy(error, path, folder))]
    found = []
    try:
        files.read_record(second)
    except FileNotFoundError:
        found.append(Damage(second.name, "there is no such file"))
    except ValueError as error:
        found.append(Damage(second.name, _without_remedy(error, second, folder)))
    if names := known_to_the_copy_alone(folder, description):
        what = f"it is older than its copy, which names {len(names)} more of the files of vectors, the first {names[0]}"
        found.append(Damage(DESCRIPTION, what))
    for journal in journals(folder):
        with contextlib.suppress(FileNotFoundError):  # of a build that has ended since
            try:
                enter(folder, description, journal)
            except ValueError as error:
                name = journal.relative_to(folder).as_posix()
                found.append(Damage(name, _without_remedy(error, journal, folder)))
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
    return found + list(_missing_vectors(folder, description, {damage.file for damage in found}))


def _without_remedy(error: Exception, path: Path, folder: Path) -> str:
    return str(error).removesuffix(f" {files.restoring(path, folder)}").removesuffix(".")


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
    show_progress: bool = True,
) -> list[Damage]:
    """Mend a store as far as the given texts and teachers go.

    The description and journals come back from their copies, index files from the texts, if these give them to the last byte.
    Vectors that are damaged or missing are embedded as by `TeacherStore.create`; a damaged file stays until all its texts
    have a vector in another one. Only for the holder of the store's lock.

    Args:
        folder: of the store.
        texts, teachers, roles, show_progress: as `TeacherStore.create` takes them; of teachers, those that the store has.

    Returns:
        What is damaged still, and why.

    Raises:
        ValueError: a teacher is not the one of its name whose vectors are stored.
    """
    folder = Path(folder)
    check_links(folder)
    _mend_description(folder)
    try:
        description = read_description(folder)
    except (OSError, ValueError):
        (damage,) = find_damage(folder)
        if damage.remedy is None:
            remedy = "restore one of them, or embed all texts again in a new folder"
            damage = Damage(DESCRIPTION, f"{damage.what}. Its copy cannot be read either", remedy)
        return [damage]
    prepare_folder(folder)
    _mend_journals(folder, description)
    damaged = {damage.file: damage.what for damage in find_damage(folder)}
    lost = {damage.file: damage for damage in _mend_index(folder, description, damaged, texts, roles)}
    # The copy too, if it was what is damaged.
    write_description(folder, description)
    missing = {} if lost else _embed(folder, description, damaged, texts, teachers, roles, show_progress)
    return [lost.get(damage.file) or _explained(folder, damage, teachers, missing) for damage in find_damage(folder)]


def _mend_description(folder: Path) -> None:
    path = folder / DESCRIPTION
    try:
        is_wrong = bool(known_to_the_copy_alone(folder, read_description(folder)))
    except (OSError, ValueError):
        is_wrong = True
    if is_wrong:
        _restore(path)


def _restore(path: Path) -> None:
    """Bring a record back from its copy, if this is whole."""
    with contextlib.suppress(OSError, ValueError):
        files.write_record(path, files.read_record(files.copy_of(path)))


def _mend_journals(folder: Path, description: Description) -> None:
    """Bring damaged journals back from their copies, or put them aside, so that they stand in no build's way."""

    def is_whole(journal: Path) -> bool:
        try:
            enter(folder, copy.deepcopy(description), journal)
        except ValueError:
            return False
        return True

    for journal in journals(folder):
        if not is_whole(journal):
            _restore(journal)
            if not is_whole(journal):
                set_aside(folder, [journal])


def _embed(
    folder: Path,
    description: Description,
    damaged: Container[str],
    texts: Iterable[Any],
    teachers: Sequence[Teacher],
    roles: str | None,
    show_progress: bool,
) -> dict[str, int]:
    """Embed what is damaged or missing; as `Builder.take_out`, of all files that stay."""
    missing: dict[str, int] = {}
    for dtype in sorted({entry.dtype for entry in description.teachers.values()}):
        known = {name for name, entry in description.teachers.items() if entry.dtype == dtype}
        if same := [teacher for teacher in teachers if teacher.name in known]:
            check_create(texts, same, roles, dtype, SHARD_ROWS, SHARD_SECONDS, (0, 1))
            builder = Builder(folder, same, Alone(folder), dtype=dtype, show_progress=show_progress, damaged=damaged)
            builder.build(texts, roles)
            missing |= builder.take_out()
    return missing


def _explained(folder: Path, damage: Damage, teachers: Sequence[Teacher], missing: dict[str, int]) -> Damage:
    """A damage of vectors, with why it was not mended and what mends it: another run may share the store."""
    given = {teacher.name for teacher in teachers}
    for name, _, shard in _shards(read_description(folder)):
        if shard.is_among([damage.file]):
            why = None
            if name not in given:
                why = f"teacher '{name}' is not given to embed its texts again"
            elif count := missing.get(shard.vectors.file):
                why = f"{count} of its texts are not given to embed them again"
            if why is not None:
                remedy = "repair it with the recipe that has them (--recipe FILE), or restore the file from a copy"
                return Damage(damage.file, f"{damage.what}, and {why}", remedy)
    return damage


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
        header = read_array_header(path)
    except ValueError as error:
        return [Damage(file.file, str(error).removesuffix("."))]
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


def _missing_vectors(folder: Path, description: Description, damaged: Container[str]) -> Iterator[Damage]:
    """Teachers that have no vector of some rows, as far as undamaged files tell."""
    if not description.index or any(
        part.hashes.file in damaged or part.pairs.file in damaged for part in description.index
    ):
        return
    hashes = np.concatenate([_loaded(folder, part.hashes) for part in description.index])
    pairs = np.concatenate([_loaded(folder, part.pairs) for part in description.index])
    try:
        Hashes().add(hashes)
    except ValueError as error:
        yield Damage("index", str(error), "embed all texts again in a new folder")
    for name, entry in description.teachers.items():
        if any(shard.texts.file in damaged for shard in entry.shards):
            continue
        has: dict[Variant, np.ndarray] = {}
        for shard in entry.shards:
            has.setdefault(shard.variant, np.zeros(len(hashes), dtype=bool))[_loaded(folder, shard.texts)] = True
        count = 0
        for number, role in enumerate(description.roles):
            if role in entry.roles or not entry.shards:
                of_role = pairs[pairs[:, 1] == number, 0]
                with_vector = has.get(entry.roles[role]) if role in entry.roles else None
                count += len(of_role) if with_vector is None else int((~with_vector[of_role]).sum())
        if count:
            what = (
                f"{count} of the {len(pairs)} rows have no vector of this teacher: a build is running, or was stopped"
            )
            yield Damage(f"teachers/{name}", what, _EMBED)


def _loaded(folder: Path, file: File) -> np.ndarray:
    return np.load(folder / file.file, allow_pickle=False)


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
    undamaged = [file for file, _ in parts if file.file not in damaged]
    whole = {file.file: _loaded(folder, file) for file in undamaged}
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
    again = path.with_name(f"{path.stem}.again.{os.getpid()}{files.TEMPORARY}")
    writer = ArrayWriter(again, rows.dtype, rows.shape[1])
    writer.append(rows)
    written = writer.close()
    if written.sha256 != file.sha256:
        again.unlink()
        return False
    os.replace(again, path)
    files.flush_folder(path.parent)
    return True
