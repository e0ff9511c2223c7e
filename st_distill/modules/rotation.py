"""Which axes of the teacher's space the student's dimensions follow.

Cosines between whole vectors do not change under a rotation, so it is free to choose, and it decides what the prefixes are
worth. Every rotation here is a matrix (teacher_features, features) of orthonormal columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from st_distill.functional import normalize

__all__ = ["learned_rotation", "principal_rotation", "random_rotation"]


def random_rotation(teacher_features: int, features: int, *, seed: int = 0) -> Tensor:
    """(teacher_features, features) random orthonormal columns, uniformly distributed, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(teacher_features, features, generator=generator, dtype=torch.float64)
    orthonormal, triangle = torch.linalg.qr(gaussian)
    return (orthonormal * triangle.diagonal().sign()).float()


def principal_rotation(batches: Iterable[Tensor], features: int) -> Tensor:
    """(teacher_features, features) principal axes of the teacher's unit vectors (batch, teacher_features), largest first."""
    second_moment: Tensor | None = None
    for batch in batches:
        unit = normalize(batch.double())
        product = unit.mT @ unit
        second_moment = product if second_moment is None else second_moment + product
    if second_moment is None:
        raise ValueError("The principal axes need at least one batch of teacher vectors. Got none instead.")
    return torch.linalg.eigh(second_moment).eigenvectors.flip(-1)[:, :features].float()


def learned_rotation(
    batches: Iterable[Tensor],
    start: Tensor,
    dims: Sequence[int],
    *,
    steps: int = 300,
    temperature: float = 0.05,
    learning_rate: float = 3e-3,
) -> Tensor:
    """(teacher_features, features) axes of which every prefix keeps each text's neighbours.

    Minimises, by Adam, the sum over the prefixes of KL(p || q): p the softmax of a text's cosines to the others of its batch,
    over all of the teacher's dimensions, and q the same over the prefix. The axes stay in the space that ``start`` spans;
    they are turned in it by a Cayley transform, (I + A)^-1 (I - A) with A skew-symmetric, so that they are orthonormal
    after every step.

    Args:
        batches: teacher vectors (batch, teacher_features) of any norm, at least 2 a batch; one step each. Batches of some
            hundred texts drawn at random serve.
        start: (teacher_features, features) orthonormal columns; the principal axes end best.
        dims: the prefixes; those below ``features`` count.
        steps: the most steps.
        temperature: of the softmax, above 0: the lower, the fewer neighbours count.
        learning_rate: at the first step; it falls to 0 along a cosine.

    Raises:
        ValueError: no batch, or one of fewer than 2 vectors.
    """
    features = start.shape[1]
    prefixes = sorted({dim for dim in dims if dim < features})
    if not prefixes:
        return start
    # In double precision, so that it ends at the same axes however the sums are split over threads.
    start = start.double()
    turn = torch.zeros_like(start[:features], requires_grad=True)
    identity = torch.eye(features, dtype=start.dtype, device=start.device)
    optimizer = torch.optim.Adam([turn], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def rotation() -> Tensor:
        skew = turn - turn.mT
        return start @ torch.linalg.solve(identity + skew, identity - skew)

    taken = 0
    for batch in islice(batches, steps):
        if len(batch) < 2:
            raise ValueError(
                f"A rotation is learned from batches of at least 2 vectors. Got one of {len(batch)} instead."
            )
        unit = normalize(batch.to(start))
        wanted = _log_neighbours(unit, temperature)
        turned = unit @ rotation()
        loss = torch.stack(
            [
                kl_div(_log_neighbours(turned[:, :dim], temperature), wanted, log_target=True, reduction="batchmean")
                for dim in prefixes
            ]
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        taken += 1
    if not taken:
        raise ValueError("A rotation is learned from at least one batch of teacher vectors. Got none instead.")
    return rotation().detach().float()


def _log_neighbours(vectors: Tensor, temperature: float) -> Tensor:
    """(batch, batch - 1) log of the softmax of each vector's cosines to the others."""
    unit, count = normalize(vectors), len(vectors)
    others = ~torch.eye(count, dtype=torch.bool, device=vectors.device)
    return log_softmax((unit @ unit.mT)[others].view(count, count - 1) / temperature, dim=1)
