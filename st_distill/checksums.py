"""The checksums that are noted of a saved model, and the comparison with them before it is used.

An exported model and a pretrained encoder note them in a file of their own, the model of a run's stage in the ``run.json`` of
its work folder. Another program's model has none, and is taken as it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from st_distill.files import copy_of, differences, read_json
from st_distill.records import RUN, RunRecord

__all__ = ["AGAIN", "CHECKED", "ENCODER", "EXPORT", "noted_damage", "require_whole", "stage_around", "work_folder_of"]

#: What an exported model's folder says of itself, beside the files that sentence-transformers reads.
EXPORT = "st_distill.json"
#: The same for an encoder that `st_distill.pretrain` has finished, beside the files that transformers reads.
ENCODER = "st_distill_pretraining.json"
#: The field of both that has the size and checksum of the folder's files.
CHECKED = "files"
#: What makes a damaged model again, by the file that notes what it was.
AGAIN = {
    EXPORT: "export it again: st-distill export STUDENT FOLDER, or continue its run with --resume",
    ENCODER: "continue its pretraining: st-distill pretrain RECIPE --resume",
}


def noted_damage(path: str | os.PathLike[str], description: str = EXPORT) -> list[tuple[str, str]]:
    """The files of a model that are not as they were written, and what is wrong with each; an export's card may change.

    A folder that has not noted in the file ``description`` what its files are (another program's model) has none.
    """
    path = Path(path)
    if not (path / description).is_file():
        return []
    try:
        return list(differences(path, read_json(path / description).get(CHECKED, {})))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [(description, f"it cannot be read ({error})")]


def require_whole(model: str | os.PathLike[str]) -> None:
    """Compare a model's folder with the checksums that are noted of it, before anything in it is used.

    Args:
        model: its folder. A name on the hub has no checksums of ours.

    Raises:
        ValueError: a file is not as it was written; the sentence says which, and what makes it again.
    """
    if not os.path.isdir(model):
        return
    folder = Path(model)
    for description, again in AGAIN.items():
        if damage := noted_damage(folder, description):
            reason = "; ".join(f"{name}: {what}" for name, what in damage)
            raise ValueError(
                f"The model {folder} is damaged: {reason}. Restore it, or {again}. Where the change is your own, remove its "
                f"{description}."
            )
    if (work := work_folder_of(folder)) is not None:
        RunRecord(work).require_whole(folder)


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
