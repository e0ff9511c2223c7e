"""What a model is measured on: tasks read from files and from the hub, in MTEB's seven kinds and for pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sentence_transformers.sentence_transformer.evaluation import (
    BaseEvaluator,
    BinaryClassificationEvaluator,
    RerankingEvaluator,
)

from st_distill.errors import sentence
from st_distill.evaluation.collection import collection, is_collection, judged_parts
from st_distill.evaluation.columns import KINDS, Kind, columns_of, kind_of, negatives_in
from st_distill.evaluation.data import Part, Table, local_path, parts_of_hub, parts_of_path
from st_distill.evaluation.kinds import (
    ClassificationEvaluator,
    ClusteringEvaluator,
    RetrievalEvaluator,
    SummarizationEvaluator,
)
from st_distill.evaluation.pairs import collection_of_pairs, similarity_evaluator
from st_distill.modules.image_loading import load_image
from st_distill.nearest import suggest
from st_distill.options import check_whole_number, in_yaml
from st_distill.tables import FORMATS

__all__ = ["Task", "TaskSpec", "default_name", "distinct_names", "parts_of_name", "read_task"]

logger = logging.getLogger(__name__)

#: What data sets call the part beside train and test.
_VALIDATION_SPLITS = ("validation", "val", "dev", "eval")
#: Parts of a data set that a task is read from, the first one that there is.
_EVALUATION_SPLITS = ("test", *_VALIDATION_SPLITS)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Where a task is and what is to be known of it; what is left out is told from the data.

    Args:
        source: a file (parquet, jsonl, json, csv, tsv), a folder of such, or the name of a data set on the hub.
        kind: of `KINDS`; None: told from the columns.
        name: in the results, as it is; None: the last part of the source, or the folder of a file that is called as a split
            alone, told apart from others'.
        columns: what the data call a column: ``{"text": "utterance", "label": "intent"}``.
        split: the part to measure on, validation under any of its names (val, dev, eval); None: test, or else validation, or
            the only one there is.
        train_split: where a classifier learns.
        config: configuration of the hub's data set.
        revision: branch, tag or commit of the hub's data set.
        limit: use the first so many rows of the part that is measured on; where the kind is not given, all rows tell it.
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
                f"The 'source' of a task must be a file, a folder or the name of a data set. Got {in_yaml(self.source)} "
                "instead."
            )
        if self.columns is not None and not (
            isinstance(self.columns, Mapping)
            and all(isinstance(name, str) for pair in self.columns.items() for name in pair)
        ):
            raise ValueError(
                "The 'columns' of a task must be a mapping of names, such as {text: utterance, label: intent}. Got "
                f"{in_yaml(self.columns)} instead."
            )
        for field in ("name", "split", "train_split", "config", "revision"):
            value = getattr(self, field)
            if not isinstance(value, str) and (value is not None or field == "train_split"):
                raise ValueError(
                    f"The '{field}' of a task must be a text. Got {in_yaml(value)} instead: put it in quotes, or leave it out."
                )
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(
                f"The 'kind' of a task must be one of {', '.join(KINDS)}. Got {in_yaml(self.kind)} instead."
            )
        for field in ("limit", "samples_per_label", "experiments"):
            optional = field != "experiments"
            check_whole_number(f"'{field}' of a task", getattr(self, field), optional=optional, written=in_yaml)


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

    @property
    def modalities(self) -> tuple[Literal["text", "image"], ...]:
        """What a model has to take to be measured on it."""
        return ("text", "image") if self.kind == "image_retrieval" else ("text",)


def read_task(
    spec: TaskSpec | str | os.PathLike[str], *, batch_size: int = 32, show_progress_bar: bool = False
) -> list[Task]:
    """Read a task; pictures with captions are two, from text to image and from image to text.

    docs/evaluation.md says what the data of each kind hold, and its main metric.

    In retrieval among labelled texts each text looks for the others of its label.

    Raises:
        TypeError: for a ``spec`` of another kind.
        ValueError: for data that are absent, cannot be read, or are of no kind that can be told, and for rows that lack
            something.
    """
    if isinstance(spec, (str, os.PathLike)):
        spec = TaskSpec(source=os.fspath(spec))
    if not isinstance(spec, TaskSpec):
        raise TypeError(
            f"The 'spec' must be a TaskSpec, or the file, folder or data set alone. Got {type(spec).__name__} instead: "
            "TaskSpec(source=...) has fields for the rest."
        )
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "show_progress_bar": show_progress_bar,
        "write_csv": False,
    }
    local = local_path(spec.source)
    parts = parts_of_hub(spec.source, spec.config, spec.revision) if local is None else parts_of_path(local)
    name = spec.name or default_name(spec.source)
    if spec.train_split not in parts and spec.train_split != TaskSpec.train_split:
        raise ValueError(
            f"{spec.source} has no part '{spec.train_split}', which is given as 'train_split'. It has {', '.join(parts)}: name "
            "one of them, or leave 'train_split' out."
        )
    if spec.kind in (None, "retrieval") and is_collection(spec.source, parts):
        judged = judged_parts(spec.source, parts)
        found = collection(parts, judged[_split(spec, judged)], spec.limit, options)
        return [
            Task(
                name=name,
                kind="retrieval",
                evaluator=found,
                metric=found.primary_metric,
                examples=len(found.queries),
            )
        ]
    if {"corpus", "queries"} <= set(parts):
        raise ValueError(f"{spec.source} is a collection with a corpus and queries, so its kind is retrieval.")
    given = spec.columns or {}
    # All rows tell the kind, so that it is the same whatever the limit.
    table = parts[_split(spec, parts)].load(spec.limit if spec.kind else None)
    try:
        kind = spec.kind or kind_of(table, given, learns=spec.train_split in parts)
        columns = columns_of(kind, table, given)
    except ValueError:
        if (
            spec.kind in (None, "retrieval")
            and not given
            and not Path(spec.source).is_file()
            and set(parts) <= {"corpus", "queries"}
        ):
            judged_parts(spec.source, parts)  # says what is missing beside what alone is no task
        raise
    if kind == "retrieval" and spec.kind is None and (unused := negatives_in(table)):
        logger.warning(
            "%s: retrieval does not use the negatives in %s; say kind: reranking to tell each positive from its negative.",
            table.source,
            ", ".join(unused),
        )
    table = table.first(spec.limit)
    if kind == "image_retrieval":
        return _pictures(name, table, columns, options)
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


def default_name(source: str) -> str:
    """What a task is called where it has no name of its own: the last part of its source, without the ending of a format.

    The source alone decides, also of what is not there, so that figures of one recipe can be matched.
    """
    return parts_of_name(source)[-1]


def parts_of_name(source: str, *, with_split: bool = False) -> list[str]:
    """The folders that a source names and what it is called in them.

    A file that is called as a split alone (stsb/test.parquet) has the name of its folder, without ``with_split``.
    """
    path, file = Path(os.path.normpath(source)), Path(os.path.abspath(source))
    folders = [*path.relative_to(path.anchor).parts[:-1]]
    name = file.stem if file.suffix in FORMATS else file.name
    is_split = name != file.name and name in ("train", *_EVALUATION_SPLITS)
    return folders if is_split and not with_split and folders and folders[-1] != ".." else [*folders, name]


def distinct_names(names: Iterable[str], *, taken: Collection[str] = ()) -> list[str]:
    """The names in their order, each that an earlier one has too, or is taken, with the next free number: "a", "a (2)"."""
    names = list(names)
    distinct: list[str] = []
    for name in names:
        own, number = name, 2
        while own in distinct or own in taken or (own != name and own in names):
            own, number = f"{name} ({number})", number + 1
        distinct.append(own)
    return distinct


def _split(spec: TaskSpec, parts: Mapping[str, Part]) -> str:
    if spec.split is not None:
        names = (spec.split, *(_VALIDATION_SPLITS if spec.split in _VALIDATION_SPLITS else ()))
        if (found := next((name for name in names if name in parts), None)) is None:
            offer = suggest(spec.split, parts) or ": name one of them"
            raise ValueError(sentence(f"{spec.source} has no part '{spec.split}'. It has {', '.join(parts)}{offer}"))
        return found
    for split in _EVALUATION_SPLITS:
        if split in parts:
            return split
    if len(parts) == 1:
        return next(iter(parts))
    raise ValueError(
        f"{spec.source} has {', '.join(parts)}, and none of them is called {' or '.join(_EVALUATION_SPLITS)}. "
        "Say which one to measure on, as 'split'."
    )


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
    own = columns_of("classification", train, spec.columns or {})
    # Both are read alike where they have the same columns.
    own = {ours: theirs if theirs in train.columns else own[ours] for ours, theirs in columns.items()}
    known, labels = train.labels(own["label"]), table.labels(columns["label"])
    if type(known[0]) is not type(labels[0]):  # a csv file has letters where a parquet file has numbers
        known, labels = [str(label) for label in known], [str(label) for label in labels]
    learnt = set(known)
    if len(learnt) < 2:
        raise ValueError(
            f"{train.source} must hold at least two different labels in column '{own['label']}'. Got one instead, "
            f"{known[0]!r}."
        )
    for row, label in enumerate(labels):
        if label not in learnt:
            raise ValueError(
                f"Row {row} of {table.source} must have a label that {train.source} has too, in column "
                f"'{columns['label']}'. Got {label!r} instead."
            )
    evaluator = ClassificationEvaluator(
        train.texts(own["text"]),
        known,
        texts := table.texts(columns["text"]),
        labels,
        samples_per_label=spec.samples_per_label,
        experiments=spec.experiments,
        **options,
    )
    return evaluator, "accuracy", len(texts)


def _clustering(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    is_of_sets = table.holds(columns["text"], "list")
    if is_of_sets:
        texts, labels = table.text_lists(columns["text"]), table.label_lists(columns["label"])
        _of_equal_length(table, {columns["text"]: texts, columns["label"]: labels})
    else:
        texts, labels = [table.texts(columns["text"])], [table.labels(columns["label"])]
    for row, own in enumerate(labels):
        if len(set(own)) < 2:
            raise ValueError(
                f"{f'Row {row} of ' if is_of_sets else ''}{table.source} must have at least two different labels in column "
                f"'{columns['label']}', or there are no clusters to find. Got {len(set(own))} instead."
            )
    return ClusteringEvaluator(list(zip(texts, labels)), **options), "v_measure", sum(map(len, texts))


def _of_equal_length(table: Table, lists: Mapping[str, Sequence[Sequence[Any]]]) -> None:
    for row, each in enumerate(zip(*lists.values())):
        if len(set(map(len, each))) > 1:
            raise ValueError(
                f"Row {row} of {table.source} must have lists of equal length in the columns {', '.join(lists)}. Got "
                f"{', '.join(str(len(own)) for own in each)} instead."
            )


def _pairs(
    table: Table, columns: dict[str, str], value: str, *, truths: bool = False
) -> tuple[list[str], list[str], list[float]]:
    """Two columns of texts and one of numbers; MTEB keeps some of them as lists in a single row."""
    if table.holds(columns["first"], "list"):
        first, second = (table.text_lists(columns[ours]) for ours in ("first", "second"))
        numbers = table.number_lists(columns[value], truths=truths)
        _of_equal_length(table, {columns["first"]: first, columns["second"]: second, columns[value]: numbers})
        return _flat(first), _flat(second), _flat(numbers)
    numbers_of_rows = table.numbers(columns[value], truths=truths)
    return table.texts(columns["first"]), table.texts(columns["second"]), numbers_of_rows


def _flat(lists: Sequence[list[Any]]) -> list[Any]:
    return [item for row in lists for item in row]


def _pair_classification(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    first, second, labels = _pairs(table, columns, "label", truths=True)
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
    if len(set(scores)) < 2:
        raise ValueError(
            f"{table.source} must hold at least two different scores in column '{columns['score']}', or there is no order "
            f"to compare with. Got {len(set(scores))} in {len(scores)} pairs instead."
        )
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
    human, machine = table.text_lists(columns["human"]), table.text_lists(columns["machine"])
    scores = table.number_lists(columns["scores"])
    for row, (written, made, given) in enumerate(zip(human, machine, scores)):
        if not written or not made or len(made) != len(given):
            raise ValueError(
                f"Row {row} of {table.source} must have a summary in column '{columns['human']}', one in "
                f"'{columns['machine']}', and a score in '{columns['scores']}' for each of the latter. Got {len(written)}, "
                f"{len(made)} and {len(given)} instead."
            )
    if all(len(set(given)) < 2 for given in scores):
        raise ValueError(
            f"{table.source} must hold two different scores of one text at least in column '{columns['scores']}', or there is "
            "no order to compare with. Got equal ones in each of its rows instead: leave the task out."
        )
    return SummarizationEvaluator(human, machine, scores, **options), "spearman_cosine", len(table)


def _retrieval(
    spec: TaskSpec, table: Table, columns: dict[str, str], parts: Mapping[str, Part], options: dict[str, Any]
) -> _Made:
    if "label" in columns:
        texts = {str(row): text for row, text in enumerate(table.texts(columns["text"]))}
        members: dict[Any, list[str]] = {}
        for row, label in zip(texts, table.labels(columns["label"])):
            members.setdefault(label, []).append(row)
        if all(len(rows) < 2 for rows in members.values()):
            raise ValueError(
                f"{table.source} must have two texts of one label in column '{columns['label']}', or none has another to "
                "find. Got a label of its own in each row instead."
            )
        relevance = {row: {other: 1.0 for other in rows if other != row} for rows in members.values() for row in rows}
        evaluator = RetrievalEvaluator(texts, texts, relevance, **options)
    else:
        pairs = collection_of_pairs(table.texts(columns["query"]), table.texts(columns["document"]))
        evaluator = RetrievalEvaluator(*pairs, **options)
    return evaluator, evaluator.primary_metric, len(evaluator.queries)


def _pictures(name: str, table: Table, columns: dict[str, str], options: dict[str, Any]) -> list[Task]:
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
                name=f"{name} ({direction})",
                kind="image_retrieval",
                evaluator=evaluator,
                metric=evaluator.primary_metric,
                examples=len(evaluator.queries),
            )
        )
    return tasks
