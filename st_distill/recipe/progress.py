"""What a stage says of itself while it trains: a bar in a terminal, a line at each log in a file, a notebook, a CI's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sized
from typing import Any, TextIO

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from st_distill.progress import duration

__all__ = ["StageProgress", "is_term", "show_progress_of"]

#: What a trainer logs with the loss beside its terms.
_NO_TERM = {"loss", "grad_norm", "learning_rate", "epoch", "step", "num_input_tokens_seen", "total_flos"}


def is_term(name: str) -> bool:
    """Whether what a trainer logs with a stage's loss is one of the terms that the loss is the sum of."""
    return name not in _NO_TERM and not name.startswith("eval_")


def show_progress_of(trainer: Any, title: str, batch: int, inputs: int, unit: str = "rows") -> None:
    """Put `StageProgress` in the place of the trainer's own bar, table or prints, which have no terms and no rate.

    Args:
        trainer: a Trainer.
        title: of the stage, such as "Stage 2 of 4, all".
        batch: texts, pictures or rows of a batch, in all processes together.
        inputs: those of the stage's data.
        unit: what these are.
    """
    # A notebook's table is of a class that cannot be imported without IPython.
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    own = [ProgressCallback, PrinterCallback, *(kind for kind in kinds if kind.__name__ == "NotebookProgressCallback")]
    replaced = [trainer.pop_callback(kind) for kind in own]
    if any(replaced):
        bar = not trainer.args.disable_tqdm and sys.stderr.isatty()
        trainer.add_callback(StageProgress(title, batch, inputs, unit=unit, bar=bar))


class StageProgress(TrainerCallback):
    """One look tells stage, step, terms of the loss, texts per second and the time left.

    Args:
        title: of the stage.
        batch: texts, pictures or rows of a full batch, in all processes together.
        inputs: those of the stage's data.
        bar: a bar that moves and a line below it, for a terminal. Otherwise a line at each log of the trainer, for a file, a
            notebook or a CI's log.
        unit: what the inputs are.
        stream: where to; default: the standard error stream.
    """

    def __init__(
        self, title: str, batch: int, inputs: int, *, bar: bool, unit: str = "rows", stream: TextIO | None = None
    ) -> None:
        self.title, self.batch, self.inputs, self.unit = title, batch, inputs, unit
        self.bar, self.stream = bar, stream
        self._bar: Any = None
        self._line: Any = None
        self._begin = (0.0, 0, 0.0)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, train_dataloader: Sized | None = None, **kwargs: Any
    ) -> None:
        # A stage that is continued does not count the steps of its earlier run.
        self._begin = (time.monotonic(), state.global_step, state.epoch or 0.0)
        if train_dataloader is not None:
            # Incomplete batches may be left out, and so may much of the larger of several datasets.
            self.inputs = min(self.inputs, len(train_dataloader) * self.batch)
        if self.bar and state.is_world_process_zero:
            self._bar = tqdm(
                desc=self.title,
                total=state.max_steps,
                initial=state.global_step,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
                dynamic_ncols=True,
                file=self.stream,
            )
            # A line of its own below the bar: beside it the terms would be cut off in a terminal of 80 columns.
            self._line = tqdm(bar_format="{desc}", dynamic_ncols=True, file=self.stream, position=1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        seconds = time.monotonic() - self._begin[0]
        steps = state.global_step - self._begin[1]
        rate = steps / seconds if seconds > 0 else 0.0
        told = [_terms(logs)]
        if rate > 0:
            # By the epochs, since the last step of each accumulates what batches are left, and the last batch is shorter.
            seen = ((state.epoch or 0.0) - self._begin[2]) * self.inputs
            told.append(f"{seen / seconds:,.0f} {self.unit}/s")
        if self._bar is not None:
            self._line.set_description_str(", ".join(told))
            return
        if rate > 0:
            told.append(f"{duration((state.max_steps - state.global_step) / rate)} left")
        stream = self.stream or sys.stderr
        stream.write(f"{self.title}: step {state.global_step:,} of {state.max_steps:,}, {', '.join(told)}\n")
        stream.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._line.close()
            self._bar.close()
            self._bar = self._line = None


def _terms(logs: Mapping[str, Any]) -> str:
    terms = [
        f"{name} {value:.3g}"
        for name, value in logs.items()
        if is_term(name) and isinstance(value, (int, float)) and value == value
    ]
    total = f"loss {float(logs['loss']):.4g}"
    return f"{total} ({', '.join(terms)})" if terms else total
