"""What a model is measured on: tasks read from files and from the hub, in MTEB's seven kinds and for pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sentence_transformers.sentence_transformer.evaluation import (
    BaseEvaluator,
    BinaryClassificationEvaluator,
    RerankingEvaluator,
)

from st_distill.evaluation.data import Part, Table, parts_of_hub, parts_of_path
from st_distill.evaluation.kinds import (
    ClassificationEvaluator,
    ClusteringEvaluator,
    RetrievalEvaluator,
    SummarizationEvaluator,
)
from st_distill.evaluation.pairs import collection_of_pairs, similarity_evaluator
from st_distill.modules.image_loading import load_image
from st_distill.options import check_whole_number

__all__ = ["KINDS", "Kind", "Task", "TaskSpec", "read_task"]

logger = logging.getLogger(__name__)

Kind = Literal[
    "classification",
    "clustering",
    "pair_classification",
    "reranking",
    "retrieval",
    "sts",
    "summarization",
    "image_retrieval",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Parts of a data set that a task is read from, the first one that there is.
_EVALUATION_SPLITS = ("test", "validation", "val", "dev", "eval")
#: The columns of each kind: what they are called here, and what others call them.
_COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "image_retrieval": {
        "image": ("image", "images", "file_name", "png", "jpg", "picture"),
        "caption": ("caption", "text", "captions", "sentence", "description", "name"),
    },
    "summarization": {
        "human": ("human_summaries", "human"),
        "machine": ("machine_summaries", "machine"),
        "scores": ("relevance", "scores", "score"),
    },
    "reranking": {
        "query": ("query", "question", "anchor"),
        "positive": ("positive", "positives", "pos"),
        "negative": ("negative", "negatives", "neg"),
    },
    "sts": {
        "first": ("sentence1", "sent1", "text1", "sentence_1", "premise", "first"),
        "second": ("sentence2", "sent2", "text2", "sentence_2", "hypothesis", "second"),
        "score": ("score", "scores", "similarity_score", "similarity", "label"),
    },
    "pair_classification": {
        "first": ("sentence1", "sent1", "text1", "sentence_1", "premise", "question1", "first"),
        "second": ("sentence2", "sent2", "text2", "sentence_2", "hypothesis", "question2", "second"),
        "label": ("label", "labels", "is_duplicate", "score"),
    },
    "classification": {
        "text": ("text", "sentence", "texts", "sentences", "title"),
        "label": ("label", "labels", "label_text", "intent", "category", "class"),
    },
    "clustering": {
        "text": ("sentences", "text", "texts", "sentence", "title"),
        "label": ("labels", "label", "label_text", "category", "class"),
    },
    "retrieval": {
        "query": ("query", "question", "anchor", "sentence1"),
        "document": ("document", "positive", "answer", "passage", "sentence2"),
    },
}
_CORPUS = {"id": ("_id", "id", "corpus-id", "corpus_id", "doc_id"), "text": ("text", "document", "passage")}
_QUERIES = {"id": ("_id", "id", "query-id", "query_id", "qid"), "text": ("text", "query", "question")}
_RELEVANCE = {
    "query": ("query-id", "query_id", "qid"),
    "document": ("corpus-id", "corpus_id", "doc_id", "docid", "pid"),
}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Where a task is and what is to be known of it; what is left out is told from the data.

    Args:
        source: a file (parquet, jsonl, json, csv, tsv), a folder of such, or the name of a data set on the hub.
        kind: of `KINDS`; None: told from the columns.
        name: in the results; None: the last part of the source.
        columns: what the data call a column: ``{"text": "utterance", "label": "intent"}``.
        split: the part to measure on; None: test, or else validation or dev, or the only one there is.
        train_split: where a classifier learns.
        config: configuration of the hub's data set.
        revision: branch, tag or commit of the hub's data set.
        limit: use the first so many rows of the part that is measured on.
        samples_per_label: training texts of each label that a classifier sees; None: all of them.
        experiments: draws of those, over which a classifier's figures are averaged.
    """

    source: str
    kind: Kind | None = None
    name: str | None = None
    columns: Mapping[str, str] | None = None
    split: str | None = None
    train_split: str = "train"
    config: str | None = None
    revision: str | None = None
    limit: int | None = None
    samples_per_label: int | None = 8
    experiments: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise ValueError(
                f"The 'source' of a task must be a file, a folder or the name of a data set. Got {self.source!r} instead."
            )
        if self.columns is not None and not (
            isinstance(self.columns, Mapping)
            and all(isinstance(name, str) for pair in self.columns.items() for name in pair)
        ):
            raise ValueError(
                "The 'columns' of a task must be a mapping of names, such as {text: utterance, label: intent}. Got "
                f"{self.columns!r} instead."
            )
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"The 'kind' of a task must be one of {', '.join(KINDS)}. Got {self.kind!r} instead.")
        for field in ("limit", "samples_per_label", "experiments"):
            check_whole_number(f"'{field}' of a task", getattr(self, field), optional=field != "experiments")


@dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluator with what a table says of it.

    Args:
        name: of the data.
        kind: of `KINDS`.
        evaluator: any evaluator of sentence-transformers, without a name.
        metric: the one of its metrics that MTEB's tables show.
        examples: rows that it judges: texts, pairs, queries or pictures.
    """

    name: str
    kind: Kind
    evaluator: BaseEvaluator
    metric: str
    examples: int


def read_task(spec: TaskSpec | str, *, batch_size: int = 32, show_progress_bar: bool = False) -> list[Task]:
    """Read a task; pictures with captions are two, from text to image and from image to text.

    docs/evaluation.md says what the data of each kind hold, and its main metric.

    In retrieval among labelled texts each text looks for the others of its label.

    Raises:
        ValueError: for data that are absent, cannot be read, or are of no kind that can be told, and for rows that lack
            something.
    """
    if isinstance(spec, str):
        spec = TaskSpec(source=spec)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "show_progress_bar": show_progress_bar,
        "write_csv": False,
    }
    if Path(spec.source).exists():
        parts = parts_of_path(Path(spec.source))
        default_name = Path(spec.source).resolve().stem
    else:
        parts = parts_of_hub(spec.source, spec.config, spec.revision)
        default_name = spec.source.rpartition("/")[2]
    name = spec.name or default_name
    if {"corpus", "queries"} <= set(parts):
        if spec.kind not in (None, "retrieval"):
            raise ValueError(f"{spec.source} is a collection with a corpus and queries, so its kind is retrieval.")
        return [_collection(spec, name, parts, options)]
    table = parts[_split(spec, parts)].load(spec.limit)
    kind = spec.kind or _kind(spec, table, parts)
    columns = _columns(spec, kind, table)
    if kind == "image_retrieval":
        return _pictures(spec, name, table, columns, options)
    make = {
        "classification": _classification,
        "clustering": _clustering,
        "pair_classification": _pair_classification,
        "reranking": _reranking,
        "retrieval": _retrieval,
        "sts": _sts,
        "summarization": _summarization,
    }[kind]
    evaluator, metric, examples = make(spec, table, columns, parts, options)
    return [Task(name=name, kind=kind, evaluator=evaluator, metric=metric, examples=examples)]


# --- which part, which kind, which columns ----------------------------------------------------------------------------


def _split(spec: TaskSpec, parts: Mapping[str, Part]) -> str:
    if spec.split is not None:
        if spec.split not in parts:
            raise ValueError(f"{spec.source} has no part '{spec.split}'. It has {', '.join(parts)}.")
        return spec.split
    for split in _EVALUATION_SPLITS:
        if split in parts:
            return split
    if len(parts) == 1:
        return next(iter(parts))
    raise ValueError(
        f"{spec.source} has {', '.join(parts)}, and none of them is called {' or '.join(_EVALUATION_SPLITS)}. "
        "Say which one to measure on, as 'split'."
    )


def _find(names: Mapping[str, tuple[str, ...]], given: Mapping[str, str], table: Table) -> dict[str, str | None]:
    """The table's column for each of ours, None where it has none."""
    return {
        ours: given.get(ours) or next((theirs for theirs in aliases if theirs in table.columns), None)
        for ours, aliases in names.items()
    }


def _kind(spec: TaskSpec, table: Table, parts: Mapping[str, Part]) -> Kind:
    found = {kind: _find(names, spec.columns or {}, table) for kind, names in _COLUMNS.items()}
    complete = {kind for kind, columns in found.items() if all(columns.values())}
    if "image_retrieval" in complete and table.holds(str(found["image_retrieval"]["image"]), "image"):
        return "image_retrieval"
    if "summarization" in complete:
        return "summarization"
    if "reranking" in complete and table.holds(str(found["reranking"]["negative"]), "list"):
        return "reranking"
    if "pair_classification" in complete and _judges_sameness(table, str(found["pair_classification"]["label"])):
        return "pair_classification"
    if "sts" in complete and table.holds(str(found["sts"]["score"]), "number"):
        return "sts"
    if "clustering" in complete and "first" not in {ours for ours, theirs in found["sts"].items() if theirs}:
        texts = str(found["clustering"]["text"])
        return "clustering" if table.holds(texts, "list") or spec.train_split not in parts else "classification"
    # Pairs with scores that are no numbers are no queries with their documents.
    if "retrieval" in complete and "sts" not in complete:
        return "retrieval"
    raise ValueError(
        f"{spec.source} has the columns {', '.join(table.columns)}, which tell no kind of task. Say the kind, and with "
        "'columns' what the data call its columns."
    )


def _judges_sameness(table: Table, column: str) -> bool:
    if table.holds(column, "list"):
        return {label for row in table.lists(column) for label in row} == {0, 1}
    return table.holds(column, "number") and set(table.numbers(column)) == {0, 1}


def _columns(spec: TaskSpec, kind: Kind, table: Table) -> dict[str, str]:
    names = _COLUMNS[kind]
    given = spec.columns or {}
    if kind == "retrieval" and (
        (set(given) <= {"text", "label"} and given) or not all(_find(names, {}, table).values())
    ):
        labelled = _COLUMNS["classification"]
        if given or all(_find(labelled, {}, table).values()):
            names = labelled
    if unknown := set(given) - set(names):
        raise ValueError(
            f"The 'columns' of a task of the kind {kind} must be of {', '.join(names)}. Got '{min(unknown)}' instead."
        )
    found = _find(names, given, table)
    for ours, theirs in found.items():
        if theirs is None or theirs not in table.columns:
            wanted = f"no column '{theirs}'" if theirs else f"no column for '{ours}' ({', '.join(names[ours])})"
            raise ValueError(
                f"{table.source} has {wanted}, which a task of the kind {kind} needs. It has {', '.join(table.columns)}: "
                "say with 'columns' which one it is."
            )
    return {ours: str(theirs) for ours, theirs in found.items()}


# --- each kind --------------------------------------------------------------------------------------------------------

_Made = tuple[BaseEvaluator, str, int]


def _classification(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    if spec.train_split not in parts:
        raise ValueError(
            f"{spec.source} must have a part '{spec.train_split}' that a classifier learns on. It has {', '.join(parts)}: "
            "give a folder with train and test files, or say the part's name as 'train_split'."
        )
    train = parts[spec.train_split].load()
    evaluator = ClassificationEvaluator(
        train.texts(columns["text"]),
        train.labels(columns["label"]),
        texts := table.texts(columns["text"]),
        table.labels(columns["label"]),
        samples_per_label=spec.samples_per_label,
        experiments=spec.experiments,
        **options,
    )
    return evaluator, "accuracy", len(texts)


def _clustering(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    if table.holds(columns["text"], "list"):
        sets = list(zip(table.text_lists(columns["text"]), table.lists(columns["label"])))
    else:
        sets = [(table.texts(columns["text"]), table.labels(columns["label"]))]
    return ClusteringEvaluator(sets, **options), "v_measure", sum(len(texts) for texts, _ in sets)


def _pairs(table: Table, columns: dict[str, str], value: str) -> tuple[list[str], list[str], list[float]]:
    """Two columns of texts and one of numbers; MTEB keeps some of them as lists in a single row."""
    if table.holds(columns["first"], "list"):
        first, second = (
            [text for row in table.text_lists(columns[ours]) for text in row] for ours in ("first", "second")
        )
        return first, second, [float(number) for row in table.lists(columns[value]) for number in row]
    return table.texts(columns["first"]), table.texts(columns["second"]), table.numbers(columns[value])


def _pair_classification(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    first, second, labels = _pairs(table, columns, "label")
    if set(labels) != {0, 1}:
        found = ", ".join(f"{label:g}" for label in sorted(set(labels))[:5])
        raise ValueError(
            f"The column '{columns['label']}' of {table.source} must hold 0 (different) and 1 (the same), both of them. "
            f"Got {found} instead."
        )
    evaluator = BinaryClassificationEvaluator(
        first, second, [int(label) for label in labels], similarity_fn_names=["cosine"], **options
    )
    return evaluator, "cosine_ap", len(first)


def _sts(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    first, second, scores = _pairs(table, columns, "score")
    return similarity_evaluator(first, second, scores, **options).evaluator, "spearman_cosine", len(first)


def _reranking(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    queries = table.texts(columns["query"])
    candidates = {
        ours: table.text_lists(columns[ours])
        if table.holds(columns[ours], "list")
        else [[text] for text in table.texts(columns[ours])]
        for ours in ("positive", "negative")
    }
    samples = [
        {"query": query, "positive": positive, "negative": negative}
        for query, positive, negative in zip(queries, candidates["positive"], candidates["negative"])
        if positive and negative
    ]
    if len(samples) < len(queries):
        logger.warning(
            "%s: %d of %d queries have no positive or no negative candidate and are left out.",
            table.source,
            len(queries) - len(samples),
            len(queries),
        )
    if not samples:
        raise ValueError(
            f"{table.source} must have a query with a positive and a negative candidate. Got none instead."
        )
    return RerankingEvaluator(samples, **options), "map", len(samples)


def _summarization(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    evaluator = SummarizationEvaluator(
        table.text_lists(columns["human"]),
        table.text_lists(columns["machine"]),
        table.lists(columns["scores"]),
        **options,
    )
    return evaluator, "spearman_cosine", len(table)


def _retrieval(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    if "label" in columns:
        texts = {str(row): text for row, text in enumerate(table.texts(columns["text"]))}
        members: dict[Any, list[str]] = {}
        for row, label in zip(texts, table.labels(columns["label"])):
            members.setdefault(label, []).append(row)
        relevance = {row: {other: 1.0 for other in rows if other != row} for rows in members.values() for row in rows}
        evaluator = RetrievalEvaluator(texts, texts, relevance, **options)
    else:
        pairs = collection_of_pairs(table.texts(columns["query"]), table.texts(columns["document"]))
        evaluator = RetrievalEvaluator(*pairs, **options)
    return evaluator, evaluator.primary_metric, len(evaluator.queries)


def _collection(spec: TaskSpec, name: str, parts: Mapping[str, Part], options: dict[str, Any]) -> Task:
    judged = {part.removeprefix("qrels").lstrip("_-"): part for part in parts if part not in ("corpus", "queries")}
    if not judged:
        raise ValueError(
            f"{spec.source} has a corpus and queries, and no judgements of which belong together. Put them into its folder "
            "qrels, as test.tsv with the columns query-id, corpus-id and score."
        )
    part = parts[judged[_split(spec, {split: parts[part] for split, part in judged.items()})]].load()
    corpus, queries = parts["corpus"].load(), parts["queries"].load()
    texts = _found(corpus, _CORPUS)
    documents = dict(zip(corpus.ids(texts["id"]), corpus.texts(texts["text"])))
    if "title" in corpus.columns:
        titles = corpus.texts("title", missing="")
        documents = {key: f"{title} {text}".strip() for (key, text), title in zip(documents.items(), titles)}
    asked = _found(queries, _QUERIES)
    questions = dict(zip(queries.ids(asked["id"]), queries.texts(asked["text"])))
    judgements = _found(part, _RELEVANCE)
    degrees = part.numbers("score") if "score" in part.columns else [1.0] * len(part)
    relevance: dict[str, dict[str, float]] = {}
    absent = 0
    for query, document, degree in zip(part.ids(judgements["query"]), part.ids(judgements["document"]), degrees):
        relevance.setdefault(query, {})[document] = degree
        absent += query not in questions or document not in documents
    if absent:
        logger.warning(
            "%s: %d of %d judgements name a query or document that is not there.", part.source, absent, len(part)
        )
    if spec.limit is not None:
        questions = dict(list(questions.items())[: spec.limit])
    evaluator = RetrievalEvaluator(questions, documents, relevance, **options)
    return Task(
        name=name,
        kind="retrieval",
        evaluator=evaluator,
        metric=evaluator.primary_metric,
        examples=len(evaluator.queries),
    )


def _found(table: Table, names: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    found = _find(names, {}, table)
    for ours, theirs in found.items():
        if theirs is None:
            raise ValueError(
                f"{table.source} must have a column {' or '.join(names[ours])}. It has {', '.join(table.columns)}."
            )
    return {ours: str(theirs) for ours, theirs in found.items()}


def _pictures(spec: TaskSpec, name: str, table: Table, columns: dict[str, str], options: dict[str, Any]) -> list[Task]:
    captions = table.texts(columns["caption"])
    pictures = {
        f"image {row}": load_image(stored, row=f"{row} of {table.source}")
        for row, stored in enumerate(table.pictures(columns["image"]))
    }
    texts = {text: f"text {row}" for row, text in enumerate(dict.fromkeys(captions))}
    to_image: dict[str, dict[str, float]] = {}
    to_text: dict[str, dict[str, float]] = {}
    for image, caption in zip(pictures, captions):
        to_image.setdefault(texts[caption], {})[image] = 1.0
        to_text.setdefault(image, {})[texts[caption]] = 1.0
    by_id = {key: text for text, key in texts.items()}
    tasks = []
    for direction, queries, corpus, relevance in (
        ("text to image", by_id, pictures, to_image),
        ("image to text", pictures, by_id, to_text),
    ):
        evaluator = RetrievalEvaluator(queries, corpus, relevance, **options)
        tasks.append(
            Task(
                name=f"{name}, {direction}",
                kind="image_retrieval",
                evaluator=evaluator,
                metric=evaluator.primary_metric,
                examples=len(evaluator.queries),
            )
        )
    return tasks
