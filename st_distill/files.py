"""Files that are either there and whole, or not there.

Everything is written to a temporary name in the target's own folder, flushed to the disk, renamed, and the folder is
flushed too: after a crash or a power cut a reader finds the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from st_distill.errors import writing
from st_distill.locks import FolderLock, is_locked, lock

TEMPORARY = ".tmp"
"""How the name of an unfinished file ends, behind the number of the process that writes it."""
_CHECKSUM = ".sha256"
LARGEST = 256 * 2**20
"""Bytes of the largest description that is read: far more than any that is written."""
#: Files outside a folder that links in it may lead to: a model has a few dozen, and a whole disk is not gone through.
_LINKED = 10_000


class Written(NamedTuple):
    """What a description keeps of a file: its size in ``bytes`` and the ``sha256`` of its content, as hex digits."""

    bytes: int
    sha256: str


#: What may have a file's name and is none. A pipe would be waited for, and a device may have no end.
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def not_plain(path: str | os.PathLike[str]) -> str | None:
    """Why a path is not read, which may come from a stranger, to follow its name in a sentence; None for a plain file.

    A link is what it leads to.

    Raises:
        FileNotFoundError: there is no such file.
    """
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        return f"is {_KINDS.get(kind, 'a device')}, where a plain file is expected"
    root = _of_the_system(Path(os.path.realpath(path)))
    return None if root is None else f"lies in {root}, which is the system's, where a plain file is expected"


def require_plain(path: str | os.PathLike[str]) -> None:
    """See to it that a path is that of a plain file, or of a link to one, before it is opened.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, a pipe or a device.
    """
    if (what := not_plain(path)) is not None:
        raise ValueError(f"{os.fspath(path)} {what}")


def odd_file(folder: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """What in a folder no library should be given to read, and why, to follow its name in a sentence; None for nothing.

    Behind links to folders too. A link that leads nowhere is no matter: who needs it says that it is not there.
    """
    root, seen, linked = Path(os.path.realpath(folder)), set(), 0
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if not Path(real).is_relative_to(root):
            linked += len(folders) + len(names)
            if linked > _LINKED:
                return Path(parent), f"is behind a link that leads to more than {_LINKED:,} files outside the folder"
        for path in (Path(parent, name) for name in sorted(names)):
            with contextlib.suppress(OSError):
                if (what := not_plain(path)) is not None:
                    return path, what
    return None


def require_plain_files(folder: str | os.PathLike[str]) -> None:
    """See to it that a model's folder, which may come from a stranger, holds files and folders alone, or links to such, and
    that its ``modules.json`` names modules in it.

    Args:
        folder: its folder; a name of the hub has no files yet.

    Raises:
        ValueError: there is a pipe or a device among them, or a module lies elsewhere.
    """
    if not os.path.isdir(folder):
        return
    if (odd := odd_file(folder)) is not None:
        path, what = odd
        raise ValueError(f"The model {os.fspath(folder)} is not read: {path} {what}. Remove it, or restore the file.")
    for module in _modules_of(Path(folder)):
        if os.path.isabs(module) or os.path.normpath(module).split(os.sep)[0] == "..":
            raise ValueError(
                f"The model {os.fspath(folder)} is not read: its modules.json names a module outside its folder, '{module}'. "
                "Copy that one into the folder, and name it there."
            )


def _modules_of(model: Path) -> list[str]:
    """The folders of a model's modules, where its ``modules.json`` is one; who loads it says what is wrong with another."""
    try:
        modules = read_json(model / "modules.json")
    except (OSError, ValueError):
        return []
    entries = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return [path for module in entries if isinstance(path := module.get("path"), str)]


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as 64 hex digits, what the ``sha256sum`` command prints.

    Raises:
        FileNotFoundError, ValueError: as `require_plain`.
    """
    require_plain(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: str | os.PathLike[str]) -> Written:
    """Size and checksum of a file that exists."""
    return Written(os.stat(path).st_size, sha256(path))


def flush_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder (new files, renamed files) survive a power cut."""
    if os.name == "nt":  # a folder cannot be opened there, and renames are journalled
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """What a file is called until it is finished."""
    # The process number keeps two processes that write the same file from writing into each other's half.
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is an unfinished one of ours, as ``store.json.4711.tmp``."""
    return re.fullmatch(rf".+\.\d+{re.escape(TEMPORARY)}", name, re.DOTALL) is not None


def is_folder_name(name: str) -> bool:
    """Whether somebody, who may be a stranger, may call a folder of ours so: it leads nowhere else, on any system."""
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    return 0 < len(name) <= 100 and set(name) <= allowed and "." not in (name[0], name[-1])


def new_file(path: Path) -> IO[bytes]:
    """A file that was not there before: a link that a stranger has put in its place is removed, not followed."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write to; it takes the place of ``path`` when the block ends, and is removed when it fails."""
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with writing(path), new_file(temporary) as file:
            lock(file.fileno())  # so that who tidies up knows that somebody still writes
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write or replace a file, whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write or replace a UTF-8 file, whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write or replace a JSON file, whole or not at all.

    Raises:
        ValueError: as `json_text`.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What a JSON file of ours holds.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not know.
    """
    # ASCII escapes, because a prompt may hold an unpaired surrogate, which UTF-8 cannot carry.
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no plain one, too large, or not JSON; the sentence names the file and the place.
    """
    try:
        return _parsed(path)
    except ValueError as error:
        raise ValueError(f"{error}; restore it or build it again.") from error


def _parsed(path: str | os.PathLike[str]) -> Any:
    content = read_small(path)
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not a JSON file ({error})") from error


def read_small(path: str | os.PathLike[str]) -> bytes:
    """The content of a file that is never large, such as a description or a model's card.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plain file, or larger than `LARGEST`.
    """
    require_plain(path)
    with open(path, "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST:
            raise ValueError(f"{os.fspath(path)} has {size:,} bytes, where at most {LARGEST:,} are read")
        return file.read()


def copy_of(path: str | os.PathLike[str]) -> Path:
    """Where the second copy of a record lies: ``store.copy.json`` beside ``store.json``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.copy{path.suffix}")


def write_signed(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write or replace a JSON object with a checksum of itself as ``sha256``."""
    write_json(path, value | {"sha256": _sha256_of(value, path)})


def read_signed(path: str | os.PathLike[str]) -> Any:
    """Read what `write_signed` wrote, without the checksum; a file without one is read as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no plain one, too large, not JSON, or has changed since it was written.
    """
    try:
        value = _parsed(path)
    except ValueError as error:
        raise ValueError(f"{error}.") from error
    if isinstance(value, dict) and "sha256" in value and value.pop("sha256") != _sha256_of(value, path):
        raise ValueError(f"{os.fspath(path)} is damaged: its content has not the sha256 that stands in it.")
    return value


def write_record(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """Write or replace a JSON object that much depends on: signed, and twice.

    The copy (`copy_of`) follows the original, so that it may be one state behind, but is never ahead of it.
    """
    write_signed(path, value)
    write_signed(copy_of(path), value)


def read_record(path: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None) -> Any:
    """As `read_signed`, of what `write_record` wrote.

    Args:
        path: of the file.
        folder: what is mended when the file is damaged, for the sentence; by default the folder that the file lies in.

    Raises:
        FileNotFoundError, ValueError: as there; the sentence says which command brings it back.
    """
    try:
        return read_signed(path)
    except ValueError as error:
        raise ValueError(f"{error} {restoring(path, folder)}") from error


def restoring(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> str:
    """What brings a damaged record of a folder back, as a sentence; by default of the folder that the record lies in."""
    folder = Path(path).parent if folder is None else folder
    return f"Put its copy {copy_of(path).name} in its place, or {mending(folder)}."


def mending(folder: str | os.PathLike[str]) -> str:
    """The command that mends a damaged folder, for a sentence about it."""
    return f"mend it with: st-distill verify {shlex.quote(os.fspath(folder))} --repair"


def _sha256_of(value: dict[str, Any], path: str | os.PathLike[str]) -> str:
    try:
        content = json.dumps(value, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} must hold finite numbers ({error}).") from error
    return hashlib.sha256(content.encode("ascii")).hexdigest()


Manifest = dict[str, dict[str, Any]]
"""Size and checksum of the files of a folder, by their path in it: ``{"config.json": {"bytes": 7, "sha256": "..."}}``."""


def manifest(folder: str | os.PathLike[str], *, without: Sequence[str] = ()) -> Manifest:
    """What the files of a folder are, those of folders within it included.

    They are flushed to the disk first, with the names of them all: what is entered in a manifest survives a power cut.

    Args:
        folder: the folder.
        without: names of files that are left out.
    """
    folder = Path(folder)
    found: Manifest = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in without:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            found[path.relative_to(folder).as_posix()] = describe(path)._asdict()
    for path in (folder.parent, folder, *folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
    return found


def differences(folder: str | os.PathLike[str], expected: Manifest) -> Iterator[tuple[str, str]]:
    """The files of a manifest that are not as it has them, and what is wrong with each. Further files are no matter.

    Raises:
        ValueError: a name leads out of the folder: a stranger has written the manifest.
    """
    for name, written in expected.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(
                f"The files of {os.fspath(folder)} must lie in it. Got {name!r} instead: do not trust them."
            )
        if what := difference(Path(folder) / name, written["bytes"], written["sha256"]):
            yield name, what


def difference(path: Path, size: int, checksum: str) -> str | None:
    """What distinguishes a file from what was written; None where nothing does."""
    try:
        is_there = path.is_file()
    except OSError as error:  # a stranger may have written the name
        if error.errno != errno.ENAMETOOLONG:
            raise
        is_there = False
    if not is_there:
        return "there is no such file"
    if (found := path.stat().st_size) != size:
        return f"there are {found} bytes, where {size} were written"
    return None if sha256(path) == checksum else "the content has changed since it was written (its sha256 is another)"


def write_checksum(path: Path, checksum: str) -> None:
    """Write a file's sha256 beside it, under its own name with another ending."""
    write_text(path.with_suffix(_CHECKSUM), checksum)


def is_whole(path: Path) -> bool:
    """Whether a file is there, and has the checksum that `write_checksum` has written beside it."""
    checksum = path.with_suffix(_CHECKSUM)
    return path.is_file() and checksum.is_file() and read_small(checksum) == sha256(path).encode("ascii")


def refuse_links(folder: Path, *, but: Sequence[str] = ()) -> None:
    """See to it that what is written and removed below a folder, which may come from a stranger, lies in it.

    Args:
        folder: the folder; it may be a link itself.
        but: names in it that may be links.

    Raises:
        ValueError: a folder in it, or in one of those, is a link.
    """
    for parent, names, _ in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.is_symlink() and path.relative_to(folder).as_posix() not in but:
                raise ValueError(
                    f"The folder {folder} must hold plain folders. {path} is a link: put there what it leads to."
                )


def in_the_way(path: str | os.PathLike[str]) -> Path | None:
    """What keeps a folder from being made at a path: the nearest part of it that is there and is no folder; else None."""
    path = Path(path)
    nearest = next(part for part in (path, *path.parents) if os.path.lexists(part))
    return None if nearest.is_dir() else nearest


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
#: Where the system shows its devices and itself, and what there is a plain folder for everybody.
_OF_THE_SYSTEM, _IN_MEMORY = (Path("/dev"), Path("/proc"), Path("/sys")), Path("/dev/shm")
#: As long as what stands beside a name while it is written, or as a run's second folder.
_BESIDE = "-" * 20


def no_place(path: str | os.PathLike[str]) -> str | None:
    """Why nothing can be written at a path, whatever is there, to follow its name in a sentence; None where it may be.

    The path is not repeated: an address may have a login in it.
    """
    path = Path(path)
    if _ADDRESS.match(str(path)):
        return "is an address, not a place on this machine"
    if "\0" in str(path):
        return "holds a zero byte, which no name may"
    for place in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):
        if (root := _of_the_system(place)) is not None:
            return f"lies in {root}, which is the system's"
    nearest = next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))
    for name in (path.absolute(), *(nearest / f"{part}{_BESIDE}" for part in path.parts)):
        try:
            os.lstat(name)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return "is longer than names can be"
    return None


def _of_the_system(place: Path) -> Path | None:
    """Where the system shows a thing that lies there; None for a plain file's place."""
    around = (place, *place.parents)
    return None if _IN_MEMORY in around else next((root for root in _OF_THE_SYSTEM if root in around), None)


def refuse_link(path: str | os.PathLike[str]) -> None:
    """See to it that a folder which is replaced whole is no link: what it leads to may be of another disk, or nobody's.

    Raises:
        ValueError: it is one.
    """
    if os.path.islink(path):
        raise ValueError(
            f"The folder {os.fspath(path)} must be no link, because it is replaced whole. Name the folder that it leads to, or "
            "remove the link."
        )


def put_aside(path: str | os.PathLike[str]) -> Path | None:
    """Where a folder lies that a killed `replacing_folder` has put aside before the new one was in its place."""
    path = Path(path)
    if path.exists():
        return None
    old = _beside(path) / "old"
    return old if old.is_dir() else None


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.st-distill")


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder to write into; it takes the place of ``path`` when the block ends, and is removed when it fails.

    Until then it lies in the folder ``.NAME.st-distill`` beside ``path``, and so does, for a moment, the folder that was
    there before. What a killed process left there is put back where ``path`` is gone, and else removed.

    Raises:
        BlockingIOError: another process is writing the same folder.
        ValueError: ``path`` is a link.
    """
    path = Path(path)
    refuse_link(path)
    beside = _beside(path)
    if beside.is_symlink():
        beside.unlink()
    beside.mkdir(parents=True, exist_ok=True)
    new, old = beside / "new", beside / "old"

    def put_back() -> None:
        if old.exists() and not path.exists():
            old.rename(path)

    with FolderLock(beside, purpose=f"{path} is being written"):
        put_back()
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        new.mkdir()
        try:
            with writing(path):
                yield new
            if path.exists():
                path.rename(old)
            new.rename(path)
            flush_folder(path.parent)
        finally:
            put_back()
            shutil.rmtree(beside, ignore_errors=True)


def remove_abandoned(folder: str | os.PathLike[str], name: str = "*") -> list[Path]:
    """Remove the unfinished files that killed writers left in a folder which nobody locks, and return their names.

    Args:
        folder: where.
        name: of the finished file; every file of the folder by default.
    """
    return _remove(path for path in _unfinished(folder, name) if not is_locked(path))


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the unfinished files that a killed process left in a folder, and return their names.

    Only for the holder of the folder's lock: the files of a living writer end alike.
    """
    return _remove(_unfinished(folder, "*"))


def _unfinished(folder: str | os.PathLike[str], name: str) -> list[Path]:
    pattern = name if name == "*" else glob.escape(name)
    return [path for path in sorted(Path(folder).glob(f"{pattern}.*{TEMPORARY}")) if is_temporary(path.name)]


def _remove(paths: Iterable[Path]) -> list[Path]:
    removed = list(paths)
    for path in removed:
        path.unlink(missing_ok=True)
    return removed
