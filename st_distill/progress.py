"""How far a long pass over texts is."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

__all__ = ["TextsProgress", "duration"]

#: Seconds between two lines, where there is no terminal.
_BETWEEN = 30.0


class TextsProgress:
    """A bar in a terminal; in a file, a notebook or a CI's log a line now and then. Nothing is shown of nothing to do.

    Args:
        what: the work, by a name.
        total: texts to come, where that is known; it may be changed before the first `update`.
        show: whether anything is shown at all.
        stream: where to; default: the standard error stream.
    """

    def __init__(self, what: str, *, total: int | None, show: bool, stream: TextIO | None = None) -> None:
        self.what, self.total, self.show = what, total, show
        self._stream = stream or sys.stderr
        self._done = 0
        self._bar: Any = None
        self._begin: float | None = None
        self._told = (0.0, 0)  # when, and of how many texts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif self._begin is not None and self._done > self._told[1]:
            self._tell()

    def begin(self) -> None:
        """There is something to do, from now on."""
        if not self.show or self._stream is None or self._begin is not None:
            return
        self._begin = time.monotonic()
        self._told = (self._begin, 0)
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.what, total=self.total, unit=" texts", file=self._stream, dynamic_ncols=True, smoothing=0.05
            )

    def update(self, count: int) -> None:
        """``count`` more texts are done."""
        self.begin()
        self._done += count
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(count)
        elif self._begin is not None and time.monotonic() - self._told[0] >= _BETWEEN:
            self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        seconds, self._told = now - (self._begin or now), (now, self._done)
        parts = [f"{self._done:,} of {self.total:,} texts" if self.total is not None else f"{self._done:,} texts"]
        if seconds > 0 and self._done:
            rate = self._done / seconds
            parts.append(f"{rate:,.0f} texts/s")
            is_done = self.total is not None and self._done >= self.total
            if is_done:
                parts.append(f"done in {duration(seconds)}")
            elif self.total is not None:
                parts.append(f"{duration((self.total - self._done) / rate)} left")
        self._stream.write(f"{self.what}: {', '.join(parts)}\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
