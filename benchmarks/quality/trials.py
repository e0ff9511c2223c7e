"""Variants of the default recipe, tried on dev; docs/ablations.md has each one's prediction, measurement and verdict."""

from __future__ import annotations

from typing import Any

from benchmarks.quality.experiments import Experiment

_COSINE_ALONE = tuple(f"stages.{name}.losses={{cosine: 10}}" for name in ("projection", "last-layer", "all"))


def _every_stage(change: str) -> tuple[str, ...]:
    return tuple(f"stages.{name}.{change}" for name in ("projection", "last-layer", "all"))


#: Changes to `Settings` for each trial; overrides are those of ``st-distill run --set``. In the order of what they may gain.
TRIALS: dict[str, dict[str, Any]] = {
    "plain": {},
    # the stages
    "one-stage": {"stages": (("all", 1.0),)},
    "one-stage-cosine": {
        "stages": (("all", 1.0),),
        "overrides": ("stages.all.losses={cosine: 10}", "stages.all.cosine_dims=[384, 256, 128, 64, 32]"),
    },
    "one-stage-cosine-and-relations": {
        "stages": (("all", 1.0),),
        "overrides": ("stages.all.cosine_dims=[384, 256, 128, 64, 32]",),
    },
    "ridge-only": {"stages": (("projection", 1.0),), "steps": 1},
    # the rotation of the teacher's space
    "rotation-random": {"overrides": ("projection.rotation=random",)},
    "rotation-none": {"overrides": ("projection.rotation=none",)},
    "rotation-principal": {"overrides": ("projection.rotation=principal",)},
    # the relations
    "cosine-alone": {"overrides": _COSINE_ALONE},
    "cosine-every-prefix": {"overrides": _every_stage("cosine_dims=[384, 256, 128, 64, 32]")},
    "no-triplet": {"overrides": _every_stage("losses={cosine: 10, similarity: 200}")},
    "triplet-60": {"overrides": _every_stage("losses={cosine: 10, similarity: 200, triplet: 60}")},
    "margin-0": {"overrides": _every_stage("margin=0")},
    "margin-0.05": {"overrides": _every_stage("margin=0.05")},
    "similarity-800": {"overrides": _every_stage("losses={cosine: 10, similarity: 800, triplet: 20}")},
    "neighbours-1": {"experiment": Experiment(neighbours=1.0)},
    "neighbours-50": {"experiment": Experiment(neighbours=50.0)},
    "neighbours-alone": {
        "experiment": Experiment(neighbours=2.0),
        "overrides": _COSINE_ALONE,
    },
    "centred": {"experiment": Experiment(centred=True)},
    "relations-later": {"experiment": Experiment(relations_after=0.5)},
    "own-teacher": {"experiment": Experiment(own_teacher=True)},
    "prefix-power-0.5": {"experiment": Experiment(prefix_power=0.5)},
    "spread": {"experiment": Experiment(spread=20.0)},
    "teacher-head": {"overrides": ("projection.teacher_head=true",)},
    # vectors as bits
    "bits": {"overrides": _every_stage("bits=true")},
    # the student
    "layers-0-1-2": {"layers": (0, 1, 2)},
    "layers-0-3-5": {"layers": (0, 3, 5)},
    "layers-1-3-5": {"layers": (1, 3, 5)},
    # the optimiser
    "rate-1e-4": {"rate": 1e-4},
    "rate-6e-4": {"rate": 6e-4},
    "projection-rate": {"overrides": ("stages.all.arguments.learning_rate_mapping={linears: 3e-3}",)},
    "average": {"experiment": Experiment(average=0.3)},
    # the texts and the batches
    "random-batches": {"overrides": _every_stage("group_by_length=false")},
    "texts-strangers": {"texts": "strangers"},
    "texts-neighbours": {"texts": "neighbours"},
    "texts-shuffled": {"texts": "shuffled"},
    "texts-long": {"texts": "long"},
    "texts-short": {"texts": "short"},
    # two teachers
    "lexical-0.3": {"lexical": 0.3},
    "lexical-0.6": {"lexical": 0.6},
}
