from __future__ import annotations

import logging

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_distill.glue import tasks as tasks_module
from st_distill.glue.tasks import TASKS, find_tasks


def test_all_nine_are_found_in_glue_s_order(glue_folder):
    found = find_tasks(str(glue_folder), None)
    assert [data.task.name for data in found] == list(TASKS)
    for data in found:
        data.check()
    examples = found[0].read("validation_mismatched", limit=4)
    assert (len(examples), len(examples.texts), examples.labels) == (4, 2, [0, 1, 2, 0])
    scores = next(data for data in found if data.task.name == "stsb").read("train", limit=2)
    assert scores.labels == [0.0, 2.5]


def test_the_files_of_glue_itself(tmp_path):
    for folder in ("CoLA", "RTE", "STS-B", "MRPC"):
        (tmp_path / folder).mkdir()
    for part in ("train", "dev"):
        # No line of names; a quotation mark is a letter, also one that is never closed.
        (tmp_path / "CoLA" / f"{part}.tsv").write_text('gj04\t1\t\t"Our friends won.\ngj04\t0\t*\tOne more "is.\n')
        (tmp_path / "RTE" / f"{part}.tsv").write_text(
            "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tC.\tD.\tentailment\r\n"
        )
        (tmp_path / "STS-B" / f"{part}.tsv").write_text("sentence1\tsentence2\tscore\nA.\tB.\t3.2\n")
        (tmp_path / "MRPC" / f"{part}.tsv").write_text("\ufeffQuality\t#1 String\t#2 String\n1\tA.\tB.\n")
    found = {data.task.name: data.read("validation") for data in find_tasks(str(tmp_path), None)}
    assert found["cola"].texts == (['"Our friends won.', 'One more "is.'],)
    assert found["cola"].labels == [1, 0]
    assert found["rte"].labels == [1, 0]
    assert found["stsb"].labels == [3.2]
    assert (found["mrpc"].texts, found["mrpc"].labels) == ((["A."], ["B."]), [1])


def write(folder, rows, part="train"):
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (
            "rte",
            [{"sentence1": "a", "label": 1}],
            "must have the columns sentence1, sentence2 for rte. Got sentence1, label",
        ),
        ("sst2", [{"sentence": "a", "mark": 1}], "must have the columns label for sst2"),
        (
            "sst2",
            [{"sentence": "a", "label": -1}],
            "Row 0 of .*train.parquet must have 0 or 1 .*Got -1 \\(-1 stands for",
        ),
        (
            "rte",
            [{"sentence1": "a", "sentence2": "b", "label": "maybe"}],
            "entailment, not_entailment, 0 or 1 .* Got 'maybe'",
        ),
        ("sst2", [{"sentence": None, "label": 1}], "Row 0 of .* must have a text in column 'sentence'"),
        ("stsb", [{"sentence1": "a", "sentence2": "b", "score": "high"}], "must have a number in column 'score'"),
    ],
)
def test_mistakes_in_the_rows_are_said(glue_folder, task, rows, message):
    write(glue_folder / task, rows)
    with pytest.raises(ValueError, match=message):
        find_tasks(str(glue_folder), [task])[0].check()


def test_mistakes_in_the_folders_are_said(glue_folder, tmp_path):
    with pytest.raises(ValueError, match="'tasks' must be of mnli, .* Got 'sst'; did you mean 'sst2'"):
        find_tasks(str(glue_folder), ["sst"])
    with pytest.raises(ValueError, match="'tasks' must name each once. Got 'rte' twice"):
        find_tasks(str(glue_folder), ["rte", "sst2", "rte"])
    (glue_folder / "rte" / "validation.parquet").unlink()
    with pytest.raises(ValueError, match="The data of rte must have validation. Got train in .*rte"):
        find_tasks(str(glue_folder), None)
    with pytest.raises(ValueError, match="must have a folder for mnli, .* Got glue instead"):
        find_tasks(str(tmp_path), None)
    (tmp_path / "sst2").mkdir()
    with pytest.raises(ValueError, match="must have a folder for cola. Got glue or sst2 instead"):
        find_tasks(str(tmp_path), ["cola"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="must have a folder for mnli, .* Got an empty one instead"):
        find_tasks(str(tmp_path / "nothing"), None)
    with pytest.raises(ValueError, match="There is no file or folder 'nobody/glue'"):
        find_tasks("nobody/glue", ["rte"])


def test_a_correlation_needs_two_rows(glue_folder):
    (stsb,) = find_tasks(str(glue_folder), ["stsb"])
    with pytest.raises(
        ValueError, match=r"^The 'limit' for stsb must be at least 2, for a correlation .* Got 1 instead"
    ):
        stsb.check(limit=1)
    stsb.check(limit=2)
    write(glue_folder / "stsb", [{"sentence1": "a", "sentence2": "b", "score": 1.0}], part="validation")
    (stsb,) = find_tasks(str(glue_folder), ["stsb"])
    with pytest.raises(ValueError, match=r"The rows of .*stsb.*validation.* must be at least 2, .* Got 1 instead"):
        stsb.check(limit=2)
    find_tasks(str(glue_folder), ["rte"])[0].check(limit=1)


def test_data_that_are_a_file_are_said(tmp_path):
    (tmp_path / "texts.txt").write_text("a\n")
    with pytest.raises(NotADirectoryError, match=r"'data' must be a folder .* Got .*texts.txt, which is a file"):
        find_tasks(str(tmp_path / "texts.txt"), None)


def test_a_line_of_another_length_is_named(tmp_path):
    (tmp_path / "rte").mkdir()
    for part in ("train", "dev"):
        (tmp_path / "rte" / f"{part}.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\n")
    with pytest.raises(ValueError, match="Line 2 of .*train.tsv must have 3 fields, as the first has. Got 2"):
        find_tasks(str(tmp_path), None)[0].check()


def test_broken_lines_of_qqp_are_left_out_and_counted_once(tmp_path, caplog):
    (tmp_path / "QQP").mkdir()
    names = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    (tmp_path / "QQP" / "train.tsv").write_text(names + '1\t2\t3\ta\tb\t0\n"\tb\t0\n4\t5\t6\ta\n7\t8\t9\tc\td\t1\n')
    (tmp_path / "QQP" / "dev.tsv").write_text(names + "1\t2\t3\ta\tb\t1\n")
    data = find_tasks(str(tmp_path), None)[0]
    with caplog.at_level(logging.WARNING):
        data.check()
        examples = data.read("train")
        assert data.read("train", limit=2).labels == [0, 1]
    assert (examples.texts, examples.labels) == ((["a", "c"], ["b", "d"]), [0, 1])
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "2 broken lines are left out, as in the hub's copy."
    ]


def test_what_tells_local_data_from_others(glue_folder):
    def identity():
        return find_tasks(str(glue_folder), ["sst2"])[0].identity()

    before = identity()
    assert before.keys() == {"train.parquet", "validation.parquet"}
    write(glue_folder / "sst2", [{"sentence": "a", "label": -1}], "test")
    assert identity() == before
    write(glue_folder / "sst2", [{"sentence": "a", "label": 1}])
    assert [name for name in before if identity()[name] != before[name]] == ["train.parquet"]


def test_a_data_set_that_was_saved_to_disk_is_told_by_its_files(tmp_path):
    rows = datasets.Dataset.from_dict({"sentence": ["a"], "label": [1]})
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "sst2")
    found = find_tasks(str(tmp_path), None)[0].identity()
    assert found.keys() == {f"{part}/data-00000-of-00001.arrow" for part in ("train", "validation")}


def test_mnli_of_the_hub_comes_before_what_begins_with_it(monkeypatch):
    parts = dict.fromkeys(["train", "validation", "validation_matched", "validation_mismatched"])
    monkeypatch.setattr(tasks_module, "parts_of_hub", lambda *_: parts)
    found = find_tasks("somebody/glue", ["rte", "mnli"])
    assert [data.task.name for data in found] == ["mnli", "rte"]
    assert found[0].identity() == {"name": "somebody/glue"}
