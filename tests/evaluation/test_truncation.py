"""Texts that a model does not read to their end are told, whatever measures them."""

from __future__ import annotations

import pytest
from data_files import write

from st_distill.evaluation import read_task
from st_distill.evaluation.measuring import measure_tasks
from st_distill.evaluation.sweep import EncodedOnce
from st_distill.evaluation.truncation import tell_truncated, texts_of

#: Seven words, which are nine tokens.
LONG = "the quick cat sees a small fish"
ROWS = {
    "classification": [{"text": LONG, "label": 0}, {"text": "a dog", "label": 1}],
    "clustering": [{"text": LONG, "label": 0}, {"text": "a dog", "label": 1}],
    "pair_classification": [
        {"sentence1": LONG, "sentence2": "a dog", "label": 1},
        {"sentence1": "a cat", "sentence2": "a bird", "label": 0},
    ],
    "reranking": [{"query": "a dog", "positive": [LONG], "negative": ["a bird"]}],
    "retrieval": [{"query": "a dog", "document": LONG}, {"query": "a cat", "document": "a bird"}],
    "sts": [{"sentence1": LONG, "sentence2": "a dog", "score": 1}, {"sentence1": "a", "sentence2": "b", "score": 2}],
    "summarization": [{"human_summaries": ["a dog"], "machine_summaries": [LONG, "a cat"], "relevance": [1, 2]}],
}


@pytest.fixture
def make_task(tmp_path):
    def make(kind: str):
        write(tmp_path / kind / "test.jsonl", ROWS[kind])
        if kind == "classification":
            write(tmp_path / kind / "train.jsonl", ROWS[kind])
        (task,) = read_task(str(tmp_path / kind))
        return task

    return make


@pytest.mark.parametrize("kind", ROWS)
def test_the_texts_of_every_kind_are_those_that_are_encoded(kind, make_task, make_student):
    task, model = make_task(kind), make_student()
    model.prompts = {"query": "find ", "passage": "found ", "other": "of "}
    model.default_prompt_name = "other"
    assert task.kind == kind
    encoded = EncodedOnce(model, prompts={"query": "one "})
    task.evaluator(encoded.at())
    texts = texts_of(task.evaluator, model, {"query": "one "})
    assert set(texts) == set(encoded.texts())
    assert any(text.endswith(LONG) and text != LONG for text in texts)


def test_one_sentence_for_all_tasks(make_task, make_student, caplog):
    tasks = [make_task("sts"), make_task("retrieval"), make_task("clustering")]
    with caplog.at_level("WARNING", "st_distill"):
        measure_tasks(make_student(max_seq_length=8), tasks)
    (told,) = [record.getMessage() for record in caplog.records if "truncated" in record.getMessage()]
    assert told == (
        "3 of 10 texts (1 of sts, 1 of retrieval, 1 of clustering) have more tokens than the model's 8, up to 9, and are "
        "truncated there; its encoder can read 64 (max_seq_length)."
    )


def test_a_text_to_its_last_token_is_whole(make_student, caplog):
    with caplog.at_level("WARNING", "st_distill"):
        tell_truncated(make_student(max_seq_length=9), {"some": [LONG, LONG]})
        assert not caplog.records
        tell_truncated(make_student(max_seq_length=9), {"some": [f"{LONG} and", f"{LONG} and"]})
    assert (
        caplog.records[0]
        .getMessage()
        .startswith("1 of 1 texts (1 of some) have more tokens than the model's 9, up to 10")
    )
