"""What a recipe trains by, as a digest: runs of equal settings and another plan were trained by other defaults.

A run is named by its settings. Most of a recipe is no setting of it but a default of the package, and versions change those.
So each line of a run that goes through a recipe notes the plan, and does not stand for a run of another one.

In the plan are the recipe's fields with every default as it is in effect: the start and the heads of the projection, the
terms and their weights, the learning rates. Not in it are names and paths, what leaves the result as it is, and seed and
steps, which each line has among its settings, and in which runs of one plan may differ. What is off (none, false, empty)
counts as absent, so that a new option that is off by default makes no other plan. How the code carries a recipe out is no
field of it.

The other methods have no plan: whatever they train by, but for sentence-transformers' own defaults, stands in methods.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from st_distill.recipe.schema import SHORTHAND_ARGUMENTS, Projection, Recipe, Stage
from st_distill.recipe.start import chosen_heads, chosen_start
from st_distill.recipe.state import determining_arguments

_OF_STUDENT = ("model", "too_long", "attn_implementation", "trust_remote_code")
_OF_TEACHER = ("name", "model", "device", "batch_size", "batch_tokens", "trust_remote_code")
# What is short for a training argument is among the arguments.
_OF_STAGE = ("name", *SHORTHAND_ARGUMENTS, "gather_across_devices", "mini_batch_size", "length_parts")


def plan_of(recipe: Recipe, *, is_static: bool) -> str:
    """Eight hexadecimal digits; ``is_static``: whether the student is a static embedding."""
    return hashlib.sha256(json.dumps(_in_effect(recipe, is_static), sort_keys=True).encode()).hexdigest()[:8]


def _in_effect(recipe: Recipe, is_static: bool) -> dict[str, Any]:
    projection = recipe.projection
    if projection is None:
        raise ValueError("A recipe of distillation must have a 'projection'. Got none instead.")
    start = chosen_start(projection, recipe.student, recipe.teachers)
    heads = chosen_heads(projection, recipe.stages, start, is_static=is_static)
    return {
        "student": _on(asdict(recipe.student), without=_OF_STUDENT),
        "teachers": [_on(asdict(teacher), without=_OF_TEACHER) for teacher in recipe.teachers],
        "texts": [_on(asdict(source), without=["path"]) for source in recipe.texts],
        "store_dtype": recipe.store_dtype,
        "projection": _on(asdict(projection) | {"start": start, "heads": heads}),
        "stages": [_on(_stage(stage, projection), without=_OF_STAGE) for stage in recipe.stages],
    }


def _stage(stage: Stage, projection: Projection) -> dict[str, Any]:
    """A stage with its defaults as they are in effect, and without the options of terms that it has not."""
    weights = stage.weights(projection)
    arguments = determining_arguments(stage.training_arguments())
    arguments.pop("max_steps", None)
    changed: dict[str, Any] = {"losses": weights, "margin": None, "dims": None}
    changed |= {"effective_batch": stage.effective_batch(), "arguments": arguments}
    if weights.keys() - {"cosine"}:
        changed["dims"] = stage.dims or projection.dims
    if "triplet" in weights:
        changed["margin"] = stage.margin
    if "cosine" in weights:
        changed |= {"cosine_dims": stage.heads_of_cosine(projection), "cosine_weights": stage.weights_of_cosine()}
    return asdict(stage) | changed


def _on(fields: dict[str, Any], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fields that say something."""
    return {
        name: value
        for name, value in fields.items()
        if name not in without and value is not None and value is not False and value not in ({}, [])
    }
