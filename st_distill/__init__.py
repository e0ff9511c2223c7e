"""Distil small, fast text and image embedding models out of large ones, inside sentence-transformers.

The names below are loaded when first used, so that ``import st_distill`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "functional": "st_distill.functional",
    "losses": "st_distill.losses",
    "modules": "st_distill.modules",
    "Teacher": "st_distill.teacher",
    "TeacherStore": "st_distill.store",
    "Recipe": "st_distill.recipe",
    "Stage": "st_distill.recipe",
    "run": "st_distill.recipe",
    "export": "st_distill.exporting",
}

__all__ = ["Recipe", "Stage", "Teacher", "TeacherStore", "export", "functional", "losses", "modules", "run"]

if TYPE_CHECKING:
    from st_distill import functional, losses, modules
    from st_distill.exporting import export
    from st_distill.recipe import Recipe, Stage, run
    from st_distill.store import TeacherStore
    from st_distill.teacher import Teacher


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOME[name])
    value = home if name in ("functional", "losses", "modules") else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
