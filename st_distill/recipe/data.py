"""Reading the texts and pictures that a recipe names. Nothing is dropped in silence."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from st_distill.contained import Bounds
from st_distill.errors import sentence
from st_distill.files import sha256
from st_distill.modules.image_loading import load_image
from st_distill.nearest import suggest
from st_distill.recipe.columns import Kind, kinds_of_features
from st_distill.recipe.source_schema import ImageSource, Texts
from st_distill.recipe.sources import (
    columns_of,
    name_of,
    pictures_by_path,
    read_rows,
    rows_of,
    stream_rows,
    without_text,
)
from st_distill.tables import existing_path, is_utf8
from st_distill.vectors import shorten

__all__ = [
    "LoadedImages",
    "absent_pictures",
    "columns_of",
    "document_column",
    "fingerprint",
    "load_scored_pairs",
    "load_texts",
    "prompted_columns",
    "read_images",
    "rows_of",
    "stream_documents",
    "stream_rows",
]

logger = logging.getLogger(__name__)

_PAIR_KINDS: tuple[Kind, ...] = ("text", "text", "number")
#: What the trainer calls a column of labels.
LABEL_COLUMNS = ("label", "labels", "score", "scores")


class LoadedImages(NamedTuple):
    """Pictures with captions, and how many rows were left out because their picture cannot be read."""

    dataset: datasets.Dataset
    skipped: int


def load_texts(source: Texts, *, labels: bool = False) -> datasets.Dataset:
    """The texts of a source, in its order: the chosen columns, or every column of texts.

    Parquet, save_to_disk folders and hub datasets stay on disk (parquet by way of the cache of `datasets`); jsonl, csv and
    txt are held in memory. ``limit`` takes the first rows. Texts may be empty, or nothing but spaces, which is logged with
    their number.

    Args:
        source: where the texts are.
        labels: whether columns of numbers may be among the chosen ones; without a choice, those that the trainer knows
            for labels (`LABEL_COLUMNS`) are taken too.

    Raises:
        ValueError: for a file that is absent or cannot be read, a column that is absent or holds no texts, a source
            without rows, and a row whose text is missing (null), which it names.
    """
    dataset = read_rows(source)
    kinds = kinds_of_features(dataset.features)
    default = [name for name, kind in kinds.items() if kind == "text" or (labels and name in LABEL_COLUMNS)]
    names = _choose(source, kinds, default, "a column of texts")
    for name in names:
        if not (labels and kinds.get(name) == "number"):
            _require(source, kinds, name, "text")
    return _checked(dataset.select_columns(names), source, [name for name in names if kinds[name] == "text"])


def prompted_columns(source: Texts) -> list[Sequence[str]]:
    """Each column of a source's texts as the student reads it, with its prompt; see `load_texts`."""
    dataset = load_texts(source, labels=True)
    kinds = kinds_of_features(dataset.features)
    columns: list[Sequence[str]] = []
    for name in dataset.column_names:
        if kinds[name] == "text":
            prompt = source.prompts.get(name, "")
            columns.append([prompt + text for text in dataset[name]] if prompt else dataset[name])
    return columns


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
            f"{name_of(source)} must have one column of documents. Got {', '.join(names) or 'none'}: name one in 'columns'."
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
                f"Row {count} of {name_of(source)} has {what} in column '{column}'. Fill it or remove the row."
            )
        if not is_utf8(text):
            raise ValueError(
                f"Row {count} of {name_of(source)} must hold text that UTF-8 can hold, without unpaired surrogates, in column "
                f"'{column}'. Got {shorten(text)} instead."
            )
        yield text
    if count < 0:
        raise ValueError(f"{name_of(source)} has no rows.")


def load_scored_pairs(source: Texts) -> tuple[list[str], list[str], list[float]]:
    """Pairs of texts and the score of each, for an evaluation.

    They are the source's three ``columns``; without, its first two columns of texts and its first column of numbers.

    Raises:
        ValueError: as `load_texts`, for a number of columns other than three, a score that is missing or no number, and scores
            that are all equal.
    """
    dataset = read_rows(source)
    kinds = kinds_of_features(dataset.features)
    texts = [name for name, kind in kinds.items() if kind == "text"][:2]
    numbers = [name for name, kind in kinds.items() if kind == "number"][:1]
    names = _choose(source, kinds, [*texts, *numbers], "columns")
    if len(names) != 3:
        wanted = "two columns of texts and one of numbers"
        raise ValueError(
            f"{name_of(source)} must give {wanted}. Got {', '.join(names)} instead. Name them in 'columns'."
        )
    for name, kind in zip(names, _PAIR_KINDS):
        _require(source, kinds, name, kind)
    dataset = _checked(dataset.select_columns(names), source, names[:2])
    first, second, scores = (list(dataset.with_format(None)[name]) for name in names)
    for row, score in enumerate(scores):
        if score is None or not math.isfinite(score):
            raise ValueError(
                f"Row {row} of {name_of(source)} has no number in column '{names[2]}'. Fill it or remove the row."
            )
    if len(set(scores)) < 2:
        raise ValueError(
            f"{name_of(source)} must hold at least two different scores in column '{names[2]}', or there is no order to "
            f"compare with. Got {len(set(scores))} in {len(scores)} pairs instead."
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
    dataset = read_rows(source)
    image = _image_column(source, list(dataset.features))
    kinds = kinds_of_features(dataset.features)
    if kinds.get(image) != "text":
        _require(source, kinds, image, "image")
    _require(source, kinds, source.caption, "text")
    dataset = dataset.select_columns([image, source.caption])
    if image != source.image:
        dataset = dataset.rename_column(image, source.image)
    if (bounds := _bounds(source)) is not None:
        table = dataset.with_format("arrow")[:]
        pictures = _below(bounds, table.column(source.image))
        dataset = datasets.Dataset(pa.table({source.image: pictures, source.caption: table.column(source.caption)}))
    dataset = _checked(dataset, source, [source.caption])
    dataset = dataset.cast_column(source.image, datasets.Image(decode=False))
    readable = []
    for row, stored in enumerate(dataset.with_format(None).select_columns(source.image)):
        try:
            load_image(stored[source.image], row=row)
        except ValueError as error:
            if source.on_error == "stop":
                raise ValueError(
                    f"{name_of(source)} has a picture that cannot be read: {error} Mend it, or leave such pictures out with "
                    "on_error: skip."
                ) from error
            logger.warning("%s: left out: %s", name_of(source), error)
        else:
            readable.append(row)
    skipped = len(dataset) - len(readable)
    if skipped:
        logger.warning("%s: %d of %d pictures cannot be read and are left out.", name_of(source), skipped, len(dataset))
        if not readable:
            raise ValueError(f"None of the {skipped} pictures of {name_of(source)} can be read.")
        dataset = dataset.select(readable)
    return LoadedImages(dataset.cast_column(source.image, datasets.Image()), skipped)


def absent_pictures(source: ImageSource) -> list[tuple[int, str]]:
    """Row and path of the pictures that a table on the disk names and that are not there.

    Raises:
        ValueError: for a file that cannot be read, and a picture that leads out of the table's folder.
    """
    if source.path is None:
        return []
    bounds, absent = Bounds.of_path(Path(source.path)), []
    for row, stored in pictures_by_path(source, _image_column(source, list(columns_of(source) or {}))):
        if source.limit is not None and row >= source.limit:
            break
        path = bounds.picture(stored, row=row)
        if path and "://" not in path and not Path(path).is_file():
            absent.append((row, path))
    return absent


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
        if isinstance(source, ImageSource) and not path.is_dir():
            for row, stored in pictures_by_path(source, _image_column(source, list(columns_of(source) or {}))):
                picture = Bounds.of_path(path).picture(stored, row=row)
                add(stored, sha256(picture) if picture and Path(picture).is_file() else None)
    return total.hexdigest()


# --- columns -----------------------------------------------------------------------------------------------------------


def _choose(source: Texts, kinds: dict[str, Kind], default: list[str], what: str) -> list[str]:
    names = source.columns if source.columns is not None else default
    if not names:
        raise ValueError(f"{name_of(source)} must have {what}. Got the columns {', '.join(kinds) or 'none'} instead.")
    return names


def _require(source: Texts | ImageSource, kinds: dict[str, Kind], name: str, kind: Kind) -> None:
    if name not in kinds:
        raise ValueError(sentence(f"{name_of(source)} has no column '{name}'{suggest(name, kinds, always=True)}"))
    if kinds[name] != kind:
        wanted = {"text": "texts", "number": "numbers", "image": "pictures"}.get(kind, kind)
        raise ValueError(
            f"The column '{name}' of {name_of(source)} must hold {wanted}, and it does not. Name another one."
        )


def _image_column(source: ImageSource, names: list[str]) -> str:
    # A folder of pictures calls the column file_name, and that is what it must be called for other programs.
    return "file_name" if source.image not in names and "file_name" in names else source.image


def _checked(dataset: datasets.Dataset, source: Texts | ImageSource, names: list[str]) -> datasets.Dataset:
    """The dataset itself, if no text of these columns is missing; string views, which nothing reads on, are strings in it."""
    for name in names:
        if getattr(dataset.features[name], "dtype", None) == "string_view":
            dataset = dataset.cast_column(name, datasets.Value("string"))
    start, empty = 0, dict.fromkeys(names, 0)
    for batch in _batches(dataset.select_columns(names)):
        for name in names:
            column = batch.column(name)
            if column.null_count:
                row = start + pc.index(pc.is_null(column), True).as_py()
                raise ValueError(without_text(source, row, name))
            if (broken := _not_utf8(column)) is not None:
                raise ValueError(
                    f"Row {start + broken} of {name_of(source)} has a text in column '{name}' that is not UTF-8. Write it "
                    "again."
                )
            empty[name] += pc.sum(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)).as_py() or 0
        start += len(batch)
    for name, count in empty.items():
        if count:
            logger.warning("%s: %d of %d texts in column '%s' are empty.", name_of(source), count, len(dataset), name)
    return dataset


def _not_utf8(column: pa.ChunkedArray) -> int | None:
    """The first row whose text is not UTF-8, which libraries tell later, without its place."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, text in enumerate(column):
            try:
                text.as_py()
            except UnicodeDecodeError:
                return row
    return None


def _batches(dataset: datasets.Dataset) -> Iterator[pa.Table]:
    yield from dataset.with_format("arrow").iter(10_000)


def _bounds(source: ImageSource) -> Bounds | None:
    """Where the source's pictures lie; None for data given in Python, whose paths are the user's own."""
    if source.path is not None:
        return Bounds.of_path(Path(source.path))
    return None if source.dataset is None else Bounds.of_dataset(source.dataset)


def _below(bounds: Bounds, pictures: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of pictures with the paths that the bounds give them; bytes stay where they are."""
    chunks, rows = [], itertools.count()
    for chunk in pictures.chunks:
        if pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
            chunks.append(chunk)
        elif pa.types.is_struct(chunk.type):
            content, paths = chunk.field("bytes"), chunk.field("path").to_pylist()
            found = [
                bounds.picture(path, row=row) if is_absent else path
                for path, is_absent, row in zip(paths, content.is_null().to_pylist(), rows)
            ]
            chunks.append(pa.StructArray.from_arrays([content, pa.array(found, pa.string())], ["bytes", "path"]))
        else:
            found = [bounds.picture(path, row=row) for path, row in zip(chunk.to_pylist(), rows)]
            chunks.append(pa.array(found, pa.string()))
    return pa.chunked_array(chunks)
