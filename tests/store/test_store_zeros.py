"""Vectors of length 0, which a teacher may give: they are told of, and training on them stays with numbers."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore, functional, losses
from st_distill.cli import main
from st_distill.verify import verify

#: The first and third have no vector; the second begins with a zero, and has one.
TEXTS = ["no words of a language at all, in more characters than a warning shows", "b", "c", "d", "e"]
VECTORS = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])


def by_function(tmp_path):
    return Teacher(lambda texts: VECTORS[[TEXTS.index(text) for text in texts]], name="t", revision="1", batch_size=2)


def by_array(tmp_path):
    return Teacher.from_vectors(VECTORS, texts=TEXTS, name="t")


def by_file(tmp_path):
    np.save(tmp_path / "t.npy", VECTORS)
    return Teacher.from_vectors(tmp_path / "t.npy", texts=TEXTS)


def told(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "length 0" in record.getMessage()]


@pytest.mark.parametrize("make", [by_function, by_array, by_file])
def test_they_are_told_of_once_in_a_build(make, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "st_distill"):
        TeacherStore.create(tmp_path / "s", TEXTS, make(tmp_path), shard_rows=2, show_progress=False)
        (message,) = told(caplog)
        assert message.startswith(
            "Teacher 't' has given vectors of length 0, which have no direction to learn, for 2 of"
        )
        assert "the first 'no words of a language at all, in more characters than a war…'" in message
        assert "Such a text is mostly empty, or has no word that the teacher knows" in message
        # What is there already was told of when it came.
        TeacherStore.create(tmp_path / "s", [*TEXTS[:-1]], make(tmp_path), show_progress=False)
    assert len(told(caplog)) == 1


def test_a_build_that_fails_tells_of_what_it_keeps(tmp_path, caplog):
    def function(texts):
        if texts == ["e"]:
            raise RuntimeError("the teacher is gone")
        return VECTORS[[TEXTS.index(text) for text in texts]]

    teacher = Teacher(function, name="t", revision="1", batch_size=2)
    with caplog.at_level(logging.WARNING, "st_distill"), pytest.raises(RuntimeError, match="is gone"):
        TeacherStore.create(tmp_path / "s", TEXTS, teacher, show_progress=False)
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_verify_knows_them_and_calls_the_store_whole(dtype, tmp_path, capsys):
    TeacherStore.create(tmp_path / "s", TEXTS, by_array(tmp_path), dtype=dtype, shard_rows=2, show_progress=False)
    found = verify(tmp_path / "s")
    assert found.is_whole
    (note,) = found.notes
    assert note.startswith("teacher 't': 2 of its vectors in s have length 0")
    assert main(["verify", str(tmp_path / "s")]) == 0
    assert note in capsys.readouterr().out.splitlines()


def test_the_losses_stay_with_numbers(make_student, tmp_path):
    store = TeacherStore.create(tmp_path / "s", TEXTS, by_array(tmp_path), show_progress=False)
    student = make_student().eval()
    loss = losses.JasperDistill(student, teacher=store, dims=[2], cosine_dims=[2])
    for rows in ([0, 1, 2, 3, 4], [0, 2]):
        terms = loss([student.preprocess([TEXTS[row] for row in rows])], torch.tensor(rows))
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert all(weights.grad.isfinite().all() for weights in student.parameters() if weights.grad is not None)


def test_what_they_teach():
    """The cosine term leaves such a text out; the similarities say that it is unlike the others."""
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    student = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 3.0]], requires_grad=True)
    functional.cosine_distill(student, teacher).backward()
    assert not student.grad[0].any()
    assert student.grad[1:].any()
    apart = torch.eye(3)
    alike = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # Of nine similarities, that of the text with itself is 1 where the teacher says 0, whatever the student does.
    assert functional.similarity_distill(apart, teacher).item() == pytest.approx(1 / 9)
    assert functional.similarity_distill(alike, teacher).item() == pytest.approx(1 / 9 + 4 * 0.5 / 9)
