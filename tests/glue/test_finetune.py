from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from st_distill.cli import main
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
    assert not (tmp_path / "out" / "training").exists()


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
    with pytest.raises(ValueError, match="sst2.json must be of the same model and settings"):
        glue(encoder, glue_folder, tmp_path / "out", tasks=["sst2"], settings=other)


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


def test_models_that_cannot_serve_are_refused_before_work(tiny_bert, encoder, glue_folder, tmp_path):
    def fails(model, message):
        with pytest.raises(ValueError, match=message):
            glue(model, glue_folder, tmp_path / "out", settings=SHORT)
        assert not (tmp_path / "out").exists()

    fails(str(tmp_path / "nothing"), "The model '.*nothing' cannot be loaded")
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
    ("options", "message"),
    [
        ({"batch": 0}, "'batch' must be a whole number from 1. Got 0"),
        ({"steps": 0}, "'steps' must be a whole number from 1"),
        ({"epochs": 0}, "'epochs' must be above 0"),
        ({"learning_rates": []}, "'learning_rates' must be numbers above 0"),
        ({"arguments": {"weight_dekay": 1}}, "Got 'weight_dekay'; did you mean 'weight_decay'"),
        ({"arguments": {"seed": 1}}, "must not have 'seed': set seed instead"),
        ({"arguments": {"weight_decay": -1}}, "'weight_decay' must be at least 0, got -1"),
        ({"arguments": {"optim": "nope"}}, "'arguments' must go together"),
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
    assert main([*words[:4], "--set", "bf16"]) == 2
    assert "must be of the form field=value, such as bf16=true. Got 'bf16'" in capsys.readouterr().err
