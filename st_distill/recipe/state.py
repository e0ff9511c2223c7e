"""What a run remembers of itself, so that it can be continued: which stages are done, and what determined them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from st_distill import __version__
from st_distill.checksums import RUN
from st_distill.files import (
    FolderLock,
    copy_of,
    differences,
    is_temporary,
    manifest,
    read_record,
    read_signed,
    restoring,
    write_record,
)
from st_distill.recipe.conversion import as_mapping
from st_distill.recipe.processes import STORE
from st_distill.recipe.schema import SHORTHAND_ARGUMENTS, Projection, Recipe, Stage, file_name
from st_distill.store.format import DESCRIPTION
from st_distill.teacher import Teacher

logger = logging.getLogger(__name__)

#: What a work folder may have in it before it has a record.
_BEGINNINGS = {FolderLock.NAME, STORE, "captions", "corpus", "pooled", "recipe.yaml", "stages", "start", "tokenizer"}
_FORMAT = "st-distill/run"
_VERSION = 1

#: Training arguments that may change between two starts of one run, because the result does not depend on them.
_FREE_ARGUMENTS = {
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "disable_tqdm",
    "fsdp",
    "fsdp_config",
    "deepspeed",
    "full_determinism",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "local_rank",
    "per_device_eval_batch_size",
    "report_to",
    "restore_callback_states_from_checkpoint",
    "run_name",
    "use_cpu",
    # The effective batch counts, in which these are.
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
}
_FREE_PREFIXES = (
    "dataloader_num",
    "dataloader_p",
    "ddp_",
    "hub_",
    "log",
    "project",
    "push_to_hub",
    "save_",
    "torch_",
)
#: Further ones that only matter where the best checkpoint is kept.
_BEST_PREFIXES = ("eval_", "metric_for_best", "greater_is_better")


def read_results(folder: Path) -> dict[str, Any]:
    """The ``results.json`` of a work folder: "results" and "environment"; empty where there is none yet.

    Raises:
        ValueError: it is damaged; the sentence says which command makes it again.
    """
    path = folder / "results.json"
    try:
        stored = read_signed(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{error} {results_remedy(folder)}") from error
    if not isinstance(stored, dict) or not all(
        isinstance(stored.get(key, {}), dict) for key in ("results", "environment")
    ):
        raise ValueError(f"The file {path} must hold a run's results. It does not. {results_remedy(folder)}")
    return stored


def results_remedy(folder: Path) -> str:
    """What brings a damaged ``results.json`` back: the run, which measures again what it has no results of."""
    verb = "pretrain" if (folder / "tokenizer").is_dir() else "run"
    command = f"st-distill {verb} {shlex.quote(str(folder / 'recipe.yaml'))} --resume"
    return f"Remove it, and measure again with: {command}"


def may_be_worked_in(folder: Path) -> bool:
    """Whether a run may have the folder for its own: it is not there, or empty, or an earlier run has written in it."""
    if not folder.exists():
        return True
    records = [folder / RUN, folder / STORE / DESCRIPTION]
    if any(path.is_file() for record in records for path in (record, copy_of(record))):
        return True
    # One that was killed early has neither yet, and one without teachers may have lost the first.
    lock = folder / FolderLock.NAME
    if lock.exists() and not (
        lock.is_file() and re.fullmatch(rb"(process \d+\n([^\n]*\n?)?)?", lock.read_bytes()[:100])
    ):
        return False
    return all(path.name in _BEGINNINGS or is_temporary(path.name) for path in folder.iterdir())


class RunState:
    """The ``run.json`` of a work folder.

    A stage is known by its determining fields: data, model, losses, optimiser and effective batch, and those of the
    stages before it. Device, logging and worker fields are not among them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RUN
        self.stages: list[dict[str, Any]] = []
        self.recipe: str | None = None
        """The sha256 of recipe.yaml; None where the recipe has Python objects, and no file."""
        self.begun_by: Any = __version__
        if not self.path.is_file() and copy_of(self.path).is_file():
            raise ValueError(f"The run in {folder} has lost its {self.path.name}. {restoring(self.path)}")
        if not self.path.is_file() and (folder / "stages").is_dir():
            # To begin anew would take the place of models that are there, or go on from checkpoints of who knows what.
            raise ValueError(
                f"The folder {folder} has the stages of a run, but has lost its {self.path.name}. Restore it, or remove "
                f"{folder / 'stages'} to do them again."
            )
        if self.path.is_file():
            stored = read_record(self.path)
            if (must := _what_it_must(stored)) is not None:
                remedy = "Choose another work folder, or remove this one."
                raise ValueError(
                    f"The file {self.path} must {must}. It does not. "
                    f"{remedy if good_copy(self.path) is None else restoring(self.path)}"
                )
            self.stages = stored["stages"]
            self.recipe, self.begun_by = stored.get("recipe"), stored.get("begun_by", __version__)

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    def write(self) -> None:
        written = {"format": _FORMAT, "version": _VERSION, "begun_by": self.begun_by, "recipe": self.recipe}
        write_record(self.path, {**written, "stages": self.stages})

    def stage_folder(self, index: int) -> Path:
        stage = self.stages[index]
        return self.folder / stage.get("folder", f"stages/{index + 1}-{stage['name']}")

    def plan(self, wanted: list[dict[str, Any]], *, from_stage: int | None, can_go_back: bool = True) -> None:
        """Take over the stages of the recipe: keep what is done and unchanged, drop what comes after ``from_stage``.

        Args:
            wanted: for each stage its name and its determining fields, as `stage_fields` gives them; and for pretraining, the
                only stage of its run, "folder": the work folder itself, ".".
            from_stage: number (from 1) of the first stage to do again.
            can_go_back: whether the user can ask for that.

        Raises:
            ValueError: where a stage that is kept has changed, naming the fields and the remedy.
        """
        keep = len(self.stages) if from_stage is None else from_stage - 1
        for index, (old, new) in enumerate(zip(self.stages[:keep], wanted)):
            changed = sorted(
                key for key in {*old["fields"], *new["fields"]} if old["fields"].get(key) != new["fields"].get(key)
            )
            if changed:
                shown = ", ".join(_change(key, old["fields"].get(key), new["fields"].get(key)) for key in changed[:5])
                more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
                again = f", do it again from there with --from-stage {index + 1}," if can_go_back else ""
                raise ValueError(
                    f"The run in {self.folder} was started with other fields for stage {index + 1} ('{old['name']}'): "
                    f"{shown}{more}. Continue it as it was{again} or choose a new output or work folder."
                )
        for index in range(min(keep, len(wanted)), len(self.stages)):
            if (folder := self.stage_folder(index)).exists():  # a checkpoint that stayed would be gone on from
                shutil.rmtree(folder)
        kept = [{**new, **old} for old, new in zip(self.stages[:keep], wanted)]
        self.stages = kept + [{**stage, "done": False} for stage in wanted[len(kept) :]]
        if not kept:
            self.begun_by = __version__
        if self.begun_by != __version__ and not all(stage["done"] for stage in self.stages):
            # Fields at their default are not among those that are compared.
            logger.warning(
                "The run in %s was begun by st-distill %s and goes on under %s: where that has another default for a field "
                "that the recipe leaves out, the stages that are left have it. Its changelog names such changes.",
                self.folder,
                _short(self.begun_by),
                __version__,
            )
        self.write()

    def finish(self, index: int, metrics: dict[str, Any]) -> None:
        """Enter a stage as done, with checksums of its model."""
        files = manifest(self.stage_folder(index) / "model")
        self.stages[index] |= {"done": True, "metrics": metrics, "files": files}
        self.write()

    def finished_model(self, index: int) -> Path:
        """Folder of the student after a stage (from 0) that is done.

        Raises:
            ValueError: it has changed since it was written; the sentence names what does the stage again.
        """
        folder = self.stage_folder(index) / "model"
        for name, what in differences(folder, self.stages[index].get("files", {})):
            raise ValueError(
                f"The model of stage {index + 1} is damaged: in {folder / name}, {what}. Restore it, or {self.again(index)}."
            )
        return folder

    def require_whole(self, model: Path) -> None:
        """As `finished_model`, of the folder of a student; of what no stage that is done has left, nothing is known."""
        for index, stage in enumerate(self.stages):
            if stage["done"] and os.path.realpath(self.stage_folder(index) / "model") == os.path.realpath(model):
                self.finished_model(index)

    def again(self, index: int) -> str:
        """What does a stage that is done (from 0) again, for a sentence about its model."""
        if "folder" in self.stages[index]:
            return "pretrain again in a new work folder"
        command = "" if self.recipe is None else f": st-distill run {shlex.quote(str(self.folder / 'recipe.yaml'))}"
        return f"do the stage again with{command} --resume --from-stage {index + 1}"


def good_copy(path: Path) -> dict[str, Any] | None:
    """What the second copy of a ``run.json`` says; None where it cannot be read, or does not describe a run either."""
    try:
        stored = read_signed(copy_of(path))
    except (OSError, ValueError):
        return None
    return stored if _what_it_must(stored) is None else None


def _what_it_must(stored: Any) -> str | None:
    """What a ``run.json`` must do and does not, for a sentence; None where it is as a run has written it."""
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT or stored.get("version") != _VERSION:
        return f"describe a run of version {_VERSION} of this format"
    return None if _are_stages(stored.get("stages")) else "list a run's stages"


def _are_stages(value: Any) -> bool:
    """Whether somebody, who may be a stranger, has described stages whose folders lie in that of the run."""
    kinds = {"name": str, "done": bool, "fields": dict, "files": dict, "metrics": dict}
    later: dict[str, Any] = {"files": {}, "metrics": {}}
    return isinstance(value, list) and all(
        isinstance(stage, dict)
        and all(isinstance((later | stage).get(key), kind) for key, kind in kinds.items())
        and not any(file_name(stage["name"]))
        and all(
            isinstance(file, dict) and {"bytes", "sha256"} <= file.keys() for file in (later | stage)["files"].values()
        )
        and ("folder" not in stage or (stage["folder"] == "." and len(value) == 1))
        for stage in value
    )


def stage_fields(recipe: Recipe, index: int, data: dict[str, str], *, processes: int = 1) -> dict[str, Any]:
    """The fields that determine the result of a stage by itself, flat, as JSON values.

    Args:
        recipe: the recipe.
        index: of the stage.
        data: name and fingerprint of each source of texts or images that the stage reads.
        processes: how many train together.
    """
    stage = recipe.stages[index]
    parts: dict[str, Any] = {"stage": _stage_part(stage, recipe.projection, processes), "data": data}
    if index == 0:
        teachers = [
            {
                key: value
                for key, value in as_mapping(teacher).items()
                if key not in ("device", "batch_size", "batch_tokens")
            }
            for teacher in recipe.teachers
        ]
        parts |= {
            "student": {
                key: value
                for key, value in as_mapping(recipe.student).items()
                if key not in ("attn_implementation", "export_max_seq_length", "too_long")
            },
            "teachers": teachers,
            "texts": [_source_part(source) for source in recipe.texts],
            "store_dtype": recipe.store_dtype,
            "projection": None if recipe.projection is None else as_mapping(recipe.projection),
            "seed": recipe.seed,
        }
    if stage.trains_vision and recipe.images is not None:
        parts["images"] = _source_part(recipe.images)
    return flat_fields(parts)


def flat_fields(parts: dict[str, Any]) -> dict[str, Any]:
    """Nested fields as flat ones with JSON values, ``{"stage.arguments.seed": 1}``."""
    return _flatten(json.loads(json.dumps(parts, default=_identity)))


def determining_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those training arguments that the result of a run depends on."""
    keeps_best = bool(arguments.get("load_best_model_at_end"))
    return {
        key: value
        for key, value in arguments.items()
        if key not in _FREE_ARGUMENTS
        and not key.startswith(_FREE_PREFIXES)
        and (keeps_best or not key.startswith(_BEST_PREFIXES))
    }


def fields_digest(stages: list[dict[str, Any]]) -> str:
    """Names what the first stages made: a digest of all their determining fields."""
    return hashlib.sha256(json.dumps([stage["fields"] for stage in stages], sort_keys=True).encode()).hexdigest()[:16]


def _stage_part(stage: Stage, projection: Projection | None, processes: int) -> dict[str, Any]:
    part = as_mapping(stage)
    arguments = stage.training_arguments()
    for key in (*SHORTHAND_ARGUMENTS, "name", "arguments", "gather_across_devices", "mini_batch_size", "length_parts"):
        part.pop(key, None)
    if processes > 1 and not stage.gather_across_devices:
        # The relations are then those within each process's rows, which one process with the joint batch has not.
        part["gather_across_devices"] = False
    part["effective_batch"] = stage.effective_batch(processes)
    part["arguments"] = determining_arguments(arguments)
    # As they are in effect, so that a run does not go on under other defaults than those it began with.
    part["losses"], part["cosine_dims"] = stage.weights(projection), stage.heads_of_cosine(projection)
    part["cosine_weights"] = stage.weights_of_cosine()
    return part


def _identity(value: Any) -> str:
    """A Python object of a recipe as a text that is the same in every process, unlike a function's own."""
    if isinstance(value, Teacher):
        return f"{value.label} ({value.revision})"
    if callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return str(value)


def _source_part(source: Any) -> dict[str, Any]:
    return {key: value for key, value in as_mapping(source).items() if key != "data"}


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flatten(inner, f"{prefix}.{key}" if prefix else key).items()
        }
    if isinstance(value, list) and any(isinstance(entry, (dict, list)) for entry in value):
        return {k: v for i, inner in enumerate(value) for k, v in _flatten(inner, f"{prefix}[{i}]").items()}
    return {prefix: value}


def _change(key: str, old: Any, new: Any) -> str:
    if key.startswith("data.") and old is not None and new is not None:
        return f"{key} (its content has changed)"  # the fields are digests
    return f"{key} (was {_short(old)}, is {_short(new)})"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
