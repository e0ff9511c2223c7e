"""A step of training that does not fit in memory, told with what its user can change."""

from __future__ import annotations

from typing import Any

import torch

from st_distill.teacher.batches import is_out_of_memory

__all__ = ["TellsMemory"]


class TellsMemory:
    """Of a trainer: names the batch and what to do where a step runs out of memory, forward or backward.

    Attributes:
        smaller: the fields that make a step smaller, in words.
    """

    smaller = "a smaller 'batch' or 'mini_batch_size', a smaller 'max_seq_length' of the student"

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> torch.Tensor:
        """Raises torch.OutOfMemoryError with the batch's longest text and the remedy."""
        # Before the step, which takes the inputs apart.
        shapes = [value.shape for name, value in inputs.items() if name.endswith("input_ids") and value.dim() == 2]
        try:
            return super().training_step(model, inputs, *arguments, **options)  # type: ignore[misc]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or "does not fit in memory" in str(error):  # or the encoder has told it
                raise
            texts = "A step" + (f" of {sum(rows for rows, _ in shapes)} texts" if shapes else "")
            longest = f", the longest of {max(length for _, length in shapes)} tokens," if shapes else ""
            raise torch.OutOfMemoryError(
                f"{texts}{longest} does not fit in memory. Give {self.smaller}, or switch on gradient checkpointing "
                f"(arguments: {{gradient_checkpointing: true}}). ({str(error).splitlines()[0]})"
            ) from error
