from __future__ import annotations

from pathlib import Path

import pytest
from made_glue import write_glue


@pytest.fixture
def glue_folder(tmp_path) -> Path:
    return write_glue(tmp_path / "glue")
