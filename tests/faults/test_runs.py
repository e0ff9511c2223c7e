"""A run that is killed, stopped, has no room, or whose clock goes back, and then continues to the same result."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import stat
import sys
import time
from unittest import mock

import pytest
import torch
from fault_helpers import (
    ALL,
    assert_told,
    fill_the_disk,
    forked,
    kill,
    kill_inside_a_file,
    killed_at_times,
    same_results,
    times,
    without_rights,
)

from st_distill import files
from st_distill.locks import FolderLock
from st_distill.recipe.checkpoints import SEAL, what_is_wrong
from st_distill.recipe.trainer import StageTrainer
from st_distill.verify import verify


@pytest.fixture
def subject(kind, request):
    """A project of the kind that the test is parametrized by, and what it comes to when nothing happens."""
    names = {"texts": ("project", "undisturbed"), "pictures": ("seeing_project", "undisturbed_seeing")}[kind]
    project, undisturbed = (request.getfixturevalue(name) for name in names)
    return project, undisturbed


def finish(project) -> None:
    ended = forked(lambda: project.run("--resume"), project.folder)
    assert ended.code == 0, ended.said
    assert verify(project.work).findings == []
    assert verify(project.folder / "out").findings == []
    assert not list(project.work.rglob(f"*{files.TEMPORARY}"))


#: The recipe of texts, or that with a stage of pictures, and a number.
KILLED = [("texts", n) for n in range(35)] + [("pictures", n) for n in range(10)]


@pytest.mark.parametrize(("kind", "seed"), KILLED if ALL else [KILLED[0], KILLED[-1]])
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(kind, seed, subject, record_property):
    """Up to four kills each; the moments are spread over teachers, start, stages, checkpoints, export and evaluation."""
    project, (results, changes, _) = subject
    moments, kills = random.Random(seed), 0
    for _ in range(4 if ALL else 2):
        # Later legs are shorter, so that some of them get to their end without being killed.
        ended = forked(
            lambda: project.run("--resume"), project.folder, moment=moments.randint(1, changes), happens=kill
        )
        assert ended.code in (0, -signal.SIGKILL), ended.said
        kills += ended.code != 0
    record_property("kills", kills)
    finish(project)
    same_results(project.results(), results)


#: The recipe, and the shares of an undisturbed run's time after which it is killed.
TIMED = [("texts", legs) for legs in times(28, seed=1)] + [("pictures", legs) for legs in times(12, seed=2)]


@pytest.mark.parametrize(("kind", "legs"), TIMED if ALL else [TIMED[1]], ids=str)
def test_a_run_killed_at_any_time_ends_as_an_undisturbed_one(kind, legs, subject, record_property):
    """By the clock: in the middle of a step, of a file, of what a library does."""
    project, (results, _, seconds) = subject
    kills = killed_at_times(lambda: project.run("--resume"), project.folder, legs, seconds)
    record_property("kills", kills)
    finish(project)
    same_results(project.results(), results)


def test_the_same_recipe_gives_the_same_weights_bit_for_bit(project, undisturbed):
    assert forked(project.run, project.folder).code == 0
    found, expected = project.results(), undisturbed.results
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if ALL else [signal.SIGTERM])
@pytest.mark.parametrize("share", [n / 10 for n in range(10)] if ALL else [0.6])
def test_a_signal_stops_a_run_in_order(number, share, project, undisturbed):
    results, changes, _ = undisturbed

    def ask() -> None:
        os.kill(os.getpid(), number)

    ended = forked(project.run, project.folder, moment=max(1, int(share * changes)), happens=ask)
    assert ended.code == 128 + number, ended.said
    assert_told(ended.said)
    assert f"stopped by {signal.Signals(number).name}" in ended.said
    assert f"go on with: st-distill run {project.folder}/recipe.yaml --resume" in ended.said
    finish(project)
    same_results(project.results(), results)


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_in_a_step_leaves_a_checkpoint_of_that_step(signals, project, undisturbed):
    """The second signal does not wait for it; every second step has a checkpoint anyway."""

    def asked_in_the_third_step() -> int:
        step, steps = StageTrainer.training_step, itertools.count(1)

        def asking(trainer, *given, **options):
            if next(steps) == 3:
                for _ in range(signals):
                    os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer, *given, **options)

        with mock.patch.object(StageTrainer, "training_step", asking):
            return project.run("--resume")

    ended = forked(asked_in_the_third_step, project.folder)
    assert ended.code == 128 + signal.SIGTERM, ended.said
    (last,) = project.work.glob("stages/1-projection/checkpoints/checkpoint-*")
    assert last.name == {1: "checkpoint-3", 2: "checkpoint-2"}[signals]
    assert what_is_wrong(last) is None
    finish(project)
    same_results(project.results(), undisturbed.results)


@pytest.mark.parametrize("share", [n / 25 for n in range(25)] if ALL else [0.6])
def test_a_run_killed_inside_a_file_goes_on(share, project, undisturbed, record_property):
    results, changes, _ = undisturbed
    moment = max(1, int(share * changes))
    ended = forked(project.run, project.folder, moment=moment, happens=kill_inside_a_file)
    assert ended.code == -signal.SIGXFSZ, ended.said
    record_property("kills", 1)
    finish(project)
    same_results(project.results(), results)


@pytest.mark.parametrize("size", [100, 1_000, 3_000, 10_000, 30_000, 60_000, 100_000] if ALL else [3_000])
def test_a_disk_without_room_for_a_file_is_said_and_the_run_goes_on(size, project, undisturbed):
    stopped_by_the_disk(forked(project.run, project.folder, size=size), project)
    finish(project)
    same_results(project.results(), undisturbed.results)


def stopped_by_the_disk(ended, project) -> None:
    assert ended.code == 2, ended.said
    assert_told(ended.said)
    assert re.search(r": '/[^']+'\. Make room on the disk", ended.said), ended.said  # which file
    assert f"What is done is kept; go on with: st-distill run {project.folder}" in ended.said


#: The kind of recipe, and how much of the run is done before no file takes another byte.
FULL = [("texts", n / 40) for n in range(40)] + [("pictures", n / 20) for n in range(20)]


@pytest.mark.parametrize(("kind", "share"), FULL if ALL else [FULL[32]])
def test_the_disk_is_full_from_some_change_on(kind, share, subject):
    project, (results, changes, _) = subject
    moment = max(1, int(share * changes))
    stopped_by_the_disk(forked(project.run, project.folder, moment=moment, happens=fill_the_disk), project)
    finish(project)
    same_results(project.results(), results)


@pytest.mark.parametrize("share", [n / 10 for n in range(1, 10)] if ALL else [0.7])
def test_the_clock_goes_back(share, project, undisturbed):
    """Before the run goes on, so that every file is of the future; and, in the run, at every look at it."""
    results, changes, _ = undisturbed

    def run() -> int:
        ticks = itertools.count()
        time.time = lambda: 1e9 - next(ticks)
        return project.run("--resume")

    forked(run, project.folder, moment=int(share * changes), happens=kill)
    for path in project.work.rglob("*"):
        os.utime(path, (4e9, 4e9))
    ended = forked(run, project.folder)
    assert ended.code == 0, ended.said
    finish(project)
    same_results(project.results(), results)


def test_a_folder_that_may_not_be_written_to(project):
    """A new run, one that goes on, and what only reads."""
    assert forked(project.run, project.folder).code == 0
    copy = project.folder / "elsewhere"
    copy.mkdir()
    places = [project.folder, *project.folder.rglob("*")]
    for path in places:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)

    def denied(*arguments: str) -> tuple[int, str]:
        def run() -> int:
            without_rights()
            return project.run(*arguments)

        ended = forked(run, project.folder)
        return ended.code, ended.said

    def read() -> int:
        without_rights()
        return len([*verify(project.work).findings, *verify(project.folder / "out").findings])

    try:
        for arguments in (["--resume"], ["--set", f"output={copy}/out"]):
            code, said = denied(*arguments)
            assert code == 2, said
            assert "Permission denied" in said
            assert str(project.folder) in said
            assert_told(said)
        assert forked(read, project.folder).code == 0
    finally:
        for path in places:
            path.chmod(0o755)


def test_a_second_run_in_one_folder_is_refused_until_the_first_has_died(project):
    project.work.mkdir()
    held, holding = os.pipe()
    first = os.fork()
    if not first:
        with FolderLock(project.work, purpose="a recipe is running there"):
            os.write(holding, b"held")
            signal.pause()
    assert os.read(held, 4) == b"held"
    second = forked(project.run, project.folder)
    assert second.code == 2
    assert f"is locked by process {first} (a recipe is running there)" in second.said
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert forked(project.run, project.folder).code == 0


def test_no_pickle_is_run_and_no_token_is_written(project, undisturbed, monkeypatch):
    changes = undisturbed.changes
    token = "hf_" + "secretsecret" * 3
    monkeypatch.setenv("HF_TOKEN", token)

    def guarded() -> int:
        def hook(event: str, arguments: tuple) -> None:
            if event == "pickle.find_class":
                raise RuntimeError(f"a pickle names {arguments}")

        sys.addaudithook(hook)
        return project.run("--resume")

    killed = forked(guarded, project.folder, moment=int(0.7 * changes), happens=kill)
    assert killed.code == -signal.SIGKILL, killed.said
    whole = [path.parent for path in project.work.glob(f"stages/*/checkpoints/checkpoint-*/{SEAL}")]
    assert whole  # so that a checkpoint is read
    assert not any((checkpoint / "training_args.bin").exists() for checkpoint in whole)
    ended = forked(guarded, project.folder)
    assert ended.code == 0, ended.said
    assert not list(project.work.rglob("training_args.bin"))
    assert token not in killed.said + ended.said
    for path in project.folder.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
