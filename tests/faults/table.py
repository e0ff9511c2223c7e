"""The table of faults and bad inputs that were tried, out of what the runs have written.

    python tests/faults/table.py out/reliability/*

``make faults`` and ``make fuzz`` write these files: pytest's own JUnit XML, the statistics of hypothesis in it, and what
libFuzzer prints, in files called ``coverage_guided-TARGET.log``. A row is a test or target; its cases are the parameters that
it was tried with, or what it has counted itself, or the examples of hypothesis, or libFuzzer's inputs.
"""

from __future__ import annotations

import base64
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

_STATISTICS = "hypothesis-statistics-"
_RIGHT = "as they should be"


@dataclass
class Row:
    """What one test tried: cases and their outcomes, and what it counted beside them."""

    outcomes: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)

    def cells(self) -> list[str]:
        said = [f"{count:,} {what}" for what, count in [*self.outcomes.items(), *self.counted.items()] if count]
        return [f"{sum(self.outcomes.values()):,}", "; ".join(said)]


def read_log(path: Path) -> tuple[Row, float]:
    """The row of a coverage-guided run, and its seconds; one that did not come to its end has failed."""
    text = path.read_text(encoding="utf-8", errors="replace")
    done = re.search(r"^Done (\d+) runs in (\d+) second", text, re.MULTILINE)
    inputs = int(done[1]) if done else max(map(int, re.findall(r"^#(\d+)\t", text, re.MULTILINE)), default=1)
    outcomes = Counter({_RIGHT: inputs} if done else {_RIGHT: inputs - 1, "failed": 1})
    branches = re.findall(r"\bcov: (\d+)", text)
    return Row(outcomes, Counter({"branches reached": int(branches[-1])} if branches else {})), float(
        done[2] if done else 0
    )


def read(paths: list[Path]) -> tuple[dict[tuple[str, str], Row], str, int]:
    """The rows by file and test, the last date, and the seconds of all runs."""
    rows: dict[tuple[str, str], Row] = defaultdict(Row)
    date, seconds = "", 0.0
    for path in paths:
        if path.suffix == ".log":
            target, _, name = path.stem.partition("-")
            rows[target, name], spent = read_log(path)
            seconds += spent
            continue
        suite = ElementTree.parse(path).getroot().find("testsuite")
        date, seconds = max(date, suite.get("timestamp", "")[:10]), seconds + float(suite.get("time", 0))
        for case in suite.iter("testcase"):
            name = case.get("name", "").partition("[")[0]
            if not name or case.find("skipped") is not None:  # one that was interrupted has no name
                continue
            row = rows[case.get("classname").removeprefix("tests.").replace(".", "/"), name]
            properties = {entry.get("name"): int(entry.get("value")) for entry in case.iter("property")}
            failed = case.find("failure") is not None or case.find("error") is not None
            row.outcomes["failed" if failed else _RIGHT] += properties.pop("cases", 1)
            row.counted.update(properties)
        for entry in suite.find("properties") if suite.find("properties") is not None else ():
            if entry.get("name").startswith(_STATISTICS):
                file, _, test = entry.get("name").removeprefix(_STATISTICS).partition("::")
                key = file.removeprefix("tests/").removesuffix(".py"), test.partition("[")[0]
                said = base64.b64decode(entry.get("value")).decode()
                passing = sum(int(number) for number in re.findall(r"(\d+) passing\b", said))
                rows[key].outcomes[_RIGHT] += max(passing - 1, 0)  # the test itself is counted as one
    return rows, date, round(seconds)


def table(paths: list[Path]) -> str:
    """The table, as Markdown."""
    rows, date, seconds = read(paths)
    lines = ["| what is tried | cases | outcome |", "|---|---|---|"]
    for (file, name), row in sorted(rows.items()):
        words = name.removeprefix("test_").replace("_", " ")
        lines.append(f"| `{file.rpartition('/')[2]}`: {words} | {' | '.join(row.cells())} |")
    cases = sum(sum(row.outcomes.values()) for row in rows.values())
    failed = sum(row.outcomes["failed"] for row in rows.values())
    lines += ["", f"{cases:,} cases, {failed:,} failed; run on {date}, {seconds:,} seconds of tests."]
    return "\n".join(lines)


if __name__ == "__main__":
    found = [Path(name) for name in sys.argv[1:]]
    if not found:
        sys.exit(__doc__)
    if absent := [str(path) for path in found if not path.is_file()]:
        sys.exit(f"There is no {absent[0]}: run make faults or make fuzz first.")
    print(table(found))
