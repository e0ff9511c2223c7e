from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from st_distill.evaluation.precisions import as_stored, int8_ranges


def test_known_whole_numbers():
    """A step is 1 / 255 of the range; the sign of 0 is a minus."""
    ranges = np.array([[-0.5], [0.5]], dtype=np.float32).repeat(4, axis=1)
    vectors = torch.tensor([[-0.5, 0.25, 0.252, 0.254], [0.4999, 0.001, -0.001, -0.4999], [0.6, 9.0, -0.6, -9.0]])
    stored = as_stored(vectors, "int8", ranges)
    assert stored.tolist() == [[-128, 63, 63, 64], [126, -1, -1, -128], [127, 127, -128, -128]]
    eight = torch.tensor([[0.3, -0.3, 0.0, 2.0, -1.0, -1.0, -1.0, 0.1]])
    assert as_stored(eight, "binary").tolist() == [[1, -1, -1, 1, -1, -1, -1, 1]]
    assert as_stored(eight[:, :3], "binary").tolist() == [[1, -1, -1]]


def test_the_range_is_that_of_the_largest_number_of_all():
    ranges = int8_ranges(torch.tensor([[0.1, -0.2]]), torch.tensor([[0.0, 0.3], [-0.7, 0.0]]))
    assert ranges.dtype == np.float32
    np.testing.assert_allclose(ranges, [[-0.7, -0.7], [0.7, 0.7]])


@pytest.mark.parametrize("falls", [1.0, 0.8, 0.5])
def test_cosines_are_those_of_the_vectors_however_unequal_the_dimensions_are(falls):
    generator = torch.Generator().manual_seed(0)
    unit = normalize(torch.randn(50, 16, generator=generator) * falls ** torch.arange(16), dim=1)
    stored = normalize(as_stored(unit, "int8", int8_ranges(unit)), dim=1)
    assert torch.allclose(stored @ stored.T, unit @ unit.T, atol=0.04)
