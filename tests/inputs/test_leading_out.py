"""Data sets of somebody else's that name files outside their own folder: by rows, descriptions, README.md and links."""

from __future__ import annotations

import gc
import json
from types import SimpleNamespace

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from PIL import Image

from st_distill import Teacher
from st_distill.cli import main
from st_distill.contained import load_saved
from st_distill.evaluation import TaskSpec, read_task
from st_distill.evaluation.data import parts_of_hub, parts_of_path
from st_distill.glue.tasks import find_tasks
from st_distill.recipe import Images, Texts
from st_distill.recipe.data import (
    absent_pictures,
    columns_of,
    fingerprint,
    load_texts,
    read_images,
    stream_documents,
)

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Caches of our own, for what `datasets` writes and where it looks."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache/downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", tmp_path / "cache/downloads/extracted")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(tmp_path):
    """A data set's folder with a picture, beside a picture and texts that are none of its business."""
    folder = tmp_path / "named"
    folder.mkdir()
    for picture in (folder / "own.png", tmp_path / "secret.png"):
        Image.new("RGB", (20, 10)).save(picture)
    (tmp_path / "secret.txt").write_text("secret\n")
    (folder / ".hidden").mkdir()  # which `datasets` does not look into
    (folder / ".hidden/link.png").symlink_to(tmp_path / "secret.png")
    return folder


def rows(*paths: str) -> pa.Table:
    """Rows of pictures that are given by their paths alone, as `datasets` describes them."""
    pictures = pa.array([{"bytes": None, "path": path} for path in paths], PICTURE)
    table = pa.table({"image": pictures, "caption": [f"caption {row}" for row, _ in enumerate(paths)]})
    features = Features({"image": datasets.Image(), "caption": Value("string")})
    return table.replace_schema_metadata(features.arrow_schema.metadata)


def saved(folder, table: pa.Table):
    """A folder as save_to_disk writes it, of rows that are left as they are: it would take the pictures in."""
    Dataset.from_dict({"any": [""] * len(table)}).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"] = Features.from_arrow_schema(table.schema).to_dict()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def sources(folder, *paths: str) -> list[dict[str, str]]:
    """What a recipe says of these rows in a parquet file, a folder that `datasets` reads, and one of save_to_disk."""
    pq.write_table(rows(*paths), folder / "rows.parquet")
    described = {"path": str(folder / "rows.parquet")}
    return [described, {"dataset": str(folder)}, {"path": str(saved(folder / "saved", rows(*paths)))}]


@pytest.mark.parametrize("place", range(3), ids=["parquet", "named", "saved"])
@pytest.mark.parametrize(
    "name", ["{tmp}/secret.png", "../secret.png", "{tmp}/named/.hidden/link.png", "../../secret.png"]
)
def test_a_picture_outside_is_told_with_its_row(name, place, folder, tmp_path, outcome):
    name = name.format(tmp=tmp_path)
    source = sources(folder, str(folder / "own.png") if place < 2 else "http://localhost:1/a.png", name)[place]
    said = outcome(lambda: read_images(Images(**source)))
    assert f"The picture '{name}' of row 1 must lie in " in said
    assert "leads out of it" in said
    assert outcome(lambda: read_images(Images(**source, on_error="skip"))) == said
    if "path" in source:
        assert outcome(lambda: read_task(TaskSpec(source=source["path"], kind="image_retrieval"))) == said


def test_it_is_told_before_anything_is_trained(folder, tmp_path, capsys, make_student):
    """By `check`, and by `run`, which looks first; also where pictures are not there."""
    make_student().save(str(tmp_path / "student"))
    (tmp_path / "texts.txt").write_text("a cat sleeps\n" * 8)
    recipe = {"output": str(tmp_path / "out"), "student": {"model": str(tmp_path / "student"), "max_seq_length": 16}}
    recipe |= {
        "teachers": [str(tmp_path / "student")],
        "texts": str(tmp_path / "texts.txt"),
        "projection": {"dims": [8]},
    }
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"intermediate_size": 32, "image_size": 32, "patch_size": 16}
    recipe["stages"] = [
        {"train": part, "steps": 1, "batch": 2, "arguments": {"use_cpu": True}} for part in ("projection", "vision")
    ]
    for name, told in (
        ("../secret.png", "must lie in"),
        ("none.png", "pictures that are not there: 1, the first in row 0"),
    ):
        for source in (sources(folder, name)[0], sources(folder, name)[2]):
            recipe["images"] = source | {"vision": vision}
            (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
            for command in ("check", "run"):
                assert main([command, str(tmp_path / "recipe.yaml")]) == 2
                said = "".join(capsys.readouterr())
                assert told in said
                assert name in said
                assert "--debug" not in said
            assert not (tmp_path / "out-run").exists()


@pytest.mark.parametrize("place", [0, 2], ids=["parquet", "saved"])
def test_what_lies_beside_a_table_of_paths_is_part_of_its_content(place, folder, tmp_path):
    own = folder / "saved" / "own.png"
    source = Images(**sources(folder, "own.png")[place])
    own.write_bytes((folder / "own.png").read_bytes())
    before = fingerprint(source)
    assert fingerprint(source) == before
    for picture in (own, folder / "own.png"):
        Image.new("RGB", (20, 10), "red").save(picture)
    assert fingerprint(source) != before


def test_the_row_is_counted_over_all_pieces_of_a_table(folder, outcome):
    with pq.ParquetWriter(folder / "rows.parquet", rows("own.png").schema) as writer:
        for path in ("own.png", "own.png", "../secret.png"):
            writer.write_table(rows(path))
    for read in (read_images, absent_pictures, fingerprint):
        said = outcome(lambda read=read: read(Images(path=str(folder / "rows.parquet"))))
        assert "The picture '../secret.png' of row 2 must lie in " in said
    assert absent_pictures(Images(path=str(folder / "rows.parquet"), limit=2)) == []


def test_a_picture_of_a_data_sets_own_is_read(folder):
    for source in sources(folder, str(folder / "own.png"))[:2]:
        assert read_images(Images(**source)).dataset[0]["image"].size == (20, 10)
    own = folder / "saved"
    Image.new("RGB", (20, 10)).save(own / "own.png")
    for path in ("own.png", str(own / "own.png")):
        saved(own, rows(path))
        assert read_images(Images(path=str(own))).dataset[0]["image"].size == (20, 10)
        assert len(read_task(TaskSpec(source=str(own), kind="image_retrieval"))) == 2


@pytest.mark.filterwarnings("ignore:Exception ignored in.*metadata:pytest.PytestUnraisableExceptionWarning")
def test_a_folder_of_pictures_is_read_by_its_name(folder):
    (folder / "metadata.csv").write_text("file_name,caption\nown.png,a picture\n")
    assert read_images(Images(dataset=str(folder))).dataset[0]["image"].size == (20, 10)
    gc.collect()  # here, since `datasets` leaves the table open


@pytest.fixture
def hub(monkeypatch):
    """A function that lets a data set on the hub have these rows, and name these files."""

    def of(table: pa.Table, files: list[str]) -> None:
        builder = SimpleNamespace(
            config=SimpleNamespace(data_files={"train": files}),
            download_and_prepare=lambda: None,
            as_dataset=lambda split: Dataset(table) if split else DatasetDict({"test": Dataset(table)}),
        )
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *given, **options: builder)
        monkeypatch.setattr(datasets, "get_dataset_config_names", lambda *given, **options: ["default"])

    return of


def test_the_pictures_of_the_hub_lie_in_the_caches(hub, folder, tmp_path, outcome):
    repository = tmp_path / "hub/datasets--some--data"
    places = [repository / "blobs" / "abc", tmp_path / "cache/downloads/extracted/xyz/a.png"]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_bytes((folder / "own.png").read_bytes())
    link = repository / "snapshots" / ("0" * 40) / "a.png"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../blobs/abc")
    hub(rows(str(link), str(places[1])), ["hf://datasets/some/data@main/metadata.csv", "zip://a::https://b/c.zip"])
    assert len(read_images(Images(dataset="some/data")).dataset) == 2
    assert len(read_task(TaskSpec(source="some/data", kind="image_retrieval"))) == 2
    other = tmp_path / "hub/datasets--some--other/secret.png"
    other.parent.mkdir()
    other.write_bytes(link.read_bytes())
    for path in (str(folder / "own.png"), str(other), "../../secret.png"):
        hub(rows(str(link), path), [])
        for read in (
            lambda: read_images(Images(dataset="some/data")),
            lambda: read_task(TaskSpec(source="some/data", kind="image_retrieval")),
        ):
            said = outcome(read)
            assert f"The picture '{path}' of row 1 must lie in the data set 'some/data' that names it" in said


def test_a_snapshot_in_the_cache_is_a_folder_like_any_other(folder, tmp_path, outcome):
    """Its files are links to others beside it."""
    repository = tmp_path / "hub/datasets--some--data"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, (name, content) in enumerate(
        [("a.png", (folder / "own.png").read_bytes()), ("metadata.csv", b"file_name,caption\na.png,x\n")]
    ):
        (repository / "blobs" / str(number)).write_bytes(content)
        (snapshot / name).symlink_to(repository / "blobs" / str(number))
    assert len(read_images(Images(path=str(snapshot))).dataset) == 1
    (snapshot / "a.png").unlink()
    (snapshot / "a.png").symlink_to(tmp_path / "secret.png")
    assert "leads out of it" in outcome(lambda: read_images(Images(path=str(snapshot))))


@pytest.mark.parametrize("files", ["{tmp}/secret.txt", "../secret.txt", "file://{tmp}/secret.txt", "link.txt"])
def test_a_readme_names_no_file_outside(files, folder, tmp_path, outcome):
    files = files.format(tmp=tmp_path)
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    source = Texts(dataset=str(folder))
    for read in (lambda: load_texts(source), lambda: list(stream_documents(source))):
        said = outcome(read)
        assert f"The data set '{folder}' would be read from '" in said
        assert f"{files.rpartition('/')[2]}', a file of this machine outside it" in said


@pytest.mark.parametrize("file", ["/etc/passwd", "file:///etc/passwd", "zip://a.txt::/etc/passwd"])
def test_a_data_set_of_the_hub_names_no_file_of_this_machine(file, hub, outcome):
    hub(pa.table({"text": ["secret"]}), [file])
    for read in (lambda: load_texts(Texts(dataset="some/data")), lambda: parts_of_hub("some/data", None, None)):
        said = outcome(read)
        assert "The data set 'some/data' would be read from '/etc/passwd', a file of this machine outside it" in said


def everyone(path) -> list:
    """Those who read a folder of data."""
    return [
        lambda: load_texts(Texts(path=str(path))),
        lambda: list(stream_documents(Texts(path=str(path), columns=["text"]))),
        lambda: parts_of_path(path)["test"].load(),
        lambda: list(Teacher.from_vectors(path).blocks()),
    ]


TABLE = {"text": ["secret"], "v": [[1.0, 2.0]]}


@pytest.mark.parametrize("how", ["named", "absolute", "linked"])
def test_a_saved_data_set_names_no_file_outside(how, tmp_path, outcome):
    for name in ("secret", "saved"):
        Dataset.from_dict(TABLE).save_to_disk(tmp_path / name)
    (own,), (secret,) = ((tmp_path / name).glob("*.arrow") for name in ("saved", "secret"))
    if how == "linked":
        own.unlink()
        own.symlink_to(secret)
    else:
        state = json.loads((tmp_path / "saved/state.json").read_text())
        state["_data_files"] = [{"filename": f"../secret/{secret.name}" if how == "named" else str(secret)}]
        (tmp_path / "saved/state.json").write_text(json.dumps(state))
    for read in everyone(tmp_path / "saved"):
        assert f"leads out of {tmp_path / 'saved'}, the folder that is named" in outcome(read)


@pytest.mark.parametrize("split", ["../secret", "linked"])
def test_a_saved_data_set_has_no_split_outside(split, tmp_path, outcome):
    Dataset.from_dict(TABLE).save_to_disk(tmp_path / "secret")
    DatasetDict({"train": Dataset.from_dict(TABLE)}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/linked").symlink_to(tmp_path / "secret")
    (tmp_path / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", split]}))
    source = Texts(path=str(tmp_path / "saved"), split=split)
    for read in (
        lambda: load_saved(tmp_path / "saved"),
        lambda: parts_of_path(tmp_path / "saved"),
        lambda: load_texts(source),
        lambda: columns_of(source),
        lambda: Teacher.from_vectors(tmp_path / "saved"),
    ):
        assert "leads out of" in outcome(read)


def test_a_folder_has_no_link_to_a_file_outside(tmp_path, outcome):
    pq.write_table(pa.table(TABLE), tmp_path / "secret.parquet")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/test.parquet").symlink_to(tmp_path / "secret.parquet")
    for read in everyone(tmp_path / "folder"):
        assert f"leads out of {tmp_path / 'folder'}, the folder that is named" in outcome(read)
    for read in everyone(tmp_path / "folder/test.parquet"):  # the user has named the link itself
        assert outcome(read) == "success"


def test_a_folder_of_glue_has_no_link_to_a_file_outside(tmp_path, outcome):
    (tmp_path / "secret.tsv").write_text("secret\n")
    (tmp_path / "glue/rte").mkdir(parents=True)
    (tmp_path / "glue/rte/train.tsv").symlink_to(tmp_path / "secret.tsv")
    assert "leads out of" in outcome(lambda: find_tasks(str(tmp_path / "glue"), ["rte"]))


def test_what_other_columns_name_is_not_opened(tmp_path):
    """Also where a feature would be read from its file, were its row decoded."""
    picture = {"bytes": None, "path": "/nowhere/a.png"}
    table = pa.table(
        {
            "text": ["a"],
            "image": pa.array([picture], PICTURE),
            "nested": pa.array([[picture]], pa.list_(PICTURE)),
            "v": pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
        }
    )
    described = {"image": datasets.Image(), "nested": [datasets.Image()]}
    described |= {"text": Value("string"), "v": [Value("float32")]}
    table = table.replace_schema_metadata(Features(described).arrow_schema.metadata)
    folder = saved(tmp_path / "saved", table)
    for read in everyone(folder):
        read()
    (tmp_path / "named").mkdir()
    pq.write_table(table, tmp_path / "named/a.parquet")
    assert list(stream_documents(Texts(dataset=str(tmp_path / "named"), columns=["text"]))) == ["a"]
    assert load_texts(Texts(dataset=str(tmp_path / "named"), columns=["text"]))["text"][:] == ["a"]


def test_the_commands_say_it_and_stop(folder, tmp_path, capsys, make_student):
    """Exit code 2, one sentence, by whichever way a recipe or a task names the pictures."""
    make_student().save(str(tmp_path / "student"))
    np.save(tmp_path / "v.npy", np.eye(3))
    for source in (sources(folder, "../secret.png")[0], sources(folder, "../secret.png")[2]):
        recipe = {"preset": "jasper", "output": str(tmp_path / "out"), "student": str(tmp_path / "student")}
        recipe |= {"evaluation": {"images": source}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        for command in (["check", str(tmp_path / "recipe.yaml")], ["eval", str(tmp_path / "student"), source["path"]]):
            assert main(command) == 2
            said = "".join(capsys.readouterr())
            assert "The picture '../secret.png' of row 0 must lie in" in said
            assert "--debug" not in said
