"""What a recipe may say of adapters, which modules they go to, and that they are merged into what was trained."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_distill.recipe import Recipe, check
from st_distill.recipe.adapters import add_adapters, merge_adapters


@pytest.fixture
def problems_of(tmp_path, tiny_bert, sentences, request):
    """What is wrong with a stage that has ``lora``; the student keeps two layers, and its model is a fixture's."""
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "texts.parquet")

    def problems_of(lora, *, student="tiny_bert", train="all", **changes) -> dict[str, str]:
        recipe = Recipe(
            output=str(tmp_path / "out"),
            student={"model": request.getfixturevalue(student), "layers": [0, 1], "pooling": "mean", **changes},
            teachers=[tiny_bert],
            texts=[str(tmp_path / "texts.parquet")],
            projection={"dims": [24, 8]},
            stages=[{"train": train, "lora": lora, "steps": 1}],
        )
        found = check(recipe, diagnose=False)
        return {problem.path.removeprefix("stages[0].lora").lstrip("."): problem.message for problem in found}

    return problems_of


@pytest.mark.parametrize(
    ("lora", "path", "message"),
    [
        ({"rank": 8}, "rank", "unknown field; did you mean 'r'?"),
        ({"alpha": 8}, "alpha", "did you mean 'lora_alpha'?"),
        ({"target_module": ["query"]}, "target_module", "did you mean 'target_modules'?"),
        ({"target_modules": "query"}, "target_modules", "'query' is none of a module, such as .*; write \\[query\\]"),
        ({"target_modules": ".*quary"}, "target_modules", "'.*quary' is none of a module, .* give a list of dense"),
        ({"target_modules": ".*(query"}, "target_modules", "no regular expression: missing \\)"),
        ({"target_modules": r"(.|\w|[a-z])*[^a-z.0-9_]{2}"}, "target_modules", "must match a name at once"),
        ({"exclude_modules": r"(.|\w|[a-z])*[^a-z.0-9_]{2}"}, "exclude_modules", "must match a name at once"),
        ({"target_modules": []}, "target_modules", "must not be empty; leave it out"),
        ({"target_modules": ["quary"]}, "target_modules[0]", "the encoder has no 'quary'; did you mean 'query'?"),
        ({"target_modules": ["LayerNorm"]}, "target_modules", "is a LayerNorm, and only linear, embedding and"),
        ({"target_modules": "encoder.*"}, "target_modules", "'encoder' is a BertEncoder, and only linear"),
        ({"target_modules": ["query"], "exclude_modules": ["query"]}, "", "excluded"),
        # The second is of a layer that the student does not keep.
        ({"target_modules": "encoder.layer.3.*query"}, "", "not found in the base model"),
        ({"layers_to_transform": 2}, "layers_to_transform", "has 2 layers, so a layer is 0 to 1, got 2"),
        ({"layers_to_transform": [0, 7]}, "layers_to_transform[1]", "so a layer is 0 to 1, got 7"),
        ({"layers_to_transform": []}, "layers_to_transform", "must not be empty"),
        ({"layers_pattern": ["layer"]}, "layers_pattern", "the student's layers are known"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save", "are not merged into the encoder; train them in a stage"),
        ({"task_type": "FEATURE_EXTRACTION"}, "task_type", "a student has no such head, so leave it out"),
        ({"bias": "all"}, "bias", "train: \\[bias\\]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices", "means nothing for adapters that are merged"),
        ({"init_lora_weights": False}, "init_lora_weights", "must be true or gaussian, got False"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights", "a stage that is stopped and continued would not find"),
        ({"init_lora_weights": "none"}, "init_lora_weights", "'none'"),
        ({"rank_pattern": {"query": 0}}, "rank_pattern.query", "must be a whole number of at least 1, got 0"),
        ({"r": True}, "r", "expected a whole number, got true"),
    ],
)
def test_what_a_stage_cannot_do(problems_of, lora, path, message):
    found = problems_of(lora)
    assert list(found) == [path]
    assert re.search(message, found[path]), found[path]


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "init_lora_weights": "gaussian", "use_rslora": True, "use_dora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.layer\.\d\..*\.(query|value)"},
        {"target_modules": ["attention.self.query"], "layers_to_transform": [1], "rank_pattern": {"query": 2}},
        # Said as peft has it anyway.
        {"task_type": None, "bias": "none", "modules_to_save": None},
    ],
)
def test_what_it_can(problems_of, lora):
    assert problems_of(lora) == {}


def test_of_other_encoders(problems_of):
    assert problems_of({"r": 2, "layers_to_transform": 1}, student="tiny_qwen2") == {}
    found = problems_of({"r": 2}, student="tiny_alibi")
    assert "no usual target_modules for 'alibi_bert'; give a list of" in found[""]
    assert problems_of({"r": 2, "target_modules": ["query"]}, student="tiny_alibi") == {}


def test_dora_and_weights_in_4_bits(problems_of, monkeypatch):
    monkeypatch.setattr("st_distill.recipe.quantized.INSTALLED", True)
    found = problems_of({"use_dora": True}, load_in_4bit=True)
    assert found == {"use_dora": "cannot be merged into weights that were in 4 bits; leave it out"}


@pytest.mark.parametrize("student", ["tiny_bert", "tiny_qwen2"])
def test_a_list_that_names_no_layer(problems_of, student):
    found = problems_of({"r": 2}, student=student, train=["linears"])
    assert list(found) == [""]
    assert re.search(
        r"train: \['linears'\] names a parameter of none.* write train: all .* or leave lora out", found[""]
    )
    named = "layer" if student == "tiny_bert" else "layers"
    assert problems_of({"r": 2}, student=student, train=["linears", rf"{named}\.1\."]) == {}
    assert problems_of({"r": 2, "layers_to_transform": [0]}, student=student, train=["linears"]) == {}


# --- in the encoder


@pytest.fixture
def adapted(request, make_student, tmp_path):
    def adapted(student, train="all", **lora) -> SentenceTransformer:
        model = make_student(source=request.getfixturevalue(student)).eval()
        add_adapters(model, SimpleNamespace(train=train, lora={"r": 2, **lora}), tmp_path)
        return model

    return adapted


def places(model) -> set[str]:
    names = (name for name, _ in model.transformers_model.named_parameters() if "lora_A" in name)
    return {name.partition(".lora_A")[0] for name in names}


@pytest.mark.parametrize(
    ("student", "list_name", "query"),
    [("tiny_bert", "encoder.layer", "attention.self.query"), ("tiny_qwen2", "layers", "self_attn.q_proj")],
)
def test_the_layers_that_have_them(adapted, student, list_name, query):
    target = [query.rpartition(".")[2]]
    chosen = {"layers_to_transform": [0, 2], "target_modules": target}
    assert places(adapted(student, **chosen)) == {f"{list_name}.{layer}.{query}" for layer in (0, 2)}
    only = {"layers_to_transform": 1, "target_modules": rf".*{target[0]}"}
    assert places(adapted(student, **only)) == {f"{list_name}.1.{query}"}


def test_named_layers_come_before_the_last_ones(adapted):
    found = places(adapted("tiny_bert", {"last_layers": 1}, layers_to_transform=[0], exclude_modules=["value"]))
    assert found == {"encoder.layer.0.attention.self.query"}
    found = places(adapted("tiny_bert", {"last_layers": 1}, exclude_modules=["value"]))
    assert found == {"encoder.layer.3.attention.self.query"}


@pytest.mark.parametrize(("student", "query"), [("tiny_bert", "query"), ("tiny_qwen2", "q_proj")])
def test_a_list_of_parameters_names_the_layers(adapted, student, query):
    found = places(adapted(student, [r"layers?\.0\.", rf"layers?\.2\..*{query}\.weight"], target_modules=[query]))
    assert {int(re.search(r"layers?\.(\d)", name)[1]) for name in found} == {0, 2}
    assert all(name.endswith(query) for name in found)
    with pytest.raises(ValueError, match=r"train: \['linears'\] names a parameter of none"):
        adapted(student, ["linears"])


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "init_lora_weights": "gaussian"}])
def test_merging_keeps_what_was_trained(adapted, make_student, sentences, options):
    model = adapted("tiny_bert", **options)
    before = model.encode(sentences)
    assert before == pytest.approx(make_student().encode(sentences), abs=1e-6)  # adapters begin with nothing
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights += 0.1 * torch.randn_like(weights)
    trained = model.encode(sentences)
    assert abs(trained - before).max() > 1e-3
    merge_adapters(model)
    assert model.encode(sentences) == pytest.approx(trained, abs=1e-5)
    assert model.state_dict().keys() == make_student().state_dict().keys()
