"""A lock that one process holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from st_distill import locks
from st_distill.locks import FolderLock


def test_lock_is_for_one_and_ends_with_its_block(tmp_path):
    with (
        FolderLock(tmp_path, purpose="a test is running"),
        pytest.raises(BlockingIOError, match=rf"locked by process {os.getpid()} \(a test is running\); wait"),
    ):
        FolderLock(tmp_path, purpose="it is being repaired").__enter__()
    with FolderLock(tmp_path):
        (tmp_path / "lock").write_text("process 5\n")  # as earlier versions wrote it
        with pytest.raises(BlockingIOError, match="locked by process 5; wait"):
            FolderLock(tmp_path).__enter__()


def test_lock_ends_with_a_killed_process(tmp_path):
    script = (
        "import os, signal, sys; from st_distill.locks import FolderLock\n"
        "FolderLock(sys.argv[1]).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert "process" in (tmp_path / "lock").read_text()
    with FolderLock(tmp_path):
        pass


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_lock_ends_with_a_killed_process_that_has_children(tmp_path):
    """As the workers of a DataLoader are, which live on for seconds."""
    said, saying = os.pipe()
    child = os.fork()
    if not child:
        with FolderLock(tmp_path):
            if not (worker := os.fork()):
                signal.pause()
            os.write(saying, f"{worker}\n".encode())
            signal.pause()
    worker = int(os.read(said, 20))
    try:
        with pytest.raises(BlockingIOError, match=f"locked by process {child}"):
            FolderLock(tmp_path).__enter__()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    monkeypatch.setattr(locks.fcntl, "lockf", unsupported)
    with pytest.warns(RuntimeWarning, match="has no locks"), FolderLock(tmp_path):
        pass


def test_a_lock_whose_folder_was_removed_keeps_nobody_out_and_is_refused(tmp_path, monkeypatch):
    """Who has waited for it gets a file that is not there any more."""

    def after_the_removal(handle):
        (tmp_path / "lock").unlink()
        return True

    monkeypatch.setattr(locks, "lock", after_the_removal)
    with pytest.raises(BlockingIOError, match="is locked by"), FolderLock(tmp_path):
        pass


@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "a folder"), (os.mkfifo, "a pipe or a device")])
def test_what_is_no_file_is_no_lock(make, kind, tmp_path):
    make(tmp_path / "lock")
    with pytest.raises(ValueError, match=f"lock must be a file. It is {kind}: remove it."), FolderLock(tmp_path):
        pass
    assert not locks.is_locked(tmp_path / "lock")
