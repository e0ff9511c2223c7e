"""A corpus of made-up words, and tokenizers of both kinds trained on it."""

from __future__ import annotations

import random

import pytest

from st_distill.pretrain.tokenizer import WordTokenizer, train_tokenizer


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Sixty texts of 20 to 200 words; the words are of one to four syllables, the commoner the fewer."""
    generator = random.Random(7)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    words = ["".join(generator.choices(syllables, k=1 + index // 100)) for index in range(400)]
    weights = [1 / (1 + index) for index in range(400)]
    return [" ".join(generator.choices(words, weights, k=generator.randrange(20, 200))) + "." for _ in range(60)]


@pytest.fixture(scope="session", params=["wordpiece", "bytes"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tokenizers(documents):
    return {
        "wordpiece": train_tokenizer(documents, kind="wordpiece", vocab_size=200),
        "bytes": train_tokenizer(documents, kind="bytes", vocab_size=400),
    }


@pytest.fixture
def tokenizer(tokenizers, kind) -> WordTokenizer:
    return WordTokenizer(tokenizers[kind])


@pytest.fixture
def wordpiece(tokenizers) -> WordTokenizer:
    return WordTokenizer(tokenizers["wordpiece"])
