"""The exceptions of st-distill. Each is also a built-in one, so that no program needs to know these names.

```
ValueError
├── RecipeError         every mistake of a recipe, each with its place
└── LeadsOutError       data that name a file outside their own folder
ImportError
└── MissingExtraError   an optional dependency, with the line that installs it
RuntimeError
└── OtherProcessError   another process of the same run has failed, and has said why
```

What others raise is put into a sentence (`one_line`), or told with the file that it is about (`writing`). What is printed, of
names that a stranger has chosen too, can do nothing to a terminal (`printable`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from st_distill.credentials import without_credentials

__all__ = [
    "LeadsOutError",
    "MissingExtraError",
    "OtherProcessError",
    "Problem",
    "RecipeError",
    "format_problems",
    "one_line",
    "printable",
    "sentence",
    "writing",
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, or doubtful, in a recipe.

    Args:
        message: one sentence: what is wrong and what to do.
        path: the field, such as ``stages[1].learning_rate``; empty for the recipe as a whole.
        line: line of the field in its file, from 1; None for what stands in no file.
        source: the file, preset or command-line option that says it; None for a recipe made in Python.
        level: ``"error"`` stops a run; a ``"warning"`` may well be right elsewhere (a model that is not on this machine).
    """

    message: str
    path: str = ""
    line: int | None = None
    source: str | None = None
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return format_problems([self])


class RecipeError(ValueError):
    """A recipe that cannot run. ``problems`` has every mistake; the message shows them all, a line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(format_problems(self.problems))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


class LeadsOutError(ValueError):
    """Data name a file outside their own folder, by its path or a link; they may come from somebody else."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed.

    Args:
        package: what cannot be imported.
        extra: the extra of st-distill that installs it.
        purpose: what needs it, as the beginning of a sentence (``"Exporting to ONNX"``).
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        self.package, self.extra, self.purpose = package, extra, purpose
        super().__init__(
            f"{purpose} needs {package}, which is not installed. Run: pip install 'st-distill[{extra}]'", name=package
        )

    def __reduce__(self) -> tuple[object, ...]:
        return _missing_extra, (self.package, self.extra, self.purpose)


def _missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    return MissingExtraError(package, extra=extra, purpose=purpose)


class OtherProcessError(RuntimeError):
    """This process ended because another one of the same run failed; that one says why."""


def format_problems(problems: Iterable[Problem], source: str | None = None) -> str:
    """The problems as compilers print theirs, a line each.

    ``source`` stands in for problems that name none.

    >>> print(format_problems([Problem(message="must be above 0", path="stages[1].steps", line=12)], "recipe.yaml"))
    recipe.yaml:12: stages[1].steps: must be above 0
    """
    lines = []
    for problem in problems:
        place = problem.source or source
        if place and problem.line is not None:
            place = f"{place}:{problem.line}"
        elif problem.line is not None:
            place = f"line {problem.line}"
        level = "warning" if problem.level == "warning" else ""
        lines.append(printable(": ".join(part for part in (place, level, problem.path, problem.message) if part)))
    return "\n".join(lines)


#: Line ends, the codes that terminals obey, and the marks that turn the direction of a line around.
_OBEYED = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str, *, lines: bool = False) -> str:
    """What a terminal is given of a text that may come from a stranger: no login, no token, and no character that it obeys.

    Args:
        text: a line, in which a line end is written as any other such character.
        lines: keep the ends of lines, where they are our own.

    >>> print(printable("README.txt\\nis whole\\x1b[8m"))
    README.txt\\nis whole\\x1b[8m
    """

    def escape(found: re.Match[str]) -> str:
        return "\n" if lines and found[0] == "\n" else found[0].encode("unicode_escape").decode("ascii")

    return _OBEYED.sub(escape, without_credentials(text))


def one_line(error: BaseException) -> str:
    """The error's message in one line without a full stop, to be put into a sentence.

    Where torch refuses weights that hold more than numbers, it advises to run what may be a stranger's code; that is left out.
    """
    if "weights_only" in str(error):
        return (
            "the file of the weights is broken or holds more than weights, perhaps code: save them as model.safetensors"
        )
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__


def sentence(text: str) -> str:
    """The text with a full stop, unless it asks something ("did you mean ...?")."""
    return text if text.endswith("?") else f"{text}."


#: What torch, safetensors and tokenizers say, each in its own exception, of a disk that takes no more.
_OF_THE_DISK = re.compile(r"inline_container|PytorchStreamWriter|\(os error \d+\)")


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within this something is written to ``path``, perhaps by a library: what the disk does not take is told with its name.

    Raises:
        OSError: the disk is full, say.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    except Exception as error:
        if not _OF_THE_DISK.search(str(error)):
            raise
        what = f"The disk takes no more ({' '.join(str(error).split())})"
        raise OSError(errno.ENOSPC, what, os.fspath(path)) from error
