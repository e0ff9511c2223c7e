"""The checksums that are noted of a saved model, and the comparison with them before it is used.

A model notes them in a file in its folder, with which it may be copied: an exported one, a pretrained encoder, and that of a
run's stage, which the ``run.json`` of its work folder knows too. Another program's model has none, and is taken as it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from st_distill.files import copy_of, differences, is_temporary, read_json, require_plain_files
from st_distill.records import RUN, RunRecord

__all__ = [
    "AGAIN",
    "CHECKED",
    "EDITABLE",
    "ENCODER",
    "EXPORT",
    "STAGE",
    "Damage",
    "noted_damage",
    "others_file",
    "require_whole",
    "stage_around",
    "work_folder_of",
]

#: What an exported model's folder says of itself, beside the files that sentence-transformers reads.
EXPORT = "st_distill.json"
#: The same for an encoder that `st_distill.pretrain` has finished, beside the files that transformers reads.
ENCODER = "st_distill_pretraining.json"
#: The same for a student that a run's stage has left, with the modules that only st-distill knows.
STAGE = "st_distill_stage.json"
#: The field of all three that has the size and checksum of the folder's files.
CHECKED = "files"
#: Of these files what is for a reader and may be edited, so that a change is no damage.
EDITABLE = ("README.md",)
#: What makes a damaged model again, by the file that notes what it was.
AGAIN = {
    EXPORT: "export it again: st-distill export STUDENT FOLDER, or continue its run with --resume",
    ENCODER: "continue its pretraining: st-distill pretrain RECIPE --resume",
    STAGE: "copy it again from its run",
}


class Damage(NamedTuple):
    """A file of a model that is not as it was written.

    Args:
        file: its name in the folder.
        what: what is wrong with it.
        again: what makes the model again, for a sentence.
    """

    file: str
    what: str
    again: str


def noted_damage(model: str | os.PathLike[str]) -> list[Damage] | None:
    """The files of a model that are not as they were written; None where nothing is noted of them (another program's model).

    Raises:
        ValueError: the ``run.json`` of its run is damaged.
    """
    folder = Path(model)
    if (work := work_folder_of(folder)) is not None:
        record = RunRecord(work)
        if (index := record.stage_of(folder)) is not None:
            return [Damage(name, what, record.again(index)) for name, what in record.damage(index)]
    return _by_description(folder)


def _by_description(folder: Path) -> list[Damage] | None:
    # A pipe, say, or a link that leads nowhere, is not the same as none.
    description = next((name for name in AGAIN if os.path.lexists(folder / name)), None)
    if description is None:
        return None
    again = AGAIN[description]
    try:
        noted = read_json(folder / description)
        if isinstance(noted, dict) and CHECKED not in noted:
            return None  # written by an earlier version
        if not isinstance(noted, dict) or not _are_files(noted[CHECKED]):
            return [Damage(description, "it does not say what the files were", again)]
        return [Damage(name, what, again) for name, what in differences(folder, noted[CHECKED])]
    except (FileNotFoundError, ValueError) as error:
        return [Damage(description, f"it cannot be read ({error})", again)]


def _are_files(value: Any) -> bool:
    """Whether somebody, who may be a stranger, has noted the sizes and checksums of files."""
    return isinstance(value, dict) and all(
        isinstance(file, dict) and isinstance(file.get("bytes"), int) and isinstance(file.get("sha256"), str)
        for file in value.values()
    )


def require_whole(model: str | os.PathLike[str]) -> None:
    """Compare a model's folder with the checksums that are noted of it, before anything in it is used, and see to it that it
    holds nothing that would be waited for.

    Args:
        model: its folder. A name on the hub has no checksums of ours.

    Raises:
        ValueError: a file is not as it was written; the sentence says which, and what makes it again. Or it is a pipe, say, or
            a device.
    """
    if not os.path.isdir(model):
        return
    _require_noted(Path(model))
    require_plain_files(model)


def _require_noted(folder: Path) -> None:
    if (work := work_folder_of(folder)) is not None:
        record = RunRecord(work)
        if (index := record.stage_of(folder)) is not None:
            record.finished_model(index)
            return
    if damage := _by_description(folder):
        reason = "; ".join(f"{found.file}: {found.what}" for found in damage)
        raise ValueError(
            f"The model {folder} is damaged: {reason}. Restore it, or {damage[0].again}. Where the change is your own, remove "
            f"its {next(name for name, again in AGAIN.items() if again == damage[0].again)}."
        )


def others_file(path: str | os.PathLike[str], description: str) -> str | None:
    """What would be lost where a model is written to a path: a file in the folder that is none of an earlier such model.

    Args:
        path: of the folder, which is replaced whole.
        description: the file in it that notes what an earlier one wrote, `EXPORT` or `ENCODER`.

    Returns:
        The file's name in the folder; None where nothing is there, an empty folder, or an earlier model alone.
    """
    folder = Path(path)
    if not folder.exists():
        return None
    if not folder.is_dir():
        return folder.name
    try:
        noted = read_json(folder / description)
    except FileNotFoundError:
        noted = None
    except ValueError:
        return None  # one that is damaged is written again
    if isinstance(noted, dict) and CHECKED not in noted and noted.keys() & {"dims", "results"}:
        return None  # written by an earlier version
    is_ours = isinstance(noted, dict) and _are_files(noted.get(CHECKED))
    own = {description, *noted[CHECKED]} if is_ours else set()
    names = sorted(
        Path(parent, name).relative_to(folder)
        for parent, folders, files in os.walk(folder)
        for name in [*files, *(name for name in folders if Path(parent, name).is_symlink())]
    )
    # What a killed run has not finished of one of them is nobody's either.
    whole = [name.with_name(name.name.rsplit(".", 2)[0]) if is_temporary(name.name) else name for name in names]
    others = (
        name
        for name, file in zip(names, whole)
        if file.as_posix() not in own and not (is_ours and file.name in EDITABLE)
    )
    return next((name.as_posix() for name in others), None)


def stage_around(path: str | os.PathLike[str]) -> Path | None:
    """The folder of a run's stages, or of its model, that a path leads into; None for any other path."""
    real = Path(os.path.realpath(path))
    for part in (real, *real.parents):
        is_of_stages = part.name == "stages" and any(
            file.is_file() for file in (part.parent / RUN, copy_of(part.parent / RUN))
        )
        if is_of_stages or work_folder_of(part) is not None:
            return part
    return None


def work_folder_of(model: Path) -> Path | None:
    """The work folder of the run whose stage, or pretraining, has left a model in this folder; None for any other one."""
    folder = Path(os.path.realpath(model))
    if folder.name != "model":
        return None
    work = folder.parents[2] if folder.parent.parent.name == "stages" else folder.parent
    # Other programs have a run.json too, but no copy of it.
    return work if copy_of(work / RUN).is_file() else None
