from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import types

import pytest
import sentence_transformers

from st_distill.report import converted, speed
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


def test_an_error_of_paragraphs_is_told_by_its_first_sentence():
    def fail():
        raise RuntimeError(
            "Failed to export\nthe model with torch.export. \x1b[96mThis is step 1/3\x1b[0m of it. Next: modify"
        )

    assert speed._outcome(fail) == {"error": "RuntimeError: Failed to export the model with torch.export"}


def test_a_converted_model_is_measured_beside_nothing_else():
    code = "import sys, st_distill.report.converted; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(0.01, "it did not end within 0.01 seconds"), (None, "ModuleNotFoundError: No module named 'optimum'")],
)
def test_a_converted_model_that_fails_says_why(seconds, reason, monkeypatch):
    if seconds is None and importlib.util.find_spec("optimum") is not None:
        pytest.skip("optimum is installed")
    monkeypatch.setattr(speed, "_in_child", lambda work: work())
    monkeypatch.setattr(speed, "_convert", lambda backend, arguments, folder: {"max_seq_length": 8})
    monkeypatch.setattr(speed, "_LONGEST", seconds)
    failed = speed._measured({"model": "a", "backend": "ONNX", "arguments": {}}, ["a cat"])
    assert failed == speed.Speed("a", "ONNX", None, None, "", reason)


def test_the_backends_of_sentence_transformers_read_what_was_converted(make_student, monkeypatch, tmp_path, capsys):
    """Without the backends themselves: how a model is asked for, and that the second one finds the first one's folder."""
    asked = []

    def load(path=None, *, model_name_or_path=None, **options):
        asked.append((path or model_name_or_path, options))
        return student

    student = make_student()
    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", load)
    arguments = {"model_name_or_path": "large", "revision": "main", "device": "cuda", "max_seq_length": 8}
    limit = speed._convert("OpenVINO", arguments, tmp_path)
    assert (tmp_path / "modules.json").is_file()
    export = {"export": True}
    assert asked == [("large", {"revision": "main", "backend": "openvino", "device": "cpu", "model_kwargs": export})]
    monkeypatch.setitem(sys.modules, "optimum", types.ModuleType("optimum"))
    monkeypatch.setitem(sys.modules, "optimum.intel", types.ModuleType("optimum.intel"))
    task = {"backend": "OpenVINO", "folder": str(tmp_path), **limit, "texts": ["a cat"]}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(task)))
    converted.main()
    assert set(json.loads(capsys.readouterr().out)) == {"texts_per_second", "memory"}
    assert asked[1] == (str(tmp_path), {"backend": "openvino", "device": "cpu", "local_files_only": True})
    assert student.max_seq_length == 8
