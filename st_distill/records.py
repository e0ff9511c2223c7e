"""The record of a run: what ``run.json`` in its work folder says of the stages, and their models compared with it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from st_distill import __version__
from st_distill.files import copy_of, differences, is_folder_name, read_signed, read_small, restoring
from st_distill.yaml_tree import MAX_BYTES, Dumper, Place, parse

__all__ = [
    "FORMAT",
    "RUN",
    "VERSION",
    "RunRecord",
    "by_command",
    "doing_again",
    "good_copy",
    "is_begun",
    "setting_work",
]

RUN = "run.json"
"""The record's name in the work folder."""
FORMAT = "st-distill/run"
VERSION = 1


class RunRecord:
    """What a ``run.json`` says, if there is one.

    Raises:
        ValueError: it is damaged, or has been lost; the sentence says which command brings it back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RUN
        self.stages: list[dict[str, Any]] = []
        self.recipe: str | None = None
        """The sha256 of recipe.yaml; None where the recipe has Python objects, and no file."""
        self.begun_by: Any = __version__
        if not self.path.is_file() and copy_of(self.path).is_file():
            raise ValueError(f"The run in {folder} has lost its {self.path.name}. {self._remedy()}")
        if not self.path.is_file() and (folder / "stages").is_dir():
            # To begin anew would take the place of models that are there, or go on from checkpoints of who knows what.
            command = f" {by_command(folder)}" if (folder / "recipe.yaml").is_file() else "."
            raise ValueError(
                f"The folder {folder} has the stages of a run, but has lost its {self.path.name}. Restore it, or remove "
                f"{folder / 'stages'} to do them again{command}"
            )
        if self.path.is_file():
            try:
                stored = read_signed(self.path)
            except ValueError as error:
                raise ValueError(f"{error} {self._remedy()}") from error
            if (must := _what_it_must(stored)) is not None:
                raise ValueError(f"The file {self.path} must {must}. It does not. {self._remedy()}")
            self.stages = stored["stages"]
            self.recipe, self.begun_by = stored.get("recipe"), stored.get("begun_by", __version__)

    def _remedy(self) -> str:
        return doing_again(self.folder) if good_copy(self.path) is None else restoring(self.path)

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    def stage_folder(self, index: int) -> Path:
        stage = self.stages[index]
        return self.folder / stage.get("folder", f"stages/{index + 1}-{stage['name']}")

    def finished_model(self, index: int) -> Path:
        """Folder of the student after a stage (from 0) that is done.

        Raises:
            ValueError: it has changed since it was written; the sentence names what does the stage again.
        """
        folder = self.stage_folder(index) / "model"
        for name, what in self.damage(index):
            raise ValueError(
                f"The model of stage {index + 1} is damaged: in {folder / name}, {what}. Restore it, or {self.again(index)}."
            )
        return folder

    def damage(self, index: int) -> Iterator[tuple[str, str]]:
        """The files of the model of a stage that is done (from 0) that are not as they were written, and what is wrong."""
        return differences(self.stage_folder(index) / "model", self.stages[index].get("files", {}))

    def stage_of(self, model: Path) -> int | None:
        """Which stage (from 0) has left a model in this folder; None where none that is done has."""
        real = os.path.realpath(model)
        return next(
            (
                index
                for index, stage in enumerate(self.stages)
                if stage["done"] and os.path.realpath(self.stage_folder(index) / "model") == real
            ),
            None,
        )

    def again(self, index: int) -> str:
        """What does a stage that is done (from 0) again, for a sentence about its model."""
        if "folder" in self.stages[index]:
            return "pretrain again in a new work folder"
        stages = "stage" if index == len(self.stages) - 1 else "stage, and the stages after it,"
        options = f"--resume --from-stage {index + 1}"
        return f"do the {stages} again {f'with {options}' if self.recipe is None else by_command(self.folder, options)}"


def is_begun(folder: Path) -> bool:
    """Whether there is a run in the folder, or what is left of one."""
    record = folder / RUN
    return record.is_file() or copy_of(record).is_file() or (folder / "stages").is_dir()


def by_command(folder: Path, options: str = "--resume") -> str:
    """``with: st-distill run ...``, the end of a sentence: what goes on with the run in this folder.

    The folder may be a copy, or have been moved: its recipe.yaml then leads to another one, and the command to this one.
    """
    verb = "pretrain" if (folder / "tokenizer").is_dir() else "run"
    words, named, warning = ["st-distill", verb, str(folder / "recipe.yaml")], _folders_named_in(folder), ""
    if named is None or os.path.realpath(named[1]) != os.path.realpath(folder):
        words += setting_work(folder)
        if named is not None and os.path.lexists(named[0]):
            warning = f"(which replaces the model {named[0]} too; --set output=FOLDER names another place) "
    return f"{warning}with: {shlex.join(words)} {options}"


def setting_work(folder: Path) -> list[str]:
    """The words that make this the work folder of a command's recipe, whatever its name: the value of ``--set`` is YAML."""
    value = yaml.dump(str(folder), Dumper=Dumper, allow_unicode=True, width=float("inf"))
    return ["--set", f"work={value.strip().removesuffix('...').strip()}"]


def doing_again(folder: Path) -> str:
    """What is left to do where neither ``run.json`` nor its copy says anything; the teachers' vectors are kept by it."""
    command = f" {by_command(folder)}" if (folder / "recipe.yaml").is_file() else "."
    return (
        f"Restore it, or remove it, {copy_of(folder / RUN).name} and {folder / 'stages'} (the teachers' vectors stay) to do "
        f"the stages again{command}"
    )


def _folders_named_in(folder: Path) -> tuple[str, str] | None:
    """Output and work folder by the recipe.yaml that lies in a run's folder; None where it cannot be read."""
    try:
        text = read_small(folder / "recipe.yaml")[:MAX_BYTES].decode("utf-8")
        recipe = parse(text, lambda line: Place(None, line)).plain()
        output = str(recipe["output"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return output, str(recipe.get("work") or f"{output.rstrip('/')}-run")


def good_copy(path: Path) -> dict[str, Any] | None:
    """What the second copy of a ``run.json`` says; None where it cannot be read, or does not describe a run either."""
    try:
        stored = read_signed(copy_of(path))
    except (OSError, ValueError):
        return None
    return stored if _what_it_must(stored) is None else None


def _what_it_must(stored: Any) -> str | None:
    """What a ``run.json`` must do and does not, for a sentence; None where it is as a run has written it."""
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or stored.get("version") != VERSION:
        return f"describe a run of version {VERSION} of this format"
    return None if _are_stages(stored.get("stages")) else "list a run's stages"


def _are_stages(value: Any) -> bool:
    """Whether somebody, who may be a stranger, has described stages whose folders lie in that of the run."""
    kinds = {"name": str, "done": bool, "fields": dict, "files": dict, "metrics": dict}
    later: dict[str, Any] = {"files": {}, "metrics": {}}
    return isinstance(value, list) and all(
        isinstance(stage, dict)
        and all(isinstance((later | stage).get(key), kind) for key, kind in kinds.items())
        and is_folder_name(stage["name"])
        and all(
            isinstance(file, dict) and {"bytes", "sha256"} <= file.keys() for file in (later | stage)["files"].values()
        )
        and ("folder" not in stage or (stage["folder"] == "." and len(value) == 1))
        for stage in value
    )
