"""The commands beside ``run``, killed or without room at some of their changes, and started again."""

from __future__ import annotations

import random
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from fault_helpers import ALL, assert_told, fill_the_disk, forked, kill, killed_at_times, times
from made_glue import write_glue

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

_EVAL = """eval {folder}/out {folder}/pairs.parquet mteb:Made
    --json {folder}/figures/all.json --csv {folder}/figures/all.csv --mteb-results {folder}/figures/mteb"""
_GLUE = """glue {folder}/out --data {folder}/glue --steps 1 --limit 8 --set use_cpu=true
    --out {folder}/figures/glue --json {folder}/figures/all.json"""
#: The words of a command, and what it writes.
COMMANDS = {
    "eval": (_EVAL.split(), "figures"),
    "glue": (_GLUE.split(), "figures"),
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
#: Commands of the default CI.
_SAMPLE = ["export", "eval"]
#: Commands that are broken off at each of their changes in the whole matrix, and the others at some.
_AT_EACH = {"eval", "glue"}
pytestmark = pytest.mark.filterwarnings("ignore")  # of mteb

#: Files with a date, a time or a temperature of the machine in them: they are compared by being there.
_ALIVE = {"Made.json", "run.json", "run.copy.json", "store.copy.json", "index.html", "README.md", "lock"}


@pytest.fixture(scope="module")
def made_task():
    """A task of MTEB with four pairs of its own, which the command line finds by any name."""
    mteb = pytest.importorskip("mteb")
    from mteb.abstasks import AbsTaskSTS

    rows = {"sentence1": ["a cat"] * 4, "sentence2": ["cats", "a dog", "the sea", "red"], "score": [5.0, 4.0, 0.5, 1.0]}

    class Made(AbsTaskSTS):
        metadata = mteb.get_task("STSBenchmark").metadata.model_copy(update={"name": "Made"})
        min_score, max_score = 0, 5

        def load_data(self, **options):
            self.dataset = DatasetDict(test=Dataset.from_dict(rows))
            self.data_loaded = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("st_distill.evaluation.mteb_tasks.find_mteb_tasks", lambda names: [Made()])
        yield


@pytest.fixture(scope="module")
def ran(make_project, tmp_path_factory, sentences, tiny_bert) -> Path:
    """A folder with a finished run of which a shard of vectors is lost, pairs, and a recipe of pretraining."""
    project = make_project(tmp_path_factory.mktemp("commands"))
    ended = forked(project.run, project.folder)
    assert ended.code == 0, ended.said
    (project.work / "teachers/teachers/teacher/00000.npy").unlink()
    pairs = {"query": sentences, "document": sentences}
    Dataset.from_dict(pairs).to_parquet(project.folder / "pairs.parquet")
    write_glue(project.folder / "glue", ["mnli", "rte"])
    (project.folder / "figures").mkdir()
    (project.folder / "pretraining.yaml").write_text(PRETRAINING.format(folder=project.folder, tokenizer=tiny_bert))
    return project.folder


class Tried:
    """A command in the folder, which is put back to what it was before each time."""

    def __init__(self, name: str, folder: Path, copy: Path) -> None:
        words, target = COMMANDS[name]
        if name == "embed":  # which makes what is not there, and refuses what is damaged
            shutil.rmtree(folder / target)
        self.name, self.folder, self.copy = name, folder, shutil.copytree(folder, copy)
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
        # It writes a new file: one that is there got its name before the kill came, and must be whole.
        is_there = self.name == "mine" and again.code == 2 and f"'{self.target}' is there already" in again.said
        assert again.code == 0 or is_there, (moment, again.said)
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
    if request.param == "eval":
        request.getfixturevalue("made_task")
    command = Tried(request.param, ran, tmp_path_factory.mktemp("kept") / "commands")
    yield command
    command.put_back()


@pytest.mark.parametrize("tried", COMMANDS if ALL else _SAMPLE, indirect=True)
@pytest.mark.parametrize("happens", [kill, fill_the_disk])
def test_a_command_that_was_broken_off_is_started_again(tried, happens, record_property):
    count = (tried.changes if tried.name in _AT_EACH else 10) if ALL else 2
    moments = random.Random(0).sample(range(1, tried.changes + 1), min(count, tried.changes))
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


@pytest.mark.parametrize("tried", COMMANDS if ALL else _SAMPLE, indirect=True)
def test_a_command_killed_at_any_time_is_started_again(tried, record_property):
    """By the clock, up to four times in a row."""
    cases, kills = times(8 if ALL else 2, seed=4), 0
    for legs in cases:
        tried.put_back()
        kills += killed_at_times(tried.command, tried.folder, legs, tried.seconds)
        tried.is_right(legs)
    record_property("cases", len(cases))
    record_property("kills", kills)
