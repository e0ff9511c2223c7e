"""Files that are whole or absent, and a lock that one process holds."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from st_distill import files


def test_json_round_trip_keeps_unpaired_surrogates(tmp_path):
    value = {"prompt": "naïve \ud800", "rows": [1, 2.5, None, True]}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value


def test_json_has_no_not_a_number(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "not utf-8", "deep"])
def test_broken_json_is_a_sentence_with_the_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not a JSON file"):
        files.read_json(tmp_path / "a.json")


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail() -> None:
        with files.replacing(path) as file:
            file.write(b"half of the new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_new_content_has_the_name_only_after_the_flush(tmp_path, monkeypatch):
    order = []
    flush, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("flush"), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), replace(old, new)))
    files.write_bytes(tmp_path / "a", b"x")
    assert order == ["flush", "rename", "flush"]  # content, name, folder


@pytest.mark.parametrize("shape", [(3, 2), (6,)])
def test_written_array_is_described(tmp_path, shape):
    array = np.arange(6, dtype=np.int64).reshape(shape)
    writer = files.ArrayWriter(tmp_path / "a.npy", array.dtype, *shape[1:])
    writer.append(array[:1])
    writer.append(array[1:])
    written = writer.close()
    content = (tmp_path / "a.npy").read_bytes()
    assert written == (len(content), hashlib.sha256(content).hexdigest())
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    header = files.read_array_header(tmp_path / "a.npy")
    assert (header.shape, header.dtype) == (shape, np.int64)
    assert content[header.offset :] == array.tobytes()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"hello" * 40], ids=["empty", "cut", "other"])
def test_header_of_what_is_no_array(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="is not an npy file"):
        files.read_array_header(tmp_path / "a.npy")


def test_header_of_fewer_rows_than_none(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((16, 24)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(16, 24), }  ", b"(-16, 24), } "))
    with pytest.raises(ValueError, match=r"a.npy is not an npy file \(its header gives the shape \(-16, 24\)\)"):
        files.read_array_header(tmp_path / "a.npy")


def test_header_of_an_array_that_is_not_all_there(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"a.npy has {len(content) - 1} bytes, where its header says {len(content)}"):
        files.read_array_header(tmp_path / "a.npy")


def test_a_record_with_numbers_that_json_has_not(tmp_path):
    path = tmp_path / "a.json"
    files.write_record(path, {"loss": 0.5})
    path.write_text(path.read_text().replace("0.5", "NaN"))
    with pytest.raises(ValueError, match=r"a\.json must hold finite numbers"):
        files.read_record(path)
    with pytest.raises(ValueError, match=r"b\.json must hold finite numbers"):
        files.write_record(tmp_path / "b.json", {"loss": float("inf")})


def test_header_of_python_objects_and_of_fortran_order(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.zeros((2, 3))))
    for name in ("objects", "columns"):
        with pytest.raises(ValueError, match="plain numbers in C order"):
            files.read_array_header(tmp_path / f"{name}.npy")


def test_array_writer_makes_what_numpy_saves(tmp_path):
    rows = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float16)
    writer = files.ArrayWriter(tmp_path / "a.npy", np.dtype(np.float16), 3)
    for start in range(0, 1000, 300):
        writer.append(rows[start : start + 300].astype(np.float32))
        assert not (tmp_path / "a.npy").exists()
    written = writer.close()
    np.save(tmp_path / "b.npy", rows)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert written.bytes == (tmp_path / "a.npy").stat().st_size


def test_array_writer_that_failed_can_only_be_discarded(tmp_path):
    writer = files.ArrayWriter(tmp_path / "a.npy", np.dtype(np.float32), 2)
    writer.append(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="could not convert"):
        writer.append(np.array([["x", "y"]]))
    with pytest.raises(ValueError, match="only be discarded"):
        writer.close()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed(tmp_path):
    for name in ("a.npy.17.tmp", "a.npy", "letter.tmp", "letter.v2.tmp"):
        (tmp_path / name).touch()
    assert [path.name for path in files.remove_leftovers(tmp_path)] == ["a.npy.17.tmp"]
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "letter.tmp", "letter.v2.tmp"]


def fail_to_replace(path):
    with files.replacing_folder(path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "two").touch()
        raise KeyError


def test_a_folder_takes_the_place_of_another_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out"
    for name in ("out.old", "out.partial"):  # of the user's own
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").touch()
    with files.replacing_folder(path) as folder:
        (folder / "one").touch()
        assert not path.exists()
        with pytest.raises(BlockingIOError, match="out is being written"), files.replacing_folder(path):
            pass
    assert [file.name for file in path.iterdir()] == ["one"]
    with pytest.raises(KeyError):
        fail_to_replace(path)
    assert [file.name for file in path.iterdir()] == ["one"]
    with files.replacing_folder(path) as folder:
        (folder / "three").touch()
    assert [file.name for file in path.iterdir()] == ["three"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "out.old", "out.partial"]
    assert all((tmp_path / name / "kept").exists() for name in ("out.old", "out.partial"))


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path):
    path = tmp_path / "out"
    beside = tmp_path / ".out.st-distill"
    (beside / "old").mkdir(parents=True)
    (beside / "old" / "one").touch()
    (beside / "new").mkdir()
    (beside / "new" / "half").touch()
    with pytest.raises(KeyError):
        fail_to_replace(path)
    assert [file.name for file in path.iterdir()] == ["one"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_through_no_link(tmp_path):
    (tmp_path / "elsewhere" / "new").mkdir(parents=True)
    (tmp_path / ".out.st-distill").symlink_to(tmp_path / "elsewhere")
    with files.replacing_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()
    assert (tmp_path / "elsewhere" / "new").is_dir()


@pytest.mark.parametrize("target", ["nothing", "elsewhere"])
def test_a_link_is_not_replaced(target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(target)
    with pytest.raises(ValueError, match="out must be no link"), files.replacing_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/proc/x", "lies in /proc, which is the system's"),
        ("/dev", "lies in /dev, which is the system's"),
        ("/dev/x/y", "lies in /dev, which is the system's"),
        ("/sys/../proc/x", "lies in /proc, which is the system's"),
        ("link/x", "lies in /proc, which is the system's"),
        ("s3:/bucket/x", "is an address, not a place on this machine"),  # as a Path has it
        ("file:///x", "is an address, not a place on this machine"),
        ("/dev/shm/x", None),
        ("/devices/x", None),
        ("proc/x", None),
        ("folder/new", None),
        ("file/new", None),
        ("c:/x", None),
        (".", None),
    ],
)
def test_places_of_the_system_and_of_others(place, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/proc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert files.no_place(place) == told


def test_what_is_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nothing")
    for name, expected in (
        ("folder/a/b", None),
        ("link/a", None),
        ("link", None),
        ("file", "file"),
        ("file/a/b", "file"),
        ("dangling/a", "dangling"),
    ):
        assert files.in_the_way(tmp_path / name) == (None if expected is None else tmp_path / expected), name


def test_lock_is_for_one_and_ends_with_its_block(tmp_path):
    with (
        files.FolderLock(tmp_path, purpose="a test is running"),
        pytest.raises(BlockingIOError, match=rf"locked by process {os.getpid()} \(a test is running\); wait"),
    ):
        files.FolderLock(tmp_path, purpose="it is being repaired").__enter__()
    with files.FolderLock(tmp_path):
        (tmp_path / "lock").write_text("process 5\n")  # as earlier versions wrote it
        with pytest.raises(BlockingIOError, match="locked by process 5; wait"):
            files.FolderLock(tmp_path).__enter__()


def test_lock_ends_with_a_killed_process(tmp_path):
    script = (
        "import os, signal, sys; from st_distill.files import FolderLock\n"
        "FolderLock(sys.argv[1]).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert "process" in (tmp_path / "lock").read_text()
    with files.FolderLock(tmp_path):
        pass


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_lock_ends_with_a_killed_process_that_has_children(tmp_path):
    """As the workers of a DataLoader are, which live on for seconds."""
    said, saying = os.pipe()
    child = os.fork()
    if not child:
        with files.FolderLock(tmp_path):
            if not (worker := os.fork()):
                signal.pause()
            os.write(saying, f"{worker}\n".encode())
            signal.pause()
    worker = int(os.read(said, 20))
    try:
        with pytest.raises(BlockingIOError, match=f"locked by process {child}"):
            files.FolderLock(tmp_path).__enter__()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with files.FolderLock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{folder}/outside"])
def test_a_manifest_leads_nowhere_else(name, tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "inside").mkdir()
    written = files.describe(tmp_path / "outside")._asdict()
    with pytest.raises(ValueError, match=r"inside must lie in it. Got '.*outside' instead"):
        list(files.differences(tmp_path / "inside", {name.format(folder=tmp_path): written}))


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    monkeypatch.setattr(files.fcntl, "lockf", unsupported)
    with pytest.warns(RuntimeWarning, match="has no locks"), files.FolderLock(tmp_path):
        pass


def test_a_lock_whose_folder_was_removed_keeps_nobody_out_and_is_refused(tmp_path, monkeypatch):
    """Who has waited for it gets a file that is not there any more."""

    def after_the_removal(handle):
        (tmp_path / "lock").unlink()
        return True

    monkeypatch.setattr(files, "_lock", after_the_removal)
    with pytest.raises(BlockingIOError, match="is locked by"), files.FolderLock(tmp_path):
        pass


def test_only_what_nobody_writes_any_more_is_abandoned(tmp_path):
    for name in ("a[1].txt.7.tmp", "b.txt.7.tmp", "a[1].txt", "tmp", "letter.v2.tmp"):
        (tmp_path / name).write_text("half")
    with files.replacing(tmp_path / "b.txt") as file:
        file.write(b"new")
        assert files.remove_abandoned(tmp_path, "a[1].txt") == [tmp_path / "a[1].txt.7.tmp"]
        assert files.remove_abandoned(tmp_path) == [tmp_path / "b.txt.7.tmp"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a[1].txt", "b.txt", "letter.v2.tmp", "tmp"]
    assert (tmp_path / "b.txt").read_text() == "new"


def test_json_is_readable_text(tmp_path):
    files.write_json(tmp_path / "a.json", {"version": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"version": 1}
    assert (tmp_path / "a.json").read_text().endswith("}\n")
