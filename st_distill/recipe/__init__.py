"""What a recipe is, and how it runs: one SentenceTransformerTrainer for each stage."""

from __future__ import annotations

from st_distill.recipe.check import check
from st_distill.recipe.load import dump_recipe, load_recipe
from st_distill.recipe.runner import RunResult, embed, evaluate_model, run
from st_distill.recipe.schema import (
    Evaluation,
    Images,
    ImageSource,
    Objective,
    Projection,
    Recipe,
    Stage,
    Student,
    TeacherSpec,
    Texts,
)

__all__ = [
    "Evaluation",
    "ImageSource",
    "Images",
    "Objective",
    "Projection",
    "Recipe",
    "RunResult",
    "Stage",
    "Student",
    "TeacherSpec",
    "Texts",
    "check",
    "dump_recipe",
    "embed",
    "evaluate_model",
    "load_recipe",
    "run",
]
