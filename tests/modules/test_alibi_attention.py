from __future__ import annotations

import pytest
import torch

from st_distill.modules import alibi_attention
from st_distill.modules.alibi_attention import PLANS, alibi_slopes

KINDS = ("sdpa", "blockwise", "flex_attention")
#: Lengths of the texts of a batch: a long one, ones that share a block, an empty one.
LENGTHS = [37, 5, 1, 0, 9, 23]


def inputs(lengths, heads=3, width=8, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), heads, max(lengths), width)
    states = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return states, mask


def attend(kind, states, mask, dropout=0.0):
    """Attention of (batch, heads, length, width) states through the plan's packing, zero at padding."""
    heads = states[0].shape[1]
    flat = [part.transpose(1, 2).flatten(2) for part in states]
    plan = PLANS[kind](alibi_slopes(heads), mask, flat[0])
    packed = [plan.pack(part).unflatten(-1, (heads, -1)).transpose(1, 2) for part in flat]
    found, _ = plan.attend(*packed, dropout)
    return plan.unpack(found.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)


def test_slopes_known_by_hand():
    assert alibi_slopes(1) == [2**-8]
    assert alibi_slopes(8) == [0.5, 0.25, 0.125, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8]
    assert alibi_slopes(12)[8:] == [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    for heads in range(1, 40):
        slopes = alibi_slopes(heads)
        assert len(set(slopes)) == heads
        assert all(0 < slope < 1 for slope in slopes)


@pytest.mark.parametrize("kind", PLANS)
def test_weights_known_by_hand(kind):
    """With equal scores the weights are powers of the slope: three tokens, one head, e^(-slope * distance)."""
    zero = torch.zeros(1, 1, 3, 8)
    value = torch.eye(3, 8)[None, None]
    with torch.no_grad():
        found = attend(kind, (zero, zero, value), None)[0, 0, :, :3]
    near, far = 2.718281828459045 ** -(2**-8), 2.718281828459045 ** -(2**-7)
    expected = torch.tensor([[1, near, far], [near, 1, near], [far, near, 1]])
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("heads", [1, 4, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_agree(kind, heads, monkeypatch):
    monkeypatch.setattr(alibi_attention, "BLOCK", 8)
    (states, mask), (others, _) = inputs(LENGTHS, heads), inputs(LENGTHS, heads)
    if kind == "flex_attention":  # forward alone
        states, others = [part.detach() for part in states], [part.detach() for part in others]
    expected, found = attend("eager", states, mask), attend(kind, others, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not found[3].any()
    if kind != "flex_attention":
        for output in (expected, found):
            (output**2 * torch.linspace(-1, 1, output.shape[-1])).sum().backward()
        for one, other in zip(states, others):
            torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "holes"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_anywhere(kind, side, monkeypatch):
    monkeypatch.setattr(alibi_attention, "BLOCK", 8)
    states, mask = inputs([29, 20, 3])
    states = [part.detach() for part in states]
    mask = mask.flip(1) if side == "left" else mask & (torch.arange(29) % 5 != 1)
    torch.testing.assert_close(attend(kind, states, mask), attend("eager", states, mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("strength", [0.1, 4.0])
def test_keys_left_out_weigh_nothing(strength, monkeypatch):
    """A text long enough that the steep heads leave keys out; stronger scores leave out fewer."""
    monkeypatch.setattr(alibi_attention, "BLOCK", 32)
    states, _ = inputs([500], heads=4)
    states = [(strength * states[0]).detach(), *states[1:]]
    with torch.no_grad():
        torch.testing.assert_close(attend("blockwise", states, None), attend("eager", states, None), atol=1e-5, rtol=0)
    plan = PLANS["blockwise"](alibi_slopes(4), None, torch.zeros(1, 500, 32))
    reach = plan.reach(*states[:2])
    assert reach == sorted(reach)
    assert reach[0] < 500
    assert alibi_attention._reach(0.25, 0.1, 500) < alibi_attention._reach(0.25, 10.0, 500) < 500
    assert alibi_attention._reach(0.25, float("nan"), 500) == 500


def test_a_block_never_holds_all_pairs(monkeypatch):
    monkeypatch.setattr(alibi_attention, "BLOCK", 8)
    plan = PLANS["blockwise"](alibi_slopes(2), inputs(LENGTHS, 2)[1], torch.zeros(6, 37, 4))
    pieces = list(plan.pieces([75, 75]))
    assert max(piece.last - piece.first for piece in pieces) < 2 * 8
    assert max(piece.last_key - piece.first_key for piece in pieces) == 37
    assert sorted({place for piece in pieces for place in range(piece.first, piece.last)}) == list(range(75))


def test_the_bias_has_no_batch_dimension():
    plan = PLANS["sdpa"](alibi_slopes(2), inputs(LENGTHS, 2)[1], torch.zeros(6, 37, 4))
    assert plan.bias.shape == (1, 2, 37, 37)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", PLANS)
def test_half_precision(kind, dtype):
    states, mask = inputs(LENGTHS, dtype=dtype)
    exact = attend("eager", [part.detach().float() for part in states], mask)
    found = attend(kind, [part.detach() for part in states], mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0)


@pytest.mark.parametrize("kind", PLANS)
def test_distances_that_bfloat16_cannot_tell_apart(kind):
    """bfloat16 has 8 binary digits: beyond 256 odd numbers are missing, and a slope of 257/4096 would be 256/4096.

    With equal scores a key's weight is e^(-slope * distance) of the query's own, in the worst case off by the rounding of
    both weights, and by half of the last digit of a bias between 16 and 32 where the kernel wants the bias in bfloat16.
    """
    distances = [0, 257, 259, 263, 271, 287, 299, 301]
    value = torch.zeros(1, 1, 320, 8, dtype=torch.bfloat16)
    value[0, 0, distances] = torch.eye(8, dtype=torch.bfloat16)
    zero = torch.zeros_like(value)
    plan = PLANS[kind]([257 / 4096], None, zero[:, 0])
    with torch.no_grad():
        found, _ = plan.attend(zero, zero, value, 0.0)
    weights = found[0, 0, 0].double()
    error = (weights / weights[0]).log() + torch.tensor(distances) * 257 / 4096
    assert error.abs().max() < 0.012 + (0.0625 if kind in ("sdpa", "blockwise") else 0)


def test_dropout_of_blocks_is_the_same_in_the_backward_pass(monkeypatch):
    """The output is linear in the values, so the gradient in their direction is the output itself."""
    monkeypatch.setattr(alibi_attention, "BLOCK", 8)
    states, mask = inputs(LENGTHS)
    torch.manual_seed(3)
    found = attend("blockwise", states, mask, dropout=0.5)
    after = torch.rand(1)
    weight = torch.randn_like(found)
    (slope,) = torch.autograd.grad((found * weight).sum(), states[2])
    torch.testing.assert_close((slope * states[2]).sum(), (found * weight).sum(), atol=1e-4, rtol=1e-4)
    torch.manual_seed(3)
    assert torch.equal(attend("blockwise", states, mask, dropout=0.5), found)
    assert torch.equal(torch.rand(1), after)
    assert not torch.allclose(attend("blockwise", states, mask), found)


def test_flex_attention_refuses_what_it_cannot():
    states, mask = inputs(LENGTHS)
    with pytest.raises(ValueError, match="'flex_attention' has no backward pass on a CPU"):
        attend("flex_attention", states, mask)
    with torch.no_grad(), pytest.raises(ValueError, match="'attention_probs_dropout_prob' must be 0.*Got 0.1"):
        attend("flex_attention", states, mask, dropout=0.1)
