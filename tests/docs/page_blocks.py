"""The code blocks of a page of Markdown, as its reader sees them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
#: Every page with commands or code in it.
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "examples" / "accelerate" / "README.md", *(ROOT / "docs").rglob("*.md"))
)

#: What a page says above a block that cannot run here, and why.
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_OPTION = re.compile(r"^:(start-after|end-before): \"(.*)\"$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block: its language, its text, the file and the line (from 1) before its first one, and why it is not run."""

    language: str
    text: str
    file: str
    line: int
    not_run: str | None


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page, in order, those of included pages among them; an indented block has no language."""
    return _blocks(ROOT / page, 0, None)


def _blocks(path: Path, start: int, end: int | None) -> list[Block]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:end]
    found = []
    for token in MarkdownIt().parse("".join(lines[start:])):
        if token.type not in ("fence", "code_block") or token.map is None:
            continue
        language, line = token.info.strip(), start + token.map[0]
        if language.startswith("{include}"):
            included = (path.parent / language.removeprefix("{include}").strip()).resolve()
            found += _blocks(included, *_part(included, dict(_OPTION.findall(token.content))))
        elif not language.startswith("{"):
            reason = _NOT_RUN.search("".join(lines[:line]))
            file = str(path.relative_to(ROOT))
            found.append(Block(language, token.content, file, line + 1, reason[1] if reason else None))
    return found


def _part(path: Path, options: dict[str, str]) -> tuple[int, int | None]:
    """The lines of a file that an include takes, from 0."""
    text = path.read_text(encoding="utf-8")
    start = text.index(options["start-after"]) + len(options["start-after"]) if "start-after" in options else 0
    end = text.index(options["end-before"], start) if "end-before" in options else len(text)
    return text.count("\n", 0, start) + (start > 0), text.count("\n", 0, end) + (end == len(text))
