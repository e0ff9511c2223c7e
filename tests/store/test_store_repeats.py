"""Texts for which stored vectors have several: the first is kept, and that is told."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from st_distill import Teacher, TeacherStore

TEXTS = ["a", "b", "a", "c", "b", "other", "other"]
VECTORS = np.array([[1, 0], [0, 1], [0, 3], [1, 1], [0, 1], [1, 2], [2, 1]], dtype=np.float32)


@pytest.mark.parametrize("block", [1024, 2])
def test_the_first_is_kept_and_told(block, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("st_distill.vectors.BLOCK", block)
    np.save(tmp_path / "t.npy", VECTORS)
    teacher = Teacher.from_vectors(tmp_path / "t.npy", texts=TEXTS)
    with caplog.at_level(logging.WARNING, "st_distill"):
        store = TeacherStore.create(tmp_path / "s", ["a", "b", "c"], teacher, dtype="float32", show_progress=False)
    assert store.gather(store.ids(["a"])).tolist() == [[1, 0]]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        "Teacher 't' has several different vectors for 1 of the texts, such as 'a'. The first of each is kept; take the others "
        "out of t.npy if that is not meant."
    )
