"""Stores of tests are not flushed to the disk."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Flushing to the disk takes most of the time here, and is tested with the files."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
