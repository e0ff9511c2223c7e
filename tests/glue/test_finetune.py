from __future__ import annotations

import json
import math
import pickle
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from st_distill.cli import main
from st_distill.exporting import export
from st_distill.glue import Settings, glue

QUIET = {"disable_tqdm": True, "logging_steps": 1000}
SHORT = Settings(steps=1, batch=4, limit=8, arguments=QUIET)
#: Of each task in the table of Jina Embeddings 2 (arXiv 2310.19923).
METRICS = {
    "mnli": ["accuracy"],
    "mnli-mm": ["accuracy"],
    "qqp": ["accuracy", "f1"],
    "qnli": ["accuracy"],
    "sst2": ["accuracy"],
    "cola": ["matthews"],
    "stsb": ["pearson", "spearman"],
    "mrpc": ["accuracy", "f1"],
    "rte": ["accuracy"],
    "wnli": ["accuracy"],
}


@pytest.fixture
def encoder(tiny_alibi) -> str:
    return tiny_alibi


def test_all_tasks_and_what_they_begin_with(encoder, glue_folder, tmp_path):
    results = glue(encoder, glue_folder, tmp_path / "out", settings=SHORT)
    assert list(results["tasks"]) == list(METRICS)
    after_mnli = {name for name, row in results["tasks"].items() if row["began_with"] != encoder}
    assert after_mnli == {"stsb", "mrpc", "rte"}
    assert {name: list(row["metrics"]) for name, row in results["tasks"].items()} == METRICS
    assert results["tasks"]["mnli"]["examples"] == 8
    assert AutoConfig.from_pretrained(tmp_path / "out" / "mnli-model").num_labels == 3
    names = {*METRICS, "mnli-model"} - {"mnli-mm"}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names


def test_a_task_is_learned(encoder, glue_folder, tmp_path):
    settings = Settings(steps=25, batch=8, learning_rates=(1e-7, 5e-3), arguments=QUIET)
    results = glue(encoder, glue_folder, tmp_path / "out", tasks=["sst2"], settings=settings)
    assert results["tasks"]["sst2"]["score"] == 1
    assert results["tasks"]["sst2"]["learning_rate"] == 5e-3
    assert results["average"] is None


def test_what_is_finished_is_kept(encoder, glue_folder, tmp_path):
    first = glue(encoder, glue_folder, tmp_path / "out", tasks=["sst2"], settings=SHORT)
    again = glue(encoder, glue_folder, tmp_path / "out", tasks=["sst2"], settings=SHORT)
    assert again == first
    other = Settings(steps=3, batch=4, limit=8, arguments=QUIET)
    with pytest.raises(
        ValueError, match=r"sst2.json must be of this .* It is of other settings \(steps\): remove it, or"
    ):
        glue(encoder, glue_folder, tmp_path / "out", tasks=["sst2"], settings=other)


def add(number: float, folder) -> None:
    """As another training would leave the weights."""
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor + number for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


@pytest.fixture
def no_training(monkeypatch):
    """A call after which a training that begins is a failure."""

    def switch_off():
        monkeypatch.setattr("st_distill.glue.finetune.Trainer.train", lambda *_: pytest.fail("a training began"))

    return switch_off


@pytest.fixture
def copied(encoder, tmp_path):
    def copy(name: str):
        return shutil.copytree(encoder, tmp_path / name)

    return copy


def test_another_model_s_mnli_is_not_begun_with(copied, glue_folder, tmp_path, no_training):
    first, second = copied("first"), copied("second")
    add(0.5, second)
    made = tmp_path / "out" / "mnli-model"

    def run(model, tasks, settings=SHORT):
        return glue(model, glue_folder, tmp_path / "out", tasks=tasks, settings=settings)["tasks"]

    run(first, ["mnli"])
    assert run(first, ["rte"])["rte"]["began_with"] == str(made)
    no_training()
    refused = "mnli-model, for stsb to begin with, must be of this model and settings. It is of "
    with pytest.raises(
        ValueError, match=refused + r"another model \(.*first\) and other weights .*: remove it and .*mnli"
    ):
        run(second, ["cola", "stsb"])
    with pytest.raises(ValueError, match=refused + r"other settings \(limit\): remove it"):
        run(first, ["stsb"], Settings(steps=1, batch=4, limit=6, arguments=QUIET))
    add(0.5, made)
    with pytest.raises(
        ValueError, match=r"rte.json must .* It is of another encoder to begin with \(model.safetensors\)"
    ):
        run(first, ["rte"])
    (tmp_path / "out" / "mnli.json").unlink()
    with pytest.raises(ValueError, match="rte.json must .* It is of another encoder to begin with"):
        run(first, ["mnli", "rte"])
    with pytest.raises(
        ValueError, match="must hold mnli.json and mnli-model together, for stsb .* It has mnli-model alone"
    ):
        run(first, ["stsb"])


def test_two_models_of_one_last_name_are_told_apart_on_the_command_line(
    copied, glue_folder, tmp_path, monkeypatch, capsys, no_training
):
    monkeypatch.chdir(tmp_path)
    copied("x/model")
    add(0.5, copied("y/model"))
    words = ["--data", "glue", "--steps", "1", "--limit", "4", "--set", "disable_tqdm=true"]
    assert main(["glue", "x/model", *words, "--tasks", "mnli"]) == 0
    no_training()
    assert main(["glue", "y/model", *words, "--tasks", "rte"]) == 2
    assert "out/glue/model/mnli-model, for rte to begin with, must be of this model" in capsys.readouterr().err
    assert main(["glue", "y/model", *words, "--tasks", "mnli"]) == 2
    assert "out/glue/model/mnli.json must be of this model, data and settings" in capsys.readouterr().err


def test_what_other_data_or_weights_gave_is_refused(copied, glue_folder, tmp_path, no_training):
    model = copied("model")
    glue(model, glue_folder, tmp_path / "out", tasks=["sst2"], settings=SHORT)
    no_training()

    def refused(data, message):
        with pytest.raises(
            ValueError, match=rf"sst2.json must .* It is of {message}: remove it, or name another output"
        ):
            glue(model, data, tmp_path / "out", tasks=["cola", "sst2"], settings=SHORT)

    moved = shutil.copytree(glue_folder, tmp_path / "moved")
    glue(model, moved, tmp_path / "out", tasks=["sst2"], settings=SHORT)
    pq.write_table(pa.table({"sentence": ["a", "b"], "label": [0, 1]}), moved / "sst2" / "validation.parquet")
    refused(moved, r"other data \(validation.parquet\)")
    add(0.5, model)
    refused(glue_folder, r"other weights of the model \(model.safetensors\)")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_another_configuration_or_tokenizer_gave_is_refused(name, copied, glue_folder, no_training):
    model = copied("model")
    out = model / "glue"  # which is no part of it either
    first = glue(model, glue_folder, out, tasks=["rte"], settings=SHORT)
    no_training()
    (model / "README.md").write_text("a card is no part of the model")
    assert glue(model, glue_folder, out, tasks=["rte"], settings=SHORT) == first
    (model / name).write_text((model / name).read_text() + "\n")
    with pytest.raises(
        ValueError, match=rf"rte.json must .* It is of other files of the model \({name}\): remove it, or"
    ):
        glue(model, glue_folder, out, tasks=["rte"], settings=SHORT)
    kept = json.loads((out / "rte.json").read_text())
    del kept["files"]  # as an earlier version wrote it
    (out / "rte.json").write_text(json.dumps(kept))
    assert glue(model, glue_folder, out, tasks=["rte"], settings=SHORT) == first


def test_another_commit_of_a_model_of_the_hub_is_another_model(copied, glue_folder, tmp_path, monkeypatch, no_training):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    main_branch = tmp_path / "models--x--model" / "refs" / "main"
    main_branch.parent.mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        copied(f"models--x--model/snapshots/{commit}")

    def run(commit):
        main_branch.write_text(commit)
        return glue("x/model", glue_folder, tmp_path / "out", tasks=["sst2"], settings=SHORT)

    first = run("a" * 40)
    no_training()
    assert run("a" * 40) == first
    with pytest.raises(ValueError, match=r"sst2.json must .* It is of other weights of the model \(commit\)"):
        run("b" * 40)


def test_a_model_of_transformers_serves_too(tiny_bert, glue_folder, tmp_path):
    results = glue(tiny_bert, glue_folder, tmp_path / "out", tasks=["cola"], settings=SHORT)
    assert results["tasks"]["cola"]["examples"] == 8


def test_a_head_of_other_classes_is_replaced(encoder, glue_folder, tmp_path):
    glue(encoder, glue_folder, tmp_path / "out", tasks=["mnli"], settings=SHORT)
    of_three = tmp_path / "out" / "mnli-model"
    results = glue(of_three, glue_folder, tmp_path / "again", tasks=["sst2", "stsb"], settings=SHORT)
    assert list(results["tasks"]) == ["sst2", "stsb"]


def test_half_precision_is_trained_in_float32(encoder, glue_folder, tmp_path):
    AutoModel.from_pretrained(encoder, dtype=torch.float16).save_pretrained(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{encoder}/{name}", tmp_path / "half")
    glue(tmp_path / "half", glue_folder, tmp_path / "out", tasks=["mnli"], settings=SHORT)
    weights = load_file(tmp_path / "out" / "mnli-model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_place_under_a_file_is_refused_before_work(encoder, glue_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        NotADirectoryError, match="must be a place for a folder. Got .*/file/out, where .*/file is no folder"
    ):
        glue(encoder, glue_folder, tmp_path / "file" / "out", settings=SHORT)


def test_models_that_cannot_serve_are_refused_before_work(tiny_bert, encoder, glue_folder, tmp_path):
    def fails(model, message):
        with pytest.raises(ValueError, match=message):
            glue(model, glue_folder, tmp_path / "out", settings=SHORT)
        assert not (tmp_path / "out").exists()

    fails(str(tmp_path / "nothing"), "^The model cannot be loaded: there is no folder '.*nothing'.$")
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)
    config = json.loads((folder / "config.json").read_text())

    def write(**changes):
        fields = {name: value for name, value in {**config, **changes}.items() if name != "auto_map"}
        (folder / "config.json").write_text(json.dumps(fields))

    write(model_type="bert", position_embedding_type="alibi")
    fails(str(folder), "holds an ALiBi BERT in the published layout")
    write(model_type="bert", max_position_embeddings=64)
    fails(str(folder), "must be those of its encoder, BertForSequenceClassification. They lack .*, 'bert.* for one")
    write(vocab_size=7)
    fails(
        str(folder),
        "must be of the shapes that its configuration says. 1 of them .*word_embeddings.weight' is .* where",
    )
    write(model_type="vit")
    fails(str(folder), "must be an encoder with a sequence classification head. Got .* of the type 'vit'")


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "SafetensorError"),
        (lambda folder: as_pickle(folder), "broken or holds more than weights, perhaps code"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "KeyError: 'added_tokens'"),
        (lambda folder: change(folder, num_attention_heads=0), "ZeroDivisionError"),
        (lambda folder: change(folder, hidden_act="bananas"), "KeyError: 'bananas'"),
        (lambda folder: change(folder, num_hidden_layers="2"), "expected int, got str"),
    ],
    ids=["weights", "pickle", "tokenizer", "heads", "activation", "layers"],
)
def test_broken_models_are_told(broken, told, tiny_bert, glue_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    broken(folder)
    assert main(["glue", str(folder), "--data", str(glue_folder), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("st-distill: The model")
    assert str(folder) in said
    assert told in said
    assert "--debug" not in said
    assert "weights_only" not in said
    assert not (tmp_path / "out").exists()


def cut(file):
    file.write_bytes(file.read_bytes()[:2000])


def as_pickle(folder):
    """Weights that would call a function."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(shutil.rmtree, protocol=2))


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_an_export_that_has_changed_is_told(make_student, glue_folder, tmp_path):
    export(make_student(), tmp_path / "model")
    change(tmp_path / "model", hidden_dropout_prob=0.5)
    with pytest.raises(ValueError, match=r"model is damaged: config.json: there are .* remove its st_distill.json"):
        glue(tmp_path / "model", glue_folder, tmp_path / "out", settings=SHORT)


def test_an_output_that_is_a_file(encoder, glue_folder, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match=r"'output' must be a place for a folder. Got .*out is no folder"):
        glue(encoder, glue_folder, tmp_path / "out", settings=SHORT)


def test_what_is_in_the_way_of_the_figures_is_told_before_any_training(encoder, glue_folder, tmp_path, no_training):
    (tmp_path / "out" / "rte.json").mkdir(parents=True)
    no_training()
    with pytest.raises(
        IsADirectoryError, match=r"rte.json must be free for figures. It is a folder: remove it or rename"
    ):
        glue(encoder, glue_folder, tmp_path / "out", tasks=["sst2", "rte"], settings=SHORT)
    (tmp_path / "out" / "mnli-model").touch()
    with pytest.raises(
        NotADirectoryError, match=r"mnli-model must be free for a folder. It is a file: remove it or rename"
    ):
        glue(encoder, glue_folder, tmp_path / "out", tasks=["mnli"], settings=SHORT)


def test_a_folder_of_the_user_s_called_training_stays(encoder, glue_folder, tmp_path):
    (tmp_path / "out" / "training").mkdir(parents=True)
    (tmp_path / "out" / "rte.json.17.tmp").touch()  # of a killed command
    glue(encoder, glue_folder, tmp_path / "out", tasks=["rte"], settings=SHORT)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["rte.json", "training"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "'batch' must be a whole number from 1. Got 0"),
        ({"steps": 0}, "'steps' must be a whole number from 1"),
        ({"seed": 2**32}, "'seed' must be at most 4294967295. Got 4294967296"),
        ({"epochs": 0}, "'epochs' must be a number above 0"),
        ({"epochs": math.inf}, "'epochs' must be a number above 0. Got inf"),
        ({"learning_rates": []}, "'learning_rates' must be numbers above 0"),
        ({"learning_rates": [1e-5, math.inf]}, "'learning_rates' must be numbers above 0"),
        ({"learning_rates": [1e-5, 1e-5]}, "'learning_rates' must name each once. Got 1e-05 twice"),
        ({"arguments": {"weight_dekay": 1}}, "Got 'weight_dekay'; did you mean 'weight_decay'"),
        ({"arguments": {"seed": 1}}, "must not have 'seed': set seed instead"),
        ({"arguments": {"weight_decay": -1}}, "'weight_decay' must be at least 0, got -1"),
        (
            {"arguments": {"bf16": "maybe"}},
            "'bf16' must be one that TrainingArguments takes: expected true or false, got the text 'maybe'.$",
        ),
        ({"arguments": {"logging_first_stp": True}}, r"did you mean 'logging_first_step'\?$"),
        ({"arguments": {"log_level": "wraning"}}, r"'log_level' cannot be 'wraning'; did you mean 'warning'\?$"),
        (
            {"arguments": {"optim": "nope"}},
            "'optim' must be one that TrainingArguments takes: unknown value 'nope'; it may",
        ),
        (
            {"arguments": {"lr_scheduler_kwargs": {"nope": 1}}},
            "'arguments' must go together. Got a complaint about lr_scheduler_kwargs: .* 'nope'.$",
        ),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_on_the_command_line(encoder, glue_folder, tmp_path, capsys):
    words = ["glue", encoder, "--data", str(glue_folder), "--tasks", "rte", "--steps", "2", "--limit", "8"]
    words += ["--set", "disable_tqdm=true", "--out", str(tmp_path / "out"), "--json", str(tmp_path / "glue.json")]
    assert main(words) == 0
    assert "rte " in capsys.readouterr().out
    kept = json.loads((tmp_path / "glue.json").read_text())
    assert kept["tasks"]["rte"]["began_with"] == encoder
    assert main(words) == 0  # which replaces its own figures
    capsys.readouterr()
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == kept
    assert main([*words[:4], "--set", "bf16"]) == 2
    assert "must be of the form field=value, such as bf16=true. Got --set bf16 instead" in capsys.readouterr().err
