"""How a `TeacherStore` is written: what is missing is found, embedded, and added, shard by shard."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import time
from collections.abc import Container, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from st_distill import files
from st_distill.arrays import read_array_header
from st_distill.progress import TextsProgress
from st_distill.stopping import uninterrupted
from st_distill.store.changed import changed_text
from st_distill.store.format import (
    ASIDE,
    DESCRIPTION,
    HASH_BYTES,
    Column,
    Contents,
    Description,
    Entry,
    File,
    TeacherShard,
    hash_texts,
    known_to_the_copy_alone,
    read_description,
    write_description,
)
from st_distill.store.processes import Alone, Leader, Member, adopt, enter
from st_distill.store.shards import NewIndexShard, NewTeacherShard, close
from st_distill.store.texts import check_new_roles, read_texts
from st_distill.teacher import Teacher, Variant
from st_distill.vectors import missing_sentence, shorten

logger = logging.getLogger(__name__)

SHARD_ROWS = 16384
SHARD_SECONDS = 600.0
#: What gives a teacher another name, for a sentence.
_NAMING = "its 'name' in the recipe (in Python Teacher(..., name=...))"
_OUR_FILES = re.compile(r"\d{5,}(-\d+)?(\.[a-z]+)?\.npy")


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """Places of the first occurrence of each value, in order."""
    return np.sort(np.unique(values, return_index=True)[1])


class _Queue:
    """Texts that one teacher still has to embed, with one prompt."""

    def __init__(self, teacher: Teacher, variant: Variant) -> None:
        self.teacher, self.variant = teacher, variant
        self.numbers: list[int] = []
        self.texts: list[str] = []


class _Zeros:
    """The vectors of length 0 that one teacher has given in a build."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def look_at(self, vectors: np.ndarray, texts: Sequence[str], places: np.ndarray) -> None:
        """Count those among ``vectors``, (n, dimension), whose texts are at ``places``, (n,), of ``texts``."""
        rows = np.flatnonzero(vectors[:, 0] == 0)  # few, so that hardly a vector is looked at whole
        rows = rows[~vectors[rows].any(axis=1)]
        if len(rows) and not self.count:
            self.first = texts[places[rows[0]]]
        self.count += len(rows)


class _Repeats:
    """Texts that come with several vectors where the vectors of one teacher lie.

    Args:
        texts: how many the store has.
    """

    def __init__(self, texts: int) -> None:
        self.numbers: set[int] = set()
        self.first = ""
        self._digests = np.zeros(texts, dtype=np.int64)

    def look_at(self, vectors: np.ndarray, numbers: np.ndarray, texts: Sequence[str]) -> None:
        """Compare ``vectors``, (n, dimension), with those that came before for the same of the texts, (n,)."""
        for row, number in enumerate(numbers.tolist()):
            if number < 0:
                continue
            digest = hash(vectors[row].tobytes()) or 1
            if not self._digests[number]:
                self._digests[number] = digest
            elif self._digests[number] != digest:
                self.first = self.first or texts[row]
                self.numbers.add(number)


class Builder:
    """One call of `TeacherStore.create`: by the process that holds the lock, or by another of several processes.

    Files that are known to be ``damaged``, by their names, count as missing. They stay until `take_out`.
    """

    def __init__(
        self,
        folder: Path,
        teachers: list[Teacher],
        process: Alone,
        *,
        dtype: str,
        shard_rows: int = SHARD_ROWS,
        shard_seconds: float = SHARD_SECONDS,
        show_progress: bool,
        damaged: Container[str] = (),
    ) -> None:
        self.folder = folder
        self.teachers = teachers
        self.process = process
        self.dtype = dtype
        self.shard_rows = shard_rows
        self.shard_seconds = shard_seconds
        self.show_progress = show_progress
        self._damaged = damaged
        self._leads = not isinstance(process, Member)
        exists = (folder / DESCRIPTION).exists()
        self.description = read_description(folder) if exists else Description()
        # A build that was killed between the two files has left the first alone.
        self._changed = self._leads and exists and not files.copy_of(folder / DESCRIPTION).exists()
        if self._leads:
            self._check_age()
        if self._leads and (remove := adopt(folder, self.description, process)) is not None:
            write_description(folder, self.description)
            remove()
        self.contents = Contents(folder, self.description, without=damaged)
        self._texts = len(self.contents.hashes)
        self._rows = len(self.contents.pairs)
        self._new_hashes: list[np.ndarray] = []
        self._new_pairs: list[np.ndarray] = []
        self._variants: dict[tuple[str, str], Variant] = {}
        self._zeros = {teacher.name: _Zeros() for teacher in teachers}
        self._shared = 0  # vectors that all processes together have to add
        self._finished: dict[str, list[TeacherShard]] = {teacher.name: [] for teacher in teachers}
        self._enter_teachers()
        if self._leads:
            self._remove_leftovers()

    def build(self, texts: Iterable[Any], roles: str | None) -> None:
        if self._leads:
            for teacher in self.teachers:
                self._check_unchanged(teacher)
        if isinstance(self.process, Leader):
            for chunk, chunk_roles in read_texts(texts, roles):
                self._register(chunk, chunk_roles)
                for role in set(chunk_roles):
                    for teacher in self.teachers:
                        self._variant(teacher, role)
            self._changed = True
            self._commit()
            self.process.start()
        # Only what can be started anew can be given to one teacher after another.
        passes = [self.teachers] if iter(texts) is texts else [[teacher] for teacher in self.teachers]
        for teachers in passes:
            try:
                self._embed(texts, roles, teachers)
            finally:
                for teacher in teachers:
                    teacher.release()
                    self._tell_zeros(teacher)
        if isinstance(self.process, Member):
            self.process.finish()
        if isinstance(self.process, Leader):
            self._take_over(self.process.finish())
        if not self._rows:
            raise ValueError("The 'texts' of TeacherStore.create must be one at least. Got none.")

    def take_out(self) -> dict[str, int]:
        """Remove damaged files of vectors whose texts all have a vector in others by now.

        Returns:
            Of those that stay, by the name of the file of vectors, how many texts have none.
        """
        left: dict[str, int] = {}
        removed: list[File] = []
        for name, entry in self.description.teachers.items():
            for shard in [shard for shard in entry.shards if shard.is_among(self._damaged)]:
                column = self.contents.positions[name].get(shard.variant, Column())
                if missing := int((column.get(self._texts_of(entry, shard)) < 0).sum()):
                    left[shard.vectors.file] = missing
                else:
                    entry.shards.remove(shard)
                    removed += shard.files
        if removed:
            self._write_description()
        for file in removed:
            (self.folder / file.file).unlink(missing_ok=True)
        return left

    def _texts_of(self, entry: Entry, shard: TeacherShard) -> np.ndarray:
        """Numbers of the texts whose vectors a shard has; where these are lost, of all that it may have."""
        if shard.texts.file not in self._damaged:
            return np.load(self.contents.path(shard.texts), allow_pickle=False)
        roles = [number for number, role in enumerate(self.description.roles) if entry.roles.get(role) == shard.variant]
        pairs = self.contents.pairs
        return np.unique(pairs[np.isin(pairs[:, 1], roles), 0])

    def _take_over(self, journals: list[Path]) -> None:
        """Enter what the other processes have embedded."""
        added = sum(shard.rows for shards in self._finished.values() for shard in shards)
        added += sum(enter(self.folder, self.description, journal) for journal in journals)
        self._changed = True
        self._commit()
        if added != self._shared:
            raise ValueError(
                f"The 'texts' of TeacherStore.create must be the same in all {self.process.count} processes. Got "
                f"{added} new vectors of the {self._shared} that process 0 counted; give every process all texts."
            )

    def _tell_zeros(self, teacher: Teacher) -> None:
        zeros = self._zeros[teacher.name]
        if zeros.count:
            logger.warning(
                "Teacher '%s' has given vectors of length 0, which have no direction to learn, for %d of the texts, the first "
                "%s. They are kept, and nothing becomes NaN: such a text learns from the other teachers alone; where none has "
                "a vector for it, the cosine term leaves it out, and the other two teach that it is unlike every text. Such a "
                "text is mostly empty, or has no word that the teacher knows; if that is not meant, leave it out.",
                teacher.name,
                zeros.count,
                shorten(zeros.first),
            )

    # -- teachers

    def _enter_teachers(self) -> None:
        entries = self.description.teachers
        given = {teacher.name for teacher in self.teachers}
        idle = [name for name, entry in entries.items() if not entry.shards and name not in given]
        for name in idle if self._leads else []:
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
                    f"than upper and lower case. Choose another by {_NAMING}."
                )
            entry = Entry(teacher.label, teacher.revision, teacher.settings, None, self.dtype)
            if not self._leads:
                if known is None:
                    raise ValueError(
                        f"The 'teachers' of TeacherStore.create must be the same in all {self.process.count} processes. "
                        f"Process {self.process.number} has '{teacher.name}', which process 0 has not."
                    )
                self._check_identity(teacher, known)
            elif known != entry:
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

    def _check_unchanged(self, teacher: Teacher) -> None:
        """Vectors that lie somewhere may have been written anew since the store took them over."""
        known = self.description.teachers[teacher.name]
        if not teacher.is_stored or not known.shards:
            return
        text = changed_text(self.contents, teacher.name, teacher.variant(), self._of_one_dimension(teacher, known))
        if text is not None:
            raise ValueError(
                f"Teacher '{teacher.name}' must have the vectors that were stored in {self.folder}. {teacher.label} has "
                f"another for {shorten(text)}: give the teacher another name, or use a new folder, and the new ones are read."
            )

    def _of_one_dimension(self, teacher: Teacher, known: Entry) -> Iterator[tuple[list[str], np.ndarray]]:
        for texts, vectors in teacher.blocks():
            if vectors.shape[1] != known.dimension:
                raise self._other_teacher(teacher, "the dimension", known.dimension, vectors.shape[1])
            yield texts, vectors

    def _other_teacher(self, teacher: Teacher, what: str, stored: Any, given: Any) -> ValueError:
        return ValueError(
            f"Teacher '{teacher.name}' must have {what} {stored!r}, with which its vectors were stored in {self.folder}. "
            f"Got {given!r} instead; give it another name by {_NAMING}, or use a new folder."
        )

    def _variant(self, teacher: Teacher, role: str) -> Variant:
        if (variant := self._variants.get((teacher.name, role))) is None:
            variant = self._variants[teacher.name, role] = self._checked_variant(teacher, role)
        return variant

    def _checked_variant(self, teacher: Teacher, role: str) -> Variant:
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
        queues: dict[tuple[str, Variant], _Queue] = {}
        wanted = {teacher.name: Column() for teacher in teachers if teacher.is_stored}
        with TextsProgress(
            ", ".join(teacher.name for teacher in teachers),
            total=len(texts) * len(teachers) if isinstance(texts, Sized) else None,
            show=self.show_progress and self._leads,
        ) as progress:
            for chunk, chunk_roles in read_texts(texts, roles):
                numbers = self._register(chunk, chunk_roles)
                by_role = _places(chunk_roles)
                for teacher in teachers:
                    queued = 0
                    for role, places in by_role.items():
                        variant = self._variant(teacher, role)
                        missing = self._claim(teacher, variant, numbers, places)
                        queued += len(missing)
                        if teacher.is_stored:
                            wanted[teacher.name].set(numbers[missing], 1)
                            continue
                        queue = queues.setdefault((teacher.name, variant), _Queue(teacher, variant))
                        queue.numbers += numbers[missing].tolist()
                        queue.texts += [chunk[place] for place in missing]
                    if progress.total is not None:  # what is there already is no work, and must not flatter the rate
                        progress.total -= len(chunk) - queued
                for queue in queues.values():
                    while len(queue.texts) >= self.shard_rows:
                        self._ask(queue, progress)
            for queue in queues.values():
                while queue.texts:
                    self._ask(queue, progress)
            for teacher in teachers:
                if teacher.is_stored:
                    self._import(teacher, wanted[teacher.name], texts, roles, progress)
            self._commit()

    def _register(self, texts: list[str], roles: list[str]) -> np.ndarray:
        """Text numbers (texts,); new texts and new rows get the next ones."""
        check_new_roles(texts, roles, self.description.roles)
        hashes = hash_texts(texts)
        numbers = self.contents.table.find(hashes)
        fresh: dict[bytes, int] = {}
        for place in np.flatnonzero(numbers < 0).tolist():
            numbers[place] = fresh.setdefault(hashes[place].tobytes(), self._texts + len(fresh))
        if fresh and not self._leads:
            raise ValueError(
                f"The 'texts' of TeacherStore.create must be the same in all {self.process.count} processes. Process "
                f"{self.process.number} has {len(fresh)} that process 0 has not; give every process all texts."
            )
        if fresh:
            added = np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, HASH_BYTES)
            self.contents.table.add(added)
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
        self._shared += len(missing)
        return missing[self._is_ours(teacher, numbers[missing])]

    def _is_ours(self, teacher: Teacher, numbers: np.ndarray) -> np.ndarray:
        """Which of the text numbers are this process's share.

        By chance, which is another in each build: the shares are even whatever is missing, in whatever order it comes.
        """
        if self.process.count == 1:
            return np.full(len(numbers), True)
        if teacher.is_stored:  # read once, not once by each process
            return np.full(len(numbers), self.process.number == 0)
        # The mixing function of splitmix64.
        mixed = numbers.astype(np.uint64) + np.uint64(self.process.salt)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (mixed ^ (mixed >> np.uint64(31))) % np.uint64(self.process.count) == self.process.number

    def _ask(self, queue: _Queue, progress: TextsProgress) -> None:
        """Embed a shard's worth of a queue."""
        progress.begin()
        texts, queue.texts = queue.texts[: self.shard_rows], queue.texts[self.shard_rows :]
        numbers, queue.numbers = queue.numbers[: self.shard_rows], queue.numbers[self.shard_rows :]
        # The longest first, so that memory runs out at once if ever, and a function's batches are of like length.
        order = np.array(sorted(range(len(texts)), key=lambda place: -len(texts[place])))
        texts = [texts[place] for place in order]
        ordered = np.array(numbers, dtype=np.int64)[order]
        zeros = self._zeros[queue.teacher.name]

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for places, vectors in queue.teacher.encode_blocks(texts, queue.variant):
                zeros.look_at(vectors, texts, places)
                yield vectors, ordered[places]

        self._write(queue.teacher, queue.variant, blocks(), progress)

    def _import(
        self, teacher: Teacher, wanted: Column, texts: Iterable[Any], roles: str | None, progress: TextsProgress
    ) -> None:
        """Take over the vectors of the wanted texts from where they are."""
        flags = wanted.get(np.arange(self._texts))
        repeats = _Repeats(self._texts)
        zeros = self._zeros[teacher.name]

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for block_texts, vectors in teacher.blocks():
                numbers = self.contents.table.find(hash_texts(block_texts))
                repeats.look_at(vectors, numbers, block_texts)
                places = np.flatnonzero(numbers >= 0)
                places = places[flags[numbers[places]] > 0]
                places = places[_first_of_each(numbers[places])]
                flags[numbers[places]] = -1
                if len(places):
                    zeros.look_at(vectors[places], block_texts, places)
                    yield vectors[places], numbers[places]
                if not (flags > 0).any():
                    return

        if not (flags > 0).any():
            return
        self._write(teacher, teacher.variant(), blocks(), progress)
        if repeats.numbers:
            logger.warning(
                "Teacher '%s' has several different vectors for %d of the texts, such as %s. The first of each is kept; take "
                "the others out of %s if that is not meant.",
                teacher.name,
                len(repeats.numbers),
                shorten(repeats.first),
                teacher.label,
            )
        if count := int((flags > 0).sum()):
            number = int(np.argmax(flags > 0))
            raise ValueError(missing_sentence(teacher.label, count, self._text(number, texts, roles)))

    def _text(self, number: int, texts: Iterable[Any], roles: str | None) -> str:
        """A text by its number; only its hash is kept, so the texts are gone through again, where they can be."""
        if iter(texts) is not texts:
            for chunk, _ in read_texts(texts, roles):
                found = np.flatnonzero(self.contents.table.find(hash_texts(chunk)) == number)
                if len(found):
                    return chunk[found[0]]
        return f"text number {number}"

    # -- files

    def _write(
        self,
        teacher: Teacher,
        variant: Variant,
        blocks: Iterator[tuple[np.ndarray, np.ndarray]],
        progress: TextsProgress,
    ) -> None:
        """Write vectors and their text numbers to shards, each committed when it is full."""
        shard: NewTeacherShard | None = None
        try:
            for vectors, numbers in blocks:
                if shard is None:
                    shard = self._new_shard(teacher, variant, vectors.shape[1])
                with uninterrupted():
                    shard.append(vectors, numbers)
                progress.update(len(numbers))
                self.process.check()
                if shard.rows >= self.shard_rows or time.monotonic() - shard.started >= self.shard_seconds:
                    self._commit(teacher, shard)
                    shard = None
        except BaseException:
            # What the teacher has answered before it failed was paid for; it is kept if the disk still takes it.
            with contextlib.suppress(Exception):
                self._commit(teacher, shard)
            raise
        if shard is not None:
            self._commit(teacher, shard)

    def _new_shard(self, teacher: Teacher, variant: Variant, dimension: int) -> NewTeacherShard:
        entry = self.description.teachers[teacher.name]
        if entry.dimension not in (None, dimension):
            raise self._other_teacher(teacher, "the dimension", entry.dimension, dimension)
        entry.dimension = dimension
        stem = self._next(f"teachers/{teacher.name}", [shard.vectors.file for shard in entry.shards])
        if self.process.number:
            stem = stem.with_name(f"{stem.name}-{self.process.number}")
        return NewTeacherShard(self.folder, stem, entry.dtype, dimension, variant)

    def _next(self, folder: str, named: list[str]) -> Path:
        """The next free number in a folder, which is made."""
        taken = [int(match[0]) for file in named if (match := re.match(r"\d+", file.rpartition("/")[2]))]
        parent = self.folder / folder
        if not parent.is_dir():
            parent.mkdir(parents=True, exist_ok=True)
            if parent.parent != self.folder:  # which is flushed with the description
                files.flush_folder(parent.parent)
        return parent / f"{max(taken, default=-1) + 1:05d}"

    def _commit(self, teacher: Teacher | None = None, shard: NewTeacherShard | None = None) -> None:
        """Make everything so far part of the store, a finished shard of a teacher included.

        A signal waits until this is done, which else would cost the shard. After an exception it may be called again.
        """
        with uninterrupted():
            self._close(teacher, None if shard is None or shard.is_closed else shard)
            if self._changed:
                self._write_description()
                self._changed = False

    def _close(self, teacher: Teacher | None, shard: NewTeacherShard | None) -> None:
        """Close the files of what is new, and enter them in the description."""
        index: NewIndexShard | None = None
        try:
            if self._new_hashes or self._new_pairs:
                stem = self._next("index", [part.hashes.file for part in self.description.index])
                index = NewIndexShard(self.folder, stem, self._new_hashes, self._new_pairs)
            written = close(*(new for new in (index, shard) if new is not None))
        except BaseException:
            for new in (index, shard):
                if new is not None:
                    new.discard()
            raise
        if index is not None:
            self.description.index.append(index.shard(written))
            self._new_hashes, self._new_pairs = [], []
        if teacher is not None and shard is not None:
            closed = shard.shard(written)
            self.description.teachers[teacher.name].shards.append(closed)
            self._finished[teacher.name].append(closed)
        self._changed = self._changed or bool(written)

    def _write_description(self) -> None:
        if isinstance(self.process, Member):
            own = {
                name: replace(entry, shards=self._finished[name])
                for name, entry in self.description.teachers.items()
                if name in self._finished
            }
            self.process.write_journal(Description(teachers=own))
        else:
            write_description(self.folder, self.description)

    def _check_age(self) -> None:
        """See to it that what is not in the description was never in it."""
        if names := known_to_the_copy_alone(self.folder, self.description):
            copy = files.copy_of(self.folder / DESCRIPTION)
            raise ValueError(
                f"The {DESCRIPTION} of the store {self.folder} is older than its copy, which names {len(names)} more of the "
                f"files of vectors, the first {names[0]}. {files.restoring(self.folder / DESCRIPTION)} To go on without these, "
                f"remove {copy}."
            )

    def _remove_leftovers(self) -> None:
        """Remove the unfinished files that a killed build left, and put aside finished ones that are not in the description.

        The latter may have been paid for, and be in a description that somebody still has.
        """
        named = {file.file for file in self.description.files()}
        teachers = self.folder / "teachers"
        folders = [self.folder, self.folder / "index", *(sorted(teachers.iterdir()) if teachers.is_dir() else [])]
        finished: list[Path] = []
        for folder in folders:
            if not folder.is_dir() or folder.is_symlink():
                continue
            files.remove_leftovers(folder)
            if folder == self.folder:
                continue
            for path in sorted(folder.iterdir()):
                if _OUR_FILES.fullmatch(path.name) and path.relative_to(self.folder).as_posix() not in named:
                    if _is_array(path):
                        finished.append(path)
                    else:
                        path.unlink()
        if finished:
            logger.warning(
                "%d files in the store %s, the first %s, are not in its %s, as a build leaves them that is killed between the "
                "two. They are moved to %s. If an older %s was put back, they belong to the later one; else remove them.",
                len(finished),
                self.folder,
                finished[0].relative_to(self.folder),
                DESCRIPTION,
                set_aside(self.folder, finished),
                DESCRIPTION,
            )


def set_aside(folder: Path, paths: Iterable[Path]) -> Path:
    """Move files of a store out of the way, below their names, to a new folder in it, which is returned."""
    aside = next(path for number in itertools.count() if not (path := folder / ASIDE / f"{number:05d}").exists())
    for path in paths:
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return aside


def _is_array(path: Path) -> bool:
    """Whether a file is an array, all of it."""
    try:
        return read_array_header(path).shape[0] > 0
    except (ValueError, IndexError):
        return False


def _places(values: list[str]) -> dict[str, np.ndarray]:
    """Places of each value, in order; the values in order of their first place."""
    first = values[0]
    if values.count(first) == len(values):
        return {first: np.arange(len(values))}
    places: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    return {value: np.array(found) for value, found in places.items()}
