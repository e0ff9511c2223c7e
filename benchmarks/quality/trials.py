"""Variants of the default recipe, to be tried on dev; docs/ablations.md has each one's prediction, measurement and verdict.

Two have no entry of their own: ``neighbours-10`` was not run after ``neighbours-1``, and ``equal-weights`` is what "cosine
weights" there begins from.
"""

from __future__ import annotations

from typing import Any

from benchmarks.quality.experiments import Experiment

_PAPER = "losses={cosine: 10, similarity: 200, triplet: 20}"
_STAGES = ("projection", "last-layer", "all")


def _relations(losses: str, *more: str) -> dict[str, Any]:
    """Overrides of the one stage: other losses than the cosine alone."""
    return {"overrides": tuple(f"stages.all.{change}" for change in (losses, *more))}


#: Changes to `Settings` for each trial; overrides are those of ``st-distill run --set``. In the order of what they may gain.
TRIALS: dict[str, dict[str, Any]] = {
    "plain": {},
    # the stages
    "three-stages": {"stages": (("projection", 0.1), ("last-layer", 0.2), ("all", 0.7))},
    "paper": {
        "stages": (("projection", 0.1), ("last-layer", 0.2), ("all", 0.7)),
        "overrides": tuple(f"stages.{name}.{change}" for name in _STAGES for change in (_PAPER, "cosine_dims=full")),
    },
    # the start
    "start-ridge": {"overrides": ("projection.start=ridge",)},
    "ridge-only": {"stages": (("projection", 1.0),), "steps": 1, "overrides": ("projection.start=ridge",)},
    # the rotation of the teacher's space
    "rotation-random": {"overrides": ("projection.rotation=random",)},
    "rotation-none": {"overrides": ("projection.rotation=none",)},
    "rotation-principal": {"overrides": ("projection.rotation=principal",)},
    # the terms
    "cosine-full": _relations("cosine_dims=full"),
    "relations": _relations(_PAPER),
    "relations-for-prefixes": _relations(_PAPER, "cosine_dims=full"),
    "relations-tenth": _relations("losses={cosine: 10, similarity: 20, triplet: 2}"),
    "similarity-20": _relations("losses={cosine: 10, similarity: 20}"),
    "triplet-2": _relations("losses={cosine: 10, triplet: 2}"),
    "triplet-2-margin-0": _relations("losses={cosine: 10, triplet: 2}", "margin=0"),
    "relations-later": {"experiment": Experiment(relations_after=0.5), **_relations(_PAPER)},
    "neighbours-1": {"experiment": Experiment(neighbours=1.0)},
    "neighbours-10": {"experiment": Experiment(neighbours=10.0)},
    "centred": {"experiment": Experiment(centred=True), **_relations(_PAPER)},
    "own-teacher": {"experiment": Experiment(own_teacher=True), **_relations(_PAPER)},
    "short-first": {"experiment": Experiment(prefix_power=0.5)},
    "equal-weights": _relations("cosine_weights=equal"),
    "hidden-1": {"experiment": Experiment(hidden=1.0)},
    "hidden-10": {"experiment": Experiment(hidden=10.0)},
    "spread": {"experiment": Experiment(spread=5.0)},
    "teacher-head": {"overrides": ("projection.teacher_head=true",)},
    # vectors as bits
    "bits": _relations("losses={cosine: 10, similarity: 20}", "bits=true"),
    # the student
    "layers-0-1-2": {"layers": (0, 1, 2)},
    "layers-0-3-5": {"layers": (0, 3, 5)},
    "layers-1-3-5": {"layers": (1, 3, 5)},
    "layers-mean": {"experiment": Experiment(mean_layers=True)},
    # the optimiser
    "rate-3e-4": {"rate": 3e-4},
    "rate-1e-3": {"rate": 1e-3},
    "projection-rate": {"overrides": ("stages.all.arguments.learning_rate_mapping={linears: 3e-3}",)},
    "average": {"experiment": Experiment(average=0.3)},
    "batch-32": {"batch": 32, "steps": 300},
    "batch-16": {"batch": 16, "steps": 600},
    # the texts and the batches
    "random-batches": {"overrides": ("stages.all.group_by_length=false",)},
    "texts-strangers": {"texts": "strangers"},
    "texts-neighbours": {"texts": "neighbours"},
    "relations-neighbours": {"texts": "neighbours", **_relations(_PAPER)},
    "texts-shuffled": {"texts": "shuffled"},
    "texts-long": {"texts": "long"},
    "texts-pieces": {"texts": "pieces"},
    "texts-short": {"texts": "short"},
    # two teachers
    "lexical-0.3": {"lexical": 0.3},
    "lexical-0.6": {"lexical": 0.6},
}
