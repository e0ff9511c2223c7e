from __future__ import annotations

import importlib.util

import pytest

from st_distill.report.speed import measure_speed, missing_backends


@pytest.fixture
def only(monkeypatch):
    """A function that hides all packages but these."""

    def hide(*names: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name in names else None)

    return hide


def test_a_backend_that_is_not_there_has_its_line(only):
    only("onnx", "onnxruntime", "openvino")
    assert missing_backends() == [
        "The speed with onnxruntime needs onnxscript, which is not installed. Run: pip install 'st-distill[onnx]'",
        "The speed with ONNX needs optimum.onnxruntime, which is not installed. Run: pip install "
        "'sentence-transformers[onnx]'",
        "The speed with OpenVINO needs optimum.intel, which is not installed. Run: pip install "
        "'sentence-transformers[openvino]'",
    ]


def test_a_model_that_fails_leaves_the_others(only, make_student, tmp_path):
    only()
    make_student().save(str(tmp_path / "model"))
    models = {
        name: {"model_name_or_path": str(tmp_path / name), "device": "cpu", "max_seq_length": 8}
        for name in ("nothing", "model")
    }
    broken, whole = measure_speed(models, ["a cat", "a dog sees the sea"], exported=["model"])
    assert (broken.model, broken.texts_per_second) == ("nothing", None)
    assert "nothing" in broken.error
    assert whole.error is None
    assert (whole.backend, whole.device) == ("torch", "cpu")
    assert whole.texts_per_second > 0
