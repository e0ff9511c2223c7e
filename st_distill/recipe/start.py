"""The student before the first stage: its encoder, and a projection with a start of its own."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from st_distill.modules import MatryoshkaProjection
from st_distill.modules.lengths import tell_too_long
from st_distill.modules.matryoshka import Heads, fold_into_table
from st_distill.modules.rotation import learned_rotation, principal_rotation, random_rotation
from st_distill.recipe.data import prompted_columns
from st_distill.recipe.frozen import PooledVectors, pooled_vectors, reads_pooled_vectors
from st_distill.recipe.models import UnknownModel, read_model
from st_distill.recipe.schema import Projection, Recipe, Stage, Student, TeacherSpec, Texts
from st_distill.recipe.student import build_student
from st_distill.store import StoreView

logger = logging.getLogger(__name__)

#: Rows of teacher vectors, or texts, that are looked at together.
_CHUNK = 1024
#: Teacher vectors that the principal axes are those of, or as many as four times their width; and those of a batch from
#: which a rotation is learned.
_PRINCIPAL_ROWS = 20_000
_LEARNED_ROWS = 512
#: Texts that the ridge start is solved from, or as many as 24 times the student's width. For MiniLM's three layers the cosine
#: to the teacher on other texts is 0.801 of 8,000 and 0.804 of 12,000: less than a few steps of training bring.
_RIDGE_ROWS = 8_000
#: Texts of each source whose length is looked at.
_LOOKED_AT = 1000


def chosen_start(
    spec: Projection, student: Student, teachers: Sequence[TeacherSpec]
) -> Literal["ridge", "random", "identity"]:
    """How the projection starts: as the recipe says, or by what was better for such a student (docs/ablations.md)."""
    if spec.start is not None:
        return spec.start
    if len(teachers) != 1 or teachers[0].model is None or spec.heads == "none":
        return "ridge"
    teacher = teachers[0]
    is_its_own = Path(student.model) == Path(str(teacher.model)) and student.revision == teacher.revision
    if not is_its_own or student.pooling is not None or teacher.truncate_dim is not None:
        return "ridge"
    try:
        facts = read_model(student.model, student.revision)
    except (UnknownModel, ValueError):
        return "ridge"
    if not facts.ends_pooled or facts.depth is None or max(spec.dims) > (facts.pooled or 0):
        return "ridge"
    return "identity" if student.layers is None or student.layers[-1] == facts.depth - 1 else "ridge"


def chosen_heads(spec: Projection, stages: Sequence[Stage], start: str, *, is_static: bool) -> Heads:
    """The projection's heads: as the recipe says, or by the student, its start, and what the stages train.

    Args:
        spec: the projection.
        stages: the recipe's.
        start: `chosen_start`'s.
        is_static: whether the student is a static embedding alone.
    """
    if spec.heads is not None:
        return spec.heads
    trained_whole = all(stage.train == "all" for stage in stages)
    return "none" if is_static and start == "ridge" and trained_whole and not spec.teacher_head else "nested"


def start_student(
    recipe: Recipe,
    labelled: list[tuple[Dataset, Texts]],
    teacher: StoreView | None,
    *,
    processes: int,
    show_progress: bool,
) -> SentenceTransformer:
    """The student as the first stage finds it, with its projection where the recipe has one.

    Args:
        recipe: the recipe.
        labelled: its texts, with the row numbers of the teachers' vectors as labels.
        teacher: the teachers' vectors; None for a recipe without teachers.
        processes: how many will train together.
        show_progress: show a progress bar where all texts are embedded.
    """
    spec = recipe.projection
    student = build_student(recipe.student, whole=spec is None)
    if spec is None:
        return student
    width = student.get_embedding_dimension()
    rotation, teacher_head = None, None
    if teacher is not None:
        teacher_head = teacher.dimension if spec.teacher_head else None
        rotation = _rotation(spec, recipe.seed, labelled, teacher, student.device)
    start = chosen_start(spec, recipe.student, recipe.teachers)
    modules = list(student.children())
    is_static = len(modules) == 1 and isinstance(modules[0], StaticEmbedding)
    heads = chosen_heads(spec, recipe.stages, start, is_static=is_static)
    folds = heads == "none" and start == "ridge"
    if folds and not is_static:
        raise ValueError(
            "The projection's heads: none with a ridge start needs a static embedding as the student. Got "
            f"{type(modules[0]).__name__} instead: leave heads out."
        )
    projection = MatryoshkaProjection(
        width,
        spec.dims,
        heads="nested" if folds else heads,  # the map is solved before the table takes it
        rotation=rotation,
        teacher_head=teacher_head,
    ).to(student.device)
    if start == "identity":
        logger.info("Projection: the rotation alone, as if the pooled vectors were the teacher's.")
        projection.start_identity()
    elif start == "ridge":
        if teacher is None:
            raise ValueError("A ridge start needs the recipe's 'teachers'. Got none instead: start at random.")
        logger.info("Projection: ridge regression of the teachers' vectors.")
        rows, pooled = sum(len(dataset) for dataset, _ in labelled), None
        if reads_pooled_vectors(recipe.stages[0], rows, processes=processes):
            pooled = pooled_vectors(recipe.work_folder, student, labelled, show_progress=show_progress)
        projection.start_ridge(_ridge_batches(student, labelled, teacher, recipe.seed, pooled))
    if folds:
        projection = fold_into_table(projection, modules[0])
    student.append(projection)
    return student


def _rotation(
    spec: Projection,
    seed: int,
    labelled: list[tuple[Dataset, Texts]],
    teacher: StoreView,
    device: torch.device,
) -> Tensor | None:
    dim = max(spec.dims)
    if dim > teacher.dimension:
        return None  # the check has seen to it that the teacher's head takes the cosine term
    if spec.rotation == "none":
        return None if dim == teacher.dimension else torch.eye(teacher.dimension, dim)
    if spec.rotation == "random":
        return random_rotation(teacher.dimension, dim, seed=seed)
    ids = np.unique(np.concatenate([np.asarray(dataset["label"]).reshape(-1) for dataset, _ in labelled]))
    generator = np.random.default_rng(seed)
    wanted = min(len(ids), max(_PRINCIPAL_ROWS, 4 * teacher.dimension))
    sample = np.sort(generator.choice(ids, wanted, replace=False))
    principal = principal_rotation((teacher.gather(part).to(device) for part in _chunks(sample)), dim)
    if spec.rotation == "principal" or len(ids) < 2:
        return principal
    logger.info("Projection: axes of which every prefix keeps the texts' neighbours.")
    # Of the same sample, which reads fewer pages of a large store.
    batches = (
        teacher.gather(np.sort(generator.choice(sample, min(_LEARNED_ROWS, len(sample)), replace=False)))
        for _ in itertools.count()
    )
    return learned_rotation(batches, principal, spec.dims)


def _ridge_batches(
    student: SentenceTransformer,
    labelled: list[tuple[Dataset, Texts]],
    teacher: StoreView,
    seed: int,
    pooled: PooledVectors | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pooled vectors and teacher vectors: of all texts where the former are there, else of a seeded sample that is large
    enough for the regression to be well determined.
    """
    wanted = max(_RIDGE_ROWS, 24 * student.get_embedding_dimension())
    rows = sum(len(dataset) * (len(dataset.column_names) - 1) for dataset, _ in labelled)
    share = 1.0 if pooled is not None else min(1.0, wanted / rows)
    generator = np.random.default_rng(seed)
    for dataset, source in labelled:
        columns = [column for column in dataset.column_names if column != "label"]
        kept = np.sort(generator.permutation(len(dataset))[: max(1, round(share * len(dataset)))])
        for part in _chunks(kept):
            rows_part = dataset[part]
            labels = np.asarray(rows_part["label"]).reshape(len(part), -1)
            for index, column in enumerate(columns):
                texts, prompt = list(rows_part[column]), source.prompts.get(column)
                if pooled is not None:
                    vectors = torch.from_numpy(pooled.gather(texts, prompt))
                else:
                    # An empty prompt, because none at all means the model's default one, which the trainer does not use.
                    vectors = student.encode(
                        texts, prompt=prompt or "", convert_to_tensor=True, show_progress_bar=False
                    )
                yield vectors, teacher.gather(labels[:, index]).to(vectors.device)


def _chunks(ids: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]


def tell_too_long_texts(model: SentenceTransformer, sources: Sequence[Texts]) -> None:
    """One warning for each source whose first texts the student does not read to their end."""
    limit = model.max_seq_length
    if not isinstance(limit, int) or not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        return  # a static embedding reads any number of words
    for source in sources:
        first = replace(source, limit=min(source.limit or _LOOKED_AT, _LOOKED_AT))
        told = tell_too_long(model.tokenizer, prompted_columns(first), limit)
        if told is not None:
            logger.warning("%s, and are truncated there.", told)
