"""The axes of the teacher's space: orthonormal, and worth what they are chosen for."""

from __future__ import annotations

import pytest
import torch

from st_distill.functional import normalize
from st_distill.modules.rotation import learned_rotation, principal_rotation, random_rotation


@pytest.fixture
def teacher():
    """(300, 20) vectors around ten centres, along axes that are not those of the space."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 20, generator=generator)
    noise = 0.3 * torch.randn(300, 20, generator=generator)
    return centres.repeat(30, 1) + noise


def neighbours_kept(teacher, rotation, dim):
    """Share of the texts whose nearest one by the prefix is of their own centre."""
    unit = normalize(normalize(teacher) @ rotation[:, :dim])
    nearest = (unit @ unit.mT).fill_diagonal_(-1).argmax(dim=1)
    return (nearest % 10 == torch.arange(300) % 10).float().mean().item()


@pytest.mark.parametrize("seed", [0, 1])
def test_random_rotation_is_orthonormal_and_reproducible(seed):
    rotation = random_rotation(30, 10, seed=seed)
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(10), atol=1e-6, rtol=0)
    assert torch.equal(rotation, random_rotation(30, 10, seed=seed))
    assert not torch.equal(rotation, random_rotation(30, 10, seed=seed + 1))


def test_principal_rotation_orders_the_axes_by_their_share(teacher):
    rotation = principal_rotation([teacher[:150], teacher[150:]], 20)
    shares = (normalize(teacher) @ rotation).square().sum(0)
    assert torch.equal(shares, shares.sort(descending=True).values)


class TestLearned:
    def batches(self, teacher, count=80):
        generator = torch.Generator().manual_seed(1)
        for _ in range(count):
            yield teacher[torch.randperm(len(teacher), generator=generator)[:64]]

    def test_it_is_orthonormal_and_spans_what_it_started_from(self, teacher):
        start = principal_rotation([teacher], 12)
        rotation = learned_rotation(self.batches(teacher, 5), start, [12, 4])
        torch.testing.assert_close(rotation.mT @ rotation, torch.eye(12), atol=1e-6, rtol=0)
        torch.testing.assert_close(rotation @ rotation.mT, start @ start.mT, atol=1e-5, rtol=0)
        assert not torch.allclose(rotation, start, atol=1e-3)

    def test_short_prefixes_keep_more_neighbours_than_random_and_principal_axes(self, teacher):
        principal = principal_rotation([teacher], 20)
        learned = learned_rotation(self.batches(teacher), principal, [20, 3], learning_rate=0.02, steps=80)
        kept = [neighbours_kept(teacher, rotation, 3) for rotation in (random_rotation(20, 20), principal, learned)]
        assert kept[2] > max(kept[:2]) + 0.05

    def test_the_whole_space_keeps_its_cosines(self, teacher):
        rotation = learned_rotation(self.batches(teacher, 5), torch.eye(20), [20, 4])
        turned = normalize(teacher) @ rotation
        torch.testing.assert_close(turned @ turned.mT, normalize(teacher) @ normalize(teacher).mT, atol=1e-5, rtol=0)

    def test_no_shorter_prefix_leaves_the_start_as_it_is(self, teacher):
        start = random_rotation(20, 8)
        assert torch.equal(learned_rotation(self.batches(teacher), start, [8]), start)

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            ([], "at least one batch of teacher vectors. Got none"),
            ([torch.ones(1, 20)], "at least 2 vectors. Got one of 1"),
        ],
    )
    def test_too_few_vectors(self, batches, message):
        with pytest.raises(ValueError, match=message):
            learned_rotation(batches, torch.eye(20), [4])
