"""The teachers' vectors on disk."""

from __future__ import annotations

from st_distill.store.store import StoreView, TeacherStore

__all__ = ["StoreView", "TeacherStore"]
