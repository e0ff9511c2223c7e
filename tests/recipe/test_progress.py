from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler, PrinterCallback, ProgressCallback

from st_distill.recipe import progress
from st_distill.recipe.progress import StageProgress, show_progress_of

LOGS = {"loss": 4.25, "cosine": 1.0, "triplet": float("nan"), "grad_norm": 9.0, "learning_rate": 1e-4, "epoch": 0.5}


def state(step: int, *, main: bool = True) -> SimpleNamespace:
    # An epoch of 1,600 texts has 25 steps.
    return SimpleNamespace(global_step=step, epoch=step / 25, max_steps=3700, is_world_process_zero=main)


def told(monkeypatch, *, bar: bool = False, start: int = 0, main: bool = True) -> str:
    """What is written of a stage that takes two seconds a step."""
    clock = iter([100.0, 120.0, 140.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    callback = StageProgress("Stage 2 of 4, all", 64, 1600, bar=bar, unit="texts", stream=stream)
    callback.on_train_begin(None, state(start, main=main), None)
    for step in (10, 20):
        callback.on_step_end(None, state(start + step, main=main), None)
        callback.on_log(None, state(start + step, main=main), None, logs=LOGS)
    callback.on_log(None, state(start + 20, main=main), None, logs={"train_runtime": 40.0})
    callback.on_train_end(None, state(start + 20, main=main), None)
    return stream.getvalue()


def test_a_line_at_each_log(monkeypatch):
    assert told(monkeypatch).splitlines() == [
        "Stage 2 of 4, all: step 10 of 3,700, loss 4.25 (cosine 1), 32 texts/s, 2:03:00 left",
        "Stage 2 of 4, all: step 20 of 3,700, loss 4.25 (cosine 1), 32 texts/s, 2:02:40 left",
    ]


def test_a_stage_that_goes_on(monkeypatch):
    last = told(monkeypatch, start=3650).splitlines()[-1]
    assert last.startswith("Stage 2 of 4, all: step 3,670 of 3,700")
    assert last.endswith("32 texts/s, 1:00 left")


def test_a_bar_in_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = told(monkeypatch, bar=True)
    lines = [line.replace("\x1b[A", "").strip() for line in re.split("[\r\n]", shown)]
    assert any(re.fullmatch(r"Stage 2 of 4, all: +1%\|.*\| 20/3700 \[.*\]", line) for line in lines)
    assert "loss 4.25 (cosine 1), 32 texts/s" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("batch", "accumulation", "drop_last", "rate"),
    [(16, 4, False, 40), (4, 2, False, 40), (4, 3, False, 40), (16, 1, True, 32), (64, 1, False, 40)],
)
def test_the_rate_counts_what_was_seen(monkeypatch, tmp_path, batch, accumulation, drop_last, rate):
    """Forty rows, each epoch in a second: of batches that are not full, and of steps that have fewer batches."""

    class Zero(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * x).sum()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        num_train_epochs=3,
        logging_strategy="epoch",
        disable_tqdm=True,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        dataloader_drop_last=drop_last,
    )
    stream = io.StringIO()
    callback = StageProgress("Stage", batch, 40, bar=False, unit="texts", stream=stream)
    trainer = Trainer(Zero(), arguments, train_dataset=[{"x": 1.0}] * 40, callbacks=[callback])
    trainer.pop_callback(PrinterCallback)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: trainer.state.epoch or 0.0))
    trainer.train()
    rates = re.findall(r"([\d,]+) texts/s", stream.getvalue())
    assert rates == [str(rate)] * 3


def test_other_processes_are_silent(monkeypatch):
    assert told(monkeypatch, main=False) == ""


class NotebookProgressCallback(TrainerCallback):
    """What transformers shows in a notebook is of a class of this name, which needs IPython."""


@pytest.mark.parametrize(
    ("own", "added"), [(ProgressCallback, 1), (PrinterCallback, 1), (NotebookProgressCallback, 1), (TrainerCallback, 0)]
)
def test_only_what_the_trainer_prints_is_replaced(own, added):
    class Small:
        args = SimpleNamespace(disable_tqdm=True)
        callback_handler = CallbackHandler([own], None, None, None, None)
        pop_callback = Trainer.pop_callback
        add_callback = Trainer.add_callback

    trainer = Small()
    before = len(trainer.callback_handler.callbacks)
    show_progress_of(trainer, "Stage", 8, 16)
    shown = [kind for kind in trainer.callback_handler.callbacks if isinstance(kind, StageProgress)]
    assert len(shown) == added
    assert len(trainer.callback_handler.callbacks) == before
