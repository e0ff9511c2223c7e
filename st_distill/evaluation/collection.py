"""Retrieval collections as BEIR has them: a corpus, queries, and judgements of which belong together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from st_distill.errors import one_line
from st_distill.evaluation.columns import find
from st_distill.evaluation.data import Part, Table
from st_distill.evaluation.kinds import RetrievalEvaluator

__all__ = ["collection", "is_collection", "judged_parts"]

logger = logging.getLogger(__name__)

_CORPUS = {"id": ("_id", "id", "corpus-id", "corpus_id", "doc_id"), "text": ("text", "document", "passage")}
_QUERIES = {"id": ("_id", "id", "query-id", "query_id", "qid"), "text": ("text", "query", "question")}
_RELEVANCE = {
    "query": ("query-id", "query_id", "qid"),
    "document": ("corpus-id", "corpus_id", "doc_id", "docid", "pid"),
}
#: Where judgements are.
_JUDGEMENTS = "folder qrels, as test.tsv with the columns query-id, corpus-id and score"


def is_collection(source: str, parts: Mapping[str, Part]) -> bool:
    """Whether the parts are those of a collection, or of one that lacks its corpus or its queries."""
    if Path(source).is_file():
        return False
    named = {"corpus", "queries"} & set(parts)
    return len(named) == 2 or any(part.startswith("qrels") for part in parts) or (bool(named) and len(parts) > 1)


def judged_parts(source: str, parts: Mapping[str, Part]) -> dict[str, Part]:
    """The judgements of a collection by their split.

    Raises:
        ValueError: where there are none, or no corpus or no queries.
    """
    for name, others in (("corpus", "queries"), ("queries", "corpus")):
        if name not in parts:
            beside = others if others in parts else "qrels"
            is_judged = set(parts) - {"corpus", "queries"}
            more = "" if is_judged else f", and judgements in its {_JUDGEMENTS}"
            raise ValueError(
                f"{source} has {beside} and no {name}: a collection needs the file {name}.jsonl (or .parquet, .tsv) "
                f"with the columns _id and text{more}. It has {', '.join(parts)}."
            )
    judged = {
        part.removeprefix("qrels").lstrip("_-"): parts[part] for part in parts if part not in ("corpus", "queries")
    }
    if not judged:
        raise ValueError(
            f"{source} has a corpus and queries, and no judgements of which belong together. Put them into its "
            f"{_JUDGEMENTS}."
        )
    return judged


def collection(
    parts: Mapping[str, Part], judgements: Part, limit: int | None, options: Mapping[str, Any]
) -> RetrievalEvaluator:
    """The evaluator of a collection.

    Args:
        parts: with its corpus and its queries.
        judgements: of one split.
        limit: the first so many of the queries that have a relevant document there.
        options: of the evaluator.
    """
    corpus, queries = parts["corpus"].load(), parts["queries"].load()
    documents, questions = _texts(corpus, _CORPUS, title="title"), _texts(queries, _QUERIES)
    relevance = _relevance(judgements, queries, questions, corpus, documents)
    asked = [query for query in questions if any(degree > 0 for degree in relevance.get(query, {}).values())]
    if not asked:
        raise ValueError(
            f"{judgements.source} must have a relevant document, with a score above 0, for a query of {queries.source}. "
            "Got none instead."
        )
    return RetrievalEvaluator({query: questions[query] for query in asked[:limit]}, documents, relevance, **options)


def _texts(table: Table, names: Mapping[str, tuple[str, ...]], *, title: str | None = None) -> dict[str, str]:
    """Name to text, behind what stands in the column ``title``, where there is one."""
    columns = _found(table, names)
    ids, texts = table.ids(columns["id"]), table.texts(columns["text"], tell=False)
    if title in table.columns:
        titles = table.texts(title, missing="", tell=False)
        texts = [f"{own} {text}".strip() for own, text in zip(titles, texts)]
    table.tell_empty(columns["text"], texts)
    rows: dict[str, int] = {}
    for row, name in enumerate(ids):
        if (first := rows.setdefault(name, row)) != row:
            raise ValueError(
                f"Row {row} of {table.source} must have a name of its own in column '{columns['id']}'. Got '{name}', which "
                f"row {first} has too: rename or remove one of them."
            )
    return dict(zip(ids, texts))


def _relevance(
    part: Part, queries: Table, questions: Mapping[str, str], corpus: Table, documents: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Query to document to degree."""
    try:
        table = part.load()
        columns = _found(table, _RELEVANCE)
    except ValueError as error:
        raise ValueError(
            f"{one_line(error)}. The first line of judgements names their columns: query-id, corpus-id and score."
        ) from error
    degrees = table.numbers("score") if "score" in table.columns else [1.0] * len(table)
    relevance: dict[str, dict[str, float]] = {}
    absent: list[str] = []
    for query, document, degree in zip(table.ids(columns["query"]), table.ids(columns["document"]), degrees):
        relevance.setdefault(query, {})[document] = degree
        if query not in questions:
            absent.append(f"the query '{query}', which {queries.source} has not")
        elif document not in documents:
            absent.append(f"the document '{document}', which {corpus.source} has not")
    if len(absent) == len(table):
        raise ValueError(
            f"{table.source} must name queries and documents of the collection. All of its {len(table)} judgements name "
            f"others, the first {absent[0]}."
        )
    if absent:
        logger.warning(
            "%s: %d of %d judgements name a query or document that is not there, the first %s.",
            table.source,
            len(absent),
            len(table),
            absent[0],
        )
    return relevance


def _found(table: Table, names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    found = find(names, {}, table)
    for ours, theirs in found.items():
        if theirs is None:
            raise ValueError(
                f"{table.source} must have a column {' or '.join(names[ours])}. It has {', '.join(table.columns)}."
            )
    return {ours: str(theirs) for ours, theirs in found.items()}
