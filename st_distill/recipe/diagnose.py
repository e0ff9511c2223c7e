"""What of a recipe, its data and its teachers' vectors looks wrong before work starts, and of its student at the end."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_distill.diagnosis import (
    Finding,
    Reader,
    diagnose_duplicates,
    diagnose_overlap,
    diagnose_prompts,
    diagnose_reading,
    diagnose_rows,
    diagnose_vectors,
)
from st_distill.files import read_signed, write_signed
from st_distill.recipe.data import load_texts
from st_distill.recipe.models import UnknownModel, read_prompts, text_tokenizer
from st_distill.recipe.schema import Projection, Recipe, Stage, Student, TeacherSpec, Texts
from st_distill.recipe.sources import columns_of, stream_rows
from st_distill.recipe.state import results_remedy
from st_distill.recipe.teachers import make_teacher
from st_distill.store import StoreView, TeacherStore
from st_distill.words import FieldPath

__all__ = [
    "FINDINGS",
    "all_findings",
    "diagnose_recipe",
    "diagnose_store",
    "diagnose_student",
    "known_findings",
    "read_findings",
    "trained_dims",
    "write_findings",
]

logger = logging.getLogger(__name__)

#: Rows of each source that duplicates and common texts are looked for in.
_ROWS = 100_000
#: Texts whose tokens are counted, and texts whose vectors are looked at.
_TOKENISED = 256
_COMPARED = 2048
_ENCODED = 256

#: In the work folder: what was found before and after training; what was found in a stage stands in the run's state.
FINDINGS = "findings.json"

Placed = tuple[FieldPath, Finding]


def diagnose_recipe(recipe: Recipe, *, vectors: bool = True) -> list[Placed]:
    """What is knowable of a recipe without its models' weights, each finding with the field that it is about.

    Data of the hub are not looked at, and of models what this machine has.

    Args:
        recipe: a recipe without mistakes.
        vectors: look at the beginning of given vectors too; `diagnose_store` looks at all of them.
    """
    found: list[Placed] = []
    distils = any(stage.distils and not stage.trains_vision for stage in recipe.stages)
    if distils:
        found += _prompts(recipe)
        found += _reading(recipe)
        found += _vectors(recipe) if vectors else []
        found += _dimensions(recipe)
    found += _data(recipe)
    return found


# --- teachers --------------------------------------------------------------------------------------------------------


def _prompts(recipe: Recipe) -> Iterator[Placed]:
    roles = {role for source in recipe.texts for role in _roles(source).values()}
    for index, spec in enumerate(recipe.teachers):
        if spec.model is None:
            continue
        try:
            configured, default, card = read_prompts(spec.model, spec.revision)
        except (UnknownModel, ValueError, OSError):
            continue
        for finding in diagnose_prompts(
            f"teacher '{spec.name}'",
            configured,
            roles=roles,
            given=spec.prompts or None,
            default=default,
            card=card,
        ):
            yield ("teachers", index), finding


def _reading(recipe: Recipe) -> Iterator[Placed]:
    columns = [(source, column, role) for source in recipe.texts for column, role in _roles(source).items()]
    student = _tokenizer(recipe.student)
    if student is None:
        return
    tokenizer, limit = student
    for index, spec in enumerate(recipe.teachers):
        theirs = _tokenizer(spec)
        if theirs is None:
            continue
        variants = make_teacher(spec)
        told: set[str] = set()
        for source, column, role in columns:
            texts = [row[0] for row in itertools.islice(_rows(source, [column]), _TOKENISED)]
            ours = Reader(
                name="the student",
                tokenizer=tokenizer,
                max_seq_length=recipe.student.max_seq_length or limit,
                prompt=source.prompts.get(column, ""),
            )
            other = Reader(
                name=f"teacher '{spec.name}'",
                tokenizer=theirs[0],
                max_seq_length=spec.max_seq_length or theirs[1],
                prompt=variants.variant(role).prompt,
            )
            for finding in diagnose_reading(texts, ours, other):
                if finding.name not in told:
                    told.add(finding.name)
                    yield ("teachers", index), finding


def _tokenizer(spec: Student | TeacherSpec) -> tuple[Any, int | None] | None:
    """A model's tokenizer and limit where this machine has them; None otherwise, for then the run finds out."""
    if spec.model is None:
        return None
    try:
        return text_tokenizer(spec.model, spec.revision, trusted=spec.trust_remote_code, here_alone=True)
    except (UnknownModel, ValueError):
        return None


def _vectors(recipe: Recipe) -> Iterator[Placed]:
    """Given vectors, which may be those of other texts; a model's are made of the texts themselves."""
    for index, spec in enumerate(recipe.teachers):
        if spec.vectors is None:
            continue
        texts, vectors = next(make_teacher(spec).blocks(), ([], np.empty((0, 1), dtype=np.float32)))
        for finding in diagnose_rows(texts, vectors, teacher=f"teacher '{spec.name}'"):
            yield ("teachers", index), finding


def diagnose_store(recipe: Recipe, store: TeacherStore, labelled: Sequence[tuple[Dataset, Texts]]) -> list[Finding]:
    """Whether the vectors that the stages learn from are those of their texts, and tell them apart.

    Args:
        recipe: the recipe.
        store: the teachers' vectors.
        labelled: the recipe's texts with their rows in the store.
    """
    texts, ids = _sample(labelled)
    found = []
    for spec in recipe.teachers:
        name, teacher = str(spec.name), f"teacher '{spec.name}'"
        vectors = store.view(teachers=[name]).gather(ids)
        found += diagnose_rows(texts, vectors, teacher=teacher)
        # Of a teacher a dimension that says nothing is no harm: a word that none of these texts has.
        about = diagnose_vectors(vectors, of=f"{teacher}'s")
        found += [finding for finding in about if finding.name != "dimension not trained"]
    return found


def _sample(labelled: Sequence[tuple[Dataset, Texts]]) -> tuple[list[str], np.ndarray]:
    """Texts of all sources and columns, evenly spread, and their rows in the store."""
    texts: list[str] = []
    ids: list[np.ndarray] = []
    count = sum(len(dataset) * (len(dataset.column_names) - 1) for dataset, _ in labelled)
    for dataset, _ in labelled:
        kept = dataset[:: max(1, count // _COMPARED)]
        columns = [column for column in dataset.column_names if column != "label"]
        labels = np.asarray(kept["label"]).reshape(-1, len(columns))
        for index, column in enumerate(columns):
            texts += kept[column]
            ids.append(labels[:, index])
    return texts, np.concatenate(ids)


# --- stages ----------------------------------------------------------------------------------------------------------


def _dimensions(recipe: Recipe) -> Iterator[Placed]:
    """Dimensions of the projection that the losses of no stage look at."""
    projection = recipe.projection
    if projection is None:
        return
    seen = _seen(recipe, projection)
    for index, dim in enumerate(projection.dims):
        if dim in seen:
            continue
        if projection.heads != "independent" and dim < max(seen, default=0):
            told = f"{dim} is a prefix that no stage's losses look at"
            means = "it is as good as a rotation has sorted what the longer vectors hold, and not trained for"
        else:
            told = f"no stage's losses look at the {dim} dimensions of the projection"
            means = "they stay as their start has left them"
        remedy = f"add {dim} to the 'dims' of a stage, or leave it out of projection.dims"
        place = ("projection", "dims", index)
        yield place, Finding(name="dimension not trained", seen=told, means=means, remedy=remedy)


def trained_dims(recipe: Recipe) -> list[int]:
    """Those of the projection's dimensions that a loss of some stage looks at, in its order; none without a projection."""
    projection = recipe.projection
    if projection is None:
        return []
    seen = _seen(recipe, projection)
    return [dim for dim in projection.dims if dim in seen]


def _seen(recipe: Recipe, projection: Projection) -> set[int]:
    return set[int]().union(*(_looked_at(stage, projection) for stage in recipe.stages if not stage.trains_vision))


def _looked_at(stage: Stage, projection: Projection) -> set[int]:
    full = set() if projection.teacher_head else {max(projection.dims)}
    seen = {max(projection.dims)} if stage.also else set()
    for heads, terms in (
        (stage.dims or projection.dims, {"similarity", "triplet"}),
        (stage.heads_of_cosine(projection), {"cosine"}),
    ):
        if terms & set(stage.weights(projection)):
            seen |= full if heads == "full" else set(heads)
    return seen


# --- data ------------------------------------------------------------------------------------------------------------


def _data(recipe: Recipe) -> Iterator[Placed]:
    for index, source in enumerate(recipe.texts):
        for finding in diagnose_duplicates(itertools.islice(_rows(source, list(_roles(source))), _ROWS)):
            yield ("texts", index), finding
    evaluation = recipe.evaluation
    if evaluation is None:
        return
    sources = [*recipe.texts, *(source for stage in recipe.stages for other in stage.also for source in other.texts)]
    for field in ("texts", "similarity", "retrieval"):
        held_out: Texts | None = getattr(evaluation, field)
        if held_out is None:
            continue
        columns = [*_roles(held_out)]
        columns = columns if field == "texts" else columns[:2]
        train = itertools.chain.from_iterable(_texts(source, list(_roles(source))) for source in sources)
        for finding in diagnose_overlap(train, _texts(held_out, columns), what=f"evaluation's {field}"):
            yield ("evaluation", field), finding


def _roles(source: Texts) -> dict[str, str | None]:
    """Role of each of a source's columns of texts; of a hub dataset, of those that the recipe names."""
    kinds = columns_of(source)
    names: Iterable[str]
    if source.columns is not None:
        names = [name for name in source.columns if kinds is None or kinds.get(name) == "text"]
    elif kinds is not None:
        names = [name for name, kind in kinds.items() if kind == "text"]
    else:
        names = source.roles
    return {name: source.roles.get(name) for name in names}


def _texts(source: Texts, columns: list[str]) -> Iterator[str]:
    return itertools.chain.from_iterable(itertools.islice(_rows(source, columns), _ROWS))


def _rows(source: Texts, columns: list[str]) -> Iterator[tuple[str, ...]]:
    """Texts of each row; none for a hub dataset, which a run alone may download."""
    if source.dataset is not None or not columns:
        return
    for row in stream_rows(source, columns):
        yield tuple(text if isinstance(text, str) else "" for text in row)


# --- the student -----------------------------------------------------------------------------------------------------


def diagnose_student(recipe: Recipe, model: SentenceTransformer, teacher: StoreView | None) -> list[Finding]:
    """Whether the finished student tells texts apart, and uses all its dimensions.

    Args:
        recipe: the recipe.
        model: the exported student.
        teacher: the teachers' vectors of the evaluation's texts, where it has any.
    """
    evaluation = recipe.evaluation
    sources = [evaluation.texts] if evaluation is not None and evaluation.texts is not None else recipe.texts
    if not sources:
        return []
    dataset = load_texts(sources[0])
    column = dataset.column_names[0]
    texts = list(dict.fromkeys(dataset[column][:: max(1, len(dataset) // _ENCODED)]))[:_ENCODED]
    theirs: Any = None
    if teacher is not None and evaluation is not None and evaluation.texts is not None:
        theirs = teacher.gather(teacher.ids(texts, role=sources[0].roles.get(column)))
    options: dict[str, Any] = {"prompt": sources[0].prompts.get(column, "")}
    vectors = model.encode(texts, convert_to_tensor=True, show_progress_bar=False, **options)
    return diagnose_vectors(vectors, teacher=theirs)


# --- the record ------------------------------------------------------------------------------------------------------


def write_findings(folder: Path, when: Literal["before", "after"], found: Iterable[Finding]) -> None:
    """Log the findings before or after training, and enter them in the work folder."""
    listed = list(found)
    for finding in listed:
        logger.warning("%s", finding)
    write_signed(folder / FINDINGS, {**known_findings(folder), when: [finding.as_json() for finding in listed]})


def all_findings(
    stored: Mapping[str, Sequence[Mapping[str, str]]], stages: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Everything that was found in a run, in the order of time: a finding's fields, and "when".

    Args:
        stored: what was found before and after training, as `read_findings` gives it.
        stages: of the run's state.
    """
    found = [{"when": "before training", **finding} for finding in stored.get("before", [])]
    for index, stage in enumerate(stages, start=1):
        of_stage = stage.get("metrics", {}).get("findings", [])
        found += [{"when": f"stage {index}, {stage['name']}", **finding} for finding in of_stage]
    return found + [{"when": "after training", **finding} for finding in stored.get("after", [])]


def read_findings(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The findings of a work folder, "before" and "after" training, of which one that has not been looked for is absent.

    Raises:
        ValueError: their file is damaged; the sentence says which command makes it again.
    """
    path = folder / FINDINGS
    try:
        stored = read_signed(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{error} {results_remedy(folder)}") from error
    if not isinstance(stored, dict) or not all(
        isinstance(found, list) and all(map(_is_finding, found)) for found in stored.values()
    ):
        raise ValueError(f"The file {path} must hold a run's findings. It does not. {results_remedy(folder)}")
    return stored


def known_findings(folder: Path) -> dict[str, list[dict[str, str]]]:
    """As `read_findings`, for the run, which looks again for what it cannot read."""
    try:
        return read_findings(folder)
    except ValueError:
        return {}


def _is_finding(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(field.name), str) for field in fields(Finding))
