from __future__ import annotations

import warnings

import pytest

from st_distill.modules.lengths import find_too_long


def test_too_long_texts_are_told_once_or_refused(make_student):
    model = make_student(max_seq_length=16)
    texts = ["a cat", "", "a cat " * 20, "the dog", "one " * 14, "one " * 15]  # two special tokens each
    with pytest.warns(UserWarning, match="2 of 6 texts \\(the first at place 2\\).* the model's 16, up to 42") as told:
        assert find_too_long(model, texts) == [2, 5]
    assert len(told) == 1
    with pytest.raises(ValueError, match="must have at most 16 tokens. Got 2 of 6 texts.* split them"):
        find_too_long(model, texts, above="refuse")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_too_long(model, texts[:2], above="refuse") == []
    with pytest.raises(ValueError, match="must be 'truncate' or 'refuse'. Got 'cut' instead"):
        find_too_long(model, texts, above="cut")
