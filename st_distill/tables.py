"""Rows of the files that people keep data in, a mapping from column to value for each."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from st_distill.errors import one_line, sentence
from st_distill.nearest import suggest_path

__all__ = ["FORMATS", "exact", "existing_path", "is_utf8", "json_lines", "text_lines", "text_rows", "unreadable"]

#: Endings of the files that can be read.
FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")

#: What stands between the columns of a table in text, and what messages call it.
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def existing_path(name: str) -> Path:
    """The path of a file or folder that exists; ValueError with the nearest name otherwise."""
    path = Path(name)
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long, say
        raise ValueError(f"There can be no file or folder '{name}': {error.strerror}.") from None
    if not exists:
        found = suggest_path(path, _may_hold_data) or ": see its spelling, and the folder that you are in"
        raise ValueError(sentence(f"There is no file or folder '{name}'{found}"))
    return path


def _may_hold_data(path: Path) -> bool:
    return path.is_dir() or path.suffix in (*FORMATS, ".npy")


def exact(path: str | Path) -> str:
    """A path as pyarrow takes it for the file of this name: it begins a relative one with ``~`` at home, and one with ``file:``
    at the root."""
    return os.path.abspath(path)


def unreadable(source: str | Path, error: BaseException) -> ValueError:
    """The error for data that a library cannot read, with the remedy where the system did not refuse it."""
    cause = error.__cause__ or error
    is_refused = isinstance(cause, OSError) and cause.errno is not None
    remedy = "" if is_refused else " Write or download it again."
    return ValueError(f"{source} cannot be read: {one_line(cause)}.{remedy}")


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can hold a text, as it cannot an unpaired surrogate: neither tables nor tokenizers take it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a jsonl, json, csv, tsv or txt file."""
    if path.suffix == ".txt":
        yield from ({"text": line} for line in text_lines(path))
    elif path.suffix in (".csv", ".tsv"):
        with _opened(path, newline="") as file:  # which keeps line breaks inside quotes
            yield from _csv_rows(file, path)
    else:
        yield from _json_rows(path)


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, without the line feed, carriage return or both that end them, or a byte order mark in front."""
    with _opened(path) as file:
        for line in file:
            yield line.removesuffix("\n")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a file with one of JSON in a line, and the number of each line; empty lines are left out."""
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Line {number} of {path} is not valid JSON: {error}.") from error


@contextlib.contextmanager
def _opened(path: Path, newline: str | None = None) -> Iterator[io.TextIOBase]:
    # utf-8-sig takes away the mark that some programs put in front.
    with path.open(encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _csv_rows(file: io.TextIOBase, path: Path) -> Iterator[dict[str, Any]]:
    # Python's limit of 128 kB a field is less than a long document.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    begin = 1
    try:
        names = next(reader, [])
        if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
            raise ValueError(f"{path} has the column '{twice}' twice. Give each column a name of its own.")
        begin = reader.line_num + 1
        for row, values in enumerate(reader):
            begin = reader.line_num + 1
            if not values and len(names) > 1:
                continue  # a blank line
            if row == 0 and len(names) == 1:
                _check_separator(path, names[0], values, reader.dialect.delimiter)
            if len(values) > len(names) or (len(values) < len(names) and values):
                raise ValueError(
                    f"Row {row} of {path} (line {reader.line_num}) must have {len(names)} fields, as the first line has. "
                    f"Got {len(values)} instead. Put texts with commas in double quotes."
                )
            yield dict(zip(names, values or [""]))
    except csv.Error as error:
        raise ValueError(
            f"{path} is not valid {path.suffix[1:].upper()} in the row that begins in line {begin}: {error}. A text that "
            'begins with a double quote must end with one, and has those in it twice (""); or save the rows as jsonl.'
        ) from error


def _check_separator(path: Path, name: str, values: Sequence[str], delimiter: str) -> None:
    """Refuse a file whose only column and its first row are several of another separator, as spreadsheets write them."""
    for other in _SEPARATORS:
        count = name.count(other)
        if other != delimiter and count and delimiter.join(values).count(other) == count:
            raise ValueError(
                f"{path} must have {_SEPARATORS[delimiter]} between its columns. Got {_SEPARATORS[other]} instead, in "
                f"{name!r}: save it with {_SEPARATORS[delimiter]}, or as jsonl."
            )


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        beginning = file.read(1)
        while beginning.isspace():
            beginning = file.read(1)
        file.seek(0)
        rows, where = json_lines(path), "Line"
        if beginning == "[":
            try:
                rows, where = enumerate(json.load(file)), "Entry"
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is not valid JSON: {error}.") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(
                f"{where} {number} of {path} must be an object of named values. Got {type(row).__name__} instead."
            )
        yield row
