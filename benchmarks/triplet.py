"""The exact triplet term: time against all pairs of pairs in a matrix, memory, growth with the batch, several prefixes.

    python benchmarks/triplet.py
    python benchmarks/triplet.py --device cuda

Every time is forward and backward, from the vectors to the student's gradient, the teacher's part included.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_distill import functional, losses

MARGIN = 0.015
WIDTH, TEACHER_WIDTH = 384, 1024
DIMS = [384, 256, 128, 64, 32]


def vectors(batch: int, device: str) -> tuple[Tensor, Tensor]:
    """A student that has learned some of its teacher."""
    generator = torch.Generator().manual_seed(batch)
    teacher = torch.randn(batch, TEACHER_WIDTH, generator=generator)
    student = teacher[:, :WIDTH] + 0.5 * torch.randn(batch, WIDTH, generator=generator)
    return student.to(device).requires_grad_(), teacher.to(device)


def all_pairs_of_pairs(student: Tensor, teacher: Tensor) -> Tensor:
    """What the term is, written down as it reads: a (P, P) matrix of hinges, and one of what the teacher ranks strictly."""
    row, column = torch.triu_indices(len(student), len(student), offset=1, device=student.device)
    student, teacher = nn.functional.normalize(student), nn.functional.normalize(teacher)
    similarity, target = (student @ student.T)[row, column], (teacher @ teacher.T)[row, column]
    strict = target[:, None] > target[None, :]
    hinges = torch.relu(similarity[None, :] - similarity[:, None] + MARGIN)
    return (hinges * strict).sum() / strict.sum()


def exact(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.triplet_distill(student, teacher, MARGIN)


def milliseconds(step: Callable[[], Tensor], device: str, seconds: float, least: int = 3) -> float:
    """Median time of forward and backward, of as many as fit into ``seconds`` after the first."""
    times: list[float] = []
    step().backward()
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        _synchronize(device)
        before = time.perf_counter()
        step().backward()
        _synchronize(device)
        times.append(1000 * (time.perf_counter() - before))
    return statistics.median(times)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak_megabytes(objective: Callable[[Tensor, Tensor], Tensor], batch: int, device: str) -> float:
    """Memory that forward and backward need beyond their inputs, at their peak (on the device, or of the process)."""
    objective(*vectors(16, device)).backward()
    student, teacher = vectors(batch, device)
    student.grad = torch.zeros_like(student)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        objective(student, teacher).backward()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # so that no memory freed earlier hides what is needed now
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    objective(student, teacher).backward()
    return (_status("VmHWM") - before) / 1e3


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def in_a_new_process(objective: str, options: argparse.Namespace, batch: int) -> float:
    command = [sys.executable, __file__, "--device", options.device, "--threads", str(options.threads)]
    done = subprocess.run([*command, "--memory", objective, str(batch)], check=True, capture_output=True, text=True)
    return float(done.stdout)


class Given(nn.Module):
    """A model whose embeddings are its inputs, so that a loss is all that is timed."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self) -> int:
        return WIDTH


def prefixes(batch: int, options: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of one TripletDistill over all prefixes, and of one for each."""
    model = SentenceTransformer(modules=[Given()], device=options.device)
    student, teacher = vectors(batch, options.device)

    def timed(dims: list[int]) -> float:
        loss = losses.TripletDistill(model, dims=dims)
        return milliseconds(lambda: loss([{"vectors": student}], teacher), options.device, options.seconds)

    return timed(DIMS), sum(timed([dim]) for dim in DIMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="time given to each figure")
    parser.add_argument("--memory", nargs=2, metavar=("OBJECTIVE", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    objectives = {"exact": exact, "matrix": all_pairs_of_pairs}
    if options.memory:
        print(peak_megabytes(objectives[options.memory[0]], int(options.memory[1]), options.device))
        return

    student, teacher = vectors(128, options.device)
    fast = milliseconds(lambda: exact(student, teacher), options.device, options.seconds)
    slow = milliseconds(lambda: all_pairs_of_pairs(student, teacher), options.device, options.seconds)
    print(f"batch 128: {fast:.2f} ms; in a matrix {slow:.0f} ms; ratio {slow / fast:.0f}")
    difference = abs(exact(student, teacher).item() / all_pairs_of_pairs(student, teacher).item() - 1)
    print(f"batch 128: the two differ by {difference:.1e} of their value")
    memory = {name: in_a_new_process(name, options, 128) for name in objectives}
    print(f"batch 128: extra memory {memory['exact']:.1f} MB; in a matrix {memory['matrix']:.0f} MB")

    per_pair: dict[int, float] = {}
    for batch in (256, 512, 1024, 2048):
        student, teacher = vectors(batch, options.device)
        spent = milliseconds(lambda s=student, t=teacher: exact(s, t), options.device, options.seconds)
        count = batch * (batch - 1) // 2
        per_pair[batch] = 1e6 * spent / (count * math.log2(count) ** 2)
        growth = per_pair[batch] / per_pair[256]
        print(f"batch {batch}: {spent:.1f} ms; {per_pair[batch]:.3f} ns per P log2(P)^2, {growth:.2f} of batch 256's")
    print(f"batch 1024: extra memory {in_a_new_process('exact', options, 1024):.0f} MB")

    for batch in (128, 1024):
        together, singly = prefixes(batch, options)
        print(f"batch {batch}, {len(DIMS)} prefixes: {together:.1f} ms in one call; {singly:.1f} ms in single calls")


if __name__ == "__main__":
    main()
