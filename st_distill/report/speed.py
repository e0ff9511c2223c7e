"""Texts per second and memory of models, each in a process of its own that does nothing else.

``python -m st_distill.report.speed`` reads what `measure_speed` wrote to its standard input.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Speed", "measure_speed", "missing_backends"]

_BATCH = 32
#: Passes over the texts; the median counts.
_PASSES = 3
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
    task = json.dumps({"jobs": jobs, "texts": list(texts)})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "st_distill.report.speed"],
        input=task,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "TQDM_DISABLE": "1"},
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return [Speed(job["model"], job["backend"], None, None, "", reason) for job in jobs]
    return [Speed(**entry) for entry in json.loads(done.stdout.strip().splitlines()[-1])]


def _measured(job: Mapping[str, Any], texts: list[str]) -> Speed:
    """One model, in this process."""
    from sentence_transformers import SentenceTransformer

    name, backend, arguments = job["model"], job["backend"], dict(job["arguments"])
    limit = arguments.pop("max_seq_length", None)
    try:
        before = _resident()
        if backend == "onnxruntime":
            device = "cpu"
            model = _limited(SentenceTransformer(**{**arguments, "device": "cpu"}), limit)
            rate, before = _onnx_rate(model, texts), None
        else:
            if backend != "torch":
                arguments |= {"backend": backend.lower(), "device": "cpu", "model_kwargs": {"export": True}}
            model = _limited(SentenceTransformer(**arguments), limit)
            device = str(model.device)
            rate = _rate(lambda batch: model.encode(batch, batch_size=_BATCH, show_progress_bar=False), texts)
            before = before if backend == "torch" else None  # the conversion's memory is not the model's
        peak = _peak_resident()
        memory = None if before is None or peak is None else max(0.0, (peak - before) / 1e6)
        return Speed(name, backend, rate, memory, device)
    except Exception as error:  # whatever a stranger's model or the exporter raises: the other models still count
        return Speed(name, backend, None, None, "", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _limited(model: Any, limit: int | None) -> Any:
    if limit is not None:
        model.max_seq_length = limit
    return model


def _rate(encode: Callable[[list[str]], Any], texts: list[str]) -> float:
    encode(texts[:_BATCH])  # the first batch also pays for threads and memory
    seconds = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        encode(texts)
        seconds.append(time.perf_counter() - start)
    return len(texts) / statistics.median(seconds)


def _onnx_rate(model: Any, texts: list[str]) -> float:
    import onnxruntime

    from st_distill.modules.onnx import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def encode(inputs: list[str]) -> None:
        ordered = sorted(inputs, key=len)  # as encode does, so that a batch needs little padding
        for start in range(0, len(ordered), _BATCH):
            tokens = model.preprocess(ordered[start : start + _BATCH])
            session.run(None, {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")})

    return _rate(encode, texts)


def _resident() -> int | None:
    """Bytes of this process that are in memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return None


def _peak_resident() -> int | None:
    """The most bytes of this process that have been in memory."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _in_child(job: Mapping[str, Any], texts: list[str]) -> Speed:
    """`_measured` in a copy of this process, which has imported the libraries and nothing more."""
    if not hasattr(os, "fork"):
        return _measured(job, texts)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(asdict(_measured(job, texts)), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        return Speed(job["model"], job["backend"], None, None, "", "its process ended without a result")
    return Speed(**json.loads(said))


def main() -> None:
    """Measure what standard input says, and print the figures as the last line."""
    import sentence_transformers  # noqa: F401 - imported once, before the copies

    task = json.load(sys.stdin)
    print(json.dumps([asdict(_in_child(job, task["texts"])) for job in task["jobs"]]), flush=True)


if __name__ == "__main__":
    main()
