"""How several processes, on one machine or on many with a shared folder, build one store.

The first process (number 0) holds the store's lock, registers the texts, and is the only one that writes store.json. Every
process embeds its share of the missing texts and writes its own shards; those of the others stand in a journal of their own
until the first process enters them in store.json, at the end, or at the beginning of the next build after a crash. They
speak to each other through files, because shares take hours, which a barrier of torch.distributed does not wait for::

    processes/current.json              the session (a random name) of the build that the lock's holder runs
    processes/SESSION/0.json            state of the first process; the tickets of those it has seen
    processes/SESSION/1.json            state of another process, with its ticket
    processes/SESSION/1.journal.json    its shards, as in store.json; 1.journal.copy.json is the same again
    processes/SESSION/0.lock, 1.lock    held by each of them as long as it lives

Whether a process lives is seen by trying its lock, which holds it for an instant. So the locks that are tried are these,
taken before anybody knows of them, and never the store's own: else a process that waits for the first one to begin could
keep it from beginning.

A session that lies there from a build that died cannot be taken for the present one: a process starts when the first one
has written the ticket that it has drawn itself. All of this is removed when the build ends well.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from st_distill import files
from st_distill.locks import FolderLock, is_locked
from st_distill.store.format import DESCRIPTION, Description, TeacherShard, damaged_record, read_journal

__all__ = ["Alone", "Leader", "Member", "adopt", "enter", "journals", "process_of_environment"]

FOLDER = "processes"
_ARRIVAL_SECONDS = 600.0  # for all processes to come: they may import and load for minutes, at very different speed
_REMNANT_SECONDS = 10.0  # for the processes of an earlier build to end
_CHECK_SECONDS = 2.0
_POLL_SECONDS = 0.1


def process_of_environment() -> tuple[int, int]:
    """Number of this process and number of processes, as torchrun and accelerate launch say them; (0, 1) elsewhere.

    Raises:
        ValueError: the environment says something else.
    """
    number, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(
            "The variables RANK and WORLD_SIZE of the environment must be the number of this process, from 0, and the number "
            f"of processes. Got {number!r} and {count!r} instead; unset them, or start the program by torchrun."
        )
    return int(number), int(count)


class Alone:
    """The only process of a build, and what those of several have in common.

    Args:
        folder: of the store.
        number: of this process, from 0.
        count: of processes.
    """

    #: What shares the texts out by chance, the same for all of several processes; known when they have entered.
    salt: int

    def __init__(self, folder: Path, number: int = 0, count: int = 1) -> None:
        self.folder = folder
        self.number = number
        self.count = count
        self._session = folder / FOLDER
        self._checked = time.monotonic()
        self._state: dict[str, Any] = {}
        self._locked: FolderLock | None = None

    def __enter__(self) -> None:
        """Nobody is waited for."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """The lock is all that there is to give back."""

    def check(self) -> None:
        """Raise when another process has failed; to be called often."""
        if time.monotonic() - self._checked >= _CHECK_SECONDS:
            self._check()
            self._checked = time.monotonic()

    def _check(self) -> None:
        """Nobody else can fail."""

    def _read(self, number: int) -> dict[str, Any]:
        """What another process says of itself.

        Raises:
            ValueError: the file is no process's: a stranger has written it.
        """
        path = self._session / f"{number}.json"
        try:
            state = files.read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        if not isinstance(state, dict) or not isinstance(state.get("tickets", {}), dict):
            raise ValueError(f"The file {path} must say what a process of a build does. It does not: remove it.")
        return state

    def _say(self, state: str, **more: Any) -> None:
        self._state |= {"state": state} | more
        files.write_json(self._session / f"{self.number}.json", self._state)

    def _lock(self, number: int) -> Path:
        return self._session / f"{number}.lock"

    def _take_lock(self, session: Path) -> None:
        """Show by the lock of this number in a session that this process lives."""
        self._locked = FolderLock(
            session, name=self._lock(self.number).name, purpose=f"as process {self.number} of a build"
        ).__enter__()

    def _unlock(self) -> None:
        if self._locked is not None:
            self._locked.__exit__(None, None, None)
            self._locked = None

    def _say_failure(self, error: BaseException) -> None:
        with contextlib.suppress(OSError):  # the disk may be what failed
            self._say("failed", error=f"{type(error).__name__}: {error}")

    def _raise_for(self, number: int) -> str:
        """State of another process; an exception when it has failed, or is no more."""
        # Before the state is read: a process says its last word while it holds the lock.
        alive = is_locked(self._lock(number))
        state = self._read(number)
        if state.get("state") == "failed":
            raise ChildProcessError(
                f"Process {number} of {self.count} that build the store {self.folder} failed; what it has finished is kept. "
                f"It says: {state.get('error')}"
            )
        if not alive and state.get("state") not in ("done", "left", "complete"):
            raise ChildProcessError(
                f"Process {number} of {self.count} that build the store {self.folder} has ended without a word: killed, or "
                "its machine is lost. What it has finished is kept: run the same command again."
            )
        return str(state.get("state"))


class Leader(Alone):
    """The first of several processes; holds the store's lock already."""

    def __enter__(self) -> None:
        name = secrets.token_hex(8)
        self._session = self.folder / FOLDER / name
        self._session.mkdir(parents=True)
        self._take_lock(self._session)
        files.write_json(self.folder / FOLDER / "current.json", {"session": name})
        self.salt = int(name, 16)
        self._say("here", processes=self.count)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if error is not None:
            # The others find out at their next batch; what they have in their journals is for the next build.
            with contextlib.suppress(ValueError):  # what another one says cannot be read, which may be the error
                self._state.setdefault("tickets", self._tickets())
            self._say_failure(error)
            self._unlock()
            return
        self._say("complete")
        for number in self._others():
            for _ in _poll():
                if self._read(number).get("state") in ("left", "failed") or not is_locked(self._lock(number)):
                    break
        self._unlock()
        _remove([self._session])
        _remove_folder(self.folder)

    def start(self) -> None:
        """Wait until all processes are there, and let them start.

        Raises:
            TimeoutError: one has not come.
        """
        tickets: dict[int, str] = {}
        for waited in _poll():
            for number in tickets:  # they are there already, and may fail while others are awaited
                self._raise_for(number)
            tickets = self._tickets()
            missing = [number for number in self._others() if number not in tickets]
            if not missing:
                break
            if waited > _ARRIVAL_SECONDS:
                raise TimeoutError(
                    f"All {self.count} processes must call TeacherStore.create with the same arguments. Within "
                    f"{_ARRIVAL_SECONDS:.0f} s, the processes {missing} have not; to build in one process alone, pass "
                    "process=(0, 1)."
                )
        self._say("started", tickets=tickets)

    def _tickets(self) -> dict[int, str]:
        """Those of the processes that are there."""
        drawn = {number: self._read(number).get("ticket") for number in self._others()}
        return {number: ticket for number, ticket in drawn.items() if ticket}

    def finish(self) -> list[Path]:
        """Wait until the others have embedded their shares, and return their journals."""
        for number in self._others():
            for _ in _poll():
                if self._raise_for(number) == "done":
                    break
        return _journals(self._session)

    def _check(self) -> None:
        for number in self._others():
            self._raise_for(number)

    def _others(self) -> range:
        return range(1, self.count)


class Member(Alone):
    """Another one of several processes."""

    def __enter__(self) -> None:
        self._ticket = secrets.token_hex(8)
        try:
            self._join()
        except BaseException as error:
            if self._locked is not None:
                self._say_failure(error)
                self._unlock()
            raise

    def _join(self) -> None:
        hope = time.monotonic()
        for _ in _poll():
            session = self._current()
            if session is not None and session != self._session:
                self._enter(session)
            first = self._read(0) if self._locked is not None else {}
            running = is_locked(self._lock(0))
            if first.get("tickets", {}).get(str(self.number)) == self._ticket:
                self._raise_for(0)
                self.salt = int(self._session.name, 16)
                if first["processes"] != self.count:
                    raise ValueError(
                        f"All processes must be as many. Process {self.number} has been told {self.count}, process 0 "
                        f"{first['processes']}."
                    )
                return
            if running and first.get("state") == "here":
                hope = time.monotonic()
            elif time.monotonic() - hope > _ARRIVAL_SECONDS:
                raise TimeoutError(
                    f"All {self.count} processes must call TeacherStore.create with the same arguments. Within "
                    f"{_ARRIVAL_SECONDS:.0f} s, process 0 has not begun to write in {self.folder}; to build in one process "
                    "alone, pass process=(0, 1)."
                )

    def _current(self) -> Path | None:
        """The folder of the build that the first process has begun, or of an earlier one; None where there is none.

        Raises:
            ValueError: the file that names it names something else: a stranger has written it.
        """
        path = self.folder / FOLDER / "current.json"
        try:
            noted = files.read_json(path)
        except FileNotFoundError:
            return None
        name = noted.get("session") if isinstance(noted, dict) else None
        if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{16}", name):
            raise ValueError(f"The file {path} must name the folder of a build beside it. It does not: remove it.")
        session = self.folder / FOLDER / name
        return session if session.is_dir() and not session.is_symlink() else None

    def _enter(self, session: Path) -> None:
        self._unlock()
        self._session = session
        with contextlib.suppress(FileNotFoundError):  # the session of a build that ended a moment ago
            self._take_lock(session)
            self._say("here", ticket=self._ticket)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if error is not None:
            self._say_failure(error)
        else:
            self._say("left")
        self._unlock()

    def write_journal(self, description: Description) -> None:
        """Keep what this process has finished."""
        files.write_record(self._session / f"{self.number}.journal.json", description.to_json())

    def finish(self) -> None:
        """Say that this share is done, and wait until the store is complete."""
        self._say("done")
        for _ in _poll():
            if self._raise_for(0) == "complete":
                return

    def _check(self) -> None:
        self._raise_for(0)


def adopt(folder: Path, description: Description, present: Alone) -> Callable[[], None] | None:
    """Enter what processes of builds that died have finished, for the holder of the lock.

    Returns:
        What removes their journals, to be called when the description is written; None where there are none.

    Raises:
        BlockingIOError: one of these processes still lives.
    """
    sessions = [path for path in (folder / FOLDER).glob("*") if path.is_dir() and path != present._session]
    if not sessions:
        return None
    for session in sessions:
        for lock in session.glob("*.lock"):
            for waited in _poll():
                if not is_locked(lock):
                    break
                if waited > _REMNANT_SECONDS:
                    raise BlockingIOError(
                        f"{folder} is still written to by process {lock.stem} of an earlier build; wait until it has "
                        "ended, or end it."
                    )
        for journal in _journals(session):
            enter(folder, description, journal)

    def remove() -> None:
        _remove(sessions)
        if present.count == 1:
            _remove_folder(folder)

    return remove


def enter(folder: Path, description: Description, path: Path) -> int:
    """Enter the shards of a journal in the description, those that it has not yet; the number of their vectors.

    Raises:
        ValueError: the journal is damaged, or not of this store as its description has it.
    """
    rows = 0
    for name, entry in read_journal(folder, path).teachers.items():
        known = description.teachers.get(name)
        if known is None:
            raise damaged_record(path, f"there are vectors of teacher '{name}', which {DESCRIPTION} has not", folder)
        named = {shard.vectors.file for shard in known.shards}
        added: list[TeacherShard] = [shard for shard in entry.shards if shard.vectors.file not in named]
        if added:
            if known.dimension not in (None, entry.dimension):
                raise ValueError(
                    f"Teacher '{name}' must have one dimension in all processes. Got {known.dimension}, and {entry.dimension} "
                    f"in {path}; to go on without the latter, {files.mending(folder)}."
                )
            known.dimension = entry.dimension
            known.roles = entry.roles | known.roles
        known.shards += added
        rows += sum(shard.rows for shard in added)
    return rows


def journals(folder: Path) -> list[Path]:
    """The journals that lie in a store: of processes that live, or of builds that died."""
    sessions = [path for path in sorted((folder / FOLDER).glob("*/")) if not path.is_symlink()]
    return [journal for session in sessions for journal in _journals(session)]


def _journals(session: Path) -> list[Path]:
    return sorted(session.glob("*.journal.json"))


def _poll() -> Iterator[float]:
    """Seconds since the first time, again and again."""
    started = time.monotonic()
    while True:
        yield time.monotonic() - started
        time.sleep(_POLL_SECONDS)


def _remove(sessions: list[Path]) -> None:
    for session in sessions:
        shutil.rmtree(session, ignore_errors=True)


def _remove_folder(folder: Path) -> None:
    (folder / FOLDER / "current.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a process that begins the next build already is in there
        (folder / FOLDER).rmdir()
