"""The trainer of a stage: sentence-transformers' own, but for batches of several processes, and for students in 4 bits."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainer
from torch import nn
from torch.utils.data import BatchSampler

from st_distill.exporting import load_student
from st_distill.recipe.adapters import load_adapters
from st_distill.recipe.checkpoints import SealedCheckpoints
from st_distill.recipe.memory import TellsMemory
from st_distill.recipe.patterns import matching
from st_distill.recipe.quantized import is_quantized

__all__ = ["StageTrainer"]


class StageTrainer(SealedCheckpoints, TellsMemory, SentenceTransformerTrainer):
    """A SentenceTransformerTrainer whose processes share each joint batch out among themselves.

    The library's own way is that every process takes another batch of the sampler. Of several datasets the processes would
    then be on different ones in the same step, with different losses, whose gathering would never meet; and what a sampler
    arranges within a batch (texts of like length, no duplicates) would not hold for the joint one.
    """

    def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
        joint = super().get_batch_sampler(dataset, batch_size * self.args.world_size, drop_last, **options)
        return joint if isinstance(self.train_dataset, dict) else self._shared_out(joint)

    def get_multi_dataset_batch_sampler(self, dataset: Any, batch_samplers: list[Any], **options: Any) -> Any:
        joint = super().get_multi_dataset_batch_sampler(dataset, batch_samplers, **options)
        return self._shared_out(joint)

    def _shared_out(self, joint: Any) -> Any:
        return _Parts(joint, self.args.world_size) if self.args.world_size > 1 else joint

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        # The library looks for a pattern as long as that takes, which may be for ever: it is given the names that are found.
        rates, args = args.learning_rate_mapping, copy.copy(args)
        losses = nn.Sequential(OrderedDict(self.loss)) if isinstance(self.loss, dict) else self.loss
        names = [name for name, _ in losses.named_parameters()] if rates else []
        args.learning_rate_mapping = {_any_of(pattern, names): rate for pattern, rate in rates.items()}
        return super().get_optimizer_cls_and_kwargs(args, model)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        if not any(is_quantized(module) for module in self.model.modules()):
            super()._load_from_checkpoint(checkpoint_path)
            load_adapters(self.model, Path(checkpoint_path))
            return
        # The checkpoint's weights are whole where the model's are in 4 bits, and have not been trained: only the rest counts.
        own = self.model.state_dict()
        stored = load_student(checkpoint_path).state_dict()
        trained = {
            name: value
            for name, value in stored.items()
            if name in own and ("lora_" in name or not name.startswith("0."))
        }
        self.model.load_state_dict(trained, strict=False)
        load_adapters(self.model, Path(checkpoint_path))


def _any_of(pattern: str, names: list[str]) -> str:
    """The pattern of those names that a pattern of ``learning_rate_mapping`` is found in."""
    if not (found := matching(pattern, names)):
        raise ValueError(
            f"The pattern {pattern!r} of learning_rate_mapping must be found in a parameter's name, such as {names[0]!r}. "
            "It is in none: mend it or leave it out."
        )
    return f"^(?:{'|'.join(map(re.escape, found))})$"


class _Parts(BatchSampler):
    """Each full batch of ``joint`` as ``count`` batches in a row, of which accelerate gives every process one."""

    def __init__(self, joint: Any, count: int) -> None:
        self.joint = joint
        self.count = count
        self.batch_size = joint.batch_size // count
        self.drop_last = True

    # Accelerate puts a sampler of its own in the place of a random one, in one process as in several.
    @property
    def sampler(self) -> Any:
        return self.joint.sampler

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.joint.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.joint, "set_epoch"):
            self.joint.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.joint:
            if len(batch) == self.count * self.batch_size:
                for start in range(0, len(batch), self.batch_size):
                    yield batch[start : start + self.batch_size]

    def __len__(self) -> int:
        return self.count * len(self.joint)
