"""Attention with symmetric ALiBi, in four kinds that give the same numbers: eager, sdpa, blockwise and flex_attention.

ALiBi (arXiv 2108.12409; symmetric in arXiv 2310.19923) lowers the score of a pair of tokens by their distance times the
slope of the head: ``score -= slope * |i - j|``. A plan is made once for each forward pass, from the mask, and serves all
layers. This file is copied into saved folders as it is, so it imports neither st_distill nor anything but torch.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop_out
from torch.nn.functional import pad, scaled_dot_product_attention

#: Query tokens in a block of the blockwise kind. On an accelerator fewer and larger calls pay.
BLOCK = 256
LARGE_BLOCK = 1024
#: The blockwise kind leaves out keys whose weights together are at most this share of a query's.
NEGLIGIBLE = 1e-9
#: The score of padding in the sdpa kind: far below any other, and still a number in float16.
FAR_BELOW = -30000.0


def alibi_slopes(heads: int) -> list[float]:
    """The slope of each head, (heads,): powers of ``2**(-8 / heads)``, the usual ALiBi slopes.

    For a number of heads that is no power of two: those of the next lower power of two, then every other one of twice that
    power.

    >>> alibi_slopes(8)[:3]
    [0.5, 0.25, 0.125]
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return slopes + [2 ** (-4 * (head + 1) / power) for head in range(0, 2 * (heads - power), 2)]


def dense_bias(slopes: Tensor, length: int) -> Tensor:
    """``-slope * |i - j|`` for every head and pair of tokens: (1, heads, length, length), of the dtype of ``slopes``."""
    places = torch.arange(length, device=slopes.device)
    distance = (places[:, None] - places).abs().to(slopes.dtype)
    return (-slopes[:, None, None] * distance)[None]


class Plan:
    """What one forward pass does about positions and padding; each kind of attention is a subclass.

    Args:
        slopes: one for each head, above 0.
        mask: (batch, length), True for tokens and False for padding, or None where there is no padding.
        states: (batch, length, width), the hidden states that come; only their shape, dtype and device are read.
    """

    def __init__(self, slopes: list[float], mask: Tensor | None, states: Tensor) -> None:
        # Half precision would round the slopes, and the error grows with the distance.
        exact = torch.promote_types(states.dtype, torch.float32)
        self.slopes = torch.tensor(slopes, dtype=exact, device=states.device)
        self.mask = mask
        self.batch, self.length = states.shape[:2]

    def pack(self, states: Tensor) -> Tensor:
        """The hidden states as the layers take them; (batch, length, width) here."""
        return states

    def unpack(self, states: Tensor) -> Tensor:
        """The layers' hidden states as (batch, length, width), with zeros for padding."""
        return states if self.mask is None else states * self.mask[..., None].to(states.dtype)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
        """Attention of packed states; each argument and the output is (batch, heads, length, head width).

        The second output is the weights, (batch, heads, length, length), of the eager kind, else None.
        """
        raise NotImplementedError


class EagerPlan(Plan):
    """Plain matrix products; holds several copies of batch x heads x length x length, and returns the weights."""

    def __init__(self, slopes: list[float], mask: Tensor | None, states: Tensor) -> None:
        super().__init__(slopes, mask, states)
        self.bias = dense_bias(self.slopes, self.length)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
        scores = query @ key.mT * query.shape[-1] ** -0.5 + self.bias
        if self.mask is not None:
            # The lowest number, not infinity: a row of padding alone then gives no NaN.
            scores = scores.masked_fill(~self.mask[:, None, None], torch.finfo(scores.dtype).min)
        weights = drop_out(scores.softmax(-1).to(value.dtype), dropout)
        return weights @ value, weights


class SdpaPlan(Plan):
    """torch's scaled_dot_product_attention with one bias of heads x length x length, whatever the batch.

    A mask in the bias would give it a batch dimension. Padding is a further coordinate instead, in which every query has 1
    and the keys of padding have a very low number.
    """

    def __init__(self, slopes: list[float], mask: Tensor | None, states: Tensor) -> None:
        super().__init__(slopes, mask, states)
        self.bias = dense_bias(self.slopes, self.length).to(states.dtype)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
        width, scale = query.shape[-1], query.shape[-1] ** -0.5
        if self.mask is not None:
            extra = (0, 8)  # one coordinate is needed; kernels want a multiple of eight
            query, key, value = (pad(states, extra) for states in (query, key, value))
            here = torch.arange(width + 8, device=query.device) == width
            padding = (~self.mask[:, None, :, None]) & here
            query = query.masked_fill(here, 1)
            key = key.masked_fill(padding, FAR_BELOW)
        self.bias = self.bias.to(query.dtype)  # under autocast not the states' dtype; all layers share the copy
        found = scaled_dot_product_attention(query, key, value, attn_mask=self.bias, dropout_p=dropout, scale=scale)
        return found[..., :width], None


class Block(NamedTuple):
    """A run of packed query tokens, and the keys they may see: places from ``first`` to below ``last``, and so on."""

    first: int
    last: int
    first_key: int
    last_key: int
    #: The texts of the packed tokens differ, or their positions leave places out: the bias needs them.
    mixed: bool


class BlockwisePlan(Plan):
    """Attention in blocks of queries over texts without padding, recomputed in the backward pass.

    The texts of a batch are put one after the other, so that padding costs nothing in any layer. Short texts share a block,
    long ones have several. No bias has a batch dimension, or more than a block's rows.

    Where a head's slope is steep, far keys weigh nothing: `_reach` says from which distance on that holds, from the norms of
    the queries and keys themselves, and those keys are left out.
    """

    def __init__(self, slopes: list[float], mask: Tensor | None, states: Tensor) -> None:
        super().__init__(slopes, mask, states)
        batch, length, device = self.batch, self.length, states.device
        # Steepest heads first, so that heads which leave out the same keys stand together and share a call.
        order = sorted(range(len(slopes)), key=lambda head: -slopes[head])
        self.order = None if order == list(range(len(slopes))) else order
        self.slopes, self.steepness = self.slopes[order], [slopes[head] for head in order]
        self.size = BLOCK if device.type == "cpu" else LARGE_BLOCK
        places = torch.arange(length, device=device).expand(batch, length)
        if mask is None:
            self.index = None
            self.places = places.reshape(-1)
            counts, spans = [length] * batch, [length] * batch
        else:
            self.index = mask.flatten().nonzero()[:, 0]
            self.places = places.reshape(-1)[self.index]
            spread = torch.where(mask, places, -1).amax(1) - torch.where(mask, places, length).amin(1) + 1
            counts, spans = torch.stack([mask.sum(1), spread]).tolist()
        self.texts = torch.repeat_interleave(
            torch.arange(batch, device=device), torch.tensor(counts, dtype=torch.long, device=device)
        )
        self.blocks = list(self._cut(counts, spans))

    def _cut(self, counts: list[int], spans: list[int]) -> Iterator[Block]:
        first = end = 0
        for count, span in zip(counts, spans):
            if count >= self.size:
                if end > first:
                    yield Block(first, end, first, end, True)
                for start in range(end, end + count, self.size):
                    yield Block(start, min(start + self.size, end + count), end, end + count, span != count)
                first = end = end + count
            else:
                end += count
                if end - first >= self.size:
                    yield Block(first, end, first, end, True)
                    first = end
        if end > first:
            yield Block(first, end, first, end, True)

    def pack(self, states: Tensor) -> Tensor:
        flat = states.reshape(-1, states.shape[-1])
        return (flat if self.index is None else flat[self.index])[None]

    def unpack(self, states: Tensor) -> Tensor:
        if self.index is None:
            return states.view(self.batch, self.length, -1)
        whole = states.new_zeros(self.batch * self.length, states.shape[-1])
        return whole.index_copy(0, self.index, states[0]).view(self.batch, self.length, -1)

    # The number of blocks depends on the texts, which a compiled graph cannot: it calls this part as it is.
    @torch.compiler.disable
    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
        if self.order is not None:
            query, key, value = (states[:, self.order] for states in (query, key, value))
        found = _Blockwise.apply(query, key, value, self, dropout)
        if self.order is not None:
            back = sorted(range(len(self.order)), key=self.order.__getitem__)
            found = found[:, back]
        return found, None

    def pieces(self, reach: list[int]) -> Iterator[Piece]:
        """The calls that a layer takes: for each block one call for the heads that see the same keys."""
        for block in self.blocks:
            if block.mixed:
                yield Piece(0, len(reach), *block)
                continue
            seen = [(max(block.first_key, block.first - far), min(block.last_key, block.last + far)) for far in reach]
            start = 0
            for head in range(1, len(seen) + 1):
                if head == len(seen) or seen[head] != seen[start]:
                    yield Piece(start, head, block.first, block.last, *seen[start], False)
                    start = head

    def bias(self, piece: Piece, dtype: torch.dtype) -> Tensor:
        """(1, heads, queries, keys) of a piece, whose queries are in reversed order unless it is mixed."""
        slopes = self.slopes[piece.head : piece.last_head]
        queries, keys = slice(piece.first, piece.last), slice(piece.first_key, piece.last_key)
        if piece.mixed:
            distance = (self.places[queries, None] - self.places[keys]).abs().to(slopes.dtype)
            apart = self.texts[queries, None] != self.texts[keys]
            return (-slopes[:, None, None] * distance).masked_fill(apart, -torch.inf).to(dtype)[None]
        # The bias depends on j - i alone. With the queries reversed it depends on a sum, and all of it is a view of one
        # line, each row beginning one place further on. Other devices' kernels want aligned rows, which a copy has.
        rows, columns = piece.last - piece.first, piece.last_key - piece.first_key
        line = torch.arange(
            piece.first_key - piece.last + 1, piece.last_key - piece.first, dtype=slopes.dtype, device=slopes.device
        )
        line = (-slopes[:, None] * line.abs()).to(dtype)
        view = line.as_strided((1, len(slopes), rows, columns), (0, line.stride(0), 1, 1))
        return view if line.device.type == "cpu" else view.contiguous()

    def reach(self, query: Tensor, key: Tensor) -> list[int]:
        """For each head the distance beyond which keys weigh nothing, at most the number of tokens."""
        tokens = query.shape[2]
        if all(block.mixed for block in self.blocks):
            return [tokens] * len(self.steepness)
        largest = (_largest_norm(query) * _largest_norm(key) * query.shape[-1] ** -0.5).tolist()
        return [_reach(slope, bound, tokens) for slope, bound in zip(self.steepness, largest)]


class Piece(NamedTuple):
    """One call: heads from ``head`` to below ``last_head``, queries and keys as in `Block`."""

    head: int
    last_head: int
    first: int
    last: int
    first_key: int
    last_key: int
    mixed: bool

    def queries(self, states: Tensor) -> Tensor:
        return states[:, self.head : self.last_head, self.first : self.last]

    def keys(self, states: Tensor) -> Tensor:
        return states[:, self.head : self.last_head, self.first_key : self.last_key]


def _largest_norm(states: Tensor) -> Tensor:
    """The largest norm of a head's vectors, (heads,)."""
    return states.detach().float().norm(dim=-1).amax(dim=(0, 2))


def _reach(slope: float, bound: float, tokens: int) -> int:
    """The distance beyond which all keys together have at most `NEGLIGIBLE` of a query's weight, at most ``tokens``.

    ``bound`` is the largest absolute score before ALiBi. Before the softmax divides, a query's own key weighs at least
    ``exp(-bound)``, and the keys further away than d, on both sides, at most ``2 / slope * exp(bound - slope * d)`` together
    (two geometric series). At the distance below the second is `NEGLIGIBLE` times the first.
    """
    distance = (2 * bound + math.log(2 / (slope * NEGLIGIBLE))) / slope
    return tokens if not distance < tokens else math.ceil(distance)


class _Blockwise(torch.autograd.Function):
    """Attention piece by piece. The backward pass computes each piece again, so that nothing of it is kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: BlockwisePlan, dropout: float) -> Tensor:
        ctx.plan, ctx.dropout = plan, dropout
        ctx.reach = plan.reach(query, key)
        # A piece's dropout is drawn again in the backward pass, so each pass starts from one noted number.
        ctx.seed = int(torch.randint(2**62, ())) if dropout else 0
        ctx.save_for_backward(query, key, value)
        batch, heads, tokens, width = query.shape
        # In memory as (batch, tokens, heads, width), which the layer's output map reads without a copy.
        found = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        for number, piece in enumerate(plan.pieces(ctx.reach)):
            part = _attend(ctx, number, piece, piece.queries(query), piece.keys(key), piece.keys(value))
            piece.queries(found).copy_(part)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        (gradient,) = gradients
        totals = [torch.zeros_like(states) for states in (query, key, value)]
        for number, piece in enumerate(ctx.plan.pieces(ctx.reach)):
            leaves = [
                states.detach().requires_grad_()
                for states in (piece.queries(query), piece.keys(key), piece.keys(value))
            ]
            with torch.enable_grad():
                part = _attend(ctx, number, piece, *leaves)
            parts = torch.autograd.grad(part, leaves, piece.queries(gradient))
            piece.queries(totals[0]).add_(parts[0])
            piece.keys(totals[1]).add_(parts[1])
            piece.keys(totals[2]).add_(parts[2])
        return (*totals, None, None)


def _attend(ctx: Any, number: int, piece: Piece, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    # The inputs have their dtype already, and the bias follows it: autocast, on in one pass alone, would change it.
    with _seeded(ctx.seed + number, query.device, ctx.dropout), torch.autocast(query.device.type, enabled=False):
        found = scaled_dot_product_attention(
            query if piece.mixed else query.flip(2),
            key,
            value,
            attn_mask=ctx.plan.bias(piece, query.dtype),
            dropout_p=ctx.dropout,
        )
    return found if piece.mixed else found.flip(2)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device, dropout: float) -> Iterator[None]:
    """Random numbers from ``seed`` inside the block, and outside as if it had not been."""
    if not dropout:
        yield
        return
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        if devices:
            torch.get_device_module(device).manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


@functools.cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class FlexPlan(Plan):
    """torch's flex_attention, compiled on an accelerator; blocks of padding are skipped there.

    On a CPU it is the same formula without a kernel, which holds batch x heads x length x length, and only forward: training
    there is refused, as is dropout of the weights, which flex_attention does not have.
    """

    SIZE = 128

    def __init__(self, slopes: list[float], mask: Tensor | None, states: Tensor) -> None:
        super().__init__(slopes, mask, states)
        self.block_mask = None if mask is None else self._block_mask(mask)

    def _block_mask(self, mask: Tensor) -> Any:
        from torch.nn.attention.flex_attention import BlockMask

        length = mask.shape[1]
        tiles = pad(mask, (0, -length % self.SIZE)).view(self.batch, -1, self.SIZE)

        def choose(wanted: Tensor) -> tuple[Tensor, Tensor]:
            # (batch, 1, tiles of queries) counts and (batch, 1, tiles of queries, tiles of keys) numbers, wanted ones first
            count = tiles.shape[1]
            counts = wanted.sum(1, dtype=torch.int32)[:, None, None].expand(-1, 1, count)
            numbers = wanted.int().argsort(dim=1, descending=True, stable=True).int()
            return counts.contiguous(), numbers[:, None, None].expand(-1, 1, count, -1).contiguous()

        full = tiles.all(2)
        return BlockMask.from_kv_blocks(
            *choose(tiles.any(2) & ~full),
            *choose(full),
            BLOCK_SIZE=self.SIZE,
            mask_mod=lambda text, head, i, j: mask[text, j],
            seq_lengths=(length, length),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor | None]:
        if dropout:
            raise ValueError(
                "The 'attention_probs_dropout_prob' must be 0 in training with attn_implementation='flex_attention', which "
                f"has no dropout. Got {dropout} instead; the other kinds have it."
            )
        on_cpu = query.device.type == "cpu"
        if on_cpu and torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            raise ValueError(
                "The attn_implementation='flex_attention' has no backward pass on a CPU, so a model with it cannot be trained "
                "there: choose 'blockwise', or run it under torch.no_grad()."
            )
        from torch.nn.attention.flex_attention import flex_attention

        slopes = self.slopes

        def score(value: Tensor, text: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return value - slopes[head] * (i - j).abs()

        if torch.compiler.is_compiling():
            return flex_attention(query, key, value, score_mod=score, block_mask=self.block_mask), None
        if not on_cpu:
            return _compiled_flex_attention()(query, key, value, score_mod=score, block_mask=self.block_mask), None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            return flex_attention(query, key, value, score_mod=score, block_mask=self.block_mask), None


PLANS: dict[str, type[Plan]] = {
    "blockwise": BlockwisePlan,
    "sdpa": SdpaPlan,
    "eager": EagerPlan,
    "flex_attention": FlexPlan,
}
