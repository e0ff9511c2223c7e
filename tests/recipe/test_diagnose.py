from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_distill.cli import main
from st_distill.files import read_signed
from st_distill.recipe import Recipe, check, dump_recipe, run
from st_distill.recipe.diagnose import trained_dims
from st_distill.recipe.load import load_recipe
from st_distill.recipe.schema import PAPER_LOSSES
from st_distill.report import findings_report, report
from st_distill.report.facts import task_rows
from st_distill.report.run import read_run

FAST = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert, sentences):
    """A folder with a teacher, 64 texts and 16 held-out ones, the teacher's vectors of the texts, and a task."""
    folder = tmp_path_factory.mktemp("recipe")
    pooling = Pooling(32, pooling_mode="mean")
    teacher = SentenceTransformer(modules=[Transformer(tiny_bert, max_seq_length=32), pooling], device="cpu")
    teacher.save(str(folder / "teacher"))
    texts = [f"{a} and {b}" for a in sentences[:8] for b in sentences[8:]]
    vectors = teacher.encode(texts)
    Dataset.from_dict({"text": texts}).to_parquet(folder / "texts.parquet")
    Dataset.from_dict({"text": sentences}).to_parquet(folder / "held-out.parquet")
    Dataset.from_dict({"text": texts, "vector": vectors.tolist()}).to_parquet(folder / "vectors.parquet")
    shuffled = np.random.default_rng(0).permutation(vectors)
    Dataset.from_dict({"text": texts, "vector": shuffled.tolist()}).to_parquet(folder / "shuffled.parquet")
    pairs = {"sentence1": sentences[:8], "sentence2": sentences[8:], "score": [0.5 * place for place in range(8)]}
    Dataset.from_dict(pairs).to_parquet(folder / "pairs.parquet")
    return folder


@pytest.fixture(scope="module")
def make_recipe(folder, tiny_bert):
    def make(name: str, **changes) -> Recipe:
        fields = {
            "output": str(folder / name),
            "student": {"model": tiny_bert, "layers": [0, 3], "max_seq_length": 32, "pooling": "mean"},
            "teachers": [{"model": str(folder / "teacher")}],
            "texts": [{"path": str(folder / "texts.parquet")}],
            "projection": {"dims": [24, 8]},
            "stages": [
                {"train": "projection", "steps": 4, "batch": 16, "losses": PAPER_LOSSES, "arguments": FAST},
                {
                    "train": "all",
                    "steps": 16,
                    "batch": 16,
                    "losses": PAPER_LOSSES,
                    "learning_rate": 1e-3,
                    "arguments": FAST,
                },
            ],
            "evaluation": {"texts": str(folder / "held-out.parquet")},
        }
        return Recipe(**{**fields, **changes})

    return make


#: As much of Weights & Biases as transformers' integration touches.
FAKE_WANDB = """
import types

run = None
names, logs, finished = [], [], []


def init(**options):
    global run
    names.append(options["name"])
    run = types.SimpleNamespace(name=options["name"], summary={}, _label=lambda **options: None)


def log(values):
    logs.append((run.name, values))


def finish():
    global run
    finished.append(run.name)
    run = None


class Config(dict):
    def update(self, values, **options):
        pass


config = Config()
"""


@pytest.fixture(scope="module")
def fake_wandb(folder):
    """Where a run finds a Weights & Biases that keeps what it is told."""
    library = folder / "wandb" / "sdk" / "lib"
    library.mkdir(parents=True)
    for package in (library, library.parent):
        (package / "__init__.py").touch()
    (library / "config_util.py").write_text("class ConfigError(Exception):\n    pass\n")
    (folder / "wandb" / "__init__.py").write_text(FAKE_WANDB)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        import wandb

        yield wandb
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def healthy(make_recipe, folder, fake_wandb):
    """A healthy recipe with tasks to be measured on, and what its run gives."""
    recipe = make_recipe("healthy")
    pairs = str(folder / "pairs.parquet")
    recipe.evaluation.tasks = [pairs, {"source": pairs, "name": "two"}]
    for stage in recipe.stages:
        stage.arguments["report_to"] = "wandb"
    assert check(recipe) == []
    return run(recipe, show_progress=False)


def test_a_healthy_recipe_has_no_findings(healthy, folder):
    assert healthy.findings == []
    assert read_signed(folder / "healthy-run" / "findings.json") == {"before": [], "after": []}


def test_tasks_of_a_recipe_are_measured_at_its_dimensions(healthy, folder):
    results = healthy.results
    measured = results["tasks"]
    assert measured["dims"] == [24, 8]
    assert [(task["name"], task["kind"]) for task in measured["tasks"]] == [("pairs", "sts"), ("two", "sts")]
    figure = 100 * measured["tasks"][0]["scores"]["8"]["float32"]["spearman_cosine"]
    (row,) = [line for line in report(results).splitlines() if line.startswith("two")]
    assert row.split()[-1] == f"{figure:.1f}"
    assert task_rows(results).rows[1] == ("two (sts, spearman_cosine)", *row.split()[-2:])
    card = (folder / "healthy" / "README.md").read_text()
    assert "| Task | Kind | Metric | 24 | 8 |" in card
    (row,) = [line for line in card.splitlines() if line.startswith("| two | sts |")]
    assert row.endswith(
        f"| {100 * measured['tasks'][1]['scores']['24']['float32']['spearman_cosine']:.1f} | {figure:.1f} |"
    )
    assert f"| mean of 2 | sts |  | {row.split()[-4]} | {figure:.1f} |" in card
    assert "name: two, 8 dimensions" in card


def test_the_terms_reach_weights_and_biases_in_a_run_for_each_stage(healthy, fake_wandb):
    stages = ["healthy-run: Stage 1 of 2, projection", "healthy-run: Stage 2 of 2, all"]
    assert fake_wandb.names == fake_wandb.finished == stages
    for stage, steps in zip(stages, (4, 16)):
        logged = [values for name, values in fake_wandb.logs if name == stage and "train/loss" in values]
        assert len(logged) == steps
        assert {"train/cosine", "train/similarity", "train/triplet", "train/learning_rate"} <= set(logged[0])


def test_a_task_that_cannot_be_measured_is_a_mistake(make_recipe, folder):
    tasks = [str(folder / "nothing.parquet"), {"kind": "sts"}, "sts:" + str(folder / "texts.parquet")]
    recipe = make_recipe("never", evaluation={"tasks": tasks})
    found = {problem.path: problem.message for problem in check(recipe)}
    assert "There is no file or folder" in found["evaluation.tasks[0]"]
    assert "must have a 'source'" in found["evaluation.tasks[1]"]
    assert "which a task of the kind sts needs" in found["evaluation.tasks[2]"]


def test_what_is_knowable_before_work_is_a_warning_of_check(make_recipe, folder, sentences, tmp_path, capsys):
    texts = [f"{a} and {b}" for a in sentences[:8] for b in sentences[8:]]
    Dataset.from_dict({"text": [*texts, *texts[:16]]}).to_parquet(tmp_path / "texts.parquet")
    Dataset.from_dict({"text": [*sentences, *texts[:4]]}).to_parquet(tmp_path / "held-out.parquet")
    teacher = SentenceTransformer(str(folder / "teacher"), device="cpu")
    teacher.prompts = {"query": "query: ", "document": ""}
    teacher.save(str(tmp_path / "teacher"))
    recipe = make_recipe(
        "never",
        student={**vars(make_recipe("never").student), "max_seq_length": 8},
        teachers=[{"model": str(tmp_path / "teacher")}, {"vectors": str(folder / "shuffled.parquet"), "name": "api"}],
        texts=[{"path": str(tmp_path / "texts.parquet")}],
        stages=[{"train": "all", "steps": 4, "batch": 8, "dims": [8]}],
        evaluation={"texts": str(tmp_path / "held-out.parquet")},
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
    shown = capsys.readouterr().out
    problems = check(recipe)
    assert {problem.level for problem in problems} == {"warning"}
    found = {(problem.path, problem.message.partition(":")[0]) for problem in problems}
    assert found == {
        ("teachers[0]", "prompts missing"),
        ("teachers[0]", "truncated differently"),
        ("teachers[1]", "vectors of other texts"),
        ("texts[0]", "duplicates"),
        ("evaluation.texts", "evaluation texts in training"),
        ("projection.dims[0]", "dimension not trained"),
    }
    assert all(problem.message in shown for problem in problems)
    recipe.diagnosis = False
    assert check(recipe) == []


@pytest.mark.parametrize(
    ("dims", "cosine_dims", "untrained"),
    [(None, None, set()), ([32], None, {16, 8}), ([32], [16], {8}), ([16, 8], None, {32}), ([32], [16, 8], set())],
)
def test_a_prefix_that_no_loss_looks_at_is_told(make_recipe, dims, cosine_dims, untrained):
    losses = {"cosine": 10, "similarity": 200}
    stages = [{"train": "all", "steps": 4, "batch": 8, "dims": dims, "cosine_dims": cosine_dims, "losses": losses}]
    recipe = make_recipe("prefixes", projection={"dims": [32, 16, 8]}, stages=stages)
    found = [problem for problem in check(recipe) if problem.message.startswith("dimension not trained")]
    places = {f"projection.dims[{[32, 16, 8].index(dim)}]" for dim in untrained}
    assert {problem.path for problem in found} == places
    assert sum("is a prefix that no stage's losses look at" in problem.message for problem in found) == len(
        untrained - {32}
    )


@pytest.mark.parametrize("name", ["default", "jasper"])
def test_the_presets_train_every_dimension(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"preset: {name}\nstudent: {{model: a/b}}\nteachers: [{{model: a/b}}]\ntexts: x.parquet\n")
    recipe = load_recipe(path)
    assert trained_dims(recipe) == recipe.projection.dims


def test_what_a_run_finds_is_told_and_written(make_recipe, folder, caplog):
    recipe = make_recipe(
        "ill",
        teachers=[{"vectors": str(folder / "shuffled.parquet"), "name": "api"}],
        stages=[{"train": "all", "steps": 24, "batch": 16, "learning_rate": 0.3, "arguments": FAST}],
        evaluation=None,
    )
    with caplog.at_level(logging.WARNING):
        result = run(recipe, show_progress=False)
    found = {(finding["when"], finding["name"]) for finding in result.findings}
    assert ("before training", "vectors of other texts") in found
    assert ("stage 1, all", "learning rate too high") in found
    assert ("after training", "collapsed") in found
    assert sum(record.getMessage().startswith("learning rate too high: ") for record in caplog.records) == 1
    told = findings_report(result.findings)
    assert told.startswith("What looks wrong\n\nvectors of other texts (before training): of 64 texts, ")
    assert "\n  What to do: take a third of the learning rate" in told
    # A run that is there already says the same, and so does its report.
    assert run(recipe, resume=True, show_progress=False).findings == result.findings
    assert list(read_run(folder / "ill-run").findings) == result.findings
    # What cannot be read is looked for again.
    (folder / "ill-run" / "findings.json").write_text('{"before": [')
    assert run(recipe, resume=True, show_progress=False).findings == result.findings
    assert list(read_run(folder / "ill-run").findings) == result.findings
