"""A run that is killed, stopped, or has no room, and then continues to the same result."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys

import pytest
from fault_helpers import ALL, forked, kill, same_results

from st_distill import files
from st_distill.verify import verify

DAMAGED = ["teachers/teachers/teacher/00000.npy", "stages/2-all/checkpoints/checkpoint-*/model.safetensors"]
SAMPLE = [(DAMAGED[0], 0), (DAMAGED[1], -1)]


def finish(project) -> None:
    ended = forked(lambda: project.run("--resume"), project.folder)
    assert ended.code == 0, ended.said
    assert verify(project.work).findings == []
    assert verify(project.folder / "out").findings == []


@pytest.mark.parametrize("seed", range(25 if ALL else 1))
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(seed, project, undisturbed):
    """Four kills each, 100 in all; the moments are spread over teachers, start, stages, checkpoints, export and report."""
    results, changes = undisturbed
    moments = random.Random(seed)
    for _ in range(4 if ALL else 2):
        # Later legs are shorter, so that some of them get to their end without being killed.
        ended = forked(
            lambda: project.run("--resume"), project.folder, moment=moments.randint(1, changes), happens=kill
        )
        assert ended.code in (0, -signal.SIGKILL), ended.said
    finish(project)
    same_results(project.results(), results)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if ALL else [signal.SIGTERM])
@pytest.mark.parametrize("share", [n / 10 for n in range(10)] if ALL else [0.6])
def test_a_signal_stops_a_run_in_order(number, share, project, undisturbed):
    results, changes = undisturbed

    def ask() -> None:
        os.kill(os.getpid(), number)

    ended = forked(project.run, project.folder, moment=max(1, int(share * changes)), happens=ask)
    assert ended.code == 128 + number, ended.said
    assert "Traceback" not in ended.said
    assert f"stopped by {signal.Signals(number).name}" in ended.said
    assert f"go on with: st-distill run {project.folder}/recipe.yaml --resume" in ended.said
    finish(project)
    same_results(project.results(), results)


@pytest.mark.parametrize("size", [100, 1_000, 3_000, 10_000, 30_000, 60_000, 100_000] if ALL else [3_000])
def test_a_full_disk_is_said_and_the_run_goes_on(size, project, undisturbed):
    results, _ = undisturbed
    ended = forked(project.run, project.folder, size=size)
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    assert "st-distill: " in ended.said
    finish(project)
    same_results(project.results(), results)


def test_a_second_run_in_one_folder_is_refused_until_the_first_has_died(project):
    project.work.mkdir()
    held, holding = os.pipe()
    first = os.fork()
    if not first:
        with files.FolderLock(project.work, purpose="a recipe is running there"):
            os.write(holding, b"held")
            signal.pause()
    assert os.read(held, 4) == b"held"
    second = forked(project.run, project.folder)
    assert second.code == 2
    assert f"is locked by process {first} (a recipe is running there)" in second.said
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert forked(project.run, project.folder).code == 0


@pytest.mark.parametrize(("file", "cut"), [(file, cut) for file in DAMAGED for cut in (0, -1)] if ALL else SAMPLE)
def test_damage_while_a_run_is_stopped(file, cut, project, undisturbed):
    """By a flipped bit (cut 0) or a missing end.

    The vectors: said before they are trained on. A checkpoint: left out, and an earlier one or the beginning taken.
    """
    results, changes = undisturbed
    moment = changes
    while not list(project.work.glob(file)):
        moment = moment * 9 // 10
        shutil.rmtree(project.work, ignore_errors=True)
        shutil.rmtree(project.folder / "out", ignore_errors=True)
        forked(project.run, project.folder, moment=moment, happens=kill)
    for path in project.work.glob(file):
        content = path.read_bytes()
        path.write_bytes(content[:cut] if cut else content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    if file.startswith("teachers"):
        ended = forked(lambda: project.run("--resume"), project.folder)
        assert ended.code == 2
        assert "The store is damaged" in ended.said
        assert f"st-distill verify {project.work}/teachers --repair" in ended.said
        assert verify(project.work / "teachers", repair=True, show_progress=False).is_whole
    finish(project)
    same_results(project.results(), results)


def test_no_pickle_is_run_and_no_token_is_written(project, undisturbed, monkeypatch):
    _, changes = undisturbed
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
    assert list(project.work.glob("stages/*/checkpoints/checkpoint-*"))  # so that a checkpoint is read
    assert not list(project.work.rglob("training_args.bin"))
    ended = forked(guarded, project.folder)
    assert ended.code == 0, ended.said
    assert token not in killed.said + ended.said
    for path in project.folder.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
