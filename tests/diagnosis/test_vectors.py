from __future__ import annotations

import numpy as np
import pytest
import torch

from st_distill.diagnosis import diagnose_rows, diagnose_vectors


def test_healthy_vectors(vectors, texts):
    assert diagnose_vectors(vectors) == []
    assert diagnose_vectors(vectors, teacher=vectors[:, :8]) == []
    assert diagnose_rows(texts, vectors) == []


def test_vectors_in_a_file_that_is_read_only(vectors, texts, tmp_path):
    np.save(tmp_path / "vectors.npy", np.asarray(vectors))
    opened = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert diagnose_vectors(opened) == diagnose_rows(texts, opened) == []  # torch's warning would be an error here


def test_collapsed():
    alike = torch.ones(40, 16) + 0.01 * torch.randn(40, 16)
    (found,) = diagnose_vectors(alike, of="my model's")
    assert found.name == "collapsed"
    assert "the cosines of my model's vectors of 40 texts are 1.000 on average and differ by " in found.seen
    # Beside a teacher it is the teacher who says what is alike.
    assert diagnose_vectors(alike, teacher=alike) == []
    narrow = torch.ones(40, 16) + 0.15 * torch.randn(40, 16)
    assert diagnose_vectors(narrow) == []
    (found,) = diagnose_vectors(narrow, teacher=torch.randn(40, 16))
    assert found.name == "collapsed"
    assert "the teacher's by 0.2" in found.seen


def test_numbers_that_are_none():
    vectors = torch.randn(40, 16)
    vectors[3, 1] = float("nan")
    (found,) = diagnose_vectors(vectors)
    assert found.name == "not a number"
    assert found.seen == "1 of 40 of the student's vectors hold NaN or infinity"


def test_a_dimension_that_says_nothing():
    vectors = torch.randn(40, 16)
    vectors[:, [2, 3, 4, 9]] = 0.7
    (found,) = diagnose_vectors(vectors)
    assert found.name == "dimension not trained"
    assert "4 of the 16 dimensions of the student's vectors (2 to 4, 9, from 0) are the same" in found.seen
    # One in two hundred may be.
    wide = torch.randn(40, 200)
    wide[:, 5] = 0.7
    assert diagnose_vectors(wide) == []


def test_a_teacher_whose_numbers_are_none(vectors, texts):
    teacher = vectors.copy()
    teacher[[3, 5], 1] = np.nan
    for found in (
        diagnose_vectors(vectors, teacher=teacher),
        diagnose_rows(texts, teacher, teacher="the teacher"),
    ):
        assert [finding.name for finding in found] == ["not a number"]
        assert found[0].seen == "2 of 64 of the teacher's vectors hold NaN or infinity"


def test_shuffled_rows(vectors, texts):
    for seed in range(2):
        (found,) = diagnose_rows(texts, np.random.default_rng(seed).permutation(vectors), teacher="teacher 'api'")
        assert found.name == "vectors of other texts"
        assert "of 64 texts" in found.seen
        assert "teacher 'api'" in found.seen


def test_rows_of_which_nothing_can_be_said(vectors, texts):
    assert diagnose_rows(texts[:20], vectors[19::-1]) == []
    numbers = [chr(0x4E00 + 7 * place) * 3 for place in range(64)]  # no two have a character in common
    assert diagnose_rows(numbers, vectors[::-1]) == []


def test_vectors_as_every_kind_of_encode_gives_them(vectors, texts):
    shuffled = np.random.default_rng(0).permutation(vectors)
    tensors = [torch.tensor(vector, requires_grad=True) for vector in shuffled]
    of_array = diagnose_rows(texts, shuffled)
    assert [finding.name for finding in of_array] == ["vectors of other texts"]
    for given in (tensors, torch.stack(tensors), torch.stack(tensors).to_sparse(), shuffled.tolist()):
        assert diagnose_rows(texts, given) == of_array


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (None, "NoneType instead"),
        ("vectors.npy", "str instead"),
        ([[1.0, None]], "list of values that are no numbers instead"),
        ([["1", "2"], ["3", "4"]], "list of texts instead"),
        (np.ones((3, 2), np.complex64), "ndarray of complex64 instead"),
        (torch.ones(3, 2, dtype=torch.complex64), "Tensor of torch.complex64 instead"),
    ],
)
def test_what_holds_no_numbers(given, got, vectors, texts):
    wanted = f"must be a matrix of numbers, of shape (texts, dim). Got {got}: give what model.encode gives."
    with pytest.raises(TypeError) as error:
        diagnose_vectors(given)
    assert str(error.value) == f"The 'vectors' {wanted}"
    with pytest.raises(TypeError) as error:
        diagnose_rows(texts, given)
    assert str(error.value) == f"The 'vectors' {wanted}"


def test_a_teacher_that_is_only_named(vectors):
    with pytest.raises(TypeError, match="The 'teacher' must be a matrix of numbers, .* Got str instead"):
        diagnose_vectors(vectors, teacher="the teacher")


def test_other_arguments_of_another_kind(vectors, texts):
    with pytest.raises(TypeError, match="The 'of' must be a text. Got int instead"):
        diagnose_vectors(vectors, of=3)
    with pytest.raises(TypeError, match="The 'teacher' must be a text. Got ndarray instead"):
        diagnose_rows(texts, vectors, teacher=vectors)
    for diagnose in (diagnose_vectors, lambda *given, **options: diagnose_rows(texts, *given, **options)):
        with pytest.raises(ValueError, match="The 'seed' must be a whole number from 0. Got 'x' instead"):
            diagnose(vectors, seed="x")
    for given in (None, 3, {"a": 1}, iter(texts)):
        with pytest.raises(TypeError, match=f"The 'texts' must be a list of texts. Got {type(given).__name__} instead"):
            diagnose_rows(given, vectors)
    with pytest.raises(TypeError, match="The 'texts' must be a list of texts. Got the one text"):
        diagnose_rows("x" * 64, vectors)
    with pytest.raises(TypeError, match="A text must be a str. Got None instead"):
        diagnose_rows([*texts[:-1], None], vectors)


def test_what_is_no_matrix(vectors, texts):
    with pytest.raises(ValueError, match="The 'vectors' must be a matrix of numbers, .* Got the shape .32,. instead"):
        diagnose_vectors(vectors[0])
    with pytest.raises(ValueError, match="Got vectors of different dimensions instead"):
        diagnose_vectors([[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match=r"Got the shape \(64, 0\) instead"):
        diagnose_vectors(vectors[:, :0])
    with pytest.raises(ValueError, match="The 'teacher' must have a vector for each of the 64 vectors. Got 3"):
        diagnose_vectors(vectors, teacher=vectors[:3])
    with pytest.raises(ValueError, match="The 'vectors' must be one for each of the 64 texts. Got 3"):
        diagnose_rows(texts, vectors[:3])
