"""The teacher, and its vectors of every text, made once and kept in the output folder."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path

import torch
from datasets import Dataset
from filelock import FileLock
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.quality.tasks import Task, all_texts, tasks, unseen_texts
from benchmarks.quality.texts import FORMS, training_pairs, variant
from examples.quickstart_data import lsa_model
from st_distill import Teacher, TeacherStore
from st_distill.files import read_json, write_json
from st_distill.store import StoreView
from st_distill.teacher.models import load_model

#: Name of the teacher in its store; the recipes name it so too, and then find its vectors there.
NAME = "teacher"


def require(data: Path, teacher: str) -> None:
    """Look whether the data and the teacher are there, before anything is written.

    Raises:
        ValueError: they are not; the sentence says which.
    """
    if not (data / "scifact").is_dir():
        raise ValueError(f"The --data must be a folder as texts.py and tasks.py describe it. Got {data} instead.")
    load_model(teacher, of="teacher", device="cpu")


class Workshop:
    """The output folder: training texts, the teacher's vectors, and where runs and results go.

    Raises:
        ValueError: the folder's results are of other data, another teacher or more texts.
    """

    def __init__(self, out: Path, data: Path, teacher: str, *, rows: int) -> None:
        self.out, self.data, self.teacher_name, self.rows = out, data, teacher, rows
        self._tasks: dict[str, list[Task]] = {}
        out.mkdir(parents=True, exist_ok=True)
        named = str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher
        made_of, note = {"data": str(data.resolve()), "teacher": named, "rows": rows}, out / "made-of.json"
        if not note.exists():
            write_json(note, made_of)
        elif (before := read_json(note)) != made_of:
            raise ValueError(f"The results in {out} are of {before}. Name another --out for {made_of}.")
        # Two commands at a time may share the folder; what both need, one of them makes.
        self._lock = FileLock(out / "lock")

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    def tasks(self, split: str) -> list[Task]:
        if split not in self._tasks:
            self._tasks[split] = tasks(self.data, split)
        return self._tasks[split]

    def pairs_file(self, form: str = "related") -> Path:
        """Parquet of the training pairs, related, long or pieces (`texts.FORMS`), or in a form of `texts.variant`."""
        file = self.out / f"pairs-{self.rows}-{form}.parquet"
        with self._lock:
            if not file.exists():
                pairs = self._make_pairs(form)
                self.embedded([text for column in pairs.column_names for text in pairs[column]])
                pairs.to_parquet(file)
        return file

    def _make_pairs(self, form: str) -> Dataset:
        if form in FORMS:
            return training_pairs(self.data, rows=self.rows, without=unseen_texts(self.data), form=form)
        related = Dataset.from_parquet(str(self.pairs_file()))
        vectors = self.store.gather(self.store.ids(related["first"])) if form == "neighbours" else None
        return variant(related, form, vectors)

    @cached_property
    def pairs(self) -> Dataset:
        """The training pairs with the store's row numbers as labels."""
        dataset = Dataset.from_parquet(str(self.pairs_file()))
        return self.store.add_labels(dataset, ["first", "second"])

    def teacher_model(self) -> SentenceTransformer:
        return SentenceTransformer(self.teacher_name, device="cpu")

    def embedded(self, texts: list[str]) -> TeacherStore:
        """The teacher's store with these texts in it too; what it has is not embedded again."""
        with self._lock:
            return TeacherStore.create(self.out / "teachers", texts, [Teacher(self.teacher_name, name=NAME)])

    @cached_property
    def store(self) -> StoreView:
        """The teacher's vectors of all training texts."""
        dataset = Dataset.from_parquet(str(self.pairs_file()))
        return self.embedded([*dataset["first"], *dataset["second"]]).view(teachers=[NAME])

    def teacher_vectors(self, split: str) -> dict[str, Tensor]:
        """The teacher's vectors of each task's texts."""
        store = self.embedded(all_texts(self.tasks(split)))
        return {task.name: store.gather(store.ids(task.texts)) for task in self.tasks(split)}

    def training_vectors(self) -> Tensor:
        """The teacher's vectors of the training texts, each once."""
        return self.store.gather(torch.tensor(self.pairs["label"]).unique().numpy())

    def lexical_teacher(self) -> str:
        """Folder of a lexical teacher: LSA of the training texts, 256 dimensions."""
        folder = self.out / "lexical"
        with self._lock:
            if not (folder / "modules.json").exists():
                dataset = Dataset.from_parquet(str(self.pairs_file()))
                lsa_model([*dataset["first"], *dataset["second"]]).save(str(folder))
        return str(folder)

    def copy_store(self, folder: Path) -> None:
        """Give a recipe's work folder the vectors, so that it embeds nothing; reading them is no part of its time."""
        _ = self.store
        shutil.copytree(self.out / "teachers", folder / "teachers", dirs_exist_ok=True)
