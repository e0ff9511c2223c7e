"""Every file of a run, deleted, cut short or with one bit flipped: found, said with what mends it, and mended by that."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset
from fault_helpers import ALL, Project, assert_told, forked, kill, same_results
from made_glue import write_glue

from st_distill.cli import main
from st_distill.verify import Finding, verify

CHECKPOINT = "stages/2-all/checkpoints/checkpoint-*/checksums.json"
#: Of a finished run, what nothing depends on.
FREE = {"lock", "teachers/lock"}
#: What a run may lack, since not every run measures and looks.
OPTIONAL = {"results.json", "findings.json"}
#: Of a model's folder, what is for a reader and may be edited, so that a change is no damage.
EDITABLE = {"README.md"}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


HARMS: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "deleted": Path.unlink}


class Kept:
    """A project, and a copy of its folder that is put back before each damage."""

    def __init__(self, project: Project, copy: Path) -> None:
        self.project = project
        self.copy = shutil.copytree(project.folder, copy)

    def files(self) -> list[Path]:
        """Those below the project's folder with content, in the suite a few of them."""
        found = sorted(path.relative_to(self.copy) for path in self.copy.rglob("*") if path.is_file())
        found = [path for path in found if (self.copy / path).stat().st_size and path.parts[0].startswith("out")]
        return found if ALL else found[::23]

    def model_files(self) -> list[Path]:
        """All of the exported model, by their path in its folder."""
        model = self.copy / "out"
        return sorted(path.relative_to(model) for path in model.rglob("*") if path.is_file())

    def put_back(self) -> Project:
        shutil.rmtree(self.project.folder)
        shutil.copytree(self.copy, self.project.folder)
        return self.project


@pytest.fixture(scope="module")
def finished(make_project, tmp_path_factory, undisturbed) -> Kept:
    project = make_project(tmp_path_factory.mktemp("finished"))
    assert forked(project.run, project.folder).code == 0
    return Kept(project, tmp_path_factory.mktemp("kept") / "finished")


@pytest.fixture(scope="module")
def stopped(make_project, tmp_path_factory, undisturbed) -> Kept:
    """A run that was killed behind a checkpoint of its second stage."""
    project, moment = make_project(tmp_path_factory.mktemp("stopped")), undisturbed.changes
    while not list(project.work.glob(CHECKPOINT)):
        moment = moment * 9 // 10
        shutil.rmtree(project.work, ignore_errors=True)
        shutil.rmtree(project.folder / "out", ignore_errors=True)
        forked(project.run, project.folder, moment=moment, happens=kill)
    return Kept(project, tmp_path_factory.mktemp("kept") / "stopped")


def go_on(project: Project, file: Path, *given: str) -> int:
    """Continue the run, doing what each sentence says; the number of sentences that it took."""
    options = given or ("--resume",)
    for sentences in range(5):
        ended = forked(partial(project.run, *options), project.folder)
        if ended.code == 0:
            return sentences
        assert ended.code == 2, (file, ended.said)
        assert_told(ended.said)
        if told := re.search(r"st-distill verify (\S+) --repair", ended.said):
            assert verify(told[1], repair=True, show_progress=False).is_whole, (file, ended.said)
        elif told := re.search(r"--resume (--from-stage) (\d+)", ended.said):
            options = ("--resume", *told.groups())
        elif told := re.search(r"remove (\S+/stages) to do them again", ended.said):
            shutil.rmtree(told[1])
        else:
            pytest.fail(f"{file}: no command mends it: {ended.said}")
    return pytest.fail(f"{file}: {ended.said}")


@pytest.mark.parametrize("harm", HARMS)
def test_damage_to_a_file_of_a_stopped_run(harm, stopped, undisturbed, record_property):
    """The run goes on by itself, or says what mends it; the result is that of an undisturbed one."""
    said = 0
    for file in stopped.files():
        project = stopped.put_back()
        HARMS[harm](project.folder / file)
        said += bool(go_on(project, file))
        same_results(project.results(), undisturbed.results)
    record_property("cases", len(stopped.files()))
    record_property("went on by themselves", len(stopped.files()) - said)
    record_property("said what mends it, and were mended by that", said)


def look(project: Project) -> list[Finding]:
    return [*verify(project.work).findings, *verify(project.folder / "out").findings]


@pytest.mark.parametrize("harm", HARMS)
def test_damage_to_a_file_of_a_finished_run_is_found(harm, finished, record_property):
    files = finished.files()
    for file in files:
        project = finished.put_back()
        HARMS[harm](project.folder / file)
        found = look(project)
        inside = file.relative_to(file.parts[0]).as_posix()
        expected = not (file.parts[0] == "out-run" and inside in FREE) and file.name not in EDITABLE
        expected = expected and not (harm == "deleted" and inside in OPTIONAL)
        # Without its description a model is like any other's, of which nothing was noted.
        expected = expected and (file.name, harm) != ("st_distill.json", "deleted")
        assert bool(found) == expected, (file, found)
    record_property("cases", len(files))


@pytest.mark.parametrize("harm", HARMS if ALL else ["flipped"])
def test_damage_to_a_file_of_a_finished_run_is_mended_by_what_it_says(harm, finished, undisturbed, record_property):
    """One file of each folder."""
    files = list({file.parent: file for file in finished.files()}.values())
    for file in files:
        project = finished.put_back()
        HARMS[harm](project.folder / file)
        for _ in range(3):
            if not (found := look(project)):
                break
            again = re.search(r"--resume --from-stage (\d+)", found[0].remedy)
            if "verify" in found[0].remedy:
                verify(project.work, repair=True, show_progress=False)
            go_on(project, file, *(again.group().split() if again else ["--resume"]))
        assert look(project) == []
        same_results(project.results(), undisturbed.results)
    record_property("cases", len(files))


def test_the_users_recipe_is_lost_and_the_runs_own_copy_serves(stopped, undisturbed):
    project = stopped.put_back()
    for harm in (cut, Path.unlink):
        harm(project.folder / "recipe.yaml")
        ended = forked(lambda: project.run("--resume"), project.folder)
        assert ended.code == 2, ended.said
        assert_told(ended.said)
    shutil.copy(project.work / "recipe.yaml", project.folder / "recipe.yaml")
    assert go_on(project, Path("recipe.yaml")) == 0
    same_results(project.results(), undisturbed.results)


#: The commands that open a model, with what they are given beside it.
OPENING = {
    "info": ["info", "{model}"],
    "eval": ["eval", "{model}", "{given}/pairs.tsv"],
    "mine": ["mine", "{model}", "{given}/pairs.parquet", "{given}/other.parquet", "--negatives", "2"],
    "export": ["export", "{model}", "{given}/other"],
    "glue": ["glue", "{model}", "--data", "{given}/glue", "--out", "{given}/other"],
    "report": ["report", "{model}-run", "--out", "{given}/other", "--no-speed"],
    "pretrain": ["pretrain", "{given}/pretraining.yaml", "--evaluate", "{model}"],
    **{
        f"{command}, {part}": [command, "{given}/recipe.yaml", "--set", f"{field}={{model}}"]
        for command in ("check", "embed", "run")
        for part, field in (("student", "student.model"), ("teacher", "teachers.0.model"))
    },
}
PRETRAINING = """\
output: {folder}/other
encoder: {{config: {{model_type: bert}}}}
tokenizer: {{train: wordpiece}}
texts: {{path: {folder}/texts.txt}}
steps: 1
"""


@pytest.fixture
def given(make_project, sentences, tmp_path) -> Path:
    """A folder with a recipe that has not been run, and what else the commands are given beside a model."""
    folder = make_project(tmp_path).folder
    (folder / "recipe.yaml").write_text(
        (folder / "recipe.yaml").read_text().replace("layers: [0, 3], pooling: mean, ", "")
    )
    (folder / "pairs.tsv").write_text("sentence1\tsentence2\tscore\na cat\ta dog\t3\na cat\tthe river\t0\n")
    Dataset.from_dict({"query": sentences, "document": sentences}).to_parquet(folder / "pairs.parquet")
    (folder / "pretraining.yaml").write_text(PRETRAINING.format(folder=folder))
    write_glue(folder / "glue", ["rte"])
    return folder


@pytest.mark.parametrize("command", OPENING)
def test_no_command_uses_a_damaged_model(command, finished, given, capsys, record_property):
    """Each says which file is damaged and what makes the model again, before it begins any work."""
    model = finished.project.folder / "out"
    files = [path for path in finished.model_files() if path.name not in EDITABLE]
    before, cases = sorted(given.rglob("*")), 0
    for harm in HARMS if ALL else ("flipped", "deleted"):
        for file in files if ALL else [Path("2_Dense/model.safetensors"), Path("tokenizer.json")]:
            if harm == "deleted" and file.name in ("st_distill.json", "modules.json"):
                continue  # then nothing is noted of it, or it is no model
            finished.put_back()
            HARMS[harm](model / file)
            assert main([word.format(model=model, given=given) for word in OPENING[command]]) == 2, (harm, file)
            said = "".join(capsys.readouterr())
            assert f"{model} is damaged: " in said, said
            assert f"{file}: " in said or file.name == "st_distill.json", said  # which says what the others are
            assert "export it again: st-distill export STUDENT FOLDER" in said, said
            assert_told(said)
            assert sorted(given.rglob("*")) == before, (harm, file)
            cases += 1
    record_property("cases", cases)
