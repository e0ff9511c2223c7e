"""The kinds of task, what the data of each call their columns, and how a kind is told from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from st_distill.evaluation.data import Table, is_missing, is_number, sameness, shown

__all__ = ["KINDS", "Kind", "columns_of", "find", "kind_of", "negatives_in"]

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

#: What a column is called that is more likely one of labels than one of scores.
_LABEL_NAMES = ("label", "labels")


def find(names: Mapping[str, tuple[str, ...]], given: Mapping[str, str], table: Table) -> dict[str, str | None]:
    """The table's column for each of ours, None where it has none."""
    return {
        ours: given.get(ours) or next((theirs for theirs in aliases if theirs in table.columns), None)
        for ours, aliases in names.items()
    }


def kind_of(table: Table, given: Mapping[str, str], *, learns: bool) -> Kind:
    """The kind of task that a table's columns tell.

    Args:
        table: the part that is measured on.
        given: what the data call some of the columns.
        learns: whether there is a part that a classifier learns on.

    Raises:
        ValueError: where they tell none, and for a column that is not there.
    """
    for ours, theirs in given.items():
        if theirs not in table.columns:
            raise ValueError(
                f"{table.source} has no column '{theirs}', which 'columns' gives for '{ours}'. It has "
                f"{', '.join(table.columns)}: name one of them."
            )
    found = {kind: find(names, given, table) for kind, names in _COLUMNS.items()}
    complete = {kind for kind, columns in found.items() if all(columns.values())}
    if "image_retrieval" in complete and table.holds(str(found["image_retrieval"]["image"]), "image"):
        return "image_retrieval"
    if "summarization" in complete:
        return "summarization"
    if "reranking" in complete and table.holds(str(found["reranking"]["negative"]), "list"):
        return "reranking"
    if "pair_classification" in complete and _judges_sameness(table, str(found["pair_classification"]["label"])):
        return "pair_classification"
    if "sts" in complete and table.holds(score := str(found["sts"]["score"]), "number"):
        if score in _LABEL_NAMES and _may_be_labels(values := sorted(set(table.numbers(score)))):
            held = " and ".join([", ".join(f"{value:g}" for value in values[:-1]), f"{values[-1]:g}"])
            raise ValueError(
                f"The column '{score}' of {table.source} holds {held}, which may be labels or scores. Write 1 for the same and "
                "0 for different, or say kind: sts."
            )
        return "sts"
    if "clustering" in complete and "first" not in {ours for ours, theirs in found["sts"].items() if theirs}:
        texts = str(found["clustering"]["text"])
        return "clustering" if table.holds(texts, "list") or not learns else "classification"
    # Pairs with scores that are no numbers are no queries with their documents.
    if "retrieval" in complete and "sts" not in complete:
        return "retrieval"
    if "sts" in complete:
        score = str(found["sts"]["score"])
        row, value = next((row, value) for row, value in enumerate(table.values(score)) if not is_number(value))
        raise ValueError(
            f"The column '{score}' of {table.source} must hold a number for each pair of texts. Got {shown(value)} in row "
            f"{row}: write scores with a point, or 1 for the same and 0 for different, or say the kind."
        )
    if "pair_classification" in complete:
        label = str(found["pair_classification"]["label"])
        labels = list(dict.fromkeys(map(shown, table.values(label))))
        raise ValueError(
            f"The column '{label}' of {table.source} must hold 1 for the same and 0 for different, both of them, for the pairs "
            f"of texts. Got {', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''} instead: write these, or say the kind."
        )
    raise ValueError(
        f"{table.source} has the columns {', '.join(table.columns)}, which tell no kind of task. Say the kind, and with "
        "'columns' what the data call its columns."
    )


def negatives_in(table: Table) -> list[str]:
    """The columns of negatives, one for all of them or, as in negative_1 and negative_2, one for each."""
    names = _COLUMNS["reranking"]["negative"]
    return [column for column in table.columns if re.sub(r"_\d+$", "", column) in names]


def _may_be_labels(values: Sequence[float]) -> bool:
    """Whether different numbers are as few as labels of pairs are: of two or, as in inference, of three kinds."""
    return len(values) == 2 or (len(values) == 3 and all(value.is_integer() for value in values))


def _judges_sameness(table: Table, column: str) -> bool:
    """Whether the column says of pairs that they are the same or not; what says nothing is left to who reads it."""
    flat = [item for value in table.values(column) for item in (value if isinstance(value, (list, tuple)) else [value])]
    judged = [sameness(value) for value in flat if not is_missing(value)]
    return None not in judged and set(judged) == {0, 1}


def columns_of(kind: Kind, table: Table, given: Mapping[str, str]) -> dict[str, str]:
    """What the table calls the columns of a kind: our name to its own.

    Raises:
        ValueError: for a column that is not there, or a name that the kind does not know.
    """
    names = _COLUMNS[kind]
    if kind == "retrieval" and (
        (set(given) <= {"text", "label"} and given) or not all(find(names, {}, table).values())
    ):
        labelled = _COLUMNS["classification"]
        if given or all(find(labelled, {}, table).values()):
            names = labelled
    if unknown := set(given) - set(names):
        raise ValueError(
            f"The 'columns' of a task of the kind {kind} must be of {', '.join(names)}. Got '{min(unknown)}' instead."
        )
    found = find(names, given, table)
    for ours, theirs in found.items():
        if theirs is None or theirs not in table.columns:
            wanted = f"no column '{theirs}'" if theirs else f"no column for '{ours}' ({', '.join(names[ours])})"
            raise ValueError(
                f"{table.source} has {wanted}, which a task of the kind {kind} needs. It has {', '.join(table.columns)}: "
                "say with 'columns' which one it is."
            )
    return {ours: str(theirs) for ours, theirs in found.items()}
