from __future__ import annotations

import warnings

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

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
    for wrong, message in (("the dog", "Got one text instead: put it into a list"), (["a", 1], "Got int at place 1")):
        with pytest.raises(TypeError, match=message):
            find_too_long(model, wrong)


@pytest.mark.parametrize(
    ("prompting", "prompt"),
    [({}, "the dog "), ({"prompt_name": "query"}, "the cat sees "), ({"prompt": "one "}, "one "), ({"prompt": ""}, "")],
)
def test_a_prompt_counts_as_it_does_in_encode(prompting, prompt, make_student):
    model = make_student(max_seq_length=16)
    model.prompts, model.default_prompt_name = {"query": "the cat sees ", "text": "the dog "}, "text"
    room = 14 - len(prompt.split())
    texts = ["a " * room, "a " * (room + 1)]
    with pytest.warns(UserWarning, match="1 of 2 texts \\(the first at place 1\\).* the model's 16, up to 17"):
        assert find_too_long(model, texts, **prompting) == [1]
    # The last word of the one is read, that of the other is not.
    read, cut = model.encode(texts, **prompting)
    changed = model.encode([text.strip()[:-1] + "dog" for text in texts], **prompting)
    assert not np.allclose(read, changed[0], atol=1e-4)
    np.testing.assert_allclose(cut, changed[1], atol=1e-6)


def test_a_prompt_that_is_none_of_the_model_s(make_student):
    model = make_student()
    model.prompts = {"query": "the cat sees ", "document": ""}
    with pytest.raises(ValueError, match="must be one of the model's \\('query', 'document'\\). Got 'queri' instead"):
        find_too_long(model, ["a cat"], prompt_name="queri")


def test_a_static_embedding_reads_any_length(make_student):
    static = StaticEmbedding(make_student().tokenizer, embedding_dim=8)
    assert find_too_long(SentenceTransformer(modules=[static], device="cpu"), ["a cat " * 1000], above="refuse") == []
