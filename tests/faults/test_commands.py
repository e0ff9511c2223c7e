"""The commands beside ``run``, killed or without room at some of their changes, and started again."""

from __future__ import annotations

import random
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset
from fault_helpers import ALL, assert_told, fill_the_disk, forked, kill, killed_at_times, times

from st_distill.cli import main
from st_distill.files import TEMPORARY
from st_distill.verify import verify

PRETRAINING = """\
output: {folder}/encoder
encoder:
  config: {{model_type: bert, num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32,
            max_position_embeddings: 64}}
tokenizer: {{model: {tokenizer}}}
texts: {{path: {folder}/texts.txt}}
max_length: 16
batch: 4
steps: 5
arguments: {{use_cpu: true, disable_tqdm: true, save_steps: 2}}
"""

#: The words of a command, and what it writes.
COMMANDS = {
    "report": (["report", "{folder}/out-run", "--no-speed"], "out-run/report"),
    "export": (["export", "{folder}/out-run/stages/2-all/model", "{folder}/out"], "out"),
    "embed": (["embed", "{folder}/recipe.yaml"], "out-run/teachers"),
    "repair": (["verify", "{folder}/out-run", "--repair"], "out-run/teachers"),
    "mine": (
        ["mine", "{folder}/out", "{folder}/pairs.parquet", "{folder}/hard.parquet", "--negatives", "2"],
        "hard.parquet",
    ),
    "pretrain": (["pretrain", "{folder}/pretraining.yaml", "--resume"], "encoder"),
}
#: Files with a date or a temperature of the machine in them: they are compared by being there.
_ALIVE = {"run.json", "run.copy.json", "store.copy.json", "index.html", "README.md", "lock"}


@pytest.fixture(scope="module")
def ran(make_project, tmp_path_factory, sentences, tiny_bert) -> Path:
    """A folder with a finished run of which a shard of vectors is lost, pairs, and a recipe of pretraining."""
    project = make_project(tmp_path_factory.mktemp("commands"))
    ended = forked(project.run, project.folder)
    assert ended.code == 0, ended.said
    (project.work / "teachers/teachers/teacher/00000.npy").unlink()
    pairs = {"query": sentences, "document": sentences}
    Dataset.from_dict(pairs).to_parquet(project.folder / "pairs.parquet")
    (project.folder / "pretraining.yaml").write_text(PRETRAINING.format(folder=project.folder, tokenizer=tiny_bert))
    return project.folder


class Tried:
    """A command in the folder, which is put back to what it was before each time."""

    def __init__(self, name: str, folder: Path, copy: Path) -> None:
        words, target = COMMANDS[name]
        if name == "embed":  # which makes what is not there, and refuses what is damaged
            shutil.rmtree(folder / target)
        self.folder, self.copy = folder, shutil.copytree(folder, copy)
        self.command = partial(main, [word.format(folder=folder) for word in words])
        self.target = folder / target
        ended = self.ends()
        assert ended.code == 0, ended.said
        # Until the next change of a store, what was taken out of its description may lie there, and in the second copy of it.
        self.is_repair = name == "repair"
        self.changes, self.seconds, self.written = ended.changes, ended.seconds, self.content()

    def ends(self, **options):
        return forked(self.command, self.folder, **options)

    def content(self) -> dict[str, bytes]:
        paths = [self.target] if self.target.is_file() else sorted(self.target.rglob("*"))
        return {
            str(path.relative_to(self.folder)): b"" if path.name in _ALIVE else path.read_bytes()
            for path in paths
            if path.is_file() and "aside" not in path.parts  # what a killed build could not enter any more
        }

    def is_right(self, moment) -> None:
        """The command ends with the same files as an undisturbed one, and leaves nothing unfinished where it holds the lock."""
        again = self.ends()
        assert again.code == 0, (moment, again.said)
        found = self.content()
        if self.is_repair:
            found = {name: found.get(name) for name in self.written}
            assert verify(self.folder / "out-run").findings == [], moment
        assert found == self.written, moment
        # Where somebody else may be writing, an unfinished file stays.
        unlocked = {self.folder, self.folder / "out-run/report", self.folder / "out-run/report/pictures"}
        left = [path for path in self.folder.rglob("*") if path.name.endswith((TEMPORARY, ".partial", ".st-distill"))]
        assert all(path.name.endswith(TEMPORARY) and path.parent in unlocked for path in left), (moment, left)
        if (self.folder / "out").is_dir():
            assert verify(self.folder / "out").findings == [], moment

    def put_back(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.copy, self.folder)


@pytest.fixture(scope="module")
def tried(request, ran, tmp_path_factory):
    command = Tried(request.param, ran, tmp_path_factory.mktemp("kept") / "commands")
    yield command
    command.put_back()


@pytest.mark.parametrize("tried", COMMANDS if ALL else ["export"], indirect=True)
@pytest.mark.parametrize("happens", [kill, fill_the_disk])
def test_a_command_that_was_broken_off_is_started_again(tried, happens, record_property):
    moments = random.Random(0).sample(range(1, tried.changes + 1), min(10 if ALL else 2, tried.changes))
    broken = 0
    for moment in moments:
        tried.put_back()
        ended = tried.ends(moment=moment, happens=happens)
        assert ended.code in ((0, -signal.SIGKILL) if happens is kill else (0, 2)), ended.said
        assert_told(ended.said)
        if ended.code == 0:  # nothing was left to write
            continue
        broken += 1
        tried.is_right(moment)
    record_property("cases", len(moments))
    record_property("kills" if happens is kill else "full disks", broken)


@pytest.mark.parametrize("tried", COMMANDS if ALL else ["export"], indirect=True)
def test_a_command_killed_at_any_time_is_started_again(tried, record_property):
    """By the clock, up to four times in a row."""
    cases, kills = times(8 if ALL else 2, seed=4), 0
    for legs in cases:
        tried.put_back()
        kills += killed_at_times(tried.command, tried.folder, legs, tried.seconds)
        tried.is_right(legs)
    record_property("cases", len(cases))
    record_property("kills", kills)
