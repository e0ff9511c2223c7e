from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MatryoshkaLoss
from torch import nn

from st_distill import losses
from st_distill.diagnosis import DiagnosisCallback
from st_distill.modules import MatryoshkaProjection


@pytest.fixture
def student(make_student):
    """A student that has forgotten a part of what its teacher, the same tiny BERT, knows."""
    model = make_student()
    with torch.no_grad():
        for parameter in model[0].model.encoder.layer[1].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_a_healthy_training_has_no_findings(train, student):
    assert train(student, losses.JasperDistill(student), learning_rate=1e-3) == []


def test_a_learning_rate_that_is_too_high_and_what_it_makes_of_the_embeddings(train, student):
    high, collapsed = sorted(
        train(student, losses.JasperDistill(student), learning_rate=0.3, max_steps=24),
        key=lambda finding: finding.name,
        reverse=True,
    )
    assert high.name == "learning rate too high"
    assert re.search(r"the loss was 0\.\d+ and is \d\.\d+ at step \d+, at a learning rate of up to 0\.\d+", high.seen)
    assert collapsed.name == "collapsed"
    assert "of 16 texts are 0.99" in collapsed.seen


def test_a_flat_loss(train, student):
    (flat,) = train(student, losses.JasperDistill(student), learning_rate=1e-9, max_steps=50)
    assert flat.name == "loss flat"
    assert "first quarter of 50 steps" in flat.seen
    assert "learning rate" in flat.remedy


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ({"logging_nan_inf_filter": False}, "the loss at step 5 is nan"),
        # The trainer leaves NaN out of the loss that it logs, unless it is told not to.
        ({}, "the norm of the gradients at step 5 is nan"),
        ({"logging_steps": 100}, "the embeddings of step 6 hold NaN or infinity"),
    ],
)
def test_a_loss_that_is_no_number(train, student, arguments, seen):
    class Broken(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.steps = model, 0

        def forward(self, features, labels):
            self.steps += 1
            embeddings = self.model(next(iter(features)))["sentence_embedding"]
            return embeddings.sum() * (float("nan") if self.steps > 4 else 1.0)

    (found,) = train(student, Broken(student), learning_rate=1e-6, max_steps=8, **arguments)
    assert (found.name, found.seen) == ("not a number", seen)


def test_dimensions_without_a_gradient_are_found_whatever_trains_the_others(train, make_student):
    model = make_student()
    model.append(MatryoshkaProjection(32, [24, 8]))
    (found,) = train(model, losses.SimilarityDistill(model, dims=[8]), learning_rate=1e-3)
    assert found.name == "dimension not trained"
    assert "16 of the 24 dimensions of the embeddings (8 to 23, from 0) had no gradient" in found.seen
    model = make_student()
    found = train(model, MatryoshkaLoss(model, EmbedDistillLoss(model), [4]), learning_rate=1e-3)
    assert "28 of the 32 dimensions of the embeddings (4 to 31, from 0)" in found[-1].seen


def test_gradient_caching_shows_the_same(train, make_student):
    model = make_student()
    model.append(MatryoshkaProjection(32, [24, 8]))
    loss = losses.SimilarityDistill(model, dims=[8], mini_batch_size=4)
    (found,) = train(model, loss, learning_rate=1e-3)
    assert "16 of the 24 dimensions" in found.seen


def logged(*values: float, callback: DiagnosisCallback | None = None, norm: float = 1.0, every: int = 10) -> list[str]:
    """What is found in a log of these losses, one every so many steps."""
    callback = callback or DiagnosisCallback()
    args = SimpleNamespace(fp16=False, torch_compile=False)
    state = SimpleNamespace(global_step=0, max_steps=len(values), is_world_process_zero=True)
    callback.on_train_begin(args, state, None)
    for entry, value in enumerate(values, start=1):
        state.global_step = entry * every
        callback.on_log(args, state, None, logs={"loss": value, "grad_norm": norm, "learning_rate": 1e-4})
    callback.on_train_end(args, state, None)
    return [finding.name for finding in callback.findings]


def test_what_a_log_says():
    assert logged(*[1.0 - 0.01 * step for step in range(40)]) == []
    assert logged(*[1.0, 3.0, 2.5, 2.0, 1.5, 1.2, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5]) == []  # it comes back
    assert logged(*[1.0] * 7) == []  # too few to say
    assert logged(*[1.0] * 8) == ["loss flat"]
    assert logged(*[1.0] * 8, every=6) == []  # 48 steps
    assert logged(*[1.0, 2.0] * 10) == ["loss flat"]
    assert logged(*[2.0, 1.0, 0.5, 0.4, 0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]) == ["learning rate too high"]
    assert logged(*[4e-6, 2e-5, 4e-5, 6e-5, 7e-5, 8e-5, 9e-5, 1e-4, 1e-4], every=4) == []  # it was at its optimum
    # It falls again from its height, and the end comes before it is where it was.
    assert logged(*[0.5, 0.6, 20.0, 108.0, 90.0, 75.0, 62.0, 50.0, 41.0, 34.0]) == ["learning rate too high"]
    assert logged(1.0, float("inf")) == ["not a number"]
    assert logged(1.0, 0.9, norm=float("nan")) == ["not a number"]


def test_a_finding_is_told_once_and_by_the_logger(caplog):
    callback = DiagnosisCallback()
    with caplog.at_level(logging.WARNING):
        assert logged(1.0, float("nan"), float("nan"), callback=callback) == ["not a number"]
    (record,) = caplog.records
    assert record.getMessage().startswith("not a number: the loss at step 20 is nan. That means: training has left")
    assert ". What to do: lower the learning rate" in record.getMessage()


def test_what_tells_nothing():
    with pytest.raises(TypeError, match="The 'tell' must be a function of a Finding, or None. Got 'print' instead"):
        DiagnosisCallback(tell="print")
