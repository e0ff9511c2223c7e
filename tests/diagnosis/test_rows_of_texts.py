from __future__ import annotations

import pytest

from st_distill.diagnosis import Finding, diagnose_duplicates, diagnose_overlap


def test_duplicates(texts):
    assert diagnose_duplicates(texts) == []
    (found,) = diagnose_duplicates([*texts[:60], *(f"  {text.upper()}" for text in texts[:20])])
    assert found.name == "duplicates"
    assert "20 of 80 rows (25 %) were there before, such as" in found.seen
    assert diagnose_duplicates([*texts, texts[0]]) == []  # below the share
    assert len(diagnose_duplicates([*texts, texts[0]], share=0)) == 1


@pytest.mark.parametrize(("text", "seen"), [(" ", "such as ' '"), ("\t\n", r"such as '\t\n'"), ("", "such as ''")])
def test_a_text_of_spaces_is_shown_as_it_is(text, seen):
    (found,) = diagnose_duplicates([text, text])
    assert found.seen.endswith(seen)


def test_rows_of_pairs_are_equal_where_both_texts_are():
    assert diagnose_duplicates([("a", "b"), ("a", "c"), ("ab", "")], share=0) == []
    (found,) = diagnose_duplicates([("a", "b"), ("a", "b")])
    assert "1 of 2 rows (50 %)" in found.seen


def test_overlap(texts):
    assert diagnose_overlap(texts[:32], texts[32:]) == []
    (found,) = diagnose_overlap(iter(texts), ["new", texts[3].title(), texts[3]], what="test set")
    assert found.name == "evaluation texts in training"
    assert "1 of 2 texts of the test set (50 %) are training texts too, such as 'a cat" in found.seen
    assert diagnose_overlap(texts, ["new", texts[3]], share=0.5) == []


@pytest.mark.parametrize("share", [-0.1, 1, "0.5", None, float("nan")])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match="The 'share' must be from 0 to below 1"):
        diagnose_duplicates([], share=share)
    with pytest.raises(ValueError, match="The 'share' must be from 0 to below 1"):
        diagnose_overlap([], [], share=share)


def test_what_is_no_list_of_texts():
    with pytest.raises(TypeError, match="The 'rows' must be a list of texts. Got the one text 'abc' instead"):
        diagnose_duplicates("abc")
    with pytest.raises(TypeError, match="The 'train' must be a list of texts"):
        diagnose_overlap("x", ["x"])
    with pytest.raises(TypeError, match="The 'held_out' must be a list of texts"):
        diagnose_overlap(["x"], "x")
    with pytest.raises(TypeError, match="A text must be a str. Got 1 instead"):
        diagnose_overlap([1], ["x"])
    for given in (None, 3, b"abc", {"a": ["x"]}):  # such as a DatasetDict
        wanted = f"must be a list of texts. Got {type(given).__name__} instead"
        with pytest.raises(TypeError, match=f"The 'rows' {wanted}"):
            diagnose_duplicates(given)
        with pytest.raises(TypeError, match=f"The 'train' {wanted}"):
            diagnose_overlap(given, ["x"])
        with pytest.raises(TypeError, match=f"The 'held_out' {wanted}"):
            diagnose_overlap(["x"], given)
    with pytest.raises(TypeError, match="The 'what' must be a text. Got int instead"):
        diagnose_overlap(["x"], ["x"], what=3)


@pytest.mark.parametrize("row", [None, 3, (), {"text": "a"}])
def test_what_is_no_row(row):
    with pytest.raises(TypeError) as error:
        diagnose_duplicates(["a", row])
    told = f"A row must be a text, or a tuple of its texts. Got {row!r} instead: leave it out, or write it so."
    assert str(error.value) == told
    with pytest.raises(TypeError, match="A text must be a str. Got None instead"):
        diagnose_duplicates([("a", None)])


def test_a_finding_as_a_sentence():
    finding = Finding(name="a name", seen="it was 3", means="it is bad", remedy="mend it")
    assert str(finding) == "a name: it was 3. That means: it is bad. What to do: mend it."
    assert finding.as_json() == {"name": "a name", "seen": "it was 3", "means": "it is bad", "remedy": "mend it"}
