"""The tasks of a command line or a file, and how they are told apart."""

from __future__ import annotations

from dataclasses import fields

import pytest

from st_distill.evaluation.task_file import is_task_file
from st_distill.evaluation.task_list import tasks_of_entries, tasks_of_words
from st_distill.evaluation.tasks import default_name
from st_distill.recipe import Recipe


def test_words_of_a_command_line(tmp_path):
    listed = tmp_path / "tasks.yaml"
    listed.write_text(
        "tasks:\n  - {source: 'mteb:STS12'}\n  - {source: data, kind: sts, limit: 5}\n  - clustering:texts\n"
    )
    specs, names = tasks_of_words(["sts:pairs.tsv", "mteb:STSBenchmark", str(listed), "owner/name"], {"limit": 9})
    assert [(spec.source, spec.kind, spec.limit) for spec in specs] == [
        ("pairs.tsv", "sts", 9),
        ("data", "sts", 5),
        ("texts", "clustering", 9),
        ("owner/name", None, 9),
    ]
    assert names == ["STSBenchmark", "STS12"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("tasks: {}", "must be a list with a task in it. Got dict"),
        ("tasks: []", "must be a list with a task in it. Got "),
        ("tasks:", "must be a list with a task in it. Got an empty one"),
        ("task: [x]", r"tasks.yaml must have 'tasks', a list of .*\. Got 'task' instead; did you mean 'tasks'\?$"),
        ("Tasks: [x]", r"Got 'Tasks' instead; did you mean 'tasks'\?$"),
        ("source: x", "Got 'source' instead: put it into the list.$"),
        ("", "tasks.yaml must have 'tasks', .* Got an empty file instead: write 'tasks:' and below it a line"),
        ("# nothing\n", "Got an empty file instead"),
        ("- x", "Got a list without that name instead"),
        ("x", "Got 'x' instead"),
        ("tasks: [{kind: sts}]", "must have a 'source'"),
        ("tasks: [{source: x, dims: [1]}]", "Got 'dims' instead"),
        ("tasks: [3]", "a word or a mapping of fields. Got 3 instead"),
        ("tasks:\n  -", "a word or a mapping of fields. Got null instead"),
        ("tasks: [{source: x, samples_per_label: 0}]", "a whole number from 1, or null. Got 0 instead"),
        ("tasks: [x]\ndims: [8]", "tasks.yaml must have 'tasks' alone. Got 'dims' beside it"),
        (
            "tasks: [{source: 'mteb:STS12', limit: 3}]",
            "'mteb:STS12' of .* takes no other fields. Got 'limit' beside it",
        ),
    ],
)
def test_task_files_with_mistakes(content, match, tmp_path):
    path = tmp_path / "tasks.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=match):
        tasks_of_words([str(path)], {})


def test_a_recipe_is_no_file_of_tasks(tmp_path):
    path = tmp_path / "recipe.yaml"
    for field in fields(Recipe):
        path.write_text(f"{field.name}: x")
        assert not is_task_file(str(path))
    for broken in ("tasks: [x", "tasks: \xff", "tasks: 2001-99-99", 'tasks: "\\UFFFFFFFF"', "tasks: " + "[" * 5000):
        path.write_text(broken, encoding="latin-1")  # a recipe's reader tells it with its line
        assert not is_task_file(str(path))


@pytest.mark.parametrize("entry", ["mteb:", {"source": "mteb: "}])
def test_a_task_of_mteb_has_a_name(entry):
    with pytest.raises(
        ValueError, match="must have its name after mteb:, as in mteb:STSBenchmark. Got 'mteb: ?' alone"
    ):
        tasks_of_entries([entry], {})


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/test.parquet", "b/test.parquet"], [None, None]),
        (["stsb/test.parquet", "stsb/dev.parquet"], ["stsb/test", "stsb/dev"]),
        (["a/stsb/test.tsv", "b/stsb/dev.tsv"], ["a/stsb", "b/stsb"]),
        (["a/stsb/test.tsv", "a/stsb/dev.tsv", "b/stsb/test.tsv"], ["a/stsb/test", "stsb/dev", "b/stsb"]),
        (["x/stsb", "stsb/test.parquet"], ["x/stsb", None]),
        (["stsb", "stsb/test.parquet"], [None, "stsb/test"]),
        (["stsb.tsv", "stsb/test.tsv"], [None, "stsb/test"]),
        (["stsb/test.parquet", "stsb/test.tsv"], ["test.parquet", "test.tsv"]),
        (["stsb/test.parquet", "mteb:stsb"], ["stsb/test"]),
        (["x/ok.jsonl", "x/sub/ok.jsonl"], ["x/ok", "sub/ok"]),
        (["a/x/ok.jsonl", "b/x/ok.jsonl", "c/ok.jsonl"], ["a/x/ok", "b/x/ok", "c/ok"]),
        (["a/ok.jsonl", "a/ok.tsv"], ["ok.jsonl", "ok.tsv"]),
        (["one/name", "two/name"], ["one/name", "two/name"]),
        (["a/test.parquet", "b/other.parquet"], [None, None]),
        (["data/STS12", "mteb:STS12"], ["data/STS12"]),
    ],
)
def test_names_are_told_apart(sources, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [spec.name for spec in tasks_of_words(sources, {})[0]] == names
    for source in sources:  # whether they are there or not
        if "." in source:
            (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / source).touch()
    assert [spec.name for spec in tasks_of_words(sources, {})[0]] == names


def test_a_name_that_is_given_twice():
    for other in ({"source": "b", "name": "x"}, "mteb:x"):
        with pytest.raises(ValueError, match="Got 'x' for two of them"):
            tasks_of_entries([{"source": "a", "name": "x"}, other], {})


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["data", {"source": "data", "split": "dev"}], ["data", "data (dev)"]),
        (
            [{"source": "data", "split": "dev", "config": "en"}, {"source": "data", "split": "dev", "config": "de"}],
            ["data (en)", "data (de)"],
        ),
        (["sts:data", "data"], ["data (sts)", "data"]),
        (
            [{"source": "data", "limit": 5, "samples_per_label": None}, "data"],
            ["data (limit 5; samples per label all)", "data"],
        ),
        (["data", "data", "data"], ["data", "data (2)", "data (3)"]),
        (["x", {"source": "b", "name": "x"}], ["x (2)", "x"]),
        (["a/x", {"source": "a/x", "name": "x", "split": "dev"}], ["a/x", "x"]),
        (["STS12", "mteb:STS12"], ["STS12 (2)"]),
        (["a", {"source": "b", "name": "a (2)"}, "a"], ["a", "a (2)", "a (3)"]),
        (["one/x", {"source": "one/x", "split": "dev"}, "two/x"], ["one/x", "one/x (dev)", "two/x"]),
    ],
)
def test_tasks_of_one_source_are_told_apart(entries, names):
    specs, _ = tasks_of_entries(entries, {})
    assert [spec.name or spec.source for spec in specs] == names


def test_a_name_that_is_given_stays(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.tsv").touch()
    (tmp_path / "tasks.yaml").write_text(
        f"tasks: [{{source: {tmp_path}/a/test.tsv, name: test}}, {tmp_path}/b/test.tsv]"
    )
    specs, _ = tasks_of_words([str(tmp_path / "tasks.yaml")], {})
    assert [spec.name for spec in specs] == ["test", None]
    entries = [{"source": "a/stsb/test.tsv", "name": "b"}, "b/test.tsv", {"source": "b/dev.tsv", "name": "x"}]
    assert [spec.name for spec in tasks_of_entries(entries, {})[0]] == ["b", "b/test", "x"]


def test_the_name_of_a_source_is_the_same_when_it_is_gone(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for source, name in (("../test.tsv", "test"), (".", "here"), ("owner/squad.v2", "squad.v2"), ("pairs/", "pairs")):
        assert default_name(source) == name
    for split in ("train", "validation", "val", "dev", "test"):
        assert default_name(f"data/stsb/{split}.parquet") == "stsb"
        assert default_name(f"./{split}.parquet") == split  # the folder is not named
        assert default_name(f"data/{split}") == split  # a folder is
    assert default_name("data/stsb/tests.parquet") == "tests"
    (tmp_path / "test.tsv").touch()
    assert default_name("../test.tsv") == "test"
