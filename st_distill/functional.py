r"""The three distillation objectives of Jasper and Stella (arXiv 2412.19048), on plain tensors.

Each takes the student's and the teacher's vectors of one batch and returns a scalar. Only directions count: vectors may
have any norm, and the similarity and relative-similarity terms compare vectors of any two widths, because they only look
at each side's own cosine similarities. A vector of zeros has similarity 0 with everything and receives no gradient.

What differs from the paper: the cosine term is a mean over the batch (the paper's formula is a sum, its public code a
mean), and the relative-similarity term is a mean over the pairs of pairs that the teacher ranks strictly (the paper
divides by all pairs of pairs, and says nothing of ties).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from st_distill.hinges import PairRanking, sortable, triplet_term
from st_distill.options import is_number

__all__ = ["cosine_distill", "similarity_distill", "triplet_distill"]


def cosine_distill(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the batch of 1 - cos(student, teacher); arXiv 2412.19048, equation 1.

    Args:
        student: (batch, dim), any norm, floating point; receives the gradient.
        teacher: (batch, dim), any norm, finite; a constant.

    Returns:
        Scalar in [0, 2].

    Raises:
        ValueError: if the batch sizes or the dimensions differ, the batch is empty, or the teacher is not finite.

    >>> cosine_distill(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
    tensor(1.)
    """
    _check(student, teacher)
    return cosine_term(student, normalize(teacher.detach()))


def similarity_distill(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the student's and the teacher's (batch, batch) cosine matrices; equation 2.

    Args:
        student: (batch, any dim), any norm, floating point; receives the gradient.
        teacher: (batch, any other dim), any norm, finite; a constant.

    Returns:
        Scalar in [0, 4]; 0 for a batch of one.

    Raises:
        ValueError: if the batch sizes differ, the batch is empty, or the teacher is not finite.

    >>> similarity_distill(torch.eye(2), torch.ones(2, 3))
    tensor(0.5000)
    """
    _check(student, teacher)
    return similarity_term(similarities(student), similarities(teacher.detach()))


def triplet_distill(student: Tensor, teacher: Tensor, margin: float = 0.015) -> Tensor:
    """Mean hinge over all pairs of pairs that the teacher ranks strictly; equation 3, exact, never sampled.

    For every two pairs of texts (i, j) and (m, n) with teacher similarities t_ij > t_mn the term is
    max(0, s_mn - s_ij + margin). Ties count nowhere. The P = batch (batch - 1) / 2 pairs give up to P^2 / 2 terms; they
    are counted in O(P log P) time and O(P) memory.

    Args:
        student: (batch, any dim), any norm, floating point; receives the gradient.
        teacher: (batch, any other dim), any norm, finite; a constant. Equal rows tie exactly.
        margin: least distance wanted between two student similarities (cosines), at least 0; the paper's is 0.015.

    Returns:
        Scalar in [0, 2 + margin]; 0 with a zero gradient where no two pairs differ (a batch of one or two, or all tied).

    Raises:
        ValueError: if the batch sizes differ, the batch is empty, the teacher is not finite, or the margin is negative.

    >>> triplet_distill(torch.eye(3), torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), margin=0.5)
    tensor(0.5000)
    """
    _check(student, teacher)
    check_margin(margin)
    ranking = PairRanking(pairs(similarities(teacher, exact_ties=True)))
    return triplet_term(pairs(similarities(student)), ranking, margin)


def normalize(vectors: Tensor) -> Tensor:
    """Rows of ``vectors`` (batch, dim) at unit length, in at least float32; a row of zeros stays zero and receives no gradient.

    The rows are scaled by their largest entry first, so that no finite norm overflows or underflows on the way.
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    largest = vectors.detach().abs().amax(dim=1, keepdim=True)
    nonzero = largest > 0
    scaled = vectors / torch.where(nonzero, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(nonzero, norm, torch.inf)  # by which the rows of zeros get no gradient


#: Equal rows have a similarity above this, by far, whatever precision the device multiplies in.
_MAY_BE_EQUAL = 0.99


def similarities(vectors: Tensor, *, exact_ties: bool = False) -> Tensor:
    """Cosine similarities of the rows of ``vectors`` (batch, dim) with each other, (batch, batch), at least float32.

    With ``exact_ties`` the matrix is symmetric and equal rows have equal similarities to the last bit, which matrix
    products do not promise: every row is represented by the first row equal to it. It has no gradient then.
    """
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        unit = normalize(vectors)
        matrix = unit @ unit.mT
    if not exact_ties:
        return matrix
    itself = matrix.detach().diagonal().round()  # 1 for a direction, 0 for a row of zeros
    matrix = matrix.detach().triu(1)
    equal = bool((matrix > _MAY_BE_EQUAL).any())
    matrix = matrix + matrix.mT
    matrix.diagonal().copy_(itself)
    if not equal:
        return matrix
    first = _first_equal_row(vectors)
    return matrix.index_select(0, first).index_select(1, first)


def bit_similarities(vectors: Tensor) -> Tensor:
    """What the signs of ``vectors`` (batch, dim) say of their cosine similarities, (batch, batch), at least float32.

    Of two vectors of which a share a of the coordinates agrees in sign it is sin(pi (a - 1/2)), which for coordinates from a
    normal distribution estimates their cosine (Grothendieck's identity); it ranks pairs as the Hamming distance does. A
    coordinate that is not above 0 counts as negative, as in sentence-transformers' ``quantize_embeddings``. The gradient is
    that of the coordinates themselves in place of their signs (straight-through estimator, arXiv 1308.3432).
    """
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        dim = vectors.shape[1]
        # At this length the coordinates are of the size of their signs.
        scaled = normalize(vectors) * math.sqrt(dim)
        signs = scaled + (torch.where(scaled > 0, 1.0, -1.0) - scaled).detach()
        return torch.sin(signs @ signs.mT * (math.pi / 2 / dim))


def pairs(matrix: Tensor) -> Tensor:
    """The (..., P) entries above the diagonal of a (..., batch, batch) matrix, P = batch (batch - 1) / 2."""
    batch = matrix.shape[-1]
    row, column = torch.triu_indices(batch, batch, offset=1, device=matrix.device)
    return matrix.flatten(-2).index_select(-1, row.mul_(batch).add_(column))


def cosine_term(student: Tensor, unit_teacher: Tensor) -> Tensor:
    """Mean of 1 - cos over the batch, for a teacher (batch, dim) already at unit length."""
    if student.shape[1] != unit_teacher.shape[1]:
        raise ValueError(
            f"The cosine term needs student and teacher of one dimension. Got {student.shape[1]} for 'student' and "
            f"{unit_teacher.shape[1]} for 'teacher' instead. Give the student a projection to {unit_teacher.shape[1]} "
            "dimensions, or the teacher a rotation to the student's (MatryoshkaProjection does either)."
        )
    return 1.0 - (normalize(student) * unit_teacher).sum(dim=1).mean()


def similarity_term(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two (batch, batch) similarity matrices."""
    return (student - teacher).square().mean()


#: Rows that are compared at a time.
_BLOCK = 64


def _first_equal_row(rows: Tensor) -> Tensor:
    """(batch,) for each row the number of the first row that equals it."""
    batch, width = rows.shape
    # A sum of products of integers is exact in any order, so equal rows have equal sums; those that share a sum are
    # compared in full.
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (width,), generator=generator).to(rows.device) | 1
    sums = torch.cat([(sortable(part).long() * factors).sum(dim=1) for part in rows.split(_BLOCK)])
    _, first = torch.unique(sums, return_inverse=True)
    number = torch.arange(batch, device=rows.device)
    lowest = torch.full((batch,), batch, device=rows.device).scatter_reduce(0, first, number, "amin")[first]
    equal = torch.cat([(a == rows[b]).all(dim=1) for a, b in zip(rows.split(_BLOCK), lowest.split(_BLOCK))])
    return torch.where(equal, lowest, number)


def _check(student: Tensor, teacher: Tensor) -> None:
    for name, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"The '{name}' vectors must be a torch.Tensor. Got {type(value).__name__} instead; torch.as_tensor makes one."
            )
        if value.ndim != 2 or value.shape[1] == 0:
            raise ValueError(
                f"The '{name}' vectors must have the shape (batch, dim), with one dimension at least. Got "
                f"{tuple(value.shape)} instead."
            )
        if not value.is_floating_point():
            raise TypeError(f"The '{name}' vectors must be floating point. Got {value.dtype} instead.")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            "The 'student' and 'teacher' vectors must be of the same batch. "
            f"Got {student.shape[0]} and {teacher.shape[0]} rows instead."
        )
    if student.shape[0] == 0:
        raise ValueError("The batch must have at least one row. Got an empty one instead.")
    check_finite(teacher)


def check_finite(teacher: Tensor) -> None:
    """Raise ValueError, naming the first row, where a teacher vector (batch, dim) is NaN or infinite."""
    finite = torch.isfinite(teacher.abs().amax(dim=1))
    if not finite.all():
        wrong = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"The 'teacher' vectors must be finite. Got NaN or infinite values in {len(wrong)} of {len(finite)} rows of the "
            f"batch instead, the first being row {wrong[0]}. Embed these texts again, or leave them out."
        )


def check_margin(margin: float) -> None:
    """Raise ValueError for a negative or non-finite margin."""
    if not is_number(margin, 0.0) or margin == math.inf:
        raise ValueError(f"The 'margin' must be a finite number of at least 0. Got {margin!r} instead.")
