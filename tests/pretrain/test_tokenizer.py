from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from st_distill.pretrain.tokenizer import WordTokenizer, train_tokenizer


def test_a_trained_tokenizer_is_read_back(tokenizers, kind, tmp_path, documents):
    trained = tokenizers[kind]
    trained.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read(documents[:5])["input_ids"] == trained(documents[:5])["input_ids"]
    assert read.mask_token_id == trained.mask_token_id
    assert len(read) == len(trained) <= {"wordpiece": 200, "bytes": 400}[kind]
    assert trained.decode(trained(documents[0]).input_ids, skip_special_tokens=True).replace(" .", ".") == documents[0]


def test_words_are_those_between_spaces(tokenizer):
    text = "bada gulo"
    (tokens,) = tokenizer.contents([text])
    assert tokens.words.max() == 1
    first = tokenizer.tokenizer.decode(tokens.input_ids[tokens.words == 0])
    assert first.strip() == "bada"


def test_framed_as_the_tokenizer_itself_does(tokenizer, documents):
    for text, tokens in zip(documents, tokenizer.contents(documents)):
        assert tokenizer.framed(tokens).input_ids.tolist() == tokenizer.tokenizer(text).input_ids
    assert tokenizer.added == 2


@pytest.mark.parametrize("limit", [1, 7, 30])
def test_the_beginning_of_a_long_text(tokenizer, documents, limit):
    """A text is cut before it is tokenised; words as long as the cut itself make no difference."""
    texts = [*documents, "bada" * 200, " " * 5000 + documents[0], "ba" * 20 + " bada" * 300]
    for whole, start in zip(tokenizer.contents(texts), tokenizer.contents(texts, limit=limit)):
        assert start.input_ids.tolist() == whole.input_ids[:limit].tolist()
        assert start.words.tolist() == whole.words[:limit].tolist()


def test_special_tokens_in_a_text_are_not_words(tokenizer):
    mask = tokenizer.tokenizer.mask_token
    (tokens,) = tokenizer.contents([f"bada {mask} gulo"])
    assert (tokens.words[tokens.input_ids == tokenizer.tokenizer.mask_token_id] == -1).all()
    assert not set(tokenizer.ordinary_ids.tolist()) & set(tokenizer.tokenizer.all_special_ids)


def test_tokens_as_words(tokenizers):
    (tokens,) = WordTokenizer(tokenizers["bytes"], whole_words=False).contents(["bada gulo"])
    assert tokens.words.tolist() == np.arange(len(tokens.input_ids)).tolist()


def test_unfit_tokenizers():
    unsplit = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"[MASK]": 0, "[PAD]": 1, "a": 2}, [])),
        mask_token="[MASK]",
        pad_token="[PAD]",
    )
    with pytest.raises(ValueError, match="must split texts into words for whole words to be masked"):
        WordTokenizer(unsplit)
    nothing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), pad_token="a")
    with pytest.raises(ValueError, match="must have a mask token"):
        WordTokenizer(nothing)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_words_to_learn_from(texts, kind):
    with pytest.raises(ValueError, match="must have words to learn a vocabulary from"):
        train_tokenizer(texts, kind=kind)
