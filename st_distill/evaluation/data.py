"""The parts of a data set and their rows, from files or from the hub, with the columns checked where they are read."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from st_distill.contained import Bounds, is_saved, load_named, load_saved, require_below
from st_distill.errors import LeadsOutError, one_line, sentence
from st_distill.nearest import suggest_path
from st_distill.tables import FORMATS, exact, existing_path, is_utf8, text_rows, unreadable

__all__ = [
    "Part",
    "Table",
    "is_missing",
    "is_number",
    "local_path",
    "parts_of_hub",
    "parts_of_path",
    "sameness",
    "shown",
]

logger = logging.getLogger(__name__)

#: Rows that a column is judged by.
_SAMPLE = 1000
#: How the hub numbers the files of one part.
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")

#: What labels are, as a message calls each.
_LABELS: dict[type, str] = {str: "text", int: "whole number", bool: "truth"}
#: Truths in letters, as a csv file has them.
_TRUTHS = {"true": 1.0, "false": 0.0}

#: What a column holds: texts, numbers (or texts of digits, as in a tsv file), pictures, or lists in each row.
Holds = Literal["text", "number", "image", "list"]


class Part:
    """A part of a data set (train, test, corpus), which is read when it is asked for.

    Args:
        source: what messages call it.
        read: gives its rows.
        bounds: where the pictures lie that it names.
        files: that it is read from.
    """

    def __init__(
        self,
        source: str,
        read: Callable[[], Iterable[dict[str, Any]]],
        bounds: Bounds | None = None,
        *,
        files: Sequence[Path] = (),
    ) -> None:
        self.source = source
        self.bounds = bounds
        self.files = files
        self._read = read

    def load(self, limit: int | None = None) -> Table:
        """Its first ``limit`` rows; ValueError where there is none, or they cannot be read."""
        try:
            rows = list(itertools.islice(self._read(), limit))
        except (
            OSError,
            UnicodeDecodeError,
            pa.ArrowException,
            datasets.exceptions.DatasetGenerationError,
        ) as error:
            raise unreadable(self.source, error) from error
        if not rows:
            raise ValueError(f"{self.source} has no rows: fill it, or name another file or part.")
        return Table(self.source, rows, self.bounds)


class Table:
    """Rows, a mapping from column to value each."""

    def __init__(self, source: str, rows: list[dict[str, Any]], bounds: Bounds | None = None) -> None:
        self.source = source
        self.rows = rows
        self.bounds = bounds
        self.columns = list(dict.fromkeys(name for row in rows[:_SAMPLE] for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, limit: int | None) -> Table:
        """The table of its first ``limit`` rows; None: of all."""
        return self if limit is None else Table(self.source, self.rows[:limit], self.bounds)

    def holds(self, column: str, what: Holds) -> bool:
        """Whether the column's first values are of that kind, most of them: who reads a bad one names its row."""
        values = [row.get(column) for row in self.rows[:_SAMPLE]]
        present = [value for value in values if not is_missing(value)]
        tests: dict[Holds, Callable[[Any], bool]] = {
            "text": lambda value: isinstance(value, str),
            "number": is_number,
            "image": lambda value: _is_image(value) or (column == "file_name" and isinstance(value, str)),
            "list": lambda value: isinstance(value, (list, tuple)),
        }
        return bool(present) and 2 * sum(tests[what](value) for value in present) > len(present)

    def values(self, column: str) -> list[Any]:
        """What the column holds, as it is; None where a row has it not."""
        return [row.get(column) for row in self.rows]

    def _column(self, column: str, fits: Callable[[Any], bool], wanted: str) -> list[Any]:
        values = self.values(column)
        for row, value in enumerate(values):
            if not fits(value):
                raise ValueError(
                    f"Row {row} of {self.source} must have {wanted} in column '{column}'. Got {shown(value)} instead: mend the "
                    "row or remove it."
                )
        return values

    def texts(self, column: str, *, missing: str | None = None, tell: bool = True) -> list[str]:
        """The column's texts; what is missing is ``missing``, or, without, an error. Empty ones are told, see `tell_empty`."""
        texts = self._column(
            column, lambda value: isinstance(value, str) or (value is None and missing is not None), "a text"
        )
        texts = [missing if text is None else text for text in texts]
        self._require_utf8(column, ([text] for text in texts))
        if tell:
            self.tell_empty(column, texts)
        return texts

    def _require_utf8(self, column: str, rows: Iterable[Sequence[str]]) -> None:
        for row, texts in enumerate(rows):
            if bad := next((text for text in texts if not is_utf8(text)), None):
                raise ValueError(
                    f"Row {row} of {self.source} must have text that UTF-8 can hold, without unpaired surrogates, in column "
                    f"'{column}'. Got {shown(bad)} instead: mend the row or remove it."
                )

    def tell_empty(self, column: str, texts: Sequence[str]) -> None:
        """Log how many of a column's texts are empty, or nothing but spaces; ValueError where all are."""
        count = sum(not text.strip() for text in texts)
        if count and count == len(texts):
            raise ValueError(
                f"{self.source} must hold texts in column '{column}'. All {count} of them are empty: fill the column, or name "
                "another one."
            )
        if count:
            logger.warning("%s: %d of %d texts in column '%s' are empty.", self.source, count, len(texts), column)

    def ids(self, column: str) -> list[str]:
        """The column's names of rows, which some files have as numbers."""
        return [str(value) for value in self._column(column, lambda value: isinstance(value, (str, int)), "a name")]

    def labels(self, column: str) -> list[Any]:
        """The column's labels: texts or whole numbers, all of one kind."""
        kind = _label_kind(self.values(column))
        return self._column(column, lambda value: type(value) is kind and value != "", f"a label, a {_LABELS[kind]},")

    def label_lists(self, column: str) -> list[list[Any]]:
        """The column's lists of labels: texts or whole numbers, all of one kind."""
        kind = _label_kind(
            label for value in self.values(column) if isinstance(value, (list, tuple)) for label in value
        )
        return self._lists(
            column, lambda value: type(value) is kind and value != "", f"a list of labels, each a {_LABELS[kind]},"
        )

    def numbers(self, column: str, *, truths: bool = False) -> list[float]:
        """The column's numbers, also where a text file has them in letters.

        With ``truths``, true and false are 1 and 0.
        """
        number = _truth_or_number if truths else _number
        values = self._column(column, lambda value: number(value) is not None, "a number")
        return [float(number(value)) for value in values]  # type: ignore[arg-type]

    def number_lists(self, column: str, *, truths: bool = False) -> list[list[float]]:
        """The column's lists of numbers, as `numbers` reads each."""
        number = _truth_or_number if truths else _number
        values = self._lists(column, lambda value: number(value) is not None, "a list of numbers")
        return [[float(number(item)) for item in value] for value in values]  # type: ignore[arg-type]

    def text_lists(self, column: str) -> list[list[str]]:
        """The column's lists of texts; empty texts are told."""
        lists = self._lists(column, lambda value: isinstance(value, str), "a list of texts")
        self._require_utf8(column, lists)
        self.tell_empty(column, [text for texts in lists for text in texts])
        return lists

    def _lists(self, column: str, fits: Callable[[Any], bool], wanted: str) -> list[list[Any]]:
        values = self._column(
            column, lambda value: isinstance(value, (list, tuple)) and all(fits(item) for item in value), wanted
        )
        return [list(value) for value in values]

    def pictures(self, column: str) -> list[Any]:
        """The column's pictures as ``load_image`` takes them; paths are relative to the file that names them.

        Raises:
            ValueError: for what is no picture, and a path that leads out of the table's folder, or data set.
        """
        values = self._column(column, lambda value: _is_image(value) or isinstance(value, str), "a picture or its path")
        if self.bounds is None:
            return values
        return [self.bounds.picture(value, row=row) for row, value in enumerate(values)]


def local_path(source: str) -> Path | None:
    """The file or folder that a source names; None for the name of a data set on the hub.

    Raises:
        ValueError: for the name of a file or folder that is not there, with the nearest.
    """
    path = Path(source)
    if path.suffix in FORMATS or source.startswith((".", "/", "~")):
        return existing_path(source)
    return path if path.exists() else None


def parts_of_path(path: Path) -> dict[str, Part]:
    """The parts of a file (one, of its name) or a folder: each file's name, or the splits that save_to_disk wrote.

    Files in the folder ``qrels`` become ``qrels-<name>``.

    Raises:
        ValueError: for a file of no format that is known, or a folder without any.
    """
    if is_saved(path):
        return _parts(load_saved(path), str(path), Bounds.of_path(path))
    if path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"{path} must be one of {', '.join(FORMATS)}. Got '{path.suffix}' instead.")
        return {path.stem: _part_of_files([path])}
    files: dict[str, list[Path]] = {}
    for folder, start in ((path, ""), (path / "qrels", "qrels-")):
        if folder.is_dir():
            for file in sorted(folder.iterdir()):
                if file.suffix in FORMATS and file.suffix != ".txt" and not file.name.startswith("."):
                    files.setdefault(start + _SHARD.sub("", file.stem), []).append(require_below(path, file))
    if not files:
        raise ValueError(f"{path} must hold files of data ({', '.join(FORMATS)}). Found none of them.")
    return {name: _part_of_files(some) for name, some in files.items()}


def parts_of_hub(name: str, config: str | None, revision: str | None) -> dict[str, Part]:
    """The splits of a data set on the hub; of a collection with the configurations corpus and queries, those too.

    Raises:
        ValueError: where there is no such data set, or the hub cannot be reached.
    """
    bounds = Bounds.of_dataset(name)
    try:
        if config is None and {"corpus", "queries"} <= set(
            configs := datasets.get_dataset_config_names(name, revision=revision)
        ):
            parts = {}
            for part in ("corpus", "queries"):
                loaded = load_named(name, part, revision=revision)
                parts[part] = next(iter(_parts(loaded, f"{name}, {part}", bounds).values()))
            judged = next(iter([known for known in ("default", "qrels") if known in configs]), None)
            loaded = load_named(name, judged, revision=revision)
            return parts | {f"qrels-{split}": part for split, part in _parts(loaded, f"{name}, qrels", bounds).items()}
        return _parts(load_named(name, config, revision=revision), name, bounds)
    except LeadsOutError:
        raise
    except (OSError, ValueError) as error:
        told = (
            f"There is no file or folder '{name}', and no data set of that name could be had from the hub "
            f"({one_line(error)}){suggest_path(Path(name))}"
        )
        raise ValueError(sentence(told)) from error


def _parts(loaded: Any, source: str, bounds: Bounds) -> dict[str, Part]:
    several = loaded if isinstance(loaded, Mapping) else {"test": loaded}
    return {str(split): _part_of_dataset(f"{source}, {split}", dataset, bounds) for split, dataset in several.items()}


def _part_of_dataset(source: str, dataset: datasets.Dataset, bounds: Bounds) -> Part:
    def read() -> Iterable[dict[str, Any]]:
        for table in dataset.with_format("arrow").iter(_SAMPLE):  # which opens no picture or sound that a row names
            yield from table.to_pylist()

    return Part(source, read, bounds, files=[Path(file["filename"]) for file in dataset.cache_files])


def _part_of_files(files: list[Path]) -> Part:
    def read() -> Iterable[dict[str, Any]]:
        for file in files:
            if file.suffix == ".parquet":
                for batch in pq.ParquetFile(exact(file)).iter_batches():
                    yield from batch.to_pylist()
            else:
                yield from text_rows(file)

    return Part(str(files[0]), read, Bounds.of_path(files[0]), files=files)


def shown(value: Any) -> str:
    """A field's value in a sentence."""
    return repr(value) if len(repr(value)) <= 40 else type(value).__name__


def is_missing(value: Any) -> bool:
    """Whether a field says nothing: null, the empty text of a csv file, NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def sameness(value: Any) -> int | None:
    """1 or 0 of a label that says whether two texts are the same, as a number, a truth or in letters; else None."""
    number = _truth_or_number(value)
    return int(number) if number in (0, 1) else None


def is_number(value: Any) -> bool:
    """Whether a field holds a finite number, in letters or not."""
    return _number(value) is not None


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _truth_or_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value.strip().lower() in _TRUTHS:
        return _TRUTHS[value.strip().lower()]
    return _number(value)


def _label_kind(values: Iterable[Any]) -> type:
    return next((type(value) for value in values if type(value) in _LABELS), str)


def _is_image(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and {"bytes", "path"} <= set(value))
