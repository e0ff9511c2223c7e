"""Signals that wait, and then do what they would have done."""

from __future__ import annotations

import signal

import pytest

from st_distill.stopping import Stopped, postponed, raising, uninterrupted

NUMBERS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_waits_for_the_end_of_what_is_not_interrupted(number):
    done = []

    def work():
        with uninterrupted():
            signal.raise_signal(number)
            done.append("inside")
        done.append("behind")

    with raising(), pytest.raises(Stopped) as stopped:
        work()
    assert stopped.value.number == number
    assert done == ["inside"]


def test_a_second_signal_does_not_wait():
    def work():
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

    with pytest.raises(Stopped, match="SIGINT"):
        work()


def test_a_signal_that_is_noted_outside_is_noted_in_the_end():
    with postponed() as stop:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            assert stop.number is None
        assert stop.number == signal.SIGTERM


def test_handlers_of_a_program_around_python_are_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: pytest.fail("a handler was set"))
    with uninterrupted():
        pass
