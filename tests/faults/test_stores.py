"""A store whose building is killed, has no room, may not write, or has a teacher that fails."""

from __future__ import annotations

import os
import random
import shutil
import signal
from functools import partial

import numpy as np
import pytest
from fault_helpers import ALL, assert_told, fill_the_disk, forked, kill, killed_at_times, times, without_rights

from st_distill import Teacher, TeacherStore
from st_distill.cli import main
from st_distill.store.damage import find_damage
from st_distill.verify import verify

TEXTS = [f"text {number}" for number in range(40)]


def vectors_of(texts: list[str]) -> np.ndarray:
    return np.stack([np.random.default_rng([*text.encode()]).normal(size=8) for text in texts])


class Asked:
    """A teacher that counts its texts, and does something at the n-th (from 0)."""

    def __init__(self, at: int | None = None, happens=None) -> None:
        self.at, self.happens, self.count = at, happens, 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        first, self.count = self.count, self.count + len(texts)
        vectors = vectors_of(texts)
        if self.at is not None and first <= self.at < self.count:
            return self.happens(vectors, self.at - first)
        return vectors


def build(folder, function=vectors_of, **options) -> TeacherStore:
    teacher = Teacher(function, name="first", revision="1", batch_size=4)
    options = {"dtype": "float32", "shard_rows": 8, "show_progress": False} | options
    return TeacherStore.create(folder, TEXTS, teacher, **options)


def is_right(folder) -> None:
    assert find_damage(folder) == []
    store = TeacherStore.open(folder)
    expected = vectors_of(TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(store.gather(store.ids(TEXTS)).numpy(), expected, atol=1e-6)


def built_by_a_child(folder, **options) -> int:
    build(folder, **options)
    return 0


@pytest.mark.parametrize("seed", range(40 if ALL else 3))
def test_a_build_that_is_killed_goes_on(seed, tmp_path, record_property):
    changes = forked(lambda: built_by_a_child(tmp_path / "whole"), tmp_path).changes
    moments, kills = random.Random(seed), 0
    for _ in range(2):
        moment = moments.randint(1, changes)
        ended = forked(lambda: built_by_a_child(tmp_path / "s"), tmp_path, moment=moment, happens=kill)
        assert ended.code in (0, -signal.SIGKILL), ended.said
        kills += ended.code != 0
    record_property("kills", kills)
    build(tmp_path / "s")
    is_right(tmp_path / "s")
    assert not list((tmp_path / "s").rglob("*.tmp"))


@pytest.mark.parametrize("legs", times(48, seed=3) if ALL else times(2, seed=3)[1:], ids=str)
def test_a_build_killed_at_any_time_goes_on(legs, tmp_path, record_property):
    """By the clock; a row in each shard, so that more of the time goes by in writing."""
    whole = forked(lambda: built_by_a_child(tmp_path / "whole", shard_rows=1), tmp_path)
    killed = partial(built_by_a_child, tmp_path / "s", shard_rows=1)
    record_property("kills", killed_at_times(killed, tmp_path, legs, whole.seconds))
    build(tmp_path / "s", shard_rows=1)
    is_right(tmp_path / "s")
    assert not list((tmp_path / "s").rglob("*.tmp"))


@pytest.mark.parametrize("share", [n / 30 for n in range(1, 30)] if ALL else [0.2, 0.5, 0.8])
def test_a_repair_that_is_killed_hides_nothing(share, tmp_path):
    build(tmp_path / "whole")
    damaged = tmp_path / "whole" / "teachers" / "first" / "00002.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    store = shutil.copytree(tmp_path / "whole", tmp_path / "s")

    def repair(folder) -> int:
        teacher = Teacher(vectors_of, name="first", revision="1", batch_size=4)
        return 0 if verify(folder, repair=True, texts=TEXTS, teachers=teacher, show_progress=False).is_whole else 1

    changes = forked(lambda: repair(tmp_path / "whole"), tmp_path).changes
    ended = forked(lambda: repair(store), tmp_path, moment=max(1, int(share * changes)), happens=kill)
    assert ended.code == -signal.SIGKILL, ended.said
    if verify(store).is_whole:
        is_right(store)
    assert repair(store) == 0
    is_right(store)


@pytest.mark.parametrize("size", range(20, 1500, 40) if ALL else [20, 300, 700])
def test_a_full_disk(size, tmp_path):
    def limited() -> int:
        try:
            build(tmp_path / "s")
        except OSError as error:
            print(error)
            return 2
        return 0

    ended = forked(limited, tmp_path, size=size)
    assert ended.code in (0, 2), ended.said
    build(tmp_path / "s")
    is_right(tmp_path / "s")


@pytest.mark.parametrize("share", [n / 30 for n in range(30)] if ALL else [0.5])
def test_the_disk_is_full_from_some_change_on(share, tmp_path):
    changes = forked(lambda: built_by_a_child(tmp_path / "whole"), tmp_path).changes

    def limited() -> int:
        try:
            build(tmp_path / "s")
        except OSError:
            return 2
        return 0

    ended = forked(limited, tmp_path, moment=max(1, int(share * changes)), happens=fill_the_disk)
    assert ended.code == 2, ended.said
    build(tmp_path / "s")
    is_right(tmp_path / "s")


def test_a_folder_that_may_not_be_written_to(tmp_path):
    folder = tmp_path / "s"
    build(folder)
    places = [folder, *folder.rglob("*")]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def denied() -> int:
        without_rights()
        is_right(folder)
        try:
            TeacherStore.create(folder, ["new"], Teacher(vectors_of, name="first", revision="1"))
        except PermissionError as error:
            print(error)
            return 2
        return 0

    ended = forked(denied, tmp_path)
    for path in places:
        path.chmod(0o755)
    assert ended.code == 2, ended.said
    assert str(folder) in ended.said


def failing(vectors, place):
    raise RuntimeError("the teacher's server is gone")


def not_a_number(vectors, place):
    vectors[place] = np.nan
    return vectors


FAULTS = {
    "raises": (failing, RuntimeError, "the teacher's server is gone"),
    "NaN": (not_a_number, ValueError, "Got NaN or infinity"),
    "another dimension": (
        lambda vectors, place: vectors[:, :-1],
        ValueError,
        "vectors of one dimension|have the dimension",
    ),
    "a row too few": (lambda vectors, place: vectors[:-1], ValueError, "must return a vector for every text"),
    "a row too many": (
        lambda vectors, place: np.concatenate([vectors, vectors]),
        ValueError,
        "a vector for every text",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("row", range(40) if ALL else [0, 21])
def test_a_teacher_that_fails_at_a_row(fault, row, tmp_path):
    happens, kind, message = FAULTS[fault]
    if row < 4 and fault == "another dimension":
        pytest.skip("the first answer says what the dimension is")
    with pytest.raises(kind, match=message):
        build(tmp_path / "s", Asked(row, happens))
    again = Asked()
    build(tmp_path / "s", again)
    assert again.count == len(TEXTS) - row // 4 * 4  # whole batches before the failing one are kept
    is_right(tmp_path / "s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("row", range(0, 40, 4) if ALL else [22])
def test_a_teacher_that_hangs_can_be_stopped(number, row, tmp_path):
    from st_distill.stopping import Stopped, raising

    def hang(vectors, place):
        os.kill(os.getpid(), number)  # what an impatient user does meanwhile
        signal.pause()

    def stopped() -> int:
        try:
            with raising():
                build(tmp_path / "s", Asked(row, hang))
        except Stopped as error:
            return 128 + error.number
        return 0

    assert forked(stopped, tmp_path).code == 128 + number
    again = Asked()
    build(tmp_path / "s", again)
    assert again.count == len(TEXTS) - row // 4 * 4
    is_right(tmp_path / "s")


def test_two_builds_in_one_folder(tmp_path):
    ready, waiting = os.pipe()

    def hang(vectors, place):
        os.write(waiting, b"here")
        signal.pause()

    first = os.fork()
    if not first:
        build(tmp_path / "s", Asked(12, hang))
    assert os.read(ready, 4) == b"here"
    with pytest.raises(BlockingIOError, match=f"is locked by process {first}"):
        build(tmp_path / "s")
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    build(tmp_path / "s")
    is_right(tmp_path / "s")


def test_the_command_names_the_model_whose_weights_are_cut_short(project, capsys):
    """A sentence, although the libraries raise errors of their own."""
    folder = shutil.copytree(_student(project), project.folder / "student")
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    assert main(["run", str(project.folder / "recipe.yaml"), "--set", f"student.model={folder}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert_told(said)
    assert str(folder) in said


def _student(project) -> str:
    import yaml

    return yaml.safe_load((project.folder / "recipe.yaml").read_text())["student"]["model"]
