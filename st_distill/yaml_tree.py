"""YAML as a tree of values that remember the line they stand in.

The safe subset (mappings, lists, texts, numbers, true and false, null), by the rules of YAML 1.2: ``1e-4`` is a number, and
``yes``, ``no``, ``on`` and ``off`` are words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from st_distill.errors import Problem, RecipeError
from st_distill.words import FieldPath, show_path

__all__ = ["Dumper", "Entry", "Place", "parse", "problem_at"]

#: A recipe is written by hand: anything beyond these is a mistake or an attack (aliases that multiply, say).
MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 32


_PAIR, _HALF = re.compile("[\ud800-\udbff][\udc00-\udfff]"), re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Place:
    """What a value was read from, and its line; None for a line of the command line."""

    source: str | None
    line: int | None


@dataclass
class Entry:
    """A value of the YAML file with its place; lists and mappings hold entries."""

    value: Any
    place: Place

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [entry.plain() for entry in self.value]
        return self.value

    def places(self, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Place]]:
        yield path, self.place
        if isinstance(self.value, dict):
            for key, entry in self.value.items():
                yield from entry.places((*path, key))
        elif isinstance(self.value, list):
            for index, entry in enumerate(self.value):
                yield from entry.places((*path, index))


def problem_at(place: Place, path: str, message: str) -> Problem:
    return Problem(path=path, message=message, line=place.line, source=place.source)


_INTEGER = r"^[-+]?[0-9]+(?:_[0-9]+)*$"

#: The plain words of YAML 1.2's core schema, with the underscores in numbers that Python has too.
_RESOLVERS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:int", _INTEGER, "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"^<<$", "<"),
]
_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:merge": str,
}


def _resolvers() -> dict[str | None, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, first_letters in _RESOLVERS:
        for letter in first_letters:
            table.setdefault("" if letter == "\0" else letter, []).append((tag, re.compile(pattern)))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()
    depth = 0
    count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"is nested more than {MAX_DEPTH} deep", problem_mark=mark)
        if self.count >= 2 * MAX_VALUES:  # the names of fields are counted here too
            raise yaml.MarkedYAMLError(problem=f"has more than {MAX_VALUES:,} values", problem_mark=mark)
        self.count += 1
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers()

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Short lists on one line, as people write them.
Dumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=not any(isinstance(entry, (dict, list)) for entry in data)
    ),
)


def parse(text: str, place: Callable[[int], Place]) -> Entry:
    """The one document of a YAML text, every value with its place."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        parts = [error.context, error.problem] if error.problem_mark is None else [error.problem, error.context]
        message = "; ".join(part for part in parts if part)
        raise RecipeError([problem_at(place(line), "", f"is not valid YAML: {message}")]) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        message = f"has a character that YAML does not allow, {text[error.position]!r}"
        raise RecipeError([problem_at(place(line), "", message)]) from None
    except (ValueError, OverflowError):  # of Python's int and chr, which the scanner calls
        message = "is not valid YAML: the escape of a character, or the number of a version, is too large"
        raise RecipeError([problem_at(place(loader.line + 1), "", message)]) from None
    if node is None:
        return Entry(None, place(1))
    reader = _NodeReader(place)
    entry = reader.read(node, node.start_mark.line + 1, ())
    if reader.problems:
        raise RecipeError(reader.problems)
    return entry


class _NodeReader:
    """Turns YAML nodes into entries, counting every value and its depth, aliases included, against the limits."""

    def __init__(self, place: Callable[[int], Place]) -> None:
        self.place = place
        self.count = 0
        self.open: list[yaml.Node] = []
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, line: int, path: FieldPath) -> Entry:
        self.count += 1
        if self.count > MAX_VALUES or any(node is outer for outer in self.open):
            what = "holds itself" if self.count <= MAX_VALUES else f"has more than {MAX_VALUES:,} values"
            raise RecipeError(
                [problem_at(self.place(line), show_path(path), f"{what}, by its aliases; write the values out")]
            )
        if len(self.open) >= MAX_DEPTH:
            message = f"is nested more than {MAX_DEPTH} deep, by its aliases; write the values out"
            raise RecipeError([problem_at(self.place(line), show_path(path), message)])
        self.open.append(node)
        try:
            return Entry(self._value(node, line, path), self.place(line))
        finally:
            self.open.pop()

    def _value(self, node: yaml.Node, line: int, path: FieldPath) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [
                self.read(entry, entry.start_mark.line + 1, (*path, index)) for index, entry in enumerate(node.value)
            ]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            try:
                return _SCALARS[node.tag](self._text(node, line, path))
            except ValueError:
                pass
        if isinstance(node, yaml.ScalarNode) and re.fullmatch(_INTEGER, node.value):
            message = f"has too many digits, {len(node.value):,} characters; write a smaller number"
        else:
            message = f"the tag {node.tag} is not allowed here; a recipe has plain texts, numbers, lists and mappings"
        self.problems.append(problem_at(self.place(line), show_path(path), message))
        return None

    def _text(self, node: yaml.ScalarNode, line: int, path: FieldPath) -> str:
        """A scalar's text: JSON escapes a character beyond U+FFFF as two surrogates, which YAML leaves as they are."""
        text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), node.value)
        if half := _HALF.search(text):
            message = f"holds {half[0]!r}, which is half of a character; write the whole character"
            self.problems.append(problem_at(self.place(line), show_path(path), message))
        return text

    def _mapping(self, node: yaml.MappingNode, path: FieldPath) -> dict[str, Entry]:
        merged: dict[str, Entry] = {}
        values: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for entry in self._merged(value_node, line, path):
                    merged = {**entry, **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(problem_at(self.place(line), show_path(path), "the name of a field must be text"))
                continue
            # Names are kept as they are written: a column may be called 1 or true.
            key = self._text(key_node, line, path)
            if key in values:
                first = values[key].place.line
                message = f"is there twice, first in line {first}; remove one"
                self.problems.append(problem_at(self.place(line), show_path((*path, key)), message))
            values[key] = self.read(value_node, line, (*path, key))
        return {**merged, **values}

    def _merged(self, node: yaml.Node, line: int, path: FieldPath) -> list[dict[str, Entry]]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        entries = [self.read(entry, line, path).value for entry in nodes]
        if not all(isinstance(entry, dict) for entry in entries):
            self.problems.append(problem_at(self.place(line), show_path(path), "'<<' must name a mapping"))
            return []
        return entries
