"""How a `TeacherStore` is written: what is missing is found, embedded, and added, shard by shard."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np

from st_distill import files
from st_distill.store.format import (
    DESCRIPTION,
    DTYPES,
    HASH_BYTES,
    Column,
    Contents,
    Description,
    Entry,
    File,
    IndexShard,
    TeacherShard,
    hash_texts,
    read_description,
)
from st_distill.teacher import Teacher, Variant
from st_distill.vectors import missing_sentence, shorten

CHUNK = 4096  # texts that are looked up at a time
_MODEL_CALL = 1024  # texts that a model is given at a time, so that only their vectors are in memory
_OUR_FILES = re.compile(r"\d{5,}(\.[a-z]+)?\.npy")


def check_create(texts: Any, teachers: Any, roles: Any, dtype: str, shard_rows: Any) -> None:
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise TypeError(
            "The 'texts' of TeacherStore.create must be strings or (text, role) pairs, in a list or any other iterable. "
            f"Got {type(texts).__name__} instead."
        )
    if not isinstance(teachers, Sequence) or not all(isinstance(teacher, Teacher) for teacher in teachers):
        raise TypeError("The 'teachers' of TeacherStore.create must be Teacher objects: Teacher(model), say.")
    names = [teacher.name for teacher in teachers]
    if not names or len({name.casefold() for name in names}) < len(names):
        raise ValueError(
            f"The 'teachers' of TeacherStore.create must be one at least, with distinct names (upper and lower case are "
            f"one, as on some disks). Got the names {names} instead; choose others by Teacher(..., name=...)."
        )
    if roles is not None and (not isinstance(roles, str) or not roles):
        raise TypeError(
            f"The 'roles' of TeacherStore.create must be the name of a role for all texts, or None. Got {roles!r} instead; for "
            "several roles give (text, role) pairs."
        )
    if dtype not in DTYPES:
        raise ValueError(
            f"The 'dtype' of TeacherStore.create must be one of {', '.join(DTYPES)}. Got {dtype!r} instead."
        )
    if isinstance(shard_rows, bool) or not isinstance(shard_rows, int) or shard_rows < 1:
        raise ValueError(
            f"The 'shard_rows' of TeacherStore.create must be a whole number from 1. Got {shard_rows!r} instead."
        )


def prepare_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"The 'path' of TeacherStore.create must be a folder. {folder} is a file: choose another name."
        )
    folder.mkdir(parents=True, exist_ok=True)
    present = {entry.name for entry in os.scandir(folder) if not entry.name.endswith(files.TEMPORARY)}
    if DESCRIPTION not in present and present - {files.FolderLock.NAME}:
        raise ValueError(
            f"The 'path' of TeacherStore.create must be a store, or a new or empty folder. {folder} is neither: it has other "
            "files; choose another folder."
        )


def _read_texts(texts: Iterable[Any], roles: str | None) -> Iterator[tuple[list[str], list[str]]]:
    """Texts and their roles, a chunk at a time, checked."""
    default = roles or ""
    position = 0
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        chunk_texts, chunk_roles = [], []
        for place, item in enumerate(chunk, start=position):
            if isinstance(item, str):
                text, role = item, default
            elif roles is None and isinstance(item, tuple | list) and len(item) == 2:
                text, role = item[0], "" if item[1] is None else item[1]
            else:
                text = role = None  # type: ignore[assignment]
            if not isinstance(text, str) or not isinstance(role, str):
                expected = "a string or a (text, role) pair of strings" if roles is None else "a string"
                raise TypeError(
                    f"Every item of the 'texts' must be {expected}. Got {shorten(repr(item))} of type {type(item).__name__} at "
                    f"position {place}."
                )
            chunk_texts.append(text)
            chunk_roles.append(role)
        yield chunk_texts, chunk_roles
        position += len(chunk)


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """Places of the first occurrence of each value, in order."""
    return np.sort(np.unique(values, return_index=True)[1])


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The rows at unit length, zeros as they are."""
    # By the largest entry first: the squares of large numbers overflow float32, those of small ones vanish.
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    lengths = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    return np.divide(scaled, lengths, out=scaled, where=lengths > 0)


class _Shard:
    """A file of vectors, and that of their text numbers, being written."""

    def __init__(self, path: Path, dtype: str, dimension: int, variant: Variant) -> None:
        self.path = path
        self.variant = variant
        self.numbers: list[np.ndarray] = []
        self.started = time.monotonic()
        self._writer = files.ArrayWriter(path, DTYPES[dtype], dimension)

    @property
    def rows(self) -> int:
        return self._writer.rows

    def append(self, vectors: np.ndarray, numbers: np.ndarray) -> None:
        self._writer.append(_unit_rows(vectors))
        self.numbers.append(numbers)

    def close(self, folder: Path) -> TeacherShard:
        vectors = self._writer.close()
        texts_path = self.path.with_suffix(".texts.npy")
        texts = files.write_array(texts_path, np.concatenate(self.numbers))
        return TeacherShard(
            self.rows,
            *self.variant,
            File(self.path.relative_to(folder).as_posix(), *vectors),
            File(texts_path.relative_to(folder).as_posix(), *texts),
        )

    def discard(self) -> None:
        self._writer.discard()


class _Queue:
    """Texts that one teacher still has to embed, with one prompt."""

    def __init__(self, teacher: Teacher, variant: Variant) -> None:
        self.teacher, self.variant = teacher, variant
        self.numbers: list[int] = []
        self.texts: list[str] = []


class Builder:
    """One call of `TeacherStore.create`, while it holds the lock."""

    def __init__(
        self,
        folder: Path,
        teachers: list[Teacher],
        dtype: str,
        shard_rows: int,
        shard_seconds: float,
        show_progress: bool,
    ) -> None:
        self.folder = folder
        self.teachers = teachers
        self.dtype = dtype
        self.shard_rows = shard_rows
        self.shard_seconds = shard_seconds
        self.show_progress = show_progress
        exists = (folder / DESCRIPTION).exists()
        self.contents = Contents(folder, read_description(folder) if exists else Description())
        self.description = self.contents.description
        self._remove_leftovers()
        self._texts = len(self.contents.hashes)
        self._rows = len(self.contents.pairs)
        self._new_hashes: list[np.ndarray] = []
        self._new_pairs: list[np.ndarray] = []
        self._changed = not exists
        self._enter_teachers()

    def build(self, texts: Iterable[Any], roles: str | None) -> None:
        self._commit()
        # Only what can be started anew can be given to one teacher after another.
        passes = [self.teachers] if iter(texts) is texts else [[teacher] for teacher in self.teachers]
        for teachers in passes:
            try:
                self._embed(texts, roles, teachers)
            finally:
                for teacher in teachers:
                    teacher.release()
        if not self._rows:
            raise ValueError("The 'texts' of TeacherStore.create must be one at least. Got none.")

    # -- teachers

    def _enter_teachers(self) -> None:
        entries = self.description.teachers
        given = {teacher.name for teacher in self.teachers}
        for name in [name for name, entry in entries.items() if not entry.shards and name not in given]:
            # A teacher that failed before its first vector, and is not asked again.
            del entries[name]
            self._changed = True
        for teacher in self.teachers:
            known = entries.get(teacher.name)
            if known is not None and known.shards:
                self._check_identity(teacher, known)
                continue
            if alike := [
                name for name in entries if name != teacher.name and name.casefold() == teacher.name.casefold()
            ]:
                raise ValueError(
                    f"The name of teacher '{teacher.name}' must differ from '{alike[0]}' in the store {self.folder} by more "
                    "than upper and lower case. Choose another: Teacher(..., name=...)."
                )
            entry = Entry(teacher.label, teacher.revision, teacher.settings, None, self.dtype)
            if known != entry:
                entries[teacher.name] = entry
                self._changed = True

    def _check_identity(self, teacher: Teacher, known: Entry) -> None:
        compared = [
            ("revision", known.revision, teacher.revision),
            ("settings", known.settings, teacher.settings),
            ("dtype", known.dtype, self.dtype),
        ]
        for what, stored, given in compared:
            if stored != given:
                raise self._other_teacher(teacher, f"the {what}", stored, given)

    def _other_teacher(self, teacher: Teacher, what: str, stored: Any, given: Any) -> ValueError:
        return ValueError(
            f"Teacher '{teacher.name}' must have {what} {stored!r}, with which its vectors were stored in {self.folder}. "
            f"Got {given!r} instead; give it another name by Teacher(..., name=...), or use a new folder."
        )

    def _variant(self, teacher: Teacher, role: str) -> Variant:
        known = self.description.teachers[teacher.name].roles
        variant = teacher.variant(role or None)
        if role not in known:
            known[role] = variant
            self._changed = True
        elif known[role] != variant:
            of_role = f"for the role {role!r}" if role else "for texts without a role"
            what, stored, given = "the prompt", known[role].prompt, variant.prompt
            if stored == given:
                what, stored, given = "the task", str(known[role].task), str(variant.task)
            raise self._other_teacher(teacher, f"{what} {of_role}", stored, given)
        return variant

    # -- texts

    def _embed(self, texts: Iterable[Any], roles: str | None, teachers: list[Teacher]) -> None:
        from tqdm import tqdm

        queues: dict[tuple[str, Variant], _Queue] = {}
        wanted = {teacher.name: Column() for teacher in teachers if teacher.is_stored}
        variants: dict[tuple[str, str], Variant] = {}
        with tqdm(
            total=len(texts) * len(teachers) if isinstance(texts, Sized) else None,
            desc=", ".join(teacher.name for teacher in teachers),
            unit=" texts",
            file=sys.stderr,
            disable=not self.show_progress,
            mininterval=0.1 if sys.stderr is not None and sys.stderr.isatty() else 30.0,
            smoothing=0.05,
        ) as bar:
            for chunk, chunk_roles in _read_texts(texts, roles):
                numbers = self._register(chunk, chunk_roles)
                by_role = _places(chunk_roles)
                for teacher in teachers:
                    queued = 0
                    for role, places in by_role.items():
                        if (teacher.name, role) not in variants:
                            variants[teacher.name, role] = self._variant(teacher, role)
                        variant = variants[teacher.name, role]
                        missing = self._claim(teacher, variant, numbers, places)
                        queued += len(missing)
                        if teacher.is_stored:
                            wanted[teacher.name].set(numbers[missing], 1)
                            continue
                        queue = queues.setdefault((teacher.name, variant), _Queue(teacher, variant))
                        queue.numbers += numbers[missing].tolist()
                        queue.texts += [chunk[place] for place in missing]
                    if bar.total is not None:  # what is there already is no work, and must not flatter the rate
                        bar.total -= len(chunk) - queued
                for queue in queues.values():
                    while len(queue.texts) >= self.shard_rows:
                        self._ask(queue, bar)
            for queue in queues.values():
                while queue.texts:
                    self._ask(queue, bar)
            for teacher in teachers:
                if teacher.is_stored:
                    self._import(teacher, wanted[teacher.name], texts, roles, bar)
            self._commit()

    def _register(self, texts: list[str], roles: list[str]) -> np.ndarray:
        """Text numbers (texts,); new texts and new rows get the next ones."""
        hashes = hash_texts(texts)
        numbers = self.contents.table.find(hashes)
        fresh: dict[bytes, int] = {}
        for place in np.flatnonzero(numbers < 0).tolist():
            numbers[place] = fresh.setdefault(hashes[place].tobytes(), self._texts + len(fresh))
        if fresh:
            added = np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, HASH_BYTES)
            self.contents.table.add(added, self._texts)
            self._new_hashes.append(added)
            self._texts += len(fresh)
        for role, places in _places(roles).items():
            if role not in self.description.roles:
                self.contents.rows_by_role.append(Column())
                self.description.roles.append(role)
            number = self.description.roles.index(role)
            column = self.contents.rows_by_role[number]
            of_role = numbers[places]
            without = of_role[column.get(of_role) < 0]
            without = without[_first_of_each(without)]
            if len(without):
                column.set(without, np.arange(self._rows, self._rows + len(without)))
                self._new_pairs.append(np.stack([without, np.full(len(without), number)], axis=1))
                self._rows += len(without)
        return numbers

    def _claim(self, teacher: Teacher, variant: Variant, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Those of the places whose text the teacher neither has embedded nor was already told to."""
        column = self.contents.positions.setdefault(teacher.name, {}).setdefault(variant, Column())
        missing = places[column.get(numbers[places]) < 0]
        missing = missing[_first_of_each(numbers[missing])]
        column.set(numbers[missing], 0)
        return missing

    def _ask(self, queue: _Queue, bar: Any) -> None:
        """Embed a shard's worth of a queue."""
        texts, queue.texts = queue.texts[: self.shard_rows], queue.texts[self.shard_rows :]
        numbers, queue.numbers = queue.numbers[: self.shard_rows], queue.numbers[self.shard_rows :]
        # Texts of like length in a batch waste little padding; the longest first, so that memory runs out at once if ever.
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(order), _MODEL_CALL):
                places = order[start : start + _MODEL_CALL]
                done = 0
                for vectors in queue.teacher.encode_blocks([texts[place] for place in places], queue.variant):
                    block = places[done : done + len(vectors)]
                    yield vectors, np.array([numbers[place] for place in block], dtype=np.int64)
                    done += len(vectors)

        self._write(queue.teacher, queue.variant, blocks(), bar)

    def _import(self, teacher: Teacher, wanted: Column, texts: Iterable[Any], roles: str | None, bar: Any) -> None:
        """Take over the vectors of the wanted texts from where they are."""
        flags = wanted.get(np.arange(self._texts))

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for block_texts, vectors in teacher.blocks():
                numbers = self.contents.table.find(hash_texts(block_texts))
                places = np.flatnonzero(numbers >= 0)
                places = places[flags[numbers[places]] > 0]
                places = places[_first_of_each(numbers[places])]
                flags[numbers[places]] = -1
                if len(places):
                    yield vectors[places], numbers[places]
                if not (flags > 0).any():
                    return

        if not (flags > 0).any():
            return
        self._write(teacher, teacher.variant(), blocks(), bar)
        if count := int((flags > 0).sum()):
            number = int(np.argmax(flags > 0))
            raise ValueError(missing_sentence(teacher.label, count, self._text(number, texts, roles)))

    def _text(self, number: int, texts: Iterable[Any], roles: str | None) -> str:
        """A text by its number; only its hash is kept, so the texts are gone through again, where they can be."""
        if iter(texts) is not texts:
            for chunk, _ in _read_texts(texts, roles):
                found = np.flatnonzero(self.contents.table.find(hash_texts(chunk)) == number)
                if len(found):
                    return chunk[found[0]]
        return f"text number {number}"

    # -- files

    def _write(
        self, teacher: Teacher, variant: Variant, blocks: Iterator[tuple[np.ndarray, np.ndarray]], bar: Any
    ) -> None:
        """Write vectors and their text numbers to shards, each committed when it is full."""
        shard: _Shard | None = None
        try:
            for vectors, numbers in blocks:
                if shard is None:
                    shard = self._new_shard(teacher, variant, vectors.shape[1])
                shard.append(vectors, numbers)
                bar.update(len(numbers))
                if shard.rows >= self.shard_rows or time.monotonic() - shard.started >= self.shard_seconds:
                    self._finish(teacher, shard)
                    shard = None
        except BaseException:
            # What the teacher has answered before it failed was paid for; it is kept if the disk still takes it.
            if shard is not None:
                try:
                    self._finish(teacher, shard)
                except Exception:
                    shard.discard()
            raise
        if shard is not None:
            self._finish(teacher, shard)

    def _new_shard(self, teacher: Teacher, variant: Variant, dimension: int) -> _Shard:
        entry = self.description.teachers[teacher.name]
        if entry.dimension not in (None, dimension):
            raise self._other_teacher(teacher, "the dimension", entry.dimension, dimension)
        entry.dimension = dimension
        path = self._next(f"teachers/{teacher.name}", [shard.vectors.file for shard in entry.shards])
        return _Shard(path.with_suffix(".npy"), entry.dtype, dimension, variant)

    def _finish(self, teacher: Teacher, shard: _Shard) -> None:
        closed = shard.close(self.folder)
        self.description.teachers[teacher.name].shards.append(closed)
        self._changed = True
        self._commit()

    def _next(self, folder: str, named: list[str]) -> Path:
        """The next free number in a folder, which is made."""
        taken = [int(match[0]) for file in named if (match := re.match(r"\d+", file.rpartition("/")[2]))]
        parent = self.folder / folder
        parent.mkdir(parents=True, exist_ok=True)
        return parent / f"{max(taken, default=-1) + 1:05d}"

    def _commit(self) -> None:
        """Make everything so far part of the store."""
        if self._new_hashes or self._new_pairs:
            hashes = np.concatenate([np.empty((0, HASH_BYTES), np.uint8), *self._new_hashes])
            pairs = np.concatenate(self._new_pairs)
            path = self._next("index", [shard.hashes.file for shard in self.description.index])
            written = {}
            for kind, array in [("hashes", hashes), ("pairs", pairs)]:
                target = path.with_name(f"{path.name}.{kind}.npy")
                written[kind] = File(target.relative_to(self.folder).as_posix(), *files.write_array(target, array))
            self.description.index.append(IndexShard(len(hashes), len(pairs), written["hashes"], written["pairs"]))
            self._new_hashes, self._new_pairs = [], []
            self._changed = True
        if self._changed:
            files.write_json(self.folder / DESCRIPTION, self.description.to_json())
            self._changed = False

    def _remove_leftovers(self) -> None:
        """Remove what a killed build left: unfinished files, and finished ones that it could not enter any more."""
        named = {file.file for shard in self.description.index for file in (shard.hashes, shard.pairs)}
        for entry in self.description.teachers.values():
            named |= {file.file for shard in entry.shards for file in (shard.vectors, shard.texts)}
        teachers = self.folder / "teachers"
        folders = [self.folder, self.folder / "index", *(sorted(teachers.iterdir()) if teachers.is_dir() else [])]
        for folder in folders:
            if not folder.is_dir() or folder.is_symlink():
                continue
            files.remove_leftovers(folder)
            if folder == self.folder:
                continue
            for path in folder.iterdir():
                if _OUR_FILES.fullmatch(path.name) and path.relative_to(self.folder).as_posix() not in named:
                    path.unlink()


def _places(values: list[str]) -> dict[str, np.ndarray]:
    """Places of each value, in order; the values in order of their first place."""
    first = values[0]
    if values.count(first) == len(values):
        return {first: np.arange(len(values))}
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return {value: np.array(found) for value, found in places.items()}
