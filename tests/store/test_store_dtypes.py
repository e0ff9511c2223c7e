"""What each dtype of a store keeps of a vector."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore
from st_distill.store.dtypes import DTYPES

VECTORS = {
    "zero": [0.0, 0.0, 0.0, 0.0],
    "axis": [0.0, 2.0, 0.0, 0.0],
    "even": [1.0, 1.0, -1.0, 1.0],
    "large": [3e38, 3e38, 0.0, 0.0],
    "small": [1e-38, 0.0, 1e-38, 0.0],
}


def create(path, dtype, vectors=VECTORS, **options):
    teacher = Teacher(lambda texts: [vectors[text] for text in texts], name="t", revision="1")
    return TeacherStore.create(path, list(vectors), teacher, dtype=dtype, show_progress=False, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_that_every_dtype_holds(tmp_path, dtype):
    store = create(tmp_path / "s", dtype, shard_rows=2)
    half = 0.5**0.5
    expected = [[0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, -0.5, 0.5], [half, half, 0, 0], [half, 0, half, 0]]
    assert store.gather(store.ids(list(VECTORS))).numpy() == pytest.approx(np.array(expected), abs=1e-6)


# Half a unit in the last place of the mantissa (24, 11, 8 bits), or of 1/127 of the largest entry.
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float16", 5e-4), ("bfloat16", 4e-3), ("int8", 4e-3)])
def test_rounding_is_within_half_a_step(tmp_path, dtype, bound):
    generator = np.random.default_rng(0)
    vectors = {f"text {number}": generator.standard_normal(64) for number in range(100)}
    gathered = create(tmp_path / "s", dtype, vectors).gather(range(100)).numpy()
    exact = np.stack(list(vectors.values()))
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    assert (np.abs(gathered - exact) / largest).max() < 1.5 * bound  # the length is made one again
    assert np.linalg.norm(gathered, axis=1) == pytest.approx(1, abs=1e-6)


def test_bfloat16_is_its_bits(tmp_path):
    create(tmp_path / "s", "bfloat16", {"a": [1.0, 0.0], "b": [-1.0, 0.0]})
    stored = np.load(tmp_path / "s" / "teachers" / "t" / "00000.npy")
    assert stored.dtype == np.uint16
    assert stored.tolist() == [[0x3F80, 0], [0xBF80, 0]]
    assert json.loads((tmp_path / "s" / "store.json").read_text())["teachers"]["t"]["dtype"] == "bfloat16"


def test_int8_has_a_scale_per_row(tmp_path):
    store = create(tmp_path / "s", "int8", {"a": [3.0, -4.0], "b": [0.0, 0.0]})
    folder = tmp_path / "s" / "teachers" / "t"
    stored, scales = np.load(folder / "00000.npy"), np.load(folder / "00000.scales.npy")
    assert (stored.dtype, scales.dtype) == (np.int8, np.float32)
    assert stored.tolist() == [[95, -127], [0, 0]]
    assert (stored * scales[:, None])[0].tolist() == pytest.approx([0.6, -0.8], abs=0.004)
    shard = json.loads((tmp_path / "s" / "store.json").read_text())["teachers"]["t"]["shards"][0]
    assert shard["scales"]["file"] == "teachers/t/00000.scales.npy"
    assert shard["scales"]["bytes"] == (folder / "00000.scales.npy").stat().st_size
    assert store.describe()["teachers"]["t"]["bytes"] == sum(path.stat().st_size for path in folder.iterdir())


def test_a_missing_file_of_scales(tmp_path):
    create(tmp_path / "s", "int8")
    (tmp_path / "s" / "teachers" / "t" / "00000.scales.npy").unlink()
    with pytest.raises(ValueError, match=r"The store is damaged: in .*00000.scales.npy, there is no such file"):
        TeacherStore.open(tmp_path / "s")


def test_teachers_of_several_dtypes_side_by_side(tmp_path):
    for number, dtype in enumerate(DTYPES):
        teacher = Teacher(lambda texts: np.eye(2)[: len(texts)], name=f"t{number}", revision="1")
        store = TeacherStore.create(tmp_path / "s", ["a", "b"], teacher, dtype=dtype, show_progress=False)
    row = torch.tensor([0.5, 0.0] * 4)
    assert torch.allclose(store.gather([0]), row, atol=1e-6)
