r"""The three distillation objectives of Jasper and Stella (arXiv 2412.19048), on plain tensors.

Each takes the student's and the teacher's vectors of one batch and returns a scalar. Only directions count: vectors may
have any norm, and the similarity and relative-similarity terms compare vectors of any two widths, because they only look
at each side's own cosine similarities. A vector of zeros has similarity 0 with everything and receives no gradient.

What differs from the paper: the cosine term is a mean over the batch (the paper's formula is a sum, its public code a
mean), and the relative-similarity term is a mean over the pairs of pairs that the teacher ranks strictly (the paper
divides by all pairs of pairs, and says nothing of ties).
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

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
    return cosine_term(student, normalize(teacher))


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
    return similarity_term(similarities(student), similarities(teacher))


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
    """Rows at unit length, in at least float32; a row of zeros stays zero and receives no gradient.

    The rows are scaled by their largest entry first, so that no finite norm overflows or underflows on the way.
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    nonzero = largest > 0
    scaled = vectors / torch.where(nonzero, largest, 1.0)
    norm = torch.where(nonzero, torch.linalg.vector_norm(scaled, dim=-1, keepdim=True), 1.0)
    return torch.where(nonzero, scaled / norm, 0.0)


def similarities(vectors: Tensor, *, exact_ties: bool = False) -> Tensor:
    """Cosine similarities of the rows of ``vectors`` (batch, dim) with each other, (batch, batch), at least float32.

    With ``exact_ties`` the matrix is symmetric and equal rows have equal similarities to the last bit, which matrix
    products do not promise: every row is represented by the first row equal to it.
    """
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        unit = normalize(vectors)
        matrix = unit @ unit.mT
    if not exact_ties:
        return matrix
    first = _first_equal_row(unit)
    low, high = torch.minimum(first[:, None], first[None, :]), torch.maximum(first[:, None], first[None, :])
    present = matrix.diagonal()[first].round()  # 1 for a direction, 0 for a row of zeros
    return torch.where(low == high, present[:, None], matrix[low, high])


def pairs(matrix: Tensor) -> Tensor:
    """The (..., P) entries above the diagonal of a (..., batch, batch) matrix, P = batch (batch - 1) / 2."""
    batch = matrix.shape[-1]
    row, column = torch.triu_indices(batch, batch, offset=1, device=matrix.device)
    return matrix[..., row, column]


def cosine_term(student: Tensor, unit_teacher: Tensor) -> Tensor:
    """Mean of 1 - cos over the batch, for a teacher (batch, dim) already at unit length."""
    if student.shape[-1] != unit_teacher.shape[-1]:
        raise ValueError(
            f"The cosine term needs student and teacher of one dimension. Got {student.shape[-1]} for 'student' and "
            f"{unit_teacher.shape[-1]} for 'teacher' instead. Give the student a projection to {unit_teacher.shape[-1]} "
            "dimensions, or the teacher a rotation to the student's (MatryoshkaProjection does either)."
        )
    return 1.0 - (normalize(student) * unit_teacher).sum(dim=-1).mean()


def similarity_term(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two (batch, batch) similarity matrices."""
    return (student - teacher).square().mean()


class PairRanking:
    """The teacher's order of the P pairs of a batch, prepared once for any number of student similarities.

    Args:
        similarity: (P,) teacher similarity of each pair.
    """

    def __init__(self, similarity: Tensor) -> None:
        values, self.order = torch.sort(similarity)
        # A pair is compared with the pairs strictly below its teacher similarity, which are the first `below`, and with
        # those strictly above it, which start at `above`; pairs that tie with it lie between the two.
        self.below = torch.searchsorted(values, values, right=False)
        self.above = torch.searchsorted(values, values, right=True)
        self.comparisons = self.below.sum()


def triplet_term(student: Tensor, ranking: PairRanking, margin: float) -> Tensor:
    """Mean hinge over the strict comparisons of ``ranking`` for student similarities (P,) of the same pairs."""
    return _TripletTerm.apply(student, ranking, margin)


class _TripletTerm(torch.autograd.Function):
    """Both value and gradient follow from how many hinges each pair is in, and on which side of them.

    An active hinge is s_low - s_high + margin, so the sum of all is <lows - highs, s> + margin * count, where `lows`
    counts for each pair the active hinges in which it should be the less similar one, and `highs` those in which it
    should be the more similar one. The counts are exact integers; so a batch of ties gives exactly zero.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, ranking: PairRanking, margin: float) -> Tensor:
        similarity = student.detach().double()[ranking.order]
        net, count = _active_hinges(similarity, ranking, margin)
        comparisons = ranking.comparisons.clamp(min=1).double()
        total = torch.dot(net.double(), similarity) + margin * count.double()
        gradient = torch.empty_like(similarity)
        gradient[ranking.order] = net.double() / comparisons
        ctx.save_for_backward(gradient.to(student.dtype))
        return (total / comparisons).to(student.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None


def _active_hinges(similarity: Tensor, ranking: PairRanking, margin: float) -> tuple[Tensor, Tensor]:
    """(P,) active hinges as the lower minus as the higher pair, and their number, for pairs in the teacher's order."""
    size = similarity.numel()
    ascending, by_rank = torch.sort(similarity)
    rank = torch.empty_like(by_rank)
    rank[by_rank] = torch.arange(size, device=similarity.device)
    reach = ascending - margin  # a lower pair is in a hinge with this higher one if its similarity is above the reach
    # As the higher pair: of the `below` first pairs, those whose similarity is above the reach.
    calm = torch.empty_like(by_rank)
    calm[by_rank] = torch.searchsorted(ascending, reach, right=True)
    # As the lower pair: of the pairs from `above` on, those whose reach is below the similarity. The same comparison of
    # the same two numbers as above, so that each hinge is counted on both sides or on neither.
    reached = torch.empty_like(by_rank)
    reached[by_rank] = torch.searchsorted(reach, ascending, right=False)
    ends = torch.cat([ranking.below, ranking.above])
    thresholds = torch.cat([calm, reached])
    calm_below, reached_before = _count_smaller(rank, ends, thresholds).view(2, size)
    highs = ranking.below - calm_below
    lows = reached - reached_before
    return lows - highs, highs.sum()


def _count_smaller(ranks: Tensor, ends: Tensor, thresholds: Tensor) -> Tensor:
    """For each query, how many of the first ``ends`` entries of the permutation ``ranks`` lie below ``thresholds``.

    A wavelet matrix (Claude, Navarro, Ordonez 2015): the entries are split by one bit after another, highest first, and
    every query follows its threshold's bits, so that each bit costs a running count and two look-ups.
    """
    size = ranks.numel()
    left = torch.zeros_like(ends)
    right = ends
    smaller = torch.zeros_like(ends)
    index = torch.arange(size, device=ends.device)
    zeros_before = torch.zeros(size + 1, dtype=ends.dtype, device=ends.device)
    for bit in reversed(range(size.bit_length())):
        is_one = (ranks >> bit) & 1
        zeros_before[1:] = torch.cumsum(1 - is_one, dim=0)
        zeros = zeros_before[-1]
        left_zeros, right_zeros = zeros_before[left], zeros_before[right]
        takes_ones = ((thresholds >> bit) & 1).bool()
        smaller += torch.where(takes_ones, right_zeros - left_zeros, 0)
        left = torch.where(takes_ones, zeros + left - left_zeros, left_zeros)
        right = torch.where(takes_ones, zeros + right - right_zeros, right_zeros)
        place = torch.where(is_one.bool(), zeros + index - zeros_before[:-1], zeros_before[:-1])
        ranks = torch.empty_like(ranks).scatter_(0, place, ranks)
    return smaller


def _first_equal_row(rows: Tensor) -> Tensor:
    """(batch,) for each row the number of the first row that equals it."""
    batch, width = rows.shape
    # A sum of products of integers is exact in any order, so equal rows have equal sums; those that share a sum are
    # compared in full.
    bits = (rows.float() + 0.0).contiguous().view(torch.int32).long()
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (width,), generator=generator).to(rows.device) | 1
    _, first = torch.unique((bits * factors).sum(dim=-1), return_inverse=True)
    number = torch.arange(batch, device=rows.device)
    lowest = torch.full((batch,), batch, device=rows.device).scatter_reduce(0, first, number, "amin")[first]
    return torch.where((rows == rows[lowest]).all(dim=-1), lowest, number)


def _check(student: Tensor, teacher: Tensor) -> None:
    for name, value in (("student", student), ("teacher", teacher)):
        if value.ndim != 2:
            raise ValueError(
                f"The '{name}' vectors must have the shape (batch, dim). Got {tuple(value.shape)} instead."
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
    finite = torch.isfinite(teacher).all(dim=-1)
    if not finite.all():
        wrong = (~finite).nonzero().flatten().tolist()
        raise ValueError(
            f"The 'teacher' vectors must be finite. Got NaN or infinite values in {len(wrong)} of {len(finite)} rows of the "
            f"batch instead, the first being row {wrong[0]}. Embed these texts again, or leave them out."
        )


def check_margin(margin: float) -> None:
    """Raise ValueError for a negative or non-finite margin."""
    if not isinstance(margin, Real) or not 0.0 <= margin < float("inf"):
        raise ValueError(f"The 'margin' must be a finite number of at least 0. Got {margin!r} instead.")
