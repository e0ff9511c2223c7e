from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lookup import lookup, on_circle, random_table
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from st_distill.evaluation import (
    ClassificationEvaluator,
    ClusteringEvaluator,
    RetrievalEvaluator,
    SummarizationEvaluator,
)


def test_classification_known_by_hand():
    # Along one line: a at -2 and -1, b at 1 and 2. Of the four that are judged, one lies on the other side.
    model = lookup(
        {"a1": [-2.0], "a2": [-1.0], "b1": [1.0], "b2": [2.0], "x": [-3.0], "y": [3.0], "z": [4.0], "w": [-4.0]}
    )
    evaluator = ClassificationEvaluator(
        ["a1", "a2", "b1", "b2"], list("aabb"), list("xyzw"), list("abbb"), samples_per_label=None
    )
    assert evaluator.primary_metric == "accuracy"
    scores = evaluator(model)
    assert scores["accuracy"] == 0.75
    # a: precision 1/2, recall 1; b: precision 1, recall 2/3.
    assert scores["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores["f1_weighted"] == pytest.approx((2 / 3 + 3 * 4 / 5) / 4)
    # Ranked z, y, x, w with w the third b: found at ranks 1, 2 and 4.
    assert scores["ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_classification_encodes_only_what_is_drawn_and_draws_alike():
    table = random_table(200, 4)
    texts = list(table)
    labels = [row % 3 for row in range(200)]
    arguments = texts[:150], labels[:150], texts[150:], labels[150:]
    model = lookup(table)
    evaluator = ClassificationEvaluator(*arguments, samples_per_label=2, experiments=5)
    first = evaluator(model)
    assert len(evaluator.train_texts) <= 2 * 3 * 5
    assert len(model[0].seen) == len(evaluator.train_texts) + 50
    assert ClassificationEvaluator(*arguments, samples_per_label=2, experiments=5)(model) == first
    assert "ap" not in first
    assert first["accuracy"] == pytest.approx(1 / 3, abs=0.15)  # labels that the vectors do not know


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ((["a", "a"], ["a"]), "at least two different labels. Got 1"),
        ((["a", "b"], ["c"]), "labels of the training texts alone. Got 'c'"),
        ((["a"], ["a"]), "'train_texts' and 'train_labels'.*Got 2 and 1"),
    ],
)
def test_classification_checks_its_labels(labels, match):
    with pytest.raises(ValueError, match=match):
        ClassificationEvaluator(["x", "y"], labels[0], ["z"], labels[1])


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (None, "must be a list of labels. Got NoneType instead"),
        ("ab", "must be a list of labels. Got str instead"),
        (["a", None], "Got None at row 1 instead: drop the row"),
        (["a", 1], "must hold texts alone, or whole numbers alone. Got 1 at row 1 instead"),
        ([0.5, 1], "must hold texts alone, or whole numbers alone. Got 0.5 at row 0 instead"),
    ],
)
def test_labels_of_another_kind(labels, match):
    for make in (
        lambda: ClassificationEvaluator(["x", "y"], labels, ["z"], ["a"]),
        lambda: ClassificationEvaluator(["x", "y"], ["a", "b"], ["z", "z"], labels),
        lambda: ClusteringEvaluator([(["x", "y"], labels)]),
    ):
        with pytest.raises(TypeError, match=match):
            make()


def test_labels_of_arrays_are_plain_values():
    texts, labels = ["a", "b", "c", "d"], np.array([0, 1, 0, 1])
    model = lookup(on_circle({"a": 0, "b": 90, "c": 1, "d": 91}))
    for given in (labels, list(labels), torch.tensor(labels), labels.astype(bool), labels.astype(float)):
        assert ClassificationEvaluator(texts, given, texts, given, samples_per_label=None)(model)["accuracy"] == 1
    with pytest.raises(ValueError, match="'texts' parameter must hold at least one text. Got none"):
        ClassificationEvaluator(texts, labels, [], [])


@pytest.mark.parametrize("sets", [(["a", "b", "c"], [0, 1, 0]), ["a", "b"], [(["a", "b"], [0, 1], 3)]])
def test_sets_that_are_no_pairs(sets):
    with pytest.raises(
        TypeError, match=r"must hold pairs of texts and their labels.* give one set as \[\(texts, labels\)\]"
    ):
        ClusteringEvaluator(sets)
    with pytest.raises(TypeError, match="The 'sets' parameter must be a list of pairs .* Got NoneType"):
        ClusteringEvaluator(None)


def test_summaries_and_scores_of_another_kind():
    with pytest.raises(TypeError, match="The 'human' parameter must be a list of lists of texts. Got NoneType"):
        SummarizationEvaluator(None, [["b"]], [[1.0]])
    with pytest.raises(TypeError, match="The 'scores' parameter must be a list of lists of numbers. Got NoneType"):
        SummarizationEvaluator([["a"]], [["b"]], None)
    for score in ("high", None, math.nan):
        with pytest.raises(
            ValueError, match=f"The 'scores' parameter must hold finite numbers. Got {score!r} at row 1"
        ):
            SummarizationEvaluator([["a"]], [["b", "c"]], [[1.0, score]])


def test_clustering_known_by_hand():
    near = on_circle({f"a{i}": i for i in range(4)} | {f"b{i}": 180 + i for i in range(4)})
    model = lookup(near)
    texts = list(near)
    right, crossed = ["a"] * 4 + ["b"] * 4, ["a", "a", "b", "b"] * 2
    assert ClusteringEvaluator([(texts, right)])(model)["v_measure"] == pytest.approx(1)
    assert ClusteringEvaluator([(texts, crossed)])(model)["v_measure"] == pytest.approx(0, abs=1e-9)
    assert ClusteringEvaluator([(texts, right), (texts, crossed)])(model)["v_measure"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="two different labels in each set. Got 1 in a set of 2"):
        ClusteringEvaluator([(["a", "b"], [0, 0])])


def test_clustering_of_a_collapsed_model_is_zero():
    texts = [f"text {row}" for row in range(12)]
    model = lookup({text: [1.0, 0.0] for text in texts})
    assert ClusteringEvaluator([(texts, [row % 3 for row in range(12)])])(model)["v_measure"] == 0


def test_summarization_known_by_hand():
    model = lookup(on_circle({"h1": 0, "h2": 90, "m1": 10, "m2": 40, "m3": 85, "m4": 180}))
    # Angles to the nearest human summary: 10, 40, 5, 90.
    human, machine = [["h1", "h2"]], [["m1", "m2", "m3", "m4"]]
    assert SummarizationEvaluator(human, machine, [[3, 2, 4, 1]])(model)["spearman_cosine"] == pytest.approx(1)
    # Two neighbours in the order changed places: 1 - 6 * 2 / (4 * 15).
    swapped = SummarizationEvaluator(human * 2, machine * 2, [[4, 2, 3, 1], [1, 1, 1, 1]])(model)
    assert swapped["spearman_cosine"] == pytest.approx(0.8)  # the second text has no order
    assert math.isnan(SummarizationEvaluator(human, machine, [[1, 1, 1, 1]])(model)["spearman_cosine"])
    with pytest.raises(ValueError, match="Row 0 must have.*2 human ones, 4 machine ones and 1 scores"):
        SummarizationEvaluator(human, machine, [[1]])


def test_degrees_of_relevance_count_in_ndcg():
    model = lookup(on_circle({"q": 0, "best": 30, "good": 20, "bad": 10}))
    texts = {"b": "best", "g": "good", "x": "bad"}
    scores = RetrievalEvaluator({"q": "q"}, texts, {"q": {"b": 2.0, "g": 1.0, "x": 0.0}})(model)
    # Found: bad, good, best.
    expected = (1 / math.log2(3) + 2 / math.log2(4)) / (2 + 1 / math.log2(3))
    assert scores["cosine_ndcg@10"] == pytest.approx(expected)
    assert scores["cosine_mrr@10"] == 0.5


def test_degrees_where_a_query_has_one_judgement_or_the_corpus_one_document():
    model = lookup(on_circle({"q": 0, "r": 90, "best": 30, "good": 20}))
    relevance = {"q": {"b": 2.0}, "r": {"b": 1.0, "g": 0.0}}
    scores = RetrievalEvaluator({"q": "q", "r": "r"}, {"b": "best", "g": "good"}, relevance)(model)
    assert scores["cosine_ndcg@10"] == pytest.approx((1 / math.log2(3) + 1) / 2)  # second for q, first for r
    assert RetrievalEvaluator({"q": "q"}, {"b": "best"}, {"q": {"b": 2.0}})(model)["cosine_ndcg@10"] == 1
    # The only document that is found is the query itself.
    alone = RetrievalEvaluator({"b": "best"}, {"b": "best"}, {"b": {"b": 2.0}})(model)
    assert alone["cosine_ndcg@10"] == 0


def test_plain_relevance_is_the_librarys():
    table = random_table(60, 4)
    texts = {text: text for text in table}
    queries = {text: text for text in list(table)[:10]}
    generator = np.random.default_rng(0)
    relevance = {query: {f"text {row}": 1.0 for row in generator.integers(10, 60, size=3)} for query in queries}
    corpus = {key: text for key, text in texts.items() if key not in queries}
    ours = RetrievalEvaluator(queries, corpus, relevance)(lookup(table))
    theirs = InformationRetrievalEvaluator(queries, corpus, {query: set(found) for query, found in relevance.items()})
    assert ours == pytest.approx(theirs(lookup(table)))


def test_a_query_does_not_find_itself():
    model = lookup(on_circle({"a": 0, "b": 10, "c": 90}))
    texts = {text: text for text in "abc"}
    scores = RetrievalEvaluator(texts, texts, {"a": {"b": 1.0}})(model)
    assert scores["cosine_accuracy@1"] == 1
    # The same id for another text is another thing.
    scores = RetrievalEvaluator({"c": "a"}, texts, {"c": {"b": 1.0}})(model)
    assert scores["cosine_mrr@10"] == 0.5
    with pytest.raises(ValueError, match="relevant document for a query. Got none"):
        RetrievalEvaluator(texts, texts, {"a": {"b": 0.0}})
