"""Vectors that exist already, or that a teacher gives, and are not what they should be."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from st_distill import Teacher, TeacherStore
from st_distill.recipe import Texts
from st_distill.recipe.data import load_texts

TEXTS = ["a", "b", "c"]


def built(folder, teacher) -> np.ndarray:
    store = TeacherStore.create(folder / "store", TEXTS, teacher, dtype="float32", show_progress=False)
    return store.gather(store.ids(TEXTS)).numpy()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda texts: np.full((len(texts), 2), np.nan),
            "must return finite numbers. Got NaN or infinity for the text 'a'",
        ),
        (lambda texts: np.full((len(texts), 2), np.inf), "must return finite numbers"),
        (lambda texts: np.full((len(texts), 2), 1e300), "must return finite numbers"),
        (lambda texts: [[1.0] * (place + 1) for place, _ in enumerate(texts)], "all rows of one width"),
        (lambda texts: np.ones((len(texts) + 1, 2)), "Got 4 vectors for 3 texts"),
        (lambda texts: np.ones((len(texts) - 1, 2)), "Got 2 vectors for 3 texts"),
        (lambda texts: np.ones(len(texts)), "must return an array of shape"),
        (lambda texts: np.ones((len(texts), 0)), "must return an array of shape"),
        (lambda texts: np.ones((len(texts), 2, 2)), "must return an array of shape"),
        (lambda texts: np.ones((len(texts), 2), dtype=complex), "array of numbers"),
        (lambda texts: np.array([["a"] * 2] * len(texts)), "array of numbers"),
        (lambda texts: None, "array of numbers"),
        (lambda texts: {"a": 1}, "array of numbers"),
    ],
)
def test_answers_of_a_teacher_that_are_no_vectors(returned, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        built(tmp_path, Teacher(returned, name="first", revision="1"))


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "uint8"])
def test_numbers_of_any_kind_are_taken(dtype, tmp_path):
    vectors = np.array([[3, 4], [0, 0], [1, 0]]).astype(dtype)
    np.save(tmp_path / "v.npy", vectors)
    labels = built(tmp_path, Teacher.from_vectors(tmp_path / "v.npy", texts=TEXTS))
    np.testing.assert_allclose(labels, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[1.0, np.nan], [1, 1], [1, 1]]), "finite"),
        (np.array([[1.0, 1], [1, np.inf], [1, 1]]), "finite"),
        (np.ones((2, 2)), "must be as many as the vectors"),
        (np.ones((4, 2)), "must be as many as the vectors"),
        (np.ones(3), "numbers of shape"),
        (np.ones((3, 2, 2)), "numbers of shape"),
        (np.ones((3, 2), dtype=complex), "numbers of shape"),
        (np.array([["a", "b"]] * 3), "numbers of shape"),
        (np.array([[1, 2]] * 3, dtype=object), "cannot be read as an npy file"),
        (np.ones((0, 2)), "must be as many as the vectors"),
    ],
)
def test_files_of_vectors_with_a_mistake(vectors, message, tmp_path):
    np.save(tmp_path / "v.npy", vectors, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        built(tmp_path, Teacher.from_vectors(tmp_path / "v.npy", texts=TEXTS))


@given(st.permutations(range(3)), st.permutations(range(3)), st.sampled_from(["npy", "parquet"]))
def test_vectors_in_another_order_than_the_texts_that_are_asked(tmp_path_factory, order, asked, ending):
    folder = tmp_path_factory.mktemp("v")
    vectors, texts = np.eye(3, dtype=np.float32)[order], [TEXTS[place] for place in order]
    if ending == "npy":
        np.save(folder / "v.npy", vectors)
        (folder / "texts.txt").write_text("\n".join(texts))
        teacher = Teacher.from_vectors(folder / "v.npy", texts=folder / "texts.txt")
    else:
        pq.write_table(pa.table({"text": texts, "v": list(vectors)}), folder / "v.parquet")
        teacher = Teacher.from_vectors(folder / "v.parquet")
    wanted = [TEXTS[place] for place in asked]
    store = TeacherStore.create(folder / "store", wanted, teacher, dtype="float32", show_progress=False)
    np.testing.assert_array_equal(store.gather(store.ids(wanted)).numpy(), np.eye(3)[asked])


def test_a_pickle_in_an_npy_file_is_not_run(tmp_path):
    class Run:
        def __reduce__(self):
            return (open, (str(tmp_path / "here"), "w"))

    np.save(tmp_path / "v.npy", np.array([Run()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read as an npy file"):
        Teacher.from_vectors(tmp_path / "v.npy", texts=TEXTS)
    assert not (tmp_path / "here").exists()


def npy(vectors: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, vectors)
    return content.getvalue()


@given(st.integers(0, 151), st.binary(min_size=1, max_size=6))
def test_an_npy_file_with_bytes_changed(tmp_path_factory, outcome, place, content):
    folder = tmp_path_factory.mktemp("v")
    good = npy(np.ones((3, 2), dtype=np.float32))
    (folder / "v.npy").write_bytes(good[:place] + content + good[place + len(content) :])
    outcome(lambda: built(folder, Teacher.from_vectors(folder / "v.npy", texts=TEXTS)))


@pytest.mark.parametrize(
    "shape",
    [
        "(1000000000000, 1000000)",
        "(-1, 2)",
        "(3.5, 2)",
        "(True, 2)",
        f"({10**40}, 2)",
        "(), ",
        "[3, 2]",
        "(3, 2",
        "(9**9, 2)",
    ],
)
def test_an_npy_file_that_says_it_is_enormous(shape, tmp_path, outcome):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    (tmp_path / "v.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header + b"\0" * 24)
    assert outcome(lambda: Teacher.from_vectors(tmp_path / "v.npy", texts=TEXTS)) != "success"


@given(st.lists(st.none() | st.lists(st.none() | st.floats(width=32), max_size=3), min_size=3, max_size=3))
def test_a_column_of_any_lists(tmp_path_factory, outcome, rows):
    folder = tmp_path_factory.mktemp("v")
    pq.write_table(pa.table({"text": TEXTS, "v": pa.array(rows, pa.list_(pa.float32()))}), folder / "v.parquet")
    said = outcome(lambda: built(folder, Teacher.from_vectors(folder / "v.parquet")))
    good = all(row and None not in row and np.isfinite(row).all() and len(row) == len(rows[0] or []) for row in rows)
    assert (said == "success") == good


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 60 + b"PAR1", b"\0" * 100])
def test_a_parquet_file_that_is_none(content, tmp_path, outcome):
    (tmp_path / "v.parquet").write_bytes(content)
    assert "v.parquet" in outcome(lambda: Teacher.from_vectors(tmp_path / "v.parquet"))


def texts_of(path) -> list[str]:
    return [
        text for texts, _ in Teacher.from_vectors(np.ones((3, 2)), texts=path, name="first").blocks() for text in texts
    ]


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_texts_of_a_file_are_those_of_a_recipe(mark, end, ending, tmp_path):
    path = tmp_path / f"texts.{ending}"
    lines = (
        ["a", "b\u2028b", "c"] if ending == "txt" else [json.dumps({"text": text}) for text in ("a", "b\u2028b", "c")]
    )
    path.write_bytes((mark + end.join(lines) + end).encode())
    assert texts_of(path) == load_texts(Texts(path=str(path)))["text"][:] == ["a", "b\u2028b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.txt", b"\xe4\nb\nc\n", "texts.txt is not UTF-8 text .*Save it as UTF-8"),
        ("texts.jsonl", b"\xe4\nb\nc\n", "texts.jsonl is not UTF-8 text"),
        ("texts.jsonl", b"[" * 100_000 + b"\nb\nc\n", "Line 1 of .*texts.jsonl is not valid JSON"),
        (
            "texts.jsonl",
            b'"a"\n{"txt": "b"}\n"c"\n',
            "Line 2 of .*texts.jsonl must be a string, or an object with 'text'",
        ),
        ("texts.jsonl", b'"a"\n5\n"c"\n', "must be strings. Got int in row 1"),
        ("texts.parquet", b"PAR1", "texts.parquet cannot be read"),
    ],
)
def test_texts_that_cannot_be_read(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, TypeError), match=message):
        texts_of(tmp_path / name)


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"features": {"a": {"_type": "Nothing"}}}'])
def test_a_saved_dataset_with_a_damaged_file(file, content, tmp_path, outcome):
    Dataset.from_dict({"text": TEXTS, "v": [[1.0, 2.0]] * 3}).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / file).write_text(content)
    said = outcome(lambda: Teacher.from_vectors(tmp_path / "d"))
    assert f"{tmp_path / 'd'} cannot be read" in said or (file, content) == ("dataset_info.json", "{}")


def test_a_saved_dataset_cut_short(tmp_path, outcome):
    Dataset.from_dict({"text": TEXTS, "v": [[1.0, 2.0]] * 3}).save_to_disk(tmp_path / "d")
    (arrow,) = (tmp_path / "d").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    assert f"{tmp_path / 'd'} cannot be read" in outcome(lambda: list(Teacher.from_vectors(tmp_path / "d").blocks()))


def test_parquet_files_of_other_columns_are_told(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "v": [[1.0, 2.0]]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": ["a"], "w": [[1.0, 2.0]]}), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1.parquet has no column 'v', which .*0.parquet has"):
        list(Teacher.from_vectors(tmp_path).blocks())
