from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

import st_distill
from st_distill import files
from st_distill.errors import RecipeError
from st_distill.exporting import load_student
from st_distill.recipe import (
    Evaluation,
    Recipe,
    Stage,
    checkpoints,
    evaluate_model,
    frozen,
    measuring,
    run_rules,
    runner,
    stages,
    start,
    state,
)
from st_distill.recipe.schema import PAPER_LOSSES
from st_distill.recipe.state import RunState
from st_distill.recipe.teachers import make_teacher

FAST = {"use_cpu": True, "disable_tqdm": True}


@pytest.fixture
def folder(tmp_path, tiny_bert, tiny_qwen2, sentences, images):
    """A folder with two teachers, texts, held-out texts and pictures."""
    for name, source in (("first", tiny_bert), ("second", tiny_qwen2)):
        transformer = Transformer(source, max_seq_length=32)
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
        SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(tmp_path / name))
    texts = [f"{a} and {b}" for a in sentences[:8] for b in sentences[8:]]
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "texts.parquet")
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "held-out.parquet")
    Dataset.from_dict({"query": sentences[:6], "document": texts[:6]}).to_parquet(tmp_path / "pairs.parquet")
    colours, places = ("red", "green", "blue", "yellow"), ("one", "two", "three", "four")
    captions = [f"{colour} square {place}" for colour in colours for place in places]
    Dataset.from_dict(
        {"image": images, "caption": captions}, features=Features({"image": Image(), "caption": Value("string")})
    ).to_parquet(tmp_path / "images.parquet")
    return tmp_path


@pytest.fixture
def make_recipe(folder, tiny_bert, vision):
    def make(**changes) -> Recipe:
        fields = {
            "output": str(folder / "out"),
            "student": {"model": tiny_bert, "layers": [0, 3], "max_seq_length": 16, "pooling": "mean"},
            "teachers": [{"model": str(folder / "first")}, {"model": str(folder / "second"), "weight": 0.5}],
            "texts": [{"path": str(folder / "texts.parquet")}],
            "images": {"path": str(folder / "images.parquet"), "vision": vision},
            "projection": {"dims": [24, 8]},
            "stages": [
                {"train": "projection", "steps": 3, "batch": 8, "arguments": FAST},
                {"train": {"last_layers": 1}, "losses": PAPER_LOSSES, "steps": 3, "batch": 8, "arguments": FAST},
                {"train": "all", "steps": 6, "batch": 8, "learning_rate": 1e-3, "arguments": FAST},
                {"train": "vision", "steps": 3, "batch": 8, "learning_rate": 1e-3, "arguments": FAST},
            ],
            "evaluation": {
                "texts": str(folder / "held-out.parquet"),
                "retrieval": str(folder / "pairs.parquet"),
                "images": str(folder / "images.parquet"),
            },
        }
        return Recipe(**{**fields, **changes})

    return make


def texts_only(make_recipe, *kept, **changes) -> Recipe:
    recipe = make_recipe()
    return make_recipe(stages=[recipe.stages[index] for index in kept], images=None, evaluation=None, **changes)


def run(recipe, **options):
    return runner.run(recipe, show_progress=False, **options)


def test_the_four_stages(make_recipe, folder, sentences, images, monkeypatch):
    result = run(make_recipe())
    assert result.output == folder / "out"
    model = SentenceTransformer(str(folder / "out"), device="cpu")
    assert model.encode(sentences, truncate_dim=8).shape == (16, 8)
    assert model.encode(images[:2]).shape == (2, 24)
    assert set(result.results["fidelity"]["spearman"]) == {"24", "8"}
    assert set(result.results["models"]) == {"student", "first", "second"}
    assert 0 <= result.results["images"]["recall@1"]["24"] <= 1
    card = ModelCard.load(folder / "out" / "README.md", ignore_metadata_errors=False)
    assert card.text.lstrip().startswith("# out")
    assert "### Images" in card.text
    assert "| vision | vision | cosine 10, similarity 200, triplet 20 | 3 | 8 | 0.001 |" in card.text
    assert {"JasperDistill", "Sentence Transformers"} <= {line[5:] for line in card.text.splitlines()}
    assert len(card.data.eval_results) == 2 * (2 + 2 + 2)

    # Text does not move in stage 4.
    texts = [*sentences, "", "cat " * 15, "cat " * 40]
    before = load_student(folder / "out-run" / "stages" / "3-all" / "model", device="cpu")
    after = load_student(folder / "out-run" / "stages" / "4-vision" / "model", device="cpu")
    texts.append(f"a {after.processor.image_token} cat")
    assert torch.equal(before.encode(texts, convert_to_tensor=True), after.encode(texts, convert_to_tensor=True))

    # Each stage changed what it trains, and nothing else.
    saved = ["start", "stages/1-projection/model", "stages/2-last-1-layers/model", "stages/3-all/model"]
    states = [load_student(folder / "out-run" / part, device="cpu").state_dict() for part in saved]
    changed = [
        {name for name in new if not torch.equal(old[name], new[name])} for old, new in itertools.pairwise(states)
    ]
    assert changed[0] == {"2.linears.0.weight", "2.linears.0.bias"}
    assert changed[0] < changed[1] < changed[2]
    assert not any(".layer.0." in name or "embeddings" in name for name in changed[1])

    # A second start with resume does nothing again, and gives the same figures.
    monkeypatch.setattr(runner, "run_stage", None)
    monkeypatch.setattr(runner, "measure", None)
    assert run(make_recipe(), resume=True) == result


def test_a_recipe_file_by_the_public_name(make_recipe, folder):
    recipe = texts_only(make_recipe, 0)
    (folder / "recipe.yaml").write_text(st_distill.recipe.dump_recipe(recipe))
    result = st_distill.run(folder / "recipe.yaml", overrides=["stages.0.steps=1"], show_progress=False)
    state = json.loads((folder / "out-run" / "run.json").read_text())
    assert state["stages"][0]["done"]
    assert state["stages"][0]["fields"]["stage.arguments.max_steps"] == 1
    assert (result.output / "modules.json").is_file()


def test_the_teacher_beside_the_student(make_recipe, folder, sentences):
    teachers = [{"model": str(folder / "first"), "prompts": {"document": "a text "}}]
    result = run(texts_only(make_recipe, 2, teachers=teachers, export_teacher=True))
    student, teacher = (SentenceTransformer(str(path)) for path in (result.output, folder / "out-teacher"))
    assert teacher.prompts["document"] == "a text "
    assert teacher.get_embedding_dimension() == student.get_embedding_dimension() == 24
    found = student.similarity(student.encode(sentences), teacher.encode(sentences))
    other = student.similarity(
        student.encode(sentences), SentenceTransformer(str(folder / "first")).encode(sentences)[:, :24]
    )
    assert found.diagonal().mean() > 0.8 > other.diagonal().abs().mean()
    # It is made again where it is gone.
    shutil.rmtree(folder / "out-teacher")
    run(texts_only(make_recipe, 2, teachers=teachers, export_teacher=True), resume=True)
    assert (folder / "out-teacher" / "modules.json").is_file()


def test_a_student_that_is_its_teacher_stays_it_from_an_identity_start(make_recipe, folder, sentences):
    teacher = str(folder / "first")
    arguments = FAST | {"lr_scheduler_type": "constant"}
    recipe = make_recipe(
        student={"model": teacher},
        teachers=[{"model": teacher}],
        images=None,
        projection={"dims": [32, 16], "start": "identity", "rotation": "learned"},
        stages=[{"train": "all", "steps": 1, "batch": 8, "learning_rate": 1e-9, "arguments": arguments}],
        evaluation={"texts": str(folder / "held-out.parquet")},
        export_teacher=True,
    )
    figures = run(recipe).results["fidelity"]
    assert figures["spearman"]["32"] == pytest.approx(1, abs=1e-3)
    assert figures["overlap"]["32"] == pytest.approx(1, abs=1e-3)
    student, original = (SentenceTransformer(str(path), device="cpu") for path in (folder / "out", teacher))
    vectors = student.encode(sentences)
    own = original.encode(sentences, normalize_embeddings=True)
    np.testing.assert_allclose(vectors @ vectors.T, own @ own.T, atol=1e-3)
    # Its axes are the rotation's, as those of the teacher that is exported beside it are.
    turned = SentenceTransformer(str(folder / "out-teacher"), device="cpu").encode(sentences)
    np.testing.assert_allclose(vectors, turned, atol=1e-3)
    assert np.abs(vectors - own).max() > 0.1


def test_a_recipe_of_python_objects(make_recipe, sentences, monkeypatch):
    def make():
        def vectors(texts: list[str]) -> np.ndarray:
            return np.array([[len(text), text.count("a"), text.count("e"), 1.0] for text in texts])

        return texts_only(
            make_recipe,
            0,
            teachers=[
                {"teacher": vectors, "name": "plain", "revision": "1"},
                {"teacher": st_distill.Teacher(vectors, name="counts", revision="1")},
            ],
            texts=[{"data": Dataset.from_dict({"text": sentences})}],
            projection={"dims": [8, 4]},
        )

    output = run(make()).output
    assert SentenceTransformer(str(output), device="cpu").get_embedding_dimension() == 8
    started = note_stages(monkeypatch)
    run(make(), resume=True)
    assert started == []


def test_stored_vectors_are_truncated(make_recipe, folder, sentences):
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(len(sentences), 12)))
    source = {"data": sentences}
    teacher = {"vectors": str(folder / "vectors.npy"), "texts": source, "truncate_dim": 10, "revision": "may"}
    store = runner.embed(
        texts_only(make_recipe, 0, teachers=[teacher], texts=[source], projection={"dims": [8]}), show_progress=False
    )
    assert store.dimensions == {"vectors": 10}
    assert store.describe()["teachers"]["vectors"]["revision"] == "may"


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_killed_run_ends_where_an_undisturbed_one_ends(
    step, make_recipe, folder, sentences, monkeypatch, run_and_interrupt
):
    arguments = {**FAST, "save_steps": 2}
    options = {"work": str(folder / "whole")}
    part = {
        "stages": [
            {"train": "projection", "steps": 3, "batch": 8, "arguments": arguments},
            {"train": "all", "steps": 6, "batch": 8, "losses": PAPER_LOSSES, "arguments": arguments},
        ],
        "images": None,
        "evaluation": None,
    }
    run(make_recipe(**part, **options))
    whole = SentenceTransformer(str(folder / "out"), device="cpu").encode(sentences)
    run_and_interrupt(make_recipe(**part, work=str(folder / "cut")), step)
    steps: list[int] = []
    original = SentenceTransformerTrainer.training_step
    monkeypatch.setattr(
        SentenceTransformerTrainer, "training_step", lambda self, *a, **k: (steps.append(1), original(self, *a, **k))[1]
    )
    run(make_recipe(**part, work=str(folder / "cut")), resume=True)
    assert len(steps) == {1: 9, 4: 6, 8: 2}[step]  # 3 + 6 in all, less what the last checkpoint or stage has
    np.testing.assert_allclose(
        SentenceTransformer(str(folder / "out"), device="cpu").encode(sentences), whole, atol=1e-5
    )


def test_a_checkpoint_cut_short_or_changed_is_left_out(tmp_path, caplog):
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    for name in ("checkpoint-2", "checkpoint-10"):
        checkpoints.seal(tmp_path / name)
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"weighty")
    checkpoints.drop_damaged(tmp_path)
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-10 is damaged (model.safetensors: the content has changed" in caplog.text
    assert (tmp_path / "damaged-checkpoint-10" / "model.safetensors").read_bytes() == b"weighty"
    assert "checkpoint-12" not in caplog.text  # a killed run leaves such ones
    assert not (tmp_path / "checkpoint-12").exists()


def test_a_checkpoint_that_cannot_be_read_now_stays(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    checkpoints.seal(checkpoint)

    def failing(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(files, "sha256", failing)
        with pytest.raises(OSError, match="Input/output error: .*model.safetensors"):
            checkpoints.drop_damaged(tmp_path)
    checkpoints.drop_damaged(tmp_path)
    assert checkpoints.last_checkpoint(tmp_path) == checkpoint


def test_checkpoints_rotate_by_their_steps(tmp_path):
    for steps in (2, 4, 10):
        (tmp_path / f"checkpoint-{steps}").mkdir()
        os.utime(tmp_path / f"checkpoint-{steps}", (100 - steps, 100 - steps))  # the clock went back
    checkpoints.rotate(tmp_path, 1, str(tmp_path / "checkpoint-2"))
    assert [path.name for path in checkpoints.numbered(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    checkpoints.rotate(tmp_path, None, None)
    assert len(checkpoints.numbered(tmp_path)) == 2


def note_stages(monkeypatch) -> list[str]:
    """The names of the stages that are trained from here on."""
    trained, original = [], runner.run_stage

    def run_stage(stage, *args, **options):
        trained.append(stage.name)
        return original(stage, *args, **options)

    monkeypatch.setattr(runner, "run_stage", run_stage)
    return trained


class TestContinuing:
    @pytest.fixture
    def done(self, make_recipe):
        recipe = texts_only(make_recipe, 0, 1)
        run(recipe)
        return recipe

    def changed(self, make_recipe, **stage_changes) -> Recipe:
        recipe = texts_only(make_recipe, 0, 1)
        for name, value in stage_changes.items():
            setattr(recipe.stages[1], name, value)
        return recipe

    def test_not_without_resume(self, done):
        with pytest.raises(ValueError, match="already holds a run. Continue it with --resume"):
            run(done)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"learning_rate": 0.5},
                r"stage 2 \('last-1-layers'\): stage.arguments.learning_rate \(was 0.0001, is 0.5\)",
            ),
            ({"batch": 4}, r"stage.effective_batch \(was 8, is 4\)"),
            ({"margin": 0.5}, r"stage.margin \(was null, is 0.5\)"),
            ({"losses": {"cosine": 1.0}}, "stage.losses"),
        ],
    )
    def test_determining_fields_may_not_change(self, change, message, done, make_recipe):
        recipe = self.changed(make_recipe, **change)
        with pytest.raises(ValueError, match=message) as error:
            run(recipe, resume=True)
        assert "--from-stage 2" in str(error.value)
        assert "new output or work folder" in str(error.value)

    def test_what_stopped_a_run_before_its_first_stage_may_be_mended(self, make_recipe, folder):
        recipe = texts_only(make_recipe, 0, 1)
        texts = Dataset.from_parquet(str(folder / "texts.parquet"))["text"]
        Dataset.from_dict({"text": [*texts[:-1], None]}).to_parquet(folder / "texts.parquet")
        with pytest.raises(ValueError, match=f"Row {len(texts) - 1} of .* has no text"):
            run(recipe)
        Dataset.from_dict({"text": texts[:-1]}).to_parquet(folder / "texts.parquet")
        recipe.stages[1].learning_rate = 0.5
        run(recipe)
        Dataset.from_dict({"text": texts}).to_parquet(folder / "texts.parquet")
        with pytest.raises(ValueError, match="already holds a run"):
            run(recipe)
        with pytest.raises(ValueError, match="its content has changed"):
            run(recipe, resume=True)

    def test_first_stage_answers_for_teachers_and_texts(self, done, make_recipe, folder):
        recipe = texts_only(make_recipe, 0, 1, seed=7)
        recipe.teachers[1].weight = 0.25
        Dataset.from_dict({"text": ["another corpus"] * 3}).to_parquet(folder / "texts.parquet")
        with pytest.raises(
            ValueError, match=r"(?s)stage 1.*data.texts\[0\] \(its content has changed\).*seed.*teachers\[1\].weight"
        ):
            run(recipe, resume=True)

    def test_logging_and_device_fields_may_change(self, done, make_recipe, monkeypatch):
        recipe = self.changed(make_recipe, arguments={**FAST, "logging_steps": 1, "dataloader_num_workers": 1})
        recipe.stages[1].batch = 4
        recipe.stages[1].arguments["gradient_accumulation_steps"] = 2
        recipe.teachers[0].device = "cpu"
        monkeypatch.setattr(runner, "run_stage", None)
        run(recipe, resume=True)

    def test_from_stage(self, done, make_recipe, folder, monkeypatch):
        trained = []
        original = runner.run_stage
        monkeypatch.setattr(
            runner, "run_stage", lambda stage, *a, **k: (trained.append(stage.name), original(stage, *a, **k))[1]
        )
        run(self.changed(make_recipe, learning_rate=0.5), resume=True, from_stage=2)
        assert trained == ["last-1-layers"]
        with pytest.raises(ValueError, match=r"\(1 projection, 2 last-1-layers\). Got 3"):
            run(done, resume=True, from_stage=3)

    def test_a_stage_is_kept_where_the_one_before_it_is_damaged(self, done):
        stages = done.work_folder / "stages"
        tokenizer, later = stages / "1-projection" / "model" / "tokenizer.json", stages / "2-last-1-layers"
        tokenizer.unlink()
        before = sorted(later.rglob("*"))
        with pytest.raises(ValueError, match="model of stage 1 is damaged"):
            run(done, resume=True, from_stage=2)
        assert sorted(later.rglob("*")) == before

    def test_from_stage_where_there_is_no_run(self, make_recipe, folder):
        """A folder that was moved away, or misspelt: to begin anew in silence would take the run's whole time."""
        recipe = texts_only(make_recipe, 0, 1, work=str(folder / "moved"))
        with pytest.raises(
            ValueError, match=f"{folder}/moved has no run, so there is none to resume from stage 2. Leave"
        ):
            run(recipe, resume=True, from_stage=2)
        assert not (folder / "moved").exists()

    def test_more_stages_may_follow(self, done, make_recipe, monkeypatch):
        trained = []
        original = runner.run_stage
        monkeypatch.setattr(
            runner, "run_stage", lambda stage, *a, **k: (trained.append(stage.name), original(stage, *a, **k))[1]
        )
        run(texts_only(make_recipe, 0, 1, 2), resume=True)
        assert trained == ["all"]

    def test_without_the_accelerator_that_it_was_trained_on(self, make_recipe, monkeypatch):
        recipe, original = self.changed(make_recipe, arguments={"disable_tqdm": True, "bf16": True}), runner.run_stage
        monkeypatch.setattr(
            runner, "run_stage", lambda stage, *a, **k: original(replace(stage, arguments=FAST), *a, **k)
        )
        monkeypatch.setattr(run_rules, "is_torch_bf16_gpu_available", lambda: True)
        first = run(recipe)
        monkeypatch.setattr(run_rules, "is_torch_bf16_gpu_available", lambda: False)
        shutil.rmtree(first.output)
        assert run(recipe, resume=True).output.is_dir()
        with pytest.raises(RecipeError, match="bf16: no accelerator"):
            run(recipe, resume=True, from_stage=2)

    def test_another_version_goes_on_and_says_so(self, make_recipe, monkeypatch, caplog):
        folder, fields = (
            texts_only(make_recipe, 0).work_folder,
            [{"name": "a", "fields": {}}, {"name": "b", "fields": {}}],
        )
        folder.mkdir(parents=True)
        RunState(folder).plan(fields, from_stage=None)
        (folder / "stages" / "1-a").mkdir(parents=True)
        RunState(folder).plan(fields, from_stage=None)
        monkeypatch.setattr(state, "__version__", "99.0.0")
        assert not caplog.records
        RunState(folder).plan(fields, from_stage=None)
        (record,) = caplog.records
        assert f'was begun by st-distill "{st_distill.__version__}" and goes on under 99.0.0' in record.getMessage()
        RunState(folder).plan(fields, from_stage=1)
        (folder / "stages" / "1-a").mkdir()
        RunState(folder).plan(fields, from_stage=None)
        assert len(caplog.records) == 1  # begun anew, it is the newer version's

    def test_the_work_folder_of_another_kind_of_run_is_left_alone(self, tmp_path):
        stages, pretraining = {"name": "all", "fields": {}}, {"name": "pretraining", "folder": ".", "fields": {}}
        for kind, begun, other in (("pretraining", pretraining, stages), ("run of stages", stages, pretraining)):
            folder = tmp_path / kind
            folder.mkdir()
            RunState(folder).plan([begun], from_stage=None)
            (folder / "stages" / "1-all").mkdir(parents=True)
            for from_stage in (None, 1):
                with pytest.raises(
                    ValueError, match=f"{kind} is that of a {kind}. Choose a new output or work folder."
                ):
                    RunState(folder).plan([other], from_stage=from_stage)
            assert (folder / "run.json").is_file()
            assert (folder / "stages" / "1-all").is_dir()

    def test_one_run_at_a_time(self, make_recipe, monkeypatch):
        recipe = texts_only(make_recipe, 0)
        monkeypatch.setattr(runner, "run_stage", lambda *args, **kwargs: run(recipe, resume=True))
        with pytest.raises(BlockingIOError, match="a recipe is running there"):
            run(recipe)


class TestStages:
    def test_lora_is_merged(self, make_recipe, folder, sentences):
        stage = {"train": "all", "lora": {"r": 4}, "steps": 4, "batch": 8, "learning_rate": 1e-2, "arguments": FAST}
        run(make_recipe(stages=[stage], images=None, evaluation=None))
        start = load_student(folder / "out-run" / "start", device="cpu").state_dict()
        trained = load_student(folder / "out-run" / "stages" / "1-all" / "model", device="cpu").state_dict()
        assert start.keys() == trained.keys()
        changed = {name for name in start if not torch.equal(start[name], trained[name])}
        assert any("query.weight" in name for name in changed)
        assert not any("embeddings" in name for name in changed)
        assert not list((folder / "out").rglob("adapter_*"))
        out = SentenceTransformer(str(folder / "out"), device="cpu")
        assert not any("lora" in name for name in out.state_dict())

    @pytest.mark.parametrize(
        ("student", "excluded", "train"),
        [
            ("tiny_bert", "value", {"last_layers": 1}),
            ("tiny_qwen2", "v_proj", {"last_layers": 1}),
            ("tiny_bert", "value", [r"layer\.1\..*query\.weight$"]),
        ],
    )
    def test_lora_in_the_last_layers(self, student, excluded, train, make_recipe, folder, request):
        spec = {"model": request.getfixturevalue(student), "layers": [0, 2]}
        stage = {
            "name": "last",
            "train": train,
            "lora": {"r": 2, "exclude_modules": [excluded]},
            "steps": 2,
            "batch": 8,
            "arguments": FAST,
        }
        run(make_recipe(student=spec, stages=[stage], images=None, evaluation=None))
        start = load_student(folder / "out-run" / "start", device="cpu").state_dict()
        trained = load_student(folder / "out-run" / "stages" / "1-last" / "model", device="cpu").state_dict()
        changed = {name for name in start if not torch.equal(start[name], trained[name])}
        assert any(re.search(r"\.layers?\.1\.", name) for name in changed)
        assert not any(excluded in name for name in changed)
        assert not any(re.search(r"\.layers?\.0\.", name) for name in changed)

    def test_lora_resumes(self, make_recipe, folder, sentences, run_and_interrupt):
        arguments = {**FAST, "save_steps": 2}
        stage = {
            "train": "all",
            "lora": {"r": 4},
            "steps": 4,
            "batch": 8,
            "learning_rate": 1e-2,
            "arguments": arguments,
        }
        part = {"stages": [stage], "images": None, "evaluation": None}
        run(make_recipe(**part, work=str(folder / "whole")))
        whole = SentenceTransformer(str(folder / "out"), device="cpu").encode(sentences)
        run_and_interrupt(make_recipe(**part, work=str(folder / "cut")), 3)
        run(make_recipe(**part, work=str(folder / "cut")), resume=True)
        cut = SentenceTransformer(str(folder / "out"), device="cpu").encode(sentences)
        np.testing.assert_allclose(cut, whole, atol=1e-5)

    def test_with_a_loss_of_the_library(self, make_recipe, folder):
        recipe = texts_only(make_recipe, 2)
        recipe.stages[0] = Stage(
            train="all",
            steps=4,
            batch=4,
            arguments={**FAST, "multi_dataset_batch_sampler": "round_robin", "logging_steps": 1},
            also=[
                {
                    "loss": "MultipleNegativesRankingLoss",
                    "texts": str(folder / "pairs.parquet"),
                    "options": {"scale": 10},
                }
            ],
        )
        run(recipe)
        history = json.loads((folder / "out-run" / "run.json").read_text())["stages"][0]["metrics"]["history"]
        assert len(history) == 4

    @pytest.mark.parametrize("metric", [{}, {"metric_for_best_model": "spearman_24"}])
    def test_evaluates_while_training_and_keeps_the_best(self, metric, make_recipe, folder):
        arguments = {
            **metric,
            **FAST,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 1,
            "load_best_model_at_end": True,
        }
        recipe = make_recipe(
            stages=[{"train": "all", "steps": 3, "batch": 8, "learning_rate": 1e-3, "arguments": arguments}],
            images=None,
        )
        recipe.evaluation.images = None
        run(recipe)
        history = json.loads((folder / "out-run" / "run.json").read_text())["stages"][0]["metrics"]["history"]
        scores = [entry["eval_spearman_24"] for entry in history if "eval_spearman_24" in entry]
        assert len(scores) == 3
        best = evaluate_model(SentenceTransformer(str(folder / "out"), device="cpu"), recipe, show_progress=False)
        assert best["fidelity"]["spearman"]["24"] == pytest.approx(max(scores), abs=1e-4)

    @pytest.mark.parametrize("rotation", ["principal", "learned"])
    def test_independent_heads_and_the_teachers_head(self, make_recipe, folder, rotation):
        recipe = texts_only(
            make_recipe,
            0,
            2,
            projection={"dims": [24, 8], "heads": "independent", "teacher_head": True, "rotation": rotation},
        )
        run(recipe)
        for name, width in (("out", 24), ("out-24", 24), ("out-8", 8)):
            assert SentenceTransformer(str(folder / name), device="cpu").get_embedding_dimension() == width

    def test_columns_with_roles_and_prompts(self, make_recipe, folder):
        recipe = texts_only(make_recipe, 0)
        recipe.texts[0].path = str(folder / "pairs.parquet")
        recipe.texts[0].roles = {"query": "query", "document": "document"}
        recipe.texts[0].prompts = {"query": "a "}
        recipe.teachers[0].prompts = {"query": "one ", "document": "two "}
        recipe.stages[0].batch = 4
        recipe.stages[0].group_by_length = True
        run(recipe)
        description = json.loads((folder / "out-run" / "teachers" / "store.json").read_text())
        assert set(description["roles"]) >= {"query", "document"}

    def test_a_seed_of_its_own(self, make_recipe, monkeypatch):
        seeds = []

        class Trainer(stages.StageTrainer):
            def train(self, *args, **kwargs):
                seeds.append(self.args.seed)
                return super().train(*args, **kwargs)

        monkeypatch.setattr(stages, "StageTrainer", Trainer)
        recipe = texts_only(make_recipe, 0, 1)
        recipe.stages[0].arguments = {**FAST, "seed": 7}
        run(recipe)
        assert seeds == [7, recipe.seed + 1]

    def test_held_out_texts_with_roles(self, make_recipe, folder):
        recipe = texts_only(make_recipe, 0)
        recipe.teachers[0].prompts = {"query": "one ", "document": "two "}
        roles = {"query": "query", "document": "document"}
        recipe.evaluation = Evaluation(texts={"path": str(folder / "pairs.parquet"), "roles": roles}, teachers=False)
        assert run(recipe).results["fidelity"]["texts"] == 12

    @pytest.mark.parametrize("prompts", ["one ", {"query": "one "}])
    def test_teachers_are_measured_as_they_teach(self, prompts, make_recipe, folder, sentences, monkeypatch):
        measured = {}

        def note(student, teachers=(), **options):
            measured.update(teachers)
            return {}

        monkeypatch.setattr(measuring, "evaluate", note)
        options = {"prompts": prompts, "truncate_dim": 24, "max_seq_length": 4, "dtype": "bfloat16"}
        recipe = make_recipe(teachers=[{"model": str(folder / "first"), "name": "short", **options}])
        recipe.evaluation = Evaluation(retrieval=str(folder / "pairs.parquet"))
        evaluate_model(SentenceTransformer(str(folder / "first"), device="cpu"), recipe)
        model, teacher = measured["short"], make_teacher(recipe.teachers[0])
        np.testing.assert_allclose(model.encode_query(sentences), teacher.encode(sentences, role="query"), atol=1e-6)
        document = teacher.encode(sentences, role="document")
        np.testing.assert_allclose(model.encode_document(sentences), document, atol=1e-6)
        np.testing.assert_allclose(model.encode(sentences), teacher.encode(sentences), atol=1e-6)

    def test_unreadable_pictures(self, make_recipe, folder):
        rows = Dataset.from_parquet(str(folder / "images.parquet")).cast_column("image", Image(decode=False)).to_list()
        rows[3]["image"]["bytes"] = b"no picture"
        Dataset.from_list(rows, features=Features({"image": Image(), "caption": Value("string")})).to_parquet(
            folder / "images.parquet"
        )
        recipe = make_recipe(evaluation=None)
        recipe.stages = [recipe.stages[0], recipe.stages[3]]
        with pytest.raises(ValueError, match="row 3"):
            run(recipe)
        recipe.images.on_error = "skip"
        run(recipe, resume=True, from_stage=2)
        assert json.loads((folder / "out-run" / "run.json").read_text())["stages"][1]["metrics"]["skipped_images"] == 1


def test_mistakes_come_all_at_once_and_before_any_work(make_recipe, folder):
    recipe = make_recipe(texts=[{"path": str(folder / "nothing.parquet")}])
    recipe.stages[2].train = {"last_layers": 9}
    with pytest.raises(RecipeError) as error:
        run(recipe)
    assert len(error.value.problems) >= 2
    assert not (folder / "out-run").exists()


@pytest.mark.parametrize(
    ("arguments", "student", "tolerance"),
    [
        ({"gradient_checkpointing": True}, {}, 1e-5),
        ({}, {"attn_implementation": "eager"}, 1e-5),
        ({"bf16": True}, {}, 0.05),
        ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, {}, 1e-4),
    ],
    ids=["gradient checkpointing", "eager attention", "bf16", "compile"],
)
# transformers 5 renames gradient checkpointing on the way to 6, which sentence-transformers has not followed yet.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")
# torch.compile imports parts of torch that warn of themselves.
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_ways_to_compute_give_one_result(arguments, student, tolerance, make_recipe, folder, sentences):
    def trained(name, arguments, student):
        recipe = texts_only(make_recipe, 0, 1, 2, output=str(folder / name))
        stages = [
            Stage(train=stage.train, steps=3, batch=8, arguments={**FAST, **arguments}) for stage in recipe.stages
        ]
        fields = {**vars(recipe.student), **student}
        output = run(
            make_recipe(stages=stages, images=None, evaluation=None, student=fields, output=recipe.output)
        ).output
        return SentenceTransformer(str(output), device="cpu").encode(sentences)

    np.testing.assert_allclose(trained("other", arguments, student), trained("plain", {}, {}), atol=tolerance)


def test_a_frozen_encoder_embeds_each_text_once(make_recipe, folder, sentences, monkeypatch, run_and_interrupt):
    asked = []
    original = frozen.PooledVectors._encode
    monkeypatch.setattr(
        frozen.PooledVectors,
        "_encode",
        lambda self, texts, prompt: (asked.extend(texts), original(self, texts, prompt))[1],
    )
    stage = {"train": "projection", "epochs": 3, "batch": 8, "arguments": {**FAST, "save_steps": 2}}
    options = {"stages": [stage], "images": None, "evaluation": None}
    run(make_recipe(**options, work=str(folder / "read")))
    texts = Dataset.from_parquet(str(folder / "texts.parquet"))["text"]
    assert sorted(asked) == sorted(set(texts))
    assert not (folder / "read" / "pooled").exists()
    read = SentenceTransformer(str(folder / "out"), device="cpu").encode(sentences)

    # A run that is killed in the stage goes on with the vectors that are there.
    cut = make_recipe(**options, work=str(folder / "cut"))
    run_and_interrupt(cut, 5)
    asked.clear()
    run(cut, resume=True)
    assert asked == []
    np.testing.assert_allclose(
        SentenceTransformer(str(folder / "out"), device="cpu").encode(sentences), read, atol=1e-5
    )

    # The encoder running in every step gives the same.
    for module in (runner, start):
        monkeypatch.setattr(module, "reads_pooled_vectors", lambda *arguments, **options: False)
    run(make_recipe(**options, work=str(folder / "computed")))
    computed = SentenceTransformer(str(folder / "out"), device="cpu").encode(sentences)
    np.testing.assert_allclose(read, computed, atol=1e-5)


def test_memory_for_a_part_of_the_batch_and_of_the_store(make_recipe, folder, tiny_bert, sentences):
    # Without dropout, whose random numbers depend on how a batch is cut.
    shutil.copytree(tiny_bert, folder / "student")
    config = json.loads((folder / "student" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "student" / "config.json").write_text(json.dumps(config))
    student = {"model": str(folder / "student"), "max_seq_length": 16, "pooling": "mean"}

    def trained(name, **fields):
        stages = [{"train": "all", "epochs": 2, "batch": 16, "losses": PAPER_LOSSES, "arguments": FAST, **fields}]
        recipe = make_recipe(student=student, stages=stages, images=None, evaluation=None, output=str(folder / name))
        return SentenceTransformer(str(run(recipe).output), device="cpu").encode(sentences)

    plain = trained("plain")
    # Equal but for the order of the sums, which several steps of an optimiser that divides by small numbers make larger.
    np.testing.assert_allclose(trained("cached", mini_batch_size=5), plain, atol=1e-3)
    # Another order of the same rows: not the same vectors, but near.
    np.testing.assert_allclose(trained("windows", window_shards=1), plain, atol=0.1)
    history = json.loads((folder / "cached-run" / "run.json").read_text())["stages"][0]["metrics"]["history"]
    assert {"cosine", "similarity", "triplet"} <= set(history[0])


def test_the_precision_of_the_store(make_recipe, folder):
    run(texts_only(make_recipe, 0, store_dtype="int8"))
    store = st_distill.TeacherStore.open(folder / "out-run" / "teachers")
    assert {teacher["dtype"] for teacher in store.describe()["teachers"].values()} == {"int8"}
