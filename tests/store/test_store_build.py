"""What a build asks of whom, what survives its end, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from store_material import TEXTS, Counting, cosines_with, create, teacher_of

from st_distill import Teacher, TeacherStore
from st_distill.arrays import ArrayWriter
from st_distill.locks import FolderLock
from st_distill.stopping import Stopped, raising

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


@pytest.mark.parametrize(
    "texts",
    [
        ["a", ("what a cat is", "A cat is a small animal.")],
        [("what a cat is", "猫" * 65)],
        [(f"capital {number}", f"City-{number}") for number in range(40)],
        # Of texts of which the store knows some, and has taken some.
        [*(("a", f"role-{number}") for number in range(20)), *(("b", f"role-{number}") for number in range(4100))],
    ],
)
def test_documents_in_the_place_of_roles(tmp_path, texts):
    function = Counting()
    message = r"must be \(text, role\), .* as the role of '.*give .* as two texts, \(query, 'query'\) and \(document"
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "s", texts, function)
    assert not function.asked


def test_roles_of_their_own(tmp_path):
    function = Counting()
    pairs = [("a", "web search query"), *(("a", f"kind-{number}") for number in range(30)), ("b", None)]
    store = create(tmp_path / "s", pairs, function)
    assert len(store.roles) == 32
    assert len(create(tmp_path / "s", [("c", "web search query")], function)) == 33


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


def test_a_known_text_in_a_new_role_is_a_row_and_asks_nobody(tmp_path):
    function = Counting()
    create(tmp_path / "s", ["a", "bb"], function)
    create(tmp_path / "s", [("bb", "query")], function)
    store = TeacherStore.open(tmp_path / "s")
    assert store.ids(["bb"], role="query").tolist() == [2]
    assert sorted(function.asked) == ["a", "bb"]


def test_a_role_that_a_teacher_did_not_know_is_kept_without_a_new_file(tmp_path):
    function = Counting()
    first, second = teacher_of(function, "first"), teacher_of(function, "second")
    for texts, teachers in ((["a"], [first, second]), ([("a", "query")], [first]), ([("a", "query")], [second])):
        TeacherStore.create(tmp_path / "s", texts, teachers, show_progress=False)
    store = TeacherStore.open(tmp_path / "s")
    assert torch.equal(store.gather(store.ids(["a"], role="query")), store.gather(store.ids(["a"])))
    assert function.asked == ["a", "a"]


# --- identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"revision": "2"},
            "must have the revision '1', .* Got '2' instead; give it another name by its 'name' in the recipe",
        ),
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
    with pytest.raises(RuntimeError):
        create(path, TEXTS, Counting(fail_at=0))
    TeacherStore.create(path, TEXTS, teacher_of(Counting(), "second"), show_progress=False)  # with nothing left to ask
    assert TeacherStore.open(path).teachers == ["second"]


def test_teachers_keep_the_order_in_which_they_were_given(tmp_path):
    # The first has its vectors last: stored ones are read when all texts are known.
    bought = Teacher.from_vectors(np.eye(2), texts=["a", "b"], name="bought")
    store = TeacherStore.create(tmp_path / "s", iter(["a", "b"]), [bought, teacher_of(Counting())], show_progress=False)
    assert store.teachers == ["bought", "first"]
    assert store.dimensions == {"bought": 2, "first": 4}


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

    path = tmp_path / "s"
    append = ArrayWriter.append
    written = []

    def full(self, block):
        if len(written) == 13:  # of two for each vector, and two for the index
            self._broken = True
            raise OSError(28, "No space left on device")
        written.append(len(block))
        append(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(ArrayWriter, "append", full)
        with pytest.raises(OSError, match="No space left"):
            create(path, TEXTS, Counting(), shard_rows=4)
    assert not list(path.rglob("*.tmp"))
    again = Counting()
    create(path, TEXTS, again, shard_rows=4)
    assert sorted(again.asked) == TEXTS[4:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["vectors", "texts", "index", "description"])
def test_a_signal_while_files_are_closed_loses_nothing(number, name, tmp_path, monkeypatch):
    """It comes before the second shard's file (of that name) gets its own name."""
    path = tmp_path / "s"
    files = {
        "vectors": "00001.npy",
        "texts": "00001.texts.npy",
        "index": "00000.pairs.npy",
        "description": "store.json",
    }
    replace, function = os.replace, Counting()

    def stopped(source, target):
        if target.name == files[name] and len(function.asked) in (4, 8):
            os.kill(os.getpid(), number)
        replace(source, target)

    with monkeypatch.context() as patch, raising():
        patch.setattr(os, "replace", stopped)
        with pytest.raises(Stopped):
            create(path, TEXTS, function, shard_rows=4)
    assert len(function.asked) == (4 if name in ("index", "description") else 8)
    again = Counting()
    store = create(path, TEXTS, again)
    assert sorted(function.asked + again.asked) == TEXTS
    assert cosines_with(store, "first", TEXTS, function) == pytest.approx(1, abs=1e-5)


def test_a_signal_between_a_vector_and_its_text_number_loses_nothing(tmp_path, monkeypatch):

    path, function, append = tmp_path / "s", Counting(), ArrayWriter.append

    def stopped(self, block):
        append(self, block)
        if len(function.asked) == 3 and self.path.name == "00000.texts.npy":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, raising():
        patch.setattr(ArrayWriter, "append", stopped)
        with pytest.raises(Stopped):
            create(path, TEXTS, function)
    again = Counting()
    create(path, TEXTS, again)
    assert sorted(function.asked + again.asked) == TEXTS


def test_a_description_that_is_not_written_at_once_is_written_at_the_end(tmp_path, monkeypatch):
    from st_distill import files

    path, function, write, failures = tmp_path / "s", Counting(), files.write_json, [OSError("the disk is gone")]

    def failing(target, value):
        if failures:
            raise failures.pop()
        write(target, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", failing)
        with pytest.raises(OSError, match="the disk is gone"):
            create(path, TEXTS, function, shard_rows=4)
    again = Counting()
    create(path, TEXTS, again)
    assert (len(function.asked), len(again.asked)) == (4, 6)


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
