"""Weights at the same place in memory, wherever a model comes from, so that its vectors are the same to the last bit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeVar

from torch import nn

_M = TypeVar("_M", bound=nn.Module)

__all__ = ["align_files", "align_weights"]

_ALIGNMENT = 64


def align_weights(model: _M) -> _M:
    """Moves parameters and buffers on the CPU to memory that starts at a multiple of 64 bytes; returns ``model``.

    Matrix products of a single row (a text of one token, the projection of a batch of one) differ in their last bit
    between weights that start at a multiple of 16 bytes and weights that do not (seen with torch 2.13 and its MKL).
    Weights made in memory do; weights mapped from a safetensors file do as the length of the file's header has it. A
    model whose vectors are to be equal to another's to the last bit needs both in the same place.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return model


def align_files(folder: str | os.PathLike[str]) -> None:
    """Pads the header of every safetensors file in ``folder``, so that loaded weights lie as ``align_weights`` puts them.

    The format allows spaces at the header's end; the weights themselves are copied as they are.
    """
    for path in sorted(Path(folder).rglob("*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            missing = -(8 + length) % _ALIGNMENT
            if not missing:
                continue
            header = file.read(length)
            part = path.with_name(path.name + ".part")
            with open(part, "wb") as target:
                target.write((length + missing).to_bytes(8, "little") + header + b" " * missing)
                shutil.copyfileobj(file, target)
        os.replace(part, path)
