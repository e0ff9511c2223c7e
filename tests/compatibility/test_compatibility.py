"""What earlier versions wrote is read as it was; ``make_files.py`` writes what this one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from make_files import ROWS, TEXTS, rows_of, vectors_of
from sentence_transformers import SentenceTransformer

import st_distill
from st_distill import Teacher, TeacherStore, export
from st_distill.exporting import info, load_student
from st_distill.verify import verify

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.iterdir() if (path / "vectors.json").is_file())


@pytest.fixture(params=VERSIONS)
def folder(request, tmp_path) -> Path:
    return shutil.copytree(HERE / request.param, tmp_path / "files")


@pytest.fixture
def expected(folder) -> dict[str, np.ndarray]:
    read = json.loads((folder / "vectors.json").read_text(encoding="utf-8"))
    return {name: np.array(vectors) for name, vectors in read.items()}


def test_there_are_files_of_a_version():
    assert VERSIONS
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 200_000 * len(VERSIONS)


def test_a_store(folder, expected):
    store = TeacherStore.open(folder / "store")
    assert store.teachers == ["first", "second"]
    assert store.dimension == 9
    found = store.gather(rows_of(store))
    np.testing.assert_allclose(found, expected["store"], atol=1e-6)
    assert verify(folder / "store").findings == []


def test_a_store_that_grows(folder, expected):
    asked = []

    def count(texts):
        asked.extend(texts)
        return vectors_of(texts)

    teacher = Teacher(count, name="first", revision="1", prompts={"query": "q: "})
    store = TeacherStore.create(folder / "store", [*ROWS, ("new", None)], teacher, dtype="float16", show_progress=False)
    assert asked == ["new"]
    assert len(store) == len(ROWS) + 1
    np.testing.assert_allclose(store.gather(rows_of(store), teachers=["first"]), expected["first"], atol=1e-6)


def test_a_student_and_its_export(folder, expected, tmp_path):
    student = load_student(folder / "student", device="cpu")
    np.testing.assert_allclose(student.encode(TEXTS), expected["student"], atol=1e-6)
    exported = SentenceTransformer(str(folder / "exported"), device="cpu")
    np.testing.assert_allclose(exported.encode(TEXTS), expected["exported"], atol=1e-6)
    assert info(folder / "exported")["dims"] == [6, 2]
    assert verify(folder / "exported").findings == []
    again = export(student, tmp_path / "again")
    np.testing.assert_allclose(again.encode(TEXTS), expected["exported"], atol=1e-6)


def test_the_files_are_of_a_version_that_was():
    assert all(version <= st_distill.__version__ for version in VERSIONS)
