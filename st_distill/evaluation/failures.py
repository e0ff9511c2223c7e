"""What could not be measured: told in the log, kept beside the figures, and no reason to stop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from st_distill.errors import one_line, sentence

__all__ = ["failure", "failures"]

logger = logging.getLogger(__name__)

#: Where an error that comes from another process repeats what that one printed.
_TRACEBACK = "Traceback (most recent call last)"


def failure(name: str, error: Exception) -> dict[str, str]:
    """The entry of what could not be measured, its "name" and "error", a line, which is told in the log too."""
    told = one_line(error)
    if _TRACEBACK in told:
        told = str(error).strip().splitlines()[-1].strip().rstrip(".")
    if not isinstance(error, (ValueError, OSError, ImportError, MemoryError)):  # no sentence for a user
        told = f"{type(error).__name__}: {told}"
    logger.warning("The part '%s' of the evaluation could not be measured: %s", name, sentence(told))
    return {"name": name, "error": told}


def failures(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """All that could not be measured as a recipe asks for it: parts of its evaluation under their own names, and tasks."""
    return [*results.get("failed", []), *(results.get("tasks") or {}).get("failed", [])]
