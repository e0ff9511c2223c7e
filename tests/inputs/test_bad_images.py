"""Pictures that are damaged, enormous, or something else; and paths that lead out of a folder of pictures."""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
import time
import urllib.request
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from st_distill.evaluation import TaskSpec, read_task
from st_distill.modules.image_loading import load_image
from st_distill.recipe import Images
from st_distill.recipe.data import fingerprint, read_images


def encoded(kind: str = "PNG", mode: str = "RGB", **options) -> bytes:
    content = io.BytesIO()
    pixels = np.arange(20 * 10 * 3, dtype=np.uint8).reshape(10, 20, 3)
    Image.fromarray(pixels).convert(mode).save(content, kind, **options)
    return content.getvalue()


FORMATS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]


@given(st.sampled_from(FORMATS), st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.integers(0, 6))
def test_bytes_changed_added_or_taken_away(outcome, kind, place, content, taken):
    good = encoded(kind)
    at = int(place * len(good))
    outcome(lambda: load_image(good[:at] + content + good[at + taken :], row=7))


@given(st.binary(max_size=200))
def test_any_bytes(outcome, content):
    assert "image of row 3" in outcome(lambda: load_image(content, row=3))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_a_truncated_file(kind, share, outcome):
    content = encoded(kind)
    assert "cannot be read" in outcome(lambda: load_image(content[: int(share * len(content))]))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, pixels: bytes = b"\0" * 1000, kind: int = 2) -> bytes:
    """A PNG that says how large it is; by default with hardly any content."""
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(100_000, 100_000), (20_000, 10_000), (2**31 - 1, 1)])
def test_a_decompression_bomb(size, outcome):
    assert "is too large" in outcome(lambda: load_image(png(*size)))


@pytest.mark.parametrize(("kind", "channels", "most"), [(2, 3, 5), (6, 4, 9), (0, 1, 6)], ids=["RGB", "RGBA", "grey"])
def test_a_picture_takes_few_bytes_a_pixel(kind, channels, most, memory_of):
    size = 4000
    row = b"\0" + b"\x7f" * (channels * size)
    content = png(size, size, pixels=row * size, kind=kind)
    assert memory_of(lambda: load_image(content)) < most * size**2


def test_a_bomb_of_text_in_a_png(outcome):
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 200_000_000))
    good = encoded()
    outcome(lambda: load_image(good[:33] + text + good[33:]))


def test_postscript_is_not_run(outcome):
    # Pillow hands it to Ghostscript, which runs it.
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert "Pillow knows no such format" in outcome(lambda: load_image(content))


def test_animated_rotated_and_16_bit_pictures_are_read():
    frames = [Image.new("P", (6, 4), colour) for colour in (0, 1, 2)]
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    assert load_image(content.getvalue()).size == (6, 4)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    assert load_image(encoded("JPEG", exif=exif)).size == (10, 20)
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 6), 0x8000, dtype=np.uint16)).save(deep, "PNG")
    assert load_image(deep.getvalue()).getpixel((0, 0)) == (127, 127, 127)
    assert load_image(encoded("PNG", "RGBA")).mode == "RGB"


def test_the_ending_of_a_name_does_not_matter(tmp_path):
    (tmp_path / "picture.png").write_bytes(encoded("JPEG"))
    assert load_image(tmp_path / "picture.png").size == (20, 10)


def test_the_login_of_an_address_is_not_repeated(outcome):
    said = outcome(lambda: load_image("http://me:secret@localhost:1/a/b.png?signature=secret", row=3))
    assert "'http://localhost:1/a/b.png'" in said
    assert "secret" not in said


def test_a_server_that_never_ends_is_left(monkeypatch):
    class Dripping(io.BytesIO):
        def read1(self, size):
            return b"x"

    seconds = itertools.count()
    monkeypatch.setattr(urllib.request, "urlopen", lambda address, timeout: Dripping())
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    with pytest.raises(ValueError, match="'https://a.b/c.png': it takes longer than 20 seconds"):
        load_image("https://a.b/c.png", timeout=20)
    assert 20 < next(seconds) < 30


def test_a_device_or_a_pipe_is_not_read(tmp_path, outcome):
    os.mkfifo(tmp_path / "picture.png")
    for path in (tmp_path / "picture.png", "/dev/zero"):
        assert "it is no file" in outcome(lambda path=path: load_image(path))


LEADING_OUT = ["../outside.png", "{outside}", "link.png", "sub/../../outside.png", "linked/outside.png"]


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures, with links to one outside."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.png").write_bytes(encoded())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    return folder


def table_of(folder, kind: str, path: str, content: bytes | None = None) -> str:
    """A table in the folder with one picture, by its path alone or in a mapping."""
    stored = path if kind == "paths.jsonl" else {"bytes": content, "path": path}
    if kind == "saved":
        Dataset.from_dict({"image": [stored], "caption": ["a"]}).save_to_disk(folder / kind)
    elif kind == "rows.parquet":
        struct = pa.array([stored], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"image": struct, "caption": ["a"]}), folder / kind)
    else:
        (folder / kind).write_text(json.dumps({"image": stored, "caption": "a"}))
    return str(folder / kind)


@pytest.mark.parametrize("kind", ["paths.jsonl", "rows.parquet", "saved"])
@pytest.mark.parametrize("name", [*LEADING_OUT, "file:///etc/passwd", "\0"])
def test_a_recipes_pictures_lie_below_their_table(name, kind, folder, tmp_path, outcome):
    source = Images(path=table_of(folder, kind, name.format(outside=tmp_path / "outside.png")))
    said = outcome(lambda: read_images(source))
    assert ("leads out of it" if name in LEADING_OUT and kind != "saved" else "pictures") in said
    if kind == "paths.jsonl":
        assert outcome(lambda: fingerprint(source)) != "success" or name not in LEADING_OUT


@pytest.mark.parametrize("kind", ["paths.jsonl", "mapping.jsonl", "rows.parquet", "saved"])
@pytest.mark.parametrize("name", [*LEADING_OUT, "file:///etc/passwd", "\0"])
def test_a_tasks_pictures_lie_below_their_table(name, kind, folder, tmp_path, outcome):
    source = table_of(folder, kind, name.format(outside=tmp_path / "outside.png"))
    said = outcome(lambda: read_task(TaskSpec(source=source, kind="image_retrieval")))
    assert ("leads out of it" if name in LEADING_OUT and kind != "saved" else "pictures") in said


@pytest.mark.parametrize("kind", ["paths.jsonl", "mapping.jsonl", "rows.parquet"])
def test_pictures_below_their_table_are_read(kind, folder):
    (folder / "sub" / "a.png").write_bytes(encoded())
    for name in ("sub/a.png", str(folder / "sub" / "a.png")):
        path = table_of(folder, kind, name)
        assert len(read_task(TaskSpec(source=path, kind="image_retrieval"))) == 2
        if kind != "mapping.jsonl":
            assert len(read_images(Images(path=path)).dataset) == 1


def test_the_path_of_a_picture_that_is_in_the_table_is_but_its_name(folder, tmp_path):
    path = table_of(folder, "rows.parquet", str(tmp_path / "no" / "a.png"), encoded("GIF"))
    assert read_images(Images(path=path)).dataset[0]["image"].format == "GIF"
    assert len(read_task(TaskSpec(source=path, kind="image_retrieval"))) == 2


@given(st.lists(st.none() | st.binary(max_size=20) | st.just(encoded()), min_size=1, max_size=3))
def test_a_table_of_any_bytes(tmp_path_factory, outcome, pictures):
    folder = tmp_path_factory.mktemp("images")
    Dataset.from_dict({"image": pictures, "caption": ["a"] * len(pictures)}).to_parquet(folder / "images.parquet")
    said = outcome(lambda: read_images(Images(path=str(folder / "images.parquet"))))
    assert (said == "success") == all(picture == encoded() for picture in pictures)
    source = Images(path=str(folder / "images.parquet"), on_error="skip")
    said = outcome(lambda: read_images(source))
    assert (said == "success") == any(picture == encoded() for picture in pictures)
