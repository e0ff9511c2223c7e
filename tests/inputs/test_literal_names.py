"""Files whose names are patterns, addresses, homes or variables to the libraries that read them: each is read, and no other."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image

from st_distill import Teacher
from st_distill.evaluation.data import parts_of_path
from st_distill.mining import mine_negatives
from st_distill.pretrain.corpus import write_rows
from st_distill.pretrain.tokenizer import Tokens
from st_distill.recipe import Images, Texts
from st_distill.recipe.data import columns_of, load_texts, read_images, stream_documents
from st_distill.recipe.sources import missing_text, rows_of

SECRET = "my-secret-value-123"

#: The name of a folder or file, and what it would be read from.
NAMES = {
    "we[1]rd": "we1rd",
    "a*b": "aXb",
    "q?": "qq",
    "*": "other",
    "x::y": "x",
    "$KEY": SECRET,
    "a${KEY}": f"a{SECRET}",
    "~": "home",
    "file:": "/",
    "zip::x": "x",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("KEY", SECRET)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "here"


def write(path: str, text: str) -> str:
    """A table with this text at a relative path."""
    file = Path(path).absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {"text": [text, f"{text} too"], "n": [1, None], "v": [[1.0, 2.0], [2.0, 1.0]]}
    if file.suffix == ".parquet":
        pq.write_table(pa.table(table), str(file))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(dict(zip(table, row))) + "\n" for row in zip(*table.values())))
    elif file.suffix == ".csv":
        file.write_text(f"text,n\n{text},1\n{text} too,2\n")
    elif file.suffix == ".txt":
        file.write_text(f"{text}\n{text} too\n")
    else:
        Dataset.from_dict(table).save_to_disk("saved")
        Path("saved").rename(file)
    return path


@pytest.mark.parametrize("place", ["{}/x", "g/{}", "{}"], ids=["folder", "file", "relative file"])
@pytest.mark.parametrize(
    "ending", [".parquet", ".jsonl", ".csv", ".txt", ""], ids=["parquet", "jsonl", "csv", "txt", "saved"]
)
@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_this_very_name_is_read(name, ending, place):
    if NAMES[name] != "/":
        write(place.format(NAMES[name]) + ending, "another")
    path = write(place.format(name) + ending, "own")
    source = Texts(path=path, columns=["text"])
    texts = ["own", "own too"]
    assert load_texts(source)["text"][:] == list(stream_documents(source)) == texts
    assert (columns_of(source) or {})["text"] == "text"
    assert rows_of(source) == 2
    assert missing_text(source, ["text"]) is None
    (part,) = parts_of_path(Path(path)).values()
    assert part.load().texts("text") == texts
    if ending in ("", ".parquet"):
        (block,) = Teacher.from_vectors(Path(path), column="v", name="t").blocks()
        assert block[0] == texts


@pytest.mark.parametrize("name", NAMES)
def test_parts_in_a_folder_of_this_very_name_are_read(name):
    for part in ("0", "1"):
        write(f"{name}/part[{part}].parquet", part)
        write(f"{name}/part{part}.parquet", f"{part} without")
        if NAMES[name] != "/":
            write(f"{NAMES[name]}/part[{part}].parquet", "another")
    expected = [f"{text}{more}" for text in ("0 without", "1 without", "0", "1") for more in ("", " too")]
    assert load_texts(Texts(path=name, columns=["text"]))["text"][:] == expected
    blocks = Teacher.from_vectors(Path(name), column="v", name="t").blocks()
    assert [text for texts, _ in blocks for text in texts] == expected


def test_the_folder_one_is_in_is_no_pattern(folder, monkeypatch):
    write("proj 2/x.parquet", "another")
    write("proj [2024]/x.parquet", "own")
    monkeypatch.chdir(folder / "proj [2024]")
    assert load_texts(Texts(path="x.parquet", columns=["text"]))["text"][0] == "own"


def test_pictures_of_this_very_name_are_read(folder):
    for name, size in (("a1.parquet", 8), ("a[1].parquet", 16)):
        stream = io.BytesIO()
        Image.new("RGB", (size, size)).save(stream, "PNG")
        rows = {"image": [{"bytes": stream.getvalue(), "path": None}], "caption": [name]}
        pq.write_table(pa.table(rows), name)
    loaded = read_images(Images(path="a[1].parquet"))
    assert loaded.dataset["image"][0].size == (16, 16)
    assert loaded.dataset["caption"][:] == ["a[1].parquet"]


def test_negatives_are_mined_from_these_very_files(make_student, sentences):
    for name, texts in (("1", sentences[8:]), ("[1]", sentences[:8])):
        pq.write_table(pa.table({"query": texts[:3], "document": texts[3:6]}), f"pairs{name}.parquet")
        pq.write_table(pa.table({"text": texts[6:8]}), f"corpus{name}.parquet")
    mine_negatives(make_student(), "pairs[1].parquet", "hard.parquet", corpus="corpus[1].parquet", negatives=4)
    for row in pq.read_table("hard.parquet").to_pylist():
        assert {row[f"negative_{place}"] for place in range(1, 5)} == {*sentences[3:8]} - {row["document"]}


@pytest.mark.parametrize("name", ["we[1]rd", "a*b", "q?", "x::y", "~d", "$KEY", "proj [2]/ds"])
def test_a_folder_that_datasets_would_not_find_is_refused(name, outcome):
    write(f"{name}/train.parquet", "own")
    for other in ("we1rd", "aXb", "qq", "proj 2/ds"):
        write(f"{other}/train.parquet", "another")
    said = outcome(lambda: load_texts(Texts(dataset=name)))
    assert "is not read" in said
    assert "as 'path'" in said
    assert SECRET not in said


@pytest.mark.parametrize("name", ["x::y", "~"])
def test_the_rows_of_a_pretraining_are_written_where_they_are_read(name):
    tokens = Tokens(np.array([1, 2], np.int32), np.array([0, 1], np.int32))
    assert write_rows(Path(name, "rows.arrow"), [tokens])[0]["input_ids"] == [1, 2]
