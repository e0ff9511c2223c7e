"""What the short examples share: Python's own help as texts, some 1,400 paragraphs of English; and what may be an option."""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics


def documents() -> list[str]:
    """Every topic of Python's help as a whole, the longest of more than 8,000 words."""
    return [topics[name] for name in sorted(topics)]


def paragraphs(file: str | None = None) -> list[str]:
    """The lines of a file, or the paragraphs of Python's help; each once."""
    if file is not None:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    else:
        lines = [" ".join(paragraph.split()) for topic in documents() for paragraph in topic.split("\n\n")]
    return list(dict.fromkeys(line for line in lines if len(line.split()) > 5))


def existing(path: str) -> str:
    """The path of a file or folder that is there, as an option of a command."""
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"there is no file or folder '{path}'")
    return path


def weight(text: str) -> float:
    """A number above 0, as an option of a command."""
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value
