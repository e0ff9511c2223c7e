"""A step of stage 3 for a large student: tokens a second, and the share of the chip's peak that is reached.

    python benchmarks/gpu_student.py --gradient-checkpointing                                  # 1.5B, one H100 or H200
    python benchmarks/gpu_student.py --gradient-checkpointing --attention flash_attention_2 --compile
    python benchmarks/gpu_student.py --device cpu --layers 2 --hidden 64 --heads 4 --kv-heads 2 --intermediate 128 \
        --vocabulary 500 --batch 4 --tokens 16 --teacher 48 --dims 32 16 --steps 2 --warmup 1  # here

The student has Qwen2-1.5B's configuration, random weights, and attention in both directions. A step is forward and backward
with `JasperDistill` (three dimensions, all weights trained), clipping and AdamW, over 128 texts of 512 tokens without padding;
weights and AdamW's state are float32, and with bf16 the forward pass is under autocast, as ``arguments: {bf16: true}`` of a
recipe has it. What the trainer does beside it is in benchmarks/overhead.py. FLOPs are the model's own (`model_flops`): what
gradient checkpointing computes a second time takes time and counts for nothing.

What was run where: at toy size on a CPU, by the tests. Nothing on a GPU yet: no figure of this script is known, and bf16,
FlashAttention and torch.compile on CUDA are untried here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

from st_distill import losses
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.rotation import random_rotation


class Encoder(nn.Module):
    """A transformers encoder without a tokenizer, as a module of sentence-transformers."""

    def __init__(self, model: Qwen2Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        states = self.model(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        return features | {"token_embeddings": states.last_hidden_state}

    def get_embedding_dimension(self) -> int:
        return self.model.config.hidden_size


def model_flops(config: Qwen2Config, batch: int, tokens: int, width: int) -> int:
    """Floating-point operations of the matrix products in one step, forward and backward.

    Two (a multiplication and an addition) for each weight of the layers' linear maps and each token; as many for each entry of
    the two products of attention, queries with keys and weights with values, which have tokens x tokens entries for each
    coordinate of the heads, since the student looks in both directions; and the projection, once a text. The backward
    pass has twice those of the forward pass (arXiv 2204.02311, appendix B). Left out, being small beside them: embeddings,
    norms, activations, losses, the optimiser.

    Args:
        config: of the student.
        batch: texts.
        tokens: of each text.
        width: outputs of the projection.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    weights = config.hidden_size * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    layer = tokens * (2 * weights + 4 * tokens * queries)
    forward = config.num_hidden_layers * layer + 2 * config.hidden_size * width
    return 3 * batch * forward


def make_student(options: argparse.Namespace) -> SentenceTransformer:
    """The student with random weights, on its device; its encoder is compiled where that is asked for."""
    config = Qwen2Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        intermediate_size=options.intermediate,
        max_position_embeddings=max(options.tokens, 512),
        is_causal=False,
        use_cache=False,
        attn_implementation=options.attention,
    )
    with torch.device(options.device):
        model = Qwen2Model(config)
    if options.gradient_checkpointing:
        # Renamed on the way through transformers 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if options.compile:
        model.compile()
    rotation = random_rotation(options.teacher, max(options.dims))
    modules = [
        Encoder(model),
        Pooling(config.hidden_size, pooling_mode="mean"),
        MatryoshkaProjection(config.hidden_size, options.dims, rotation=rotation),
    ]
    return SentenceTransformer(modules=modules, device=options.device)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step (median), tokens a second, TFLOP/s, the share of the peak, and the most memory on the device in GB."""
    torch.manual_seed(0)
    student = make_student(options).train()
    loss = losses.JasperDistill(student, dims=options.dims, length_parts=1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=options.device.startswith("cuda"))
    shape = (options.batch, options.tokens)
    ids = torch.randint(options.vocabulary, shape, device=options.device)
    labels = torch.randn(options.batch, options.teacher, device=options.device)
    seconds = []
    for step in range(options.warmup + options.steps):
        before = now(options.device)
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        device = torch.device(options.device).type
        with torch.autocast(device, torch.bfloat16) if options.precision == "bf16" else nullcontext():
            total = sum(loss([features], labels).values())
        total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= options.warmup:
            seconds.append(now(options.device) - before)
    middle = statistics.median(seconds)
    config = student[0].model.config
    tera = model_flops(config, *shape, max(options.dims)) / middle / 1e12
    on_gpu = options.device.startswith("cuda")
    return {
        "parameters": sum(weights.numel() for weights in student.parameters()),
        "seconds": middle,
        "tokens_per_second": options.batch * options.tokens / middle,
        "tflops": tera,
        "share_of_peak": tera / options.peak_tflops,
        "loss": total.item(),
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
    }


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Qwen2-1.5B's.
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--intermediate", type=int, default=8960)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dims", type=int, nargs="+", default=[1024, 512, 256])
    parser.add_argument("--teacher", type=int, default=12_288, help="dimensions of the teachers' vectors together")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are timed")
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    parser.add_argument("--attention", choices=("sdpa", "flash_attention_2", "eager"), default="sdpa")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile the encoder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="the chip's peak; 989 is H100's and H200's, bf16, dense"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = read_options()
    found = measure(options)
    print(
        f"{found['parameters'] / 1e6:.1f} million parameters, {options.batch} x {options.tokens} tokens, {options.precision}"
    )
    print(f"{found['seconds']:.3f} s a step (median of {options.steps}), {found['tokens_per_second']:.0f} tokens/s")
    print(f"{found['tflops']:.4g} TFLOP/s: {100 * found['share_of_peak']:.2g} % of {options.peak_tflops:g}")
    if found["gigabytes"] is not None:
        print(f"peak memory of the device: {found['gigabytes']:.1f} GB")


if __name__ == "__main__":
    main()
