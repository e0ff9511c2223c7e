"""Files of numbers, npy, that grow by blocks and are there whole or not at all; their headers read without trust."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from st_distill.errors import writing
from st_distill.files import Written, describe, flush_folder, new_file, temporary_name


class ArrayHeader(NamedTuple):
    """What an npy file says about itself: ``shape``, ``dtype``, and the ``offset`` of its first element in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


def read_array_header(path: str | os.PathLike[str]) -> ArrayHeader:
    """Shape and dtype of an npy file, without its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an npy file in C order, holds Python objects, or is shorter than its header says.
    """
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(file)
        except Exception as error:  # numpy's parser raises whatever the broken bytes lead it to
            raise ValueError(f"{os.fspath(path)} is not an npy file ({error}).") from error
        if any(length < 0 for length in shape):
            raise ValueError(f"{os.fspath(path)} is not an npy file (its header gives the shape {shape}).")
        if fortran_order or dtype.hasobject:
            raise ValueError(f"{os.fspath(path)} must hold plain numbers in C order.")
        needed, size = file.tell() + math.prod(shape) * dtype.itemsize, os.stat(file.fileno()).st_size
        if size < needed:
            raise ValueError(f"{os.fspath(path)} has {size} bytes, where its header says {needed}.")
        return ArrayHeader(shape, dtype, file.tell())


class ArrayWriter:
    """An npy file of ``columns`` wide rows that grows by blocks, of which none need stay in memory.

    Nothing stands under the final name before `close`. A writer whose `append` failed can only be discarded.

    Args:
        path: the final name.
        dtype: of the rows.
        columns: width of a row; None for an array of one dimension.
    """

    def __init__(self, path: str | os.PathLike[str], dtype: np.dtype[Any], columns: int | None = None) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype)
        self.columns = columns
        self.rows = 0
        self._broken = False
        self._temporary = temporary_name(self.path)
        self._file = new_file(self._temporary)
        self._file.write(self._header())

    def _header(self) -> bytes:
        header = io.BytesIO()
        # numpy leaves room in the header for the row count to grow, so that its length does not depend on it.
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.rows,) if self.columns is None else (self.rows, self.columns),
            },
        )
        return header.getvalue()

    def append(self, block: np.ndarray) -> None:
        """Add rows ``(rows, columns)``, or ``(rows,)``, converted to the writer's dtype.

        Raises:
            OSError: the disk is full, say.
        """
        self._broken = True
        with writing(self.path):
            self._file.write(np.ascontiguousarray(block, dtype=self.dtype).data)
        self.rows += len(block)
        self._broken = False

    def close(self) -> Written:
        """Give the file its final name, flushed to the disk, and return its size and checksum."""
        return close_together([self])[0]

    def _write_out(self) -> None:
        """Hand everything to the operating system."""
        if self._broken:
            raise ValueError(f"{self.path} was not written to its end, so it can only be discarded.")
        with writing(self.path):
            self._file.seek(0)
            self._file.write(self._header())
            self._file.flush()

    def _flush(self) -> Written:
        """Flush the file to the disk, still under its temporary name."""
        with writing(self.path):
            os.fsync(self._file.fileno())
            self._file.close()
        return describe(self._temporary)

    def _rename(self) -> None:
        os.replace(self._temporary, self.path)

    def discard(self) -> None:
        """Remove the unfinished file; nothing happens after `close`."""
        with contextlib.suppress(OSError):  # what a full disk did not take is not wanted any more
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def close_together(writers: Sequence[ArrayWriter]) -> list[Written]:
    """Close several files, as `ArrayWriter.close` closes one, in little more time: the disk flushes them at once.

    When one fails, those that are not closed yet can only be discarded.
    """
    for writer in writers:
        writer._write_out()
    with ThreadPoolExecutor(max_workers=8) as pool:
        written = list(pool.map(ArrayWriter._flush, writers))
        for writer in writers:
            writer._rename()
        list(pool.map(flush_folder, {writer.path.parent for writer in writers}))
    return written
