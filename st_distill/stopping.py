"""SIGTERM and Ctrl-C: what is being done ends in order, so that it can be continued."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stop", "Stopped", "postponed", "raising", "uninterrupted"]


class Stopped(KeyboardInterrupt):
    """A signal has asked the program to end. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within this, SIGTERM and SIGINT raise `Stopped`; SIGTERM would otherwise end the process without a word."""
    with _handled(_raise):
        yield


class Stop:
    """Whether a signal has come: its ``number``, or None."""

    number: int | None = None

    def raise_if_asked(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)


@contextlib.contextmanager
def postponed() -> Iterator[Stop]:
    """Within this, the first SIGTERM or SIGINT is only noted, so that the work ends where it can be continued.

    The second raises at once.
    """
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.number is not None:
            _raise(number, frame)
        stop.number = number

    with _handled(note):
        yield stop


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within this, the first SIGTERM or SIGINT waits for the end, and then does what it would have done at once.

    The second raises at once.
    """
    with postponed() as stop:
        yield
    if stop.number is not None:
        signal.raise_signal(stop.number)


@contextlib.contextmanager
def _handled(handler: signal._HANDLER) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # What a program around Python has set cannot be set again.
    before = {number: former for number, former in before.items() if former is not None}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
