"""Reading texts and pictures: every format, nothing lost in silence."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image

from st_distill.recipe.data import (
    columns_of,
    fingerprint,
    load_scored_pairs,
    load_texts,
    read_images,
    rows_of,
)
from st_distill.recipe.schema import Images, ImageSource, Texts
from st_distill.recipe.sources import missing_text, without_text

ROWS = [
    {"q": "one, two", "a": "eins\nzwei", "n": 1.5},
    {"q": "", "a": "2024-01-01", "n": 2},
    {"q": "é", "a": '"x"', "n": 3},
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def _write(name: str, rows=ROWS) -> str:
    path = Path(name)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".jsonl"):
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif name.endswith((".csv", ".tsv")):
        import csv

        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif name == "saved":
        Dataset.from_list(rows).save_to_disk(name)
    elif name == "splits":
        split = Dataset.from_list(rows)
        DatasetDict({"train": split, "test": split.select([0])}).save_to_disk(name)
    return name


FORMATS = ["rows.parquet", "rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "saved", "splits"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_texts(name):
    source = Texts(path=_write(name))
    assert columns_of(source) == {"q": "text", "a": "text", "n": "number"}
    assert rows_of(source) == 3
    assert rows_of(Texts(path=name, limit=2)) == 2
    dataset = load_texts(source)
    assert dataset.column_names == ["q", "a"]
    assert dataset.to_list() == [{"q": row["q"], "a": row["a"]} for row in ROWS]
    assert load_texts(Texts(path=name, columns=["a"], limit=2)).to_list() == [{"a": "eins\nzwei"}, {"a": "2024-01-01"}]
    assert load_scored_pairs(Texts(path=name)) == (
        [row["q"] for row in ROWS],
        [row["a"] for row in ROWS],
        [1.5, 2.0, 3.0],
    )


def test_a_text_file_is_a_text_a_line():
    Path("lines.txt").write_bytes("one\r\n\ntwo\u2028still two\nNA".encode())
    assert load_texts(Texts(path="lines.txt")).to_dict() == {"text": ["one", "", "two\u2028still two", "NA"]}


def test_words_that_mean_nothing_elsewhere_are_texts():
    Path("words.csv").write_text("text\nNA\nnull\nTrue\n")
    assert load_texts(Texts(path="words.csv"))["text"][:] == ["NA", "null", "True"]


def test_a_folder_is_all_its_files_by_name():
    Path("parts").mkdir()
    _write("parts/b.jsonl", [{"t": "second"}])
    _write("parts/a.jsonl", [{"t": "first"}])
    Path("parts/README.md").write_text("not data")
    assert load_texts(Texts(path="parts"))["t"][:] == ["first", "second"]
    assert rows_of(Texts(path="parts")) == 2
    _write("parts/c.csv", [{"t": "third"}])
    with pytest.raises(ValueError, match=r"parts must hold files of one format .* Found \.csv and \.jsonl"):
        load_texts(Texts(path="parts"))
    Path("nothing").mkdir()
    with pytest.raises(ValueError, match="Found none of them"):
        load_texts(Texts(path="nothing"))


def test_splits():
    _write("splits")
    assert len(load_texts(Texts(path="splits"))) == 3
    assert len(load_texts(Texts(path="splits", split="test"))) == 1
    with pytest.raises(ValueError, match=r"has no split 'tset'; did you mean 'test'\?"):
        load_texts(Texts(path="splits", split="tset"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "saved", "folder/rows.csv"])
def test_a_split_of_what_has_none(name):
    Path("folder").mkdir()
    path = _write(name).split("/")[0]
    for source in (Texts(path=path, split="train"), ImageSource(path=path, split="train")):
        for read in (load_texts, columns_of):
            with pytest.raises(
                ValueError, match=f"{path} has no splits, so that 'split' chooses nothing. Leave it out, and"
            ):
                read(source)


def test_data_in_python():
    assert load_texts(Texts(data=["a", "b", "c"], limit=2)).to_dict() == {"text": ["a", "b"]}
    assert rows_of(Texts(data=["a", "b", "c"], limit=2)) == 2
    dataset = Dataset.from_dict({"x": ["a", "b"], "y": [1, 2]}).select([1])
    assert load_texts(Texts(data=dataset)).to_dict() == {"x": ["b"]}


def test_a_hub_dataset_is_loaded_by_its_name(monkeypatch):
    asked = []

    class Builder:
        config = SimpleNamespace(data_files={"train": ["hf://datasets/some/data@abc/train.parquet"]})

        def __init__(self, *args, **kwargs):
            asked.append((args, kwargs))

        def download_and_prepare(self):
            asked.append("prepared")

        def as_dataset(self, split):
            asked.append(split)
            return Dataset.from_dict({"text": ["a", "b"]})

    monkeypatch.setattr(datasets, "load_dataset_builder", Builder)
    source = Texts(dataset="some/data", config="en", revision="abc", limit=1)
    assert columns_of(source) is None
    assert rows_of(source) is None
    assert load_texts(source)["text"][:] == ["a"]
    assert asked == [(("some/data", "en"), {"revision": "abc"}), "prepared", "train"]


def test_labels_of_further_losses():
    _write("pairs.parquet", [{"a": "x", "b": "y", "score": 0.5, "n": 3}])
    source = Texts(path="pairs.parquet")
    assert load_texts(source, labels=True).column_names == ["a", "b", "score"]
    source.columns = ["a", "b", "n"]
    assert load_texts(source, labels=True).to_list() == [{"a": "x", "b": "y", "n": 3}]
    with pytest.raises(ValueError, match="The column 'n' of pairs.parquet must hold texts"):
        load_texts(source)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "saved"])
def test_a_missing_text_names_its_row(name):
    rows = [{"q": f"text {index}"} for index in range(20_000)]
    rows[10_500] = {"q": None}
    with pytest.raises(ValueError, match=rf"Row 10500 of {name} has no text in column 'q' \(null\)"):
        load_texts(Texts(path=_write(name, rows)))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "saved", "data"])
def test_a_missing_text_is_seen_without_much_reading(name):
    """By what parquet and Arrow count of themselves; of a text format in its first 10,000 rows."""
    rows = [{"q": f"text {row}", "r": "same", "s": "other"} for row in range(20_000)]
    rows[9_000]["s"] = rows[9_500]["r"] = rows[15_000]["q"] = None
    if name == "data":
        source = Texts(data=Dataset.from_list(rows).select([*range(20_000), 1]))
    else:
        source = Texts(path=_write(name, rows))
    assert missing_text(source, ["q"]) == (None if name == "rows.jsonl" else (15_000, "q"))
    assert missing_text(source, ["q", "r", "s"]) == (9_000, "s")
    with pytest.raises(ValueError, match=re.escape(without_text(source, 9_500, "r"))):
        load_texts(Texts(path=source.path, data=source.data, columns=["r"]))
    source.limit = 9_000
    assert missing_text(source, ["q", "r", "s"]) is None


def test_of_parquet_the_part_alone_is_read_that_has_one(monkeypatch):
    read, original = [], pq.ParquetFile.iter_batches

    def iter_batches(self, *, row_groups, **options):
        read.extend(row_groups)
        return original(self, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    Path("folder").mkdir()
    for part in range(2):
        texts = [f"text {row}" for row in range(5_000)]
        texts[3_456] = texts[3_456] if part == 0 else None
        pq.write_table(pa.table({"q": texts}), f"folder/{part}.parquet", row_group_size=500)
    assert missing_text(Texts(path="folder"), ["q"]) == (8_456, "q")
    assert read == [6]


def test_a_file_of_other_columns_is_told(folder):
    Path("folder").mkdir()
    for part, columns in enumerate([["q", "r"], ["q"]]):
        pq.write_table(pa.table({name: ["a text"] for name in columns}), f"folder/{part}.parquet")
    told = "All files of folder must have the column 'r'. folder/1.parquet has not: take it out of the folder"
    with pytest.raises(ValueError, match=re.escape(told)):
        missing_text(Texts(path="folder"), ["q", "r"])


def test_parquet_that_counts_nothing_is_read_at_its_beginning(monkeypatch):
    for row, found in ((9_000, (9_000, "q")), (15_000, None)):
        texts = [f"text {place}" for place in range(20_000)]
        texts[row] = None
        pq.write_table(pa.table({"q": texts}), "rows.parquet", write_statistics=False)
        assert missing_text(Texts(path="rows.parquet"), ["q"]) == found


def test_empty_texts_are_kept_and_counted(caplog):
    with caplog.at_level(logging.WARNING, "st_distill"):
        load_texts(Texts(path=_write("rows.csv")))
    assert "rows.csv: 1 of 3 texts in column 'q' are empty." in caplog.text
    with caplog.at_level(logging.WARNING, "st_distill"):
        load_texts(Texts(path=_write("spaces.jsonl", [{"q": text} for text in ("a", "", " \t\u3000\n", "b")])))
    assert "spaces.jsonl: 2 of 4 texts in column 'q' are empty." in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"t": "x"}\n{"t": \n', r"Line 2 of a.jsonl is not valid JSON"),
        ("a.jsonl", '{"t": "x"}\n["y"]\n', r"Line 2 of a.jsonl must be an object of named values. Got list instead"),
        ("a.jsonl", '{"t": "x"}\n' * 1000 + '{"t": 3}\n', r"Row 1000 of a.jsonl must hold text in column 't'.*the number 3"),
        ("a.json", '[{"t": "x"}', r"a.json is not valid JSON"),
        ("a.json", "[3]", r"Entry 0 of a.json must be an object"),
        ("a.csv", "t,u\nx\n", r"Row 0 of a.csv \(line 2\) must have 2 fields, as the first line has. Got 1 instead"),
        ("a.csv", 't\nx, y\n', r"Row 0 of a.csv \(line 2\) must have 1 fields.* Put texts with commas in double quotes"),
        ("a.csv", 't\n"x\n', r"not valid CSV in the row that begins in line 2: unexpected end of data. A text that begins"),
        ("a.csv", "t\n", r"a.csv has no rows"),
        ("a.txt", "", r"a.txt has no rows"),
        ("a.txt", b"\xff\xfe", r"a.txt is not UTF-8 text .* Save it as UTF-8"),
        ("a.parquet", "PAR1 no more", r"a.parquet cannot be read: .*magic bytes.* Write or download it again\."),
        ("a.doc", "", r"a.doc must be one of .parquet, .jsonl, .json, .csv, .tsv, .txt. Got '.doc' instead"),
        ("a.csv", "n,m\n1,2\n", r"a.csv must have a column of texts. Got the columns n, m instead"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(name, content, message):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_texts(Texts(path=name))


def test_what_is_not_there_is_said():
    _write("rows.csv")
    with pytest.raises(ValueError, match=r"There is no file or folder 'rosw.csv'; did you mean 'rows.csv'\?"):
        load_texts(Texts(path="rosw.csv"))
    Path("link.csv").symlink_to("nothing.csv")
    with pytest.raises(ValueError, match=r"no file or folder 'link.csv'; link.csv is a link to what is not there\.$"):
        load_texts(Texts(path="link.csv"))
    os.mkfifo("pipe.csv")
    with pytest.raises(ValueError, match=r"pipe.csv must be a file or a folder. It is neither: a pipe, say"):
        load_texts(Texts(path="pipe.csv"))
    with pytest.raises(ValueError, match=r"rows.csv has no column 'xyz'; it may be q, a or n\."):
        load_texts(Texts(path="rows.csv", columns=["xyz"]))


@pytest.mark.parametrize("value", ["", "nan"])
def test_a_missing_score_names_its_row(value):
    Path("pairs.csv").write_text(f"a,b,score\nx,y,1\nx,z,{value}\n")
    with pytest.raises(ValueError, match="Row 1 of pairs.csv has no number in column 'score'"):
        load_scored_pairs(Texts(path="pairs.csv"))


def test_pairs_need_three_columns():
    Path("pairs.csv").write_text("a,b\nx,y\n")
    with pytest.raises(ValueError, match="must give two columns of texts and one of numbers. Got a, b instead"):
        load_scored_pairs(Texts(path="pairs.csv"))


# --- pictures ----------------------------------------------------------------------------------------------------------


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


@pytest.fixture(params=["folder", "jsonl", "bytes", "image", "saved", "data"])
def pictures(request, images) -> ImageSource:
    """Three captioned pictures, stored in each of the ways there are."""
    three = images[:3]
    captions = ["red", "green", "blue"]
    options = {"image": "picture", "caption": "words"}
    if request.param in ("folder", "jsonl"):
        Path("pictures").mkdir()
        for index, picture in enumerate(three):
            picture.save(f"pictures/{index}.png")
    if request.param == "folder":
        _write("pictures/metadata.csv", [{"file_name": f"{i}.png", "words": words} for i, words in enumerate(captions)])
        return ImageSource(path="pictures", **options)
    if request.param == "jsonl":
        rows = [{"picture": f"pictures/{i}.png", "words": words} for i, words in enumerate(captions)]
        return ImageSource(path=_write("list.jsonl", rows), **options)
    if request.param == "bytes":
        rows = [{"picture": _png(picture), "words": words} for picture, words in zip(three, captions)]
        return ImageSource(path=_write("pictures.parquet", rows), **options)
    features = datasets.Features({"picture": datasets.Image(), "words": datasets.Value("string")})
    dataset = Dataset.from_dict({"picture": three, "words": captions}, features=features)
    if request.param == "image":
        dataset.to_parquet("pictures.parquet")
        return ImageSource(path="pictures.parquet", **options)
    if request.param == "saved":
        dataset.save_to_disk("saved")
        return ImageSource(path="saved", **options)
    return ImageSource(data=dataset, **options)


def test_pictures_from_everywhere(pictures, images):
    kinds = columns_of(pictures)
    assert kinds is not None
    assert kinds["words"] == "text"
    dataset = read_images(pictures).dataset
    assert sorted(dataset.column_names) == ["picture", "words"]
    assert isinstance(dataset.features["picture"], datasets.Image)
    assert dataset["words"][:] == ["red", "green", "blue"]
    assert [_png(picture.convert("RGB")) for picture in dataset["picture"]] == [_png(image) for image in images[:3]]
    pictures.limit = 2
    assert len(read_images(pictures).dataset) == 2
    assert fingerprint(pictures) == fingerprint(pictures)


@pytest.fixture
def broken(images) -> ImageSource:
    rows = [{"image": _png(image), "caption": f"picture {index}"} for index, image in enumerate(images[:4])]
    rows[1]["image"] = b"no picture"
    rows[3]["image"] = rows[3]["image"][:80]
    return ImageSource(path=_write("broken.parquet", rows))


def test_an_unreadable_picture_stops_and_names_its_row(broken):
    with pytest.raises(ValueError, match=r"broken.parquet has a picture that cannot be read: .*row 1 .*on_error: skip"):
        read_images(broken)


def test_unreadable_pictures_are_left_out_and_counted(broken, caplog):
    broken.on_error = "skip"
    with caplog.at_level(logging.WARNING, "st_distill"):
        loaded = read_images(broken)
    assert loaded.skipped == 2
    assert loaded.dataset["caption"][:] == ["picture 0", "picture 2"]
    assert "broken.parquet: 2 of 4 pictures cannot be read and are left out." in caplog.text
    assert "row 3" in caplog.text
    Image.new("RGB", (1, 1))
    _write("broken.parquet", [{"image": b"x", "caption": "a"}])
    with pytest.raises(ValueError, match=r"None of the 1 pictures of broken.parquet can be read"):
        read_images(broken)


def test_pictures_that_are_not_there_are_unreadable():
    source = ImageSource(path=_write("list.jsonl", [{"image": "gone.png", "caption": "a"}]))
    with pytest.raises(ValueError, match=r"row 0 cannot be read from .*gone.png"):
        read_images(source)
    source = ImageSource(
        path=_write("list.jsonl", [{"image": "x", "caption": "a"}, {"image": None, "caption": "a"}]), on_error="skip"
    )
    with pytest.raises(ValueError, match="None of the 2 pictures"):
        read_images(source)


def test_a_caption_that_is_missing_names_its_row(images):
    source = ImageSource(
        path=_write("a.parquet", [{"image": _png(images[0]), "caption": text} for text in ("x", None)])
    )
    with pytest.raises(ValueError, match="Row 1 of a.parquet has no text in column 'caption'"):
        read_images(source)


def test_columns_of_pictures(images):
    path = _write("a.parquet", [{"image": _png(images[0]), "caption": "x", "size": 1}])
    with pytest.raises(ValueError, match=r"a.parquet has no column 'imag'; did you mean 'image'\?"):
        read_images(ImageSource(path=path, image="imag"))
    with pytest.raises(ValueError, match="The column 'size' of a.parquet must hold pictures"):
        read_images(ImageSource(path=path, image="size"))
    with pytest.raises(ValueError, match="The column 'size' of a.parquet must hold texts"):
        read_images(ImageSource(path=path, caption="size"))
    Path("empty").mkdir()
    with pytest.raises(ValueError, match=r"empty must hold metadata.csv, metadata.jsonl or metadata.parquet"):
        read_images(Images(path="empty"))


# --- fingerprints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FORMATS, "parts"])
def test_a_fingerprint_follows_the_content(name):
    if name == "parts":
        Path("parts").mkdir()
        _write("parts/a.jsonl")
    else:
        _write(name)
    source = Texts(path=name)
    first = fingerprint(source)
    assert len(first) == 64
    assert fingerprint(Texts(path=str(Path(name).resolve()), limit=1)) == first
    target = (
        next(path for path in sorted(Path(name).rglob("*")) if path.is_file()) if Path(name).is_dir() else Path(name)
    )
    target.write_bytes(target.read_bytes() + b" ")
    assert fingerprint(source) != first


def test_fingerprints_of_data_in_python():
    first = fingerprint(Texts(data=["a", "bc"]))
    assert fingerprint(Texts(data=["a", "bc"])) == first
    assert fingerprint(Texts(data=["ab", "c"])) != first
    dataset = Dataset.from_dict({"x": ["a", "b", "c"]})
    first = fingerprint(Texts(data=dataset))
    assert fingerprint(Texts(data=Dataset.from_dict({"x": ["c", "b", "a"]}).select([2, 1, 0]))) == first
    assert fingerprint(Texts(data=dataset.select([0, 1]))) != first


def test_fingerprints_of_hub_datasets():
    sources = [
        Texts(dataset="a"),
        Texts(dataset="a", config="b"),
        Texts(dataset="a", split="b"),
        Texts(dataset="a", revision="b"),
    ]
    assert len({fingerprint(source) for source in sources}) == 4


def test_a_changed_picture_changes_the_fingerprint(images):
    images[0].save("a.png")
    source = ImageSource(path=_write("list.jsonl", [{"image": "a.png", "caption": "x"}]))
    first = fingerprint(source)
    assert fingerprint(source) == first
    images[1].save("a.png")
    assert fingerprint(source) != first
    Path("a.png").unlink()
    assert fingerprint(source) != first
