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

__all__ = ["Speed", "measure_speed"]

_BATCH = 32
#: Passes over the texts; the median counts.
_PASSES = 3
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Speed:
    """What was measured of a model.

    Attributes:
        model: its name.
        backend: "torch" or "onnxruntime".
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


def measure_speed(
    models: Mapping[str, Mapping[str, Any]], texts: Sequence[str], *, onnx: Sequence[str] = ()
) -> list[Speed]:
    """Measure each model by itself, in a fresh process.

    Args:
        models: name to the arguments of ``SentenceTransformer``, as JSON can hold them.
        texts: to embed, at least one.
        onnx: models to measure with onnxruntime too, on the CPU, where onnx, onnxscript and onnxruntime are installed.
    """
    installed = all(importlib.util.find_spec(package) is not None for package in _ONNX_PACKAGES)
    jobs: list[dict[str, Any]] = [
        {"model": name, "backend": "torch", "arguments": dict(arguments)} for name, arguments in models.items()
    ]
    if installed:
        jobs += [{"model": name, "backend": "onnxruntime", "arguments": dict(models[name])} for name in onnx]
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

    name, backend = job["model"], job["backend"]
    try:
        before = _resident()
        if backend == "torch":
            model = SentenceTransformer(**job["arguments"])
            device = str(model.device)
            rate = _rate(lambda batch: model.encode(batch, batch_size=_BATCH, show_progress_bar=False), texts)
        else:
            device = "cpu"
            rate, before = _onnx_rate(SentenceTransformer(**{**job["arguments"], "device": "cpu"}), texts), None
        peak = _peak_resident()
        memory = None if before is None or peak is None else max(0.0, (peak - before) / 1e6)
        return Speed(name, backend, rate, memory, device)
    except Exception as error:  # whatever a stranger's model or the exporter raises: the other models still count
        return Speed(name, backend, None, None, "", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


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
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            embedding: torch.Tensor = self.model(features)["sentence_embedding"]
            return embedding

    names = ["input_ids", "attention_mask"]
    features = model.preprocess(texts[:3] if len(texts) > 2 else texts * 3)
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=max(3, model.max_seq_length or 512))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            Encoder().eval(),
            tuple(features[name] for name in names),
            str(path),
            input_names=names,
            output_names=["sentence_embedding"],
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
            dynamo=True,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def encode(inputs: list[str]) -> None:
        ordered = sorted(inputs, key=len)  # as encode does, so that a batch needs little padding
        for start in range(0, len(ordered), _BATCH):
            tokens = model.preprocess(ordered[start : start + _BATCH])
            session.run(None, {name: tokens[name].numpy() for name in names})

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
