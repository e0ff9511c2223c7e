"""The format of a `TeacherStore` (described in `st_distill.store.store`): read, checked, and looked up in."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import secrets
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from st_distill import files
from st_distill.arrays import read_array_header
from st_distill.locks import FolderLock
from st_distill.store.dtypes import DTYPES, SCALES
from st_distill.teacher import Variant, check_name
from st_distill.vectors import shorten

FORMAT = "st-distill teacher store"
VERSION = 1
DESCRIPTION = "store.json"
ASIDE = "aside"
"""The folder in a store for finished files that its description does not name."""
HASH_BYTES = 16
_MOST = 2**48  # of what is counted: more than a disk holds, and sums stay within 64 bits
_PROBES = (
    512  # slots that a hash may be away from its own: more than ever happens by chance, in a table that is half empty
)
_AT_A_TIME = 2**16  # hashes that are entered together: what is computed of them stays small beside the table


@dataclass(frozen=True)
class File:
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexShard:
    texts: int
    rows: int
    hashes: File
    pairs: File


@dataclass(frozen=True)
class TeacherShard:
    rows: int
    prompt: str
    task: str | None
    vectors: File
    texts: File
    scales: File | None = None

    @property
    def variant(self) -> Variant:
        return Variant(self.prompt, self.task)

    @property
    def files(self) -> list[File]:
        return [file for file in (self.vectors, self.texts, self.scales) if file is not None]

    def is_among(self, names: Container[str]) -> bool:
        """Whether one of its files has one of the names."""
        return any(file.file in names for file in self.files)

    def to_json(self) -> dict[str, Any]:
        described = asdict(self)
        if self.scales is None:
            del described["scales"]
        return described


@dataclass
class Entry:
    """A teacher, as the description has it."""

    label: str
    revision: str
    settings: dict[str, Any]
    dimension: int | None
    dtype: str
    roles: dict[str, Variant] = field(default_factory=dict)
    shards: list[TeacherShard] = field(default_factory=list)

    def starts(self) -> np.ndarray:
        """Number of the first vector of each shard, when the vectors of all shards are counted through."""
        return np.cumsum([0] + [shard.rows for shard in self.shards], dtype=np.int64)[:-1]


@dataclass
class Description:
    roles: list[str] = field(default_factory=list)
    index: list[IndexShard] = field(default_factory=list)
    teachers: dict[str, Entry] = field(default_factory=dict)

    def files(self) -> Iterator[File]:
        """All files that it names."""
        for part in self.index:
            yield from (part.hashes, part.pairs)
        for entry in self.teachers.values():
            for shard in entry.shards:
                yield from shard.files

    def to_json(self) -> dict[str, Any]:
        teachers = {}
        for name, entry in self.teachers.items():
            described = asdict(entry)
            described["roles"] = {role: variant._asdict() for role, variant in entry.roles.items()}
            del described["shards"]
            shards = [shard.to_json() for shard in entry.shards]
            teachers[name] = described | {"normalized": True, "shards": shards}
        return {
            "format": FORMAT,
            "version": VERSION,
            "roles": self.roles,
            "index": [asdict(shard) for shard in self.index],
            "teachers": teachers,
        }


class _Reader:
    """Takes fields out of a description that anybody may have written, with a sentence for each that is wrong."""

    def __init__(self, path: Path, folder: Path, value: Any, where: str = "") -> None:
        self.path, self.folder, self.value, self.where = path, folder, value, where
        if not isinstance(value, dict):
            raise self.error("must be an object", value)

    def error(self, expected: str, got: Any) -> ValueError:
        what = f"{self.where or 'the file'} {expected}, but is {shorten(repr(got))}"
        return damaged_record(self.path, what, self.folder)

    def inner(self, key: str) -> _Reader:
        return self._at(key, self.value.get(key))

    def each(self, key: str) -> Iterator[_Reader]:
        items = self.value.get(key)
        if not isinstance(items, list):
            raise self._at(key, {}).error("must be a list", items)
        for number, item in enumerate(items):
            yield self._at(f"{key}[{number}]", item)

    def text(self, key: str) -> str:
        return self._typed(key, str, "must be a string")

    def optional_text(self, key: str) -> str | None:
        return None if self.value.get(key) is None else self.text(key)

    def count(self, key: str, least: int = 0) -> int:
        number: int = self._typed(key, int, "must be a whole number")
        if not least <= number <= _MOST or isinstance(number, bool):
            expected = f"must be a whole number from {least} to {_MOST}"
            raise self._at(key, {}).error(expected, number)
        return number

    def file(self, key: str, folder: str) -> File:
        inner = self.inner(key)
        name = inner.text("file")
        # A store may come from a stranger: its description must not lead to files elsewhere.
        if not re.fullmatch(re.escape(folder) + r"/[A-Za-z0-9_-][A-Za-z0-9._-]*\.npy", name):
            raise inner.error(f"must name an npy file in {folder}", name)
        return File(name, inner.count("bytes"), inner.text("sha256"))

    def variant(self) -> Variant:
        return Variant(self.text("prompt"), self.optional_text("task"))

    def _at(self, key: str, value: Any) -> _Reader:
        return _Reader(self.path, self.folder, value, f"{self.where}.{key}" if self.where else key)

    def _typed(self, key: str, kind: type, expected: str) -> Any:
        value = self.value.get(key)
        if not isinstance(value, kind):
            raise self._at(key, {}).error(expected, value)
        return value


def read_description(folder: Path) -> Description:
    try:
        content = files.read_record(folder / DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError) as error:
        if files.copy_of(folder / DESCRIPTION).is_file():
            raise FileNotFoundError(lost_description(folder)) from error
        if (folder / "teachers" / DESCRIPTION).is_file():
            raise FileNotFoundError(
                f"{folder} is the work folder of a run. Open the store in it: {folder / 'teachers'}."
            ) from error
        if (folder / FolderLock.NAME).exists() or (folder / "index").is_dir():
            raise FileNotFoundError(
                f"The store {folder} has no {DESCRIPTION} yet, because its first build has not finished a file of vectors: it "
                "is running, or was stopped. Wait for it, or run TeacherStore.create again with the same texts and teachers."
            ) from error
        raise FileNotFoundError(
            f"{folder} is no teacher store, because it has no {DESCRIPTION}. Make one with TeacherStore.create."
        ) from error
    return _read_content(folder / DESCRIPTION, folder, content)


def lost_description(folder: Path) -> str:
    """What to say of a store whose description is gone, while its copy is there."""
    return f"The store {folder} has lost its {DESCRIPTION}. {files.restoring(folder / DESCRIPTION)}"


def write_description(folder: Path, description: Description) -> None:
    """Make a description the store's, whole or not at all."""
    files.write_record(folder / DESCRIPTION, description.to_json())


def known_to_the_copy_alone(folder: Path, description: Description) -> list[str]:
    """Whole files of vectors that the copy of a store's description names, and the description does not.

    The copy is never ahead of what it is a copy of: there are such files where an older description was put back.
    """
    copy = files.copy_of(folder / DESCRIPTION)
    try:
        copied = _read_content(copy, folder, files.read_record(copy))
    except (OSError, ValueError):
        return []
    known = {file.file for file in description.files()}
    vectors = [shard.vectors for entry in copied.teachers.values() for shard in entry.shards]
    missing = [file for file in vectors if file.file not in known]
    return [file.file for file in missing if files.difference(folder / file.file, file.bytes, file.sha256) is None]


def read_journal(folder: Path, path: Path) -> Description:
    """One process's part of the store in a folder, which is written in the same way as the whole, under another name."""
    return _read_content(path, folder, files.read_record(path, folder=folder))


def _read_content(path: Path, folder: Path, content: Any) -> Description:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a teacher store. Give the folder that TeacherStore.create made.")
    reader = _Reader(path, folder, content)
    if reader.count("version", 1) > VERSION:
        raise ValueError(
            f"{path} has version {content['version']} of the format, and this st-distill reads version {VERSION}. Install a "
            "later one: pip install -U st-distill."
        )
    roles = content.get("roles")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles) or len(set(roles)) < len(roles):
        raise _Reader(path, folder, {}, "roles").error("must be a list of distinct strings", roles)
    index = [
        IndexShard(
            shard.count("texts"), shard.count("rows"), shard.file("hashes", "index"), shard.file("pairs", "index")
        )
        for shard in reader.each("index")
    ]
    teachers = {}
    for name in reader.inner("teachers").value:
        try:
            check_name(name)
        except ValueError as error:
            what = f"teachers has the name {shorten(name)}, which cannot be a folder's"
            raise damaged_record(path, what, folder) from error
        teachers[name] = _read_entry(reader.inner("teachers").inner(name), name)
    return Description(list(roles), index, teachers)


def _read_entry(reader: _Reader, name: str) -> Entry:
    folder = f"teachers/{name}"
    dtype = reader.text("dtype")
    if dtype not in DTYPES:
        raise reader.error(f"must have a dtype of {', '.join(DTYPES)} (or needs a later st-distill)", dtype)
    if reader.value.get("normalized") is not True:
        raise reader.error("must be normalized (or needs a later st-distill)", reader.value.get("normalized"))
    shards = [
        TeacherShard(
            shard.count("rows", 1),
            *shard.variant(),
            shard.file("vectors", folder),
            shard.file("texts", folder),
            shard.file("scales", folder) if DTYPES[dtype].has_scales else None,
        )
        for shard in reader.each("shards")
    ]
    dimension = None if reader.value.get("dimension") is None else reader.count("dimension", 1)
    if dimension is None and shards:
        raise reader.error("must have a dimension, because it has shards", None)
    roles = reader.inner("roles")
    return Entry(
        label=reader.text("label"),
        revision=reader.text("revision"),
        settings=dict(reader.inner("settings").value),
        dimension=dimension,
        dtype=dtype,
        roles={role: roles.inner(role).variant() for role in roles.value},
        shards=shards,
    )


def damaged_record(path: Path, what: str, folder: Path) -> ValueError:
    """The error of a store's description, or of a journal, with its remedy."""
    return ValueError(f"The store is damaged: in {path}, {what}. {files.restoring(path, folder)}")


def _damaged(path: Path, what: str, folder: Path) -> ValueError:
    return ValueError(
        f"The store is damaged: in {path}, {what}. Restore this file from a copy, or {files.mending(folder)}."
    )


# --- what is in memory -----------------------------------------------------------------------------------------------


class Column:
    """Whole numbers by place, -1 where none was set, which grows as far as places are set."""

    def __init__(self, size: int = 0) -> None:
        self._values = np.full(size, -1, dtype=np.int64)

    def get(self, places: np.ndarray) -> np.ndarray:
        if not len(places) or places.max() < len(self._values):
            return self._values[places]
        found = np.full(len(places), -1, dtype=np.int64)
        known = places < len(self._values)
        found[known] = self._values[places[known]]
        return found

    def set(self, places: np.ndarray, values: np.ndarray | int) -> None:
        if not len(places):
            return
        if (needed := int(places.max()) + 1) > len(self._values):
            grown = np.full(max(needed, 2 * len(self._values)), -1, dtype=np.int64)
            grown[: len(self._values)] = self._values
            self._values = grown
        self._values[places] = values


class Hashes:
    """Numbers of 16-byte hashes: 24 to 48 bytes of memory each, where a dictionary takes 200.

    A table with open addresses, at most half full: a look-up costs the same however many hashes there are. The number of a
    hash is where it stands in the order in which they came. The addresses are by chance, so that nobody can choose hashes that
    crowd.
    """

    def __init__(self) -> None:
        self._factors = np.frombuffer(secrets.token_bytes(16), dtype=np.uint64) | np.uint64(1)
        self._count = 0
        self._known = np.empty((0, 2), dtype=np.uint64)
        self._slots = np.full(2, -1, dtype=np.int32)

    def add(self, hashes: np.ndarray) -> None:
        """Give the ``hashes`` (n, 16), which are distinct and of which none is known, the next numbers.

        Raises:
            ValueError: one stands there very often, which leaves the table unusable.
        """
        first, self._count = self._count, self._count + len(hashes)
        if self._count > len(self._known):
            grown = np.empty((max(self._count, 2 * len(self._known)), 2), dtype=np.uint64)
            grown[:first] = self._known[:first]
            self._known = grown
        self._known[first : self._count] = self._halves(hashes)
        if 2 * self._count > len(self._slots):
            size = 1 << (2 * self._count - 1).bit_length()
            self._slots = np.full(size, -1, dtype=np.int32 if size <= 2**31 else np.int64)
            first = 0
        for start in range(first, self._count, _AT_A_TIME):
            self._enter(np.arange(start, min(start + _AT_A_TIME, self._count)))

    def _enter(self, numbers: np.ndarray) -> None:
        """Put the numbers into the first free slots from those that their hashes name."""
        places = self._places(self._known[numbers])
        for _ in range(_PROBES):
            free = self._slots[places] < 0
            self._slots[places[free]] = numbers[free]
            left = self._slots[places] != numbers  # also where two wanted one slot
            numbers, places = numbers[left], self._after(places[left])
            if not len(numbers):
                return
        raise ValueError("one hash stands for many texts")

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Number of each of the ``hashes`` (n, 16), -1 for one that is not known."""
        found = np.full(len(hashes), -1, dtype=np.int64)
        wanted = self._halves(hashes)
        left, places = np.arange(len(hashes)), self._places(wanted)
        while len(left):
            numbers = self._slots[places]
            taken = numbers >= 0
            left, places, numbers = left[taken], places[taken], numbers[taken]
            same = (self._known[numbers] == wanted[left]).all(axis=1)
            found[left[same]] = numbers[same]
            left, places = left[~same], self._after(places[~same])
        return found

    def _places(self, halves: np.ndarray) -> np.ndarray:
        mixed = halves[:, 0] * self._factors[0] + halves[:, 1] * self._factors[1]
        mixed ^= mixed >> np.uint64(32)
        mixed *= self._factors[0]
        # The upper bits are the mixed ones.
        return (mixed >> np.uint64(64 - (len(self._slots) - 1).bit_length())).astype(np.int64)

    def _after(self, places: np.ndarray) -> np.ndarray:
        return (places + 1) & (len(self._slots) - 1)

    @staticmethod
    def _halves(hashes: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, 2)


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """The texts' hashes, uint8 (texts, 16)."""
    blake2b = hashlib.blake2b
    digests = b"".join(
        [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest() for text in texts]
    )
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, HASH_BYTES)


class Contents:
    """A description, checked against its files, and what all uses of a store share: its index in memory.

    Args:
        folder: of the store.
        description: what it says of itself.
        without: names of files that are damaged; the vectors of their shards count as missing.
    """

    def __init__(self, folder: Path, description: Description, *, without: Container[str] = ()) -> None:
        self.folder = folder
        self.description = description
        self._root = os.path.realpath(folder)
        hashes = [np.empty((0, HASH_BYTES), dtype=np.uint8)]
        pairs = [np.empty((0, 2), dtype=np.int64)]
        for shard in description.index:
            hashes.append(self._read(shard.hashes, (shard.texts, HASH_BYTES), np.uint8))
            pairs.append(self._read(shard.pairs, (shard.rows, 2), np.int64))
        self.hashes = np.concatenate(hashes)
        self.pairs = np.concatenate(pairs)
        self._check_pairs()
        self.positions = {name: self._read_positions(name, without) for name in description.teachers}

    @functools.cached_property
    def table(self) -> Hashes:
        """Text numbers by hash; made when the first text is looked up, which training never does."""
        table = Hashes()
        try:
            table.add(self.hashes)
        except ValueError as error:
            raise damaged_record(self.folder / DESCRIPTION, f"{error} in the index", self.folder) from error
        return table

    @functools.cached_property
    def rows_by_role(self) -> list[Column]:
        """For each role, the row number of each text."""
        columns = []
        for role in range(len(self.description.roles)):
            column = Column()
            rows = np.flatnonzero(self.pairs[:, 1] == role)
            column.set(self.pairs[rows, 0], rows)
            columns.append(column)
        return columns

    def path(self, file: File) -> Path:
        path = self.folder / file.file
        if not os.path.realpath(path).startswith(self._root + os.sep):
            raise _damaged(path, "a link leads out of the store", self.folder)
        return path

    def _read(self, file: File, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """A small file, its checksum verified: a flipped bit here would give a text another text's vector."""
        path = self.path(file)
        self._check_size(path, file)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise _damaged(path, f"the content has not the sha256 that {DESCRIPTION} says", self.folder)
        self._check_header(path, shape, np.dtype(dtype))
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)

    def _check_size(self, path: Path, file: File) -> None:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise _damaged(path, "there is no such file", self.folder) from None
        if size != file.bytes:
            raise _damaged(path, f"there are {size} bytes, where {DESCRIPTION} says {file.bytes}", self.folder)

    def _check_header(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        try:
            header = read_array_header(path)
        except ValueError as error:
            raise _damaged(path, "there is no array, or not all of it", self.folder) from error
        if header.shape != shape or header.dtype != dtype:
            raise _damaged(
                path,
                f"there is {header.dtype} of shape {header.shape}, where {DESCRIPTION} says {dtype} of shape {shape}",
                self.folder,
            )

    def _check_pairs(self) -> None:
        limits = (len(self.hashes), len(self.description.roles))
        if len(self.pairs) and (self.pairs.min() < 0 or (self.pairs.max(axis=0) >= limits).any()):
            raise damaged_record(
                self.folder / DESCRIPTION,
                f"a row names a text or a role outside the {limits[0]} texts and {limits[1]} roles",
                self.folder,
            )

    def _read_positions(self, name: str, without: Container[str]) -> dict[Variant, Column]:
        """For each prompt and task, the place of each text's vector among all vectors of the teacher."""
        entry = self.description.teachers[name]
        columns: dict[Variant, Column] = {}
        for shard, start in zip(entry.shards, entry.starts()):
            if shard.is_among(without):
                continue
            vectors = self.path(shard.vectors)
            self._check_size(vectors, shard.vectors)
            self._check_header(vectors, (shard.rows, entry.dimension or 0), DTYPES[entry.dtype].array)
            if shard.scales is not None:
                self._check_size(self.path(shard.scales), shard.scales)
                self._check_header(self.path(shard.scales), (shard.rows,), SCALES)
            texts = self._read(shard.texts, (shard.rows,), np.int64)
            if texts.min() < 0 or texts.max() >= len(self.hashes):
                what = f"a text number is outside the {len(self.hashes)} texts"
                raise _damaged(self.path(shard.texts), what, self.folder)
            column = columns.setdefault(shard.variant, Column(len(self.hashes)))
            column.set(texts, np.arange(start, start + shard.rows))
        return columns
