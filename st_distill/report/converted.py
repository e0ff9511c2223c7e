"""Texts per second and memory of a model that another process has converted for a backend.

``python -m st_distill.report.converted`` reads what `st_distill.report.speed` writes to its standard input. It holds nothing
but the backend, the tokeniser and the converted model.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from st_distill.report.speed import BATCH, resident, taken_since
from st_distill.timing import texts_per_second

#: What each backend imports, which is no memory of the model's.
_LIBRARIES = {
    "onnxruntime": ("onnxruntime", "transformers.models.auto.tokenization_auto"),
    "ONNX": ("optimum.onnxruntime", "sentence_transformers"),
    "OpenVINO": ("optimum.intel", "sentence_transformers"),
}


def _onnxruntime(folder: Path, max_seq_length: int | None) -> Callable[[Sequence[str]], None]:
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": max_seq_length}

    def encode(texts: Sequence[str]) -> None:
        ordered = sorted(texts, key=len)  # as sentence-transformers does, so that a batch needs little padding
        for start in range(0, len(ordered), BATCH):
            tokens = tokenizer(ordered[start : start + BATCH], return_tensors="np", **options)
            session.run(None, {name: tokens[name] for name in ("input_ids", "attention_mask")})

    return encode


def _sentence_transformer(backend: str, folder: Path, max_seq_length: int | None) -> Callable[[Sequence[str]], Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), backend=backend.lower(), device="cpu", local_files_only=True)
    model.max_seq_length = max_seq_length
    return lambda texts: model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)


def main() -> None:
    """Measure what standard input says, and print the figures as the last line."""
    task = json.load(sys.stdin)
    backend, folder, limit = task["backend"], Path(task["folder"]), task["max_seq_length"]
    for library in _LIBRARIES[backend]:
        importlib.import_module(library)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of importing is forgotten, where Linux allows it
    before = resident()
    encode = _onnxruntime(folder, limit) if backend == "onnxruntime" else _sentence_transformer(backend, folder, limit)
    speed = texts_per_second(encode, task["texts"], batch_size=BATCH)
    print(json.dumps({"texts_per_second": speed, "memory": taken_since(before)}), flush=True)


if __name__ == "__main__":
    main()
