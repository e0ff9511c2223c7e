"""The texts of a recipe, given to its teachers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from st_distill.recipe.data import load_texts
from st_distill.recipe.processes import STORE
from st_distill.recipe.schema import Recipe, Texts
from st_distill.recipe.teachers import make_teacher
from st_distill.store import TeacherStore
from st_distill.teacher import Teacher

__all__ = ["embed_texts", "fidelity_texts", "what_to_embed"]

logger = logging.getLogger(__name__)


def what_to_embed(recipe: Recipe) -> tuple[Iterable[tuple[str, str | None]], list[Teacher]]:
    """The (text, role) pairs of a recipe's store, which can be gone through again, and its teachers."""
    return _Rows([*recipe.texts, *fidelity_texts(recipe)]), [make_teacher(spec) for spec in recipe.teachers]


def embed_texts(recipe: Recipe, sources: list[Texts], process: tuple[int, int], show_progress: bool) -> TeacherStore:
    """The teachers' vectors of the texts of ``sources``; what the store has is not embedded again.

    ``process`` is as `TeacherStore.create` takes it.
    """
    rows = _Rows(sources)
    teachers = [make_teacher(spec) for spec in recipe.teachers]
    logger.info("Teachers: %s.", ", ".join(teacher.name for teacher in teachers))
    return TeacherStore.create(
        recipe.work_folder / STORE,
        rows,
        teachers,
        dtype=recipe.store_dtype,
        process=process,
        show_progress=show_progress,
    )


def fidelity_texts(recipe: Recipe) -> list[Texts]:
    """The texts of a recipe's evaluation that are compared with the teachers' vectors."""
    evaluation = recipe.evaluation
    return [] if evaluation is None or evaluation.texts is None else [evaluation.texts]


class _Rows:
    """The (text, role) pairs of some sources, which can be gone through again for each teacher."""

    def __init__(self, sources: list[Texts]) -> None:
        self.sources = [(load_texts(source), source.roles) for source in sources]

    def __len__(self) -> int:
        return sum(len(dataset) * len(dataset.column_names) for dataset, _ in self.sources)

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        for dataset, roles in self.sources:
            for column in dataset.column_names:
                yield from ((text, roles.get(column)) for text in dataset[column])
