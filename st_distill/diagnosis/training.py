"""What goes wrong while a model trains."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import TrainerCallback

from st_distill.diagnosis.finding import Finding
from st_distill.diagnosis.vectors import collapsed, not_a_number, untrained

__all__ = ["DiagnosisCallback"]

logger = logging.getLogger(__name__)

#: Steps of a training whose embeddings are looked at.
_CHECKS = 20
#: Embeddings of each that are kept.
_ROWS = 64
#: Checks in a row that must find a collapse: an untrained student starts with one.
_IN_A_ROW = 3
#: Entries of the log before anything is said of the loss.
_FEWEST = 8
#: Steps before a loss is called flat: over fewer the batches differ more than the student changes.
_FEWEST_STEPS = 50
#: Share of the loss that the training takes off, below which it is flat.
_FLAT = 0.005
#: Of the least loss so far: above it the loss has risen.
_RISEN = 1.25
#: A least loss below it counts as this much: a student at its optimum starts with next to nothing, and noise is many times it.
_LEAST = 1e-3


class DiagnosisCallback(TrainerCallback):
    """Tells in plain words, once each, what goes wrong in a training, in any SentenceTransformerTrainer.

    ```python
    diagnosis = DiagnosisCallback()
    SentenceTransformerTrainer(model=model, ..., callbacks=[diagnosis]).train()
    diagnosis.findings
    ```

    It looks at the log, and at twenty steps' embeddings and their gradients as the training makes them; nothing is encoded
    for it. Findings are named "not a number", "learning rate too high", "loss flat", "collapsed" and "dimension not
    trained", the last of them and "loss flat" at the end.

    Args:
        dimensions: whether a dimension without a gradient is a finding. Not where another training trains it.
        tell: called with each finding; default: a warning of the logger ``st_distill.diagnosis.training``.

    Raises:
        TypeError: for a ``tell`` that cannot be called.
    """

    def __init__(self, *, dimensions: bool = True, tell: Callable[[Finding], None] | None = None) -> None:
        if tell is not None and not callable(tell):
            raise TypeError(f"The 'tell' must be a function of a Finding, or None. Got {tell!r} instead.")
        self.findings: list[Finding] = []
        self._dimensions = dimensions
        self._tell = tell or (lambda finding: logger.warning("%s", finding))
        self._forget()

    def _forget(self) -> None:
        self._losses: list[float] = []
        self._rates: list[float | None] = []
        self._handle: Any = None
        self._looks = False
        self._rows: list[Tensor] = []
        self._kept = 0
        self._alike = 0
        self._width: int | None = None
        self._trained: dict[int, Tensor] = {}

    # --- the trainer's events ----------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._forget()
        # A compiled model would be compiled anew for a hook.
        if isinstance(model, SentenceTransformer) and state.is_world_process_zero and not args.torch_compile:
            self._width = model.get_embedding_dimension()
            self._handle = model.register_forward_hook(self._see)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = max(1, state.max_steps // _CHECKS)
        self._looks = self._handle is not None and (state.global_step + 1) % every == 0
        self._rows, self._kept = [], 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._looks:
            return
        self._looks = False
        if self._rows:
            self._judge(torch.cat(self._rows), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm") or 0.0)
        if not math.isfinite(loss):
            self._add(not_a_number(f"the loss at step {state.global_step:,} is {loss}"))
            return
        # The trainer leaves losses that are no numbers out of its log; the gradients' norm is there. Half precision leaves a
        # step out now and then, which is as it should be.
        if not math.isfinite(norm) and not args.fp16:
            self._add(not_a_number(f"the norm of the gradients at step {state.global_step:,} is {norm}"))
            return
        self._losses.append(loss)
        self._rates.append(logs.get("learning_rate"))
        self._judge_rise(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if not state.is_world_process_zero:
            return
        self._judge_rise(state.global_step, ended=True)
        wrong = {finding.name for finding in self.findings}
        if not wrong & {"not a number", "learning rate too high"}:
            self._judge_flatness(state)
        if self._dimensions:
            self._judge_dimensions()

    # --- embeddings --------------------------------------------------------------------------------------------------

    def _see(self, model: Any, inputs: Any, features: Any) -> None:
        embeddings = features.get("sentence_embedding") if isinstance(features, Mapping) else None
        if not self._looks or not isinstance(embeddings, Tensor) or embeddings.ndim != 2:
            return
        if self._kept < _ROWS and (not self._rows or self._rows[0].shape[1] == embeddings.shape[1]):
            self._rows.append(embeddings.detach()[: _ROWS - self._kept].float())
            self._kept += len(self._rows[-1])
        if embeddings.requires_grad:
            embeddings.register_hook(self._see_gradient)

    def _see_gradient(self, gradient: Tensor) -> None:
        width = gradient.shape[1]
        has_gradient = (gradient != 0).any(dim=0)
        before = self._trained.get(width)
        self._trained[width] = has_gradient if before is None else before | has_gradient

    def _judge(self, embeddings: Tensor, step: int) -> None:
        embeddings = embeddings.cpu()
        if not embeddings.isfinite().all():
            self._add(not_a_number(f"the embeddings of step {step:,} hold NaN or infinity"))
            return
        different = torch.unique(embeddings, dim=0)
        if len(embeddings) < 4:
            return
        # Texts of one batch may be equal; embeddings that all are have collapsed.
        found = collapsed(different if len(different) > len(embeddings) // 2 else embeddings, None, f"step {step:,}'s")
        self._alike = self._alike + 1 if found else 0
        if self._alike == _IN_A_ROW:
            self._add(found[0])

    def _judge_dimensions(self) -> None:
        if not self._trained:
            return
        widest = max([*self._trained, self._width or 0])
        trained = torch.zeros(widest, dtype=torch.bool)
        for width, mask in self._trained.items():
            trained[:width] |= mask.cpu()
        if trained.any() and not trained.all():
            self._add(untrained(~trained, "the embeddings", "had no gradient at any step that was looked at"))

    # --- the loss ----------------------------------------------------------------------------------------------------

    def _judge_rise(self, step: int, *, ended: bool = False) -> None:
        rise = _rise(self._losses, ended=ended)
        if rise is None:
            return
        rates = [rate for rate in self._rates if rate is not None]
        rate = f", at a learning rate of up to {max(rates):.2g}" if rates else ""
        self._add(
            Finding(
                name="learning rate too high",
                seen=f"the loss was {rise[0]:.4g} and is {rise[1]:.4g} at step {step:,}{rate}",
                means="each step undoes more than it improves, and the student forgets what it knew",
                remedy="take a third of the learning rate, and warm up (warmup_steps: 0.1)",
            )
        )

    def _judge_flatness(self, state: Any) -> None:
        if len(self._losses) < _FEWEST or state.global_step < _FEWEST_STEPS:
            return
        first, last = _quarters(self._losses)
        fall = statistics.fmean(first) - statistics.fmean(last)
        if fall > _FLAT * abs(statistics.fmean(first)):
            return
        self._add(
            Finding(
                name="loss flat",
                seen=f"the loss was {statistics.fmean(first):.4g} in the first quarter of {state.global_step:,} steps and "
                f"{statistics.fmean(last):.4g} in the last",
                means="the training has changed next to nothing, or the student was as good before as this training makes it",
                remedy="take three times the learning rate; see that what is trained is not frozen, and that the labels belong "
                "to the texts; where the student starts from a ridge regression, leave this stage out",
            )
        )

    def _add(self, finding: Finding) -> None:
        if all(known.name != finding.name for known in self.findings):
            self.findings.append(finding)
            self._tell(finding)


def _quarters(losses: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    count = max(2, len(losses) // 4)
    return losses[:count], losses[-count:]


def _rise(losses: Sequence[float], *, ended: bool = False) -> tuple[float, float] | None:
    """The least mean of four entries in a row and that of the last four, where the loss has risen and does not fall again.

    Where the training has ended, it falls no further.
    """
    if len(losses) < _FEWEST:
        return None
    means = [statistics.fmean(losses[place : place + 4]) for place in range(len(losses) - 3)]
    # The first entry is of one step, before anything was learnt.
    least, now = min([losses[0], *means]), means[-1]
    falls = not ended and now < 0.9 * means[-5]
    is_noise = now - least <= 2 * statistics.pstdev(losses[-4:])
    return (least, now) if least > 0 and now > _RISEN * max(least, _LEAST) and not falls and not is_noise else None
