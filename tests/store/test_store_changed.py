"""Vectors that were written anew where a store took them from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore
from st_distill.store.dtypes import DTYPES

TEXTS = [f"text {number}" for number in range(3000)]


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(TEXTS), 8)).astype(np.float32)


@pytest.fixture
def bought(tmp_path):
    """A build from such vectors, whose file is written anew."""

    def build(vectors, texts=TEXTS, **options) -> TeacherStore:
        np.save(tmp_path / "bought.npy", vectors)
        teacher = Teacher.from_vectors(tmp_path / "bought.npy", texts=TEXTS[: len(vectors)])
        return TeacherStore.create(tmp_path / "s", texts, teacher, shard_rows=1000, show_progress=False, **options)

    return build


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_the_same_is_taken(dtype, bought, vectors):
    bought(vectors, TEXTS[:2000], dtype=dtype)
    stored = bought(vectors, dtype=dtype).gather(np.arange(3000))
    vectors[1:] *= np.float32(1.7)  # whose roundings are others, as another machine's are
    assert torch.equal(bought(vectors, dtype=dtype).gather(np.arange(3000)), stored)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [1, 1023, 1024, 2999])
def test_one_other_vector_is_told(dtype, row, bought, vectors):
    bought(vectors, dtype=dtype)
    vectors[row, 3] += 0.5
    with pytest.raises(ValueError, match=rf"bought.npy has another for 'text {row}': give the teacher another name"):
        bought(vectors, dtype=dtype)


def test_an_opposite_vector_is_told(bought, vectors):
    bought(vectors, dtype="float32")
    vectors[7] *= -1
    with pytest.raises(ValueError, match="bought.npy has another for 'text 7'"):
        bought(vectors, dtype="float32")


def test_another_order_is_told_before_anybody_is_asked(tmp_path, bought, vectors):
    bought(vectors, TEXTS[:2000])
    asked = []

    def other(texts):
        asked.extend(texts)
        return np.ones((len(texts), 2), dtype=np.float32)

    np.save(tmp_path / "bought.npy", np.concatenate([vectors[:1], vectors[:0:-1]]))  # the first row tells nothing
    teachers = [Teacher(other, name="other", revision="1"), Teacher.from_vectors(tmp_path / "bought.npy", texts=TEXTS)]
    with pytest.raises(ValueError, match="'bought' must have the vectors that were stored in"):
        TeacherStore.create(tmp_path / "s", TEXTS, teachers, show_progress=False)
    assert asked == []
    assert len(TeacherStore.open(tmp_path / "s")) == 2000


def test_texts_that_were_not_taken_may_change(bought, vectors):
    bought(vectors, TEXTS[:2000])
    vectors[2500] = 1.0
    assert bought(vectors).gather(np.array([2500])).numpy() == pytest.approx(1 / np.sqrt(8), rel=1e-3)


def test_a_step_of_what_is_stored_is_a_rounding_and_two_are_not(tmp_path):
    def build(last: int) -> None:
        rows = np.array([[127, 5], [127, last]], dtype=np.float32)
        teacher = Teacher.from_vectors(rows, texts=["a", "b"], name="bought")
        TeacherStore.create(tmp_path / "s", ["a", "b"], teacher, dtype="int8", show_progress=False)

    build(10)
    build(11)
    with pytest.raises(ValueError, match="has another for 'b'"):
        build(12)


def test_the_first_text_of_the_store_is_not_that_of_the_file(bought, vectors):
    bought(vectors, TEXTS[::-1])
    vectors[-1] *= -1
    with pytest.raises(ValueError, match="bought.npy has another for 'text 2999'"):
        bought(vectors, TEXTS[::-1])


@pytest.mark.parametrize("between", [0, 2000])
def test_of_equal_texts_the_first_counts_however_far_apart(between, tmp_path, vectors):
    texts = ["a", *TEXTS[:between], "a"]
    teacher = Teacher.from_vectors(vectors[: len(texts)], texts=texts, name="bought")
    for _ in range(2):
        TeacherStore.create(tmp_path / "s", texts, teacher, show_progress=False)


def test_of_equal_texts_the_first_counts(tmp_path):
    vectors = np.eye(3, dtype=np.float32)
    for last in (2, 1):
        teacher = Teacher.from_vectors(vectors[[0, 1, last]], texts=["a", "b", "a"], name="bought")
        store = TeacherStore.create(tmp_path / "s", ["a", "b"], teacher, show_progress=False)
    assert store.gather(np.arange(2)).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_other_widths_are_told(bought, vectors):
    bought(vectors)
    with pytest.raises(ValueError, match="must have the revision"):  # by its first row
        bought(vectors[:, :4])


def test_damage_of_the_store_is_not_laid_on_the_teacher(bought, vectors):
    path = bought(vectors).path / "teachers" / "bought" / "00001.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"teachers/bought/00001\.npy, the content has changed"):
        bought(vectors).check()
