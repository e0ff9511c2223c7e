"""Vectors that exist already, with their texts: npy files, parquet files, datasets, read a block at a time."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from st_distill.contained import is_saved, load_saved, require_below
from st_distill.errors import one_line
from st_distill.tables import exact, json_lines, text_lines, unreadable

# datasets and pyarrow are imported where they are needed, because opening a store needs neither.

BLOCK = 1024  # rows of a table or a file that are in memory at a time


def shorten(text: str, width: int = 60) -> str:
    """The text as Python writes it, cut to about ``width`` characters, for a sentence about it."""
    return repr(text if len(text) <= width else text[:width] + "…")


def missing_sentence(label: str, count: int, example: str) -> str:
    """What to say of texts that are not among those of ``label``'s vectors."""
    return (
        f"The vectors of {label} must have one for every text. Got none for {count} of the texts, such as "
        f"{shorten(example)}; add their vectors, or leave these texts out."
    )


class Vectors:
    """Vectors on disk, with their texts beside them or in the same table."""

    def __init__(
        self,
        vectors: Any,
        *,
        texts: Iterable[str] | str | os.PathLike[str] | None,
        column: str | None,
        text_column: str | None,
        revision: str | None,
    ) -> None:
        self._revision = revision
        self._counted = False
        self.default_name: str | None = None
        self.label = type(vectors).__name__
        if isinstance(vectors, str | os.PathLike):
            path = Path(vectors)
            if not path.exists():
                raise FileNotFoundError(f"The 'vectors' of Teacher.from_vectors must exist. There is no '{path}'.")
            self.default_name, self.label = path.stem, path.name
            vectors = path
        self._text_column = text_column
        self._column = column
        self._vectors = _open_vectors(vectors)
        if texts is None and not self._is_table():
            raise ValueError(
                f"The 'texts' of Teacher.from_vectors must be given for {self.label}, which has vectors alone: a list or a "
                "file of texts in the same order."
            )
        self._texts = _open_texts(texts, text_column)
        if self._is_table():
            self._choose_columns()

    def _is_table(self) -> bool:
        return hasattr(self._vectors, "with_format") or isinstance(self._vectors, _ParquetFiles)

    def _choose_columns(self) -> None:
        schema = _schema(self._vectors)
        vectors, texts = [], []
        for field in schema:
            if _is_list(field.type):
                vectors.append(field.name)
            elif _is_text(field.type):
                texts.append(field.name)
        self._column = _chosen("column", self._column, vectors, "lists of numbers", schema.names)
        if self._texts is None:
            self._text_column = _chosen("text_column", self._text_column, texts, "texts", schema.names)

    def revision(self) -> str:
        if self._revision is not None:
            return self._revision
        for texts, vectors in self.blocks():
            with np.errstate(over="ignore"):  # what is too large is refused where the vectors are taken over
                vector = np.asarray(vectors[0], dtype=np.float32)
            digest = hashlib.sha256(texts[0].encode("utf-8", "surrogatepass"))
            digest.update(vector.tobytes())
            return f"first-row:{digest.hexdigest()[:40]}"
        raise ValueError(f"The vectors of {self.label} must be at least one. Got none.")

    def prompts(self) -> tuple[Mapping[str, str], str]:
        return {}, ""

    def task(self, role: str) -> str | None:
        return None

    def release(self) -> None:
        """Nothing is kept."""

    def find(self, texts: list[str]) -> np.ndarray:
        """The texts' vectors (texts, dimension), which all blocks are searched for.

        Raises:
            ValueError: a text has none.
        """
        wanted = dict.fromkeys(texts)
        found: dict[str, np.ndarray] = {}
        for block_texts, vectors in self.blocks():
            for text, vector in zip(block_texts, vectors):
                if text in wanted and text not in found:
                    found[text] = np.asarray(vector)
            if len(found) == len(wanted):
                break
        if absent := [text for text in wanted if text not in found]:
            raise ValueError(missing_sentence(self.label, len(absent), absent[0]))
        return np.stack([found[text] for text in texts])

    def blocks(self) -> Iterator[tuple[list[str], np.ndarray]]:
        self._check_count()
        texts = None if self._texts is None else iter(self._texts())
        row = 0
        for block_texts, vectors in self._rows():
            if texts is not None:
                block_texts = list(itertools.islice(texts, len(vectors)))
            for place, text in enumerate(block_texts):
                if not isinstance(text, str):
                    raise TypeError(
                        f"The texts of {self.label} must be strings. Got {type(text).__name__} in row {row + place}."
                    )
            yield block_texts, vectors
            row += len(vectors)

    def _check_count(self) -> None:
        """Before any vector is given: with a text too many or too few, all of them may be those of their neighbours."""
        if self._texts is None or self._counted:
            return
        count = sum(1 for _ in self._texts())
        if isinstance(self._vectors, _ParquetFiles):
            import pyarrow.parquet as pq

            rows = 0
            for path in self._vectors.paths:
                with _reading(path):
                    rows += pq.read_metadata(exact(path)).num_rows
        else:
            rows = len(self._vectors)
        if count != rows:
            raise ValueError(
                f"The 'texts' of Teacher.from_vectors must be as many as the vectors of {self.label}. Got {count} texts for "
                f"{rows} vectors."
            )
        self._counted = True

    def _rows(self) -> Iterator[tuple[list[Any], Any]]:
        if not self._is_table():
            for start in range(0, len(self._vectors), BLOCK):
                yield [], self._vectors[start : start + BLOCK]
            return
        columns = [self._column] if self._texts is not None else [self._column, self._text_column]
        row = 0
        for table in _tables(self._vectors, [column for column in columns if column is not None], self.label):
            block_texts = [] if self._texts is not None else _texts(table, self._text_column, self.label)
            yield block_texts, _matrix(table.column(self._column), f"column '{self._column}' of {self.label}", row)
            row += table.num_rows


class _ParquetFiles(NamedTuple):
    """The parquet files of one table, in the order of their names."""

    paths: list[Path]


def _open_vectors(vectors: Any) -> Any:
    """An array, a sequence of vectors, parquet files, or a datasets.Dataset."""
    if isinstance(vectors, Path):
        if vectors.is_dir():
            if found := sorted(vectors.rglob("*.parquet")):
                return _ParquetFiles([require_below(vectors, file) for file in found])
            if not is_saved(vectors):
                raise ValueError(
                    f"The 'vectors' of Teacher.from_vectors must be an npy or parquet file, a folder of parquet files, or "
                    f"of Dataset.save_to_disk. Got '{vectors}' instead."
                )
            from datasets import DatasetDict

            dataset = load_saved(vectors)
            if isinstance(dataset, DatasetDict):
                raise ValueError(
                    f"The 'vectors' of Teacher.from_vectors must be one split of the dataset in '{vectors}'. It has "
                    f"{', '.join(dataset)}: give the folder of one."
                )
            return dataset
        if vectors.suffix == ".npy":
            try:
                # np.load would take what is no npy file for a pickle, and advise to trust it.
                array = np.lib.format.open_memmap(vectors, mode="r")
            except Exception as error:  # numpy's parser raises whatever the broken bytes lead it to
                raise ValueError(
                    f"The vectors in '{vectors}' cannot be read as an npy file of numbers ({one_line(error)}). Write them "
                    "again, by numpy.save of an array of floats (texts, dimension)."
                ) from error
            return _as_matrix(array, str(vectors))
        if vectors.suffix == ".parquet":
            return _ParquetFiles([vectors])
        raise ValueError(
            f"The 'vectors' of Teacher.from_vectors must be an npy or parquet file, or a folder. Got '{vectors}' instead."
        )
    if isinstance(vectors, torch.Tensor):
        return _as_matrix(vectors.detach().cpu().float().numpy(), "the tensor")
    if isinstance(vectors, np.ndarray):
        return _as_matrix(vectors, "the array")
    if hasattr(vectors, "with_format"):  # a Dataset, or an IterableDataset
        return vectors
    if isinstance(vectors, Sequence) and not isinstance(vectors, str | bytes):  # a list, or a column of a Dataset
        return vectors
    raise TypeError(
        "The 'vectors' of Teacher.from_vectors must be a file, a folder, a datasets.Dataset, one of its columns, or an array. "
        f"Got {type(vectors).__name__} instead."
    )


def _as_matrix(vectors: np.ndarray, what: str) -> np.ndarray:
    if vectors.ndim != 2 or not (np.issubdtype(vectors.dtype, np.number) and np.isrealobj(vectors)):
        raise ValueError(
            f"The vectors in {what} must be numbers of shape (texts, dimension). Got {vectors.dtype} of shape "
            f"{vectors.shape} instead."
        )
    return vectors


def _open_texts(texts: Any, text_column: str | None) -> Callable[[], Iterable[Any]] | None:
    """A function that starts the texts anew, or None where a column of the table has them."""
    if texts is None:
        return None
    if isinstance(texts, str | os.PathLike):
        path = Path(texts)
        if not path.exists():
            raise FileNotFoundError(f"The 'texts' of Teacher.from_vectors must exist. There is no '{path}'.")
        readers: dict[str, Callable[[], Iterable[Any]]] = {
            ".txt": lambda: text_lines(path),
            ".jsonl": lambda: _json_texts(path, text_column),
            ".parquet": lambda: _parquet_texts(path, text_column),
        }
        if path.suffix not in readers:
            raise ValueError(
                f"The 'texts' of Teacher.from_vectors must be a list, or a txt, jsonl or parquet file. Got '{path}' instead."
            )
        return readers[path.suffix]
    if not isinstance(texts, Iterable):
        raise TypeError(
            f"The 'texts' of Teacher.from_vectors must be a list or a file of texts. Got {type(texts).__name__} instead."
        )
    # An iterator ends once; the store goes over the texts twice (identity, vectors).
    kept = list(texts) if iter(texts) is texts else texts
    return lambda: kept


def _json_texts(path: Path, text_column: str | None) -> Iterator[Any]:
    name = text_column or "text"
    for number, value in json_lines(path):
        if isinstance(value, dict) and name not in value:
            raise ValueError(
                f"Line {number} of {path} must be a string, or an object with '{name}'. Got {shorten(str(value))} instead."
            )
        yield value[name] if isinstance(value, dict) else value


def _parquet_texts(path: Path, text_column: str | None) -> Iterator[Any]:
    found = _ParquetFiles([path])
    schema = _schema(found)
    strings = [field.name for field in schema if _is_text(field.type)]
    column = _chosen("text_column", text_column, strings, "texts", schema.names)
    for table in _tables(found, [column], path.name):
        yield from _texts(table, column, path.name)


def _texts(table: Any, column: str | None, label: str) -> list[Any]:
    with _reading(label):
        return table.column(column).to_pylist()


@contextlib.contextmanager
def _reading(what: str | Path) -> Iterator[None]:
    """Says of what cannot be read which file, or which table, it is."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(what, error) from error


def _schema(table: Any) -> Any:
    import pyarrow.parquet as pq

    if isinstance(table, _ParquetFiles):
        with _reading(table.paths[0]):
            return pq.read_schema(exact(table.paths[0]))
    if table.features is None:
        return next(iter(table.with_format("arrow").iter(batch_size=1))).schema
    return table.features.arrow_schema


def _tables(table: Any, columns: list[str], label: str) -> Iterator[Any]:
    """The table's columns, a block of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(table, _ParquetFiles):
        for path in table.paths:
            with _reading(path), pq.ParquetFile(exact(path), pre_buffer=False) as file:
                if absent := [column for column in columns if column not in file.schema_arrow.names]:
                    raise ValueError(f"{path} has no column '{absent[0]}', which {table.paths[0]} has. Write it again.")
                # One row group after another: a single iteration over all of them keeps what it has read.
                for group in range(file.num_row_groups):
                    for batch in file.iter_batches(batch_size=BLOCK, row_groups=[group], columns=columns):
                        yield pa.Table.from_batches([batch])
        return
    with _reading(label):
        yield from table.select_columns(columns).with_format("arrow").iter(batch_size=BLOCK)


def _is_text(arrow_type: Any) -> bool:
    import pyarrow as pa

    values = arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
    return pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values)


def _is_list(arrow_type: Any) -> bool:
    import pyarrow as pa

    is_list = (
        pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type)
    )
    return is_list and (pa.types.is_floating(arrow_type.value_type) or pa.types.is_integer(arrow_type.value_type))


def _matrix(column: Any, what: str, first: int) -> np.ndarray:
    """An arrow column of lists as an array (rows, dimension)."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).to_numpy().astype(np.float64)  # NaN where there is no list
    flat = pc.list_flatten(column)
    if np.isnan(lengths).any() or flat.null_count:
        if not np.isnan(lengths).any():
            lengths = np.array([np.nan if None in (row or []) else 1.0 for row in column.to_pylist()])
        raise ValueError(
            f"The {what} must have a vector of numbers in every row. Got an empty value in row "
            f"{first + int(np.argmax(np.isnan(lengths)))}."
        )
    if (lengths != lengths[0]).any():
        place = int(np.argmax(lengths != lengths[0]))
        raise ValueError(
            f"The {what} must have vectors of one dimension. Got {int(lengths[place])} in row {first + place}, and "
            f"{int(lengths[0])} in row {first}."
        )
    return flat.to_numpy().reshape(len(column), int(lengths[0]))


def _chosen(option: str, column: str | None, candidates: list[str], what: str, columns: list[str]) -> str:
    if column is None and len(candidates) == 1:
        return candidates[0]
    if column is None or column not in candidates:
        raise ValueError(
            f"The '{option}' of Teacher.from_vectors must be a column of {what}. Got {column!r}; such columns are "
            f"{candidates or 'none'}, of {columns}."
        )
    return column
