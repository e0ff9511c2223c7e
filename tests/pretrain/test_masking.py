from __future__ import annotations

import numpy as np
import pytest

from st_distill.pretrain.masking import IGNORED, WordMasker


@pytest.fixture
def make_masker(tokenizer):
    def make(**options) -> WordMasker:
        return WordMasker(
            mask_id=tokenizer.tokenizer.mask_token_id, ordinary_ids=tokenizer.ordinary_ids, **{"seed": 1, **options}
        )

    return make


@pytest.fixture
def rows(tokenizer, documents):
    return [tokenizer.framed(tokens) for tokens in tokenizer.contents(documents)]


def test_shares(make_masker, rows, tokenizer):
    """Some 35,000 words and 20,000 selected tokens: standard deviations are 0.003 and less."""
    masker = make_masker()
    words = selected_words = selected = tokens = masked = kept = other = 0
    for epoch in range(5):
        for ids, numbers in rows:
            shown, labels = masker(ids, numbers, epoch=epoch)
            chosen = labels != IGNORED
            words += len(set(numbers[numbers >= 0]))
            selected_words += len(set(numbers[chosen]))
            tokens += (numbers >= 0).sum()
            selected += chosen.sum()
            masked += (shown[chosen] == tokenizer.tokenizer.mask_token_id).sum()
            kept += (shown[chosen] == ids[chosen]).sum()
            other += ((shown[chosen] != ids[chosen]) & (shown[chosen] != tokenizer.tokenizer.mask_token_id)).sum()
    assert words > 30_000
    assert selected_words / words == pytest.approx(0.3, abs=0.003)
    assert selected / tokens == pytest.approx(0.3, abs=0.005)
    assert masked / selected == pytest.approx(0.8, abs=0.01)
    # A random token is the document's own once in a vocabulary.
    assert kept / selected == pytest.approx(0.1, abs=0.01)
    assert other / selected == pytest.approx(0.1, abs=0.01)


def test_whole_words_and_nothing_else(make_masker, rows, tokenizer):
    masker = make_masker()
    special = set(tokenizer.tokenizer.all_special_ids)
    seen_a_word_of_pieces = False
    for ids, numbers in rows:
        shown, labels = masker(ids, numbers, epoch=0)
        chosen = labels != IGNORED
        assert (labels[chosen] == ids[chosen]).all()
        assert (shown[~chosen] == ids[~chosen]).all()
        assert not chosen[numbers < 0].any()
        assert not special & set(labels[chosen].tolist())
        assert set(shown[chosen].tolist()) & special <= {tokenizer.tokenizer.mask_token_id}
        for word in set(numbers[numbers >= 0]):
            inside = chosen[numbers == word]
            assert inside.all() or not inside.any()
            seen_a_word_of_pieces |= len(inside) > 1 and bool(inside.all())
    assert seen_a_word_of_pieces


def test_a_choice_of_seed_epoch_and_document_alone(make_masker, rows):
    first, second = make_masker(), make_masker()
    forward = [first(*row, epoch=3) for row in rows]
    backward = [second(*row, epoch=3) for row in reversed(rows)][::-1]
    for one, other in zip(forward, backward):
        assert (one.input_ids == other.input_ids).all()
        assert (one.labels == other.labels).all()
    for changed in (make_masker(seed=2)(*rows[0], epoch=3), first(*rows[0], epoch=4)):
        assert (changed.labels != forward[0].labels).any()


def test_short_documents_have_a_word_to_find(make_masker):
    masker = make_masker()
    ids, numbers = np.array([2, 50, 51, 3]), np.array([-1, 0, 0, -1])
    for epoch in range(5):
        assert masker(ids, numbers, epoch=epoch).labels.tolist() == [IGNORED, 50, 51, IGNORED]
    assert (masker(np.array([2, 3]), np.array([-1, -1]), epoch=0).labels == IGNORED).all()


def test_all_words_masked_and_shown(make_masker, rows, tokenizer):
    shown, labels = make_masker(share=1.0, mask=0.0, random=0.0)(*rows[0], epoch=0)
    assert (shown == rows[0].input_ids).all()
    assert ((labels != IGNORED) == (rows[0].words >= 0)).all()
    shown, _ = make_masker(share=1.0, mask=1.0, random=0.0)(*rows[0], epoch=0)
    assert (shown[rows[0].words >= 0] == tokenizer.tokenizer.mask_token_id).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 0.0}, "The 'share' must be above 0 and at most 1. Got 0.0"),
        ({"share": 1.5}, "The 'share' must be above 0 and at most 1. Got 1.5"),
        ({"mask": 0.8, "random": 0.3}, "together at most 1. Got 0.8 and 0.3"),
        ({"random": -0.1}, "must be at least 0"),
    ],
)
def test_refused(make_masker, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_masker(**options)
