"""What is on disk, and what is said of files that are not as they were written."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from store_material import TEXTS, Counting, create, teacher_of, two_teachers

from st_distill import Teacher, TeacherStore, files
from st_distill.arrays import ArrayWriter
from st_distill.store.damage import find_damage


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
        (lambda d: shard_of(d).update(rows=10**30), rf"shards\[0\].rows must be a whole number from 1 to {2**48}"),
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
    path = tmp_path / "s"
    create(path, TEXTS, Counting())
    writer = ArrayWriter(path / "teachers/first/00000.texts.npy", np.dtype("<i8"))
    writer.append(np.arange(1, 11))
    written = writer.close()
    edited(path, lambda description: shard_of(description)["texts"].update(written._asdict()))
    with pytest.raises(ValueError, match="a text number is outside the 10 texts"):
        TeacherStore.open(path)


@pytest.mark.parametrize(
    ("file", "shape"), [("teachers/first/00000.npy", (10, 4)), ("index/00000.hashes.npy", (10**12, 16))]
)
def test_arrays_that_are_not_all_there(file, shape, tmp_path):
    """A stranger has written a header, and all that describes the file."""
    path = tmp_path / "s"
    create(path, TEXTS, Counting())
    dtype = np.load(path / file).dtype
    with open(path / file, "wb") as written:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(written, header)
        written.write(b"\0" * 16)

    def describe(description):
        described = shard_of(description)["vectors"] if "teachers" in file else description["index"][0]["hashes"]
        described.update(files.describe(path / file)._asdict())
        if "index" in file:
            description["index"][0]["texts"] = shape[0]

    edited(path, describe)
    with pytest.raises(ValueError, match=rf"{file}, there is no array, or not all of it.*--repair"):
        TeacherStore.open(path)
    (found,) = find_damage(path)
    assert found.file == file
    assert re.search(r"has \d+ bytes, where its header says \d+", found.what)


def test_a_hash_that_stands_for_many_texts(tmp_path):
    path = tmp_path / "s"
    texts = [f"text {number}" for number in range(2000)]
    create(path, texts, Counting())
    np.save(path / "index/00000.hashes.npy", np.zeros((2000, 16), dtype=np.uint8))
    described = files.describe(path / "index/00000.hashes.npy")._asdict()
    edited(path, lambda description: description["index"][0]["hashes"].update(described))
    with pytest.raises(ValueError, match="one hash stands for many texts in the index"):
        TeacherStore.open(path).ids(["text 0"])


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
