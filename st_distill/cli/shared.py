"""What several commands need."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_distill.errors import RecipeError

if TYPE_CHECKING:
    from st_distill.recipe import Recipe


def checked_recipe(path: str, overrides: Sequence[str]) -> Recipe:
    """The recipe, if it has no mistakes: what only one command needs of it is as wrong as the rest."""
    from st_distill.recipe import check, load_recipe

    if errors := [problem for problem in check(path, overrides, diagnose=False) if problem.level == "error"]:
        raise RecipeError(errors)
    return load_recipe(path, overrides)


def require_place(option: str, file: str | None) -> None:
    """Whether a file can be written without the loss of another one, looked at before the work whose result goes there.

    What an earlier command wrote is replaced: of ``--json`` a JSON object, of ``--csv`` a table with the same heading.
    """
    if not file or file == "-":
        return
    folder = Path(file).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of --{option} {file} must exist. Make it first, or name another file.")
    if Path(file).is_dir():
        raise IsADirectoryError(f"The --{option} must be a file. Got the folder {file} instead: name a file in it.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"The folder of --{option} {file} must be writable. Name a file in another one.")
    if Path(file).exists() and not _is_own(option, Path(file)):
        raise FileExistsError(
            f"The file of --{option} is replaced, and {file} is not one that st-distill has written. Name another file."
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
        return isinstance(read_json(file), dict)
    except ValueError:
        return False


def give_json(file: str | None, content: Mapping[str, Any]) -> None:
    """Print what a command found where ``--json`` names no file, or write it to the one that it names."""
    from st_distill.files import write_json

    if file == "-":
        print(json.dumps(content, indent=2))
    elif file:
        write_json(file, content)


def tell_failed(failed: Sequence[Mapping[str, str]]) -> int:
    """Name what could not be measured, each with its "name", and return the exit code that it comes to."""
    if failed and speaks():
        those = f"{len(failed)} part{'s' if len(failed) > 1 else ''} of the evaluation"
        names = ", ".join(entry["name"] for entry in failed)
        print(f"st-distill: {those} could not be measured: {names}.", file=sys.stderr, flush=True)
    return 2 if failed else 0


def speaks() -> bool:
    """Whether this process prints: of those that a launcher started, the main one."""
    return os.environ.get("RANK", "0") == "0"
