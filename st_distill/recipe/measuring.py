"""Measuring a model as a recipe's evaluation says; a part that fails takes nothing from the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_distill.evaluation import evaluate, measure_entries
from st_distill.evaluation.failures import failure
from st_distill.evaluation.sweep import Use
from st_distill.evaluation.truncation import prompted_texts, tell_truncated
from st_distill.recipe.data import load_scored_pairs, load_texts
from st_distill.recipe.schema import Evaluation, ImageSource, Recipe, TeacherSpec, Texts
from st_distill.recipe.teachers import teacher_model
from st_distill.recipe.vision import pictures_and_captions
from st_distill.store import StoreView

#: Held-out texts that speed is measured on.
_SPEED_TEXTS = 256


def measure(
    model: SentenceTransformer,
    recipe: Recipe,
    evaluation: Evaluation,
    store: StoreView | None,
    *,
    speed: bool = True,
    failed: Iterable[dict[str, str]] = (),
) -> dict[str, Any]:
    """What `st_distill.evaluation.evaluate` returns of all that an evaluation names, with its tasks.

    What could not be measured is told, and stands in "failed", a list of their "name" and "error" each: "fidelity",
    "retrieval", "similarity", "images", "teacher <name>" or "size and speed". Tasks have such a list of their own. Texts that a
    model does not read to their end are told too.

    Args:
        model: the model.
        recipe: its projection's dimensions are measured, those that the model has.
        evaluation: of the recipe, or a part of it.
        store: with the teachers' vectors of the evaluation's texts; None: they are not compared with.
        speed: time the models.
        failed: what could not be measured already, as "failed" has it.
    """
    width = model.get_embedding_dimension()
    spec = recipe.projection
    nested = [] if spec is None or spec.heads == "independent" else spec.dims
    dims = [dim for dim in nested if width is not None and dim <= width] or None
    results = evaluate(model, dims=dims)
    failed = list(failed)
    teachers: dict[str, SentenceTransformer] = {}
    timed: list[str] = []
    read: dict[str, list[tuple[Use, list[str]]]] = {}

    def attempt(name: str, part: Callable[[], Mapping[str, Any]]) -> None:
        try:
            results.update(part())
        except Exception as error:  # of data, of a model, of memory: the others are measured all the same
            failed.append(failure(name, error))

    def load_teacher(spec: TeacherSpec) -> dict[str, Any]:
        teachers[str(spec.name)] = teacher_model(spec)
        return {}

    def fidelity(source: Texts, store: StoreView) -> dict[str, Any]:
        texts, vectors = texts_and_vectors(source, store)
        read["texts"] = [("text", texts)]
        timed.extend(texts[:_SPEED_TEXTS] if speed else [])
        return evaluate(model, dims=dims, texts=texts, teacher_vectors=vectors)

    def retrieval(source: Texts) -> dict[str, Any]:
        dataset = load_texts(source)
        queries, documents = (list(dataset[column]) for column in dataset.column_names[:2])
        read["retrieval"] = [("query", queries), ("document", documents)]
        return evaluate(model, teachers=teachers, dims=dims, retrieval=(queries, documents))

    def similarity(source: Texts) -> dict[str, Any]:
        first, second, scores = load_scored_pairs(source)
        read["similarity"] = [("text", first), ("text", second)]
        return evaluate(model, teachers=teachers, dims=dims, similarity=(first, second, scores))

    def of_images(source: ImageSource) -> dict[str, Any]:
        if not model.supports("image"):
            raise ValueError(
                f"The model takes {', '.join(map(str, model.modalities))} and no pictures. Leave 'images' out of the "
                "evaluation, or measure a model that takes them."
            )
        return evaluate(model, dims=dims, images=pictures_and_captions(source))

    texts, pairs, scored, images = evaluation.texts, evaluation.retrieval, evaluation.similarity, evaluation.images
    for teacher in recipe.teachers:
        if evaluation.teachers and teacher.model is not None:
            attempt(f"teacher {teacher.name}", lambda teacher=teacher: load_teacher(teacher))  # type: ignore[misc]
    if texts is not None and store is not None:
        attempt("fidelity", lambda: fidelity(texts, store))
    if pairs is not None:
        attempt("retrieval", lambda: retrieval(pairs))
    if scored is not None:
        attempt("similarity", lambda: similarity(scored))
    if images is not None:
        attempt("images", lambda: of_images(images))
    if evaluation.tasks:
        attempt("tasks", lambda: {"tasks": measure_entries(model, evaluation.tasks, dims=dims)})
    for name, reader in {"student": model, **teachers}.items():
        # The teachers' vectors of "texts" are those of the store.
        own = {part: columns for part, columns in read.items() if name == "student" or part != "texts"}
        parts = {part: prompted_texts(reader, columns) for part, columns in own.items()}
        tell_truncated(reader, parts, name=name if name == "student" else f"teacher {name}")
    attempt("size and speed", lambda: evaluate(model, teachers=teachers, dims=dims, speed=timed or None))
    return results | ({"failed": failed} if failed else {})


def texts_and_vectors(source: Texts, store: StoreView) -> tuple[list[str], Tensor]:
    """All texts of a source, and the teachers' vectors of each in its column's role, (texts, dimension)."""
    dataset = load_texts(source)
    columns = {column: list(dataset[column]) for column in dataset.column_names}
    ids = [store.ids(texts, role=source.roles.get(column)) for column, texts in columns.items()]
    return [text for texts in columns.values() for text in texts], store.gather(np.concatenate(ids))
