"""Files of numbers that grow by blocks, and their headers."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from st_distill.arrays import ArrayWriter, read_array_header


@pytest.mark.parametrize("shape", [(3, 2), (6,)])
def test_written_array_is_described(tmp_path, shape):
    array = np.arange(6, dtype=np.int64).reshape(shape)
    writer = ArrayWriter(tmp_path / "a.npy", array.dtype, *shape[1:])
    writer.append(array[:1])
    writer.append(array[1:])
    written = writer.close()
    content = (tmp_path / "a.npy").read_bytes()
    assert written == (len(content), hashlib.sha256(content).hexdigest())
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    header = read_array_header(tmp_path / "a.npy")
    assert (header.shape, header.dtype) == (shape, np.int64)
    assert content[header.offset :] == array.tobytes()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"hello" * 40], ids=["empty", "cut", "other"])
def test_header_of_what_is_no_array(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="is not an npy file"):
        read_array_header(tmp_path / "a.npy")


def test_header_of_fewer_rows_than_none(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((16, 24)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(16, 24), }  ", b"(-16, 24), } "))
    with pytest.raises(ValueError, match=r"a.npy is not an npy file \(its header gives the shape \(-16, 24\)\)"):
        read_array_header(tmp_path / "a.npy")


def test_header_of_an_array_that_is_not_all_there(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"a.npy has {len(content) - 1} bytes, where its header says {len(content)}"):
        read_array_header(tmp_path / "a.npy")


def test_header_of_python_objects_and_of_fortran_order(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.zeros((2, 3))))
    for name in ("objects", "columns"):
        with pytest.raises(ValueError, match="plain numbers in C order"):
            read_array_header(tmp_path / f"{name}.npy")


def test_array_writer_makes_what_numpy_saves(tmp_path):
    rows = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float16)
    writer = ArrayWriter(tmp_path / "a.npy", np.dtype(np.float16), 3)
    for start in range(0, 1000, 300):
        writer.append(rows[start : start + 300].astype(np.float32))
        assert not (tmp_path / "a.npy").exists()
    written = writer.close()
    np.save(tmp_path / "b.npy", rows)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert written.bytes == (tmp_path / "a.npy").stat().st_size


def test_array_writer_that_failed_can_only_be_discarded(tmp_path):
    writer = ArrayWriter(tmp_path / "a.npy", np.dtype(np.float32), 2)
    writer.append(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="could not convert"):
        writer.append(np.array([["x", "y"]]))
    with pytest.raises(ValueError, match="only be discarded"):
        writer.close()
    writer.discard()
    assert list(tmp_path.iterdir()) == []
