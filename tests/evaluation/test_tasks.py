from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from data_files import write
from datasets import Dataset, DatasetDict, Image
from lookup import ANGLES, lookup, measure, on_circle, only

from st_distill.evaluation import TaskSpec, evaluate_tasks, measure_entries, read_task
from st_distill.evaluation.results import csv_of_results
from st_distill.report import task_report
from st_distill.tables import text_rows, unreadable

PAIRS = [("a", "b"), ("a", "c"), ("a", "d"), ("a", "f")]
CASES = {
    # The angles' order is the scores' own, but for the last two: 1 - 6 * 2 / (4 * 15).
    "sts": ([{"sentence1": x, "sentence2": y, "score": s} for (x, y), s in zip(PAIRS, (5, 4, 0.5, 1))], 0.8),
    # In the angles' order: 1, 0, 1, 0.
    "pair_classification": (
        [{"text1": x, "text2": y, "label": s} for (x, y), s in zip(PAIRS, (1, 0, 1, 0))],
        (1 + 2 / 3) / 2,
    ),
    # a is nearest to b, then to c: 1 / 2; e to f: 1.
    "reranking": (
        [
            {"query": "a", "positive": ["c"], "negative": ["b", "d"]},
            {"query": "e", "positive": ["f"], "negative": ["a"]},
        ],
        0.75,
    ),
    # a finds b first, and c what it looks for, d, too.
    "retrieval": ([{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}], 1.0),
    "clustering": ([{"text": text, "label": "xxyyzz"[row]} for row, text in enumerate(ANGLES)], 1.0),
    "summarization": (
        [{"human_summaries": ["a"], "machine_summaries": ["b", "c", "d", "f"], "relevance": [5.0, 4.0, 0.5, 1.0]}],
        0.8,
    ),
}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "tsv"])
@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_told_from_its_columns(kind, suffix, tmp_path):
    rows, expected = CASES[kind]
    if suffix == "tsv" and any(isinstance(value, list) for value in rows[0].values()):
        pytest.skip("a tsv file has no lists")
    task = only(write(tmp_path / f"data.{suffix}", rows))
    assert (task.kind, task.name) == (kind, "data")
    assert measure(task) == pytest.approx(expected)


def test_summaries_that_are_all_as_good_are_no_task(tmp_path):
    row = {"human_summaries": ["a"], "machine_summaries": ["b", "c"], "relevance": [3.0, 3.0]}
    with pytest.raises(ValueError, match="two different scores of one text at least in column 'relevance'"):
        read_task(write(tmp_path / "data.jsonl", [row, row]))


def test_classification_learns_on_the_train_part(tmp_path):
    for part, texts in (("train", "abef"), ("validation", "a"), ("test", "cd")):
        write(tmp_path / "news" / f"{part}.parquet", [{"text": t, "label": "xxyy"["abef".find(t)]} for t in texts])
    task = only(str(tmp_path / "news"))
    assert (task.kind, task.name, task.metric, task.examples) == ("classification", "news", "accuracy", 2)
    # c and d are nearer to a and b; the labels of c and d above are the last of them all.
    assert measure(task) == 0
    assert measure(only(TaskSpec(source=str(tmp_path / "news"), split="validation"))) == 1
    with pytest.raises(ValueError, match=r"has no part 'tset'. It has test, train, validation; did you mean 'test'\?$"):
        read_task(TaskSpec(source=str(tmp_path / "news"), split="tset"))
    with pytest.raises(ValueError, match=r"has no part 'xyz'. It has test, train, validation: name one of them\.$"):
        read_task(TaskSpec(source=str(tmp_path / "news"), split="xyz"))
    with pytest.raises(ValueError, match="must have a part 'train' that a classifier learns on. It has test"):
        read_task(TaskSpec(source=str(tmp_path / "news" / "test.parquet"), kind="classification"))


@pytest.mark.parametrize("asked", ["validation", "val", "dev", "eval"])
def test_a_part_for_validation_has_several_names(asked, tmp_path):
    def rows(count):
        return [{"query": f"{row}", "document": f"{row}"} for row in range(count)]

    write(tmp_path / "one" / "test.jsonl", rows(1))
    write(tmp_path / "one" / "val.jsonl", rows(2))
    assert only(TaskSpec(source=str(tmp_path / "one"), split=asked)).examples == 2
    for count, name in enumerate(("validation", "val", "dev", "eval"), start=3):
        write(tmp_path / "all" / f"{name}.jsonl", rows(count))
    own = {"validation": 3, "val": 4, "dev": 5, "eval": 6}[asked]  # its own name comes first
    assert only(TaskSpec(source=str(tmp_path / "all"), split=asked)).examples == own


def test_a_training_part_that_is_named_must_be_there(tmp_path):
    for part, texts in (("learn", "abef"), ("test", "cd")):
        write(tmp_path / f"{part}.jsonl", [{"text": text, "label": "xxxxyy"["abcdef".find(text)]} for text in texts])
    assert only(TaskSpec(source=str(tmp_path), train_split="learn")).kind == "classification"
    for kind in (None, "clustering", "classification"):
        with pytest.raises(ValueError, match="has no part 'nope', which is given as 'train_split'. It has learn, test"):
            read_task(TaskSpec(source=str(tmp_path), train_split="nope", kind=kind))


def test_the_kind_is_the_same_whatever_the_limit(tmp_path):
    rows = [{"sentence1": "a", "sentence2": other, "score": score} for other, score in zip("fbcd", (0, 1, 0.4, 0.7))]
    task = only(TaskSpec(source=write(tmp_path / "pairs.jsonl", rows), limit=2))
    assert (task.kind, task.examples) == ("sts", 2)
    assert measure(task, {text: ANGLES[text] for text in "abf"}) == pytest.approx(1)


def test_labelled_texts_look_for_their_own(tmp_path):
    rows = [{"text": text, "book": "xyxyzz"[row]} for row, text in enumerate(ANGLES)]
    source = write(tmp_path / "parts.parquet", rows)
    task = only(TaskSpec(source=source, kind="retrieval", columns={"label": "book"}))
    assert task.examples == 6
    scores = evaluate_tasks(lookup(on_circle(ANGLES)), [task])["tasks"][0]["scores"]["2"]["float32"]
    assert scores["cosine_accuracy@1"] == pytest.approx(2 / 6)  # e and f


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_empty_texts_are_measured_and_told(suffix, tmp_path, caplog):
    rows, expected = CASES["sts"]
    rows = [*rows, {"sentence1": "", "sentence2": " \t", "score": 2}, {"sentence1": "a", "sentence2": "", "score": 6}]
    source = write(tmp_path / f"pairs.{suffix}", rows)
    task = only(source)
    assert task.examples == 6
    assert caplog.messages == [
        f"{source}: 1 of 6 texts in column 'sentence1' are empty.",
        f"{source}: 2 of 6 texts in column 'sentence2' are empty.",
    ]
    caplog.clear()
    assert measure(only(TaskSpec(source=source, limit=4))) == pytest.approx(expected)
    assert caplog.messages == []


def test_empty_texts_in_lists_are_told(tmp_path, caplog):
    rows, _ = CASES["reranking"]
    source = write(tmp_path / "candidates.jsonl", [{**rows[0], "negative": ["b", "", "  "]}, rows[1]])
    assert only(source).kind == "reranking"
    assert caplog.messages == [f"{source}: 2 of 4 texts in column 'negative' are empty."]


@pytest.mark.parametrize("kind", CASES)
def test_a_column_of_empty_texts_is_no_task(kind, tmp_path):
    rows, _ = CASES[kind]
    column = next(name for name, value in rows[0].items() if isinstance(value, str) or name == "human_summaries")
    emptied = [{**row, column: [" "] if isinstance(row[column], list) else " "} for row in rows]
    source = write(tmp_path / "data.jsonl", emptied)
    with pytest.raises(
        ValueError, match=f"{source} must hold texts in column '{column}'. All .* of them are empty: fill"
    ):
        read_task(source)


def test_splits_that_datasets_wrote(tmp_path):
    rows, expected = CASES["sts"]
    splits = {"train": Dataset.from_list([{**rows[0], "score": 1.0}]), "test": Dataset.from_list(rows)}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert measure(only(str(tmp_path / "saved"))) == pytest.approx(expected)


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """A folder below the working directory answers to a hub's name in datasets itself."""
    rows, _ = CASES["sts"]
    write(tmp_path / "owner" / "name" / "test.jsonl", rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    from st_distill.evaluation.data import parts_of_hub

    assert parts_of_hub("owner/name", None, None)["test"].load().numbers("score") == [5, 4, 0.5, 1]
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="There is no file or folder 'owner/name', and no data set of that name"):
        read_task("owner/name")


@pytest.mark.parametrize("stored", ["parquet", "folder"])
def test_pictures_both_ways(stored, images, tmp_path):
    pictures = [images[0], images[4], images[8]]
    captions = ["warm", "warm", "cold"]
    if stored == "parquet":
        dataset = Dataset.from_dict({"image": pictures, "caption": captions}).cast_column("image", Image())
        dataset.to_parquet(tmp_path / "pictures.parquet")
        source = tmp_path / "pictures.parquet"
    else:
        for row, picture in enumerate(pictures):
            picture.save(tmp_path / f"{row}.png")
        rows = [{"file_name": f"{row}.png", "caption": caption} for row, caption in enumerate(captions)]
        source = write(tmp_path / "metadata.csv", rows)
    to_image, to_text = read_task(str(source))
    assert to_image.kind == to_text.kind == "image_retrieval"
    assert (to_image.examples, to_text.examples) == (2, 3)
    colours = [picture.getpixel((0, 0)) for picture in pictures]
    table = on_circle({"warm": 0, "cold": 90}) | dict(zip(colours, on_circle({"x": 10, "y": 80, "z": 95}).values()))
    results = evaluate_tasks(lookup(table), [to_image, to_text])
    first, second = (task["scores"]["2"]["float32"] for task in results["tasks"])
    assert first["cosine_accuracy@1"] == 1
    assert first["cosine_recall@1"] == pytest.approx((0.5 + 1) / 2)  # one of the two that are warm
    assert second["cosine_accuracy@1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("rows", "fields", "match"),
    [
        ([{"one": "a", "two": "b"}], {}, "columns one, two, which tell no kind of task"),
        ([{"text": "a"}], {"kind": "sts"}, "no column for 'first'"),
        *(
            (
                [{"sentence1": "a", "sentence2": "b", "score": 1}],
                {"columns": {"score": "nope"}, "kind": kind},
                "has no column 'nope', which .* It has sentence1, sentence2, score",
            )
            for kind in (None, "sts")
        ),
        ([{"text": "a", "label": 1}], {"kind": "sts", "columns": {"text": "text"}}, "Got 'text' instead"),
        ([{"sentence1": "a", "sentence2": None, "score": 1}], {}, "Row 0 of .* a text in column 'sentence2'. Got None"),
        *(
            (
                [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, value, value)],
                {},
                f"The column 'score' of .*data.jsonl must hold a number for each pair of texts. Got {value!r} in row 1: write",
            )
            for value in ("high", "1,5", float("inf"))
        ),
        ([{"sentence1": "a", "sentence2": "b", "score": "x"}], {"kind": "sts"}, "a number in column 'score'. Got 'x'"),
        (
            [{"sentence1": "a", "sentence2": "b", "label": 2}],
            {"kind": "pair_classification"},
            "must hold 0 .different. and 1 .the same., both of them. Got 2",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "label": label} for label in (1, 2, 2)],
            {},
            "column 'label' of .* holds 1 and 2, which may be labels or scores. .* or say kind: sts",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "label": label} for label in (0, 2, 1, 1)],
            {},
            "column 'label' of .* holds 0, 1 and 2, which may be labels or scores. .* or say kind: sts",
        ),
        *(
            (
                [{"question1": "a", "question2": "b", "label": label} for label in labels],
                {},
                f"column 'label' of .* must hold 1 for the same and 0 for different, .* Got {found} instead: write these, or",
            )
            for labels, found in (
                ((0, 2, 1, 1), "0, 2, 1"),
                (("neutral", "entailment"), "'neutral', 'entailment'"),
                ((1, 1), "1"),
                (range(7), "0, 1, 2, 3, 4, ..."),
            )
        ),
        ([{"query": "a", "positive": ["b"], "negative": []}], {"kind": "reranking"}, "with a positive and a negative"),
        (
            [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, float("nan"), 3)],
            {},
            "Row 1 of .* must have a number in column 'score'. Got nan",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "score": score} for score in (1, 2.5, None)],
            {},
            "Row 2 of .* must have a number in column 'score'. Got None",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "score": 2}] * 2,
            {},
            "two different scores in column 'score'.* Got 1 in 2",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "label": label} for label in (True, False, None)],
            {},
            "Row 2 of .* must have a number in column 'label'. Got None",
        ),
        (
            [{"sentence1": ["a", "b"], "sentence2": ["c"], "label": [1, 0]}],
            {},
            "Row 0 of .* lists of equal length in the columns sentence1, sentence2, label. Got 2, 1, 2",
        ),
        (
            [{"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": label} for label in ([1, 0], [1, None])],
            {},
            "Row 1 of .* must have a list of numbers in column 'label'",
        ),
        (
            [{"sentence1": ["a"], "sentence2": ["c"], "label": ["same"]}],
            {"kind": "pair_classification"},
            "Row 0 of .* must have a list of numbers in column 'label'",
        ),
        (
            [{"sentence1": [["a"]], "sentence2": ["c"], "label": [1]}],
            {"kind": "pair_classification"},
            "Row 0 of .* must have a list of texts in column 'sentence1'",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": None}],
            {},
            "Row 1 of .* must have a label, a text, in column 'label'. Got None",
        ),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": ""}], {}, "Row 1 of .* must have a label, a text,"),
        ([{"text": "a", "label": "x"}] * 2, {}, "two different labels in column 'label', or there are no clusters"),
        (
            [{"sentences": ["a", "b"], "labels": labels} for labels in ([1, 2], [1, None])],
            {},
            "Row 1 of .* must have a list of labels, each a whole number, in column 'labels'",
        ),
        (
            [{"sentences": ["a", "b"], "labels": [[1], [2]]}],
            {},
            "Row 0 of .* must have a list of labels, each a text, in column 'labels'",
        ),
        (
            [{"sentences": ["a", "b"], "labels": [1]}],
            {},
            "Row 0 of .* of equal length in the columns sentences, labels",
        ),
        (
            [{"sentences": ["a", "b"], "labels": labels} for labels in ([1, 2], [1, 1])],
            {},
            "Row 1 of .* at least two different labels in column 'labels'",
        ),
        *(
            (
                [{"human_summaries": ["a"], "machine_summaries": ["b", "c"], "relevance": [1, score]}],
                {},
                "Row 0 of .* must have a list of numbers in column 'relevance'",
            )
            for score in (None, "good", float("nan"))
        ),
        (
            [{"human_summaries": [], "machine_summaries": ["b"], "relevance": [1]}],
            {},
            "Row 0 of .* must have a summary in column 'human_summaries', .* Got 0, 1 and 1",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
            {"kind": "retrieval"},
            "must have two texts of one label in column 'label'",
        ),
    ],
)
def test_data_that_do_not_do(rows, fields, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        read_task(TaskSpec(source=write(tmp_path / "data.jsonl", rows), **fields))


@pytest.mark.parametrize(("same", "other"), [(True, False), ("True", "False"), ("1", "0")])
def test_pairs_are_judged_by_truths_too(same, other, tmp_path):
    rows, expected = CASES["pair_classification"]
    truths = [{"question1": row["text1"], "question2": row["text2"], "is_duplicate": row["label"]} for row in rows]
    truths = [row | {"is_duplicate": same if row["is_duplicate"] else other} for row in truths]
    task = only(write(tmp_path / "questions.jsonl", truths))
    assert task.kind == "pair_classification"
    assert measure(task) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [(0.5, 1, 2), (0, 1, 2, 3)])
def test_a_column_of_labels_may_hold_scores(labels, tmp_path):
    rows = [{"sentence1": "a", "sentence2": second, "label": label} for second, label in zip("bcdf", labels)]
    assert only(write(tmp_path / "data.jsonl", rows)).kind == "sts"


def test_labels_of_two_formats_are_compared_as_texts(tmp_path):
    for file, texts in (("train.parquet", "abef"), ("test.csv", "cd")):
        write(tmp_path / file, [{"text": text, "label": 1 if text in "abcd" else 2} for text in texts])
    assert measure(only(str(tmp_path))) == 1


@pytest.mark.parametrize(
    ("train", "match"),
    [
        (
            [{"utterance": "a", "intent": "x"}],
            "train.jsonl has no column 'text', which a task of the kind classification",
        ),
        ([{"text": "a", "intent": "x"}], "train.jsonl must hold at least two different labels in column 'intent'"),
        (
            [{"text": "a", "intent": "x"}, {"text": "b", "intent": "z"}],
            "Row 1 of .*test.jsonl must have a label that .*train.jsonl has too, in column 'intent'. Got 'y'",
        ),
    ],
)
def test_training_parts_that_do_not_do(train, match, tmp_path):
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "test.jsonl", [{"text": "a", "intent": "x"}, {"text": "b", "intent": "y"}])
    with pytest.raises(ValueError, match=match):
        read_task(TaskSpec(source=str(tmp_path), columns={"text": "text", "label": "intent"}))


@pytest.mark.parametrize("content", ['a\tb\t1\n"a\tb\t2\na\tb\t3\n', 'a\tb\t1\n"a" cat\tb\t2\n'])
def test_a_stray_quote_is_told_with_its_remedy(content, tmp_path):
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + content)
    remedy = (
        "not valid TSV in the row that begins in line 3: .* A text that begins with a double quote must end with one"
    )
    with pytest.raises(ValueError, match=remedy):
        read_task(str(tmp_path / "pairs.tsv"))


def test_a_task_of_another_kind(tmp_path):
    source = write(tmp_path / "data.jsonl", CASES["sts"][0])
    assert only(tmp_path / "data.jsonl").name == "data"
    for given in (None, {"source": source}):
        with pytest.raises(
            TypeError, match="must be a TaskSpec, or the file, .* TaskSpec.source=.... has fields for the rest"
        ):
            read_task(given)
    model = lookup(on_circle(ANGLES))
    with pytest.raises(TypeError, match="The 'tasks' parameter must hold what read_task gives. Got str in it instead"):
        evaluate_tasks(model, [source])
    with pytest.raises(TypeError, match="The 'tasks' parameter must be a list of tasks. Got Task instead"):
        evaluate_tasks(model, only(source))
    with pytest.raises(TypeError, match="The 'tasks' must be a list. Got '.*data.jsonl' instead: put it in a list"):
        measure_entries(model, source)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (("negative",), "retrieval does not use the negatives in negative; say kind: reranking"),
        (("negative_1", "negative_2"), "retrieval does not use the negatives in negative_1, negative_2; say kind"),
        (("title",), None),
    ],
)
def test_negatives_of_triplets_are_told(columns, told, tmp_path, caplog):
    rows = [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d"}]
    source = write(tmp_path / "triplets.jsonl", [row | dict.fromkeys(columns, "e") for row in rows])
    assert only(source).kind == "retrieval"
    assert [told in message for message in caplog.messages] == ([True] if told else [])
    caplog.clear()
    only(TaskSpec(source=source, kind="retrieval"))  # who says it means it
    assert not caplog.messages
    if told:
        mapped = None if "negative" in columns else {"negative": columns[0]}
        assert only(TaskSpec(source=source, kind="reranking", columns=mapped)).examples == 2


def test_a_misspelt_file_is_told_with_the_nearest(tmp_path):
    source = write(tmp_path / "stsb.jsonl", CASES["sts"][0])
    with pytest.raises(ValueError, match=f"There is no file or folder .*; did you mean '{source}'.$"):
        read_task(str(tmp_path / "stbs.jsonl"))
    with pytest.raises(ValueError, match=r"/x': see its spelling, and the folder that you are in\.$"):
        read_task(str(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"could be had from the hub \(.*\).$"):
        read_task("owner/x")


def test_files_without_content_are_told_with_their_remedy(tmp_path):
    whole = Path(write(tmp_path / "whole.parquet", CASES["sts"][0])).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-9])
    for name in ("empty.parquet", "empty.jsonl", "empty.csv"):
        (tmp_path / name).touch()
    for name, match in (
        ("cut.parquet", r"cut.parquet cannot be read: .*\. Write or download it again\.$"),
        ("empty.parquet", r"empty.parquet cannot be read: .*0 bytes\. Write or download it again\.$"),
        ("empty.jsonl", r"empty.jsonl has no rows: fill it, or name another file or part\.$"),
        ("empty.csv", r"empty.csv has no rows: fill it, or name another file or part\.$"),
    ):
        with pytest.raises(ValueError, match=match):
            read_task(str(tmp_path / name))


def test_what_the_system_refuses_is_not_damaged():
    told = str(unreadable("x.parquet", PermissionError(13, "Permission denied")))
    assert told == "x.parquet cannot be read: [Errno 13] Permission denied."


@pytest.mark.parametrize(
    ("name", "between", "match"),
    [
        ("pairs.csv", ";", "pairs.csv must have commas between its columns. Got semicolons instead, in 'sentence1;sen"),
        ("pairs.csv", "\t", "must have commas between its columns. Got tabs instead"),
        (
            "pairs.tsv",
            ",",
            "must have tabs between its columns. Got commas instead, in .*: save it with tabs, or as jsonl",
        ),
    ],
)
def test_another_separator_is_told(name, between, match, tmp_path):
    rows = [("sentence1", "sentence2", "score"), ("a", "b", "1.5"), ("a", "c", "1")]
    (tmp_path / name).write_text("".join(between.join(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=match):
        read_task(str(tmp_path / name))


def test_a_separator_within_the_only_column_is_none(tmp_path):
    (tmp_path / "texts.csv").write_text("text; or line\na\nb; c\n")
    assert list(text_rows(tmp_path / "texts.csv")) == [{"text; or line": "a"}, {"text; or line": "b; c"}]


def test_spec_checks_its_fields():
    with pytest.raises(ValueError, match="'kind' of a task must be one of classification.*Got 'STS'"):
        TaskSpec(source="x", kind="STS")
    with pytest.raises(ValueError, match="'limit' of a task must be a whole number from 1, or null. Got 0"):
        TaskSpec(source="x", limit=0)
    with pytest.raises(ValueError, match="'source' of a task must be a file, .* Got 3 instead"):
        TaskSpec(source=3)
    with pytest.raises(ValueError, match="'columns' of a task must be a mapping of names.* Got .'a'. instead"):
        TaskSpec(source="x", columns=["a"])
    with pytest.raises(ValueError, match="'name' of a task must be a text. Got 3 instead: put it in quotes"):
        TaskSpec(source="x", name=3)
    with pytest.raises(ValueError, match="'train_split' of a task must be a text. Got null"):
        TaskSpec(source="x", train_split=None)
    with pytest.raises(ValueError, match="'experiments' of a task must be a whole number from 1. Got null"):
        TaskSpec(source="x", experiments=None)
    with pytest.raises(ValueError, match="'split' of a task must be a text. Got true"):
        TaskSpec(source="x", split=True)
    with pytest.raises(ValueError, match="'source' of a task must be a file, .* Got null"):
        TaskSpec(source=None)


def test_results_as_a_table_and_as_csv(tmp_path):
    tasks = [
        only(TaskSpec(source=write(tmp_path / f"{name}.jsonl", CASES[kind][0])))
        for name, kind in (("pairs", "sts"), ("again", "sts"), ("sets", "clustering"))
    ]
    results = evaluate_tasks(lookup(on_circle(ANGLES)), tasks, dims=[2, 1], precisions=["float32", "binary"])
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    means = results["averages"]["2"]["float32"]
    assert means["kinds"] == {"clustering": pytest.approx(1), "sts": pytest.approx(0.8)}
    assert means["tasks"] == pytest.approx(2.6 / 3)
    assert means["mean of kinds"] == pytest.approx(0.9)
    lines = task_report(results).splitlines()
    assert lines[2].split() == ["task", "kind", "metric", "2", "1", "2", "binary", "1", "binary"]
    assert lines[4].split()[:4] == ["sets", "clustering", "v_measure", "100.0"]
    assert lines[5].split()[:4] == ["pairs", "sts", "spearman_cosine", "80.0"]
    assert [line.split("  ")[0] for line in lines[6:]] == ["again", "mean of 2", "mean of tasks", "mean of kinds"]
    rows = list(csv.DictReader(io.StringIO(csv_of_results(results))))
    main = [row for row in rows if row["main"] == "True" and row["task"] == "pairs"]
    assert [(row["dimension"], row["precision"]) for row in main] == [
        ("2", "float32"),
        ("2", "binary"),
        ("1", "float32"),
        ("1", "binary"),
    ]
    assert float(main[0]["score"]) == pytest.approx(0.8)
