"""Mutation testing: whether the tests notice when one operator, comparison, number or condition of a module is another one.

    python tests/mutation.py st_distill/functional.py tests/test_functional.py --sample 50

Each mutant is a child of one warm process, with the module's text changed under its import. It is given the tests that run the
changed line, as a first pass with coverage has found them, and is killed by one that fails, or that takes half a minute and ten
times as long as it took then. What survives is printed with its line.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import coverage
import datasets  # noqa: F401  which no child has to load again
import pytest
import sentence_transformers  # noqa: F401
import torch

BOTH_WAYS = "Add Sub, Mult Div, LShift RShift, BitAnd BitOr, And Or, Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn"
SWAPS = {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitXor: ast.BitOr, ast.Pow: ast.Mult}
for _one, _other in [pair.split() for pair in BOTH_WAYS.split(", ")]:
    SWAPS |= {getattr(ast, _one): getattr(ast, _other), getattr(ast, _other): getattr(ast, _one)}


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, description and whole text of each mutant of a module; messages of errors and annotations stay as they are."""
    tree, silent = ast.parse(source), set()
    for node in ast.walk(tree):
        parts = [getattr(node, name, None) for name in ("annotation", "returns")]
        parts += [node] if isinstance(node, (ast.Raise, ast.JoinedStr)) else []
        silent |= {id(inner) for part in parts if part is not None for inner in ast.walk(part)}
    for node in [node for node in ast.walk(tree) if id(node) not in silent]:
        kept, before = dict(node.__dict__), ast.unparse(getattr(node, "test", node))
        for changed in _changes(node):
            node.__dict__.update(changed)
            yield node.lineno, f"{before}  ->  {ast.unparse(getattr(node, 'test', node))}", ast.unparse(tree)
            node.__dict__.update(kept)


def _changes(node: ast.AST) -> Iterator[dict]:
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in SWAPS:
        yield {"op": SWAPS[type(node.op)]()}
    elif isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            yield {"ops": [*node.ops[:place], SWAPS[type(op)](), *node.ops[place + 1 :]]}
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        yield {"test": ast.UnaryOp(ast.Not(), node.test)}
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield {"op": ast.UAdd()}
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield {"value": not node.value if isinstance(node.value, bool) else node.value + 1}
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield {"value": ast.Constant(None)}


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Gives one module another text."""

    def __init__(self, path: str, text: str) -> None:
        self.name, self.path, self.text = path.removesuffix(".py").replace("/", "."), path, text

    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_filename(self, name: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.text.encode()


def child_passes(tests: list[str], plugin: _ByTest | _InTime, finder: _Changed | None = None) -> bool:
    """Whether the tests pass in a child, in which a module may be changed."""
    child = os.fork()
    if not child:
        if finder is not None:
            sys.meta_path.insert(0, finder)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1), os.dup2(quiet, 2)
        with tempfile.TemporaryDirectory() as folder:
            given = f"-x -q -p no:cacheprovider --basetemp {folder}/tests".split()
            given += ["-W", "ignore::DeprecationWarning", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            code = pytest.main([*given, *tests], plugins=[plugin])
        os._exit(int(code))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"No test was run: {' '.join(tests)}")
    return code == 0


class _ByTest:
    """Notes which tests run which lines, and how long they take."""

    def __init__(self, path: str, notes: Path) -> None:
        self.coverage, self.path, self.notes = coverage.Coverage(None, config_file=False, include=[path]), path, notes
        self.seconds: Counter[str] = Counter()

    def pytest_sessionstart(self):
        self.coverage.start()

    def pytest_runtest_setup(self, item):
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self):
        self.coverage.stop()
        lines = self.coverage.get_data().contexts_by_lineno(os.path.abspath(self.path))
        self.notes.write_text(json.dumps([sorted(lines.items()), self.seconds]))


class _InTime:
    """Ends the process in which a test takes much longer than it took before."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    def pytest_runtest_setup(self, item):
        signal.alarm(30 + int(10 * self.seconds.get(item.nodeid, 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="a file of the package")
    parser.add_argument("tests", nargs="+", help="files of tests")
    parser.add_argument("--sample", type=int, help="so many mutants, chosen at random with seed 0; by default all")
    parser.add_argument("--least", type=float, default=0.85, help="exit code 1 where fewer are killed, as a share")
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = Path(options.module).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "lines.json"
        if not child_passes(options.tests, _ByTest(options.module, notes)):
            sys.exit("The tests fail without a mutant.")
        lines, seconds = json.loads(notes.read_text())
    every = list(mutants(source))
    chosen = random.Random(0).sample(every, min(options.sample or len(every), len(every)))
    survived = 0
    for line, what, text in chosen:
        # Of an expression over several lines, the first one is noted; what runs on import has no test of its own.
        first = [test for test in [ran for at, ran in lines if at <= line][-1] if test] or options.tests
        if child_passes(first, _InTime(seconds), _Changed(options.module, text)):
            survived += 1
            print(f"{options.module}:{line}: {what}", flush=True)
    killed, tried = len(chosen) - survived, len(chosen)
    print(
        f"{options.module}: {killed} of {tried} mutants killed ({killed / max(tried, 1):.1%}), {len(every)} there are."
    )
    sys.exit(killed < options.least * tried)


if __name__ == "__main__":
    main()
