"""A small run in a process of its own, in which something happens at a chosen moment.

A moment is a change of the disk: the n-th file that is opened for writing, renamed or removed under the run's folder. So it
is the same on a fast machine and on a slow one, and every write is reached. What lies between two changes is reached by the
clock: a time after the run's first sign of life, a share of what an undisturbed one takes. ``FAULTS=all`` (``make faults``)
tries the whole matrix, the suite a sample of it.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tqdm.std
from safetensors.torch import load_file

from st_distill.cli import main

ALL = os.environ.get("FAULTS") == "all"
_SECONDS = 300  # after which a child is taken to hang
_BEGUN = b"begun\n"
_CHANGES = "changes: "


@dataclass
class Ended:
    """How a child ended: its exit code (negative for a signal), what it printed, the changes that it made, and its time."""

    code: int
    said: str
    changes: int
    seconds: float


def assert_told(said: str) -> None:
    """What went wrong is told in words: neither as a traceback, nor as an error that nobody has foreseen."""
    assert "Traceback" not in said, said
    assert "--debug" not in said, said


Happens = Callable[[], None]
_OF_A_FOLDER = ("os.remove", "os.rmdir")  # their second argument is a folder, or -1
_WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def _watch(folder: Path, moment: int | None, happens: Happens | None) -> Callable[[], int]:
    """Count the changes under a folder, and let something happen before one of them (counted from 1)."""
    count, root = 0, str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            name, _, flags = arguments
            changes = isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        elif event in _WRITES:
            name, changes = arguments[0], True
            if event in _OF_A_FOLDER and isinstance(arguments[1], int) and arguments[1] >= 0:
                # A tree is removed by names within its open folders.
                name = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), name)
        else:
            return
        if changes and isinstance(name, (str, os.PathLike)) and os.fspath(name).startswith(root):
            count += 1
            if count == moment and happens is not None:
                happens()

    sys.addaudithook(hook)
    return lambda: count


def forked(
    function: Callable[[], int],
    folder: Path,
    *,
    moment: int | None = None,
    happens: Happens | None = None,
    size: int | None = None,
    seconds: float | None = None,
) -> Ended:
    """Call a function, which returns an exit code, in a child process.

    Args:
        function: what the child does.
        folder: where changes are counted.
        moment: the change before which something happens, from 1.
        happens: what does.
        size: limit of files, in bytes, beyond which writing fails as on a full disk.
        seconds: after which the child is killed, wherever it is.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.close(reading)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.alarm(_SECONDS)
            # The threads of the parent are not here: what waits for them hangs.
            torch.set_num_threads(1)
            _unlock_progress()
            changes = _watch(folder, moment, happens)
            if size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            os.write(1, _BEGUN)
            code = function()
            sys.stderr.flush()
            print(f"{_CHANGES}{changes()}", flush=True)
        except BaseException as error:
            os.write(2, f"Traceback of {error!r}".encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        said = pipe.read(len(_BEGUN))
        begun = time.monotonic()
        if seconds is not None:
            said += _read_for(reading, seconds)
            os.kill(child, signal.SIGKILL)
        said += pipe.read()
    _, status = os.waitpid(child, 0)
    taken = time.monotonic() - begun
    words, _, changes = said.removeprefix(_BEGUN).decode("utf-8", "replace").partition(_CHANGES)
    return Ended(os.waitstatus_to_exitcode(status), words, int(changes.split()[0]) if changes else 0, taken)


def _unlock_progress() -> None:
    """Give tqdm a lock of this process alone: children share the other, and one that is killed with it keeps it for ever."""
    kinds = [tqdm.std.tqdm]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if kind is tqdm.std.tqdm or "_lock" in vars(kind):
            kind.set_lock(tqdm.std.TRLock())


def _read_for(pipe: int, seconds: float) -> bytes:
    """What comes out of a pipe until that time is over, or the pipe closes."""
    end, content = time.monotonic() + seconds, b""
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0] and (piece := os.read(pipe, 2**16)):
        content += piece
    return content


def times(count: int, *, seed: int) -> list[tuple[float, ...]]:
    """For each of some cases the times of one to four legs, in shares of an undisturbed run's: at the end of each it is killed.

    The legs of a case lie between random points of an undisturbed run, so that hardly one gets to its end.
    """
    draw = random.Random(seed)
    points = [sorted(draw.random() for _ in range(1 + case % 4)) for case in range(count)]
    return [tuple(round(end - begin, 3) for begin, end in itertools.pairwise([0.0, *case])) for case in points]


def killed_at_times(function: Callable[[], int], folder: Path, legs: tuple[float, ...], seconds: float) -> int:
    """Call a function in one child after the other, each killed after its share of the seconds; the number of kills."""
    kills = 0
    for share in legs:
        ended = forked(function, folder, seconds=share * seconds)
        assert ended.code in (0, -signal.SIGKILL), (
            f"killed after {share * seconds:.3f} s of {seconds:.3f}",
            ended.said,
        )
        assert_told(ended.said)
        kills += ended.code != 0
    return kills


def kill() -> None:
    """What the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk() -> None:
    """From here on no file takes another byte."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def kill_inside_a_file() -> None:
    """Killed by the kernel while the next file is written, its first 100 bytes on the disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def without_rights() -> None:
    """An administrator's process, to which no file is closed, becomes one that may do what modes allow."""
    if os.geteuid() == 0:
        version_3, no_rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(version_3, no_rights) == 0


RECIPE = """\
output: {folder}/out
student: {{model: {student}, layers: [0, 3], pooling: mean, max_seq_length: 16}}
teachers: [{{model: {teacher}, name: teacher}}]
texts: {folder}/texts.txt
projection: {{dims: [16, 8]}}
evaluation: {{texts: {folder}/held-out.txt, teachers: false}}
"""
STAGES = """\
stages:
  - {{train: projection, steps: 4, batch: 8, arguments: {arguments}}}
  - {{train: all, steps: 5, batch: 8, arguments: {arguments}}}
"""
SEEING_STAGES = """\
images:
  path: {folder}/images.parquet
  vision: {{model_type: siglip_vision_model, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
    intermediate_size: 32, image_size: 32, patch_size: 16}}
stages:
  - {{train: projection, steps: 2, batch: 8, arguments: {arguments}}}
  - {{train: vision, steps: 5, batch: 8, learning_rate: 1e-3, arguments: {arguments}}}
"""


@dataclass
class Project:
    """A folder with a recipe, and what is written for it."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "out-run"

    def run(self, *arguments: str) -> int:
        return main(["run", str(self.folder / "recipe.yaml"), *arguments])

    def results(self) -> dict[str, torch.Tensor]:
        """The weights after each stage, and those of the exported model."""
        folders = [*sorted((self.work / "stages").glob("*/model")), self.folder / "out"]
        found = {}
        for model in folders:
            for file in sorted(model.rglob("*.safetensors")):
                for name, tensor in load_file(file).items():
                    found[f"{file.relative_to(self.folder)}:{name}"] = tensor
        return found


class Undisturbed(NamedTuple):
    """What a run comes to when nothing happens: its weights, the changes that it makes on the disk, and its time."""

    results: dict[str, torch.Tensor]
    changes: int
    seconds: float


def same_results(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), atol=1e-5, err_msg=name)
