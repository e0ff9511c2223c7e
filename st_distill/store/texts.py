"""What `TeacherStore.create` is given, checked before any work starts."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from st_distill import files
from st_distill.locks import FolderLock
from st_distill.options import check_whole_number, is_number
from st_distill.store.dtypes import DTYPES
from st_distill.store.format import ASIDE, DESCRIPTION, lost_description
from st_distill.store.processes import FOLDER, process_of_environment
from st_distill.teacher import Teacher
from st_distill.vectors import shorten

INSTEAD_OF_LINK = "put what it leads to in its place"
CHUNK = 4096  # texts that are looked up at a time


# Roles are names of a kind of text, of which a store has few. What is longer, or one of many, is a text that stands in the
# place of a role.
_ROLE_WORDS, _ROLE_CHARACTERS, _ROLES = 3, 64, 32

_OURS = {FolderLock.NAME, "index", "teachers", ASIDE, FOLDER}  # what a build writes before the description


def check_create(
    texts: Any, teachers: Any, roles: Any, dtype: str, shard_rows: Any, shard_seconds: Any, process: Any
) -> tuple[int, int]:
    """Number of this process and number of processes, when all arguments can be right."""
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise TypeError(
            "The 'texts' of TeacherStore.create must be strings or (text, role) pairs, in a list or any other iterable. "
            f"Got {type(texts).__name__} instead."
        )
    if not isinstance(teachers, Sequence) or not all(isinstance(teacher, Teacher) for teacher in teachers):
        raise TypeError("The 'teachers' of TeacherStore.create must be Teacher objects: Teacher(model), say.")
    names = [teacher.name for teacher in teachers]
    if not names or len({name.casefold() for name in names}) < len(names):
        raise ValueError(
            f"The 'teachers' of TeacherStore.create must be one at least, with distinct names (upper and lower case are "
            f"one, as on some disks). Got the names {names} instead; choose others by Teacher(..., name=...)."
        )
    if roles is not None and (not isinstance(roles, str) or not roles):
        raise TypeError(
            f"The 'roles' of TeacherStore.create must be the name of a role for all texts, or None. Got {roles!r} instead; for "
            "several roles give (text, role) pairs."
        )
    if dtype not in DTYPES:
        raise ValueError(
            f"The 'dtype' of TeacherStore.create must be one of {', '.join(DTYPES)}. Got {dtype!r} instead."
        )
    check_whole_number("'shard_rows' of TeacherStore.create", shard_rows)
    if not is_number(shard_seconds, 0):
        raise ValueError(
            "The 'shard_seconds' of TeacherStore.create must be a number of seconds, at least 0. Got "
            f"{shard_seconds!r} instead."
        )
    number, count = process_of_environment() if process is None else _process(process)
    if count > 1 and iter(texts) is texts:
        raise TypeError(
            f"The 'texts' of TeacherStore.create must be something that can be gone through again (a list, a column of a "
            f"dataset), because {count} processes build the store. Got a {type(texts).__name__}, which ends after one time."
        )
    return number, count


def _process(process: Any) -> tuple[int, int]:
    is_pair = isinstance(process, Sequence) and len(process) == 2 and not isinstance(process, str | bytes)
    if not is_pair or not all(isinstance(part, int) and not isinstance(part, bool) for part in process):
        raise TypeError(
            "The 'process' of TeacherStore.create must be two whole numbers, that of this process, from 0, and that of all, or "
            f"None. Got {process!r} instead; to build in this process alone, pass process=(0, 1)."
        )
    number, count = process
    if not 0 <= number < count:
        raise ValueError(
            "The 'process' of TeacherStore.create must be the number of this process, from 0, and the number of processes. "
            f"Got {(number, count)} instead."
        )
    return number, count


def prepare_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"The 'path' of TeacherStore.create must be a folder. {folder} is a file: choose another name."
        )
    folder.mkdir(parents=True, exist_ok=True)
    check_links(folder)
    present = {entry.name for entry in os.scandir(folder) if not entry.name.endswith(files.TEMPORARY)}
    if DESCRIPTION not in present and files.copy_of(DESCRIPTION).name in present:
        # To build anew would remove the vectors that are there, which were paid for.
        raise ValueError(lost_description(folder))
    if DESCRIPTION not in present and present - _OURS:
        raise ValueError(
            f"The 'path' of TeacherStore.create must be a store, or a new or empty folder. {folder} is neither: it has other "
            "files; choose another folder."
        )


def links_in(folder: Path) -> list[Path]:
    """What lies in a store and is a link, so that something would be read or written elsewhere; but for the arrays, each of
    which is looked at where it is read.
    """
    names = {*_OURS, DESCRIPTION, files.copy_of(DESCRIPTION).name}
    inner = [folder / name for name in sorted(names)]
    if not (folder / FOLDER).is_symlink():
        inner += sorted((folder / FOLDER).rglob("*"))
    return [path for path in (*inner, *sorted((folder / "teachers").glob("*"))) if path.is_symlink()]


def check_links(folder: Path) -> None:
    """See to it that nothing is written elsewhere: a store may come from a stranger.

    Raises:
        ValueError: something in it is a link.
    """
    for inner in links_in(folder):
        raise ValueError(
            f"The store {folder} must have plain files and plain folders. {inner} is a link: {INSTEAD_OF_LINK}."
        )


def read_texts(texts: Iterable[Any], roles: str | None) -> Iterator[tuple[list[str], list[str]]]:
    """Texts and their roles, a chunk at a time, checked."""
    default = roles or ""
    position = 0
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        chunk_texts, chunk_roles = [], []
        for place, item in enumerate(chunk, start=position):
            if isinstance(item, str):
                text, role = item, default
            elif roles is None and isinstance(item, tuple | list) and len(item) == 2:
                text, role = item[0], "" if item[1] is None else item[1]
            else:
                text = role = None  # type: ignore[assignment]
            if not isinstance(text, str) or not isinstance(role, str):
                expected = "a string or a (text, role) pair of strings" if roles is None else "a string"
                raise TypeError(
                    f"Every item of the 'texts' must be {expected}. Got {shorten(repr(item))} of type {type(item).__name__} at "
                    f"position {place}."
                )
            chunk_texts.append(text)
            chunk_roles.append(role)
        yield chunk_texts, chunk_roles
        position += len(chunk)


def check_new_roles(texts: Sequence[str], roles: Sequence[str], known: Sequence[str]) -> None:
    """See to it that what a store is to know as roles can be such, and no documents in (query, document) pairs.

    Args:
        texts: of a chunk.
        roles: of each of the texts.
        known: the store's roles.

    Raises:
        ValueError: a role that is not ``known`` reads like a text, or there are more roles than a store has uses for.
    """
    new = set(roles) - set(known)
    wrong = {role for role in new if len(role) > _ROLE_CHARACTERS or len(role.split()) > _ROLE_WORDS}
    if not wrong and len(known) + len(new) <= _ROLES:
        return
    place = next(place for place, role in enumerate(roles) if role in (wrong or new))
    found = "" if wrong else f", one of {len(known) + len(new)} roles"
    raise ValueError(
        "The pairs among the 'texts' must be (text, role), where the role is a name such as 'query'. Got "
        f"{shorten(roles[place])} as the role of {shorten(texts[place])}{found}; give a query and its document as two texts, "
        "(query, 'query') and (document, 'document')."
    )
