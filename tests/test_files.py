"""Files that are whole or absent."""

from __future__ import annotations

import json
import os

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


def test_a_record_with_numbers_that_json_has_not(tmp_path):
    path = tmp_path / "a.json"
    files.write_record(path, {"loss": 0.5})
    path.write_text(path.read_text().replace("0.5", "NaN"))
    with pytest.raises(ValueError, match=r"a\.json must hold finite numbers"):
        files.read_record(path)
    with pytest.raises(ValueError, match=r"b\.json must hold finite numbers"):
        files.write_record(tmp_path / "b.json", {"loss": float("inf")})


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


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{folder}/outside"])
def test_a_manifest_leads_nowhere_else(name, tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "inside").mkdir()
    written = files.describe(tmp_path / "outside")._asdict()
    with pytest.raises(ValueError, match=r"inside must lie in it. Got '.*outside' instead"):
        list(files.differences(tmp_path / "inside", {name.format(folder=tmp_path): written}))


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
