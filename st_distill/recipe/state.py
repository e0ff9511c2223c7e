"""What a run remembers of itself, so that it can be continued: which stages are done, and what determined them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from st_distill import __version__
from st_distill.checksums import CHECKED, EDITABLE, STAGE
from st_distill.files import copy_of, describe, is_temporary, manifest, read_signed, write_json, write_record
from st_distill.locks import FolderLock
from st_distill.recipe.conversion import as_mapping
from st_distill.recipe.processes import STORE
from st_distill.recipe.schema import SHORTHAND_ARGUMENTS, Projection, Recipe, Stage
from st_distill.records import FORMAT, RUN, VERSION, RunRecord, by_command
from st_distill.store.format import DESCRIPTION
from st_distill.teacher import Teacher

logger = logging.getLogger(__name__)

#: What a work folder may have in it before it has a record.
_BEGINNINGS = {FolderLock.NAME, STORE, "captions", "corpus", "pooled", "recipe.yaml", "stages", "start", "tokenizer"}

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
#: Fields that runs begun by an earlier version have not noted, and go on without.
_NOTED_SINCE = {"data.student", "data.encoder", "data.tokenizer"}


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
    return f"Remove it, and measure again {by_command(folder)}"


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


class RunState(RunRecord):
    """The ``run.json`` of a work folder.

    A stage is known by its determining fields: data, model, losses, optimiser and effective batch, and those of the
    stages before it. Device, logging and worker fields are not among them.
    """

    @property
    def has_begun(self) -> bool:
        """Whether there is work that depends on the recipe's fields: a stage that has written something, or pretraining."""
        return any("folder" in stage or self.stage_folder(index).exists() for index, stage in enumerate(self.stages))

    def write(self) -> None:
        written = {"format": FORMAT, "version": VERSION, "begun_by": self.begun_by, "recipe": self.recipe}
        write_record(self.path, {**written, "stages": self.stages})

    def plan(self, wanted: list[dict[str, Any]], *, from_stage: int | None, can_go_back: bool = True) -> None:
        """Take over the stages of the recipe: keep what is done and unchanged, drop what comes after ``from_stage``.

        Of a run that has not begun nothing is kept: what may be in its folder are the teachers' vectors, each known by its
        text, and a start that is known by its fields.

        Args:
            wanted: for each stage its name and its determining fields, as `stage_fields` gives them; and for pretraining, the
                only stage of its run, "folder": the work folder itself, ".".
            from_stage: number (from 1) of the first stage to do again.
            can_go_back: whether the user can ask for that.

        Raises:
            ValueError: where a stage that is kept has changed, naming the fields and the remedy, or is damaged and further
                ones would be removed.
        """
        if not self.has_begun:
            self.stages = []
        if self.stages and ("folder" in self.stages[0]) != (
            "folder" in wanted[0]
        ):  # which may be the work folder itself
            kind = "pretraining" if "folder" in self.stages[0] else "run of stages"
            raise ValueError(f"The folder {self.folder} is that of a {kind}. Choose a new output or work folder.")
        keep = len(self.stages) if from_stage is None else from_stage - 1
        for index, (old, new) in enumerate(zip(self.stages[:keep], wanted)):
            changed = sorted(
                key
                for key in {*old["fields"], *new["fields"]} - (_NOTED_SINCE - old["fields"].keys())
                if old["fields"].get(key) != new["fields"].get(key)
            )
            if changed:
                shown = ", ".join(_change(key, old["fields"].get(key), new["fields"].get(key)) for key in changed[:5])
                more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
                again = f", do it again from there with --from-stage {index + 1}," if can_go_back else ""
                raise ValueError(
                    f"The run in {self.folder} was started with other fields for stage {index + 1} ('{old['name']}'): "
                    f"{shown}{more}. Continue it as it was{again} or choose a new output or work folder."
                )
        first = min(keep, len(wanted))
        if 0 < first < len(self.stages) and self.stages[first - 1]["done"]:
            self.finished_model(first - 1)  # nothing is removed where there is nothing whole to go on from
        for index in range(first, len(self.stages)):
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
        stage, model = self.stages[index], self.stage_folder(index) / "model"
        files = manifest(model, without=EDITABLE)
        if "folder" not in stage:  # a pretrained encoder notes its own where it is exported
            write_json(model / STAGE, {"stage": stage["name"], CHECKED: files})
            files[STAGE] = describe(model / STAGE)._asdict()
        stage |= {"done": True, "metrics": metrics, "files": files}
        self.write()


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
