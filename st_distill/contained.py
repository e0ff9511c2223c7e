"""What somebody else's data name lies in the folder that the user has named, or it is not read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_distill.errors import LeadsOutError
from st_distill.files import read_json
from st_distill.tables import unreadable

__all__ = ["Bounds", "is_saved", "load_named", "load_saved", "require_below"]

#: A folder of the hub's cache, whose files are links into the folder ``blobs`` beside ``snapshots``.
_SNAPSHOT = re.compile(r"(.*/(?:datasets|models|spaces)--[^/]+)/snapshots/[0-9a-f]{40}(?:/.*)?")
_ADDRESSES = ("http://", "https://")


def _lies_below(path: Path, folder: Path) -> bool:
    try:
        target, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    except ValueError:  # a name that no file can have: who opens it says so
        return True
    if target.is_relative_to(root):
        return True
    snapshot = _SNAPSHOT.fullmatch(root.as_posix())
    return snapshot is not None and target.is_relative_to(Path(snapshot[1], "blobs"))


def require_below(folder: Path, path: Path) -> Path:
    """The path itself, of a file that was found in a folder; LeadsOutError where a link in the folder leads out of it."""
    if not _lies_below(path, folder):
        raise LeadsOutError(
            f"{path} leads out of {folder}, the folder that is named, and is not read. Put the file itself there, or name it."
        )
    return path


# --- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """Where the pictures may lie that a table names by their paths.

    Args:
        folders: they lie below one of these; relative paths start at the first.
        dataset: the name of the data set, where the table is one that `datasets` finds by its name.
    """

    folders: tuple[Path, ...]
    dataset: str | None = None

    @classmethod
    def of_path(cls, path: Path) -> Bounds:
        """The folder of a table, or the folder that is one."""
        return cls((path if path.is_dir() else path.parent,))

    @classmethod
    def of_dataset(cls, name: str) -> Bounds:
        """What `datasets` has downloaded and unpacked, and the data set's own folder, on this machine or in the hub's cache."""
        from datasets import config
        from huggingface_hub import constants

        own = Path(name)
        if not own.is_dir():
            own = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
        return cls((own, Path(config.DOWNLOADED_DATASETS_PATH), Path(config.EXTRACTED_DATASETS_PATH)), name)

    def picture(self, stored: Any, *, row: int | None = None) -> Any:
        """A picture as the table has it; the path of one that is not in the table itself begins with the first folder.

        ``stored`` is a path, an http(s) address, the bytes of a file, or a mapping of ``bytes`` and ``path``, of which the path
        is but a name where there are bytes.

        Raises:
            LeadsOutError: for a path that leads out of the folders, by links too. The table may come from somebody else than
                who reads it.
        """
        if isinstance(stored, Mapping):
            is_inside = stored.get("bytes") is not None
            return stored if is_inside else {**stored, "path": self.picture(stored.get("path"), row=row)}
        if not isinstance(stored, str) or not stored or stored.startswith(_ADDRESSES):
            return stored
        picture = self.folders[0] / stored
        if not any(_lies_below(picture, folder) for folder in self.folders):
            raise LeadsOutError(self._told(f"The picture '{stored}'{'' if row is None else f' of row {row}'}"))
        return str(picture)

    def _told(self, picture: str) -> str:
        if self.dataset is None:
            return (
                f"{picture} must lie in {self.folders[0]}, the folder of the table that names it, and leads out of it. Move it "
                "there, or the table above it."
            )
        return (
            f"{picture} must lie in the data set '{self.dataset}' that names it, and leads out of it. Take one that holds its "
            "pictures, or name a folder that holds them and their table."
        )


# --- data sets ---------------------------------------------------------------------------------------------------------


def is_saved(folder: Path) -> bool:
    """Whether a path is a folder that `Dataset.save_to_disk` has written, or `DatasetDict.save_to_disk`."""
    return folder.is_dir() and any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def load_saved(folder: Path) -> Any:
    """What save_to_disk has written: a Dataset or a DatasetDict.

    Raises:
        LeadsOutError: its description names a file outside the folder.
        ValueError: it cannot be read.
    """
    from datasets import DatasetDict

    try:
        if not (folder / "dataset_dict.json").is_file():
            return _load_part(folder, folder)
        splits = read_json(folder / "dataset_dict.json")["splits"]
        return DatasetDict({split: _load_part(folder, folder / split) for split in splits})
    except LeadsOutError:
        raise
    except Exception as error:  # damaged files lead datasets to errors of every kind
        raise unreadable(folder, error) from error


def _load_part(folder: Path, part: Path) -> Any:
    import datasets

    state, info = (read_json(require_below(folder, part / name)) for name in ("state.json", "dataset_info.json"))
    files = [require_below(folder, part / file["filename"]) for file in state["_data_files"]]
    described = datasets.DatasetInfo.from_dict(info)
    if not files:  # one without rows
        return datasets.Dataset(described.features.arrow_schema.empty_table())
    # Their own load_from_disk takes a folder's name for an address where it has '::', and begins '~' at home.
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file), info=described) for file in files])


def load_named(
    name: str,
    config: str | None = None,
    *,
    split: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Any:
    """A data set of the hub, or a folder that `datasets` reads as one; every split of it without a ``split``.

    Raises:
        LeadsOutError: its own description names files of this machine that are not its own, or its name or one of theirs is
            not taken literally.
        ValueError: it cannot be read. Errors of the hub are those of `datasets`.
    """
    import datasets
    import pyarrow as pa

    whole = os.path.abspath(name)
    if os.path.isdir(name) and (name.startswith("~") or glob.has_magic(whole) or "::" in whole):
        raise LeadsOutError(
            f"The folder '{whole}' is not read as the data set '{name}': 'datasets' takes it for a pattern or an address. "
            "Rename what has one of ~ * ? [ or :: in its name, or name the folder's files as 'path'."
        )
    builder = datasets.load_dataset_builder(name, config, revision=revision)
    for file in _named_files(builder):
        if os.path.expandvars(file) != str(file):
            raise LeadsOutError(
                f"The data set '{name}' is not read: 'datasets' takes '{file}' for a name with a variable of the environment "
                "in it. Rename it, or name the file itself as 'path'."
            )
        if not (Path(name).is_dir() and _lies_below(file, Path(name))):
            raise LeadsOutError(
                f"The data set '{name}' would be read from '{file}', a file of this machine outside it, and is not. Take it "
                "out of its README.md or folder, or name the file itself as 'path'."
            )
    try:
        if streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowException) as error:
        raise unreadable(name, error) from error
    return builder.as_dataset(split=split)


def _named_files(builder: Any) -> Iterator[Path]:
    """Files of this machine among those that a data set is read from."""
    for files in (builder.config.data_files or {}).values():
        for file in files:
            scheme, separator, place = str(file).rpartition("::")[2].rpartition("://")
            if not separator or scheme == "file":
                yield Path(place)
