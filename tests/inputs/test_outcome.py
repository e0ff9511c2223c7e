"""What the tests of inputs take for words for a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from st_distill.tables import existing_path, text_rows


@pytest.mark.parametrize(
    "function",
    [
        lambda: chr(0x110000),
        lambda: json.loads("nothing at all"),
        lambda: Path("a\0b").read_bytes(),
        lambda: "\ud800, half a pair".encode(),
    ],
)
def test_the_words_of_python_are_none(function, outcome):
    with pytest.raises(ValueError, match=r"range\(0x110000\)|Expecting value|null byte|surrogates"):
        outcome(function)


def test_our_own_are_and_what_the_system_says_of_a_file(outcome, tmp_path):
    assert outcome(lambda: existing_path("nowhere.csv")).startswith("There is no file or folder 'nowhere.csv'")
    assert "none.csv" in outcome(lambda: list(text_rows(tmp_path / "none.csv")))
    assert outcome(lambda: None) == "success"
