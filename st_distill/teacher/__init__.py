"""What the student learns from: models, functions, and vectors that exist already."""

from __future__ import annotations

from st_distill.teacher.source import Variant
from st_distill.teacher.teacher import Teacher, check_name

__all__ = ["Teacher", "Variant", "check_name"]
