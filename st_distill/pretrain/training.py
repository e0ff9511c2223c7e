"""The transformers Trainer, for masked words: its order of rows, its loss, and what it measures on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_distill.pretrain.corpus import EpochSampler
from st_distill.pretrain.heads import places_of, predict
from st_distill.pretrain.masking import IGNORED
from st_distill.recipe.checkpoints import SealedCheckpoints
from st_distill.recipe.memory import TellsMemory

__all__ = ["MaskedWordTrainer"]


class MaskedWordTrainer(SealedCheckpoints, TellsMemory, Trainer):
    """A Trainer for rows that are masked already.

    The loss is the mean over all selected tokens of an optimiser step, however the step is cut into batches and devices.
    (Models of transformers are not of one mind here: BERT's ignores how many tokens the step has, and its loss would be
    summed over the batches of an accumulated step.)

    Args:
        measure: what an evaluation during training gives, ``{name: value}``; None where there is none.
        **options: the Trainer's own.
    """

    smaller = "a smaller 'device_batch', a smaller 'max_length'"

    def __init__(self, *, measure: Callable[[nn.Module], dict[str, float]] | None = None, **options: Any) -> None:
        # The Trainer wants to see that there is something to evaluate on; `measure` knows what.
        super().__init__(eval_dataset=[] if measure is not None else None, **options)
        self.measure = measure
        # The Trainer counts the selected tokens of a step, and leaves the loss as it is, where it is given one.
        self.compute_loss_func = functional.cross_entropy
        self.add_callback(_SetEpoch(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        self.order = EpochSampler(len(rows), seed=self.args.seed)
        return self.order

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        places, targets = places_of(inputs.pop("labels"), IGNORED)
        # A compiled model would be compiled anew for every number of tokens, and a replicated one has other places.
        in_parts = self.args.torch_compile or self.args.n_gpu > 1
        logits = predict(model, inputs, places, core=None if in_parts else self.accelerator.unwrap_model(model))
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        loss = total / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The gradients of the processes are averaged, and the tokens of all of them were counted.
            loss = loss * self.accelerator.num_processes
        return (loss, logits) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        if self.measure is None:
            raise ValueError("There is nothing to evaluate on: give the recipe an 'evaluation'.")
        was_training = self.model.training
        self.model.eval()
        measured = self.measure(self.model)
        self.model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _SetEpoch(TrainerCallback):
    """Tells the order of rows which epoch begins.

    Accelerate does so too, but not where it skips the batches of a run that is continued in several processes.
    """

    def __init__(self, trainer: MaskedWordTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        order = getattr(self.trainer, "order", None)
        if order is not None:
            batches = len(parts["train_dataloader"])
            order.epoch = state.global_step // max(1, -(-batches // args.gradient_accumulation_steps))
