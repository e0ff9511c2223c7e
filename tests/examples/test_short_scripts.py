"""The short examples, each run as its docstring says, with tiny models and texts."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ["plain_trainer", "two_teachers", "api_vectors", "image_alignment", "long_documents", "static_student"]


@pytest.fixture
def run_script(monkeypatch, tmp_path, capsys):
    """A function that runs an example with arguments, in an empty folder, and returns what it printed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    for name in ("sample", "quickstart_data"):
        sys.modules.pop(name, None)


@pytest.fixture
def teacher(make_student, tmp_path) -> str:
    folder = str(tmp_path / "teacher")
    make_student().save(folder)
    return folder


@pytest.fixture
def texts(sentences, tmp_path) -> str:
    """A file of 128 different texts."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(f"{first} and {second}" for first in sentences[:8] for second in sentences))
    return str(file)


def figures(printed: str, pattern: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, printed)]


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("plain_trainer", "--texts", "none.txt", "there is no file or folder 'none.txt'"),
        ("api_vectors", "--vectors", "none.parquet", "there is no file or folder 'none.parquet'"),
        ("image_alignment", "--pictures", "none", "there is no file or folder 'none'"),
        ("two_teachers", "--weight", "-1", "must be above 0, not -1"),
    ],
)
def test_options_that_cannot_be(name, option, value, message, run_script, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_script(name, f"{option}={value}")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_plain_trainer(run_script, teacher, texts):
    printed = run_script("plain_trainer", "--teacher", teacher, "--texts", texts, "--steps", "4")
    assert len(figures(printed, r"(\d\.\d+) after")) == 3
    assert SentenceTransformer("out/plain-trainer", device="cpu").encode("a cat").shape == (32,)


def test_two_teachers(run_script, teacher, texts):
    printed = run_script("two_teachers", "--teacher", teacher, "--texts", texts, "--layers", "0", "3", "--steps", "4")
    assert re.findall(r"Spearman to (\w+): ", printed) == ["meaning", "spelling"]
    assert SentenceTransformer("out/two-teachers", device="cpu").encode("a cat").shape == (32,)


def test_api_vectors(run_script, teacher, texts, tmp_path):
    lines = Path(texts).read_text().splitlines()
    vectors = SentenceTransformer(teacher, device="cpu").encode(lines)
    file = str(tmp_path / "bought.parquet")
    Dataset.from_dict({"text": lines, "embedding": vectors.tolist()}).to_parquet(file)
    printed = run_script("api_vectors", "--vectors", file, "--student", teacher, "--layers", "0", "3", "--steps", "4")
    assert "spearman" in printed
    assert "The model is in out/api-vectors." in printed


def test_image_alignment(run_script, teacher):
    printed = run_script("image_alignment", "--model", teacher, "--steps", "2")
    assert "Vectors of texts are the same bits as before: True" in printed
    assert len(figures(printed, r"within rank \d+: (\d+)%")) == 2


def test_long_documents(run_script, teacher, texts):
    printed = run_script("long_documents", "--teacher", teacher, "--texts", texts, "--steps", "2")
    assert re.findall(r"of each document (\d+) tokens: -?\d\.\d+", printed) == ["128", "512", "8192"]


def test_static_student(run_script, teacher, texts):
    printed = run_script("static_student", "--teacher", teacher, "--texts", texts, "--steps", "4")
    assert len(figures(printed, r"(\d\.\d+) after")) == 3
    assert "student: " in printed


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_say_how_they_run(name):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 85
    assert f"\n    python examples/{name}.py\n" in text


def test_sample_texts(run_script, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import sample

    paragraphs = sample.paragraphs()
    assert len(paragraphs) == len(set(paragraphs)) > 1000
    assert max(len(text.split()) for text in sample.documents()) > 5000
