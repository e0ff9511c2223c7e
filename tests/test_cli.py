from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from made_glue import write_glue
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from st_distill import __version__
from st_distill.cli import main
from st_distill.cli.parser import make_parser
from st_distill.evaluation.results import CSV_HEADER
from st_distill.exporting import export
from st_distill.modules import MatryoshkaProjection
from st_distill.recipe import diagnose
from st_distill.stopping import Stopped

RECIPE = """\
output: {folder}/out
student: {{model: {student}, layers: [0, 3], pooling: mean, max_seq_length: 16}}
teachers: [{{model: {teacher}, name: teacher}}]
texts: {folder}/texts.parquet
projection: {{dims: [24, 8]}}
stages:
  - train: projection
    steps: 2
    batch: 8
    arguments: {{use_cpu: true, disable_tqdm: true}}
evaluation:
  texts: {folder}/texts.parquet
  teachers: false
"""


PAIRS = "sentence1\tsentence2\tscore\na cat\ta small cat\t5\na cat\ta dog\t3\na cat\tthe sea\t0\n"


@pytest.fixture
def recipe(tmp_path, make_student, tiny_bert, sentences):
    make_student().save(str(tmp_path / "teacher"))
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "texts.parquet")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path, student=tiny_bert, teacher=tmp_path / "teacher"))
    return path


def test_check_of_a_good_recipe(recipe, capsys):
    assert main(["check", str(recipe)]) == 0
    assert "is ready to run" in capsys.readouterr().out


def test_check_prints_every_mistake_with_its_line(recipe, capsys):
    recipe.write_text(recipe.read_text().replace("steps: 2", "step: 2").replace("layers: [0, 3]", "layers: [0, 9]"))
    assert main(["check", str(recipe)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert any(f"{recipe}:2: student.layers" in line for line in lines)
    assert any(f"{recipe}:8: stages[0].step: unknown field; did you mean 'steps'?" in line for line in lines)
    assert lines[-1] == f"2 mistakes in {recipe}."


@pytest.mark.parametrize(
    ("steps", "closed", "code", "said"),
    [
        ("2", "2>&-", 0, "{} is ready to run."),
        ("none", "2>&-", 2, "1 mistake in {}."),
        ("2", ">&- 2>&-", 0, ""),
    ],
)
def test_a_closed_stream_takes_nothing_from_the_exit_code(recipe, steps, closed, code, said):
    recipe.write_text(recipe.read_text().replace("steps: 2", f"steps: {steps}"))
    words = ["sh", "-c", f'"$0" -m st_distill check "$1" {closed}', sys.executable, str(recipe)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "".join(done.stdout.splitlines()[-1:]) == said.format(recipe)


def test_a_log_has_no_bars(recipe, tmp_path):
    """The libraries' own would fill it with carriage returns."""
    words = [sys.executable, "-m", "st_distill", "run", str(recipe)]
    unset = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert "Stage 1 of 1" in done.stderr
    assert "\r" not in done.stderr
    assert "%|" not in done.stderr


def test_run_embed_eval_export_info(recipe, tmp_path, capsys):
    assert main(["embed", str(recipe)]) == 0
    assert "16 rows by teacher, together 32 dimensions." in capsys.readouterr().out
    assert main(["run", str(recipe), "--set", "stages.0.steps=1"]) == 0
    out = capsys.readouterr().out
    assert "spearman" in out
    assert out.splitlines()[-1] == f"The model is in {tmp_path}/out."
    assert main(["eval", str(tmp_path / "out"), str(recipe), "--json", str(tmp_path / "results.json")]) == 0
    assert set(json.loads((tmp_path / "results.json").read_text())["fidelity"]["spearman"]) == {"24", "8"}
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "out"), str(recipe), "--json", str(tmp_path / "none" / "results.json")]) == 2
    assert "The folder of --json" in capsys.readouterr().err
    trained = tmp_path / "out-run" / "stages" / "1-projection" / "model"
    assert main(["export", str(trained), str(tmp_path / "small"), "--dim", "8"]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "small")]) == 0
    assert json.loads(capsys.readouterr().out)["dims"] == [8]


def test_a_work_folder_that_is_a_link_is_the_one_that_it_leads_to(recipe, tmp_path, capsys):
    """To a larger disk, say: the default one beside the output too. What lies there stays the user's."""
    disk, link = tmp_path / "disk", tmp_path / "out-run"
    words = [str(recipe), "--set", "stages.0.steps=1"]
    link.symlink_to(disk)
    assert main(["run", *words]) == 2
    said = f"'{link}' is a link to what is not there; make that folder, or name another place"
    assert said in capsys.readouterr().err
    disk.mkdir()
    (disk / "letter.txt").touch()
    assert main(["run", *words]) == 2
    assert f"output: '{link}' holds other files than a run's; name a new folder" in capsys.readouterr().err
    (disk / "letter.txt").unlink()
    assert main(["run", *words]) == 0
    assert (disk / "run.json").is_file()
    assert main(["run", *words]) == 2
    assert "already holds a run. Continue it with --resume" in capsys.readouterr().err
    assert main(["run", *words, "--resume"]) == 0
    for folder in (link, disk):
        assert main(["verify", str(folder)]) == 0
        assert main(["report", str(folder), "--no-speed"]) == 0
    assert link.is_symlink()


def test_eval_on_tasks(tmp_path, make_student, capsys):
    make_student().save(str(tmp_path / "model"))
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    files = [tmp_path / name for name in ("results.json", "results.csv")]
    capsys.readouterr()
    words = [str(tmp_path / "model"), f"sts:{tmp_path}/pairs.tsv", "--dims", "8,32", "--precisions", "float32,int8"]
    assert main(["eval", *words, "--json", str(files[0]), "--csv", str(files[1]), "--text-prompt", "a "]) == 0
    assert "pairs  sts   spearman_cosine" in capsys.readouterr().out
    results = json.loads(files[0].read_text())
    assert (results["max_seq_length"], results["dims"]) == (32, [32, 8])
    assert results["tasks"][0]["scores"]["8"]["int8"]["spearman_cosine"] is not None
    assert "pairs,sts,8,int8,spearman_cosine,True," in files[1].read_text()


def test_eval_and_mine_at_another_length(recipe, tmp_path, make_student, capsys, caplog):
    """Texts of 9 tokens, and a model that was saved for 8 of the 64 that its encoder can read."""
    make_student(max_seq_length=8).save(str(tmp_path / "model"))
    long = "the quick cat sees a small fish"
    rows = {"sentence1": [long, "a dog", "a bird"], "sentence2": ["a cat", long, "a fish"], "score": [1, 2, 3]}
    pairs = str(tmp_path / "pairs.parquet")
    Dataset.from_dict(rows).to_parquet(pairs)
    evaluation = f"evaluation={{retrieval: {{path: {pairs}, columns: [sentence1, sentence2]}}, similarity: {pairs}}}"
    for words in (
        ["eval", str(tmp_path / "model"), f"sts:{pairs}"],
        ["eval", str(tmp_path / "model"), str(recipe), "--set", evaluation],
        ["mine", str(tmp_path / "model"), pairs, str(tmp_path / "hard.parquet"), "--negatives", "1"],
    ):
        words += [] if words[0] == "mine" else ["--json", str(tmp_path / "figures.json")]
        caplog.clear()
        assert main([*words, "--max-seq-length", "65"]) == 2
        assert "must be at most the 64 tokens that the model's encoder can read. Got 65" in capsys.readouterr().err
        assert main(words) == 0
        assert "have more tokens than the" in caplog.text
        (tmp_path / "hard.parquet").unlink(missing_ok=True)
        caplog.clear()
        assert main([*words, "--max-seq-length", "64"]) == 0
        assert "more tokens" not in caplog.text


@pytest.mark.parametrize("length", ["-5", '"x"'])
def test_a_length_that_no_model_has(length, tmp_path, make_student, capsys):
    make_student().save(str(tmp_path / "model"))
    (tmp_path / "model" / "sentence_bert_config.json").write_text(f'{{"max_seq_length": {length}}}')
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    model, pairs = str(tmp_path / "model"), str(tmp_path / "pairs.tsv")
    mine = ["mine", model, pairs, str(tmp_path / "hard.parquet"), "--columns", "sentence1,sentence2"]
    for words in (["eval", model, pairs], [*mine, "--negatives", "1"]):
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert (
            f"'max_seq_length' of the model must be a number from 1. Got {json.loads(length)!r}, which stands" in said
        )
    assert main(["eval", model, pairs, "--max-seq-length", "8"]) == 0


@pytest.mark.parametrize("option", ["--json", "--csv"])
def test_figures_replace_figures_alone(option, tmp_path, make_student, capsys):
    make_student().save(str(tmp_path / "model"))
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    data, figures, empty = tmp_path / "data", tmp_path / "figures", tmp_path / "empty"
    data.write_text('{"query": "a", "document": "b"}\n{"query": "c", "document": "d"}\n')
    empty.touch()
    words = ["eval", str(tmp_path / "model"), f"sts:{tmp_path}/pairs.tsv", option]
    for kept in (data, tmp_path / "pairs.tsv"):
        before = kept.read_bytes()
        assert main([*words, str(kept)]) == 2
        said = f"The file of {option} is replaced, and {kept} is not one that st-distill has written. Name another file"
        assert said in capsys.readouterr().err
        assert kept.read_bytes() == before
    row = tmp_path / "row.jsonl"
    row.write_text('{"sentence1": "a", "sentence2": "b", "score": 1.0}')  # as JSON it may be anybody's
    assert main([*words[:2], str(row), option, str(row)]) == 2
    assert row.read_text().startswith('{"sentence1"')
    precious = tmp_path / "precious.json"
    precious.write_text('{"precious": 1}')
    assert main([*words, str(precious)]) == 2
    assert precious.read_text() == '{"precious": 1}'
    for own in (figures, figures, empty):
        assert main([*words, str(own)]) == 0
        assert "spearman_cosine" in own.read_text()


PRETRAINING = """\
output: {folder}/encoder
encoder: {{model: {model}}}
tokenizer: {{model: {model}}}
texts: {folder}/texts.parquet
steps: 1
evaluation: {{texts: {folder}/texts.parquet, lengths: [8]}}
"""

#: Of each command with --json what makes it write some.
FIGURES = {
    "verify": ["verify {folder}/model"],
    "eval": ["eval {folder}/model sts:{folder}/pairs.tsv", "eval {folder}/model {folder}/recipe.yaml"],
    "pretrain": ["pretrain {folder}/pretraining.yaml --evaluate {folder}/masked"],
    "glue": ["glue {bert} --data {folder}/glue --out {folder}/fine --steps 1 --limit 8 --set disable_tqdm=true"],
}


def test_every_command_replaces_its_own_figures(recipe, tmp_path, make_student, tiny_bert, capsys):
    (commands,) = (action for action in make_parser()._actions if action.choices)
    with_figures = {name for name, command in commands.choices.items() if "--json" in command.format_usage()}
    assert with_figures == set(FIGURES)
    export(make_student(MatryoshkaProjection(32, [24, 8])), tmp_path / "model")
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    (tmp_path / "pretraining.yaml").write_text(PRETRAINING.format(folder=tmp_path, model=tiny_bert))
    write_glue(tmp_path / "glue", ["rte"])
    for part in (AutoModelForMaskedLM, AutoTokenizer):
        part.from_pretrained(tiny_bert).save_pretrained(tmp_path / "masked")
    for number, words in enumerate(itertools.chain.from_iterable(FIGURES.values())):
        written = [
            *words.format(folder=tmp_path, bert=tiny_bert).split(),
            "--json",
            f"{tmp_path}/figures-{number}.json",
        ]
        for _ in range(2):
            assert main(written) == 0, capsys.readouterr().err
        assert json.loads((tmp_path / f"figures-{number}.json").read_text())


@pytest.mark.parametrize(
    ("command", "option"),
    [("eval", "--json"), ("eval", "--csv"), ("glue", "--json"), ("pretrain", "--json"), ("verify", "--json")],
)
def test_what_is_no_plain_file_is_not_replaced(command, option, tmp_path, capsys):
    """Told before anything is looked at: neither the model nor the data are there."""
    own = tmp_path / "own"
    own.write_text(",".join(CSV_HEADER) if option == "--csv" else '{"whole": true, "findings": [], "notes": []}')
    (tmp_path / "link").symlink_to(own)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    more = {"eval": ["nothing.tsv"], "glue": ["--data", "nothing"]}.get(command, [])
    for name, kind in {"link": "a link", "dangling": "a link", "pipe": "no plain file"}.items():
        assert main([command, "nothing", *more, option, str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert f"The {option} must be a plain file or a new one, since it is replaced. Got {tmp_path}/{name}" in said
        assert f"which is {kind}: name another file" in said
        assert ("or - to print the figures" in said) == (option == "--json")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_figures_take_what_killed_commands_left_away(tmp_path, make_student):
    make_student().save(str(tmp_path / "model"))
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    words = [str(tmp_path / "model"), f"sts:{tmp_path}/pairs.tsv"]
    left = [tmp_path / f"{name}.17.tmp" for name in ("figures.json", "figures.csv", "others.json")]
    for file in left:
        file.touch()
    assert main(["eval", *words, "--json", f"{tmp_path}/figures.json", "--csv", f"{tmp_path}/figures.csv"]) == 0
    assert [file.exists() for file in left] == [False, False, True]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Three files of pairs and a function that switches off what makes the second one fail."""
    for name in ("pairs", "broken", "last"):
        (tmp_path / f"{name}.tsv").write_text(PAIRS.replace("the sea", f"the {name}"))
    original = SentenceTransformer.encode

    def encode(self, inputs, **options):
        if "the broken" in inputs:
            raise RuntimeError("out of memory")
        return original(self, inputs, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", encode)
    files = [str(tmp_path / f"{name}.tsv") for name in ("pairs", "broken", "last")]
    return files, lambda: monkeypatch.setattr(SentenceTransformer, "encode", original)


def test_eval_keeps_what_is_measured_where_a_task_fails(pairs, tmp_path, make_student, capsys):
    make_student().save(str(tmp_path / "model"))
    capsys.readouterr()
    words = [str(tmp_path / "model"), *pairs[0]]
    assert main(["eval", *words, "--csv", str(tmp_path / "results.csv"), "--json"]) == 2
    said = capsys.readouterr()
    results = json.loads(said.out)  # and nothing else
    assert [task["name"] for task in results["tasks"]] == ["pairs", "last"]
    assert results["failed"] == [{"name": "broken", "error": "RuntimeError: out of memory"}]
    assert "st-distill: 1 part of the evaluation could not be measured: broken." in said.err
    assert {line.split(",")[0] for line in (tmp_path / "results.csv").read_text().splitlines()} == {
        "task",
        "pairs",
        "last",
    }


def test_eval_of_a_model_whose_vectors_are_not_finite(recipe, tmp_path, make_student, capsys):
    model = make_student()
    with torch.no_grad():
        next(model.parameters())[:] = float("nan")
    model.save(str(tmp_path / "model"))
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    for task, name in ((tmp_path / "pairs.tsv", "pairs"), (recipe, "fidelity")):
        capsys.readouterr()
        assert main(["eval", str(tmp_path / "model"), str(task)]) == 2
        said = capsys.readouterr()
        assert f"Not measured: {name} (The vectors of the model hold NaN or infinity, in " in said.out
        assert f"1 part of the evaluation could not be measured: {name}." in said.err


def test_a_run_keeps_what_is_measured_where_a_task_fails(pairs, recipe, tmp_path, capsys, caplog, monkeypatch):
    tasks, mend = pairs

    def cannot(*arguments, **options):
        raise ValueError("no diagnosis")

    monkeypatch.setattr(diagnose, "diagnose_vectors", cannot)
    changes = ["stages.0.steps=1", f"evaluation.tasks={json.dumps(tasks)}"]
    changes += [f"evaluation.retrieval={{path: {tasks[1]}, columns: [sentence1, sentence2]}}"]
    changes += [f"evaluation.similarity={tasks[1]}"]
    words = [str(recipe), *(word for change in changes for word in ("--set", change))]
    assert main(["run", *words]) == 2
    said = capsys.readouterr()
    for name in ("retrieval", "similarity", "broken"):
        assert f"Not measured: {name} (RuntimeError: out of memory)" in said.out
    assert said.out.splitlines()[-1] == f"The model is in {tmp_path}/out."
    assert "The student could not be diagnosed: no diagnosis." in caplog.text
    assert "3 parts of the evaluation could not be measured: retrieval, similarity, broken." in said.err
    results = json.loads((tmp_path / "out-run" / "results.json").read_text())["results"]
    assert [task["name"] for task in results["tasks"]["tasks"]] == ["pairs", "last"]
    assert results["failed"][0] == {"name": "retrieval", "error": "RuntimeError: out of memory"}
    assert {"fidelity", "models"} < set(results)
    assert (
        "Could not be measured:\n\n- retrieval: RuntimeError: out of memory\n"
        in (tmp_path / "out/README.md").read_text()
    )
    assert main(["report", str(tmp_path / "out-run"), "--no-speed"]) == 0
    page = (tmp_path / "out-run" / "report" / "index.html").read_text()
    assert '<li dir="auto"><strong>broken</strong>: RuntimeError: out of memory.</li>' in page
    assert "<li>retrieval of the student before training: RuntimeError: out of memory.</li>" in page
    mend()
    assert main(["run", *words, "--resume"]) == 0
    results = json.loads((tmp_path / "out-run" / "results.json").read_text())["results"]
    assert [task["name"] for task in results["tasks"]["tasks"]] == ["pairs", "broken", "last"]
    assert {"retrieval", "similarity"} < set(results)
    assert "Could not be measured" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{recipe}", "--from-stage", "1"], "--from-stage continues a run, so it needs --resume"),
        (["info", "{folder}"], "has no modules.json"),
        (["info", "{folder}/mode"], "There is no folder '{folder}/mode'; did you mean '{folder}/model'?\n"),
        (["info", "{folder}/nodir/none"], "There is no folder '{folder}/nodir/none'.\n"),
        (["verify", "{folder}/nodir/none"], "There is no folder '{folder}/nodir/none'.\n"),
        (["verify", "{folder}/mode"], "There is no folder '{folder}/mode'; did you mean '{folder}/model'?\n"),
        (
            ["info", "{folder}/model-run"],
            "the work folder of a run; its model is {folder}/model, or call st-distill report {folder}/model-run.\n",
        ),
        (["report", "{folder}/model-runn"], "{folder}/model-runn instead; did you mean '{folder}/model-run'?\n"),
        (["export", "{model}", "{folder}", "--dim", "8"], "must be a new or empty folder"),
        (["export", "{model}", "{folder}/new", "--dim", "9"], "must be one of the projection's dimensions"),
        (["export", "{folder}/nothing", "{folder}/new"], "There is no folder '{folder}/nothing'."),
        (["run", "{folder}/nothing.yaml"], "nothing.yaml"),
        (["eval", "{folder}/nothing", "{folder}/texts.parquet"], "no kind of task"),
        (["eval", "{folder}/nothing", "{folder}/pairs.tsv"], "The model cannot be loaded: there is no folder"),
        (["eval", "nope", "{recipe}"], "The model cannot be loaded: 'nope' is not in the local cache, and the hub"),
        (["eval", "{recipe}", "{model}"], "recipe.yaml is no model: st-distill eval MODEL TASK takes the model first"),
        (["eval", "{folder}/pairs.tsv", "{model}"], "is a model, where a task is expected"),
        (["eval", "{model}", "{recipe}", "{folder}/pairs.tsv"], "is a recipe, which is measured alone. Got 2 tasks"),
        (["eval", "{model}", "{recipe}", "--dims", "8"], "--dims is for tasks"),
        (["eval", "", "{recipe}"], "The 'model' must not be empty. Give a name, or leave the option out."),
        (["eval", "{model}", "{folder}/pairs.tsv", "--csv", ""], "The 'csv' must not be empty"),
        (["report", ""], "The 'run' must not be empty"),
        (["report", "{folder}", "--out", ""], "The 'out' must not be empty"),
        (["report", "{folder}", "--out", " "], "The 'out' must not be empty"),
        (
            ["report", "{folder}/model-run", "--out", "{folder}/model-run/stages/page"],
            "The 'out' lies in {folder}/model-run/stages, where a run has its stages. Name another place.",
        ),
        (
            ["eval", "{model}", "{folder}/pairs.tsv", "--json", "{folder}/model-run/stages/0-first/model/x.json"],
            "The 'json' lies in {folder}/model-run/stages, where a run has its stages. Name another place, or - to print",
        ),
        (["report", "/"], "The 'run' must be the work folder of a run, with a run.json. Got / instead"),
        (
            ["verify", "{model}", "--set", "a=b"],
            "changes the recipe of a run or a store, and {model} is a model. Leave it out",
        ),
        (
            ["verify", "{model}", "--recipe", "{recipe}"],
            "is the recipe of a run or a store, and {model} is a model. Leave it out.",
        ),
        (
            ["eval", "{folder}/mode", "{folder}/pairs.tsv"],
            "there is no folder '{folder}/mode'; did you mean '{folder}/model'?\n",
        ),
        (["eval", "{folder}/pair", "{folder}/pairs.tsv"], "there is no folder '{folder}/pair'.\n"),
        (["eval", "{model}", "{recipe}", "--precisions", "int8"], "--precisions is for tasks"),
        (["eval", "{model}", "{recipe}", "--batch-size", "8"], "--batch-size is for tasks"),
        (["eval", "{model}", "{folder}/pairs.tsv", "--batch-size", "0"], "--batch-size must be a whole number from 1"),
        (["eval", "{model}", "{recipe}", "--set", "stages.0.learning_rate=-1"], "stages[0].learning_rate: must be"),
        (["embed", "{recipe}", "--set", "student.layers=[0, 9]"], "student.layers"),
        (["eval", "{model}", "{folder}/pairs.tsv", "--set", "output=x"], "--set changes a recipe, and none is given"),
        (
            ["eval", "{model}", "{folder}/pairs.tsv", "--dims", "9"],
            "asks for 9 dimensions, but the model's vectors have 8",
        ),
        (
            ["eval", "{model}", "{folder}/pairs.tsv", "--dims", "8,4,8"],
            "'dims' parameter must name each once. Got 8 twice",
        ),
        (
            ["eval", "{model}", "{folder}/pairs.tsv", "--precisions", "int8,int8"],
            "'precisions' parameter must name each once. Got 'int8' twice: take one of them out.",
        ),
        (["eval", "{model}", "{folder}/pairs.tsv", "--precisions", "int4"], "list of float32, int8, binary"),
        (["eval", "{model}", "{folder}/pairs.tsv", "--json", "{folder}"], "--json must be a file. Got the folder"),
        (["eval", "{model}", "{folder}/pairs.tsv", "--mteb-results", "x"], "--mteb-results is for tasks of MTEB"),
        (
            ["eval", "{model}", "mteb:STSBenchmark", "--limit", "2"],
            "--limit is for tasks from data, and mteb:STSBenchmark is measured as MTEB has it, whole. Leave it out.",
        ),
        (
            ["eval", "{model}", "{folder}/pairs.tsv", "mteb:STS12", "--split", "pairs"],
            "--split is for tasks from data, and mteb:STS12 is measured as MTEB has it, whole. Leave it out, or say split",
        ),
        (["eval", "{model}", "sts:"], "must have its file, folder or data set after the kind"),
        (["eval", "{model}", "stss:{folder}/pairs.tsv"], "The kind of a task must be one of classification, "),
        (["eval", "{model}", "{folder}/tasks.yaml"], "must be a list with a task in it. Got an empty one"),
        (["eval", "{model}", "{folder}/task.yaml"], "Got 'task' instead; did you mean 'tasks'?\n"),
        (["eval", "{model}", "{folder}/empty.yaml"], "Got an empty file instead: write 'tasks:'"),
        (
            ["eval", "{model}", "{folder}/pairs.tsv", "--json", "{folder}/f", "--csv", "{folder}/./f"],
            "must be two files",
        ),
        (["eval", "{model}", "{folder}/pairs.tsv", "--csv", "-"], "--csv must be a file. Got - instead"),
        (
            ["eval", "{model}", "{folder}/pictures.csv", "{folder}/pairs.tsv"],
            "has inputs of the kind image, which the model",
        ),
        (["verify", "{model}", "--json", "{folder}/none/found.json"], "The folder of --json"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_code_2(arguments, message, recipe, tmp_path, make_student, images, capsys):
    make_student(MatryoshkaProjection(32, [8])).save(str(tmp_path / "model"))
    (tmp_path / "model-run").mkdir()
    (tmp_path / "model-run" / "run.json").touch()
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    (tmp_path / "tasks.yaml").write_text("tasks: []")
    (tmp_path / "task.yaml").write_text("task: [x]")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "pictures.csv").write_text("file_name,caption\na.png,red\n")
    images[0].save(tmp_path / "a.png")
    places = {"recipe": recipe, "folder": tmp_path, "model": tmp_path / "model"}
    capsys.readouterr()
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error
    assert "--debug" not in error


#: Every argument of a command that names what it writes.
WRITTEN = {
    "export": ["export", "model", "{}"],
    "mine": ["mine", "model", "pairs.tsv", "{}"],
    "report": ["report", "run", "--out", "{}"],
    "glue --out": ["glue", "model", "--data", "data", "--out", "{}"],
    "glue": ["glue", "model", "--data", "data", "--json", "{}"],
    "verify": ["verify", "model", "--json", "{}"],
    "pretrain": ["pretrain", "recipe.yaml", "--json", "{}"],
    "eval": ["eval", "model", "pairs.tsv", "--json", "{}"],
    "eval --csv": ["eval", "model", "pairs.tsv", "--csv", "{}"],
    "eval --mteb-results": ["eval", "model", "mteb:STS12", "--mteb-results", "{}"],
}


@pytest.mark.parametrize("command", WRITTEN)
@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("https://user:hidden@host/x.parquet", "is an address, not a place on this machine. Name another place"),
        ("s3://bucket/x.parquet", "is an address, not a place on this machine"),
        ("out/hf_hidden" + "Ab3" * 8, "holds a login or a token, and the names of what is written are kept"),
        ("out/x\0.parquet", "holds a zero byte, which no name may"),
        ("n" * 300, "is longer than names can be. Name another place"),
        ("none/" + "n" * 245, "is longer than names can be"),  # with what is put behind it
        ("/".join(["n" * 100] * 50), "is longer than names can be"),
    ],
)
def test_places_that_nothing_can_be_written_at(command, place, told, tmp_path, monkeypatch, capsys):
    """Told before anything is looked at, and without a login that stands in it."""
    monkeypatch.chdir(tmp_path)
    words = [word.format(place) for word in WRITTEN[command]]
    assert main(words) == 2
    said = "".join(capsys.readouterr())
    name = next((word for word in reversed(words) if word.startswith("--") and word != "--data"), "--path")
    assert f"st-distill: The '{name.removeprefix('--')}' {told}" in said
    assert "hidden" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["info", "{}"],
        ["verify", "{}"],
        ["report", "{}"],
        ["run", "{}"],
        ["check", "{}"],
        ["eval", "model", "{}"],
        ["export", "{}", "new"],
    ],
)
def test_names_that_cannot_be(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, told in (("a" * 300, f"The name {'a' * 60}… is longer than names can be."), ("a\0", "holds a zero byte")):
        assert main([word.format(name) for word in words]) == 2
        said = capsys.readouterr().err
        assert told in said
        assert "Errno" not in said


def test_no_prompt_holds_a_login(capsys):
    """It would be kept with the figures."""
    for use in ("query", "document", "text"):
        assert main(["eval", "model", "pairs.tsv", f"--{use}-prompt", "token=hf_hidden" + "Ab3" * 8]) == 2
        said = "".join(capsys.readouterr())
        assert f"The '{use}-prompt' holds a login or a token" in said
        assert "hidden" not in said


def test_numbers_that_are_none(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "model", "data", "--dims", "a"])
    assert capsys.readouterr().err == (
        "st-distill: argument --dims: must be whole numbers with commas between them, as in 384,128. Got 'a' instead. "
        "See st-distill eval --help.\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "a", "b", "--dim", "x"], "argument --dim: invalid int value: 'x'. See st-distill export --help."),
        (["info"], "the following arguments are required: model. See st-distill info --help."),
        ([], "the following arguments are required: command. See st-distill --help."),
        (["--bogus"], "there is no option --bogus. See st-distill --help."),
        (["-x", "check"], "there is no option -x. See st-distill --help."),
        (["check", "--bogus=1"], "there is no option --bogus. See st-distill check --help."),
        (
            ["eval", "m", "t.tsv", "--quer", "x"],
            "there is no option --quer; did you mean '--query-prompt'? See st-distill eval --help.",
        ),
        (["run", "r", "--resum"], "there is no option --resum; did you mean '--resume'? See st-distill run --help."),
        (["run", "r", "--rseume"], "there is no option --rseume; did you mean '--resume'? See st-distill run --help."),
        (["glue", "m", "--data", "d", "-x"], "there is no option -x. See st-distill glue --help."),
        (
            ["eval", "m", "t.tsv", "--text-prompt", "-q:"],
            "there is no option -q:; if it is the value of --text-prompt, write --text-prompt=-q:. See st-distill eval --help.",
        ),
        (
            ["--debug", "check", "r"],
            "the option --debug stands behind the command: st-distill COMMAND --debug. See st-distill --help.",
        ),
        (["eval", "m", "t.tsv", "--text-prompt", "--foo=bar baz"], None),
        (["eval", "m", "--", "--quer"], None),
        (["mine", "m", "p", "n.parquet", "--margin", "-0.1"], None),
    ],
)
def test_words_that_are_not_understood_are_a_sentence(words, told, capsys):
    if told is None:  # of words that are
        assert main(words) == 2
        assert "there is no option" not in capsys.readouterr().err
        return
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err == f"st-distill: {told}\n"


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match=r"modules\.json"):
        main(["info", str(tmp_path), "--debug"])


def test_every_command_has_an_example(capsys):
    for command in ("check", "embed", "run", "verify", "eval", "report", "export", "info"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"example: st-distill {command} " in capsys.readouterr().out


def test_eval_says_what_does_not_go_with_tasks_of_mteb(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "or else validation or dev; not with mteb:NAME, which MTEB measures whole" in told
    assert "or queries of a collection; not with mteb:NAME either" in told


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "st_distill", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_unit_length_is_told(make_student, tmp_path, capsys):
    export(make_student(MatryoshkaProjection(32, [8, 4])), tmp_path / "model")
    assert main(["info", str(tmp_path / "model")]) == 0
    assert json.loads(capsys.readouterr().out)["unit_length"] == {"full": True, "truncated": False}


def test_a_stopped_glue_says_how_to_go_on(monkeypatch, capsys):
    def stopped(*arguments, **options):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr("st_distill.glue.glue", stopped)
    assert main(["glue", "some/model", "--data", "."]) == 143
    assert "stopped by SIGTERM. What is done is kept; go on with the same command." in capsys.readouterr().err


def test_a_recipe_sends_a_terminal_no_codes(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text('"output\\e[8m\\nall is well": 1\n')
    for command in ("check", "run"):
        assert main([command, str(tmp_path / "recipe.yaml")]) == 2
        said = "".join(capsys.readouterr())
        assert r"output\x1b[8m\nall is well" in said
        assert "\x1b" not in said


def test_what_is_done_is_told_without_codes(make_student, tmp_path, capsys):
    make_student().save(str(tmp_path / "model"))
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "new\nline" / "out\x1b[31m")]) == 0
    assert capsys.readouterr().out.endswith("/new\\nline/out\\x1b[31m.\n")


@pytest.fixture
def unread(monkeypatch):
    """Within it standard output is a pipe that nobody reads."""

    @contextlib.contextmanager
    def make():
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as output, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            yield output
            sys.stdout.close()

    return make


def test_an_output_that_nobody_reads_ends_quietly(make_student, tmp_path, unread, capsys):
    make_student().save(str(tmp_path / "model"))
    words = [sys.executable, "-m", "st_distill", "info", str(tmp_path / "model")]
    with unread() as output:
        done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 141
    assert b"pipe" not in done.stderr
    for code in (141, 1):
        for options in ([], ["--json", "-"]):
            with unread():
                assert main(["verify", str(tmp_path / "model"), *options]) == code
        (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    assert "pipe" not in capsys.readouterr().err


def test_the_log_sends_a_terminal_no_codes():
    code = (
        "import logging, st_distill.cli as cli\n"
        "cli._check_names = lambda options: logging.warning('a \\x1b[8m b')\n"
        "cli.main(['check', 'nothing.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert r"a \x1b[8m b" in done.stderr


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["check", "recipe.yaml"]) == 2
    assert capsys.readouterr().err == "st-distill: the current folder has been removed. Change to one that is there.\n"
