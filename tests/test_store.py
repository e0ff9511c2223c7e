"""The teacher store: what is asked of whom, what is on disk, and what comes back."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore
from st_distill.files import FolderLock
from st_distill.store.format import Hashes


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Flushing to the disk takes most of the time here, and is tested with the files."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Counting:
    """A teacher that remembers what it was asked, and gives each text the vector that a table says."""

    def __init__(self, vectors=None, *, fail_at=None):
        self.vectors = vectors
        self.fail_at = fail_at
        self.asked = []

    def __call__(self, texts):
        for text in texts:
            if len(self.asked) == self.fail_at:
                raise RuntimeError("the teacher is gone")
            self.asked.append(text)
        return np.array([self.vector(text) for text in texts], dtype=np.float32)

    def vector(self, text):
        if self.vectors is not None:
            return self.vectors[text]
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4]
        return [byte - 127.5 for byte in digest]

    def unit(self, text):
        vector = np.array(self.vector(text), dtype=np.float64)
        return vector / np.linalg.norm(vector)


def teacher_of(function, name="first", **options):
    return Teacher(function, **({"name": name, "revision": "1", "batch_size": 1} | options))


def create(path, texts, *functions, **options):
    teachers = [teacher_of(function, name) for function, name in zip(functions, ("first", "second", "third"))]
    return TeacherStore.create(path, texts, teachers, show_progress=False, **options)


def cosines_with(store, name, texts, function, **options):
    vectors = store.gather(store.ids(texts, **options), teachers=[name]).numpy()
    return (vectors * np.stack([function.unit(text) for text in texts])).sum(axis=1)


TEXTS = [f"text {number}" for number in range(10)]


# --- what is asked


def test_equal_texts_are_asked_once_and_share_a_row(tmp_path):
    function = Counting()
    store = create(tmp_path / "s", ["a", "bb", "a", "ccc", "bb"], function)
    assert sorted(function.asked) == ["a", "bb", "ccc"]
    assert len(store) == 3
    assert store.ids(["a", "bb", "a", "ccc", "bb"]).tolist() == [0, 1, 0, 2, 1]
    assert cosines_with(store, "first", ["a", "bb", "ccc"], function) == pytest.approx(1, abs=1e-5)


def test_texts_are_asked_longest_first_within_a_shard(tmp_path):
    function = Counting()
    create(tmp_path / "s", ["a", "ccc", "bb", "eeeee", "d", "ffffff"], function, shard_rows=3)
    assert function.asked == ["ccc", "bb", "a", "ffffff", "eeeee", "d"]


def test_more_texts_and_more_teachers_ask_for_what_is_missing(tmp_path):
    first, second = Counting(), Counting()
    create(tmp_path / "s", TEXTS[:6], first)
    create(tmp_path / "s", TEXTS, first)
    assert sorted(first.asked) == TEXTS
    store = create(tmp_path / "s", iter(TEXTS), first, second)
    assert sorted(first.asked) == sorted(second.asked) == TEXTS
    assert store.teachers == ["first", "second"]
    assert store.ids(TEXTS).tolist() == list(range(10))
    create(tmp_path / "s", TEXTS, first, second)
    assert len(first.asked) == len(second.asked) == 10


def test_a_stored_corpus_loads_no_model_and_writes_nothing(tmp_path, tiny_bert, sentences, monkeypatch):
    import sentence_transformers

    options = {"name": "tiny", "device": "cpu", "prompts": "the "}
    TeacherStore.create(tmp_path / "s", sentences, Teacher(tiny_bert, **options), show_progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.name != "lock"}

    def fail(self, *args, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sentence_transformers.SentenceTransformer, "__init__", fail)
    TeacherStore.create(tmp_path / "s", sentences, Teacher(tiny_bert, **options), show_progress=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.name != "lock"} == before


def test_roles_with_one_prompt_share_their_vectors(tmp_path):
    function = Counting()
    teacher = teacher_of(function, prompts={"query": "q: ", "question": "q: "})
    pairs = [("a", "query"), ("a", "question"), ("a", None), "a", ("a", "document"), ["b", "query"]]
    store = TeacherStore.create(tmp_path / "s", pairs, teacher, show_progress=False)
    assert sorted(function.asked) == ["a", "q: a", "q: b"]
    assert store.roles == ["query", "question", None, "document"]
    assert len(store) == 5
    query, question, none, document = (
        store.ids(["a"], role=role)[0] for role in ("query", "question", None, "document")
    )
    assert len({query, question, none, document}) == 4
    vectors = store.gather([query, question, none, document])
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[2], vectors[3])
    assert vectors[0].numpy() @ function.unit("q: a") == pytest.approx(1, abs=1e-5)
    assert vectors[2].numpy() @ function.unit("a") == pytest.approx(1, abs=1e-5)


def test_one_role_for_all_texts(tmp_path):
    function = Counting()
    store = TeacherStore.create(
        tmp_path / "s", ["a"], teacher_of(function, prompts={"query": "q: "}), roles="query", show_progress=False
    )
    assert function.asked == ["q: a"]
    assert store.ids(["a"], role="query").tolist() == [0]


def test_several_models_are_in_memory_one_after_another(tmp_path):
    log = []

    def make(name):
        def function(texts):
            log.extend([name] * len(texts))
            return np.ones((len(texts), 2))

        return function

    create(tmp_path / "list", TEXTS[:4], make("first"), make("second"), shard_rows=2)
    assert log == ["first"] * 4 + ["second"] * 4
    log.clear()
    create(tmp_path / "generator", iter(TEXTS[:4]), make("first"), make("second"), shard_rows=4)
    assert log == ["first"] * 4 + ["second"] * 4
    log.clear()
    # A generator cannot be gone through twice, whatever its length: all teachers see each shard's worth of it.
    teachers = [teacher_of(make(name), name, batch_size=1024) for name in ("first", "second")]
    numbers = (str(number) for number in range(8192))
    TeacherStore.create(tmp_path / "long", numbers, teachers, shard_rows=4096, show_progress=False)
    assert log == (["first"] * 4096 + ["second"] * 4096) * 2


def test_strange_texts(tmp_path):
    texts = ["", " ", "\0", "a\0b", "\ud800", "\udc00 a", "é", "e\u0301", "x" * 100_000, "\u2028", "🙂"]
    store = create(tmp_path / "s", texts, Counting())
    assert store.ids(texts).tolist() == list(range(len(texts)))


# --- crashes


def test_a_failing_teacher_loses_its_batch_alone(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(RuntimeError, match="the teacher is gone"):
        create(path, TEXTS, Counting(fail_at=7), shard_rows=4)
    assert len(TeacherStore.open(path)) == 10  # the rows are known, though some have no vector yet
    with pytest.raises(ValueError, match=r"vector of teacher 'first' .* Got 3 of 10 without, the first row 7"):
        TeacherStore.open(path).gather(range(10))
    again = Counting()
    store = create(path, TEXTS, again, shard_rows=4)
    assert sorted(again.asked) == TEXTS[7:]
    assert cosines_with(store, "first", TEXTS, again) == pytest.approx(1, abs=1e-5)


KILLED = """
import os, signal, sys
import numpy as np
from st_distill import Teacher, TeacherStore

asked = 0

def function(texts):
    global asked
    asked += len(texts)
    if asked > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return np.array([[len(text), number] for number, text in enumerate(texts, 1)])

teacher = Teacher(function, name="first", revision="1", batch_size=1)
TeacherStore.create(sys.argv[1], [f"text {n}" for n in range(10)], teacher, shard_rows=4, show_progress=False)
"""


def test_a_killed_build_loses_its_open_shard_alone(tmp_path):
    path = tmp_path / "s"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path), "7"], check=False)
    assert killed.returncode == -9
    leftovers = [found.name for found in (path / "teachers" / "first").glob("*.tmp")]
    assert len(leftovers) == 2  # vectors and text numbers
    half = TeacherStore.open(path)
    assert half.gather(half.ids(TEXTS[:4])).shape == (4, 2)
    again = Counting({text: [3.0, 4.0] for text in TEXTS})
    store = create(path, TEXTS, again, shard_rows=4)
    assert sorted(again.asked) == TEXTS[4:]
    assert store.gather(store.ids(TEXTS)).shape == (10, 2)
    assert not list(path.rglob("*.tmp"))


def test_a_kill_before_the_description_leaves_no_trace_in_the_store(tmp_path, monkeypatch):
    from st_distill import files

    path = tmp_path / "s"
    create(path, TEXTS[:4], Counting(), shard_rows=4)
    before = (path / "store.json").read_bytes()

    def killed(target, value):
        raise SystemExit  # what is on disk now is what a kill between the files and the description leaves

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        with pytest.raises(SystemExit):
            create(path, TEXTS, Counting(), shard_rows=4)
    assert (path / "store.json").read_bytes() == before
    assert (path / "teachers" / "first" / "00001.npy").exists()
    assert len(TeacherStore.open(path)) == 4
    again = Counting()
    store = create(path, TEXTS, again)
    assert sorted(again.asked) == TEXTS[4:]
    assert cosines_with(store, "first", TEXTS, again) == pytest.approx(1, abs=1e-5)


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    from st_distill import files

    path = tmp_path / "s"
    append = files.ArrayWriter.append
    written = []

    def full(self, block):
        if len(written) == 13:  # of two for each vector, and two for the index
            self._broken = True
            raise OSError(28, "No space left on device")
        written.append(len(block))
        append(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(files.ArrayWriter, "append", full)
        with pytest.raises(OSError, match="No space left"):
            create(path, TEXTS, Counting(), shard_rows=4)
    assert not list(path.rglob("*.tmp"))
    again = Counting()
    create(path, TEXTS, again, shard_rows=4)
    assert sorted(again.asked) == TEXTS[4:]


def test_a_shard_is_closed_when_its_time_is_up(tmp_path):
    store = create(tmp_path / "s", TEXTS, Counting(), shard_seconds=0)
    assert len(list((tmp_path / "s" / "teachers" / "first").glob("?????.npy"))) == 10
    assert store.gather(range(10)).shape == (10, 4)


def test_a_second_build_is_refused(tmp_path):
    path = tmp_path / "s"

    def function(texts):
        with pytest.raises(BlockingIOError, match=r"is locked by process \d+ \(a store is being written\)"):
            create(path, TEXTS, Counting())
        return np.ones((len(texts), 2))

    create(path, ["a"], function)
    with FolderLock(path):
        assert len(TeacherStore.open(path)) == 1  # reading needs no lock


# --- identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "2"}, "must have the revision '1', .* Got '2' instead; give it another name"),
        ({"truncate_dim": 2}, r"must have the settings \{\}, .* Got \{'truncate_dim': 2\}"),
        ({"prompts": "q: "}, "must have the prompt for texts without a role '', .* Got 'q: '"),
    ],
)
def test_another_teacher_of_the_same_name(tmp_path, options, message):
    create(tmp_path / "s", ["a"], Counting())
    with pytest.raises(ValueError, match=message):
        TeacherStore.create(tmp_path / "s", ["b"], teacher_of(Counting(), **options), show_progress=False)
    store = TeacherStore.create(tmp_path / "s", ["a"], teacher_of(Counting(), "other", **options), show_progress=False)
    assert store.teachers == ["first", "other"]


def test_another_dtype_or_dimension(tmp_path):
    create(tmp_path / "s", ["a"], Counting())
    with pytest.raises(ValueError, match="must have the dtype 'float16', .* Got 'float32'"):
        create(tmp_path / "s", ["b"], Counting(), dtype="float32")
    with pytest.raises(ValueError, match="must have the dimension 4, .* Got 1"):
        create(tmp_path / "s", ["b"], Counting({"b": [1.0]}))
    with pytest.raises(ValueError, match="differ from 'first' in the store .* upper and lower case"):
        TeacherStore.create(tmp_path / "s", ["b"], teacher_of(Counting(), "First"), show_progress=False)


def test_a_teacher_without_vectors_can_be_replaced(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(RuntimeError):
        create(path, TEXTS, Counting(fail_at=0))
    with pytest.raises(ValueError, match=r"'first' has no vectors in the store .* yet. Run TeacherStore.create again"):
        _ = TeacherStore.open(path).dimension
    store = TeacherStore.create(path, TEXTS, teacher_of(Counting(), revision="2"), show_progress=False)
    assert store.describe()["teachers"]["first"]["revision"] == "2"


def test_a_teacher_that_failed_at_once_is_forgotten(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(RuntimeError):
        create(path, TEXTS, Counting(fail_at=0))
    store = TeacherStore.create(path, TEXTS, teacher_of(Counting(), "second"), show_progress=False)
    assert store.teachers == ["second"]


def test_teachers_keep_the_order_in_which_they_were_given(tmp_path):
    # The first has its vectors last: stored ones are read when all texts are known.
    bought = Teacher.from_vectors(np.eye(2), texts=["a", "b"], name="bought")
    store = TeacherStore.create(tmp_path / "s", iter(["a", "b"]), [bought, teacher_of(Counting())], show_progress=False)
    assert store.teachers == ["bought", "first"]
    assert store.dimensions == {"bought": 2, "first": 4}


# --- gather


def two_teachers(path, **options):
    """Rows 0 to 3 of two teachers, with vectors whose units are known: (1, 0) and (0.6, 0.8) and their like."""
    first = Counting({"a": [5.0, 0.0], "b": [0.0, 0.1], "c": [0.0, 0.0], "d": [0.0, 0.0]})
    second = Counting({"a": [3.0, 4.0, 0.0], "b": [0.0, 0.0, 1e30], "c": [0.0, 1e-30, 0.0], "d": [0.0, 0.0, 0.0]})
    return create(path, ["a", "b", "c", "d"], first, second, **options)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_gather_concatenates_units_and_makes_a_unit(tmp_path, dtype):
    store = two_teachers(tmp_path / "s", dtype=dtype)
    assert store.dimension == 5
    half = math.sqrt(0.5)
    expected = [
        [half, 0, 0.6 * half, 0.8 * half, 0],
        [0, half, 0, 0, half],
        [0, 0, 0, 1, 0],  # the first teacher's zeros stay zeros, and the second makes the unit alone
        [0, 0, 0, 0, 0],
    ]
    vectors = store.gather(np.arange(4))
    assert vectors.dtype == torch.float32
    assert vectors.device.type == "cpu"
    assert vectors.numpy() == pytest.approx(np.array(expected), abs=2e-4 if dtype == "float16" else 1e-6)
    assert vectors.norm(dim=1).numpy() == pytest.approx(np.array([1, 1, 1, 0]), abs=1e-6)


def test_gather_with_weights(tmp_path):
    store = two_teachers(tmp_path / "s", dtype="float32")
    expected = np.array([1, 0, 2 * 0.6, 2 * 0.8, 0]) / math.sqrt(5)
    for weights in ([1, 2], np.array([1, 2], np.float32), {"second": 2}, {"first": 1.0, "second": 2.0}):
        assert store.gather(0, weights=weights).numpy() == pytest.approx(expected, abs=1e-6)
    swapped = store.gather(0, teachers=["second", "first"], weights=[2, 1]).numpy()
    assert swapped == pytest.approx(np.roll(expected, 3), abs=1e-6)
    assert store.gather(0, weights=[0, 1]).numpy() == pytest.approx(np.array([0, 0, 0.6, 0.8, 0]), abs=1e-6)
    assert store.gather(2, weights=[1, 0]).abs().sum() == 0  # the weight is with zeros


def test_cosines_are_the_mean_by_squared_weights(tmp_path):
    first, second = Counting(), Counting({text: [len(text), index, 1.0] for index, text in enumerate(TEXTS)})
    store = create(tmp_path / "s", TEXTS, first, second, dtype="float32")
    together = store.gather(range(10), weights=[3, 4])
    apart = [store.gather(range(10), teachers=[name]) for name in ("first", "second")]
    mean = (9 * apart[0] @ apart[0].T + 16 * apart[1] @ apart[1].T) / 25
    assert torch.allclose(together @ together.T, mean, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        list,
        np.array,
        lambda ids: np.array(ids, np.uint8),
        torch.tensor,
        lambda ids: torch.tensor(ids, dtype=torch.int32),
    ],
)
def test_gather_takes_row_numbers_of_any_shape(tmp_path, make):
    store = create(tmp_path / "s", TEXTS, Counting(), shard_rows=3)
    ids = [[7, 0, 7], [3, 9, 1]]
    vectors = store.gather(make(ids))
    assert vectors.shape == (2, 3, 4)
    for row in range(2):
        for column in range(3):
            assert torch.equal(vectors[row, column], store.gather(ids[row][column]))
    assert store.gather(make(ids[0])[:0]).shape == (0, 4)


@pytest.mark.parametrize("ids", [[-1], [0, 10], 10, torch.tensor([[3, 99]])])
def test_row_numbers_outside(tmp_path, ids):
    store = create(tmp_path / "s", TEXTS, Counting())
    with pytest.raises(
        ValueError, match=r"Labels must be row numbers of the store .*, from 0 to 9. Got (-1|10|99), which"
    ):
        store.gather(ids)


@pytest.mark.parametrize("ids", [[0.0], torch.zeros(1), [True], ["a"], [None]])
def test_row_numbers_must_be_whole_numbers(tmp_path, ids):
    store = create(tmp_path / "s", TEXTS[:1], Counting())
    with pytest.raises(TypeError, match="Row numbers of a store must be whole numbers"):
        store.gather(ids)


def test_row_numbers_of_several_lengths(tmp_path):
    store = create(tmp_path / "s", TEXTS[:2], Counting())
    with pytest.raises(ValueError, match="Got rows of several lengths"):
        store.gather([[0, 1], [0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ["third"]}, r"distinct names of \['first', 'second'\]. Got \['third'\]"),
        ({"teachers": []}, "distinct names"),
        ({"teachers": ["first", "first"]}, "distinct names"),
        ({"weights": [1]}, "one number for each of the teachers"),
        ({"weights": 1}, r"one number for each of the teachers .* Got \[1\]"),
        ({"weights": [1, -1]}, "none negative"),
        ({"weights": [0, 0]}, "one at least above 0"),
        ({"weights": [1, math.inf]}, "none negative or infinite"),
        ({"weights": [1, math.nan]}, "none negative or infinite"),
        ({"weights": {"third": 1}}, r"for teachers among \['first', 'second'\]. Got \['third'\] too"),
    ],
)
def test_teachers_and_weights_that_cannot_be(tmp_path, options, message):
    store = two_teachers(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        store.gather(0, **options)
    with pytest.raises(ValueError, match=message):
        store.view(**options)


def test_rows_without_a_vector_of_one_teacher(tmp_path):
    first, second = Counting(), Counting()
    create(tmp_path / "s", ["a", ("b", "query")], first)
    store = create(tmp_path / "s", ["a"], first, second)
    with pytest.raises(
        ValueError, match=r"vector of teacher 'second' .* Got 1 of 2 without, the first row 1 \(role 'query'\)"
    ):
        store.gather([0, 1])
    assert store.gather([0, 1], teachers=["first"]).shape == (2, 4)
    assert store.gather([0]).shape == (1, 8)


def test_a_view_is_a_store_with_settled_teachers(tmp_path):
    store = two_teachers(tmp_path / "s")
    view = store.view(teachers=["second", "first"], weights={"first": 2})
    assert (view.teachers, view.dimension, len(view)) == (["second", "first"], 5, 4)
    assert torch.equal(
        view.gather(torch.arange(4)), store.gather(range(4), teachers=["second", "first"], weights=[1, 2])
    )
    assert view.ids(["b"]).tolist() == [1]
    assert store.view(teachers=["second"]).dimension == 3


def test_a_random_store_gives_back_what_was_put_in(tmp_path):
    generator = np.random.default_rng(0)
    texts = [f"{number} " + "x" * int(generator.integers(0, 50)) for number in range(3000)]
    vectors = {text: generator.standard_normal(8) for text in texts}
    function = Counting(vectors)
    path = tmp_path / "s"
    TeacherStore.create(path, texts[:1700], teacher_of(function, batch_size=64), shard_rows=500, show_progress=False)
    store = TeacherStore.create(path, texts, teacher_of(function, batch_size=64), shard_rows=700, show_progress=False)
    order = generator.permutation(3000)
    found = store.gather(order).numpy()
    expected = np.stack([function.unit(texts[place]) for place in order])
    assert np.abs(found - expected).max() < 1e-3
    assert store.ids([texts[place] for place in order]).tolist() == order.tolist()


# --- ids


def test_unknown_texts(tmp_path):
    store = create(tmp_path / "s", ["a", ("b", "query")], Counting())
    with pytest.raises(
        ValueError, match=r"in the store .* without a role. Got 2 of 3 that are not, the first 'x{60}…'"
    ):
        store.ids(["a", "x" * 100, "y"])
    with pytest.raises(ValueError, match=r"the first 'b'; it has this text in the roles \['query'\]"):
        store.ids(["b"])
    with pytest.raises(ValueError, match=r"in the role 'document'. Got 1 of 1"):
        store.ids(["a"], role="document")
    assert store.ids([]).dtype == np.int64


@pytest.mark.parametrize(("texts", "message"), [(["a", None], "NoneType at position 1"), ([3], "int at position 0")])
def test_texts_that_are_none(tmp_path, texts, message):
    store = create(tmp_path / "s", ["a"], Counting())
    with pytest.raises(TypeError, match=message):
        store.ids(texts)
    with pytest.raises(TypeError, match="one string instead"):
        store.ids("a")


def test_hashes_that_agree_in_their_first_half_are_told_apart():
    hashes = np.zeros((5, 16), dtype=np.uint8)
    hashes[:4, 15] = range(4)
    hashes[4, 0] = 1
    table = Hashes()
    table.add(hashes[:3])
    table.add(hashes[3:4])
    assert table.find(hashes[::-1]).tolist() == [-1, 3, 2, 1, 0]
    assert table.find(hashes[:0]).tolist() == []


def test_many_hashes_in_blocks_of_any_size():
    hashes = np.random.default_rng(0).integers(0, 256, (5000, 16), dtype=np.uint8)
    hashes[:100, :8] = 0  # they want one place
    table = Hashes()
    for first, last in [(0, 1), (1, 1), (1, 70), (70, 3000), (3000, 4990)]:
        table.add(hashes[first:last])
    assert table.find(hashes).tolist() == [*range(4990), *[-1] * 10]


# --- what is given


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a text", TypeError, "in a list or any other iterable. Got str instead"),
        ({"a": 1}, TypeError, "Got dict instead"),
        (3, TypeError, "Got int instead"),
        (["a", None], TypeError, "pair of strings. Got 'None' of type NoneType at position 1"),
        (["a", 3], TypeError, "int at position 1"),
        ([("a", "b", "c")], TypeError, "tuple at position 0"),
        ([("a", 3)], TypeError, "tuple at position 0"),
        ([{"text": "a"}], TypeError, "dict at position 0"),
        ([], ValueError, "must be one at least"),
        (iter([]), ValueError, "must be one at least"),
    ],
)
def test_texts_that_cannot_be(tmp_path, texts, error, message):
    with pytest.raises(error, match=message):
        create(tmp_path / "s", texts, Counting())


def test_arguments_that_cannot_be(tmp_path):
    teacher = teacher_of(Counting())
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").touch()
    for options, error, message in [
        ({"teachers": []}, ValueError, "must be one at least"),
        ({"teachers": [teacher, teacher_of(Counting(), "FIRST")]}, ValueError, "distinct names"),
        ({"teachers": Counting()}, TypeError, r"Teacher objects: Teacher\(model\)"),
        ({"teachers": [Counting()]}, TypeError, "Teacher objects"),
        ({"roles": ["query"]}, TypeError, "name of a role for all texts"),
        ({"roles": "query", "texts": [("a", "query")]}, TypeError, "must be a string. Got"),
        ({"dtype": "int4"}, ValueError, "'dtype' .* float32, float16, bfloat16, int8. Got 'int4'"),
        ({"shard_rows": 0}, ValueError, "'shard_rows' .* from 1. Got 0"),
        ({"path": tmp_path / "file"}, ValueError, "is a file: choose another name"),
        ({"path": tmp_path / "folder"}, ValueError, "it has other files"),
    ]:
        with pytest.raises(error, match=message):
            TeacherStore.create(**({"path": tmp_path / "s", "texts": ["a"], "teachers": [teacher]} | options))
    assert os.listdir(tmp_path / "folder") == ["precious.txt"]


# --- vectors that exist


def test_vectors_on_disk_are_taken_over(tmp_path):
    texts = [f"{number}" for number in range(2500)]
    vectors = np.random.default_rng(0).standard_normal((2500, 6)).astype(np.float32)
    np.save(tmp_path / "bought.npy", vectors)
    path = tmp_path / "s"

    def bought(count):
        np.save(tmp_path / "bought.npy", vectors[:count])
        return Teacher.from_vectors(tmp_path / "bought.npy", texts=texts[:count])

    wanted = texts[5:1500:3] + texts[5:9:3]
    store = TeacherStore.create(path, wanted, bought(2000), shard_rows=200, show_progress=False)
    assert len(store) == len(set(wanted)) == 499
    cosine = (store.gather(store.ids(wanted)).numpy() * vectors[[int(text) for text in wanted]]).sum(axis=1)
    assert cosine == pytest.approx(np.linalg.norm(vectors[[int(text) for text in wanted]], axis=1), rel=1e-3)
    # More rows were bought, and more texts are wanted, one of them in a role: the vectors are the same in every role.
    pairs = [(text, None) for text in texts[1900:]] + [("5", "query")]
    store = TeacherStore.create(path, pairs, bought(2500), show_progress=False)
    assert store.describe()["teachers"]["bought"]["vectors"] == 499 + 600
    assert torch.equal(store.gather(store.ids(["5"])), store.gather(store.ids(["5"], role="query")))
    with pytest.raises(
        ValueError, match=r"The vectors of bought.npy .* Got none for 2 of the texts, such as 'unheard'"
    ):
        TeacherStore.create(path, ["7", "unheard", "of"], bought(2500), show_progress=False)
    with pytest.raises(ValueError, match=r"Got none for 1 of the texts, such as 'text number \d+'"):
        TeacherStore.create(path, iter(["something else"]), bought(2500), show_progress=False)


def test_the_first_of_equal_texts_gives_its_vector(tmp_path):
    teacher = Teacher.from_vectors(np.eye(3), texts=["a", "b", "a"], name="bought")
    store = TeacherStore.create(tmp_path / "s", ["a", "b"], teacher, show_progress=False)
    assert store.gather(store.ids(["a", "b"])).tolist() == [[1, 0, 0], [0, 1, 0]]


# --- datasets


def pairs_dataset():
    from datasets import Dataset

    return Dataset.from_dict({"question": ["a", "b", "a"], "answer": ["b", "c", "d"], "number": [1, 2, 3]})


@pytest.fixture
def labelled_store(tmp_path):
    pairs = [(text, "query") for text in "ab"] + [(text, None) for text in "abcd"]
    return create(tmp_path / "s", pairs, Counting())


def test_labels_of_one_column(labelled_store):
    labelled = labelled_store.add_labels(pairs_dataset(), "answer")
    assert labelled["label"][:] == labelled_store.ids(["b", "c", "d"]).tolist()
    assert labelled.column_names == ["question", "answer", "number", "label"]
    assert labelled_store.add_labels(pairs_dataset(), ["answer"])["label"][:] == labelled["label"][:]
    shuffled = labelled_store.add_labels(pairs_dataset().select([2, 0]), "answer")
    assert shuffled["label"][:] == labelled_store.ids(["d", "b"]).tolist()
    assert labelled_store.view().add_labels(pairs_dataset(), "question", roles="query")["label"][:] == [0, 1, 0]


@pytest.mark.parametrize("kind", ["dataset", "stream", "unknown stream", "dictionary"])
def test_labels_of_several_columns(labelled_store, kind):
    from datasets import DatasetDict, IterableDataset

    dataset = pairs_dataset()
    if kind == "stream":
        dataset = dataset.to_iterable_dataset()
    elif kind == "unknown stream":
        dataset = IterableDataset.from_generator(lambda: iter(pairs_dataset()))
        assert dataset.column_names is None
    elif kind == "dictionary":
        dataset = DatasetDict({"train": dataset})
    labelled = labelled_store.add_labels(dataset, ["question", "answer"], roles={"question": "query"})
    rows = list(labelled["train"] if kind == "dictionary" else labelled)
    questions = labelled_store.ids(["a", "b", "a"], role="query")
    answers = labelled_store.ids(["b", "c", "d"])
    assert [row["label"] for row in rows] == np.stack([questions, answers], axis=1).tolist()
    assert rows[0]["question"] == "a"


def test_labels_collate_to_integers(labelled_store, make_student):
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    labelled = labelled_store.add_labels(pairs_dataset().remove_columns("number"), ["answer", "question"])
    batch = SentenceTransformerDataCollator(preprocess_fn=make_student().preprocess)(list(labelled))
    assert batch["label"].dtype == torch.int64
    assert batch["label"].shape == (3, 2)
    assert labelled_store.gather(batch["label"]).shape == (3, 2, 4)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"columns": "title"}, ValueError, r"must be columns of the dataset, .* Got \['title'\] too"),
        (None, {"columns": []}, ValueError, "distinct names, one at least"),
        (None, {"columns": ["answer", "answer"]}, ValueError, "distinct names"),
        (None, {"columns": "number"}, TypeError, "text of column 'number' must be a string. Got int at position 0"),
        (None, {"columns": "answer", "roles": {"question": "query"}}, ValueError, r"for columns among \['answer'\]"),
        (None, {"columns": "answer", "roles": 3}, TypeError, "mapping of columns to roles"),
        (None, {"columns": "answer", "roles": "query"}, ValueError, "text of column 'answer' must be in the store"),
        ("score", {"columns": "answer"}, ValueError, r"no label column yet.*\['score'\]: remove or rename"),
        ("label", {"columns": "answer"}, ValueError, r"remove_columns\(\['label'\]\)"),
        (list, {"columns": "answer"}, TypeError, "must be a datasets.Dataset, IterableDataset.* Got list"),
    ],
)
def test_labels_that_cannot_be(labelled_store, change, options, error, message):
    dataset = pairs_dataset()
    if isinstance(change, str):
        dataset = dataset.rename_column("number", change)
    elif change is not None:
        dataset = change(dataset)
    with pytest.raises(error, match=message):
        labelled_store.add_labels(dataset, **options)


def test_empty_values_in_a_text_column(labelled_store):
    from datasets import Dataset

    with pytest.raises(TypeError, match="text of column 'answer' must be a string. Got NoneType at position 1"):
        labelled_store.add_labels(Dataset.from_dict({"answer": ["a", None]}), "answer")


# --- copies and processes


def test_copies_read_the_same(tmp_path):
    store = create(tmp_path / "s", TEXTS, Counting(), Counting(), shard_rows=3)
    expected = store.gather(range(10))
    for other in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store), copy.copy(store)):
        assert torch.equal(other.gather(range(10)), expected)
        assert other.ids(TEXTS).tolist() == list(range(10))
    view = pickle.loads(pickle.dumps(store.view(teachers=["second"])))
    assert torch.equal(view.gather([1]), store.gather([1], teachers=["second"]))
    assert len(pickle.dumps(store)) < 20_000  # the index, not the vectors


class Rows(torch.utils.data.Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, row):
        return self.store.gather(row)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # torch starts the workers, in a process with threads
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_store_works_in_loader_workers(tmp_path):
    store = create(tmp_path / "s", TEXTS, Counting(), shard_rows=3)
    expected = store.gather(range(10))  # the parent's maps are open when the workers are forked
    loader = torch.utils.data.DataLoader(Rows(store), batch_size=5, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


def test_an_open_store_is_a_snapshot(tmp_path):
    store = create(tmp_path / "s", TEXTS[:5], Counting())
    create(tmp_path / "s", TEXTS, Counting())
    assert len(store) == 5
    assert len(TeacherStore.open(tmp_path / "s")) == 10
    assert store.gather(range(5)).shape == (5, 4)


def test_open_shards_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr("st_distill.store.store._OPEN_SHARDS", 2)
    store = create(tmp_path / "s", TEXTS, Counting(), shard_rows=1)
    assert store.gather(range(10)).shape == (10, 4)
    assert store._map.cache_info().currsize == 2


def test_progress_is_shown_on_standard_error(tmp_path, capsys):
    TeacherStore.create(tmp_path / "s", TEXTS[:4], teacher_of(Counting()))
    TeacherStore.create(tmp_path / "s", TEXTS, teacher_of(Counting()))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "first: 4 of 4 texts, " in shown.err
    assert "first: 6 of 6 texts, " in shown.err  # what was there already is no work
    TeacherStore.create(tmp_path / "s", TEXTS, teacher_of(Counting()))
    assert capsys.readouterr().err == ""  # and nothing is shown of no work
    create(tmp_path / "s", [*TEXTS, "new"], Counting())
    assert capsys.readouterr().err == ""


# --- the format


def test_the_format_can_be_read_with_numpy_alone(tmp_path):
    path = tmp_path / "s"
    function = Counting()
    teacher = teacher_of(function, prompts={"query": "q: "})
    pairs = [("a", None), ("b", "query"), ("a", "query"), ("c", None)]
    store = TeacherStore.create(path, pairs, teacher, shard_rows=1, show_progress=False)

    description = json.loads((path / "store.json").read_text())
    assert (description["format"], description["version"]) == ("st-distill teacher store", 1)
    hashes = np.concatenate([np.load(path / shard["hashes"]["file"]) for shard in description["index"]])
    rows = np.concatenate([np.load(path / shard["pairs"]["file"]) for shard in description["index"]])
    entry = description["teachers"]["first"]
    assert (entry["dimension"], entry["dtype"], entry["normalized"], entry["revision"]) == (4, "float16", True, "1")
    assert len(rows) == 4
    for text, role in pairs:
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        number = [row.tobytes() for row in hashes].index(digest)
        row = rows.tolist().index([number, description["roles"].index(role or "")])
        put = entry["roles"][role or ""]
        found = [
            vector
            for shard in entry["shards"]
            if (shard["prompt"], shard["task"]) == (put["prompt"], put["task"])
            for vector, owner in zip(np.load(path / shard["vectors"]["file"]), np.load(path / shard["texts"]["file"]))
            if owner == number
        ]
        assert len(found) == 1
        assert np.linalg.norm(found[0].astype(np.float64)) == pytest.approx(1, abs=1e-3)
        assert store.ids([text], role=role) == row
        assert np.allclose(store.gather(row).numpy(), found[0].astype(np.float32), atol=1e-3)
    for file in [shard[kind] for shard in entry["shards"] for kind in ("vectors", "texts")]:
        content = (path / file["file"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_what_a_store_says_of_itself(tmp_path):
    described = two_teachers(tmp_path / "s").describe()
    assert (described["texts"], described["rows"], described["roles"]) == (4, 4, [None])
    second = described["teachers"]["second"]
    assert (second["dimension"], second["dtype"], second["vectors"], second["prompts"]) == (3, "float16", 4, {None: ""})
    assert second["bytes"] == sum(
        found.stat().st_size for found in (tmp_path / "s" / "teachers" / "second").glob("*.npy")
    )


def edited(path: Path, edit) -> None:
    description = json.loads((path / "store.json").read_text())
    del description["sha256"]  # an edit by hand, which a description without a checksum allows
    edit(description)
    (path / "store.json").write_text(json.dumps(description))


def shard_of(description):
    return description["teachers"]["first"]["shards"][0]


def rename_teacher(description):
    description["teachers"]["../up"] = description["teachers"].pop("first")


def lead_out(description):
    shard_of(description)["vectors"]["file"] = "teachers/first/../../../secret.npy"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(format="other"), "does not describe a teacher store"),
        (lambda d: d.update(version=2), "has version 2 .* reads version 1. Install a later one"),
        (lambda d: d.update(version="1"), "version must be a whole number, but is"),
        (lambda d: d.update(version=True), "version must be a whole number"),
        (lambda d: d.pop("roles"), "roles must be a list of distinct strings, but is 'None'"),
        (lambda d: d.update(roles=["", ""]), "roles must be a list of distinct strings"),
        (lambda d: d.update(roles=[]), "a row names a text or a role outside"),
        (lambda d: d.update(index={}), "index must be a list"),
        (lambda d: d.update(index=[]), r"outside the 0 texts"),
        (lambda d: d.update(index=[3]), r"index\[0\] must be an object, but is '3'"),
        (lambda d: d["index"][0].update(texts=9), r"there is uint8 of shape \(10, 16\), where store.json says"),
        (lambda d: d["index"][0].update(rows=-1), r"index\[0\].rows must be a whole number from 0"),
        (lambda d: d.update(teachers=[]), "teachers must be an object"),
        (rename_teacher, r"teachers has the name '../up', which cannot be a folder's"),
        (lead_out, r"shards\[0\].vectors must name an npy file in teachers/first"),
        (lambda d: d["teachers"]["first"].update(dtype="int4"), r"dtype of float32, .*, int8 \(or needs a later"),
        (lambda d: d["teachers"]["first"].update(dtype="float32"), r"there is float16 .* says float32"),
        (lambda d: d["teachers"]["first"].update(normalized=False), r"must be normalized \(or needs a later"),
        (lambda d: d["teachers"]["first"].update(dimension=5), r"shape \(4, 4\), where .* shape \(4, 5\)"),
        (lambda d: d["teachers"]["first"].update(dimension=None), "must have a dimension"),
        (lambda d: d["teachers"]["first"].update(roles=None), "teachers.first.roles must be an object"),
        (lambda d: d["teachers"]["first"].update(revision=1), "revision must be a string, but is '1'"),
        (lambda d: shard_of(d).update(rows=3), r"shape \(4, 4\), where store.json says float16 of shape \(3, 4\)"),
        (lambda d: shard_of(d)["vectors"].update(bytes=1), "there are 160 bytes, where store.json says 1"),
        (lambda d: shard_of(d)["texts"].update(sha256="0"), "has not the sha256"),
        (lambda d: shard_of(d).pop("prompt"), "prompt must be a string"),
    ],
)
def test_descriptions_that_cannot_be(tmp_path, edit, message):
    path = tmp_path / "s"
    create(path, TEXTS, Counting(), shard_rows=4)
    edited(path, edit)
    with pytest.raises(ValueError, match=message):
        TeacherStore.open(path)


def test_unknown_fields_of_the_description_are_left_alone(tmp_path):
    path = tmp_path / "s"
    create(path, TEXTS, Counting())
    edited(path, lambda description: description.update(note="made on a Monday"))
    assert len(TeacherStore.open(path)) == 10


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null"])
def test_a_broken_description(tmp_path, content):
    path = tmp_path / "s"
    create(path, TEXTS, Counting())
    (path / "store.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"store.json (is not a JSON file|does not describe a teacher store)"):
        TeacherStore.open(path)


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no teacher store, because it has no store.json"):
        TeacherStore.open(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no teacher store"):
        TeacherStore.open(tmp_path / "none")
    (tmp_path / "teachers").mkdir()
    create(tmp_path / "teachers", TEXTS, Counting())
    with pytest.raises(FileNotFoundError, match="is the work folder of a run. Open the store in it: .*teachers"):
        TeacherStore.open(tmp_path)


def test_a_store_that_is_opened_while_its_first_build_runs(tmp_path):
    def function(texts):
        with pytest.raises(
            FileNotFoundError, match="no store.json yet, because its first build has not finished a file"
        ):
            TeacherStore.open(tmp_path / "s")
        return [[1.0]] * len(texts)

    create(tmp_path / "s", TEXTS, function)
    assert len(TeacherStore.open(tmp_path / "s")) == len(TEXTS)


FILES = [
    "index/00000.hashes.npy",
    "index/00000.pairs.npy",
    "teachers/first/00000.npy",
    "teachers/first/00000.texts.npy",
]


@pytest.mark.parametrize("file", FILES)
def test_missing_truncated_and_changed_files(tmp_path, file):
    path = tmp_path / "s"
    create(path, TEXTS, Counting(), shard_rows=4)
    content = (path / file).read_bytes()
    name = file.replace(".", r"\.")
    (path / file).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"The store is damaged: in .*{name}, there are \d+ bytes, where .* Restore"):
        TeacherStore.open(path)
    (path / file).write_bytes(b"\0" * len(content))
    with pytest.raises(ValueError, match=rf"{name}, (there is no array|the content has not the sha256)"):
        TeacherStore.open(path)
    (path / file).unlink()
    with pytest.raises(ValueError, match=rf"{name}, there is no such file"):
        TeacherStore.open(path)
    with pytest.raises(ValueError, match=rf"{name}, there is no such file"):
        create(path, TEXTS, Counting())


@pytest.mark.parametrize("file", [file for file in FILES if file != "teachers/first/00000.npy"])
def test_a_flipped_bit_of_the_index_is_seen(tmp_path, file):
    path = tmp_path / "s"
    create(path, TEXTS, Counting(), shard_rows=4)
    content = bytearray((path / file).read_bytes())
    content[-1] ^= 1
    (path / file).write_bytes(content)
    with pytest.raises(ValueError, match="has not the sha256"):
        TeacherStore.open(path)


def test_text_numbers_outside(tmp_path):
    from st_distill import files

    path = tmp_path / "s"
    create(path, TEXTS, Counting())
    writer = files.ArrayWriter(path / "teachers/first/00000.texts.npy", np.dtype("<i8"))
    writer.append(np.arange(1, 11))
    written = writer.close()
    edited(path, lambda description: shard_of(description)["texts"].update(written._asdict()))
    with pytest.raises(ValueError, match="a text number is outside the 10 texts"):
        TeacherStore.open(path)


def test_a_link_out_of_the_store(tmp_path):
    path = tmp_path / "s"
    create(path, TEXTS, Counting())
    shard = path / "teachers" / "first" / "00000.npy"
    shard.rename(tmp_path / "elsewhere.npy")
    shard.symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(ValueError, match="a link leads out of the store"):
        TeacherStore.open(path)


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "s"
    create(path, TEXTS, Counting())
    for name in (
        "index/00007.hashes.npy",
        "teachers/first/00009.npy",
        "teachers/first/00003.npy.1.tmp",
        "store.json.2.tmp",
    ):
        (path / name).touch()
    (path / "teachers" / "first" / "notes.txt").touch()
    (path / "README.md").touch()
    store = create(path, [*TEXTS, "new"], Counting())
    present = {found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()}
    assert {"teachers/first/notes.txt", "README.md"} <= present
    assert not any(name.endswith(".tmp") or "00007" in name or "00009" in name for name in present)
    assert len(store) == 11


@pytest.mark.parametrize("count", [2, 4])
def test_vectors_with_a_text_too_many_or_too_few_give_none(tmp_path, count):
    """A header line in a file of texts shifts every vector, also where the texts that are asked for come before its end."""
    teacher = Teacher.from_vectors(np.eye(3, dtype=np.float32), texts=["a", "b", "c", "d"][:count], name="bought")
    with pytest.raises(ValueError, match=f"as many as the vectors of ndarray. Got {count} texts for 3 vectors"):
        TeacherStore.create(tmp_path / "store", ["a"], [teacher], show_progress=False)
