from __future__ import annotations

import io

from st_distill import progress
from st_distill.progress import TextsProgress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch, stream: io.StringIO, *, total: int | None, show: bool = True) -> str:
    """What is written of 300 texts that take 20 seconds a hundred."""
    clock = iter([100.0, 120.0, 140.0, 140.0, 160.0, 160.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with TextsProgress("first", total=total, show=show, stream=stream) as bar:
        for _ in range(3):
            bar.update(100)
    return stream.getvalue()


def test_lines_where_there_is_no_terminal(monkeypatch):
    assert shown(monkeypatch, io.StringIO(), total=300).splitlines() == [
        "first: 200 of 300 texts, 5 texts/s, 0:20 left",
        "first: 300 of 300 texts, 5 texts/s, done in 1:00",
    ]
    assert shown(monkeypatch, io.StringIO(), total=None).splitlines()[-1] == "first: 300 texts, 5 texts/s"
    assert shown(monkeypatch, io.StringIO(), total=300, show=False) == ""


def test_a_bar_in_a_terminal(monkeypatch):
    written = shown(monkeypatch, Terminal(), total=300)
    assert "first: 100%" in written
    assert "300/300" in written


def test_nothing_is_shown_of_nothing_to_do():
    for stream in (io.StringIO(), Terminal()):
        with TextsProgress("first", total=0, show=True, stream=stream):
            pass
        assert stream.getvalue() == ""


def test_durations():
    assert [duration(seconds) for seconds in (0, 61.4, 3723)] == ["0:00", "1:01", "1:02:03"]
