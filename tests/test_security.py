"""What docs/security.md promises, where no other file tests it."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import st_distill
from st_distill import Teacher
from st_distill.cli import main
from st_distill.exporting import load_student
from st_distill.recipe import Student, TeacherSpec
from st_distill.recipe.student import build_student
from st_distill.verify import verify

PACKAGE = Path(st_distill.__file__).parent


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_and_no_code_from_data(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for name, options in calls(tree):
        assert name not in ("eval", "exec", "compile", "torch.save", "yaml.load", "yaml.unsafe_load", "os.system")
        assert options.get("allow_pickle") in (None, "False")
        assert options.get("trust_remote_code") != "True"
        if name == "torch.load":
            assert options.get("weights_only") == "True"


def test_code_of_a_model_runs_by_the_users_word_alone():
    assert Student(model="some/model").trust_remote_code is False
    assert TeacherSpec(model="some/model").trust_remote_code is False
    assert inspect.signature(Teacher).parameters["trust_remote_code"].default is False


def uses_of(model: Path, out: Path) -> tuple[Callable[[], object], ...]:
    """What loads a model that may be a stranger's."""
    return (
        lambda: build_student(Student(model=str(model)), device="cpu"),
        lambda: load_student(model, device="cpu"),
        lambda: Teacher(str(model), device="cpu").encode(["a"]),
        lambda: main(["info", str(model), "--debug"]),
        lambda: main(["export", str(model), str(out), "--debug"]),
    )


@pytest.mark.parametrize("place", ["../elsewhere", "1_Pooling/../../elsewhere", "{folder}/elsewhere"])
def test_a_strangers_model_names_no_module_outside_its_folder(place, make_student, tmp_path):
    folder = tmp_path / "model"
    make_student().save(str(folder))
    (folder / "1_Pooling").rename(tmp_path / "elsewhere")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = place.format(folder=tmp_path)
    (folder / "modules.json").write_text(json.dumps(modules))
    said = (
        "is not read: its modules.json names a module outside its folder, '.*elsewhere'. Copy that one into the folder"
    )
    for use in uses_of(folder, tmp_path / "out"):
        with pytest.raises(ValueError, match=said):
            use()


EVIL = "from pathlib import Path\nPath({place!r}).touch()\n"


def modules_of_its_own(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "mine.Module"
    (folder / "modules.json").write_text(json.dumps(modules))


def map_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change", [modules_of_its_own, map_of_its_own])
def test_the_code_of_a_strangers_model_does_not_run(change, make_student, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    make_student().save(str(folder))
    change(folder)
    (folder / "mine.py").write_text(EVIL.format(place=str(tmp_path / "here")))
    monkeypatch.chdir(folder)
    for use in uses_of(folder, tmp_path / "out"):
        with pytest.raises((ValueError, ImportError, OSError)):
            use()
    assert not verify(folder).is_whole
    assert not (tmp_path / "here").exists()
    assert not (tmp_path / "out").exists()


def test_weights_that_are_a_pickle_are_not_run(make_student, tmp_path):
    import pickle

    class Run:
        def __reduce__(self):
            return (open, (str(tmp_path / "here"), "w"))

    folder = tmp_path / "model"
    make_student().save(str(folder))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Run(), protocol=2))
    with pytest.raises(Exception, match=r"(?i)weights.only|pickle|load"):
        load_student(folder, device="cpu")
    assert not (tmp_path / "here").exists()


def test_an_export_is_not_written_through_a_link(make_student, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    (tmp_path / "out").symlink_to(outside)
    make_student().save(str(tmp_path / "model"))
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "out")]) == 2
    assert [path.name for path in outside.iterdir()] == ["mine.txt"]
    shutil.rmtree(outside)
