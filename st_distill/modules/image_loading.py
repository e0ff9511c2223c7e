"""Reading pictures, whatever they come as, without trusting them."""

from __future__ import annotations

import io
import os
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["load_image"]

#: What a picture may come as. Pillow opens more, some by programs of the system: PostScript by Ghostscript.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_MAX_BYTES = 256 * 2**20  # of a file
_PIECE = 2**20  # bytes that are read of an answer at a time
_ORIENTATION = 0x0112  # of a photograph, among its EXIF data
_STRIP = 64  # rows of a picture that are converted at a time


def load_image(source: Any, *, row: int | str | None = None, timeout: float = 30.0) -> Image.Image:
    """An image as RGB, whatever it comes as; transparency becomes white, and an EXIF orientation is applied.

    Nothing is fetched but for an ``http(s)`` URL. It takes 4 bytes a pixel of memory, and 8 where the picture is not RGB.

    Args:
        source: a PIL image, a path, an http(s) URL, the bytes of a file, or the ``{"bytes": ..., "path": ...}`` mapping
            of a datasets Image column.
        row: what a message calls the place of the image: a row number, or any name.
        timeout: seconds that a URL may take.

    Returns:
        (width, height) of the image itself, mode RGB; ``source``, where it is such an image. 16-bit grey becomes 8-bit by
        its high byte.

    Raises:
        ValueError: in one sentence that names the row, for what is missing, not an image, damaged, or has more pixels
            than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    place = "" if row is None else f" of row {row}"
    try:
        with warnings.catch_warnings():
            # Pillow only warns of up to twice its limit; a row of a data set should not take the machine's memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _to_rgb(source if isinstance(source, Image.Image) else _open(source, timeout))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"The image{place} is too large: it has more pixels than PIL.Image.MAX_IMAGE_PIXELS "
            f"({Image.MAX_IMAGE_PIXELS}). Shrink it, or raise that limit if you trust the file."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"The image{place} cannot be read from {_shown(source)}: Pillow knows no such format."
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever their format's code raises
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"The image{place} cannot be read from {_shown(source)}: {reason}.") from error


def _open(source: Any, timeout: float) -> Image.Image:
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            source = source["bytes"]
        elif source.get("path") is not None:
            source = source["path"]
        else:
            raise ValueError('it has neither "bytes" nor "path"')
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decoded(bytes(source))
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _decoded(_downloaded(source, timeout))
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.exists() and not path.is_file():  # a device or a pipe has no end
            raise ValueError("it is no file")
        with path.open("rb") as file:
            return _decoded(file.read(_MAX_BYTES + 1))
    raise TypeError(
        'it must be a PIL image, a path, an http(s) URL, bytes, or a mapping with "bytes" or "path", '
        f"not {type(source).__name__}"
    )


def _downloaded(address: str, timeout: float) -> bytes:
    end = time.monotonic() + timeout
    content = bytearray()
    with urllib.request.urlopen(address, timeout=timeout) as answer:
        # One piece after another: a server that sends a byte now and then would keep a single read for ever.
        while len(content) <= _MAX_BYTES and (piece := answer.read1(_PIECE)):
            content += piece
            if time.monotonic() > end:
                raise TimeoutError(f"it takes longer than {timeout:g} seconds")
    return bytes(content)


def _decoded(content: bytes) -> Image.Image:
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES // 2**20} MiB")
    Image.init()
    return Image.open(io.BytesIO(content), formats=[name for name in _FORMATS if name in Image.OPEN])


def _to_rgb(image: Image.Image) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    # convert("RGB") would clip 16-bit grey to white; some versions of Pillow open it as "I", which may hold 8 bits too.
    is_deep = image.mode.startswith("I;") or (image.mode == "I" and image.getextrema()[1] > 255)  # type: ignore[operator]
    is_transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    rgb = Image.new("RGB", image.size, "white")
    for top in range(0, image.height, _STRIP):  # so that nothing in between is as large as the picture
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        if image.mode.startswith("I"):
            grey = strip.convert("I")
            strip = (grey.point(lambda value: value * (1 / 257)) if is_deep else grey).convert("L")
        strip = strip.convert("RGBA" if is_transparent else "RGB")
        rgb.paste(strip, (0, top), strip if is_transparent else None)
    return rgb


def _shown(source: Any) -> str:
    if isinstance(source, Mapping):
        return _shown(source["path"]) if source.get("path") is not None else "a mapping"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{len(source)} bytes"
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        address = urllib.parse.urlsplit(source)  # without the password or the signature that it may have
        return repr(f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}")
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    return f"a {type(source).__name__}"
