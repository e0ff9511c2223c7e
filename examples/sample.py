"""Texts that are on this machine already, for the short examples: Python's own help, some 1,400 paragraphs of English."""

from __future__ import annotations

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
