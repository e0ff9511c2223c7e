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


def test_what_is_no_matrix(vectors, texts):
    with pytest.raises(ValueError, match="The 'vectors' must be a matrix of shape"):
        diagnose_vectors(vectors[0])
    with pytest.raises(ValueError, match="The 'teacher' must have a vector for each of the 64 vectors. Got 3"):
        diagnose_vectors(vectors, teacher=vectors[:3])
    with pytest.raises(ValueError, match="The 'vectors' must be one for each of the 64 texts. Got 3"):
        diagnose_rows(texts, vectors[:3])
