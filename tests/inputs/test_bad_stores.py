"""Stores that a stranger, or a broken disk, has changed: never another vector than the one that was stored."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from st_distill import Teacher, TeacherStore, files

TEXTS = [f"text {number}" for number in range(6)]


def vectors_of(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), int(text[-1]), 1.0] for text in texts], dtype=np.float32)


def teacher():
    return Teacher(vectors_of, name="first", revision="1", prompts={"query": "q "})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    TeacherStore.create(path, [(text, "query") for text in TEXTS], teacher(), shard_rows=4, show_progress=False)
    return path


@pytest.fixture(scope="module")
def labels(whole):
    return TeacherStore.open(whole).gather(range(6))


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "store")


def vectors(path):
    store = TeacherStore.open(path)
    store.check()
    return store.gather(store.ids(TEXTS, role="query"))


def never_another(path, outcome, labels) -> str:
    got = []
    said = outcome(lambda: got.append(vectors(path)))
    if got:
        np.testing.assert_allclose(got[0], labels, atol=1e-6)
    return said


FILES = ["store.json", "index/00000.hashes.npy", "index/00000.pairs.npy"]
FILES += ["teachers/first/00000.npy", "teachers/first/00001.texts.npy"]


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4))
def test_bytes_changed_added_or_taken_away(whole, labels, store, outcome, file, place, content, taken):
    good = (whole / file).read_bytes()
    at = int(place * len(good))
    (store / file).write_bytes(good[:at] + content + good[at + taken :])
    never_another(store, outcome, labels)
    (store / file).write_bytes(good)


def test_a_description_with_a_number_that_is_none(store, outcome):
    for name in ("store.json", "store.copy.json"):
        (store / name).write_text('{"version": NaN, "sha256": ""}')
    assert "store.json must hold finite numbers" in outcome(lambda: vectors(store))


def places(value, path=()):
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*path, key))


values = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
values |= st.sampled_from(
    ["../store.json", "teachers/first/../../x.npy", "/etc/passwd", [], {}, [[]], 10**30, "\ud800"]
)


@given(st.data())
def test_descriptions_with_any_value_at_any_place(whole, labels, store, outcome, data):
    """Written by a stranger, so that the checksum in the description is right."""
    description = files.read_record(whole / "store.json")
    path = data.draw(st.sampled_from([path for path in places(description) if path]))
    # What tells the vectors apart for people is not part of them: a stranger may say what he likes there.
    assume(path[-1] not in ("label", "revision", "settings"))
    target = description
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(values)
    files.write_record(store / "store.json", description)
    never_another(store, outcome, labels)


@given(
    st.recursive(
        values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )
)
def test_any_json_as_a_description(store, outcome, value):
    (store / "store.json").write_text(json.dumps(value))
    assert outcome(lambda: TeacherStore.open(store)) != "success"


@given(st.binary(max_size=100))
def test_any_bytes_as_a_description(store, outcome, content):
    (store / "store.json").write_bytes(content)
    assert outcome(lambda: TeacherStore.open(store)) != "success"


@pytest.mark.parametrize("name", ["index", "teachers", "teachers/first", "lock"])
def test_nothing_is_written_through_a_link(name, store, tmp_path):
    outside = tmp_path / "outside"
    path = store / name
    if path.is_dir():
        shutil.move(path, outside)
    else:
        path.unlink(missing_ok=True)
        outside.write_text("mine")
    path.symlink_to(outside)

    def content():
        return {file: file.read_bytes() for file in [outside, *outside.rglob("*")] if file.is_file()}

    before = content()
    with pytest.raises((ValueError, OSError), match=r"link"):
        TeacherStore.create(store, [("new 7", "query")], teacher(), show_progress=False)
    assert content() == before


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / f"a.json.{os.getpid()}.tmp").symlink_to(tmp_path / "outside")
    files.write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "outside").read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "new"
