"""How many cases the property-based tests try: always the same sample in the suite; others, as long as there is time, in
``make fuzz``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from mistakes import MISTAKES, in_words

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
            if not in_words(mistake):
                raise
            said = str(mistake)
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


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
