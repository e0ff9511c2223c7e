"""How many texts a teacher is asked at once."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore
from st_distill.teacher.batches import Budget


def batches(lengths, tokens):
    lengths = np.array(lengths)
    return [lengths[places].tolist() for places in Budget(32, tokens).batches(np.arange(len(lengths)), lengths)]


def test_batches_by_length_under_a_budget():
    assert batches([3, 10, 1, 2, 4, 30], 12) == [[30], [10], [4, 3, 2], [1]]
    assert batches([1] * 5, 2) == [[1, 1], [1, 1], [1]]
    assert batches([0, 0], 5) == [[0, 0]]


def test_every_text_is_in_one_batch_and_padding_counts():
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    found = list(Budget(32, 1024).batches(np.arange(1000), lengths))
    assert sorted(np.concatenate(found).tolist()) == list(range(1000))
    assert max(len(places) * lengths[places].max() for places in found) <= 1024


def test_batches_of_texts_of_unknown_length():
    found = [places.tolist() for places in Budget(2).batches(np.arange(5))]
    assert found == [[0, 1], [2, 3], [4]]


class Recorder:
    """The batches that a model's encode was given, by their texts' lengths in words, and memory for so many padded words."""

    def __init__(self, model, monkeypatch, room=10**9, error=None):
        self.seen = []
        encode = model.encode

        def recorded(texts, **options):
            words = [len(text.split()) for text in texts]
            if len(words) * max(words) > room:
                raise error
            self.seen.append(words)
            return encode(texts, **options)

        monkeypatch.setattr(model, "encode", recorded)


#: Words of the tiny model's vocabulary are one token each; two more are put around a text.
TEXTS = [" ".join(["cat"] * count) for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)]


def test_a_model_is_asked_by_its_tokens(make_student, monkeypatch):
    model = make_student()
    expected = model.encode(TEXTS)
    record = Recorder(model, monkeypatch)
    vectors = Teacher(model, name="tiny", batch_tokens=24).encode(TEXTS)
    assert record.seen == [[10, 9], [8, 7], [6, 5, 4], [3, 2, 1]]
    assert np.allclose(vectors, expected, atol=1e-5)


def test_prompt_and_truncation_count(make_student, monkeypatch):
    model = make_student()
    record = Recorder(model, monkeypatch)
    # 2 tokens of the prompt, 2 special ones, and the limit of 8 for the longer texts.
    teacher = Teacher(model, "the dog ", name="tiny", batch_tokens=24, max_seq_length=8)
    teacher.encode(TEXTS)
    assert [len(batch) for batch in record.seen] == [3, 3, 3, 1]


def test_batch_size_is_of_texts_of_full_length(make_student, monkeypatch):
    model = make_student(max_seq_length=12)
    record = Recorder(model, monkeypatch)
    Teacher(model, name="tiny", batch_size=2).encode(TEXTS)
    assert record.seen == [[10, 9], [8, 7], [6, 5, 4], [3, 2, 1]]


def test_batches_on_the_cpu_have_2048_tokens(make_student, monkeypatch):
    model = make_student(max_seq_length=64).to("cpu")
    record = Recorder(model, monkeypatch)
    texts = [f"dog {'the ' * 57}{number}" for number in range(70)]  # of 62 tokens
    Teacher(model, name="tiny").encode(texts)
    assert [len(batch) for batch in record.seen] == [33, 33, 4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_out_of_memory_halves_the_batch_and_says_so(make_student, monkeypatch, caplog, error):
    model = make_student()
    expected = model.encode(TEXTS)
    record = Recorder(model, monkeypatch, room=12, error=error)
    teacher = Teacher(model, name="tiny", batch_tokens=24)
    with caplog.at_level(logging.WARNING):
        assert np.allclose(teacher.encode(TEXTS), expected, atol=1e-5)
    assert sorted(count for batch in record.seen for count in batch) == list(range(1, 11))
    assert [record.message.partition(". (")[0] for record in caplog.records] == [
        "Teacher 'tiny' ran out of memory with 2 texts; from here on a batch holds at most 12 tokens"
    ]
    record.seen.clear()
    teacher.encode(TEXTS)
    assert record.seen[0] == [10]  # what did not fit is not tried again


def test_out_of_memory_in_a_function(tmp_path, caplog):
    asked = []

    def function(texts):
        if len(texts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        asked.append(len(texts))
        return [[float(len(text)), 1.0] for text in texts]

    texts = ["x" * length for length in range(1, 21)]
    teacher = Teacher(function, name="f", revision="1", batch_size=10)
    store = TeacherStore.create(tmp_path / "s", texts, teacher, show_progress=False)
    assert sum(asked) == 20
    assert "at most 2 texts" in caplog.records[-1].message
    cosines = store.gather(store.ids(texts)) @ torch.tensor([1.0, 0.0])
    assert cosines.tolist() == pytest.approx([n / np.hypot(n, 1) for n in range(1, 21)], abs=1e-3)


def test_one_text_that_does_not_fit():
    def function(texts):
        raise torch.OutOfMemoryError("CUDA out of memory")

    teacher = Teacher(function, name="f", revision="1", batch_size=2)
    with pytest.raises(MemoryError, match="must fit into memory with one text at least. Got out of memory .* 3 char"):
        teacher.encode(["abc", "a"])


def test_other_failures_are_not_tried_again():
    asked = []

    def function(texts):
        asked.append(texts)
        raise RuntimeError("the teacher is gone")

    with pytest.raises(RuntimeError, match="the teacher is gone"):
        Teacher(function, name="f", revision="1").encode(["a", "b"])
    assert len(asked) == 1


def test_a_function_has_no_tokens():
    with pytest.raises(ValueError, match="'batch_tokens' parameter of Teacher is for a model"):
        Teacher(lambda texts: texts, name="f", revision="1", batch_tokens=5)
    with pytest.raises(
        ValueError, match="'batch_tokens' parameter of Teacher must be a whole number from 1, or None. Got 0"
    ):
        Teacher("tiny", batch_tokens=0)
