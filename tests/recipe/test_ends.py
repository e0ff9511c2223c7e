"""The end of a run, where something that only its evaluation needs is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
import torch
from datasets import Dataset, Features, Image, Value
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer

from st_distill.cli import main
from st_distill.errors import RecipeError
from st_distill.exporting import export, load_student
from st_distill.files import write_text
from st_distill.recipe import Evaluation, Recipe, dump_recipe, runner, student
from st_distill.recipe.run_rules import RunRules
from st_distill.recipe.state import RunState


@pytest.fixture
def recipe(tmp_path, make_student, tiny_bert, sentences):
    make_student().save(str(tmp_path / "teacher"))
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "texts.parquet")
    Dataset.from_dict({"text": sentences[:6]}).to_parquet(tmp_path / "held-out.parquet")
    return Recipe(
        output=str(tmp_path / "out"),
        student={"model": tiny_bert, "layers": [0, 3], "max_seq_length": 16, "pooling": "mean"},
        teachers=[{"model": str(tmp_path / "teacher"), "name": "large"}],
        texts=[str(tmp_path / "texts.parquet")],
        projection={"dims": [24, 8]},
        stages=[{"train": "projection", "steps": 1, "batch": 8, "arguments": {"use_cpu": True, "disable_tqdm": True}}],
        evaluation={"texts": str(tmp_path / "held-out.parquet")},
    )


@pytest.fixture
def after_training(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """A function that has something happen when a run's stage is trained."""
    original = runner.run_stage

    def then(happen: Callable[[], object]) -> None:
        def run_stage(*arguments, **options):
            metrics = original(*arguments, **options)
            happen()
            return metrics

        monkeypatch.setattr(runner, "run_stage", run_stage)

    return then


def run(recipe: Recipe, **options) -> runner.RunResult:
    return runner.run(recipe, show_progress=False, **options)


def test_held_out_texts_that_went_missing(recipe, after_training, tmp_path, caplog):
    file, kept = tmp_path / "held-out.parquet", tmp_path / "kept"
    after_training(lambda: file.rename(kept))
    result = run(recipe)
    assert [entry["name"] for entry in result.results["failed"]] == ["fidelity"]
    assert "There is no file or folder" in result.results["failed"][0]["error"]
    assert "fidelity" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out-run" / "results.json").read_text())["results"] == result.results
    caplog.clear()
    assert run(recipe, resume=True).results["failed"] == result.results["failed"]
    assert "evaluation.texts.path: there is no file or folder" in caplog.text.lower()
    with pytest.raises(RecipeError, match="There is no file or folder"):
        run(recipe, resume=True, from_stage=1)
    kept.rename(file)
    mended = run(recipe, resume=True).results
    assert set(mended["fidelity"]["spearman"]) == {"24", "8"}
    assert "failed" not in mended
    recipe.evaluation.texts.path = str(tmp_path / "held_out.parquet")  # a slip in the recipe is told before any work
    with pytest.raises(RecipeError, match="did you mean"):
        run(recipe, resume=True)


def test_evaluation_data_that_were_changed(recipe, tmp_path, sentences, monkeypatch):
    recipe.evaluation = Evaluation(texts=str(tmp_path / "held-out.parquet"), retrieval=str(tmp_path / "pairs.csv"))
    (tmp_path / "pairs.csv").write_text("query,document\na cat,the cat sat\na dog,the dog ran\n")
    before = run(recipe).results
    monkeypatch.setattr(runner, "run_stage", None)
    assert run(recipe, resume=True).results == before
    Dataset.from_dict({"text": sentences[:9]}).to_parquet(tmp_path / "held-out.parquet")
    more_texts = run(recipe, resume=True).results
    assert (before["fidelity"]["texts"], more_texts["fidelity"]["texts"]) == (6, 9)
    with (tmp_path / "pairs.csv").open("a") as file:
        file.write("a bird,the bird sang\n")
    more_pairs = run(recipe, resume=True).results
    assert (before["retrieval"]["pairs"], more_pairs["retrieval"]["pairs"]) == (2, 3)
    (tmp_path / "pairs.csv").unlink()  # which cannot be measured again
    assert run(recipe, resume=True).results == more_pairs


def test_a_student_that_was_changed_in_its_folder(recipe, tmp_path, tiny_bert):
    shutil.copytree(tiny_bert, tmp_path / "student")
    recipe.student.model = str(tmp_path / "student")

    def weights(output: str) -> dict[str, torch.Tensor]:
        recipe.output = str(tmp_path / output)
        return load_file(run(recipe, resume=True, **again).output / "model.safetensors")

    again: dict[str, int] = {}
    before = weights("out")
    path = tmp_path / "student" / "model.safetensors"
    save_file({name: 1.5 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"data.student \(its content has changed\).*--from-stage 1"):
        weights("out")
    again["from_stage"] = 1
    after = weights("out")
    again.clear()
    fresh = weights("fresh")
    assert all(torch.equal(after[name], fresh[name]) for name in fresh)
    assert not all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_of_before_the_students_content_was_noted_goes_on(tmp_path):
    state = RunState(tmp_path)

    def plan(**fields: str) -> None:
        state.plan([{"name": "all", "fields": {"seed": 1, **fields}}], from_stage=None)

    plan()
    state.stage_folder(0).mkdir(parents=True)  # which has begun
    plan(**{"data.student": "content:a"})
    with pytest.raises(ValueError, match=r"data.texts\[0\] \(was null"):
        plan(**{"data.texts[0]": "a"})


def test_a_kernel_that_only_the_training_needs(recipe, monkeypatch, tmp_path, caplog):
    """As if the run had been trained on another machine, and came to this one for its end."""
    recipe.student.attn_implementation = "flex_attention"
    recipe.stages[0].train = "all"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(RunRules, "flex_backward", lambda *given, **options: None)
        elsewhere.setattr(student, "choose_attention", lambda model, spec: model)
        run(recipe)
    shutil.rmtree(tmp_path / "out")
    run(recipe, resume=True)
    assert (tmp_path / "out" / "modules.json").is_file()
    assert "flex_attention has no backward pass on a CPU" in caplog.text
    with pytest.raises(RecipeError, match="flex_attention has no backward pass on a CPU"):
        run(recipe, resume=True, from_stage=1)


def test_a_teacher_that_went_missing(recipe, after_training, tmp_path):
    after_training(lambda: shutil.rmtree(tmp_path / "teacher"))
    recipe.export_teacher = True
    with pytest.raises((OSError, ValueError), match="teacher"):
        run(recipe)
    results = json.loads((tmp_path / "out-run" / "results.json").read_text())["results"]
    assert [entry["name"] for entry in results["failed"]] == ["teacher large"]
    assert set(results["fidelity"]["spearman"]) == {"24", "8"}  # of the vectors that the store has
    assert "# out" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(tmp_path / "out-run" / "teachers")
    with pytest.raises((OSError, ValueError), match="teacher"):
        run(recipe, resume=True)
    results = json.loads((tmp_path / "out-run" / "results.json").read_text())["results"]
    assert [entry["name"] for entry in results["failed"]] == ["fidelity", "teacher large"]
    assert "must be a folder that exists" in results["failed"][0]["error"]


@pytest.fixture
def broken(monkeypatch):
    """Has a step of every training leave NaN in the weights that it trains."""
    original = SentenceTransformerTrainer.training_step

    def training_step(self, model, *arguments, **options):
        loss = original(self, model, *arguments, **options)
        with torch.no_grad():
            for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
                parameter[:] = float("nan")
        return loss

    monkeypatch.setattr(SentenceTransformerTrainer, "training_step", training_step)


@pytest.mark.usefixtures("broken")
def test_a_student_whose_vectors_are_no_numbers(recipe, sentences, tmp_path, capsys):
    pairs = {"sentence1": sentences[:8], "sentence2": sentences[8:], "score": range(8)}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    both = {"path": str(tmp_path / "pairs.parquet"), "columns": ["sentence1", "sentence2"]}
    recipe.evaluation = Evaluation(
        texts=recipe.evaluation.texts, similarity=both["path"], retrieval=both, tasks=[both["path"]]
    )
    recipe.stages[0].steps = 3
    recipe.export_teacher = True
    write_text(tmp_path / "recipe.yaml", dump_recipe(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml")]) == 2
    said = capsys.readouterr()
    names = ("fidelity", "retrieval", "similarity", "pairs")
    for name in names:
        assert f"Not measured: {name} (The vectors of the model hold NaN or infinity, in " in said.out
    assert "not a number (stage 1, projection): the embeddings of step 2 hold NaN or infinity." in said.out
    assert "not a number (after training): 6 of 6 of the student's vectors hold NaN or infinity." in said.out
    assert "4 parts of the evaluation could not be measured: fidelity, retrieval, similarity, pairs." in said.err
    # It goes on to its end: all is written that can be.
    assert said.out.endswith(f"The model is in {tmp_path}/out.\n")
    assert (tmp_path / "out-teacher" / "modules.json").is_file()
    results = json.loads((tmp_path / "out-run" / "results.json").read_text())["results"]
    assert set(results) == {"dims", "models", "tasks", "failed"}
    assert results["tasks"]["tasks"] == []
    card = ModelCard.load(tmp_path / "out" / "README.md")
    for name in names:
        assert f"- {name}: The vectors of the model hold NaN or infinity, in " in card.text
    assert "nan" not in str(card.data).lower()
    assert main(["report", str(tmp_path / "out-run"), "--no-speed"]) == 0
    page = (tmp_path / "out-run" / "report" / "index.html").read_text()
    for name in names:
        assert f"<strong>{name}</strong>: The vectors of the model hold NaN or infinity, in " in page
    assert "Not a number, after training" in page


@pytest.mark.usefixtures("broken")
def test_vectors_that_are_no_numbers_are_told_without_an_evaluation_too(recipe):
    recipe.evaluation = None
    result = run(recipe)
    assert result.results == {}
    assert [(found["when"], found["name"]) for found in result.findings] == [("after training", "not a number")]
    assert result.findings[0]["seen"] == "16 of 16 of the student's vectors hold NaN or infinity"


def test_no_text_of_the_training_is_in_a_card(recipe, sentences, tmp_path):
    pairs = {"anchor": sentences[:8], "positive": sentences[8:]}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    first = recipe.stages[0]
    also = [{"loss": "MultipleNegativesRankingLoss", "texts": str(tmp_path / "pairs.parquet")}]
    fields = {name: getattr(recipe, name) for name in ("output", "student", "teachers", "texts", "projection")}
    second = {"train": "all", "steps": 1, "batch": 8, "also": also, "arguments": first.arguments}
    run(Recipe(**fields, stages=[first, second], evaluation=recipe.evaluation))
    export(load_student(tmp_path / "out-run" / "stages" / "2-all" / "model"), tmp_path / "again")
    cards = {path.parent.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("README.md")}
    assert {"out", "again", "out-run/stages/1-projection/model", "out-run/stages/2-all/model"} <= set(cards)
    shown = {name: [text for text in sentences if text in card] for name, card in cards.items()}
    assert not any(shown.values()), shown
    for name in ("out", "out-run/stages/2-all/model"):
        assert ModelCard(cards[name]).data["widget"] == [
            {
                "source_sentence": "The weather is lovely today.",
                "sentences": ["It's so sunny outside!", "He drove to the stadium."],
            }
        ]


def test_no_picture_of_the_training_is_published_or_kept(recipe, vision, images, tmp_path):
    features = Features({"image": Image(), "caption": Value("string")})
    captions = [f"square {number}" for number in range(len(images))]
    Dataset.from_dict({"image": images, "caption": captions}, features=features).to_parquet(tmp_path / "images.parquet")
    fields = {name: getattr(recipe, name) for name in ("output", "student", "teachers", "texts", "projection")}
    arguments = {"use_cpu": True, "disable_tqdm": True, "save_steps": 1}
    stages = [
        {"train": train, "name": name, "steps": 2, "batch": 8, "arguments": arguments}
        for train, name in (("projection", "texts"), ("vision", "pictures"), ("vision", "again"))
    ]
    run(Recipe(**fields, images={"path": str(tmp_path / "images.parquet"), "vision": vision}, stages=stages))
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert "out/README.md" in made
    assert [path for path in made if "assets" in path or path.endswith((".st-distill", ".jpg", ".png"))] == []
    assert "example_image" not in (tmp_path / "out" / "README.md").read_text()
