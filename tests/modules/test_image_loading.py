"""Reading pictures of every kind, and refusing what is none."""

from __future__ import annotations

import io
import urllib.request

import pytest
from PIL import Image

from st_distill.modules.image_loading import load_image


def _file(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def test_load_image_blends_over_white():
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 51))
    assert load_image(_file(half)).getpixel((0, 0)) == (204, 204, 204)
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    loaded = load_image(_file(palette, transparency=0))
    assert [loaded.getpixel((0, 0)), loaded.getpixel((1, 0))] == [(255, 255, 255), (200, 100, 50)]


def test_load_image_reads_32_bit_grey_by_its_range():
    assert load_image(Image.new("I", (2, 2), 100)).getpixel((0, 0)) == (100, 100, 100)
    assert load_image(Image.new("I", (2, 2), 25700)).getpixel((0, 0)) == (100, 100, 100)


def test_load_image_turns_a_photograph_upright():
    picture = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    assert load_image(_file(picture, "JPEG", exif=exif)).size == (2, 4)


def test_load_image_fetches_urls_and_nothing_else(monkeypatch, images, tmp_path):
    asked = []

    def answer(url, timeout):
        asked.append((url, timeout))
        return io.BytesIO(_file(images[0]))

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    picture = load_image("https://example.org/a.png", timeout=3)
    assert picture.tobytes() == images[0].tobytes()
    assert asked == [("https://example.org/a.png", 3)]
    for source in ("ftp://example.org/a.png", "file:///etc/hostname", str(tmp_path / "none.png")):
        with pytest.raises(ValueError, match="cannot be read"):
            load_image(source)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.png", r"The image of row 7 cannot be read from 'none\.png': No such file"),
        (b"no image at all", r"The image of row 7 cannot be read from 15 bytes: Pillow knows no such format\."),
        (_file(Image.new("RGB", (64, 64)))[:60], r"The image of row 7 cannot be read from 60 bytes: "),
        ({"bytes": None, "path": None}, r'row 7 cannot be read from a mapping: it has neither "bytes" nor "path"'),
        (None, r"row 7 cannot be read from a NoneType: it must be a PIL image"),
        (12.5, r"row 7 cannot be read from a float: it must be a PIL image"),
    ],
)
def test_load_image_says_what_is_wrong_and_where(source, message):
    with pytest.raises(ValueError, match=message):
        load_image(source, row=7)


@pytest.mark.parametrize("limit", [10_000, 6_000, 2_000])
def test_load_image_respects_the_limit_of_pixels(monkeypatch, limit):
    source = _file(Image.new("L", (100, 100)))
    picture = Image.new("L", (100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit == 10_000:
        assert load_image(source).size == (100, 100)
        return
    for form in (source, picture):
        with pytest.raises(ValueError, match=rf"row 3 is too large: .*MAX_IMAGE_PIXELS \({limit}\)"):
            load_image(form, row=3)
