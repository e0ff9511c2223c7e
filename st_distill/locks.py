"""One writer at a time: locks that belong to the operating system, and end with the process that holds them."""

from __future__ import annotations

import errno
import os
import time
import types
import warnings
from pathlib import Path

from st_distill.errors import writing

try:
    import fcntl
except ImportError:  # Windows has no fcntl; its own lock is used there
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()


def _let_go() -> None:
    # A lock is held as long as any process has the file open: a child must not hold it beyond its parent's end.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class FolderLock:
    """The right to write in a folder, held by one process at a time.

    The lock belongs to the operating system, on the file ``lock`` in the folder: it ends with the process, however that
    ends, so that a crash leaves nothing behind to be cleaned; processes that it has forked do not hold it. The file stays,
    because removing it would let a second process lock a file that a third can no longer see.

    Args:
        folder: an existing folder.
        purpose: what the holder does, in one line, for the sentence that a second process gets: "a store is being written",
            say.
        name: of the file.

    Raises:
        BlockingIOError: another process (or another part of this one) holds the lock.
        ValueError: something that is no file has the lock's name.
    """

    NAME = "lock"

    def __init__(self, folder: str | os.PathLike[str], *, purpose: str = "it is in use", name: str = "lock") -> None:
        self.folder = Path(folder)
        self.purpose = purpose
        self.name = name
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        path = self.folder / self.name
        if path.is_symlink():  # what it leads to would be written over
            raise ValueError(f"The lock {path} must be a file. It is a link: remove it.")
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise ValueError(f"The lock {path} must be a file. It is {kind}: remove it.")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            locked = lock(handle)
            for wait in (0.01, 0.05, 0.2, 0.5):  # a process that looks whether the lock is held holds it for an instant
                if locked is not False:
                    break
                time.sleep(wait)
                locked = lock(handle)
            if locked is None:
                warnings.warn(
                    "This file system has no locks, so nothing keeps a second process from writing in the same folder.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            # Who has just let go of it may have removed the folder: a lock on that file would keep nobody out.
            if locked is False or not _is_at(handle, path):
                holder, _, purpose = os.read(handle, 1000).decode("utf-8", "replace").strip().partition("\n")
                does = f" ({purpose})" if purpose else ""
                raise BlockingIOError(
                    f"{self.folder} is locked by {holder or 'another process'}{does}; wait until it has finished, or end it."
                )
            with writing(path):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()}\n{self.purpose}\n".encode("utf-8", "backslashreplace"))
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _held.add(handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._handle in _held:  # not in a child
            _held.remove(self._handle)
            os.close(self._handle)
        self._handle = None


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Whether a living process holds the `FolderLock` whose file is ``path``; False where there is no such file.

    True where the file system has no locks: nobody is taken for dead there.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        # Who may not write there may yet look.
        handle = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return lock(handle) is not True
    finally:
        os.close(handle)


def lock(handle: int) -> bool | None:
    """Lock an open file without waiting; False when somebody else holds it, None where the file system has no locks."""
    if fcntl is None:
        return _lock_on_windows(handle)
    # Some network file systems know only the second kind.
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                return False
        else:
            return True
    return None


def _lock_on_windows(handle: int) -> bool:
    import msvcrt

    try:
        # A byte far behind the content, so that the holder's name stays readable.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    finally:
        os.lseek(handle, 0, os.SEEK_SET)
    return True
