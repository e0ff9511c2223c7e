from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from st_distill.card import escaped, markdown_table, replace_sections, usage

CARD = """\
---
tags:
- one
---

# Name

Before.

## Usage

```python
## no heading
```
<!--
## No heading either
-->

## Kept

As it was.

## Citation

The end.
"""
DESCRIPTION = {"dims": [24], "modalities": ["text"], "unit_length": {"full": True, "truncated": False}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path


def test_sections_in_their_places(folder):
    replace_sections(folder, {"Usage": "Like this.", "Results": "Good."}, metadata={"base_model": "some/model"})
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {"tags": ["one"], "base_model": "some/model"}
    assert card.text.strip().splitlines() == [
        *("# Name", "", "Before.", ""),
        *("## Usage", "", "Like this.", ""),
        *("## Kept", "", "As it was.", ""),
        *("## Results", "", "Good.", ""),
        *("## Citation", "", "The end."),
    ]


def test_twice_is_once(folder):
    for _ in range(2):
        replace_sections(folder, {"Results": "Good."}, drop=("Kept",), opening="# Other\n\nNew.")
    text = (folder / "README.md").read_text()
    assert text.count("## Results") == 1
    assert text.count("## No heading either") == 1
    assert "As it was." not in text
    assert "# Other\n\nNew.\n\n## Usage" in text


def test_a_folder_without_a_card(tmp_path):
    replace_sections(tmp_path, {"Results": "Good."})
    assert ModelCard.load(tmp_path / "README.md").text.strip() == "## Results\n\nGood."


def test_usage_tells_what_there_is():
    short = usage(DESCRIPTION, {})
    assert "# (3, 24)" in short
    assert not any(word in short for word in ("truncate_dim", "encode_query", "Image"))
    long = usage({**DESCRIPTION, "dims": [24, 8], "modalities": ["image", "text"]}, {"query": "query: "})
    for word in ("truncate_dim=8", "model.encode_query(", 'Image.open("first.jpg")'):
        assert word in long


def test_the_code_of_the_usage_is_python():
    text = usage({**DESCRIPTION, "dims": [24, 8], "modalities": ["image", "text"]}, {"query": "query: "})
    blocks = text.split("```python\n")[1:]
    assert len(blocks) == 4
    for block in blocks:
        compile(block.partition("```")[0], "usage", "exec")


def test_names_are_no_markup():
    assert escaped("a|b <i>_x_</i>\n`y`") == r"a\|b \<i\>\_x\_\</i\> \`y\`"
    assert markdown_table(["a", "b"], [["1", "2"]]).splitlines() == ["| a | b |", "|:---|---:|", "| 1 | 2 |"]
