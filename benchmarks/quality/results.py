"""The results: one JSON line for each method, seed, split, task and dimension; and the tables made of them."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.quality.methods import DIMS, Settings

#: Columns of the table, each with the figure that is a task's own.
TASKS = {"sts": "spearman", "scifact": "ndcg@10", "clinc": "accuracy", "novels": "ndcg@10", "fidelity": "spearman"}

Line = dict[str, Any]
#: What every line has; earlier ones lack ``cpu_seconds``, and those of the teachers and of before a ``plan``.
_FIELDS = {
    *("run", "name", "student", "seed", "seconds", "settings", "parameters", "texts_per_second"),
    *("split", "task", "dim", "scores"),
}


def run_name(name: str, settings: Settings) -> str:
    """A folder's name for one run: what it is called, and a digest of all its settings."""
    digest = hashlib.sha256(json.dumps(settings.as_dict(), sort_keys=True).encode()).hexdigest()[:8]
    return f"{name}-{settings.student}-{settings.seed}-{digest}"


def read(path: Path) -> list[Line]:
    """All lines; of equal run, split, task and dimension the last.

    Raises:
        ValueError: a line is no result; the sentence names it.
    """
    if not path.exists():
        return []
    found: dict[tuple[Any, ...], Line] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            if missing := _FIELDS - set(line):
                raise KeyError(*missing)
            found[tuple(line[key] for key in ("run", "split", "task", "dim"))] = line
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no result of this benchmark: remove it") from error
    return list(found.values())


def append(path: Path, lines: Iterable[Line]) -> None:
    # At once, so that two commands do not write into each other's lines.
    with path.open("ab", buffering=0) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def main_score(line: Line) -> float:
    """A line's own figure, x 100."""
    return 100 * line["scores"][TASKS.get(line["task"], "ndcg@10")]


def groups(lines: list[Line], split: str, student: str) -> dict[str, dict[int, dict[str, list[float]]]]:
    """Scores by name, dimension and task (a value for each seed); 'mean' is that of the tasks, for each run."""
    wanted = [line for line in lines if line["split"] == split and line["student"] in (student, "teacher")]
    table: dict[str, dict[int, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    means: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    names = labels(wanted)
    for line in wanted:
        name = names[line["run"]]
        table[name][line["dim"]][line["task"]].append(main_score(line))
        if line["task"] in TASKS:
            means[name, line["run"], line["dim"]].append(main_score(line))
    for (name, _, dim), scores in means.items():
        if len(scores) == len(TASKS):
            table[name][dim]["mean"].append(statistics.fmean(scores))
    return table


def chosen(lines: list[Line], *, steps: int | None = None, batch: int | None = None) -> list[Line]:
    """The lines of runs of so many steps and pairs a step, and those of whatever was not trained."""
    wanted = {"steps": steps, "batch": batch}
    return [
        line
        for line in lines
        if not line["seconds"] or all(value in (None, line["settings"].get(name)) for name, value in wanted.items())
    ]


def made_with(line: Line, *but: str) -> dict[str, str]:
    """A run's settings, all but the seed and these, and its plan, each as JSON."""
    made = dict(line["settings"])
    if line.get("plan") is not None:
        made["plan"] = line["plan"]
    return {key: json.dumps(value, sort_keys=True) for key, value in made.items() if key not in ("seed", *but)}


def labels(lines: list[Line]) -> dict[str, str]:
    """What each run is called: its name, and the settings in which runs of that name differ, but for the seed.

    Only runs that are equal but for their seeds may share a name, and with it a mean. Their plan is told where it alone
    differs.
    """
    about: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for line in lines:
        about[line["name"], line["student"]][line["run"]] = made_with(line)
    named = {}
    for (name, _), runs in about.items():
        keys = sorted({key for settings in runs.values() for key in settings})
        differ = [key for key in keys if key != "plan" and _kinds(runs.values(), key) > 1]
        # Other settings make another plan anyway.
        if _kinds(runs.values(), *differ, "plan") > _kinds(runs.values(), *differ):
            differ.append("plan")
        for run, settings in runs.items():
            more = ", ".join(f"{key} {settings.get(key, 'as it was')}" for key in differ)
            named[run] = f"{name} ({more})" if more else name
    return named


def _kinds(runs: Iterable[dict[str, str]], *keys: str) -> int:
    return len({tuple(settings.get(key) for key in keys) for settings in runs})


def print_table(lines: list[Line], split: str, student: str) -> None:
    """Each method at each dimension: the tasks, their mean, the share of the whole teacher's kept, seconds of the processors,
    and texts encoded in a second; then the rest.

    The share is the mean of the tasks' shares, with the closeness to the teacher among them and without.
    """
    table = groups(lines, split, student)
    whole = table["teacher"][DIMS[0]]
    of_split = [line for line in lines if line["split"] == split and line["student"] in (student, "teacher")]
    names = labels(of_split)
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    speeds: dict[str, dict[str, float]] = defaultdict(dict)
    for line in of_split:
        speeds[names[line["run"]]][line["run"]] = line["texts_per_second"]
        if line["seconds"] and "cpu_seconds" in line:  # runs of before it was noted have none
            seconds[names[line["run"]]][line["run"]] = line["cpu_seconds"]
    columns = [*TASKS, "mean"]
    print(f"## {student}, {split}\n")
    print("| method | dim |", " | ".join(columns), "| kept % | without fidelity | seeds | training, CPU s | texts/s |")
    print("|---" * (len(columns) + 7) + "|")
    for name, by_dim in table.items():
        for dim in DIMS:
            scores = by_dim[dim]
            kept = {
                task: statistics.fmean(scores[task]) / statistics.fmean(whole[task])
                for task in TASKS
                if scores[task] and whole[task]
            }
            cells = [_cell(scores[column]) for column in columns]
            share = " | "
            if len(kept) == len(TASKS):
                others = [part for task, part in kept.items() if task != "fidelity"]
                share = f"{100 * statistics.fmean(kept.values()):.1f} | {100 * statistics.fmean(others):.1f}"
            count = max((len(values) for values in scores.values()), default=0)
            print(
                f"| {name} | {dim} |",
                " | ".join(cells),
                f"| {share} | {count} | {_mean(seconds[name])} | {_mean(speeds[name])} |",
            )
    _print_details(of_split, names)


def _print_details(lines: list[Line], names: dict[str, str]) -> None:
    sections = {
        "SciFact with quantised vectors, nDCG@10": "scifact",
        "SciFact, the student's queries against the teacher's documents": "scifact-against-teacher",
        "Fidelity to the teacher": "fidelity",
    }
    for title, task in sections.items():
        rows: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        for line in lines:
            if line["task"] == task:
                rows[names[line["run"]], line["dim"]].append(line["scores"])
        if not rows:
            continue
        figures = list(next(iter(rows.values()))[0])
        print(f"\n### {title}\n\n| method | dim |", " | ".join(figures), "|")
        print("|---" * (len(figures) + 2) + "|")
        for (name, dim), scores in rows.items():
            cells = [_cell([100 * score[key] for score in scores]) for key in figures]
            print(f"| {name} | {dim} |", " | ".join(cells), "|")


def _mean(by_run: dict[str, float]) -> str:
    return f"{statistics.fmean(by_run.values()):.0f}" if by_run else ""


def _cell(scores: list[float]) -> str:
    if not scores:
        return ""
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):.2f}{spread}"
