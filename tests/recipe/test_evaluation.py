"""A recipe's evaluation, of which parts fail."""

from __future__ import annotations

import pytest
from datasets import Dataset, Features, Image, Value

from st_distill.recipe import Evaluation, Recipe, evaluate_model
from st_distill.recipe.measuring import measure


@pytest.fixture
def recipe(tmp_path, sentences, images):
    texts = {"first": sentences[:8], "second": sentences[8:], "score": [float(row) for row in range(8)]}
    Dataset.from_dict(texts).to_parquet(tmp_path / "pairs.parquet")
    features = Features({"image": Image(), "caption": Value("string")})
    pictures = Dataset.from_dict({"image": images[:4], "caption": sentences[:4]}, features=features)
    pictures.to_parquet(tmp_path / "images.parquet")
    pairs = str(tmp_path / "pairs.parquet")
    return Recipe(
        output=str(tmp_path / "out"),
        student={"model": "unused"},
        teachers=[{"model": str(tmp_path / "nothing"), "name": "large"}],
        texts=[pairs],
        stages=[{"train": "all", "steps": 1, "batch": 8}],
        evaluation={
            "retrieval": {"path": pairs, "columns": ["first", "second"]},
            "similarity": pairs,
            "images": str(tmp_path / "images.parquet"),
        },
    )


def test_each_part_that_fails_is_told_and_the_others_are_measured(recipe, make_student, monkeypatch, tmp_path, caplog):
    student = make_student()
    monkeypatch.setattr(student, "supports", lambda modality: True)  # which it does not
    results = evaluate_model(student, recipe)
    assert [entry["name"] for entry in results["failed"]] == ["teacher large", "images"]
    assert list(results["similarity"]["scores"]) == list(results["retrieval"]["scores"]) == ["student"]
    assert results["models"]["student"]["parameters"] > 0
    assert "The part 'images' of the evaluation could not be measured" in caplog.text


def test_pictures_and_a_model_of_texts(recipe, make_student):
    recipe.evaluation = Evaluation(images=recipe.evaluation.images, teachers=False)
    (failed,) = evaluate_model(make_student(), recipe)["failed"]
    assert failed["name"] == "images"
    assert "The model takes text and no pictures" in failed["error"]


def test_data_that_went_missing_fail_alone(recipe, make_student, tmp_path):
    evaluation = recipe.evaluation
    evaluation.teachers = False
    (tmp_path / "pairs.parquet").unlink()
    results = measure(make_student(), recipe, evaluation, None)
    assert [entry["name"] for entry in results["failed"]] == ["retrieval", "similarity", "images"]
    assert "pairs.parquet" in results["failed"][0]["error"]
    assert results["dims"] == [32]
    assert "failed" not in measure(make_student(), recipe, Evaluation(teachers=False), None)
