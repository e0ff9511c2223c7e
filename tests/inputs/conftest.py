"""How many cases the property-based tests try: always the same sample in the suite; others, as long as there is time, in
``make fuzz``.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import st_distill
from st_distill.errors import RecipeError

PACKAGE = Path(st_distill.__file__).parent
#: What the library raises for input that cannot be right. Anything else is a defect.
MISTAKES = (ValueError, TypeError, OSError)
#: Memory that one case may take beyond what the process had before, in bytes.
MEMORY = 600 * 2**20
#: Time that one case may take on a busy machine: what takes longer hangs, to whoever waits for it.
SECONDS = 30

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]

settings.register_profile(
    "suite", max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=_QUIET
)
settings.register_profile("fuzz", max_examples=1000, deadline=None, database=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("FUZZ_PROFILE", "suite"))


@pytest.fixture(scope="session")
def outcome() -> Callable[[Callable[[], Any]], str]:
    """A function that calls another: ``"success"``, or the message of the mistake, which must be words for a person."""

    def tried(function: Callable[[], Any]) -> str:
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is that of this case
        before, began = _peak(), time.monotonic()
        try:
            function()
            said = "success"
        except MISTAKES as mistake:
            said, lines = str(mistake), isinstance(mistake, RecipeError)  # which has one for each mistake
            if not 10 < len(said) < (100_000 if lines else 5000) or not in_words(mistake):
                raise
        assert _peak() - before < MEMORY
        assert time.monotonic() - began < SECONDS
        return said

    return tried


@pytest.fixture(scope="session")
def memory_of() -> Callable[[Callable[[], Any]], int]:
    """A function that calls another and says how many bytes more than before the process had at most."""

    def measured(function: Callable[[], Any]) -> int:
        Path("/proc/self/clear_refs").write_text("5")
        before = _peak()
        function()
        return _peak() - before

    return measured


def in_words(mistake: BaseException) -> bool:
    """Whether st-distill itself has raised a mistake, so that it says it in its own words, and not Python or a library.

    What the system says of a file that it names is as good.
    """
    if isinstance(mistake, OSError) and mistake.errno is not None and mistake.filename is not None:
        return True
    frame = traceback.extract_tb(mistake.__traceback__)[-1]
    return Path(frame.filename).is_relative_to(PACKAGE) and (frame.line or "").startswith("raise ")


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
