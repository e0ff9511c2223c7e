"""A stage's checkpoints: sealed by checksums when they are complete, looked at before one is continued from."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from st_distill.errors import writing
from st_distill.files import differences, manifest, read_json, write_json
from st_distill.stopping import Stop, postponed

__all__ = [
    "SEAL",
    "SealedCheckpoints",
    "drop_damaged",
    "last_checkpoint",
    "numbered",
    "rotate",
    "seal",
    "what_is_wrong",
]

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.getLogger(__name__)

SEAL = "checksums.json"
"""The last file of a checkpoint: size and sha256 of all others."""


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is complete, and what its files are, which are flushed to the disk."""
    write_json(checkpoint / SEAL, manifest(checkpoint, without=[SEAL]))


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be continued from; None where it can.

    Raises:
        OSError: the disk does not give it now, which says nothing of what is on it.
    """
    try:
        sealed = read_json(checkpoint / SEAL)
        return next((f"{name}: {what}" for name, what in differences(checkpoint, sealed)), None)
    except FileNotFoundError:
        return "it was not written to its end"
    except (IsADirectoryError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{SEAL} cannot be read ({error})"


def drop_damaged(folder: Path) -> None:
    """Leave out the checkpoints that cannot be continued from.

    Those that were never complete are removed. One that was is put aside as ``damaged-checkpoint-N``, with a warning: its
    weights may be whole, and can be looked at until the stage is done.
    """
    for path in numbered(folder):
        what = what_is_wrong(path)
        if what is None:
            continue
        if not (path / SEAL).exists():
            shutil.rmtree(path)
            continue
        aside = path.with_name(f"damaged-{path.name}")
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
        logger.warning(
            "%s is damaged (%s) and is put aside as %s. The stage goes on at an earlier one, or begins again.",
            path,
            what,
            aside.name,
        )


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps."""
    found = numbered(folder)
    return found[-1] if found else None


def rotate(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove all but the last checkpoints, and the best one.

    By their steps: the trainer's own way goes by the time of change, which is of no use when the clock goes back.

    Args:
        folder: of the checkpoints.
        keep: how many; None or 0 for all.
        best: folder of the best one.
    """
    for path in numbered(folder)[: -keep if keep else 0]:
        if best is None or path.resolve() != Path(best).resolve():
            shutil.rmtree(path, ignore_errors=True)


def numbered(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their steps."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


class SealedCheckpoints(_Trainer):
    """To be put before a Trainer among the bases of a class: its checkpoints are sealed, and rotate by their steps."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with writing(Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = keep
        self.accelerator.wait_for_everyone()  # each process writes the state of its random numbers
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial))
            checkpoint = folder / f"checkpoint-{self.state.global_step}"
            # A pickle that nothing here reads, and that would hold a token if the arguments had one.
            (checkpoint / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            # Sealed before an older one goes: there is a whole one at every moment.
            seal(checkpoint)
            rotate(folder, keep, self.state.best_model_checkpoint)

    def train_in_order(self, last: Path | None) -> dict[str, Any]:
        """Train, from the checkpoint ``last`` on if there is one, and return the metrics.

        Raises:
            Stopped: SIGTERM or Ctrl-C came, in one process; there is a checkpoint of the step in which it came. Several
                processes would not all stop in the same step, and end at once.
        """
        resume = None if last is None else str(last)
        if self.args.world_size > 1:
            return dict(self.train(resume_from_checkpoint=resume).metrics)
        with postponed() as stop:
            self.add_callback(_StopInOrder(stop))
            metrics = dict(self.train(resume_from_checkpoint=resume).metrics)
        stop.raise_if_asked()
        return metrics


class _StopInOrder(TrainerCallback):
    """Ends the training after the step in which a signal came, with a checkpoint to go on from.

    Args:
        stop: knows whether a signal has come.
    """

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._stop.number is not None:
            control.should_save = True
            control.should_training_stop = True
        return control
