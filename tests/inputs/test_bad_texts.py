"""Texts, text files and datasets of every kind that people have."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from hypothesis import assume, given
from hypothesis import strategies as st

from st_distill import Teacher, TeacherStore
from st_distill.cli import main
from st_distill.evaluation import TeacherFidelityEvaluator, read_task
from st_distill.evaluation.data import parts_of_path
from st_distill.recipe import Texts
from st_distill.recipe.data import columns_of, fingerprint, load_scored_pairs, load_texts, rows_of, stream_documents

ODD = {
    "empty": "",
    "whitespace": " \t\n\r\x0b\x0c\u2028\u00a0",
    "emoji": "👩‍👩‍👧🏽🇦🇹" * 3,
    "right to left": "שלום \u202eabc\u202c مرحبا",
    "surrogate": "a\ud800b",
    "NUL": "a\0b",
    "one line of 1 MB": "word " * 200_000,
    "combining": "e" + "\u0301" * 500,
    "private use": "\ue000\U000f0000\U0010ffff",
    "line ends": "a\r\nb\rc\u0085d\u2029e",
    "byte order mark": "\ufeffa",
}


def lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), text.count("a"), 1.0] for text in texts])


def stored(path, texts):
    teacher = Teacher(lengths, name="first", revision="1")
    store = TeacherStore.create(path, texts, teacher, dtype="float32", show_progress=False)
    vectors = store.gather(store.ids(list(texts))).numpy()
    expected = lengths(list(texts))
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("kind", ODD)
def test_a_store_takes_any_text(kind, tmp_path):
    stored(tmp_path / "s", [ODD[kind], "plain"])


@pytest.mark.parametrize("kind", ODD)
def test_a_model_reads_any_text(kind, make_student, tmp_path):
    """As a teacher, whose store is whole; as a student too, but for what its tokenizer cannot take, which is told before."""
    model = make_student()
    store = TeacherStore.create(tmp_path / "s", [ODD[kind], "plain"], Teacher(model, name="first"), show_progress=False)
    assert np.isfinite(store.gather(store.ids([ODD[kind]])).numpy()).all()
    if kind != "surrogate":
        assert np.isfinite(model.encode([ODD[kind]])).all()


def test_a_run_learns_from_any_text(tiny_bert, tmp_path, sentences, capsys):
    """Teacher, stages, evaluation, report and negatives; a line of 1 MB takes a tokenizer seconds each time, and is above."""
    texts = [text for kind, text in ODD.items() if kind not in ("surrogate", "one line of 1 MB")]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in [*texts, *sentences]))
    pairs = [
        {"sentence1": text, "sentence2": other, "score": place}
        for place, (text, other) in enumerate(zip(texts, reversed(texts)))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    stage = {"steps": 2, "batch": 8, "arguments": {"use_cpu": True, "disable_tqdm": True}}
    recipe = {
        "output": str(tmp_path / "out"),
        "student": {"model": tiny_bert, "layers": [0, 3], "pooling": "mean", "max_seq_length": 16},
        "teachers": [tiny_bert],
        "texts": str(tmp_path / "texts.jsonl"),
        "projection": {"dims": [16, 8]},
        "stages": [{"train": "projection"} | stage, {"train": "all"} | stage],
        "evaluation": {
            "texts": str(tmp_path / "texts.jsonl"),
            "similarity": str(tmp_path / "pairs.jsonl"),
            "retrieval": {"path": str(tmp_path / "pairs.jsonl"), "columns": ["sentence1", "sentence2"]},
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    model, mined = str(tmp_path / "out"), str(tmp_path / "hard.parquet")
    for command in (
        ["run", str(tmp_path / "recipe.yaml")],
        ["verify", str(tmp_path / "out-run")],
        ["report", str(tmp_path / "out-run"), "--no-speed"],
        ["eval", model, str(tmp_path / "pairs.jsonl")],
        ["mine", model, str(tmp_path / "pairs.jsonl"), mined, "--columns", "sentence1,sentence2", "--negatives", "1"],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet", "saved"])
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "surrogate"])
def test_a_file_gives_any_text_as_it_is(kind, ending, tmp_path):
    path, texts = tmp_path / f"texts.{ending}", [ODD[kind], "plain"]
    if ending == "saved":
        Dataset.from_dict({"text": texts}).save_to_disk(path)
    elif ending == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif ending in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="," if ending == "csv" else "\t").writerows(
                [["text", "n"], *([t, 1] for t in texts)]
            )
    else:
        rows = [json.dumps({"text": text}) for text in texts]
        path.write_text("\n".join(rows) if ending == "jsonl" else f"[{', '.join(rows)}]")
    source = Texts(path=str(path), columns=["text"])
    assert load_texts(source)["text"][:] == list(stream_documents(source)) == texts


def test_a_surrogate_is_told_with_its_place(tmp_path, outcome):
    """No tokenizer takes it; a run or an evaluation would end with an error of one, after hours."""
    texts = ["plain", ODD["surrogate"]]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": place}) for place, text in enumerate(texts)))
    source = Texts(path=str(path), columns=["text"])
    for read in (
        lambda: load_texts(source),
        lambda: list(stream_documents(source)),
        lambda: parts_of_path(path)["texts"].load().texts("text"),
    ):
        said = outcome(read)
        assert f"Row 1 of {path} must h" in said
        assert "text that UTF-8 can hold, without unpaired surrogates, in column 'text'" in said
    assert "data[1]: expected text that UTF-8 can hold" in outcome(lambda: Texts(data=texts))
    assert "The 'texts' parameter must hold texts that UTF-8 can hold" in outcome(
        lambda: TeacherFidelityEvaluator(texts, np.eye(2))
    )


@given(st.lists(st.text(alphabet=st.characters(), max_size=20), min_size=1, max_size=5))
def test_a_store_takes_any_texts(tmp_path_factory, texts):
    stored(tmp_path_factory.mktemp("s"), texts)


@given(st.lists(st.text(max_size=3) | st.none() | st.integers() | st.binary(max_size=3), min_size=1, max_size=5))
def test_what_is_no_text_is_named(tmp_path_factory, outcome, texts):
    assume(not all(isinstance(text, str) for text in texts))
    place = next(place for place, text in enumerate(texts) if not isinstance(text, str))
    teacher = Teacher(lengths, name="first", revision="1")
    said = outcome(lambda: TeacherStore.create(tmp_path_factory.mktemp("s"), texts, teacher, show_progress=False))
    assert f"at position {place}" in said


def read(path, outcome, **options) -> str:
    source = Texts(path=str(path), **options)
    outcome(lambda: columns_of(source))
    outcome(lambda: rows_of(source))
    outcome(lambda: fingerprint(source))
    outcome(lambda: load_scored_pairs(source))
    return outcome(lambda: load_texts(source))


@given(st.sampled_from(["txt", "csv", "tsv", "json", "jsonl", "parquet"]), st.binary(max_size=120))
def test_any_bytes_as_a_file(tmp_path, outcome, ending, content):
    path = tmp_path / f"texts.{ending}"
    path.write_bytes(content)
    read(path, outcome)


cells = st.none() | st.booleans() | st.integers() | st.integers(min_value=10**310, max_value=10**320) | st.floats()
cells |= st.text(alphabet=st.characters(), max_size=8) | st.sampled_from([[], {}, ["a"], "nan", "1e999", "5"])


@given(st.lists(st.dictionaries(st.sampled_from("abc"), cells, max_size=3) | cells, max_size=4))
def test_any_json_as_a_file(tmp_path, outcome, rows):
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name in ("rows.jsonl", "rows.json"):
        read(tmp_path / name, outcome)
        read(tmp_path / name, outcome, columns=["a"])


@given(st.text(alphabet="a,;\"'\n\r\t 15.\0", max_size=60))
def test_any_csv(tmp_path, outcome, content):
    for ending in ("csv", "tsv"):
        (tmp_path / f"rows.{ending}").write_text(content, newline="")
        read(tmp_path / f"rows.{ending}", outcome)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.99])
def test_a_parquet_file_cut_short(cut, tmp_path, outcome):
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 500}), path)
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    assert "texts.parquet cannot be read" in read(path, outcome)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"text": ["a", None, "b"]}, {}, "Row 1 of .* has no text in column 'text' \\(null\\)"),
        ({"text": [1, 2]}, {}, "must have a column of texts"),
        ({"text": ["a"]}, {"columns": ["txt"]}, "has no column 'txt'; did you mean 'text'?"),
        ({"text": ["a"], "n": [1]}, {"columns": ["n"]}, "must hold texts"),
        ({"text": pa.array([], pa.string())}, {}, "has no rows"),
        ({"text": [["a"], ["b"]]}, {}, "must have a column of texts"),
        ({"text": [b"a"]}, {}, "must have a column of texts"),
        ({"text": [True]}, {}, "must have a column of texts"),
        ({}, {}, "has no rows|must have a column of texts|cannot be read"),
    ],
)
def test_a_dataset_with_a_mistake(table, options, message, tmp_path):
    pq.write_table(pa.table(table), tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match=message):
        load_texts(Texts(path=str(tmp_path / "texts.parquet"), **options))


EMPTY = {
    "parquet": None,
    "jsonl": "",
    "json": "[]",
    "csv": "text,score\n",
    "tsv": "text\tscore\n",
    "txt": "",
    "saved": None,
}


@pytest.mark.parametrize("ending", [*EMPTY, "split"])
def test_data_without_rows(ending, tmp_path, outcome):
    path = tmp_path / f"texts.{ending}"
    schema = Features({"text": Value("string"), "score": Value("float32")})
    empty = Dataset.from_dict({"text": [], "score": []}, features=schema)
    if ending == "split":
        DatasetDict({"train": empty, "test": Dataset.from_dict({"text": ["a"], "score": [1.0]})}).save_to_disk(path)
        assert load_texts(Texts(path=str(path), split="test", columns=["text"]))["text"][:] == ["a"]
        assert len(parts_of_path(path)["test"].load()) == 1
    elif ending == "saved":
        empty.save_to_disk(path)
    elif ending == "parquet":
        pq.write_table(empty.data.table, path)
    else:
        path.write_text(EMPTY[ending])
    for read in (load_texts, load_scored_pairs):
        assert f"{path} has no rows" in outcome(lambda read=read: read(Texts(path=str(path))))
    assert f"{path} has no rows" in outcome(lambda: list(stream_documents(Texts(path=str(path), columns=["text"]))))
    assert rows_of(Texts(path=str(path))) == 0
    if ending != "split":
        assert "has no rows" in outcome(lambda: read_task(path))


@pytest.mark.parametrize("file", ["dataset_info.json", "state.json", "dataset_dict.json"])
@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"features": 5}', '{"features": {"a": {"_type": "Nothing"}}}', '{"splits": 1}']
)
def test_a_saved_dataset_with_a_damaged_file(file, content, tmp_path, outcome):
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "d")
    (tmp_path / "d" / file).write_text(content)
    read(tmp_path / "d", outcome)


def test_a_pipe_is_not_waited_for(tmp_path, outcome):
    os.mkfifo(tmp_path / "texts.txt")
    assert "must hold files of one format" in read(tmp_path, outcome)
    assert outcome(lambda: load_texts(Texts(path=str(tmp_path / "texts.txt")))) != "success"


def test_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b,a\n1,2,3\n")
    with pytest.raises(ValueError, match="has the column 'a' twice"):
        load_texts(Texts(path=str(tmp_path / "rows.csv")))


def jsonl(path, *rows) -> Texts:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Texts(path=str(path))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"text": "a"}, {"text": 5}],
            {},
            "column 'text' of .*rows.jsonl must hold texts alone.* the number 5 in row 1",
        ),
        ([{"text": "a"}, {"text": True}], {}, "Got true in row 1"),
        ([{"text": ["a"]}, {"text": ["b"]}], {}, "Got a list in row 0"),
        ([{"text": "a", "b": "c"}, {"text": 5, "b": "d"}], {}, "column 'text' .* the number 5 in row 1"),
        ([{"text": 5, "b": "c"}, {"text": "a", "b": "d"}], {"columns": ["text"]}, "Got the text 'a' in row 1"),
        (
            [{"text": "a\ud800b"}, {"text": "c"}],
            {},
            r"Row 0 of .*rows.jsonl must hold text that UTF-8.*'a\\ud800b' instead",
        ),
        ([{"a\ud800": "b"}], {}, r"rows.jsonl has a column called 'a\\ud800', which no table can have"),
        ([{"text": "a", "\0": 1}], {}, r"rows.jsonl has a column called '\\x00', which no table can have"),
    ],
)
def test_rows_of_several_kinds_are_told(rows, options, message, tmp_path):
    source = jsonl(tmp_path / "rows.jsonl", *rows)
    source.columns = options.get("columns")
    with pytest.raises(ValueError, match=message):
        load_texts(source)


def test_columns_that_are_not_needed_may_hold_anything(tmp_path):
    rows = [{"text": "a", "n": 1, "l": [1], "m": "x"}, {"text": "b", "n": "x", "l": "x", "m": 5}]
    source = jsonl(tmp_path / "rows.jsonl", *rows)
    source.columns = ["text"]
    assert load_texts(source)["text"][:] == ["a", "b"]
    assert load_texts(jsonl(tmp_path / "more.jsonl", *({**row, "m": 5} for row in rows))).column_names == ["text"]


@pytest.mark.parametrize("content", [b"\xff\xfe bad", b"in the \xff middle"])
def test_a_parquet_file_whose_texts_are_not_utf8(content, tmp_path, outcome):
    path, texts = tmp_path / "texts.parquet", pa.array([b"ok", content], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, texts.buffers())}), path)
    assert f"Row 1 of {path} has a text in column 'text' that is not UTF-8" in read(path, outcome)
    assert f"{path} cannot be read: 'utf-8' codec" in outcome(lambda: list(stream_documents(Texts(path=str(path)))))
    assert f"{path} cannot be read: 'utf-8' codec" in outcome(lambda: parts_of_path(path)["texts"].load())


def damaged_page(path) -> None:
    """Table of vectors whose pages are damaged, and whose schema is not."""
    rows = range(2000)
    table = pa.table({"text": [f"text {row}" for row in rows], "v": [[float(row), 1.0] for row in rows]})
    pq.write_table(table, path, compression="snappy")
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\xff" * 140 + content[200:])


def test_a_damaged_page_is_told_with_its_file(tmp_path, outcome):
    path = tmp_path / "texts.parquet"
    damaged_page(path)
    for use in (
        lambda: load_texts(Texts(path=str(path))),
        lambda: list(stream_documents(Texts(path=str(path), columns=["text"]))),
        lambda: parts_of_path(path)["texts"].load(),
        lambda: list(Teacher.from_vectors(path).blocks()),
    ):
        assert f"{path} cannot be read" in outcome(use)


def parquet_with_empty(place: str, path) -> Texts:
    """Two rows, and beside them a part or a group without rows."""
    full = pa.table({"text": ["a", "b"]})
    if place == "group":
        with pq.ParquetWriter(path / "texts.parquet", full.schema) as file:
            for table in (full.slice(0, 0), full):
                file.write_table(table)
        return Texts(path=str(path / "texts.parquet"))
    # pandas writes a column without texts as one of nothing.
    empty = full.slice(0, 0) if place == "part" else pa.table({"text": pa.array([], pa.null())})
    pq.write_table(empty, path / "part-0.parquet")
    pq.write_table(full, path / "part-1.parquet")
    return Texts(path=str(path))


@pytest.mark.parametrize("place", ["part", "part of nothing", "group"])
def test_parts_without_rows_are_read_over(place, tmp_path):
    source = parquet_with_empty(place, tmp_path)
    assert columns_of(source) == {"text": "text"}
    assert load_texts(source)["text"][:] == list(stream_documents(source)) == ["a", "b"]


@pytest.mark.parametrize("names", [["text", "text"], ["text", "n", "n"]])
def test_parquet_columns_of_one_name_are_refused(names, tmp_path, outcome):
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table([pa.array(["a"]) for _ in names], names=names), path)
    source = Texts(path=str(path), columns=["text"])
    for read in (columns_of, load_texts, lambda source: list(stream_documents(source))):
        said = outcome(lambda read=read: read(source))
        assert said == f"{path} has the column '{names[-1]}' twice. Give each column a name of its own."
