"""Several processes that build one store."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore
from st_distill.files import write_json
from st_distill.locks import FolderLock, is_locked
from st_distill.store import processes
from st_distill.store.format import Description, Entry, File, TeacherShard, Variant

#: The files that a process may read: what it embedded goes to stdout, the rows of its store to stderr's last line.
BUILD = """
import json, os, signal, sys
import numpy as np
from st_distill import Teacher, TeacherStore

options = json.loads(sys.argv[1])
rank = int(os.environ["RANK"])
asked = []

def function(texts):
    for text in texts:
        asked.append(text)
        if rank == options.get("kill") and len(asked) == options["at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == options.get("fail") and len(asked) == options["at"]:
            raise RuntimeError("the teacher is gone")
    print(json.dumps(texts), flush=True)
    return np.array([[int(text.split()[1]) + 1, 1.0] for text in texts])

texts = options["texts"] if rank != options.get("other") else options["texts"] + ["text 1000"]
if options.get("reverse") and rank:
    texts = texts[::-1]
teacher = Teacher(function, name="t", revision="1", batch_size=1)
store = TeacherStore.create(options["path"], texts, teacher, shard_rows=4, show_progress=False)
vectors = store.gather(store.ids(options["texts"]))
print(json.dumps({"rows": len(store), "sum": float(vectors.sum())}))
"""


def start(rank, count, **options):
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, json.dumps(options, default=str)],
        env=environment,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(count, **options):
    """Exit status, texts asked, last line and errors of each process."""
    started = [start(rank, count, **options) for rank in range(count)]
    results = []
    for process in started:
        out, err = process.communicate(timeout=100)
        lines = [json.loads(line) for line in out.splitlines()]
        asked = [text for line in lines if isinstance(line, list) for text in line]
        results.append((process.returncode, asked, lines[-1] if lines else None, err))
    return results


TEXTS = [f"text {number}" for number in range(40)]


def check(path, texts=TEXTS):
    store = TeacherStore.open(path)
    numbers = np.array([int(text.split()[1]) + 1 for text in texts])
    cosines = store.gather(store.ids(texts)).numpy() @ np.array([1.0, 0.0])
    assert cosines == pytest.approx(numbers / np.hypot(numbers, 1), abs=1e-3)
    assert not (path / processes.FOLDER).exists()
    assert not list(path.rglob("*.tmp"))


def test_two_processes_share_the_work(tmp_path):
    path = tmp_path / "s"
    (code, first, end, _), (other_code, second, other_end, _) = run(2, path=path, texts=TEXTS, reverse=True)
    assert (code, other_code) == (0, 0)
    assert sorted(first + second) == sorted(TEXTS)
    assert min(len(first), len(second)) >= 8
    assert end == other_end
    check(path)
    # More texts, in the same way: what is there is not asked for again, by whichever process it was embedded.
    more = [f"text {number}" for number in range(60)]
    results = run(2, path=path, texts=more)
    assert [result[0] for result in results] == [0, 0]
    assert sorted(results[0][1] + results[1][1]) == sorted(more[40:])
    check(path, more)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_loses_its_open_shard_alone(tmp_path, killed):
    path = tmp_path / "s"
    results = run(2, path=path, texts=TEXTS, kill=killed, at=7)
    assert results[killed][0] == -9
    code, survived, _, error = results[1 - killed]
    assert code == 1
    assert f"ChildProcessError: Process {killed} of 2 that build the store" in error
    assert "has ended without a word" in error
    # The survivor keeps all it has embedded, the killed one its shards of 4.
    kept = len(survived) + 4
    again = run(1, path=path, texts=TEXTS)
    assert again[0][0] == 0
    assert len(again[0][1]) == len(TEXTS) - kept
    check(path)


def test_a_failure_is_seen_by_the_others(tmp_path):
    path = tmp_path / "s"
    results = run(2, path=path, texts=TEXTS, fail=1, at=7)
    assert [result[0] for result in results] == [1, 1]
    assert "RuntimeError: the teacher is gone" in results[1][3]
    assert "ChildProcessError: Process 1 of 2" in results[0][3]
    assert "It says: RuntimeError: the teacher is gone" in results[0][3]
    again = run(2, path=path, texts=TEXTS)
    assert [result[0] for result in again] == [0, 0]
    # Nothing is lost but the text that failed.
    assert sum(len(result[1]) for result in results + again) == len(TEXTS)
    check(path)


def test_other_texts_in_another_process(tmp_path):
    results = run(2, path=tmp_path / "s", texts=TEXTS, other=1)
    assert [result[0] for result in results] == [1, 1]
    assert "must be the same in all 2 processes. Process 1 has 1 that process 0 has not" in results[1][3]


def test_a_process_that_does_not_come(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_ARRIVAL_SECONDS", 0.2)
    teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="t", revision="1")
    options = {"show_progress": False}
    with pytest.raises(TimeoutError, match=r"the processes \[1\] have not; .* pass process=\(0, 1\)"):
        TeacherStore.create(tmp_path / "s", TEXTS, teacher, process=(0, 2), **options)
    with pytest.raises(TimeoutError, match=r"process 0 has not begun to write in .* pass process=\(0, 1\)"):
        TeacherStore.create(tmp_path / "s", TEXTS, teacher, process=(1, 2), **options)
    TeacherStore.create(tmp_path / "s", TEXTS, teacher, process=(0, 1), **options)
    assert not (tmp_path / "s" / processes.FOLDER / "current.json").exists()


def test_the_store_lock_is_left_to_the_first_process(tmp_path, monkeypatch):
    """To try a lock is to hold it for an instant, in which the first process could not take it, and would give up."""
    teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="t", revision="1")
    TeacherStore.create(tmp_path / "s", TEXTS[:2], teacher, show_progress=False)
    tried = []
    monkeypatch.setattr(processes, "is_locked", lambda path: tried.append(path))
    monkeypatch.setattr(processes, "_ARRIVAL_SECONDS", 0.2)
    with pytest.raises(TimeoutError):
        TeacherStore.create(tmp_path / "s", TEXTS, teacher, process=(1, 2), show_progress=False)
    assert tmp_path / "s" / FolderLock.NAME not in tried


def test_a_process_of_an_earlier_build_that_still_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_REMNANT_SECONDS", 0.2)
    session = tmp_path / "s" / processes.FOLDER / "0123456789abcdef"
    session.mkdir(parents=True)
    teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="t", revision="1")
    with (
        FolderLock(session, name="1.lock"),
        pytest.raises(BlockingIOError, match="still written to by process 1 of an earlier build"),
    ):
        TeacherStore.create(tmp_path / "s", TEXTS, teacher, show_progress=False)
    TeacherStore.create(tmp_path / "s", TEXTS, teacher, show_progress=False)
    assert not session.exists()


@pytest.mark.parametrize("is_stored", [True, False])
def test_each_vector_is_of_one_process(is_stored, tmp_path):
    """Two threads in the places of two processes: what exists is read by the first, what is asked is shared."""
    texts, vectors = [f"text {number}" for number in range(40)], np.eye(40, dtype=np.float32)
    asked = [[], []]

    def build(number: int) -> TeacherStore:
        def function(texts: list[str]) -> np.ndarray:
            asked[number] += texts
            return vectors[[int(text.split()[1]) for text in texts]]

        stored = Teacher.from_vectors(vectors, texts=texts, name="t")
        teacher = stored if is_stored else Teacher(function, name="t", revision="1")
        return TeacherStore.create(tmp_path / "s", texts, teacher, show_progress=False, process=(number, 2))

    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(build, range(2)))
    for store in stores:
        assert store.describe()["teachers"]["t"]["vectors"] == 40
        assert torch.equal(store.gather(store.ids(texts)), torch.eye(40))
    assert is_stored or (sorted(asked[0] + asked[1]) == sorted(texts) and min(map(len, asked)) > 5)


def test_texts_that_end_after_one_time(tmp_path):
    teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="t", revision="1")
    with pytest.raises(
        TypeError, match="gone through again .* because 2 processes build the store. Got a list_iterator"
    ):
        TeacherStore.create(tmp_path / "s", iter(TEXTS), teacher, process=(0, 2))


@pytest.mark.parametrize("process", [(2, 2), (-1, 2), (0, 0)])
def test_numbers_of_a_process_that_cannot_be(tmp_path, process):
    teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="t", revision="1")
    with pytest.raises(ValueError, match="'process' of TeacherStore.create must be the number of this process"):
        TeacherStore.create(tmp_path / "s", TEXTS, teacher, process=process)


class Clock:
    """Stands for the module ``time``: seconds go by in sleep alone, and what is planned happens in it."""

    def __init__(self):
        self.now = 1000.0
        self.planned = []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        while self.planned and self.planned[0][0] <= self.now:
            self.planned.pop(0)[1]()

    def after(self, seconds, function):
        self.planned.append((self.now + seconds, function))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(processes, "time", clock)
    monkeypatch.setattr(processes, "_POLL_SECONDS", 0.5)
    return clock


def session_in(folder):
    """Where the processes of the present build say how they are."""
    current = json.loads((folder / processes.FOLDER / "current.json").read_text())
    return folder / processes.FOLDER / current["session"]


@pytest.mark.parametrize("session", ["../../outside", "{outside}", "abc", 5, None, ""])
def test_a_strangers_session_leads_nowhere(session, tmp_path, clock):
    store, outside = tmp_path / "store", tmp_path / "outside"
    for folder in (outside, store / "processes" / "abc"):
        folder.mkdir(parents=True)
    noted = {"session": session.format(outside=outside) if isinstance(session, str) else session}
    write_json(store / "processes" / "current.json", noted if session != "" else [])
    with pytest.raises(ValueError, match=r"current.json must name the folder of a build beside it. .* remove it"):
        processes.Member(store, 1, 2).__enter__()
    assert list(outside.iterdir()) == []


def test_a_session_that_is_a_link_is_none(tmp_path, clock):
    (tmp_path / "outside").mkdir()
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / (16 * "a")).symlink_to(tmp_path / "outside")
    write_json(tmp_path / "processes" / "current.json", {"session": 16 * "a"})
    with pytest.raises(TimeoutError, match="process 0 has not begun"):
        processes.Member(tmp_path, 1, 2).__enter__()
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("state", [[], {"tickets": []}])
def test_a_strangers_word_of_a_process_is_told(state, tmp_path, clock):
    leader = processes.Leader(tmp_path, 0, 2)
    leader.__enter__()
    write_json(session_in(tmp_path) / "1.json", state)
    clock.sleep(2.0)
    with pytest.raises(ValueError, match=r"1.json must say what a process of a build does. .* remove it") as raised:
        leader.check()
    leader.__exit__(raised.type, OSError("ended"), None)


def test_another_process_is_looked_at_every_two_seconds(tmp_path, clock, monkeypatch):
    """However often a build asks, because each look reads files of a folder that may be far away."""
    looks = []
    monkeypatch.setattr(processes, "is_locked", lambda path: not looks.append(path))
    member = processes.Member(tmp_path, 1, 2)
    for _ in range(20):
        clock.sleep(0.5)
        member.check()
    assert looks == 5 * [tmp_path / processes.FOLDER / "0.lock"]


def test_a_failure_is_seen_at_the_next_look(tmp_path, clock):
    leader = processes.Leader(tmp_path, 0, 3)
    leader.__enter__()
    session = session_in(tmp_path)
    write_json(session / "1.json", {"state": "done"})
    write_json(session / "2.json", {"state": "failed", "error": "the disk is full"})
    leader.check()  # too soon
    clock.sleep(2.0)
    with pytest.raises(ChildProcessError, match="Process 2 of 3 .* It says: the disk is full") as raised:
        leader.check()
    leader.__exit__(raised.type, raised.value, raised.tb)
    # For the third process, which so ends too.
    assert json.loads((session / "0.json").read_text())["state"] == "failed"


def test_a_process_that_fails_says_why(tmp_path, clock):
    leader, member = processes.Leader(tmp_path, 0, 2), processes.Member(tmp_path, 1, 2)
    leader.__enter__()
    clock.after(0.5, leader.start)
    member.__enter__()
    member.__exit__(RuntimeError, RuntimeError("the teacher is gone"), None)
    with pytest.raises(
        ChildProcessError, match="Process 1 of 2 .* It says: RuntimeError: the teacher is gone"
    ) as raised:
        leader.finish()
    leader.__exit__(raised.type, raised.value, raised.tb)


def test_a_first_process_that_fails_before_it_begins_says_why(tmp_path, clock):
    leader = processes.Leader(tmp_path, 0, 2)
    leader.__enter__()
    session = session_in(tmp_path)
    clock.after(0.5, lambda: leader.__exit__(OSError, OSError("the disk is full"), None))
    with pytest.raises(ChildProcessError, match="Process 0 of 2 .* It says: OSError: the disk is full"):
        processes.Member(tmp_path, 1, 2).__enter__()
    assert json.loads((session / "1.json").read_text())["state"] == "failed"
    assert not is_locked(session / "1.lock")


def test_the_first_process_waits_ten_minutes_for_the_others(tmp_path, clock):
    def come():
        write_json(session_in(tmp_path) / "1.json", {"state": "here", "ticket": "drawn"})

    leader = processes.Leader(tmp_path, 0, 2)
    clock.after(599.0, come)
    with leader:
        leader.start()
        assert json.loads((session_in(tmp_path) / "0.json").read_text())["tickets"] == {"1": "drawn"}
    assert not (tmp_path / processes.FOLDER).exists()
    clock.after(600.8, come)
    late = processes.Leader(tmp_path, 0, 2)
    with pytest.raises(TimeoutError, match=r"Within 600 s, the processes \[1\] have not"), late:
        late.start()


def test_a_process_waits_as_long_as_the_first_one_registers_texts(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(processes, "_POLL_SECONDS", 10.0)
    leader, member = processes.Leader(tmp_path, 0, 2), processes.Member(tmp_path, 1, 2)
    leader.__enter__()
    clock.after(7200.0, leader.start)
    began = clock.now
    with member:
        assert clock.now == began + 7200
        assert member.salt == leader.salt
    assert json.loads((session_in(tmp_path) / "1.json").read_text())["state"] == "left"
    leader.__exit__(None, None, None)
    assert not (tmp_path / processes.FOLDER).exists()


def test_a_process_waits_ten_minutes_for_the_first_one(tmp_path, clock):
    """Also where one has come, and was killed before it began."""
    killed = processes.Leader(tmp_path, 0, 2)
    killed.__enter__()
    clock.after(300.0, killed._unlock)
    began = clock.now
    with pytest.raises(TimeoutError, match="Within 600 s, process 0 has not begun to write in"):
        processes.Member(tmp_path, 1, 2).__enter__()
    assert 900 <= clock.now - began <= 901


def test_a_living_process_of_an_earlier_build_has_ten_seconds_to_end(tmp_path, clock):
    session = tmp_path / processes.FOLDER / "0123456789abcdef"
    session.mkdir(parents=True)
    ending = FolderLock(session, name="1.lock")
    ending.__enter__()
    clock.after(9.0, lambda: ending.__exit__(None, None, None))
    remove = processes.adopt(tmp_path, Description(), processes.Alone(tmp_path))
    remove()
    assert not (tmp_path / processes.FOLDER).exists()
    session.mkdir(parents=True)
    began = clock.now
    with FolderLock(session, name="1.lock"), pytest.raises(BlockingIOError, match="by process 1 of an earlier build"):
        processes.adopt(tmp_path, Description(), processes.Alone(tmp_path))
    assert 10 <= clock.now - began <= 11


def test_what_cannot_be_removed_stays_for_the_next_build(tmp_path, monkeypatch):
    """As on a network disk, where an open file that is removed lives on under another name."""
    session = tmp_path / "s" / processes.FOLDER / "0123456789abcdef"
    session.mkdir(parents=True)
    teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="t", revision="1")

    def not_empty(path, **options):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", not_empty)
        assert len(TeacherStore.create(tmp_path / "s", TEXTS, teacher, show_progress=False)) == 40
    assert session.is_dir()
    assert len(TeacherStore.create(tmp_path / "s", TEXTS, teacher, show_progress=False)) == 40
    assert not session.parent.exists()


class TestJournal:
    @staticmethod
    def described(*names, name="t", dimension=2, **roles):
        """A description with shards of four rows, and a role with a prompt of its name for each argument."""

        def shard(stem):
            vectors, texts = (File(f"teachers/{name}/{stem}{end}.npy", 160, 64 * "0") for end in ("", ".texts"))
            return TeacherShard(4, "", None, vectors, texts)

        prompts = {role: Variant(prompt, None) for role, prompt in roles.items()}
        entry = Entry(name, "1", {}, dimension, "float32", prompts, [shard(stem) for stem in names])
        return Description(teachers={name: entry})

    @staticmethod
    def entered(folder, description, journal):
        """Number of vectors that the journal of process 1 adds."""
        member = processes.Member(folder, 1, 2)
        (folder / processes.FOLDER).mkdir(exist_ok=True)
        member.write_journal(journal)
        return processes.enter(folder, description, folder / processes.FOLDER / "1.journal.json")

    def test_is_entered_once(self, tmp_path):
        description = self.described("00000", "00001")
        assert self.entered(tmp_path, description, self.described("00001", "00001-1", "00002-1")) == 8
        wanted = self.described("00000", "00001", "00001-1", "00002-1")
        assert description == wanted
        assert self.entered(tmp_path, description, self.described("00001", "00001-1", "00002-1")) == 0
        assert description == wanted

    def test_brings_what_the_first_process_did_not_know(self, tmp_path):
        description = self.described(dimension=None, query="Query: ")
        assert self.entered(tmp_path, description, self.described("00000-1", document="Text: ")) == 4
        assert description == self.described("00000-1", query="Query: ", document="Text: ")

    def test_without_vectors_changes_nothing(self, tmp_path):
        description = self.described("00000", query="Query: ")
        assert self.entered(tmp_path, description, self.described(dimension=None, document="Text: ")) == 0
        assert description == self.described("00000", query="Query: ")

    def test_of_another_dimension(self, tmp_path):
        description = self.described("00000", dimension=3)
        with pytest.raises(
            ValueError, match=r"'t' must have one dimension in all processes. Got 3, and 2 in .*1.journal"
        ):
            self.entered(tmp_path, description, self.described("00000-1"))
        assert description == self.described("00000", dimension=3)

    def test_of_another_teacher(self, tmp_path):
        with pytest.raises(ValueError, match="there are vectors of teacher 'other', which store.json has not"):
            self.entered(tmp_path, self.described("00000"), self.described("00000-1", name="other"))
