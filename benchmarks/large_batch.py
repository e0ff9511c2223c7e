"""One training step of a large batch with JasperDistill and GradCache: its time, the triplet term's part, peak memory.

    python benchmarks/large_batch.py --model sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/large_batch.py --model sentence-transformers/all-MiniLM-L6-v2 --device cuda --mini-batch-size 512

The teacher's vectors are random. The step is forward, backward, and AdamW. Peak memory is that of the whole process, or
with a GPU that of the device.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_distill import functional, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name or folder of the student")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--mini-batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = SentenceTransformer(options.model, device=options.device)
    model.max_seq_length = options.tokens
    texts = [f"{number} " + "word " * options.tokens for number in range(options.batch)]
    features = {
        name: value.to(options.device) if isinstance(value, Tensor) else value
        for name, value in model.preprocess(texts).items()
    }
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(options.batch, model.get_embedding_dimension(), generator=generator).to(options.device)
    loss = losses.JasperDistill(model, mini_batch_size=options.mini_batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    model.train()
    before = now(options.device)
    terms = loss([features], teacher)
    sum(terms.values()).backward()
    optimizer.step()
    step = now(options.device) - before
    peak = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # in kilobytes
        if options.device == "cpu"
        else torch.cuda.max_memory_allocated(options.device) / 1e9
    )

    student = torch.randn(teacher.shape, generator=generator).to(options.device).requires_grad_()
    before = now(options.device)
    functional.triplet_distill(student, teacher).backward()
    triplet = now(options.device) - before
    shape = tuple(features["input_ids"].shape)
    print(f"batch {shape[0]} x {shape[1]} tokens, {shape[0] * (shape[0] - 1) // 2} pairs: {step:.1f} s a step")
    print(f"triplet term, forward and backward: {triplet:.2f} s, {100 * triplet / step:.1f} % of the step")
    print(f"peak memory: {peak:.2f} GB")
    print(", ".join(f"{name} {value.item():.3f}" for name, value in terms.items()))


def now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
