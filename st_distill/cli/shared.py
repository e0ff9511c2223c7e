"""What several commands need."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_distill.errors import RecipeError, printable

if TYPE_CHECKING:
    from st_distill.recipe import Recipe

#: The keys by which a JSON object is known as a result of st-distill; a new command's are entered here.
_RESULTS: tuple[set[str], ...] = (
    {"dims", "precisions", "tasks", "averages"},  # of eval
    {"dims", "models"},  # of eval as a recipe says
    {"dims", "failed"},  # of the same, where the model's size could not be measured
    {"model", "tasks", "average"},  # of glue
    {"lengths", "unigram_entropy", "commonest"},  # of pretrain
    {"whole", "findings", "notes"},  # of verify
    {"task_name", "mteb_version", "scores"},  # of MTEB
)


def checked_recipe(path: str, overrides: Sequence[str]) -> Recipe:
    """The recipe, if it has no mistakes: what only one command needs of it is as wrong as the rest."""
    from st_distill.recipe import check, load_recipe

    if errors := [problem for problem in check(path, overrides, diagnose=False) if problem.level == "error"]:
        raise RecipeError(errors)
    return load_recipe(path, overrides)


def require_place(option: str, file: str | os.PathLike[str] | None) -> None:
    """Whether a file can be written without the loss of another one, looked at before the work whose result goes there.

    What an earlier command wrote is replaced: of ``--csv`` a table with the same heading, else JSON with the keys of a result.
    """
    if not file or file == "-":
        return
    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"The folder of --{option} {file} must exist. Make it first, or name another file.")
    if path.is_dir():
        raise IsADirectoryError(f"The --{option} must be a file. Got the folder {file} instead: name a file in it.")
    require_replaceable(option, path)
    if not os.access(path.absolute().parent, os.W_OK):
        raise PermissionError(f"The folder of --{option} {file} must be writable. Name a file in another one.")


def require_replaceable(option: str, path: Path) -> None:
    """Whether nothing is lost where a result takes the place of a path: nothing is there, an empty file, or a result."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        kind = "a link" if path.is_symlink() else "no plain file"
        printed = ", or - to print the figures" if option == "json" else ""
        raise FileExistsError(
            f"The --{option} must be a plain file or a new one, since it is replaced. Got {path} instead, which is {kind}: "
            f"name another file{printed}."
        )
    if not _is_own(option, path):
        raise FileExistsError(
            f"The file of --{option} is replaced, and {path} is not one that st-distill has written. Name another file."
        )


def _is_own(option: str, file: Path) -> bool:
    from st_distill.evaluation.results import CSV_HEADER
    from st_distill.files import read_json

    if not file.stat().st_size:
        return True
    if option == "csv":
        with file.open("rb") as content:
            return content.readline().strip() == ",".join(CSV_HEADER).encode()
    try:
        found = read_json(file)
    except ValueError:
        return False
    return isinstance(found, dict) and (not found or any(keys <= found.keys() for keys in _RESULTS))


def give_json(file: str | None, content: Mapping[str, Any]) -> None:
    """Print what a command found where ``--json`` names no file, or write it to the one that it names."""
    from st_distill.files import json_text

    if file == "-":
        put(json.dumps(content, indent=2))
    elif file:
        give_text(file, json_text(content))


def give_text(file: str, content: str) -> None:
    """Write a result to its file, and remove what killed commands have left of theirs there."""
    from st_distill.files import remove_abandoned, write_text

    remove_abandoned(Path(file).absolute().parent, Path(file).name)
    write_text(file, content)


def tell_failed(failed: Sequence[Mapping[str, str]]) -> int:
    """Name what could not be measured, each with its "name", and return the exit code that it comes to."""
    if failed and speaks():
        those = f"{len(failed)} part{'s' if len(failed) > 1 else ''} of the evaluation"
        names = ", ".join(entry["name"] for entry in failed)
        print(printable(f"st-distill: {those} could not be measured: {names}."), file=sys.stderr, flush=True)
    return 2 if failed else 0


def say(text: str, *, lines: bool = False) -> None:
    """Print what a command has to say, as `printable`: names in it may come from a stranger."""
    put(printable(text, lines=lines))


def put(text: str) -> None:
    """Print on standard output. Where nobody reads it any more (``| head``), the command goes on without it, to its files and
    its exit code.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - it stays until the end
        os.dup2(nowhere.fileno(), sys.stdout.fileno())  # for what is left in the buffer
        sys.stdout = nowhere


def speaks() -> bool:
    """Whether this process prints: of those that a launcher started, the main one."""
    return os.environ.get("RANK", "0") == "0"
