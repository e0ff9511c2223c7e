"""Where a source's rows are: its file, folder, dataset of the hub or object of Python, found and opened."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from st_distill.contained import is_saved, load_named, load_saved, require_below
from st_distill.errors import sentence, writing
from st_distill.files import read_json
from st_distill.nearest import suggest
from st_distill.recipe.columns import Kind, kind_of_values, kinds_of_features, names_of, row_of_another_kind, table_of
from st_distill.recipe.parquet import read_parquet
from st_distill.recipe.source_schema import ImageSource, Texts
from st_distill.tables import FORMATS, exact, existing_path, text_rows, unreadable
from st_distill.words import describe

__all__ = [
    "columns_of",
    "missing_text",
    "mixed_column",
    "name_of",
    "pictures_by_path",
    "read_rows",
    "rows_of",
    "stream_rows",
    "without_text",
]

#: Rows that the columns of a text format are judged by, and rows of one that are read for a text that is missing.
_SAMPLE, _BEGINNING = 1000, 10_000
_METADATA = ("metadata.parquet", "metadata.jsonl", "metadata.csv")


def read_rows(source: Texts | ImageSource) -> datasets.Dataset:
    """The rows of a source up to its limit, every column."""
    if source.data is not None:
        dataset = datasets.Dataset.from_dict({"text": source.data}) if isinstance(source.data, list) else source.data
    elif source.path is not None:
        dataset = _read_path(existing_path(source.path), source)
    else:
        dataset = _named(source)
    if source.limit is not None and source.limit < len(dataset):
        dataset = dataset.select(range(source.limit))
    if len(dataset) == 0:
        raise ValueError(f"{name_of(source)} has no rows.")
    return dataset


def stream_rows(source: Texts, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """What these columns hold in each row of a source, up to its limit, read as it is asked for and not checked.

    Raises:
        ValueError: for a file that is absent or cannot be read, once the reading comes to it.
    """
    return itertools.islice(_stream(source, list(columns)), source.limit)


def _stream(source: Texts, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    if isinstance(source.data, list):
        yield from ((text,) for text in source.data)
        return
    if source.path is None:
        rows = source.data
        if rows is None:
            rows = _named(source, streaming=True)
            # What the other columns name is not to be opened.
            rows = rows.select_columns([name for name in columns if rows.features is None or name in rows.features])
        yield from (tuple(row.get(column) for column in columns) for row in rows)
        return
    path = existing_path(source.path)
    if is_saved(path):
        saved = load_saved(_saved_split(path, source)).select_columns(columns).with_format("arrow")
        for table in saved.iter(_SAMPLE):
            yield from zip(*(table.column(column).to_pylist() for column in columns))
        return
    for file in _files(path, source):
        if file.suffix != ".parquet":
            yield from (tuple(row.get(column) for column in columns) for row in text_rows(file))
            continue
        _schema_of(file)
        try:
            with pq.ParquetFile(exact(file)) as parquet:
                for batch in parquet.iter_batches(batch_size=_SAMPLE, columns=columns):
                    yield from zip(*(batch.column(column).to_pylist() for column in columns))
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise unreadable(file, error) from error


def columns_of(source: Texts | ImageSource) -> dict[str, Kind] | None:
    """Columns of a source and what each holds, without reading more than the beginning; None for a hub dataset.

    Raises:
        ValueError: where the file or folder is absent or is of no format that is known here.
    """
    if source.data is not None:
        return {"text": "text"} if isinstance(source.data, list) else kinds_of_features(source.data.features)
    if source.path is None:
        return None
    path = existing_path(source.path)
    if is_saved(path):
        info = _saved_split(path, source) / "dataset_info.json"
        return kinds_of_features(_reading(info, lambda: datasets.Features.from_dict(read_json(info)["features"])))
    files = _files(path, source)
    first = files[0]
    if first.suffix == ".parquet":
        # A part without rows may have no types either.
        first = next((file for file in files if _row_count(file)), first)
        schema = _schema_of(first)
        return kinds_of_features(_reading(first, lambda: datasets.Features.from_arrow_schema(schema)))
    rows = list(itertools.islice(text_rows(first), _SAMPLE))
    return {name: kind_of_values([row.get(name) for row in rows]) for name in names_of(rows)}


def rows_of(source: Texts | ImageSource) -> int | None:
    """How many rows a source has, up to its limit, without keeping them; None for a hub dataset.

    Raises:
        ValueError: as `columns_of`, and for a text format that is broken further on.
    """
    if source.data is not None:
        count = len(source.data)
    elif source.path is None:
        return None
    else:
        path = existing_path(source.path)
        count = len(_read_path(path, source)) if is_saved(path) else sum(map(_row_count, _files(path, source)))
    return count if source.limit is None else min(count, source.limit)


def missing_text(source: Texts | ImageSource, columns: Sequence[str]) -> tuple[int, str] | None:
    """Row and column of the first text that is missing (null), as far as it is seen without much reading.

    Parquet and Arrow count theirs, so that only a part that has one is read; of a text format the beginning is, and of parquet
    that counts none; of a hub dataset nothing.

    Raises:
        ValueError: for a file that is absent, cannot be read or lacks a column, once the reading comes to it, and for
            what a text format has in place of a text: a value of another kind, or what UTF-8 cannot hold.
    """
    names = list(columns)
    for start, table in _parts_with_missing(source, names):
        found = [
            (start + pc.index(pc.is_null(table.column(name)), True).as_py(), name)
            for name in names
            if table.column(name).null_count
        ]
        if found:
            row, name = min(found, key=lambda place: place[0])
            return None if source.limit is not None and row >= source.limit else (row, name)
    return None


def without_text(source: Texts | ImageSource, row: int, column: str) -> str:
    """The sentence on a text that is missing."""
    return f"Row {row} of {name_of(source)} has no text in column '{column}' (null). Fill it or remove the row."


def mixed_column(source: Texts | ImageSource, kinds: dict[str, Kind]) -> str | None:
    """The sentence on a column of a text format that is needed and holds neither texts nor numbers alone; None without one.

    Without a choice, the columns that begin with a text are needed: leaving one out would leave out its texts.

    Args:
        source: the source.
        kinds: what its columns hold (`columns_of`).
    """
    others = [name for name, kind in kinds.items() if kind == "other"]
    path = None if source.path is None else existing_path(source.path)
    if not others or path is None or is_saved(path):
        return None
    file = _files(path, source)[0]
    if file.suffix == ".parquet":
        return None
    chosen = source.columns if isinstance(source, Texts) else [source.image, source.caption]
    sample = list(itertools.islice(text_rows(file), _SAMPLE))
    for name in others:
        values = [row.get(name) for row in sample]
        begins_with_text = isinstance(next(value for value in values if value is not None), str)
        if len(others) == len(kinds) or (begins_with_text if chosen is None else name in chosen):
            row = row_of_another_kind(values)
            return (
                f"The column '{name}' of {file} must hold texts alone, or numbers alone. Got {describe(values[row])} in row "
                f"{row}: mend it, or name the columns that are meant in 'columns'."
            )
    return None


def _parts_with_missing(source: Texts | ImageSource, names: list[str]) -> Iterator[tuple[int, pa.Table]]:
    """Parts of a source's columns in which a text may be missing, each with the number of its first row."""
    path = None if source.path is None else existing_path(source.path)
    if isinstance(source.data, list):
        return  # in which a recipe takes nothing else than texts
    if source.data is not None or (path is not None and is_saved(path)):
        dataset = source.data if path is None else load_saved(_saved_split(path, source))
        if any(dataset.data.column(name).null_count for name in names):
            tables = dataset.select_columns(names).with_format("arrow").iter(_BEGINNING)
            yield from zip(itertools.count(0, _BEGINNING), tables)
    elif path is not None:
        files = _files(path, source)
        if files[0].suffix == ".parquet":
            yield from _groups_with_missing(files, names)
            return
        most = _BEGINNING if source.limit is None else min(_BEGINNING, source.limit)
        rows = itertools.islice(itertools.chain.from_iterable(text_rows(file) for file in files), most)
        yield 0, table_of(rows, dict.fromkeys(names, "text"), path)


def _groups_with_missing(files: list[Path], names: list[str]) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for file in files:
        try:
            with pq.ParquetFile(exact(file)) as parquet:
                if absent := [name for name in names if name not in parquet.schema_arrow.names]:
                    raise ValueError(
                        f"All files of {file.parent} must have the column '{absent[0]}'. {file} has not: take it out of the "
                        "folder, or name another column."
                    )
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group)
                    counts = [_null_count(rows, name) for name in names]
                    if any(counts) or (None in counts and start < _BEGINNING):
                        batches = parquet.iter_batches(batch_size=_SAMPLE, row_groups=[group], columns=names)
                        for place, batch in zip(itertools.count(start, _SAMPLE), batches):
                            if not any(counts) and place >= _BEGINNING:
                                break
                            yield place, pa.Table.from_batches([batch])
                    start += rows.num_rows
        except (OSError, pa.ArrowException, UnicodeDecodeError, KeyError) as error:
            raise unreadable(file, error) from error


def pictures_by_path(source: ImageSource, column: str) -> Iterator[tuple[int, str]]:
    """Row and path of each picture that is not in its table itself, of a table on the disk; ``limit`` is not looked at.

    Raises:
        ValueError: for a file that is absent or cannot be read, once the reading comes to it.
    """
    path, rows = existing_path(str(source.path)), itertools.count()
    if (columns_of(source) or {}).get(column) not in ("text", "image"):
        return
    if is_saved(path):
        tables = load_saved(_saved_split(path, source)).select_columns([column]).with_format("arrow").iter(_SAMPLE)
        values = itertools.chain.from_iterable(_paths_in(table.column(column)) for table in tables)
    else:
        files = _files(path, source)
        values = itertools.chain.from_iterable(_paths_of_file(file, column) for file in files)
    yield from ((row, value) for value, row in zip(values, rows) if isinstance(value, str))


def _paths_of_file(file: Path, column: str) -> Iterator[Any]:
    if file.suffix != ".parquet":
        yield from (row.get(column) for row in text_rows(file))
        return
    try:
        with pq.ParquetFile(exact(file)) as parquet:
            for group in range(parquet.num_row_groups):
                if _has_all_bytes(parquet.metadata.row_group(group), column):  # which are not read for nothing
                    yield from itertools.repeat(None, parquet.metadata.row_group(group).num_rows)
                    continue
                for batch in parquet.iter_batches(batch_size=_SAMPLE, row_groups=[group], columns=[column]):
                    yield from _paths_in(batch.column(column))
    except (OSError, pa.ArrowException, UnicodeDecodeError, KeyError) as error:
        raise unreadable(file, error) from error


def _has_all_bytes(group: pq.RowGroupMetaData, column: str) -> bool:
    return _null_count(group, f"{column}.bytes") == 0


def _null_count(group: pq.RowGroupMetaData, column: str) -> int | None:
    """How many values of a column are missing in a row group; None where it does not say."""
    parts = {(part := group.column(place)).path_in_schema: part.statistics for place in range(group.num_columns)}
    statistics = parts.get(column)
    return statistics.null_count if statistics is not None and statistics.has_null_count else None


def _paths_in(pictures: pa.Array | pa.ChunkedArray) -> Iterator[Any]:
    """The path of each picture, None of one whose bytes are there."""
    for chunk in pictures.chunks if isinstance(pictures, pa.ChunkedArray) else [pictures]:
        if pa.types.is_struct(chunk.type):
            paths, are_absent = chunk.field("path").to_pylist(), chunk.field("bytes").is_null().to_pylist()
            yield from (path if is_absent else None for path, is_absent in zip(paths, are_absent))
        else:
            is_text = any(
                are(chunk.type) for are in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
            )
            yield from chunk.to_pylist() if is_text else itertools.repeat(None, len(chunk))


def _read_path(path: Path, source: Texts | ImageSource) -> datasets.Dataset:
    if is_saved(path):
        return load_saved(_saved_split(path, source))
    files = _files(path, source)
    if files[0].suffix == ".parquet":
        parts = [file for file in files if _row_count(file)]  # what Spark writes without rows may have no types either
        if not parts:
            raise ValueError(f"{name_of(source)} has no rows.")  # datasets says something else of it
        for file in parts:
            _schema_of(file)
        with writing(datasets.config.HF_DATASETS_CACHE):
            return _reading(path, lambda: read_parquet(parts))
    kinds = columns_of(source) or {}
    if (mixed := mixed_column(source, kinds)) is not None:
        raise ValueError(mixed)
    rows: Iterator[dict[str, Any]] = itertools.chain.from_iterable(text_rows(file) for file in files)
    if source.limit is not None:
        rows = itertools.islice(rows, source.limit)
    return datasets.Dataset(table_of(rows, kinds, path))


def _row_count(file: Path) -> int:
    if file.suffix == ".parquet":
        return int(_reading(file, lambda: pq.read_metadata(exact(file)).num_rows))
    return sum(1 for _ in text_rows(file))


def _schema_of(file: Path) -> pa.Schema:
    """The columns of a parquet file; ValueError where two have one name, which cannot be told apart."""
    schema = _reading(file, lambda: pq.read_schema(exact(file)))
    names = schema.names
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise ValueError(f"{file} has the column '{twice}' twice. Give each column a name of its own.")
    return schema


def _saved_split(path: Path, source: Texts | ImageSource) -> Path:
    if not (path / "dataset_dict.json").is_file():
        _require_no_split(path, source)
        return path
    listed = path / "dataset_dict.json"
    splits = _reading(listed, lambda: [str(split) for split in read_json(listed)["splits"]])
    split = source.split or "train"
    if split not in splits:
        raise ValueError(sentence(f"{path} has no split '{split}'{suggest(split, splits, always=True)}"))
    return require_below(path, path / split)


def _require_no_split(path: Path, source: Texts | ImageSource) -> None:
    if source.split is not None:
        raise ValueError(
            f"{path} has no splits, so that 'split' chooses nothing. Leave it out, and name the file that is meant."
        )


def _files(path: Path, source: Texts | ImageSource) -> list[Path]:
    """The files of one format that a path stands for."""
    _require_no_split(path, source)
    if isinstance(source, ImageSource) and path.is_dir():
        metadata = [require_below(path, path / name) for name in _METADATA if (path / name).is_file()]
        if metadata:
            return metadata[:1]
    elif path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"{path} must be one of {', '.join(FORMATS)}. Got '{path.suffix}' instead.")
        return [path]
    elif not path.is_dir():
        raise ValueError(f"{path} must be a file or a folder. It is neither: a pipe, say, or a device.")
    files = sorted(
        file
        for file in path.iterdir()
        # A pipe would be waited for.
        if file.suffix in FORMATS and not file.name.startswith(".") and file.is_file()
    )
    if isinstance(source, ImageSource):
        files = [file for file in files if file.suffix == ".parquet"]
        if not files:
            raise ValueError(
                f"{path} must hold metadata.csv, metadata.jsonl or metadata.parquet (columns file_name and "
                f"{source.caption}), or parquet files of pictures. Found none of them."
            )
    formats = sorted({file.suffix for file in files})
    if len(formats) != 1:
        found = f"Found {' and '.join(formats)}" if formats else "Found none of them"
        raise ValueError(
            f"{path} must hold files of one format ({', '.join(FORMATS)}). {found}. Name one file, or a pure folder."
        )
    return [require_below(path, file) for file in files]


def _named(source: Texts | ImageSource, *, streaming: bool = False) -> Any:
    return load_named(
        str(source.dataset), source.config, split=source.split or "train", revision=source.revision, streaming=streaming
    )


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # damaged files lead the libraries to errors of every kind
        raise unreadable(path, error) from error


def name_of(source: Texts | ImageSource) -> str:
    return source.path or source.dataset or "the data given in Python"
