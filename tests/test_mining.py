from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from st_distill.cli import main
from st_distill.mining import mine_negatives
from st_distill.recipe import Texts


@pytest.fixture
def pairs(tmp_path, sentences) -> Texts:
    """Eight queries; the first one has two answers."""
    rows = {"query": [*sentences[:8], sentences[0]], "document": [*sentences[:8], sentences[15]]}
    Dataset.from_dict({**rows, "other": ["x"] * 9}).to_parquet(tmp_path / "pairs.parquet")
    return Texts(path=str(tmp_path / "pairs.parquet"), columns=["query", "document"])


@pytest.fixture
def model(make_student):
    return make_student()


def test_negatives_are_the_nearest_of_the_wrong_answers(model, pairs, tmp_path, sentences):
    corpus = Texts(data=sentences)
    assert mine_negatives(model, pairs, tmp_path / "hard.parquet", corpus=corpus, negatives=3) == 9
    table = pq.read_table(tmp_path / "hard.parquet")
    assert table.column_names == ["query", "document", "negative_1", "negative_2", "negative_3"]
    cosines = model.similarity(model.encode(sentences), model.encode(sentences))
    for row in table.to_pylist():
        query = sentences.index(row["query"])
        own = {query, 15} if query == 0 else {query}
        wanted = [index for index in cosines[query].argsort(descending=True).tolist() if index not in own]
        assert [row[f"negative_{place}"] for place in (1, 2, 3)] == [sentences[index] for index in wanted[:3]]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_a_query_is_no_negative_of_its_own(ending, model, tmp_path, sentences):
    """Pairs that are given in both directions: the nearest text of all to a query is the query."""
    forth, back = sentences[:6], sentences[6:12]
    both = Dataset.from_dict({"query": forth + back, "document": back + forth})
    write = {"parquet": both.to_parquet, "jsonl": both.to_json, "csv": both.to_csv}[ending]
    write(tmp_path / f"pairs.{ending}")
    assert mine_negatives(model, tmp_path / f"pairs.{ending}", tmp_path / "hard.parquet", negatives=10) == 12
    for row in pq.read_table(tmp_path / "hard.parquet").to_pylist():
        assert {row[f"negative_{place}"] for place in range(1, 11)} == {*forth, *back} - {row["query"], row["document"]}


def test_texts_that_are_cut_are_told(make_student, pairs, tmp_path, caplog):
    with caplog.at_level("WARNING", "st_distill"):
        mine_negatives(make_student(max_seq_length=4), pairs, tmp_path / "hard.parquet", negatives=2)
    assert "more tokens than the model's 4" in caplog.text


def test_a_link_to_nothing_is_not_replaced(model, pairs, tmp_path):
    (tmp_path / "hard.parquet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="must be a new file, and '.*hard.parquet' is there already"):
        mine_negatives(model, pairs, tmp_path / "hard.parquet", negatives=2)


@pytest.mark.parametrize("names", [["query", "negative_1"], ["negative_2", "document"]])
def test_a_column_with_the_name_of_one_that_is_written_is_refused(names, model, tmp_path, sentences):
    """Its texts were lost."""
    Dataset.from_dict(dict(zip(names, (sentences[:4], sentences[4:8])))).to_parquet(tmp_path / "pairs.parquet")
    taken = next(name for name in names if name.startswith("negative"))
    with pytest.raises(
        ValueError, match=f"have a column '{taken}', which is the name of one that is written.* Rename it"
    ):
        mine_negatives("no-model", tmp_path / "pairs.parquet", tmp_path / "hard.parquet", negatives=2)
    assert not (tmp_path / "hard.parquet").exists()
    if taken == "negative_2":
        assert mine_negatives(model, tmp_path / "pairs.parquet", tmp_path / "hard.parquet", negatives=1) == 4


def test_the_same_file_every_time(model, pairs, tmp_path):
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    mine_negatives(model, pairs, first, negatives=2)
    mine_negatives(model, pairs, second, negatives=2)
    assert first.read_bytes() == second.read_bytes()


def test_skip_leaves_out_the_nearest(model, pairs, tmp_path):
    mine_negatives(model, pairs, tmp_path / "all.parquet", negatives=2)
    mine_negatives(model, pairs, tmp_path / "rest.parquet", negatives=1, skip=1)
    every, rest = (pq.read_table(tmp_path / name).to_pydict() for name in ("all.parquet", "rest.parquet"))
    assert rest["negative_1"] == every["negative_2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "'negatives' must be a whole number from 1. Got 0"),
        ({"skip": -1}, "'skip' must be a whole number from 0"),
        ({"margin": 1.0}, "'margin' must be from 0 to below 1. Got 1.0"),
        ({"negatives": 9}, "must be more than 9.* Got 9 different ones: give a 'corpus'"),
        ({"negatives": 6, "margin": 0.999}, "At least one of the 9 pairs must have 6 negatives"),
        ({"corpus": "nothing.parquet"}, "There is no file or folder 'nothing.parquet'"),
        ({"path": "hard.csv"}, r"must end in \.parquet\. Got 'hard.csv' instead"),
        ({"path": "no/hard.parquet"}, "is 'no/hard.parquet', and there is no folder '.*/no': make it, or name another"),
        ({"path": f"{__file__}/hard.parquet"}, "test_mining.py' is no folder. Name a file in a folder"),
        ({"columns": ["query", "answer"]}, "has no column 'answer'"),
        ({"columns": None}, "'pairs' must have two columns of texts. Got query, document, other"),
        ({"model": "nowhere/at-all"}, "The model cannot be loaded"),
    ],
)
def test_what_is_wrong_is_said(options, message, model, pairs, tmp_path):
    pairs.columns = options.pop("columns", pairs.columns)
    path = options.pop("path", tmp_path / "hard.parquet")
    with pytest.raises(ValueError, match=message):
        mine_negatives(options.pop("model", model), pairs, path, **{"negatives": 2, **options})
    assert not (tmp_path / "hard.parquet").exists()


def test_the_command(model, pairs, tmp_path, capsys):
    model.save(str(tmp_path / "model"))
    words = ["mine", str(tmp_path / "model"), pairs.path, str(tmp_path / "hard.parquet"), "--negatives", "2"]
    assert main([*words, "--columns", "query,document", "--limit", "8"]) == 0
    assert "8 pairs with 2 negatives each are in" in capsys.readouterr().out
    assert main([*words, "--columns", "query,document"]) == 2
    assert "hard.parquet' is there already. Remove it, or name another one" in capsys.readouterr().err
    assert main([*words, "--corpus-column", "text"]) == 2
