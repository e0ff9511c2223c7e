"""Every field of a recipe as a table, made from the dataclasses themselves."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, Union, get_args, get_origin

from st_distill.recipe.conversion import Part, default_of, expected, hints
from st_distill.recipe.schema import (
    Evaluation,
    Images,
    ImageSource,
    Objective,
    Projection,
    Recipe,
    Stage,
    Student,
    TeacherSpec,
    Texts,
)

__all__ = ["reference"]


#: The parts of a recipe of distillation, from the outermost in.
_PARTS = (Recipe, Student, TeacherSpec, Texts, Images, Projection, Stage, Objective, Evaluation, ImageSource)


def reference(parts: Sequence[type[Part]] = _PARTS) -> str:
    """Every field of a recipe's parts with its type, default and meaning, as Markdown."""
    sections = []
    for cls in parts:
        rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
        for option in fields(cls):  # type: ignore[arg-type]
            default = default_of(option)
            shown = "required" if default is MISSING else "" if default in (None, {}, []) else f"`{default}`"
            kind = _kind(hints(cls)[option.name]).replace("|", "\\|")  # type: ignore[arg-type]
            rows.append(f"| `{option.name}` | {kind} | {shown} | {option.metadata['help']} |")
        sections.append("\n".join([f"### {cls.__name__}", "", str(cls.__doc__), "", *rows]))
    return "\n\n".join(sections) + "\n"


def _kind(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return ", or ".join(_kind(option) for option in get_args(hint) if option is not type(None))
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in get_args(hint))
    if origin is list and isinstance(get_args(hint)[0], type) and issubclass(get_args(hint)[0], Part):
        return f"list of {get_args(hint)[0].__name__}"
    if isinstance(hint, type) and issubclass(hint, Part):
        return hint.__name__
    return "any" if hint is Any else expected(hint)
