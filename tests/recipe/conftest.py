"""What the tests that run recipes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sentence_transformers import SentenceTransformerTrainer

from st_distill.recipe import Recipe, runner


@pytest.fixture
def vision() -> dict[str, Any]:
    """The smallest vision encoder of a recipe: 1 layer, 16 wide, 32 x 32 pixels in 16 x 16 patches."""
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 16,
    }


@pytest.fixture
def run_and_interrupt(monkeypatch) -> Callable[[Recipe, int], None]:
    """A function that stops a run as Ctrl-C would, before a training step (counted from 0 over all stages)."""

    def interrupt(recipe: Recipe, step: int) -> None:
        original, count = SentenceTransformerTrainer.training_step, iter(range(1000))

        def training_step(self, *args, **kwargs):
            if next(count) == step:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(SentenceTransformerTrainer, "training_step", training_step)
            with pytest.raises(KeyboardInterrupt):
                runner.run(recipe, show_progress=False)

    return interrupt
