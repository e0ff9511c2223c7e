"""The benchmark of a large student, at toy size: that it runs in every way a CPU can, and counts what torch counts."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu_student.py"
TOY = (
    *("--device", "cpu", "--layers", "2", "--hidden", "64", "--heads", "4", "--kv-heads", "2", "--intermediate", "128"),
    *("--vocabulary", "500", "--batch", "4", "--tokens", "16", "--teacher", "48", "--dims", "32", "16"),
    *("--steps", "2", "--warmup", "1"),
)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("gpu_student", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("more", [[], ["--gradient-checkpointing", "--precision", "float32", "--attention", "eager"]])
def test_it_runs(benchmark, more):
    options = benchmark.read_options([*TOY, *more])
    found = benchmark.measure(options)
    assert math.isfinite(found["loss"])
    assert found["tokens_per_second"] == pytest.approx(64 / found["seconds"])
    assert found["share_of_peak"] == pytest.approx(found["tflops"] / 989)
    assert found["gigabytes"] is None


def test_flops_known_by_hand(benchmark):
    config = Qwen2Config(
        hidden_size=4, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1
    )
    # 144 weights of linear maps; 3 tokens; 40 for the projection to 5; twice as many backward; 2 texts.
    assert benchmark.model_flops(config, batch=2, tokens=3, width=5) == 2 * 3 * (3 * (2 * 144 + 4 * 3 * 4) + 40)


def test_flops_are_those_that_torch_counts(benchmark):
    options = benchmark.read_options([*TOY, "--attention", "eager"])
    student = benchmark.make_student(options)
    ids = torch.ones(4, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        student({"input_ids": ids, "attention_mask": ids})["sentence_embedding"].sum().backward()
    counted = benchmark.model_flops(student[0].model.config, 4, 16, 32)
    # The first layer's inputs are weights' rows, and rotary tables are products too: within a few in a hundred.
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.03)
