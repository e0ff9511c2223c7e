"""What the tests of the quality benchmark share."""

from __future__ import annotations

import pytest
from transformers import BertConfig


@pytest.fixture(scope="session")
def minilm(tmp_path_factory) -> str:
    """Folder of a model of all-MiniLM-L6-v2's shape, without weights: what a recipe asks before it runs."""
    folder = str(tmp_path_factory.mktemp("minilm"))
    BertConfig(hidden_size=384, num_hidden_layers=6).save_pretrained(folder)
    return folder
