"""Row numbers as labels of a dataset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from store_material import Counting, create


def pairs_dataset():
    from datasets import Dataset

    return Dataset.from_dict({"question": ["a", "b", "a"], "answer": ["b", "c", "d"], "number": [1, 2, 3]})


@pytest.fixture
def labelled_store(tmp_path):
    pairs = [(text, "query") for text in "ab"] + [(text, None) for text in "abcd"]
    return create(tmp_path / "s", pairs, Counting())


def test_labels_of_one_column(labelled_store):
    labelled = labelled_store.add_labels(pairs_dataset(), "answer")
    assert labelled["label"][:] == labelled_store.ids(["b", "c", "d"]).tolist()
    assert labelled.column_names == ["question", "answer", "number", "label"]
    assert labelled_store.add_labels(pairs_dataset(), ["answer"])["label"][:] == labelled["label"][:]
    shuffled = labelled_store.add_labels(pairs_dataset().select([2, 0]), "answer")
    assert shuffled["label"][:] == labelled_store.ids(["d", "b"]).tolist()
    assert labelled_store.view().add_labels(pairs_dataset(), "question", roles="query")["label"][:] == [0, 1, 0]


def test_labels_of_one_column_of_a_stream(labelled_store):
    from datasets import IterableDataset

    unknown = IterableDataset.from_generator(lambda: iter(pairs_dataset()))
    for stream in (pairs_dataset().to_iterable_dataset(), unknown):
        labels = [row["label"] for row in labelled_store.add_labels(stream, "answer")]
        assert labels == labelled_store.ids(["b", "c", "d"]).tolist()


@pytest.mark.parametrize("kind", ["dataset", "stream", "unknown stream", "dictionary"])
def test_labels_of_several_columns(labelled_store, kind):
    from datasets import DatasetDict, IterableDataset

    dataset = pairs_dataset()
    if kind == "stream":
        dataset = dataset.to_iterable_dataset()
    elif kind == "unknown stream":
        dataset = IterableDataset.from_generator(lambda: iter(pairs_dataset()))
        assert dataset.column_names is None
    elif kind == "dictionary":
        dataset = DatasetDict({"train": dataset})
    labelled = labelled_store.add_labels(dataset, ["question", "answer"], roles={"question": "query"})
    rows = list(labelled["train"] if kind == "dictionary" else labelled)
    questions = labelled_store.ids(["a", "b", "a"], role="query")
    answers = labelled_store.ids(["b", "c", "d"])
    assert [row["label"] for row in rows] == np.stack([questions, answers], axis=1).tolist()
    assert rows[0]["question"] == "a"


def test_labels_collate_to_integers(labelled_store, make_student):
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    labelled = labelled_store.add_labels(pairs_dataset().remove_columns("number"), ["answer", "question"])
    batch = SentenceTransformerDataCollator(preprocess_fn=make_student().preprocess)(list(labelled))
    assert batch["label"].dtype == torch.int64
    assert batch["label"].shape == (3, 2)
    assert labelled_store.gather(batch["label"]).shape == (3, 2, 4)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"columns": "title"}, ValueError, r"must be columns of the dataset, .* Got \['title'\] too"),
        (None, {"columns": []}, ValueError, "distinct names, one at least"),
        (None, {"columns": ["answer", "answer"]}, ValueError, "distinct names"),
        (None, {"columns": "number"}, TypeError, "text of column 'number' must be a string. Got int at position 0"),
        (None, {"columns": "answer", "roles": {"question": "query"}}, ValueError, r"for columns among \['answer'\]"),
        (None, {"columns": "answer", "roles": 3}, TypeError, "mapping of columns to roles"),
        (None, {"columns": "answer", "roles": "query"}, ValueError, "text of column 'answer' must be in the store"),
        ("score", {"columns": "answer"}, ValueError, r"no label column yet.*\['score'\]: remove or rename"),
        ("label", {"columns": "answer"}, ValueError, r"remove_columns\(\['label'\]\)"),
        (list, {"columns": "answer"}, TypeError, "must be a datasets.Dataset, IterableDataset.* Got list"),
    ],
)
def test_labels_that_cannot_be(labelled_store, change, options, error, message):
    dataset = pairs_dataset()
    if isinstance(change, str):
        dataset = dataset.rename_column("number", change)
    elif change is not None:
        dataset = change(dataset)
    with pytest.raises(error, match=message):
        labelled_store.add_labels(dataset, **options)


def test_empty_values_in_a_text_column(labelled_store):
    from datasets import Dataset

    with pytest.raises(TypeError, match="text of column 'answer' must be a string. Got NoneType at position 1"):
        labelled_store.add_labels(Dataset.from_dict({"answer": ["a", None]}), "answer")
