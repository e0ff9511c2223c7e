"""The processes that run one recipe together, under torchrun or ``accelerate launch``.

The main one (rank 0) holds the folder's lock and writes; the others wait for it and read what it wrote. Waiting goes
through the process group's key-value store and not through a collective, which would give up after half an hour: the main
process may embed or evaluate for hours. A process that fails says so in the same store, so that the others end too, and only
the first one's sentence is shown.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from st_distill.errors import OtherProcessError
from st_distill.files import refuse_links, remove_leftovers
from st_distill.locks import FolderLock

__all__ = ["STORE", "Processes", "leave", "locked"]

STORE = "teachers"
"""The folder of the teachers' vectors within a work folder; it may be a link to a store that several runs read."""

_T = TypeVar("_T")

#: Seconds between two looks at the store: short at first, for quick steps, and longer for long ones.
_SHORTEST_WAIT, _LONGEST_WAIT = 0.005, 0.5
#: Seconds that a process which failed after another one gives the launcher to end it.
_GRACE = 5.0

_runs = itertools.count()


class Processes:
    """Who takes part in a run: ``rank`` (from 0) and ``count``; one process where nothing was launched.

    A context: within it an error in one process ends the others at their next meeting. Every process must enter, `join` and
    `meet` in the same order.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.on_cpu = False
        self._keys: Any = None
        self._meetings = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def join(self, *, cpu: bool, timeout: float = 1800.0) -> None:
        """Form the process group, if there are several processes and no group yet.

        Args:
            cpu: compute on the CPU even where there is an accelerator.
            timeout: seconds that a collective waits for the other processes.
        """
        if self.count == 1 and not distributed.is_initialized():
            return
        # Without an accelerator the group must be asked for as one of CPUs, or every process would train alone.
        self.on_cpu = cpu or not torch.accelerator.is_available()
        if not distributed.is_initialized():
            PartialState(cpu=self.on_cpu, timeout=timedelta(seconds=timeout))
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        store = distributed.distributed_c10d._get_default_store()
        self._keys = distributed.PrefixStore(f"st-distill/{next(_runs)}", store)

    def meet(self) -> None:
        """Wait until every process is here.

        Raises:
            OtherProcessError: another process has failed.
        """
        if self._keys is None:
            return
        self._meetings += 1
        key = f"meeting/{self._meetings}"
        self._keys.add(key, 1)
        wait = _SHORTEST_WAIT
        while self._keys.add(key, 0) < self.count:
            if self._keys.add("failed", 0):
                raise self._ended_elsewhere()
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)

    def by_main(self, function: Callable[[], _T]) -> _T | None:
        """What ``function`` returns in the main process, and None in the others, which wait until it is done."""
        result = function() if self.is_main else None
        self.meet()
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # The main process may hold the store, so it leaves last.
            self.meet()
            if self._keys is not None:
                self._keys.add("left", 1)
                while self.is_main and self._keys.add("left", 0) < self.count:
                    time.sleep(_SHORTEST_WAIT)
        elif self.count > 1 and isinstance(error, Exception) and not self._is_first_to_fail():
            time.sleep(_GRACE)  # the first one's end makes the launcher end this one
            if self._keys is not None and not isinstance(error, OtherProcessError):
                raise self._ended_elsewhere() from error

    def _is_first_to_fail(self) -> bool:
        if self._keys is None:
            return self.is_main
        try:
            return self._keys.add("failed", 1) == 1
        except RuntimeError:  # the process that held the store is gone
            return True

    def _ended_elsewhere(self) -> OtherProcessError:
        return OtherProcessError(f"Process {self.rank} ended because another one of the {self.count} failed.")


def leave() -> None:
    """Close the process group, for a program that ends."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def locked(folder: Path, processes: Processes) -> Iterator[None]:
    """Within this, the main process holds the work folder for all of them."""
    if not processes.is_main:
        processes.meet()
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder, but=[STORE])
    with FolderLock(folder, purpose="a recipe is running there"):
        remove_leftovers(folder)
        processes.meet()
        yield
