"""The hinges of the relative-similarity term, counted for all pairs of pairs of a batch; see `functional.triplet_distill`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["PairRanking", "sortable", "triplet_term"]


class PairRanking:
    """The teacher's order of the P pairs of a batch, prepared once for any number of student similarities.

    Args:
        similarity: (P,) teacher similarity of each pair.
    """

    def __init__(self, similarity: Tensor) -> None:
        #: (P,) the pairs from the least to the most similar one; a pair's position here is its place.
        values, self.order = torch.sort(sortable(similarity))
        size = values.numel()
        as_before = torch.zeros(size + 1, dtype=torch.bool, device=values.device)
        torch.eq(values[1:], values[:-1], out=as_before[1:-1])
        #: (T,) the places whose pair ties with another one. Seldom many, so that what is done for them alone costs little.
        self.tied = (as_before[1:] | as_before[:-1]).nonzero().flatten()
        number = torch.arange(self.tied.numel(), device=values.device)
        starts = ~as_before.index_select(0, self.tied)
        ends = ~as_before.index_select(0, self.tied + 1)
        start = torch.cummax(number * starts, dim=0).values
        end = torch.cummin(torch.where(ends, number + 1, number.numel()).flip(0), dim=0).values.flip(0)
        #: (T,) for each of these the number of the first one that it ties with, in ascending order.
        self.group = start
        #: (T,) for each of these the pairs that tie with it and come after it, minus those that come before it.
        self.ties = (end - 1 + start - 2 * number).int()
        self.tied_comparisons = (number - start).sum()
        self.comparisons = size * (size - 1) // 2 - self.tied_comparisons


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
#: Pairs within which hinges are counted by one table; their blocks have numbers of seven bits.
_PART = 2**13
#: Pairs whose tables are in memory at a time: on a CPU, and on another device.
_TABLES = (2**15, 2**20)
#: Places that are compared all with all, and of these, those that are compared with the others at a time.
_BLOCK, _ROWS = 64, 16
#: Positions in the student's order that share a row of the table.
_STEP = 16


def _active_hinges(similarity: Tensor, ranking: PairRanking, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Active hinges as the lower minus as the higher pair, for the pairs in the teacher's order; these; the hinges.

    The pairs are taken in the student's order, where the hinges of a pair reach over all pairs up to a certain one: as
    the higher pair those from `calm` on, as the lower one those before `reached`. Then they are sorted into the teacher's
    order as a radix sort does it, by one bit of their place after another, highest first: `_split` counts the hinges
    between the two halves that a bit makes. Within parts that are small enough, `_count_part` counts them by a table.
    """
    size = similarity.numel()
    device = similarity.device
    state = torch.zeros(4, size, dtype=torch.int32, device=device)
    place, calm, reached, _ = state
    by_teacher = similarity.index_select(0, ranking.order)
    # In which order equal similarities come is of no account: the positions below are never between two of them.
    student_order = torch.sort(sortable(by_teacher)).indices
    ascending = by_teacher.index_select(0, student_order)
    del by_teacher
    # A hinge that is exactly at zero counts as active, with every version of torch: its own clamp changed that in 2.14.
    torch.searchsorted(ascending, ascending - margin, out_int32=True, out=calm)
    del ascending
    # The same comparisons seen from the lower pairs, so that each hinge is counted on both sides or on neither.
    torch.cumsum(torch.bincount(calm, minlength=size + 1)[:size], dim=0, dtype=torch.int32, out=reached)
    pair, tied = ranking.order, ranking.tied
    if tied.numel():
        # Pairs that tie for the teacher are put in the student's descending order. So all hinges between them are active,
        # which makes them easy to take away again.
        position = torch.empty_like(student_order)
        position.scatter_(0, student_order, torch.arange(size, device=device))
        position = position.index_select(0, tied)
        descending = torch.sort(ranking.group * size - position).indices
        student_order.scatter_(0, position.index_select(0, descending), tied)
        pair = pair.scatter(0, tied, pair.index_select(0, tied).index_select(0, descending))
    place.copy_(student_order)
    del student_order
    net = torch.empty(size, dtype=torch.int32, device=device)
    count = _count_hinges(state, torch.empty_like(state), net)
    if tied.numel():
        net.scatter_(0, tied, net.index_select(0, tied) - ranking.ties)
    return net, pair, count - ranking.tied_comparisons


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
    bits = (max(size, _BLOCK) - 1).bit_length()
    # Parts of equal size need a power of two; what is added comes last in both orders and is in no hinge.
    added = torch.arange(size, 1 << bits, dtype=torch.int32, device=state.device)
    state = torch.cat([state, torch.stack([added, added, added + 1, torch.zeros_like(added)])], dim=1)
    count = torch.zeros((), dtype=torch.int64, device=state.device)
    spare = torch.empty_like(state)
    for bit in reversed(range(_PART.bit_length() - 1, bits)):
        count += _split(state, spare, bit, 1 << (bits - 1 - bit))
        state, spare = spare, state
    part = min(1 << bits, _PART)
    together = max(part, _TABLES[state.device.type != "cpu"])
    for first in range(0, 1 << bits, together):
        places = slice(first, first + together)
        state[:3, places] -= first
        within, count_within = _count_parts(state[:, places], part)
        wanted = net[places]  # without what was added
        wanted.copy_(within[: wanted.numel()])
        count += count_within
    return count


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


def _count_parts(state: Tensor, part: int) -> tuple[Tensor, Tensor]:
    """Hinges so far and those within parts of ``part`` places: (P,) by place, lower minus higher; the number of these.

    ``state`` is as in `_count_hinges`. A table says how many pairs come before a position in the student's order and before
    a block in the teacher's, for every `_STEP`-th position and each block of `_BLOCK` places. So the hinges of a pair with
    pairs of other blocks are an entry of it and what the few positions beyond add; those within its block are compared.
    """
    place, calm, reached, so_far = state
    size, device = place.numel(), place.device
    blocks = size // _BLOCK
    in_block = _BLOCK.bit_length() - 1
    positions = torch.arange(size, dtype=torch.int32, device=device)
    position = torch.empty_like(place).scatter_(0, place.long(), positions)
    calm, reached, so_far = torch.stack([calm, reached, so_far]).index_select(1, position).view(3, blocks, _BLOCK)
    block = torch.arange(blocks, dtype=torch.int32, device=device)[:, None]
    block_in_part = block & (part // _BLOCK - 1)
    start = (block - block_in_part) * _BLOCK  # of the part
    position = position.view(blocks, _BLOCK) - start
    net, count = _compare_blocks(position, calm - start)

    width = part // _STEP + 1
    row = (
        (block >> (part.bit_length() - 1 - in_block)) + block
    ) * width  # parts have a row more than blocks, for their end
    entry = ((position // _STEP) + (row + width + 1)).flatten()
    table = torch.bincount(entry, minlength=(blocks + size // part) * width).view(size // part, -1, width)
    table = table.cumsum(2, dtype=torch.int32).cumsum(1, dtype=torch.int32).flatten()

    # Pairs of the blocks before come before `calm` or are hinges; so with those up to the own block, before `reached`.
    beyond = torch.stack([calm, reached])
    rows, before = torch.stack([row, row + width]), torch.stack([block_in_part, block_in_part + 1])
    first = ((beyond - start) // _STEP).add_(rows).flatten()
    earlier = table.index_select(0, first).add_(_count_in_words(place, part, beyond, before)).view(2, blocks, _BLOCK)
    as_higher = block_in_part * _BLOCK - earlier[0]
    as_lower = reached - start - earlier[1]
    return net.add_(so_far).add_(as_lower).sub_(as_higher).flatten(), count + as_lower.sum()


def _count_in_words(place: Tensor, part: int, beyond: Tensor, before: Tensor) -> Tensor:
    """How many positions from the last multiple of `_STEP` up to ``beyond`` hold a place of a block before ``before``.

    Args:
        place: (P,) of each position.
        beyond: (2, blocks, _BLOCK) positions.
        before: (2, blocks, 1) numbers of blocks within the part, at most 128.

    Returns:
        (2 P,) int32. Eight positions make a word, a byte for each: with a number of seven bits in every byte, an addition
        compares them all.
    """
    ones = 0x0101010101010101
    device = place.device
    number = ((place & (part - 1)) // _BLOCK).to(torch.uint8)
    words = torch.nn.functional.pad(number, (0, _STEP)).view(torch.int64).view(-1, _STEP // 8).mT.contiguous()
    lanes = torch.arange(_STEP, device=device)
    masks = (lanes < lanes[:, None]).view(torch.uint8).view(torch.int64).mT.contiguous()
    group, rest = (beyond // _STEP).flatten(), (beyond & (_STEP - 1)).flatten()
    limit = (before.long() + 127) * ones
    total = torch.zeros_like(group, dtype=torch.int64)
    for word, mask in zip(words, masks):
        # The highest bit of a byte says whether 127 + limit - number reached 128: whether the number is below the limit.
        compared = (limit - word.index_select(0, group).view(beyond.shape)).bitwise_right_shift_(7).flatten()
        total += compared.bitwise_and_(mask.index_select(0, rest))
    return total.mul_(ones).bitwise_right_shift_(56).int()


def _compare_blocks(position: Tensor, calm: Tensor) -> tuple[Tensor, Tensor]:
    """Hinges within blocks, lower minus higher pair, and their number.

    Args:
        position: (blocks, _BLOCK) of each place, below 2 ** 15.
        calm: (blocks, _BLOCK), likewise.
    """
    position, calm = (values.to(torch.int16).mT.contiguous() for values in (position, calm - 1))
    net = torch.zeros_like(position)
    above = torch.ones(_ROWS, _ROWS, dtype=torch.int16, device=net.device).triu(1).neg_()[..., None]
    count = torch.zeros((), dtype=torch.int64, device=net.device)
    for first in range(0, _BLOCK, _ROWS):
        # The sign of calm - 1 - position, as -1 or 0: comparisons of 16 bits are not vectorised.
        active = (calm[None, first:] - position[first : first + _ROWS, None]).bitwise_right_shift_(15)
        active[:, :_ROWS] &= above
        lows = active.sum(dim=1, dtype=torch.int16)
        count -= lows.sum()
        net[first : first + _ROWS] -= lows
        net[first:] += active.sum(dim=0, dtype=torch.int16)
    return net.mT.int().contiguous(), count


def _piece(device: torch.device, size: int) -> int:
    """How many of ``size`` pairs to handle at a time; at least 1."""
    return _PIECE if device.type == "cpu" else max(size, 1)


def sortable(values: Tensor) -> Tensor:
    """Integers in the order of the floating-point ``values``: they are sorted by radix, several times as fast."""
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    bits = (values.to(torch.promote_types(values.dtype, torch.float32)) + 0.0).view(integer)  # -0.0 becomes 0.0
    return bits ^ ((bits >> (torch.iinfo(integer).bits - 1)) & torch.iinfo(integer).max)
