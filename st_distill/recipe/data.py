"""Reading the texts and pictures that a recipe names. Nothing is dropped in silence."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from st_distill.errors import one_line
from st_distill.files import read_json, sha256
from st_distill.modules.image_loading import load_image
from st_distill.recipe.columns import Kind, kind_of_values, kinds_of_features, names_of, table_of
from st_distill.recipe.schema import ImageSource, Texts
from st_distill.recipe.words import suggest
from st_distill.tables import FORMATS, text_rows

__all__ = [
    "LoadedImages",
    "absent_pictures",
    "columns_of",
    "document_column",
    "fingerprint",
    "load_scored_pairs",
    "load_texts",
    "read_images",
    "rows_of",
    "stream_documents",
    "stream_rows",
]

logger = logging.getLogger(__name__)

_PAIR_KINDS: tuple[Kind, ...] = ("text", "text", "number")
#: Rows that the columns of a text format are judged by.
_SAMPLE = 1000
#: What the trainer calls a column of labels.
LABEL_COLUMNS = ("label", "labels", "score", "scores")
_METADATA = ("metadata.parquet", "metadata.jsonl", "metadata.csv")


class LoadedImages(NamedTuple):
    """Pictures with captions, and how many rows were left out because their picture cannot be read."""

    dataset: datasets.Dataset
    skipped: int


def load_texts(source: Texts, *, labels: bool = False) -> datasets.Dataset:
    """The texts of a source, in its order: the chosen columns, or every column of texts.

    Parquet, save_to_disk folders and hub datasets stay on disk (parquet by way of the cache of `datasets`); jsonl, csv and
    txt are held in memory. ``limit`` takes the first rows. Texts may be empty, which is logged with their number.

    Args:
        source: where the texts are.
        labels: whether columns of numbers may be among the chosen ones; without a choice, those that the trainer knows
            for labels (`LABEL_COLUMNS`) are taken too.

    Raises:
        ValueError: for a file that is absent or cannot be read, a column that is absent or holds no texts, a source
            without rows, and a row whose text is missing (null), which it names.
    """
    dataset = _read(source)
    kinds = kinds_of_features(dataset.features)
    default = [name for name, kind in kinds.items() if kind == "text" or (labels and name in LABEL_COLUMNS)]
    names = _choose(source, kinds, default, "a column of texts")
    for name in names:
        if not (labels and kinds.get(name) == "number"):
            _require(source, kinds, name, "text")
    return _checked(dataset.select_columns(names), source, [name for name in names if kinds[name] == "text"])


def document_column(source: Texts) -> str:
    """The one column of a source that holds its documents; of a hub dataset, ``text`` where none is named.

    Raises:
        ValueError: where several columns may be meant.
    """
    names = source.columns
    if names is None:
        kinds = columns_of(source)
        names = ["text"] if kinds is None else [name for name, kind in kinds.items() if kind == "text"]
    if len(names) != 1:
        raise ValueError(
            f"{_name(source)} must have one column of documents. Got {', '.join(names) or 'none'}: name one in 'columns'."
        )
    return names[0]


def stream_documents(source: Texts) -> Iterator[str]:
    """The documents of a source in its order, read as they are asked for.

    Raises:
        ValueError: as `load_texts`, once the reading comes to it.
    """
    column, count = document_column(source), -1
    for count, (text,) in enumerate(stream_rows(source, [column])):
        if not isinstance(text, str):
            what = "no text" if text is None else f"{text!r}, which is no text,"
            raise ValueError(
                f"Row {count} of {_name(source)} has {what} in column '{column}'. Fill it or remove the row."
            )
        yield text
    if count < 0:
        raise ValueError(f"{_name(source)} has no rows.")


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
            rows = datasets.load_dataset(
                source.dataset, source.config, split=source.split or "train", revision=source.revision, streaming=True
            )
        yield from (tuple(row.get(column) for column in columns) for row in rows)
        return
    path = existing_path(source.path)
    if _is_saved(path):
        saved = _reading(path, lambda: datasets.load_from_disk(str(_saved_split(path, source))))
        yield from (tuple(row[column] for column in columns) for row in saved.select_columns(columns))
        return
    for file in _files(path, source):
        if file.suffix != ".parquet":
            yield from (tuple(row.get(column) for column in columns) for row in text_rows(file))
            continue
        with _reading(file, partial(pq.ParquetFile, file)) as parquet:
            for batch in parquet.iter_batches(batch_size=_SAMPLE, columns=columns):
                yield from zip(*(batch.column(column).to_pylist() for column in columns))


def load_scored_pairs(source: Texts) -> tuple[list[str], list[str], list[float]]:
    """Pairs of texts and the score of each, for an evaluation.

    They are the source's three ``columns``; without, its first two columns of texts and its first column of numbers.

    Raises:
        ValueError: as `load_texts`, and for a number of columns other than three, or a score that is missing or no number.
    """
    dataset = _read(source)
    kinds = kinds_of_features(dataset.features)
    texts = [name for name, kind in kinds.items() if kind == "text"][:2]
    numbers = [name for name, kind in kinds.items() if kind == "number"][:1]
    names = _choose(source, kinds, [*texts, *numbers], "columns")
    if len(names) != 3:
        wanted = "two columns of texts and one of numbers"
        raise ValueError(f"{_name(source)} must give {wanted}. Got {', '.join(names)} instead. Name them in 'columns'.")
    for name, kind in zip(names, _PAIR_KINDS):
        _require(source, kinds, name, kind)
    dataset = _checked(dataset.select_columns(names), source, names[:2])
    first, second, scores = (list(dataset.with_format(None)[name]) for name in names)
    for row, score in enumerate(scores):
        if score is None or not math.isfinite(score):
            raise ValueError(
                f"Row {row} of {_name(source)} has no number in column '{names[2]}'. Fill it or remove the row."
            )
    return first, second, [float(score) for score in scores]


def read_images(source: ImageSource) -> LoadedImages:
    """The pictures (a `datasets.Image` column) and captions of a source, in its order, and how many were left out.

    The columns have the names that the source gives them, also where a folder calls its pictures ``file_name``. Every
    picture is opened once, so that a bad one is known before the training starts.

    Raises:
        ValueError: for a file or column that is absent, a caption that is missing (null), a source without rows, and, with
            ``on_error="stop"``, a picture that cannot be read; the row is named.
    """
    dataset = _read(source)
    image = _image_column(source, list(dataset.features))
    kinds = kinds_of_features(dataset.features)
    if kinds.get(image) != "text":
        _require(source, kinds, image, "image")
    _require(source, kinds, source.caption, "text")
    dataset = dataset.select_columns([image, source.caption])
    if image != source.image:
        dataset = dataset.rename_column(image, source.image)
    folder = _folder_of(source)
    if kinds[image] == "text":
        paths = [_picture_path(path, folder) for path in dataset.with_format(None)[source.image]]
        captions = dataset.with_format("arrow")[:].column(source.caption)
        table = pa.table({source.image: pa.array(paths, pa.string()), source.caption: captions})
        dataset = datasets.Dataset(table)
    dataset = _checked(dataset, source, [source.caption])
    dataset = dataset.cast_column(source.image, datasets.Image(decode=False))
    readable = []
    for row, stored in enumerate(dataset.with_format(None).select_columns(source.image)):
        try:
            load_image(stored[source.image], row=row)
        except ValueError as error:
            if source.on_error == "stop":
                raise ValueError(
                    f"{_name(source)} has a picture that cannot be read: {error} Mend it, or leave such pictures out with "
                    "on_error: skip."
                ) from error
            logger.warning("%s: left out: %s", _name(source), error)
        else:
            readable.append(row)
    skipped = len(dataset) - len(readable)
    if skipped:
        logger.warning("%s: %d of %d pictures cannot be read and are left out.", _name(source), skipped, len(dataset))
        if not readable:
            raise ValueError(f"None of the {skipped} pictures of {_name(source)} can be read.")
        dataset = dataset.select(readable)
    return LoadedImages(dataset.cast_column(source.image, datasets.Image()), skipped)


def absent_pictures(source: ImageSource) -> list[tuple[int, str]]:
    """Row and path of the pictures that a table on the disk names and that are not there.

    Raises:
        ValueError: as `read_images`, but for what is in the pictures.
    """
    if source.path is None:
        return []
    image = _image_column(source, list(columns_of(source) or {}))
    if (columns_of(source) or {}).get(image) != "text":
        return []
    folder = _folder_of(source)
    paths = (_picture_path(path, folder) for path in _read(source).with_format(None)[image])
    return [(row, path) for row, path in enumerate(paths) if path and "://" not in path and not Path(path).is_file()]


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
    if _is_saved(path):
        info = _saved_split(path, source) / "dataset_info.json"
        return kinds_of_features(_reading(info, lambda: datasets.Features.from_dict(read_json(info)["features"])))
    first = _files(path, source)[0]
    if first.suffix == ".parquet":
        return kinds_of_features(_reading(first, lambda: datasets.Features.from_arrow_schema(pq.read_schema(first))))
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
        count = len(_read_path(path, source)) if _is_saved(path) else sum(map(_row_count, _files(path, source)))
    return count if source.limit is None else min(count, source.limit)


def fingerprint(source: Texts | ImageSource) -> str:
    """64 hex digits that change when the content of a source does.

    Files are hashed whole, with the pictures that they name; a hub dataset by its name, configuration, split and revision
    (give a commit as revision to be sure of its content).

    Raises:
        ValueError: where the file or folder is absent.
    """
    total = hashlib.sha256()

    def add(*parts: str | bytes | None) -> None:
        for part in parts:
            content = b"" if part is None else part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            total.update(f"{'n' if part is None else 'y'}{len(content)}:".encode() + content)

    if isinstance(source.data, list):
        add("texts", *source.data)
    elif source.data is not None:
        for batch in _batches(source.data):
            stream = io.BytesIO()
            with pa.ipc.new_stream(stream, batch.schema.remove_metadata()) as writer:
                writer.write_table(batch.combine_chunks())
            add(stream.getvalue())
    elif source.path is None:
        add("dataset", source.dataset, source.config, source.split, source.revision)
    else:
        path = existing_path(source.path)
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            add(file.relative_to(path).as_posix() if path.is_dir() else file.suffix, sha256(file))
        if isinstance(source, ImageSource) and not path.is_dir() and path.suffix != ".parquet":
            column = _image_column(source, list(columns_of(source) or {}))
            for row in text_rows(path):
                picture = _picture_path(row.get(column), path.parent)
                add(str(row.get(column)), sha256(picture) if picture and Path(picture).is_file() else None)
    return total.hexdigest()


# --- reading -----------------------------------------------------------------------------------------------------------


def _read(source: Texts | ImageSource) -> datasets.Dataset:
    """The rows of a source up to its limit, every column."""
    if source.data is not None:
        dataset = datasets.Dataset.from_dict({"text": source.data}) if isinstance(source.data, list) else source.data
    elif source.path is not None:
        dataset = _read_path(existing_path(source.path), source)
    else:
        dataset = datasets.load_dataset(
            source.dataset, source.config, split=source.split or "train", revision=source.revision
        )
    if source.limit is not None and source.limit < len(dataset):
        dataset = dataset.select(range(source.limit))
    if len(dataset) == 0:
        raise ValueError(f"{_name(source)} has no rows.")
    return dataset


def _read_path(path: Path, source: Texts | ImageSource) -> datasets.Dataset:
    if _is_saved(path):
        return _reading(path, lambda: datasets.load_from_disk(str(_saved_split(path, source))))
    files = _files(path, source)
    if files[0].suffix == ".parquet":
        if not _reading(path, lambda: sum(pq.read_metadata(file).num_rows for file in files)):
            raise ValueError(f"{_name(source)} has no rows.")  # datasets says something else of it
        return _reading(path, lambda: datasets.Dataset.from_parquet([str(file) for file in files]))
    kinds = columns_of(source) or {}
    rows: Iterator[dict[str, Any]] = itertools.chain.from_iterable(text_rows(file) for file in files)
    if source.limit is not None:
        rows = itertools.islice(rows, source.limit)
    return datasets.Dataset(table_of(rows, kinds, path))


def _row_count(file: Path) -> int:
    if file.suffix == ".parquet":
        return int(_reading(file, lambda: pq.read_metadata(file).num_rows))
    return sum(1 for _ in text_rows(file))


def existing_path(name: str) -> Path:
    """The path of a file or folder that exists; ValueError with the nearest name otherwise."""
    path = Path(name)
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long, say
        raise ValueError(f"There can be no file or folder '{name}': {error.strerror}.") from None
    if not exists:
        beside = [str(path.parent / entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(_sentence(f"There is no file or folder '{name}'{suggest(str(path), beside)}"))
    return path


def _is_saved(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _saved_split(path: Path, source: Texts | ImageSource) -> Path:
    if not (path / "dataset_dict.json").is_file():
        return path
    listed = path / "dataset_dict.json"
    splits = _reading(listed, lambda: [str(split) for split in read_json(listed)["splits"]])
    split = source.split or "train"
    if split not in splits:
        raise ValueError(_sentence(f"{path} has no split '{split}'{suggest(split, splits, always=True)}"))
    return path / split


def _files(path: Path, source: Texts | ImageSource) -> list[Path]:
    """The files of one format that a path stands for."""
    if isinstance(source, ImageSource) and path.is_dir():
        metadata = [path / name for name in _METADATA if (path / name).is_file()]
        if metadata:
            return metadata[:1]
    elif path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"{path} must be one of {', '.join(FORMATS)}. Got '{path.suffix}' instead.")
        return [path]
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
    return files


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # damaged files lead the libraries to errors of every kind
        cause = error.__cause__ or error
        raise ValueError(f"{path} cannot be read: {one_line(cause)}.") from error


# --- columns -----------------------------------------------------------------------------------------------------------


def _choose(source: Texts, kinds: dict[str, Kind], default: list[str], what: str) -> list[str]:
    names = source.columns if source.columns is not None else default
    if not names:
        raise ValueError(f"{_name(source)} must have {what}. Got the columns {', '.join(kinds) or 'none'} instead.")
    return names


def _require(source: Texts | ImageSource, kinds: dict[str, Kind], name: str, kind: Kind) -> None:
    if name not in kinds:
        raise ValueError(_sentence(f"{_name(source)} has no column '{name}'{suggest(name, kinds, always=True)}"))
    if kinds[name] != kind:
        wanted = {"text": "texts", "number": "numbers", "image": "pictures"}.get(kind, kind)
        raise ValueError(
            f"The column '{name}' of {_name(source)} must hold {wanted}, and it does not. Name another one."
        )


def _image_column(source: ImageSource, names: list[str]) -> str:
    # A folder of pictures calls the column file_name, and that is what it must be called for other programs.
    return "file_name" if source.image not in names and "file_name" in names else source.image


def _checked(dataset: datasets.Dataset, source: Texts | ImageSource, names: list[str]) -> datasets.Dataset:
    """The dataset itself, if no text of these columns is missing."""
    start, empty = 0, dict.fromkeys(names, 0)
    for batch in _batches(dataset.select_columns(names)):
        for name in names:
            column = batch.column(name)
            if column.null_count:
                row = start + pc.index(pc.is_null(column), True).as_py()
                raise ValueError(
                    f"Row {row} of {_name(source)} has no text in column '{name}' (null). Fill it or remove the row."
                )
            empty[name] += pc.sum(pc.equal(pc.utf8_length(column), 0)).as_py() or 0
        start += len(batch)
    for name, count in empty.items():
        if count:
            logger.warning("%s: %d of %d texts in column '%s' are empty.", _name(source), count, len(dataset), name)
    return dataset


def _batches(dataset: datasets.Dataset) -> Iterator[pa.Table]:
    yield from dataset.with_format("arrow").iter(10_000)


def _folder_of(source: ImageSource) -> Path | None:
    if source.path is None:
        return None
    path = Path(source.path)
    return path if path.is_dir() else path.parent


def _picture_path(path: str | None, folder: Path | None) -> str | None:
    """Paths of pictures are relative to the file that names them, and lead nowhere but below its folder.

    Raises:
        ValueError: for one that leads elsewhere. The table may come from somebody else than the recipe.
    """
    if not path or folder is None or path.startswith(("http://", "https://")):
        return path
    picture = folder / path
    try:
        inside = Path(os.path.realpath(picture)).is_relative_to(os.path.realpath(folder))
    except ValueError:  # a name that no file can have
        inside = True
    if not inside:
        raise ValueError(
            f"The picture '{path}' must lie in {folder}, the folder of the table that names it, and leads out of it. Move it "
            "there, or the table above it."
        )
    return str(picture)


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def _name(source: Texts | ImageSource) -> str:
    return source.path or source.dataset or "the data given in Python"
