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
    products do not promise: every row is represented by the first row equal to it. It has no gradient then.
    """
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        unit = normalize(vectors)
        matrix = unit @ unit.mT
    if not exact_ties:
        return matrix
    itself = matrix.detach().diagonal().round()  # 1 for a direction, 0 for a row of zeros
    matrix = matrix.detach().triu(1)
    matrix = matrix + matrix.mT
    matrix.diagonal().copy_(itself)
    first = _first_equal_row(vectors)
    return matrix.index_select(0, first).index_select(1, first)


def pairs(matrix: Tensor) -> Tensor:
    """The (..., P) entries above the diagonal of a (..., batch, batch) matrix, P = batch (batch - 1) / 2."""
    batch = matrix.shape[-1]
    row, column = torch.triu_indices(batch, batch, offset=1, device=matrix.device)
    return matrix.flatten(-2).index_select(-1, row.mul_(batch).add_(column))


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
        values, order = torch.sort(_sortable(similarity))
        size = values.numel()
        place = torch.arange(size, dtype=torch.int32, device=values.device)
        # Pairs that tie share the places from `start` to `end`.
        starts = torch.ones(size + 1, dtype=torch.bool, device=values.device)
        torch.ne(values[1:], values[:-1], out=starts[1:-1])
        start = torch.cummax(place * starts[:-1], dim=0).values
        end = torch.cummin(torch.where(starts[1:], place + 1, size).flip(0), dim=0).values.flip(0)
        #: (P,) for each pair the first place of those that tie with it.
        self.first = torch.empty_like(start).scatter_(0, order, start)
        #: (P,) for each place the pairs that tie with it and come after it, minus those that come before it.
        self.ties = end - 1 + start - 2 * place
        self.comparisons = start.sum()


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
        similarity = student.detach().to(torch.promote_types(student.dtype, torch.float32))
        net, pair, count = _active_hinges(similarity, ranking, margin)
        comparisons = ranking.comparisons.clamp(min=1).double()
        gradient = torch.empty_like(similarity)
        total = margin * count.double()
        piece = _piece(student.device, student.numel())
        for part, hinges in zip(pair.split(piece), net.split(piece)):
            exact = hinges.double()
            total += torch.dot(exact, similarity.index_select(0, part).double())
            gradient.scatter_(0, part, (exact / comparisons).to(gradient.dtype))
        ctx.save_for_backward(gradient.to(student.dtype))
        return (total / comparisons).to(student.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None


#: Pairs at a time on a CPU, so that what is computed of them stays in its cache.
_PIECE = 2**17
#: Places that are compared all with all.
_BLOCK = 128
#: Of a block's rows, those that are compared at a time.
_ROWS = 16


def _active_hinges(similarity: Tensor, ranking: PairRanking, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Active hinges as the lower minus as the higher pair, for the pairs in the teacher's order; these; the hinges.

    The pairs are taken in the student's order, where the hinges of a pair reach over all pairs up to a certain one: as
    the higher pair those from `calm` on, as the lower one those before `reached`. Then they are sorted into the teacher's
    order as a radix sort does it, by one bit of their place after another, highest first: `_split` counts the hinges
    between the two halves that a bit makes, and `_compare_blocks` those within the smallest parts.
    """
    size = similarity.numel()
    device = similarity.device
    state = torch.zeros(4, size, dtype=torch.int32, device=device)
    place, calm, reached, _ = state
    pair = torch.sort(_sortable(similarity), stable=True).indices
    ascending = similarity.index_select(0, pair)
    # A hinge that is exactly at zero counts as active, as in the derivative of torch.clamp(min=0).
    torch.searchsorted(ascending, ascending - margin, out_int32=True, out=calm)
    del ascending
    # The same comparisons seen from the lower pairs, so that each hinge is counted on both sides or on neither.
    torch.cumsum(torch.bincount(calm, minlength=size + 1)[:size], dim=0, dtype=torch.int32, out=reached)
    # Pairs that tie for the teacher are put in the student's descending order. So all hinges between them are active,
    # which makes them easy to take away again.
    rank = torch.sort(ranking.first.index_select(0, pair.flip(0)), stable=True).indices.neg_().add_(size - 1)
    place.scatter_(0, rank, torch.arange(size, dtype=torch.int32, device=device))
    pair = pair.index_select(0, rank)
    del rank
    net = torch.empty(size, dtype=torch.int32, device=device)
    count = _count_hinges(state, torch.empty_like(state), net)
    return net.sub_(ranking.ties), pair, count - (size * (size - 1) // 2 - ranking.comparisons)


def _count_hinges(state: Tensor, spare: Tensor, net: Tensor) -> Tensor:
    """Fill ``net`` (P,), by place, with each pair's active hinges as the lower minus as the higher one; their number.

    Args:
        state: (4, P) int32, in the student's order: each pair's place, its `calm`, its `reached`, and its hinges so far.
        spare: (4, P), overwritten like ``state`` itself.
    """
    size = state.shape[1]
    if size <= _piece(state.device, size):
        return _count_piece(state, net)
    bit = (size - 1).bit_length() - 1
    half = 1 << bit
    count = _split(state, spare, bit, 1)
    spare[:3, half:] -= half
    count += _count_hinges(spare[:, :half], state[:, :half], net[:half])
    count += _count_hinges(spare[:, half:], state[:, half:], net[half:])
    return count


def _count_piece(state: Tensor, net: Tensor) -> Tensor:
    """`_count_hinges` for pairs that are not too many to be handled together, however many parts they are in."""
    size = state.shape[1]
    bits = max(size - 1, _BLOCK - 1).bit_length()
    # Parts of equal size need a power of two; what is added comes last in both orders and is in no hinge.
    added = torch.arange(size, 1 << bits, dtype=torch.int32, device=state.device)
    state = torch.cat([state, torch.stack([added, added, added, torch.zeros_like(added)])], dim=1)
    spare = torch.empty_like(state)
    count = torch.zeros((), dtype=torch.int64, device=state.device)
    for bit in reversed(range(_BLOCK.bit_length() - 1, bits)):
        count += _split(state, spare, bit, 1 << (bits - 1 - bit))
        state, spare = spare, state
    place, calm, _, so_far = state
    within, count_within = _compare_blocks(place, calm)
    net.copy_(so_far.new_empty(1 << bits).scatter_(0, place.long(), so_far).add_(within)[:size])
    return count + count_within


def _split(state: Tensor, result: Tensor, bit: int, parts: int) -> Tensor:
    """Sort the pairs of each part by one bit of their place into ``result``; the active hinges between zeros and ones.

    ``state`` is as in `_count_hinges`, in ``parts`` parts of 2 ** (bit + 1) pairs, or in one part of fewer. Within each
    part the pairs stay in the student's order, and `calm` and `reached` are positions in it.
    """
    half = 1 << bit
    size = state.shape[1]
    piece = _piece(state.device, size)
    start = torch.arange(0, half * parts, half, dtype=torch.int32, device=state.device)[:, None]  # of each part, halved
    ones_before = torch.zeros(size + 1, dtype=torch.int32, device=state.device)
    torch.cumsum((state[0] & half).bool(), dim=0, dtype=torch.int32, out=ones_before[1:])
    count = torch.zeros((), dtype=torch.int64, device=state.device)
    for first in range(0, size, piece):
        place, calm, reached, net = state[:, first : first + piece]
        is_one = (place >> bit).bitwise_and_(1)

        def moved(ones: Tensor, zeros: Tensor, is_one: Tensor = is_one) -> Tensor:
            """Where a position goes that has so many ones and zeros before it."""
            position = (ones - zeros).add_(half).mul_(is_one).add_(zeros)
            position.view(parts, -1).add_(start)
            return position

        index = torch.arange(first, first + place.numel(), dtype=torch.int32, device=state.device)
        ones = ones_before[first : first + piece][: place.numel()]
        target = moved(ones, index - ones).long()
        calm_ones, reached_ones = ones_before.index_select(0, calm), ones_before.index_select(0, reached)
        calm_zeros = calm - calm_ones
        result[0].scatter_(0, target, place)
        result[1].scatter_(0, target, moved(calm_ones, calm_zeros))
        result[2].scatter_(0, target, moved(reached_ones, reached - reached_ones))
        # A zero is the lower pair of the ones before `reached`, a one is the higher pair of the zeros from `calm` on.
        change = calm_zeros.sub_(reached_ones).sub_(half).mul_(is_one).add_(reached_ones)
        change.view(parts, -1).sub_(start)
        count += change.clamp(min=0).sum()
        result[3].scatter_(0, target, change.add_(net))
    return count


def _compare_blocks(place: Tensor, calm: Tensor) -> tuple[Tensor, Tensor]:
    """The same within blocks of `_BLOCK` places: (P,) by place, and their number; one byte for each comparison."""
    blocks = place.numel() // _BLOCK
    block = torch.arange(blocks, dtype=torch.int32, device=place.device)[:, None]
    target = (place & (_BLOCK - 1)).mul_(blocks)
    target.view(blocks, _BLOCK).add_(block)
    target = target.long()

    def by_place(values: Tensor) -> Tensor:
        return torch.empty_like(values).scatter_(0, target, values).view(_BLOCK, blocks)

    rank = by_place(torch.arange(_BLOCK, dtype=torch.uint8, device=place.device).repeat(blocks))
    calm = by_place((calm.view(blocks, _BLOCK) - block * _BLOCK).to(torch.uint8).flatten())
    above = torch.ones(_ROWS, _ROWS, dtype=torch.bool, device=place.device).triu(1)[..., None]
    net = torch.zeros(_BLOCK, blocks, dtype=torch.int8, device=place.device)
    count = torch.zeros((), dtype=torch.int64, device=place.device)
    for first in range(0, _BLOCK, _ROWS):
        active = rank[first : first + _ROWS, None] >= calm[None, first:]
        active[:, :_ROWS] &= above
        lows = active.view(torch.int8).sum(dim=1, dtype=torch.int8)
        count += lows.sum()
        net[first : first + _ROWS] += lows
        net[first:] -= active.view(torch.int8).sum(dim=0, dtype=torch.int8)
    return net.mT.reshape(-1), count


def _piece(device: torch.device, size: int) -> int:
    """How many of ``size`` pairs to handle at a time; at least 1."""
    return _PIECE if device.type == "cpu" else max(size, 1)


def _sortable(values: Tensor) -> Tensor:
    """Integers in the order of the floating-point ``values``: they are sorted by radix, several times as fast."""
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = (values.to(torch.promote_types(values.dtype, torch.float32)) + 0.0).view(integer)  # -0.0 becomes 0.0
    return bits ^ ((bits >> (torch.iinfo(integer).bits - 1)) & torch.iinfo(integer).max)


def _first_equal_row(rows: Tensor) -> Tensor:
    """(batch,) for each row the number of the first row that equals it."""
    batch, width = rows.shape
    # A sum of products of integers is exact in any order, so equal rows have equal sums; those that share a sum are
    # compared in full.
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (width,), generator=generator).to(rows.device) | 1
    sums = torch.cat([(_sortable(part).long() * factors).sum(dim=-1) for part in rows.split(_BLOCK)])
    _, first = torch.unique(sums, return_inverse=True)
    number = torch.arange(batch, device=rows.device)
    lowest = torch.full((batch,), batch, device=rows.device).scatter_reduce(0, first, number, "amin")[first]
    equal = torch.cat([(a == rows[b]).all(dim=-1) for a, b in zip(rows.split(_BLOCK), lowest.split(_BLOCK))])
    return torch.where(equal, lowest, number)


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
