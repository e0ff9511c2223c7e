"""Stages that learn from pairs alone, without teachers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.modules import Normalize

from st_distill.exporting import load_student
from st_distill.modules.alibi_model import Attention
from st_distill.recipe import Recipe, check, runner
from st_distill.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
BOTH = {"scale": 20, "directions": ["query_to_doc", "doc_to_query"], "partition_mode": "per_direction"}
FAST = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


@pytest.fixture
def folder(tmp_path, sentences):
    pairs = {"query": sentences, "document": [f"{text} and {text}" for text in sentences]}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    Dataset.from_dict({"title": sentences[:8], "body": sentences[8:]}).to_parquet(tmp_path / "titles.parquet")
    hard = {**pairs, "negative_1": sentences[1:] + sentences[:1], "negative_2": sentences[2:] + sentences[:2]}
    Dataset.from_dict(hard).to_parquet(tmp_path / "hard.parquet")
    return tmp_path


@pytest.fixture
def make_recipe(folder, tiny_alibi):
    def make(loss="MultipleNegativesRankingLoss", options=BOTH, texts=None, *, arguments=None, **changes) -> Recipe:
        stage = {
            "name": "pairs",
            "train": "all",
            "losses": {},
            "also": [{"loss": loss, "options": options}],
            "steps": 4,
            "batch": 8,
            "learning_rate": 1e-3,
            "arguments": {**FAST, **(arguments or {})},
        }
        return Recipe(
            output=str(folder / "out"),
            student={"model": tiny_alibi, "max_seq_length": 32},
            texts=texts or [str(folder / "pairs.parquet")],
            stages=[{**stage, **changes}],
        )

    return make


def run(recipe) -> SentenceTransformer:
    assert [problem for problem in check(recipe) if problem.level == "error"] == []
    runner.run(recipe, show_progress=False)
    return load_student(recipe.work_folder / "stages" / "1-pairs" / "model", device="cpu")


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_pairs_without_teachers_or_projection(make_recipe, folder, sentences):
    run(make_recipe(steps=40))
    assert not (folder / "out-run" / "teachers").exists()
    history = json.loads((folder / "out-run" / "run.json").read_text())["stages"][0]["metrics"]["history"]
    assert history[-1]["loss"] < history[0]["loss"] / 2
    model = SentenceTransformer(str(folder / "out"), device="cpu")
    assert [type(module).__name__ for module in model.children()] == ["Transformer", "Pooling", "Normalize"]
    found = model.similarity(model.encode(sentences), model.encode([f"{text} and {text}" for text in sentences]))
    assert (found.argmax(dim=1) == torch.arange(len(sentences))).float().mean() > 0.9


def test_a_later_stage_goes_on_with_hard_negatives(make_recipe, folder):
    recipe = make_recipe()
    first = recipe.stages[0]
    hard = {"loss": "MultipleNegativesRankingLoss", "texts": str(folder / "hard.parquet"), "options": BOTH}
    recipe.stages = Recipe(
        output="x",
        student="x",
        stages=[first, {"train": "all", "name": "hard", "losses": {}, "also": [hard], "steps": 2, "arguments": FAST}],
    ).stages
    before = weights(run(recipe))
    after = weights(load_student(folder / "out-run" / "stages" / "2-hard" / "model", device="cpu"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # What is done is not done again, and the fields of the sources tell when it must be.
    runner.run(recipe, resume=True, show_progress=False)
    recipe.stages[1].also[0].texts[0].limit = 8
    with pytest.raises(ValueError, match=r"stage 2 .*also\[0\]\.texts\[0\]\.limit"):
        runner.run(recipe, resume=True, show_progress=False)


def test_a_model_that_ends_in_a_normalisation_keeps_it(make_recipe, make_student, folder):
    make_student(Normalize()).save(str(folder / "first"))
    recipe = make_recipe(steps=1)
    recipe.student.model = str(folder / "first")
    assert [type(module).__name__ for module in run(recipe).children()] == ["Transformer", "Pooling", "Normalize"]


#: The trainer warns that sentence-transformers' models know activation checkpointing by its old name alone.
known_by_another_name = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")


@known_by_another_name
@pytest.mark.parametrize(
    ("loss", "changes", "passes"),
    [
        # each of the three parts of 8 texts goes through the encoder without gradients, and with them
        ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 3}, 6),
        ("MultipleNegativesRankingLoss", {"arguments": {"activation_checkpointing": True}}, 2),
    ],
)
def test_what_saves_memory_changes_no_result(loss, changes, passes, make_recipe, folder, monkeypatch):
    trained = []
    original = Attention.forward

    def forward(self, *args):
        trained.append(self.training)
        return original(self, *args)

    monkeypatch.setattr(Attention, "forward", forward)
    recipe = make_recipe(steps=2)
    plain = weights(run(recipe))
    assert sum(trained) == 2 * 2 * 2  # of each step the layers, of each column
    trained.clear()
    recipe = make_recipe(loss, steps=2, **changes)
    recipe.work = str(folder / "other")
    other = weights(run(recipe))
    assert sum(trained) == 8 * passes
    for name, value in plain.items():
        np.testing.assert_allclose(other[name], value, atol=2e-5, err_msg=name)


def test_one_source_a_batch_by_their_shares(make_recipe, folder, sentences, monkeypatch):
    seen = []
    original = SentenceTransformerTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen.append(inputs["dataset_name"])
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformerTrainer, "compute_loss", compute_loss)
    texts = [
        {"path": str(folder / "pairs.parquet"), "share": 1},
        {"path": str(folder / "titles.parquet"), "share": 9, "prompts": {"title": "a "}},
    ]
    run(make_recipe(texts=texts, steps=20, batch=4))
    assert set(seen) == {"also-1-1", "also-1-2"}
    # By their rows the second one would have a third of the batches.
    assert seen.count("also-1-2") > 14


MISTAKES = {
    "no texts": (lambda r: r.texts.clear(), "texts: a loss of 'also' without texts of its own learns from the recipe's"),
    "distils": (lambda r: setattr(r.stages[0], "losses", {"cosine": 1}), "teacher to learn from; a stage of 'also' alone says"),
    "no projection": (lambda r: setattr(r.stages[0], "train", "projection"), "stages[0]: needs the recipe's 'projection'"),
    "one column": (lambda r: setattr(r.texts[0], "columns", ["query"]), "needs a column of texts and one of what belongs"),
    "direction": (lambda r: r.stages[0].also[0].options.update(directions=["up"]), "options: Invalid directions"),
    "not cached": (lambda r: setattr(r.stages[0], "mini_batch_size", 2), "did you mean 'CachedMultipleNegativesRankingLoss'"),
    "half the shares": (lambda r: setattr(r.texts[0], "share", 1.0), "texts[1]: the stage's other sources have a 'share'"),
    "export": (lambda r: setattr(r, "export_teacher", True), "export_teacher: needs one teacher that is a model"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_before_the_run(name, make_recipe, folder):
    recipe = make_recipe(texts=[str(folder / "pairs.parquet"), str(folder / "titles.parquet")])
    change, message = MISTAKES[name]
    change(recipe)
    assert message in "\n".join(map(str, check(recipe)))


def test_shares_and_another_order_exclude_each_other(make_recipe, folder):
    texts = [{"path": str(folder / "pairs.parquet"), "share": 1}, {"path": str(folder / "titles.parquet"), "share": 1}]
    recipe = make_recipe(texts=texts, arguments={"multi_dataset_batch_sampler": "round_robin"})
    assert "the 'share' of each source orders the batches" in "\n".join(map(str, check(recipe)))
    recipe = make_recipe(texts=texts, losses={"cosine": 1})
    assert "texts[0].share: means nothing in a stage with distillation" in "\n".join(map(str, check(recipe)))
    recipe = make_recipe()
    recipe.evaluation = {"retrieval": {"path": str(folder / "pairs.parquet"), "share": 1}}
    recipe = Recipe(**vars(recipe))
    assert "evaluation.retrieval.share: means nothing" in "\n".join(map(str, check(recipe)))


def test_a_stopped_stage_of_shares_ends_where_an_undisturbed_one_does(make_recipe, folder, monkeypatch):
    texts = [
        {"path": str(folder / name), "share": share} for name, share in (("pairs.parquet", 1), ("titles.parquet", 2))
    ]
    recipe = make_recipe(texts=texts, steps=6, batch=4, arguments={"save_steps": 2})
    whole = weights(run(recipe))
    recipe.work = str(folder / "cut")
    original, count = SentenceTransformerTrainer.training_step, iter(range(100))

    def training_step(self, *args, **kwargs):
        if next(count) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SentenceTransformerTrainer, "training_step", training_step)
        with pytest.raises(KeyboardInterrupt):
            runner.run(recipe, show_progress=False)
    runner.run(recipe, resume=True, show_progress=False)
    cut = load_student(folder / "cut" / "stages" / "1-pairs" / "model", device="cpu").state_dict()
    for name, value in whole.items():
        np.testing.assert_allclose(cut[name], value, atol=1e-5, err_msg=name)


def test_the_presets_have_the_numbers_of_the_paper():
    pairs, hard = (load_recipe(name) for name in ("jina-2-pairs", "jina-2-hard-negatives"))
    assert pairs.student.pooling == "mean"
    for recipe in (pairs, hard):
        (stage,) = recipe.stages
        assert not stage.distils
        assert stage.also[0].options == BOTH
        assert (stage.arguments["bf16"], stage.arguments["optim"], stage.dropout) == (True, "adamw_torch", None)
        assert (recipe.student.max_seq_length, recipe.student.export_max_seq_length) == (512, 8192)
        assert recipe.student.attn_implementation is None  # texts of unlike length, for which blockwise is there
    assert hard.stages[0].arguments["activation_checkpointing"]


def test_the_example_is_right_but_for_the_files(folder, tiny_alibi):
    words = [f"output={folder}/out", f"student.model={tiny_alibi}"]
    words += [f"texts.0.path={folder}/pairs.parquet", f"texts.1.path={folder}/titles.parquet"]
    assert check(ROOT / "examples" / "pairs.yaml", words) == []


@known_by_another_name
def test_the_presets_run_at_toy_size(folder, tiny_alibi):
    """The published numbers are the presets'; the student, texts and duration are the user's."""
    (folder / "pairs.yaml").write_text(
        f"preset: jina-2-pairs\noutput: {folder}/out\nstudent: {{model: {tiny_alibi}}}\n"
        f"texts: [{{path: {folder}/pairs.parquet, share: 3}}, {{path: {folder}/titles.parquet, share: 1}}]\n"
        "stages: {pairs: {steps: 2, batch: 8, mini_batch_size: 4, arguments: {bf16: false, use_cpu: true}}}\n"
    )
    run(load_recipe(folder / "pairs.yaml"))
    (folder / "hard.yaml").write_text(
        f"preset: jina-2-hard-negatives\noutput: {folder}/hard\nstudent: {{model: {folder}/out}}\n"
        f"texts: {folder}/hard.parquet\n"
        "stages: {hard-negatives: {steps: 2, batch: 4, arguments: {bf16: false, use_cpu: true}}}\n"
    )
    result = runner.run(load_recipe(folder / "hard.yaml"), show_progress=False)
    model = SentenceTransformer(str(result.output), device="cpu")
    assert model.get_embedding_dimension() == 24
    assert model.max_seq_length == 8192
    for stages in (folder / "out-run", folder / "hard-run"):
        (trained,) = stages.glob("stages/*/model")
        assert load_student(trained, device="cpu").max_seq_length == 512
