from __future__ import annotations

import math

import numpy as np
import pytest
from lookup import lookup, on_circle, random_table
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    RerankingEvaluator,
    SequentialEvaluator,
    TripletEvaluator,
)
from sentence_transformers.util import quantize_embeddings

from st_distill.evaluation import (
    SweepEvaluator,
    retrieval_evaluator,
    similarity_evaluator,
)
from st_distill.evaluation.sweep import EncodedOnce


def test_retrieval_equals_the_library_at_each_dimension(make_student, sentences):
    model = make_student()
    queries, documents = sentences[:8], sentences[8:]
    ours = retrieval_evaluator(queries, documents, dims=[32, 8], name="pairs", write_csv=False)(model)
    ids = [str(row) for row in range(8)]
    for dim in (32, 8):
        theirs = InformationRetrievalEvaluator(
            dict(zip(ids, queries)), dict(zip(ids, documents)), {row: {row} for row in ids}, truncate_dim=dim
        )(model)
        assert ours[f"pairs_cosine_ndcg@10_{dim}"] == pytest.approx(theirs["cosine_ndcg@10"])
        assert ours[f"pairs_cosine_accuracy@1_{dim}"] == pytest.approx(theirs["cosine_accuracy@1"])


def test_retrieval_known_by_hand():
    model = lookup(on_circle({"q1": 0, "q2": 90, "d1": 5, "d2": 20, "d3": 200}))
    # q1 finds d1 first; q2 has d2 and d3: d2 comes first, d3 second.
    scores = retrieval_evaluator(["q1", "q2", "q2"], ["d1", "d2", "d3"])(model)
    assert scores["cosine_accuracy@1_2"] == 1
    # q2: d2 (70 degrees), d1 (85), d3 (110): found at ranks 1 and 3.
    expected = (1 + (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))) / 2
    assert scores["cosine_ndcg@10_2"] == pytest.approx(expected)


def test_each_text_is_encoded_once():
    table = random_table(10, 8)
    model = lookup(table)
    texts = list(table)
    retrieval_evaluator(texts[:5], texts[5:], dims=[8, 4, 2])(model)
    assert sorted(model[0].seen) == sorted(texts)


def test_similarity_equals_the_library_at_each_dimension(make_student, sentences):
    model = make_student()
    columns = sentences[:8], sentences[8:], [0.1, 0.9, 0.3, 0.4, 0.6, 0.5, 0.2, 0.8]
    evaluator = similarity_evaluator(*columns, dims=[32, 8], name="sts")
    assert evaluator.primary_metric == "sts_spearman_cosine_32"
    ours = evaluator(model)
    for dim in (32, 8):
        theirs = EmbeddingSimilarityEvaluator(*columns, truncate_dim=dim)(model)
        assert ours[f"sts_spearman_cosine_{dim}"] == pytest.approx(theirs["spearman_cosine"])
        assert ours[f"sts_pearson_cosine_{dim}"] == pytest.approx(theirs["pearson_cosine"], abs=1e-5)


def test_sweep_of_any_evaluator_and_its_file(tmp_path, make_student, sentences):
    model = make_student()
    pattern = EmbeddingSimilarityEvaluator(sentences[:8], sentences[8:], list(range(8)), name="sts")
    sweep = SweepEvaluator(pattern, dims=[32, 16], precisions=["int8", "float32"])
    for _ in range(2):
        assert sweep.primary_metric in (None, "sts_spearman_cosine_32")
        scores = sweep(model, str(tmp_path))
    assert sweep.primary_metric in scores
    assert pattern.truncate_dim is None
    assert [file.name for file in tmp_path.iterdir()] == ["similarity_evaluation_sts_results.csv"]
    header, *rows = (tmp_path / "similarity_evaluation_sts_results.csv").read_text().splitlines()
    assert header == "epoch,steps," + ",".join(
        f"sts_{metric}_cosine_{at}" for at in ("32", "16", "32_int8", "16_int8") for metric in ("pearson", "spearman")
    )
    assert len(rows) == 2
    assert len(model.model_card_data.eval_results_dict) == 2  # one for each dimension, not for each run or precision


def test_an_evaluator_that_knows_nothing_of_dimensions():
    model = lookup({"a": [1, 0, 0], "b": [1, 0, 1], "c": [0.8, 0.6, 0]})
    triplet = TripletEvaluator(["a"], ["b"], ["c"], main_similarity_function="cosine")
    scores = SweepEvaluator(SequentialEvaluator([triplet]), dims=[3, 2])(model)
    assert scores["cosine_accuracy_3"] == 0  # b is at 45 degrees, c at 37
    assert scores["cosine_accuracy_2"] == 1
    assert model[0].seen == ["a", "b", "c"]


def test_precisions_known_by_hand():
    table = {"q": [1.0, 0.1, 0.1, 0.1], "near": [1.0, -0.1, -0.1, -0.1], "far": [0.1, 1.0, 1.0, 1.0]}
    model = lookup(table)
    evaluator = SweepEvaluator(
        RerankingEvaluator([{"query": "q", "positive": ["near"], "negative": ["far"]}]),
        dims=[4, 1],
        precisions=["binary", "int8", "float32"],
    )
    scores = evaluator(model)
    assert evaluator.primary_metric == "ndcg@10_4"
    assert scores["map_4"] == scores["map_4_int8"] == 1
    # By its signs alone, "far" is the query itself.
    assert scores["map_4_binary"] == 0.5
    assert sorted(model[0].seen) == sorted(table)


def test_stored_precisions_are_the_librarys(make_student, sentences):
    model = make_student()
    encoded = EncodedOnce(model)
    full = encoded.at(16).encode(sentences)
    unit = full / np.linalg.norm(full, axis=1, keepdims=True)
    whole = encoded.at(16, "int8").encode(sentences)
    ranges = np.abs(unit).max() * np.repeat([[-1.0], [1.0]], 16, axis=1)
    np.testing.assert_array_equal(whole, quantize_embeddings(unit, precision="int8", ranges=ranges))
    np.testing.assert_array_equal(encoded.at(16, "int8").encode(sentences[:3]), whole[:3])  # in the range of all
    np.testing.assert_array_equal(encoded.at(16, "binary").encode(sentences), np.where(full > 0, 1, -1))
    assert encoded.at(13, "binary").encode(sentences[0]).shape == (13,)


def test_int8_has_one_range_for_all_dimensions():
    """The second dimension hardly varies: with a range of its own it would count like the others, and "far" come first."""
    table = {"q": [0.8, 0.01, 0.6], "near": [0.9, -0.01, 0.436], "far": [0.5, 0.01, 0.866]}
    evaluator = RerankingEvaluator([{"query": "q", "positive": ["near"], "negative": ["far"]}])
    scores = SweepEvaluator(evaluator, precisions=["float32", "int8"])(lookup(table))
    assert scores["map_3"] == scores["map_3_int8"] == 1
    apart = quantize_embeddings(np.array(list(table.values()), dtype=np.float32), precision="int8").astype(int)
    assert apart[0] @ apart[1] < apart[0] @ apart[2]


def test_int8_alone_has_the_ranges_of_everything(make_student, sentences):
    evaluator = EmbeddingSimilarityEvaluator(sentences[:8], sentences[8:], list(range(8)))
    alone = SweepEvaluator(evaluator, dims=[16], precisions=["int8"])(make_student())
    beside = SweepEvaluator(evaluator, dims=[16], precisions=["float32", "int8"])(make_student())
    assert alone["spearman_cosine_16_int8"] == beside["spearman_cosine_16_int8"]


def test_prompts_reach_the_model():
    model = lookup({"Q: q": [1.0, 0.0], "D: d": [1.0, 0.1], "D: e": [0.0, 1.0], "T: a": [1.0, 0.0], "T: b": [0.0, 1.0]})
    prompts = {"query": "Q: ", "document": "D: ", "text": "T: "}
    reranking = RerankingEvaluator([{"query": "q", "positive": ["d"], "negative": ["e"]}])
    assert SweepEvaluator(reranking, prompts=prompts)(model)["map_2"] == 1
    SweepEvaluator(EmbeddingSimilarityEvaluator(["a", "a"], ["b", "a"], [0.0, 1.0]), prompts=prompts)(model)
    assert set(model[0].seen) == set(model[0].table)
    with pytest.raises(ValueError, match="keys query, document and text. Got 'passage'"):
        SweepEvaluator(reranking, prompts={"passage": "D: "})
    with pytest.raises(TypeError, match="'prompts' parameter must be a mapping with the keys .* Got 'Q: ' instead"):
        SweepEvaluator(reranking, prompts="Q: ")
    with pytest.raises(TypeError, match="'prompts' parameter must be a text, or None. Got 3 instead"):
        SweepEvaluator(reranking, prompts={"query": 3})
    assert SweepEvaluator(reranking, prompts={"query": None, "text": ""}).prompts == {"text": ""}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncate_dim": 8},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"truncate_dim": 16, "precision": "ubinary"},
        {"convert_to_tensor": True},
    ],
)
def test_vectors_cut_from_one_encoding_are_those_of_encode(options, make_student, sentences):
    model = make_student()
    encoded = EncodedOnce(model).at()
    for method in ("encode", "encode_query", "encode_document"):
        ours, theirs = (getattr(source, method)(sentences, **options) for source in (encoded, model))
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_sweep_checks_what_it_is_given():
    with pytest.raises(TypeError, match="must be an evaluator of sentence-transformers. Got str"):
        SweepEvaluator("sts")
    with pytest.raises(ValueError, match="list of float32, int8, binary. Got ..int4"):
        SweepEvaluator(SequentialEvaluator([]), precisions=["int4"])
    with pytest.raises(TypeError, match="The 'model' parameter must be a SentenceTransformer. Got str instead"):
        SweepEvaluator(SequentialEvaluator([]))("model")


def test_retrieval_and_similarity_check_their_columns():
    with pytest.raises(ValueError, match="'queries' and 'documents'.*Got 1 and 2"):
        retrieval_evaluator(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_evaluator([], [])
    with pytest.raises(ValueError, match="'sentences1' and 'scores'.*Got 2 and 1"):
        similarity_evaluator(["a", "b"], ["c", "d"], [1.0])
    with pytest.raises(TypeError, match="The 'scores' parameter must be a list of numbers. Got NoneType instead"):
        similarity_evaluator(["a", "b"], ["c", "d"], None)
    for score in ("high", None, float("nan")):
        with pytest.raises(ValueError, match=f"'scores' parameter must hold finite numbers. Got {score!r} at row 1"):
            similarity_evaluator(["a", "b"], ["c", "d"], [1.0, score])
    with pytest.raises(ValueError, match="two different scores"):
        similarity_evaluator(["a", "b"], ["c", "d"], [1.0, 1.0])
