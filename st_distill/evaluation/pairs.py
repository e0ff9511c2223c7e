"""Retrieval and similarity of pairs of texts, by sentence-transformers' own evaluators, at several dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_distill.evaluation.base import checked_numbers, checked_positive, checked_texts, same_length
from st_distill.evaluation.kinds import RetrievalEvaluator
from st_distill.evaluation.sweep import SweepEvaluator

__all__ = ["collection_of_pairs", "retrieval_evaluator", "similarity_evaluator"]


def retrieval_evaluator(
    queries: Sequence[str],
    documents: Sequence[str],
    *,
    dims: Sequence[int] | None = None,
    name: str = "",
    batch_size: int = 32,
    show_progress_bar: bool = False,
    write_csv: bool = True,
) -> SweepEvaluator:
    """sentence-transformers' InformationRetrievalEvaluator over pairs, at several dimensions, by cosine similarity.

    ``queries`` and ``documents`` are of equal length: document i is the one relevant to query i, among all documents.
    Equal texts are one query or one document, which may then have several counterparts. Metrics include
    ``cosine_accuracy@1_<d>``, ``cosine_ndcg@10_<d>`` (primary) and ``cosine_mrr@10_<d>``, all in [0, 1]. Queries and
    documents get the prompts of the model's ``encode_query`` and ``encode_document``.
    """
    queries, documents = checked_texts("queries", queries), checked_texts("documents", documents)
    same_length("queries", queries, "documents", documents)
    if not queries:
        raise ValueError("The 'queries' parameter must hold at least one query. Got none instead.")
    evaluator = RetrievalEvaluator(
        *collection_of_pairs(queries, documents),
        name=name,
        batch_size=checked_positive("batch_size", batch_size),
        show_progress_bar=show_progress_bar,
        write_csv=write_csv,
    )
    return SweepEvaluator(evaluator, dims=dims, primary_metric="cosine_ndcg@10")


def collection_of_pairs(
    queries: Sequence[str], documents: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    """Queries by id, documents by id, and which belong together, of pairs; equal texts are one."""
    query_ids = {text: f"q{row}" for row, text in enumerate(dict.fromkeys(queries))}
    document_ids = {text: f"d{row}" for row, text in enumerate(dict.fromkeys(documents))}
    relevance: dict[str, dict[str, float]] = {}
    for query, document in zip(queries, documents):
        relevance.setdefault(query_ids[query], {})[document_ids[document]] = 1.0
    return (
        {key: text for text, key in query_ids.items()},
        {key: text for text, key in document_ids.items()},
        relevance,
    )


def similarity_evaluator(
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float],
    *,
    dims: Sequence[int] | None = None,
    name: str = "",
    batch_size: int = 32,
    show_progress_bar: bool = False,
    write_csv: bool = True,
) -> SweepEvaluator:
    """sentence-transformers' EmbeddingSimilarityEvaluator (STS), at several dimensions, by cosine similarity.

    The three columns are of equal length; ``scores`` may have any unit. Metrics: ``spearman_cosine_<d>`` (primary) and
    ``pearson_cosine_<d>``, in [-1, 1].
    """
    sentences1, sentences2 = checked_texts("sentences1", sentences1), checked_texts("sentences2", sentences2)
    scores = checked_numbers("scores", scores)
    same_length("sentences1", sentences1, "sentences2", sentences2)
    same_length("sentences1", sentences1, "scores", scores)
    if len(set(scores)) < 2:
        raise ValueError(
            f"The 'scores' parameter must hold at least two different scores, or there is no order to compare with. "
            f"Got {len(set(scores))} in {len(scores)} rows instead."
        )
    evaluator = EmbeddingSimilarityEvaluator(
        sentences1,
        sentences2,
        scores,
        name=name,
        main_similarity="cosine",
        batch_size=checked_positive("batch_size", batch_size),
        show_progress_bar=show_progress_bar,
        write_csv=write_csv,
    )
    return SweepEvaluator(evaluator, dims=dims, primary_metric="spearman_cosine")
