"""Modules of a student in training; each turns into standard sentence-transformers modules by ``to_standard()``."""

from __future__ import annotations

from st_distill.modules.image import Transformer
from st_distill.modules.matryoshka import MatryoshkaProjection

__all__ = ["MatryoshkaProjection", "Transformer"]
