"""The teachers' vectors on disk, and what training reads of them.

A row of a store is a (text, role) pair. A role ("query", "document", or none) decides which prompt each teacher puts
before the text; training labels are row numbers, and `TeacherStore.gather` turns them into vectors.

The format, version 1
---------------------
A folder that numpy and a JSON reader can read without this package::

    store.json                          the description; a file that it does not name is not part of the store
    store.copy.json                     the same again, for `st_distill.verify` to mend the first from
    index/00000.hashes.npy              uint8 (texts, 16): BLAKE2b, 16 bytes, of each distinct text
    index/00000.pairs.npy               int64 (rows, 2): text number and role number of each row
    teachers/minilm/00000.npy           float16 (n, dimension): vectors of unit length
    teachers/minilm/00000.texts.npy     int64 (n,): the text numbers that the vectors belong to
    teachers/minilm/00000.scales.npy    float32 (n,): dtype int8 alone, what each row of int8 is multiplied by
    teachers/minilm/00000-1.npy         the same of a second process that built the store too
    lock                                held by the process that writes

- Hash of a text: ``hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()``. Texts are not kept.
- Text numbers count the rows of all ``hashes`` files in the order of the description, row numbers those of all ``pairs``
  files; role numbers count ``roles`` in store.json, in which "" is the absence of a role. Nothing is ever renumbered.
- ``store.json`` holds ``format``, ``version``, ``sha256`` (of all the rest: of ``json.dumps(rest, sort_keys=True)``; a file
  without it is read unchecked), ``roles``, ``index`` (shards with the counts ``texts`` and ``rows`` and the
  files ``hashes`` and ``pairs``) and ``teachers``. A teacher has a ``label``, the ``revision`` and ``settings`` that
  identify its vectors, ``dimension`` (null before its first shard), ``dtype``, ``normalized`` (true), ``roles`` (each
  role's ``prompt`` and ``task``) and ``shards``. A shard holds ``rows`` vectors made with one ``prompt`` and ``task``, in
  the files ``vectors``, ``texts`` and, for int8, ``scales``, in any order of texts. Every
  file stands with its size (``bytes``) and ``sha256``.
- The vector of row r by teacher t: text and role of r, then the prompt and task of that role at t, then the shard of t that
  has the text with this prompt and task. Roles with the same prompt therefore share their vectors.
- ``dtype`` is float32, float16, bfloat16 (the file has uint16, the upper half of a float32's bits) or int8.
- Files are only added. A file is written to a temporary name, flushed, renamed, and only then entered in store.json, which
  is replaced in the same way. What a killed build leaves beside it is not in the description: the next one removes what is
  unfinished, and moves what is finished to ``aside/``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from st_distill.locks import FolderLock
from st_distill.options import check_path, is_number
from st_distill.store.build import SHARD_ROWS, SHARD_SECONDS, Builder
from st_distill.store.damage import check_vectors
from st_distill.store.dtypes import DTYPES
from st_distill.store.format import Contents, hash_texts, read_description
from st_distill.store.labels import add_labels
from st_distill.store.processes import Alone, Leader, Member
from st_distill.store.texts import check_create, prepare_folder
from st_distill.teacher import Teacher
from st_distill.vectors import shorten

__all__ = ["StoreView", "TeacherStore"]

_OPEN_SHARDS = 128  # each open map holds a file descriptor, of which a process has few


class TeacherStore:
    """Teachers' vectors on disk: made by `create`, opened by `open`, read by row numbers.

    The store object is a snapshot: rows that `create` adds later are seen by stores opened later. It may be used in
    processes of a DataLoader; copies of it share its index.

    Args:
        path: folder of a store. ``TeacherStore(path)`` and ``TeacherStore.open(path)`` are the same.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: the store is damaged, or of a later version; the sentence names the file and the remedy.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_path("'path' parameter", path)
        self.path = Path(path).absolute()
        self._contents = Contents(self.path, read_description(self.path))
        self._set_up()

    def _set_up(self) -> None:
        self._map = functools.lru_cache(maxsize=_OPEN_SHARDS)(self._open_map)
        self._starts = {name: entry.starts() for name, entry in self._contents.description.teachers.items()}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TeacherStore:
        """Open a store and check it: description, presence, size, shape and dtype of every file, content of the index."""
        return cls(path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        texts: Iterable[str | tuple[str, str | None]],
        teachers: Teacher | Sequence[Teacher],
        *,
        roles: str | None = None,
        dtype: str = "float16",
        shard_rows: int = SHARD_ROWS,
        shard_seconds: float = SHARD_SECONDS,
        show_progress: bool = True,
        process: tuple[int, int] | None = None,
    ) -> TeacherStore:
        """Embed what is missing, and open the store.

        Called again, with the same texts or with more, with the same teachers or with others, it embeds only texts that a
        teacher has not seen with the same prompt. A killed build loses at most the shard that was being written;
        a build that ends by an exception (a failing teacher, Ctrl-C) loses nothing but the batch that failed.

        Texts that can be gone through more than once (a list, a column of a dataset) are given to one teacher after
        another, so that one model at a time is in memory; a generator is given to all of them in one go.

        Args:
            path: folder of the store, which is made, or added to.
            texts: strings, or (text, role) pairs; any iterable. Equal texts are embedded once. A query and its document are
                two texts: (query, "query") and (document, "document").
            teachers: one or several, with distinct names. A teacher that the store knows must be of the same revision and
                settings, and have the same prompt for each role, and vectors on disk be those that the store took of them.
            roles: one role for all texts; then ``texts`` are strings.
            dtype: of the vectors on disk, "float32", "float16", "bfloat16" or "int8" (with a scale per row); what each loses
                is in docs/store.md. Rows have unit length, so that none overflows.
            shard_rows: vectors per file, at most.
            shard_seconds: a file that has taken so long is closed with fewer vectors; bounds what a kill can lose.
            show_progress: a progress bar on standard error, with rate and time left; a line per half a minute where
                that is no terminal.
            process: number of this process, from 0, and number of processes that build the store together. Each calls with
                the same arguments (the texts in any order, and something that can be gone through again), embeds its share,
                and gets the complete store. By default what torchrun and accelerate launch say (RANK and WORLD_SIZE);
                ``(0, 1)`` builds in this process alone, also there. The folder must be one that all of them see.

        Raises:
            TypeError, ValueError: an argument, a text, or what a teacher returns is not what it must be.
            BlockingIOError: another process is writing to this store.
            MemoryError: a teacher has no memory for one text alone.
            ChildProcessError: another of several processes failed or was killed; what was finished is kept.
            TimeoutError: another of several processes has not come within ten minutes.
        """
        given = [teachers] if isinstance(teachers, Teacher) else teachers
        number, count = check_create(texts, given, roles, dtype, shard_rows, shard_seconds, process)
        check_path("'path' parameter", path)
        folder = Path(path).absolute()
        prepare_folder(folder)

        def build(part: Alone) -> TeacherStore:
            with part:
                Builder(
                    folder,
                    list(given),
                    part,
                    dtype=dtype,
                    shard_rows=shard_rows,
                    shard_seconds=shard_seconds,
                    show_progress=show_progress,
                ).build(texts, roles)
                return cls(folder)

        if number:
            return build(Member(folder, number, count))
        with FolderLock(folder, purpose="a store is being written"):
            return build(Leader(folder, number, count) if count > 1 else Alone(folder))

    def check(self) -> None:
        """Read every vector's file and compare it with its checksum, as opening a store does not.

        Raises:
            ValueError: a file has changed since it was written; the sentence names the command that mends the store.
        """
        check_vectors(self.path)

    # Copies share the index, which nothing changes: a loss that a trainer copies brings its store along.
    def __deepcopy__(self, memo: dict[int, Any]) -> TeacherStore:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_contents": self._contents}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_up()

    def __repr__(self) -> str:
        return f"TeacherStore({str(self.path)!r}, rows={len(self)}, teachers={self.teachers})"

    def __len__(self) -> int:
        """Number of rows: (text, role) pairs."""
        return len(self._contents.pairs)

    @property
    def teachers(self) -> list[str]:
        """The teachers' names, in the order in which `gather` concatenates them: that in which they were added."""
        return list(self._contents.description.teachers)

    @property
    def roles(self) -> list[str | None]:
        """The roles that rows have; None is the absence of a role."""
        return [role or None for role in self._contents.description.roles]

    @property
    def dimensions(self) -> dict[str, int]:
        """Width of each teacher's vectors.

        Raises:
            ValueError: a teacher has no vectors yet.
        """
        return {name: self._dimension(name) for name in self.teachers}

    @property
    def dimension(self) -> int:
        """Width of what `gather` returns: the sum of `dimensions`."""
        return sum(self.dimensions.values())

    def describe(self) -> dict[str, Any]:
        """What is in the store, as plain values: counts, roles, and for each teacher its identity, width, dtype, number
        of vectors and bytes on disk.
        """
        description = self._contents.description
        return {
            "path": str(self.path),
            "texts": len(self._contents.hashes),
            "rows": len(self),
            "roles": self.roles,
            "teachers": {
                name: {
                    "label": entry.label,
                    "revision": entry.revision,
                    "settings": dict(entry.settings),
                    "dimension": entry.dimension,
                    "dtype": entry.dtype,
                    "prompts": {role or None: variant.prompt for role, variant in entry.roles.items()},
                    "vectors": sum(shard.rows for shard in entry.shards),
                    "bytes": sum(file.bytes for shard in entry.shards for file in shard.files),
                }
                for name, entry in description.teachers.items()
            },
        }

    def ids(self, texts: Sequence[str], *, role: str | None = None) -> np.ndarray:
        """Row numbers of the texts in a role: int64 (texts,).

        Raises:
            TypeError: a text is no string.
            ValueError: a text is not in the store in this role.
        """
        if isinstance(texts, str):
            raise TypeError(
                "The 'texts' of ids must be a sequence of strings. Got one string instead: put it in a list."
            )
        return self._ids(texts, role, "text")

    def _ids(self, texts: Iterable[Any], role: str | None, what: str, first: int = 0) -> np.ndarray:
        texts = list(texts)
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(
                    f"Every {what} must be a string. Got {type(text).__name__} at position {first + place}."
                )
        contents = self._contents
        numbers = contents.table.find(hash_texts(texts))
        rows = np.full(len(texts), -1, dtype=np.int64)
        known = numbers >= 0
        if (role or "") in contents.description.roles:
            column = contents.rows_by_role[contents.description.roles.index(role or "")]
            rows[known] = column.get(numbers[known])
        if (rows < 0).any():
            raise self._unknown_texts(texts, numbers, rows, role, what)
        return rows

    def _unknown_texts(
        self, texts: list[str], numbers: np.ndarray, rows: np.ndarray, role: str | None, what: str
    ) -> ValueError:
        place = int(np.argmax(rows < 0))
        in_role = "without a role" if role is None else f"in the role {role!r}"
        remedy = "add them with TeacherStore.create(path, texts, teachers)"
        if numbers[place] >= 0:
            pairs = self._contents.pairs
            roles = [self.roles[number] for number in pairs[pairs[:, 0] == numbers[place], 1]]
            remedy = f"it has this text in the roles {roles}: pass one of them, or {remedy} in this role"
        return ValueError(
            f"Every {what} must be in the store {self.path} {in_role}. Got {int((rows < 0).sum())} of {len(texts)} that are "
            f"not, the first {shorten(texts[place])}; {remedy}."
        )

    def gather(
        self,
        ids: Any,
        *,
        teachers: Sequence[str] | None = None,
        weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> torch.Tensor:
        """The vectors of rows: each teacher's at unit length, times its weight, concatenated, and at unit length again.

        This is the concatenation of arXiv 2412.19048, section 3, with weights. The cosine of two results is the mean of
        the teachers' cosines, weighted by the squares of the weights: sum_t w_t^2 cos_t / sum_t w_t^2. A weight of 2 beside
        one of 1 counts four times; to count a teacher k times, give it the weight sqrt(k).

        A zero vector of a teacher stays zero, and the others then make the unit length alone; zeros of all teachers stay
        zero.

        Args:
            ids: row numbers of any shape (...), as an integer array, tensor (on any device) or list.
            teachers: names, in the order of concatenation; by default all, in the order of `teachers`.
            weights: one for each of these teachers, by name (1 for names left out) or in order; not negative; 1 by default.

        Returns:
            float32 (..., dimension) on the CPU, with no gradient.

        Raises:
            TypeError: ``ids`` are no whole numbers.
            ValueError: ids that are no rows of the store, a teacher that it has not, or rows that a teacher has no vector for.
        """
        return self._gather(ids, self._chosen(teachers, weights))

    def stored(self, ids: Any, *, teacher: str) -> np.ndarray:
        """One teacher's vectors of rows as they are on disk: in the store's dtype (bfloat16 as the uint16 of its bits, int8
        without the scales), of shape (..., dimension) for ``ids`` of shape (...).
        """
        shape, rows = self._row_numbers(ids)
        vectors = self._vectors(next(iter(self._chosen([teacher], None))), rows)
        return vectors.reshape(*shape, vectors.shape[1])

    def shards(self, ids: Any, *, teacher: str | None = None) -> np.ndarray:
        """Number of the file that has each row's vector by a teacher, by default the first: int64 (...) for ids (...).

        Rows that are read one after another are read faster when they are of one file; all teachers of a store that was
        built in one go have the same texts in files of the same number.
        """
        shape, rows = self._row_numbers(ids)
        return self._places(next(iter(self._chosen(teacher, None))), rows)[0].reshape(shape)

    def view(
        self,
        *,
        teachers: Sequence[str] | None = None,
        weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> StoreView:
        """The store with `gather`'s ``teachers`` and ``weights`` settled; usable wherever a store is."""
        return StoreView(self, teachers=teachers, weights=weights)

    def add_labels(
        self, dataset: Any, columns: str | Sequence[str], *, roles: str | Mapping[str, str] | None = None
    ) -> Any:
        """The dataset with a column ``label`` of row numbers, as the losses take them.

        Args:
            dataset: a ``datasets.Dataset``, ``IterableDataset``, or dictionary of them.
            columns: the text columns, in the order in which the loss sees them.
            roles: one role for all columns, or ``{column: role}``; columns left out have none.

        Returns:
            The dataset with ``label``: a whole number for one column, a list of them for several.

        Raises:
            TypeError, ValueError: a column is missing or holds no strings, there is a label column already, or a text is not
                in the store.
        """
        return add_labels(self._ids, dataset, columns, roles)

    def _dimension(self, name: str) -> int:
        dimension = self._contents.description.teachers[name].dimension
        if dimension is None:
            raise ValueError(
                f"Teacher '{name}' has no vectors in the store {self.path} yet. Run TeacherStore.create again with it."
            )
        return dimension

    def _chosen(
        self, teachers: Sequence[str] | None, weights: Mapping[str, float] | Sequence[float] | None
    ) -> dict[str, float]:
        """Weight by name, in the order of concatenation."""
        known = self.teachers
        if isinstance(teachers, str):
            teachers = [teachers]
        names = known if teachers is None else list(teachers)
        if not names or len(set(names)) < len(names) or not set(names) <= set(known):
            raise ValueError(
                f"The 'teachers' of the store {self.path} must be distinct names of {known}. Got {names} instead."
            )
        if weights is None:
            values = [1.0] * len(names)
        elif isinstance(weights, Mapping):
            if strangers := [name for name in weights if name not in names]:
                raise ValueError(f"The 'weights' must be for teachers among {names}. Got {strangers} too.")
            values = [weights.get(name, 1.0) for name in names]
        else:
            values = list(weights) if isinstance(weights, Iterable) else [weights]
        if (
            len(values) != len(names)
            or not all(is_number(value, 0) and value < math.inf for value in values)
            or not any(values)
        ):
            raise ValueError(
                f"The 'weights' must be one number for each of the teachers {names}, none negative or infinite, and one at "
                f"least above 0. Got {values} instead."
            )
        return dict(zip(names, map(float, values)))

    def _gather(self, ids: Any, chosen: Mapping[str, float]) -> torch.Tensor:
        shape, rows = self._row_numbers(ids)
        widths = [self._dimension(name) for name in chosen]
        result = torch.empty((len(rows), sum(widths)), dtype=torch.float32)
        parts = result.split(widths, dim=1)
        squares = torch.zeros(len(rows))
        scales = []
        for part, (name, weight) in zip(parts, chosen.items()):
            decode = DTYPES[self._contents.description.teachers[name].dtype].decode
            part.copy_(decode(self._vectors(name, rows)))
            lengths = torch.linalg.vector_norm(part, dim=1)  # not quite 1, after rounding to fewer bits
            scales.append(torch.where(lengths > 0, weight / lengths, 0.0))
            squares += torch.where(lengths > 0, weight**2, 0.0)
        lengths = squares.sqrt_()
        for part, scale in zip(parts, scales):
            part.mul_(torch.where(lengths > 0, scale / lengths, 0.0).unsqueeze(1))
        return result.reshape(*shape, result.shape[1])

    def _row_numbers(self, ids: Any) -> tuple[tuple[int, ...], np.ndarray]:
        try:
            rows = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
        except ValueError:
            raise ValueError(
                "Row numbers of a store must be whole numbers, each row of them as long as the others. Got rows of several "
                "lengths instead; gather them one after another."
            ) from None
        if rows.size and rows.dtype.kind not in "iu":
            raise TypeError(
                f"Row numbers of a store must be whole numbers. Got {rows.dtype} instead; labels that are vectors need no "
                "store."
            )
        flat = rows.reshape(-1).astype(np.int64)
        outside = (flat < 0) | (flat >= len(self))
        if outside.any():
            raise ValueError(
                f"Labels must be row numbers of the store {self.path}, from 0 to {len(self) - 1}. Got "
                f"{int(flat[np.argmax(outside)])}, which is none: make labels with 'add_labels' or 'ids' of this store."
            )
        return rows.shape, flat

    def _vectors(self, name: str, rows: np.ndarray) -> np.ndarray:
        """One teacher's vectors as they are on disk: (rows, dimension)."""
        shards, places = self._places(name, rows)
        dtype = DTYPES[self._contents.description.teachers[name].dtype].array
        vectors = np.empty((len(rows), self._dimension(name)), dtype=dtype)
        present = np.unique(shards)
        for shard in present:
            stored = self._map(name, int(shard))
            if len(present) == 1:
                # The places are known to be inside; 'clip' spares the copy that numpy makes to be able to raise.
                np.take(stored, places, axis=0, out=vectors, mode="clip")
            else:
                here = np.flatnonzero(shards == shard)
                vectors[here] = stored[places[here]]
        return vectors

    def _places(self, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One teacher's shard of each row, and the row's place in it: twice int64 (rows,)."""
        texts, roles = self._contents.pairs[rows].T
        entry = self._contents.description.teachers[name]
        positions = np.full(len(rows), -1, dtype=np.int64)
        for number, role in enumerate(self._contents.description.roles):
            column = self._contents.positions[name].get(entry.roles[role]) if role in entry.roles else None
            if column is not None:
                in_role = np.flatnonzero(roles == number)
                positions[in_role] = column.get(texts[in_role])
        if (positions < 0).any():
            place = int(np.argmax(positions < 0))
            role = self.roles[roles[place]]
            raise ValueError(
                f"Every row must have a vector of teacher '{name}' in the store {self.path}. Got {int((positions < 0).sum())} "
                f"of {len(rows)} without, the first row {rows[place]} ({'no role' if role is None else f'role {role!r}'}): "
                "embed them by TeacherStore.create with this teacher, or leave it out by 'teachers'."
            )
        starts = self._starts[name]
        shards = np.searchsorted(starts, positions, side="right") - 1
        return shards, positions - starts[shards]

    def _open_map(self, name: str, shard: int) -> np.ndarray:
        file = self._contents.description.teachers[name].shards[shard].vectors
        # As a plain array: every slice of a memmap object would cost microseconds of bookkeeping.
        return np.asarray(np.load(self._contents.path(file), mmap_mode="r", allow_pickle=False))


class StoreView:
    """A store with the teachers and weights of `TeacherStore.gather` settled, made by `TeacherStore.view`."""

    def __init__(
        self,
        store: TeacherStore,
        *,
        teachers: Sequence[str] | None = None,
        weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        self.store = store
        self.weights = store._chosen(teachers, weights)
        """Weight by teacher, in the order of concatenation."""

    def __repr__(self) -> str:
        return f"StoreView({self.store!r}, weights={self.weights})"

    def __len__(self) -> int:
        """Number of rows: (text, role) pairs."""
        return len(self.store)

    @property
    def teachers(self) -> list[str]:
        """The names of the view's teachers, in the order of concatenation."""
        return list(self.weights)

    @property
    def dimension(self) -> int:
        """Width of what `gather` returns."""
        return sum(self.store._dimension(name) for name in self.weights)

    def gather(self, ids: Any) -> torch.Tensor:
        """As `TeacherStore.gather`, with the view's teachers and weights."""
        return self.store._gather(ids, self.weights)

    def shards(self, ids: Any) -> np.ndarray:
        """As `TeacherStore.shards`, for the view's first teacher."""
        return self.store.shards(ids, teacher=self.teachers[0])

    def ids(self, texts: Sequence[str], *, role: str | None = None) -> np.ndarray:
        """As `TeacherStore.ids`."""
        return self.store.ids(texts, role=role)

    def add_labels(
        self, dataset: Any, columns: str | Sequence[str], *, roles: str | Mapping[str, str] | None = None
    ) -> Any:
        """As `TeacherStore.add_labels`."""
        return self.store.add_labels(dataset, columns, roles=roles)
