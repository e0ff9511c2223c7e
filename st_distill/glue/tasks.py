"""The nine tasks of GLUE (arXiv 1804.07461): what their data hold, what they are measured by, and reading them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_distill.contained import require_below
from st_distill.errors import one_line
from st_distill.evaluation.data import Part, Table, parts_of_hub, parts_of_path
from st_distill.files import describe
from st_distill.nearest import any_of, suggest
from st_distill.options import check_distinct

__all__ = ["TASKS", "Examples", "GlueTask", "TaskData", "find_tasks"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Args:
        name: as the hub has it.
        texts: the pairs of columns (or single ones) that its texts may be in: the hub's, and those of GLUE's own files.
        metrics: the first is what the task is known by, if there is one alone; otherwise it is the mean of them.
        classes: names of its classes, in the order of their numbers; empty where the label is a score.
        label: further columns that the label may be in, beside ``label``.
        held_out: the parts that are measured, and what each is called in the results.
        broken_lines: whether GLUE's own files have lines that are parts of one; they are left out, as the hub does.
    """

    name: str
    texts: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...] = ("accuracy",)
    classes: tuple[str, ...] = ("0", "1")
    label: tuple[str, ...] = ()
    held_out: tuple[tuple[str, str], ...] = ()
    broken_lines: bool = False

    @property
    def parts(self) -> dict[str, str]:
        """Name in the results to name of the part."""
        return dict(self.held_out) or {self.name: "validation"}


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "mnli",
            texts=(("premise", "hypothesis"), _SENTENCES),
            classes=("entailment", "neutral", "contradiction"),
            label=("gold_label",),
            held_out=(("mnli", "validation_matched"), ("mnli-mm", "validation_mismatched")),
        ),
        GlueTask(
            "qqp",
            texts=(("question1", "question2"),),
            metrics=("accuracy", "f1"),
            label=("is_duplicate",),
            broken_lines=True,  # https://github.com/nyu-mll/GLUE-baselines/issues/5
        ),
        GlueTask("qnli", texts=(("question", "sentence"),), classes=_ENTAILMENT),
        GlueTask("sst2", texts=(("sentence",),)),
        GlueTask("cola", texts=(("sentence",),), metrics=("matthews",)),
        GlueTask("stsb", texts=(_SENTENCES,), metrics=("pearson", "spearman"), classes=(), label=("score",)),
        GlueTask(
            "mrpc",
            texts=(_SENTENCES, ("#1 String", "#2 String")),
            metrics=("accuracy", "f1"),
            label=("Quality",),
        ),
        GlueTask("rte", texts=(_SENTENCES,), classes=_ENTAILMENT),
        GlueTask("wnli", texts=(_SENTENCES,)),
    )
}
#: Columns of CoLA's own files, which have no line of names.
_COLA_COLUMNS = ("source", "label", "star", "sentence")


@dataclass(frozen=True)
class Examples:
    """Labelled texts: one or two lists of equal length, and a class number or a score for each."""

    texts: tuple[list[str], ...]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)


class TaskData:
    """A task and the parts of its data, which are read when they are asked for.

    Args:
        task: of `TASKS`.
        parts: what was found, by name.
        source: what messages call them: the name on the hub, or the folder.
        folder: that they lie in; None for the hub.

    Raises:
        ValueError: where a part is missing.
    """

    def __init__(self, task: GlueTask, parts: dict[str, Part], source: str, folder: Path | None = None) -> None:
        self.task = task
        self._source = source
        self._folder = folder
        self._parts = {_usual(name): part for name, part in parts.items()}
        self._used = ("train", *task.parts.values())
        missing = [name for name in self._used if name not in self._parts]
        if missing:
            raise ValueError(
                f"The data of {task.name} must have {any_of(missing)}. Got {any_of(list(parts))} in {source}: name the files "
                "so."
            )

    def read(self, part: str, *, limit: int | None = None) -> Examples:
        """The first ``limit`` rows of ``train`` or of one that is held out.

        Raises:
            ValueError: for columns that are not there, and for a row whose text or label is not what the task has.
        """
        table = self._parts[part].load(limit)
        columns = next((pair for pair in self.task.texts if set(pair) <= set(table.columns)), None)
        label = next((name for name in ("label", *self.task.label) if name in table.columns), None)
        if columns is None or label is None:
            wanted = [*(self.task.texts[0] if columns is None else ()), *(["label"] if label is None else [])]
            raise ValueError(
                f"{table.source} must have the columns {', '.join(wanted)} for {self.task.name}. "
                f"Got {', '.join(table.columns)} instead."
            )
        return Examples(tuple(table.texts(column) for column in columns), self._labels(table, label))

    def check(self, *, limit: int | None = None) -> None:
        """Reads all of it once, for its mistakes.

        Raises:
            ValueError: for what `read` refuses, and for too few rows to measure a correlation on.
        """
        for part in self._used:
            rows = len(self.read(part, limit=limit))
            if rows < 2 and part != "train" and not self.task.classes:
                what = f"'limit' for {self.task.name}" if limit == 1 else f"rows of {self._parts[part].source}"
                raise ValueError(
                    f"The {what} must be at least 2, for a correlation to be measured. Got {rows} instead."
                )

    def identity(self) -> dict[str, Any]:
        """What tells them from others: size and checksum of each file that is read, by its path in the folder; or the name."""
        if self._folder is None:
            return {"name": self._source}
        files = [file for part in self._used for file in self._parts[part].files]
        return {Path(os.path.relpath(file, self._folder)).as_posix(): describe(file)._asdict() for file in files}

    def _labels(self, table: Table, column: str) -> list[int] | list[float]:
        if not self.task.classes:
            return table.numbers(column)
        known = {name: number for number, name in enumerate(self.task.classes)}
        known |= {str(number): number for number in range(len(self.task.classes))}
        labels = [known.get(str(row.get(column))) for row in table.rows]
        for row, number in enumerate(labels):
            if number is None:
                found = table.rows[row].get(column)
                hidden = " (-1 stands for a label that is kept secret)" if str(found) == "-1" else ""
                raise ValueError(
                    f"Row {row} of {table.source} must have {any_of(list(known))} in column '{column}'. "
                    f"Got {found!r}{hidden}: mend the row or remove it."
                )
        return labels  # type: ignore[return-value]


def find_tasks(data: str, wanted: Sequence[str] | None) -> list[TaskData]:
    """The tasks that a folder has a folder for, or a data set of the hub a configuration.

    Args:
        data: folder with a folder for each task (``mnli`` or ``MNLI``, ``sst2`` or ``SST-2``), or a name on the hub.
        wanted: names of tasks; None for all that are there.

    Raises:
        NotADirectoryError: ``data`` is a file.
        ValueError: for a task that is not known or not there, and where there is none.
    """
    for name in wanted or ():
        if name not in TASKS:
            raise ValueError(f"The 'tasks' must be of {', '.join(TASKS)}. Got '{name}'{suggest(name, TASKS)}")
    check_distinct("'tasks'", list(wanted or ()))
    folder = Path(data)
    if folder.is_file():
        raise NotADirectoryError(f"The 'data' must be a folder with one for each task. Got {data}, which is a file.")
    if not folder.is_dir():
        names = [name for name in TASKS if name in (wanted or TASKS)]
        return [TaskData(TASKS[name], parts_of_hub(data, name, None), data) for name in names]
    folders = {entry.name.lower().replace("-", "").replace("_", ""): entry for entry in sorted(folder.iterdir())}
    folders = {name: entry for name, entry in folders.items() if name in TASKS and entry.is_dir()}
    absent = [name for name in wanted or () if name not in folders]
    if absent or not folders:
        raise ValueError(
            f"The folder {data} must have a folder for {any_of(absent or list(TASKS))}. Got {_names(folder)} instead."
        )
    return [
        TaskData(task, _parts_of_folder(task, folders[name]), str(folders[name]), folders[name])
        for name, task in TASKS.items()
        if name in (wanted or folders)
    ]


def _names(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return any_of(names) if names else "an empty one"


def _usual(name: str) -> str:
    """The hub's name of a part: GLUE's own files are called dev."""
    return "validation" + name.removeprefix("dev") if name.startswith("dev") else name


def _parts_of_folder(task: GlueTask, folder: Path) -> dict[str, Part]:
    parts = parts_of_path(folder)
    for file in sorted(folder.glob("*.tsv")):
        names = _COLA_COLUMNS if task.name == "cola" else None
        lines = _Lines(require_below(folder, file), names, task.broken_lines)
        parts[file.stem] = Part(str(file), lines, files=[file])
    return parts


class _Lines:
    """Rows of a tsv file of GLUE, which knows no quotes: a quotation mark is a letter of the text like any other."""

    def __init__(self, file: Path, names: tuple[str, ...] | None, broken_lines: bool) -> None:
        self.file = file
        self.names = names
        self.broken_lines = broken_lines
        self._told = False

    def __call__(self) -> Iterator[dict[str, Any]]:
        left_out = 0
        try:
            with self.file.open(encoding="utf-8-sig", newline="\n") as lines:
                first = next(lines, "").rstrip("\r\n").split("\t")
                names = first
                if self.names is not None and "label" not in first:
                    names = list(self.names)
                    yield self._row(names, first, 1)
                for number, line in enumerate(lines, start=2):
                    values = line.rstrip("\r\n").split("\t")
                    if self.broken_lines and len(values) != len(names):
                        left_out += 1
                        continue
                    yield self._row(names, values, number)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file} is not UTF-8 text ({one_line(error)}). Save it as UTF-8.") from error
        finally:  # also where no more than the first rows are wanted
            if left_out and not self._told:
                self._told = True
                logger.warning("%s: %d broken lines are left out, as in the hub's copy.", self.file, left_out)

    def _row(self, names: Sequence[str], values: list[str], number: int) -> dict[str, Any]:
        if len(values) != len(names):
            raise ValueError(
                f"Line {number} of {self.file} must have {len(names)} fields, as the first has. Got {len(values)} instead: "
                "mend the line or remove it."
            )
        return dict(zip(names, values))
