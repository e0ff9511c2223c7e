"""The columns of a table: what each holds, and rows of a text format brought into it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa

from st_distill.vectors import shorten
from st_distill.words import describe

__all__ = ["Kind", "kind_of_values", "kinds_of_features", "names_of", "row_of_another_kind", "table_of"]

#: What a column holds, as far as a recipe cares.
Kind = Literal["text", "number", "image", "other"]


def kinds_of_features(features: datasets.Features) -> dict[str, Kind]:
    """What each column of a dataset holds, by its declared type."""
    return {name: _kind_of_feature(feature) for name, feature in features.items()}


_TEXTS = ("string", "large_string", "string_view")


def _kind_of_feature(feature: Any) -> Kind:
    if isinstance(feature, datasets.Image):
        return "image"
    if isinstance(feature, dict) and {"bytes", "path"} <= set(feature):
        return "image" if getattr(feature["path"], "dtype", "") in (*_TEXTS, "null") else "other"
    dtype = getattr(feature, "dtype", "")
    if isinstance(feature, datasets.Value) and dtype in _TEXTS:
        return "text"
    if isinstance(feature, datasets.Value) and dtype in ("binary", "large_binary", "binary_view"):
        return "image"
    is_number = isinstance(feature, datasets.ClassLabel) or dtype.startswith(("int", "uint", "float", "decimal"))
    return "number" if is_number else "other"


def kind_of_values(values: list[Any]) -> Kind:
    """What a column of a text format holds, judged by its first rows."""
    present = [value for value in values if value is not None]
    if all(isinstance(value, str) for value in present):
        filled = [value for value in present if value]
        # A csv file has no types: a column of digits is one of numbers.
        return "number" if filled and all(_is_number(value) for value in filled) else "text"
    is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present)
    return "number" if is_number else "other"


def row_of_another_kind(values: list[Any]) -> int:
    """The first row whose value is no more of one kind (`kind_of_values`) with the first that there is."""
    first = next(value for value in values if value is not None)
    return next(row for row, value in enumerate(values) if kind_of_values([first, value]) == "other")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def names_of(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def table_of(rows: Iterable[dict[str, Any]], kinds: dict[str, Kind], path: Path) -> pa.Table:
    """Rows of a text format as a table, in chunks; columns that are neither texts nor numbers are left out."""
    types = {name: {"text": pa.large_string(), "number": pa.float64()}.get(kind) for name, kind in kinds.items()}
    if bad := next((name for name in types if re.search("[\0\ud800-\udfff]", name)), None):
        raise ValueError(f"{path} has a column called {shorten(bad)}, which no table can have. Call it otherwise.")
    schema = pa.schema([(name, type) for name, type in types.items() if type is not None])
    chunks, rows, start = [], iter(rows), 0
    while chunk := list(itertools.islice(rows, 10_000)):
        columns = []
        for field in schema:
            values = [row.get(field.name) for row in chunk]
            try:
                columns.append(pa.array([_typed(value, field.type) for value in values], field.type))
            except (ValueError, TypeError, OverflowError, pa.ArrowInvalid):
                row, got = next((row, value) for row, value in enumerate(values) if not _fits(value, field.type))
                wanted = "a number" if field.type == pa.float64() else "text"
                if isinstance(got, str) and wanted == "text":
                    wanted = "text that UTF-8 can hold, without unpaired surrogates,"
                raise ValueError(
                    f"Row {start + row} of {path} must hold {wanted} in column '{field.name}', as the other rows do. "
                    f"Got {shorten(got) if isinstance(got, str) else describe(got)} instead."
                ) from None
        chunks.append(pa.record_batch(columns, schema=schema))
        start += len(chunk)
    return pa.Table.from_batches(chunks, schema=schema)


def _typed(value: Any, type: pa.DataType) -> Any:
    if value is None or type == pa.large_string():
        return value
    if value == "":  # an empty field of a csv file
        return None
    return float(value)


def _fits(value: Any, type: pa.DataType) -> bool:
    try:
        pa.array([_typed(value, type)], type)
    except (ValueError, TypeError, OverflowError, pa.ArrowInvalid):
        return False
    return True
