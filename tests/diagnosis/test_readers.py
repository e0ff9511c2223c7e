from __future__ import annotations

import pytest
from sentence_transformers import SentenceTransformer

from st_distill.diagnosis import Reader, diagnose_prompts, diagnose_reading


@pytest.fixture
def readers(make_student, tiny_qwen2):
    """A function that makes a student's and a teacher's reader: words, and the bytes of words."""

    def make(student: int, teacher: int, *, prompt: str = "") -> tuple[Reader, Reader]:
        models = [
            make_student(max_seq_length=student),
            make_student(source=tiny_qwen2, max_seq_length=teacher),
        ]
        return Reader.of(models[0], "the student"), Reader.of(models[1], "teacher 'two'", prompt=prompt)

    return make


def test_texts_that_one_of_the_two_cuts(readers, texts):
    assert diagnose_reading(texts, *readers(32, 128)) == []
    (found,) = diagnose_reading(texts, *readers(6, 128))
    assert found.name == "truncated differently"
    assert (
        "100 % of 64 texts are cut by the student at 6 tokens and read whole by teacher 'two' (128 tokens" in found.seen
    )
    assert found.remedy.startswith("give the student a larger max_seq_length")
    (found,) = diagnose_reading(texts, *readers(32, 20))
    assert "are cut by teacher 'two' at 20 tokens" in found.seen
    # The prompt takes tokens too.
    (found,) = diagnose_reading(texts, *readers(32, 128, prompt="word " * 30))
    assert "are cut by teacher 'two' at 128 tokens" in found.seen
    assert diagnose_reading(["", " "], *readers(6, 128)) == []


def test_words_that_the_student_does_not_know(readers):
    greek = ["ένα μικρό σπίτι στο βουνό", "το ποτάμι και η γάτα"] * 8
    (found,) = diagnose_reading(greek, *readers(32, 256))
    assert found.name == "tokenised differently"
    assert "unknown words to the student, and 0 % to teacher 'two'" in found.seen


def test_a_model_without_a_tokenizer():
    from sentence_transformers.sentence_transformer.modules import BoW

    assert Reader.of(SentenceTransformer(modules=[BoW(["a", "b"])]), "the teacher") is None


CONFIGURED = {"query": "query: ", "document": "", "passage": "passage: "}


def test_prompts_that_the_configuration_has():
    (found,) = diagnose_prompts("teacher 'e5'", CONFIGURED, roles={None})
    assert found.name == "prompts missing"
    assert "teacher 'e5' has prompts for query ('query: '), passage ('passage: '), and no text has one" in found.seen
    assert "{question: query}" in found.remedy
    assert len(diagnose_prompts("teacher", CONFIGURED, roles={"queries"})) == 1  # a role of another name
    assert diagnose_prompts("teacher", CONFIGURED, roles={None, "query"}) == []
    assert diagnose_prompts("teacher", CONFIGURED, roles={None}, default="query") == []
    assert diagnose_prompts("teacher", CONFIGURED, roles={None}, given="") == []
    assert diagnose_prompts("teacher", {"query": "", "document": ""}, roles={None}) == []


def test_prompts_that_only_the_card_has():
    card = 'Each text should start with "query: " or "passage: ".\n\n```python\ntexts = ["query: how much"]\n```'
    (found,) = diagnose_prompts("teacher 'e5'", {}, roles={None}, card=card)
    assert "the card of teacher 'e5' writes 'query: ' and 'passage: ' before texts" in found.seen
    assert diagnose_prompts("teacher", {}, roles={None}, given={"query": "query: "}, card=card) != []
    assert diagnose_prompts("teacher", {}, roles={"query"}, given={"query": "query: "}, card=card) == []
    assert diagnose_prompts("teacher", {}, roles={None}, card="This model answers a query: any.") == []


def test_arguments_of_another_kind(readers, texts):
    student, teacher = readers(32, 128)
    with pytest.raises(TypeError, match="The 'student' must be a Reader. Got NoneType instead: Reader.of gives"):
        diagnose_reading(texts, None, teacher)
    with pytest.raises(TypeError, match="The 'teacher' must be a Reader. Got str instead"):
        diagnose_reading(texts, student, "teacher")
    with pytest.raises(TypeError, match="The 'texts' must be a list of texts. Got NoneType instead"):
        diagnose_reading(None, student, teacher)
    with pytest.raises(TypeError, match="A text must be a str. Got None instead"):
        diagnose_reading([*texts, None], student, teacher)
    with pytest.raises(TypeError, match="The 'model' must be a SentenceTransformer. Got str instead"):
        Reader.of("all-MiniLM-L6-v2", "the teacher")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"teacher": None}, "The 'teacher' must be a text. Got NoneType instead"),
        ({"configured": None}, "The 'configured' must be a mapping from role to prompt. Got NoneType instead"),
        ({"roles": "query"}, "The 'roles' must be a list of roles, or of None. Got 'query' instead"),
        ({"roles": None}, "The 'roles' must be a list of roles, or of None. Got None instead"),
        ({"given": ["query: "]}, "The 'given' must be a prompt, a mapping from role to prompt, or None. Got list"),
        ({"card": 3}, "The 'card' must be a text. Got int instead"),
    ],
)
def test_prompts_of_another_kind(given, told):
    with pytest.raises(TypeError) as error:
        diagnose_prompts(**{"teacher": "teacher 'e5'", "configured": CONFIGURED, "roles": {None}} | given)
    assert str(error.value).startswith(told)
