"""What the folder of a run says of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_distill.errors import sentence
from st_distill.files import sha256
from st_distill.nearest import suggest_path
from st_distill.recipe.diagnose import all_findings, read_findings
from st_distill.recipe.load import load_record
from st_distill.recipe.progress import is_term
from st_distill.recipe.schema import Recipe
from st_distill.recipe.state import RunState, read_results

__all__ = ["Run", "read_run"]


@dataclass(frozen=True)
class StageRun:
    """A stage: its name, whether it is done, and the trainer's metrics and log (empty where it is not)."""

    name: str
    done: bool
    metrics: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]

    @property
    def terms(self) -> list[str]:
        """The terms that the stage's loss consists of, "loss" (their sum) before them."""
        keys = {key: None for entry in self.history for key in entry if "loss" in entry}
        return ["loss", *filter(is_term, keys)]


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        folder: its work folder.
        recipe: None where it held Python objects and was not written.
        recipe_text: its YAML.
        stages: in their order.
        results: what ``st_distill.evaluation.evaluate`` found; empty before the end of the run.
        environment: label to value, as of the end of the run; empty before.
        findings: what looked wrong, see `st_distill.recipe.diagnose.all_findings`.
        diagnosed: whether anything was looked for.
        recipe_changed: whether recipe.yaml is another one than the run wrote.
    """

    folder: Path
    recipe: Recipe | None
    recipe_text: str | None
    stages: tuple[StageRun, ...]
    results: Mapping[str, Any]
    environment: Mapping[str, str]
    findings: Sequence[Mapping[str, str]] = ()
    diagnosed: bool = False
    recipe_changed: bool = False

    def stage_model(self, index: int) -> Path:
        """Where stage ``index`` (from 0) left the student; the start is stage -1."""
        if index < 0:
            return self.folder / "start"
        return self.folder / "stages" / f"{index + 1}-{self.stages[index].name}" / "model"


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read the folder of a run.

    Args:
        path: its work folder, or the folder of the exported model with the work folder beside it under its default name.

    Raises:
        ValueError: for a folder that holds no run, or files in it that are none of a run's.
    """
    folder = Path(path)
    if not (folder / "run.json").is_file() and (_beside(folder) / "run.json").is_file():
        folder = _beside(folder)
    state = RunState(folder)
    if not state.exists:
        remedy = suggest_path(Path(path), _is_of_a_run) or (
            ": name the recipe's work folder, by default its output with -run behind it"
        )
        raise ValueError(
            sentence(f"The 'run' must be the work folder of a run, with a run.json. Got {path} instead{remedy}")
        )
    recipe_path = folder / "recipe.yaml"
    stored, found = read_results(folder), read_findings(folder)
    stages = []
    for stage in state.stages:
        metrics = dict(stage.get("metrics", {}))
        history = tuple(metrics.pop("history", []))
        stages.append(StageRun(str(stage["name"]), bool(stage["done"]), metrics, history))
    return Run(
        folder=folder,
        recipe=load_record(recipe_path) if recipe_path.is_file() else None,
        recipe_text=recipe_path.read_text(encoding="utf-8") if recipe_path.is_file() else None,
        stages=tuple(stages),
        results=stored.get("results", {}),
        environment=stored.get("environment", {}),
        findings=all_findings(found, state.stages),
        diagnosed=bool(found),
        recipe_changed=recipe_path.is_file() and state.recipe is not None and sha256(recipe_path) != state.recipe,
    )


def _beside(model: Path) -> Path:
    """The work folder of a run under its default name, beside the model that it exports."""
    model = Path(os.path.abspath(model))  # the current folder has a name too
    return model.parent / f"{model.name}-run"


def _is_of_a_run(folder: Path) -> bool:
    return any((place / "run.json").is_file() for place in (folder, _beside(folder)))
