"""What an error says of a task that could not be measured."""

from __future__ import annotations

from st_distill.evaluation.failures import failure, failures


def test_an_error_is_one_line(caplog):
    assert failure("x", ValueError("No rows.\n Give one.")) == {"name": "x", "error": "No rows. Give one"}
    assert failure("x", KeyError("a"))["error"] == "KeyError: 'a'"
    assert failure("x", MemoryError())["error"] == "MemoryError"
    assert "The part 'x' of the evaluation could not be measured: No rows. Give one." in caplog.text


def test_a_question_has_no_full_stop(caplog):
    assert failure("x", ValueError("No column 'a'; did you mean 'b'?"))["error"].endswith("'b'?")
    assert caplog.messages == ["The part 'x' of the evaluation could not be measured: No column 'a'; did you mean 'b'?"]


def test_the_traceback_of_another_process_is_not_told():
    text = (
        'Caught OSError in worker 0.\nTraceback (most recent call last):\n  File "/x/y.py", line 1\nOSError: No disk.\n'
    )
    assert failure("x", OSError(text))["error"] == "OSError: No disk"


def test_parts_come_before_tasks():
    tasks = {"tasks": [], "failed": [{"name": "b", "error": "2"}]}
    results = {"failed": [{"name": "a", "error": "1"}], "tasks": tasks}
    assert [entry["name"] for entry in failures(results)] == ["a", "b"]
    assert failures({}) == failures({"tasks": {"tasks": []}}) == []
