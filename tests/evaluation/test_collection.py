"""Collections as BEIR has them, whole and broken."""

from __future__ import annotations

import math

import pytest
from data_files import write
from lookup import measure, only

from st_distill.evaluation import TaskSpec, read_task


@pytest.fixture
def folder(tmp_path):
    """Two queries, of which train judges the first and test the second."""
    write(tmp_path / "corpus.jsonl", [{"_id": "1", "text": "a"}, {"_id": "2", "text": "f"}])
    write(tmp_path / "queries.jsonl", [{"_id": "7", "text": "b"}, {"_id": "8", "text": "e"}])
    write(tmp_path / "qrels" / "train.tsv", [{"query-id": "7", "corpus-id": "1", "score": 1}])
    write(tmp_path / "qrels" / "test.tsv", [{"query-id": "8", "corpus-id": "2", "score": 1}])
    return tmp_path


def test_collection_as_beir_has_it(tmp_path):
    folder = tmp_path / "collection"
    write(folder / "corpus.jsonl", [{"_id": "1", "title": "a", "text": "b"}, {"_id": "2", "title": "", "text": "c"}])
    write(folder / "queries.jsonl", [{"_id": "7", "text": "d"}, {"_id": "8", "text": "e"}])
    write(folder / "qrels" / "test.tsv", [{"query-id": "7", "corpus-id": "1", "score": 1}])
    write(folder / "qrels" / "train.tsv", [{"query-id": "8", "corpus-id": "2", "score": 1}])
    angles = {"a b": 90, "c": 20, "d": 60, "e": 0}
    task = only(str(folder))
    assert (task.kind, task.metric, task.examples) == ("retrieval", "cosine_ndcg@10", 1)
    assert measure(task, angles) == 1
    assert measure(only(TaskSpec(source=str(folder), split="train")), angles) == 1
    with pytest.raises(ValueError, match="so its kind is retrieval"):
        read_task(TaskSpec(source=str(folder), kind="sts"))


def test_documents_without_a_title_and_a_text_are_told(folder, caplog):
    documents = [("1", "a", ""), ("2", "", "f"), ("3", None, " "), ("4", "", "")]
    write(folder / "corpus.jsonl", [{"_id": name, "title": title, "text": text} for name, title, text in documents])
    assert only(str(folder)).kind == "retrieval"
    assert caplog.messages == [f"{folder}/corpus.jsonl: 2 of 4 texts in column 'text' are empty."]


def test_judgements_beside_the_corpus_as_parquet(tmp_path, caplog):
    write(tmp_path / "corpus.parquet", [{"_id": "1", "text": "a"}, {"_id": "2", "text": "f"}])
    write(tmp_path / "queries.parquet", [{"_id": "7", "text": "b"}])
    judged = [{"query_id": "7", "corpus_id": "1", "score": 2}, {"query_id": "7", "corpus_id": "9", "score": 1}]
    write(tmp_path / "qrels_test.parquet", judged)
    # Document 9, which is not there, is missed: 2 / (2 + 1 / log2(3)).
    assert measure(only(str(tmp_path))) == pytest.approx(0.7602, abs=1e-4)
    missed = "1 of 2 judgements name a query or document that is not there, the first the document '9', which"
    assert f"qrels_test.parquet: {missed} {tmp_path}/corpus.parquet has not" in caplog.text


@pytest.mark.parametrize("documents", ["af", "a"])
def test_graded_judgements_one_for_each_query(documents, tmp_path):
    write(tmp_path / "corpus.jsonl", [{"_id": text, "text": text} for text in documents])
    write(tmp_path / "queries.jsonl", [{"_id": "7", "text": "b"}, {"_id": "8", "text": "e"}])
    judged = [{"query-id": "7", "corpus-id": "a", "score": 2}, {"query-id": "8", "corpus-id": "a", "score": 1}]
    write(tmp_path / "qrels" / "test.tsv", judged)
    # e finds f before a, where there is f.
    second = 1 / math.log2(3) if "f" in documents else 1
    assert measure(only(str(tmp_path))) == pytest.approx((1 + second) / 2)


def test_a_collection_without_judgements(tmp_path):
    for name in ("corpus", "queries"):
        write(tmp_path / f"{name}.jsonl", [{"_id": "1", "text": "a"}])
    with pytest.raises(ValueError, match="no judgements of which belong together. Put them into its folder qrels"):
        read_task(str(tmp_path))


@pytest.mark.parametrize("kind", [None, "retrieval"])
@pytest.mark.parametrize(("name", "other"), [("corpus", "queries"), ("queries", "corpus")])
def test_one_part_alone_is_no_collection(name, other, kind, tmp_path):
    write(tmp_path / f"{name}.jsonl", [{"_id": "1", "text": "a"}])
    needed = (
        f"has {name} and no {other}: .* {other}.jsonl .* and judgements in its folder qrels, as test.tsv with .* It has"
    )
    with pytest.raises(ValueError, match=f"{needed} {name}."):
        read_task(TaskSpec(source=str(tmp_path), kind=kind))


def test_a_corpus_that_is_a_task_by_itself(tmp_path):
    write(
        tmp_path / "corpus.jsonl",
        [{"_id": text, "text": text, "label": "xxyyzz"["abcdef".find(text)]} for text in "abcdef"],
    )
    assert only(str(tmp_path)).kind == "clustering"


def test_a_limit_counts_the_queries_that_the_split_judges(folder):
    task = only(TaskSpec(source=str(folder), limit=1))
    assert list(task.evaluator.queries_ids) == ["8"]


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("corpus.jsonl", None, "has queries and no corpus: a collection needs the file corpus.jsonl .*_id and text"),
        ("queries.jsonl", None, "has corpus and no queries: a collection needs the file queries.jsonl"),
        (
            "qrels/test.tsv",
            "8\t2\t1\n",
            "test.tsv has no rows: .* part. The first line of judgements names their columns: query-id,",
        ),
        (
            "qrels/test.tsv",
            "8\t1\t1\n",
            "test.tsv has the column '1' twice.* The first line of judgements names their columns",
        ),
        (
            "qrels/test.tsv",
            "8\t2\t1\n7\t1\t1\n",
            "must have a column query-id or .* The first line of judgements names",
        ),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\n9\t1\t1\n",
            "All of its 1 judgements name others, the first the query '9', which .*queries.jsonl has not",
        ),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n8\t2\t0\n", "test.tsv must have a relevant document"),
        (
            "corpus.jsonl",
            '{"_id": "1", "text": "a"}\n{"_id": "2", "text": "f"}\n{"_id": "1", "text": "b"}\n',
            "Row 2 of .*corpus.jsonl must have a name of its own in column '_id'. Got '1', which row 0 has too",
        ),
        (
            "queries.jsonl",
            '{"_id": "8", "text": "a"}\n{"_id": "8", "text": "f"}\n',
            "Row 1 of .*queries.jsonl must have a name of its own in column '_id'. Got '8'",
        ),
    ],
)
def test_collections_that_do_not_do(folder, file, content, match):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=match):
        read_task(str(folder))
