"""Texts per second and memory of models, each in a process of its own that does nothing else.

``python -m st_distill.report.speed`` reads what `measure_speed` wrote to its standard input.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from st_distill.timing import texts_per_second

__all__ = ["Speed", "measure_speed", "missing_backends"]

#: Texts encoded at a time.
BATCH = 32
#: Seconds after which a converted model that has not encoded the texts is given up.
_LONGEST = 900
#: Letters of an error, at most.
_SHOWN = 200
#: How a terminal is told of a colour.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: What each backend besides torch needs, and the line that installs it. ONNX and OpenVINO are sentence-transformers' own.
_BACKENDS = {
    "onnxruntime": (("onnx", "onnxruntime", "onnxscript"), "st-distill[onnx]"),
    "ONNX": (("onnxruntime", "optimum.onnxruntime"), "sentence-transformers[onnx]"),
    "OpenVINO": (("openvino", "optimum.intel"), "sentence-transformers[openvino]"),
}


@dataclass(frozen=True)
class Speed:
    """What was measured of a model.

    Attributes:
        model: its name.
        backend: "torch"; "onnxruntime", of the whole model by torch's exporter; "ONNX" or "OpenVINO", as
            sentence-transformers runs an encoder with them.
        texts_per_second: tokenising included, in batches of 32, median of three passes; None where it failed.
        memory: 10**6 bytes that the process took on top of the libraries, at most, for weights and work; None where the
            system does not tell.
        device: where it ran.
        error: why it failed, in a line.
    """

    model: str
    backend: str
    texts_per_second: float | None
    memory: float | None
    device: str
    error: str | None = None


def missing_backends() -> list[str]:
    """A sentence for each backend that cannot be measured here, with the line that installs it."""
    sentences = []
    for backend, (packages, extra) in _BACKENDS.items():
        if lacking := [package for package in packages if not _is_installed(package)]:
            what = f"{', '.join(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not installed"
            sentences.append(f"The speed with {backend} needs {what}. Run: pip install '{extra}'")
    return sentences


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def measure_speed(
    models: Mapping[str, Mapping[str, Any]], texts: Sequence[str], *, exported: Sequence[str] = ()
) -> list[Speed]:
    """Measure each model by itself, in a fresh process.

    Args:
        models: name to the arguments of ``SentenceTransformer``, as JSON can hold them, and ``max_seq_length``.
        texts: to embed, at least one.
        exported: models to measure on the CPU with the other backends too, those that are installed.
    """
    jobs: list[dict[str, Any]] = [
        {"model": name, "backend": "torch", "arguments": dict(arguments)} for name, arguments in models.items()
    ]
    for backend, (packages, _) in _BACKENDS.items():
        if all(_is_installed(package) for package in packages):
            jobs += [{"model": name, "backend": backend, "arguments": dict(models[name])} for name in exported]
    try:
        found = _asked("st_distill.report.speed", {"jobs": jobs, "texts": list(texts)})
    except RuntimeError as error:
        return [Speed(job["model"], job["backend"], None, None, "", str(error)) for job in jobs]
    return [Speed(**entry) for entry in found]


def _asked(module: str, task: Mapping[str, Any], seconds: float | None = None) -> Any:
    """What a module, run in a fresh process, prints as its last line in answer to a task on its standard input.

    Raises:
        RuntimeError: for a process that fails, or does not end within ``seconds``, with its last word.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, "TQDM_DISABLE": "1"},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it did not end within {seconds:g} seconds") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _measured(job: Mapping[str, Any], texts: Sequence[str]) -> Speed:
    """One model. With torch it runs in a copy of this process, which has imported the libraries and nothing more; with another
    backend it is converted in such a copy, and runs in a fresh process, which has not seen the conversion."""
    name, backend = job["model"], job["backend"]
    try:
        if backend == "torch":
            return Speed(name, backend, **_in_child(lambda: _torch(job["arguments"], texts)))
        with tempfile.TemporaryDirectory() as folder:
            limit = _in_child(lambda: _convert(backend, job["arguments"], Path(folder)))
            task = {"backend": backend, "folder": folder, **limit, "texts": texts}
            return Speed(name, backend, **_asked("st_distill.report.converted", task, _LONGEST), device="cpu")
    except RuntimeError as error:
        return Speed(name, backend, None, None, "", str(error))


def _torch(arguments: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    before = resident()
    model = _loaded(**arguments)
    speed = texts_per_second(
        lambda batch: model.encode(batch, batch_size=BATCH, show_progress_bar=False), texts, batch_size=BATCH
    )
    return {"texts_per_second": speed, "memory": taken_since(before), "device": str(model.device)}


def _convert(backend: str, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write a model for a backend, as `st_distill.report.converted` reads it; returns its ``max_seq_length``."""
    if backend != "onnxruntime":
        options = {**arguments, "backend": backend.lower(), "device": "cpu", "model_kwargs": {"export": True}}
        model = _loaded(**options)
        model.save_pretrained(str(folder), create_model_card=False)
    else:
        from st_distill.modules.onnx import export_onnx

        model = _loaded(**{**arguments, "device": "cpu"})
        export_onnx(model, folder / "model.onnx")
        model.tokenizer.save_pretrained(folder)
    return {"max_seq_length": model.max_seq_length}


def _loaded(max_seq_length: int | None = None, **arguments: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(**arguments)
    if max_seq_length is not None:
        model.max_seq_length = max_seq_length
    return model


def resident() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not tell."""
    return _of_status("VmRSS")


def taken_since(before: int | None) -> float | None:
    """10**6 bytes that this process has had in memory beyond ``before``, at most; None where the system does not tell."""
    peak = _of_status("VmHWM")
    return None if before is None or peak is None else max(0.0, (peak - before) / 1e6)


def _of_status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns, done in a copy of this process; RuntimeError with its reason where it fails."""
    if hasattr(os, "fork"):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(_outcome(work), pipe)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        outcome = json.loads(said) if said else {"error": "its process ended without a result"}
    else:
        outcome = _outcome(work)
    if "error" in outcome:
        raise RuntimeError(outcome["error"])
    return outcome


def _outcome(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Exception as error:  # whatever a stranger's model or the exporter raises: the other models still count
        return {"error": f"{type(error).__name__}: {_first_sentence(str(error))}"}


def _first_sentence(message: str) -> str:
    """Of an error that goes on for paragraphs, in colours of a terminal; no more than a line or two of it."""
    plain = " ".join(_COLOUR.sub("", message).split())
    first = re.split(r"(?<=\w\w)\. (?=[A-Z])", plain, maxsplit=1)[0].rstrip(".")
    return first if len(first) <= _SHOWN else f"{first[: _SHOWN - 1]}…"


def main() -> None:
    """Measure what standard input says, and print the figures as the last line."""
    import sentence_transformers  # noqa: F401 - imported once, before the copies

    task = json.load(sys.stdin)
    print(json.dumps([asdict(_measured(job, task["texts"])) for job in task["jobs"]]), flush=True)


if __name__ == "__main__":
    main()
