"""What the tests of diagnoses share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from st_distill.diagnosis import DiagnosisCallback, Finding


@pytest.fixture(scope="session")
def texts(sentences) -> list[str]:
    """64 different texts, of which many share words."""
    return [f"{a} and {b}" for a in sentences[:8] for b in sentences[8:]]


@pytest.fixture
def vectors(make_student, texts) -> np.ndarray:
    """The tiny BERT's vectors of the texts, (64, 32)."""
    return make_student().encode(texts)


@pytest.fixture
def train(texts, vectors, tmp_path) -> Callable[..., list[Finding]]:
    """A function that trains a model on the texts with these vectors as labels, and returns what was found."""

    def run(model: SentenceTransformer, loss: Any, *, labels: Any = None, **arguments: Any) -> list[Finding]:
        told: list[Finding] = []
        diagnosis = DiagnosisCallback(tell=told.append)
        columns = {"text": texts, "label": (vectors if labels is None else labels).tolist()}
        options = {"max_steps": 16, "per_device_train_batch_size": 16, "logging_steps": 1, **arguments}
        args = SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, **options
        )
        trainer = SentenceTransformerTrainer(
            model=model, args=args, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[diagnosis]
        )
        trainer.train()
        assert told == diagnosis.findings
        assert not model._forward_hooks
        return told

    return run
