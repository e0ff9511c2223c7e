"""Variants of the default recipe that were or are to be tried on dev; docs/ablations.md says what each one is for."""

from __future__ import annotations

from typing import Any

#: Changes to `Settings` for each trial; overrides are those of ``st-distill run --set``.
TRIALS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-stage": {"stages": (("all", 1.0),)},
}
