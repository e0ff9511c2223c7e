from __future__ import annotations

import platform

import torch

from st_distill import __version__
from st_distill.environment import environment


def test_the_machine_and_the_packages():
    found = environment()
    assert found["Python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["st-distill"] == __version__
    assert int(found["Processor cores"]) >= 1
    assert all(isinstance(value, str) and value for value in found.values())


def test_nothing_in_it_names_the_machine():
    node = platform.node()
    assert not node or node not in "".join(environment().values())
