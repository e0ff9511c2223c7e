"""Recipes made in Python: conversion, and every mistake of a part at once."""
# ruff: noqa: E501 - a row of a table is one case

from __future__ import annotations

import copy
import pickle
from dataclasses import fields

import pytest
from datasets import Dataset

from st_distill.errors import MissingExtraError, Problem, RecipeError
from st_distill.nearest import nearest
from st_distill.recipe import schema
from st_distill.recipe.conversion import as_mapping, build
from st_distill.recipe.reference import reference
from st_distill.recipe.schema import (
    Evaluation,
    Images,
    ImageSource,
    Objective,
    Projection,
    Recipe,
    Stage,
    Student,
    TeacherSpec,
    Texts,
)
from st_distill.words import show_path

PARTS = (Recipe, Student, TeacherSpec, Texts, ImageSource, Images, Projection, Stage, Objective, Evaluation)


@pytest.fixture
def mapping() -> dict:
    return {
        "output": "out/model",
        "student": {"model": "some/student", "layers": [0, 2]},
        "teachers": [{"model": "some/teacher", "prompts": {"query": "q: "}}, {"vectors": "bought/vectors.v2.parquet"}],
        "texts": [{"path": "a.parquet", "roles": {"text": "query"}}],
        "images": {"path": "pictures", "vision": {"model_type": "vit"}},
        "projection": {"dims": [64, 32]},
        "stages": [
            {"train": {"last_layers": 3}, "steps": 5, "also": [{"loss": "CoSENTLoss", "texts": "pairs.csv"}]},
            {"train": "vision", "epochs": 1},
        ],
        "evaluation": {"texts": "held-out.parquet"},
    }


def test_mappings_become_parts(mapping):
    recipe = Recipe(**mapping)
    assert recipe == Recipe(
        output="out/model",
        student=Student(model="some/student", layers=(0, 2)),
        teachers=[
            TeacherSpec(name="teacher", model="some/teacher", prompts={"query": "q: "}),
            TeacherSpec(name="vectors.v2", vectors="bought/vectors.v2.parquet"),
        ],
        texts=Texts(path="a.parquet", roles={"text": "query"}),
        images=Images(path="pictures", vision={"model_type": "vit"}),
        projection=Projection(dims=[64, 32]),
        stages=[
            Stage(
                name="last-3-layers",
                train={"last_layers": 3},
                steps=5,
                also=[Objective(loss="CoSENTLoss", texts=Texts(path="pairs.csv"))],
            ),
            Stage(name="vision", train="vision", epochs=1.0),
        ],
        evaluation=Evaluation(texts="held-out.parquet"),
    )
    assert recipe.work_folder.as_posix() == "out/model-run"
    assert isinstance(recipe.stages[1].epochs, float)


def test_plain_data_and_back(mapping):
    recipe = Recipe(**mapping)
    plain = as_mapping(recipe)
    assert Recipe(**plain) == recipe
    assert plain["projection"] == {"dims": [64, 32]}
    assert copy.deepcopy(recipe) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_a_part_is_kept_as_it_is_and_defaults_are_not_shared(mapping):
    stage = Stage(train="all", steps=1)
    assert Recipe(**{**mapping, "stages": [stage]}).stages[0] is stage
    stage.arguments["weight_decay"] = 1.0
    assert Stage(train="all", steps=1).arguments == {}


def test_names_alone_are_short_for_parts(tmp_path):
    recipe = Recipe(
        output=tmp_path,
        student="some/student",
        teachers="some/teacher",
        texts=tmp_path / "a.parquet",
        projection={"dims": [8]},
        stages=[{"train": "all", "steps": 1}],
    )
    assert (recipe.student.model, recipe.teachers[0].model) == ("some/student", "some/teacher")
    assert recipe.texts == [Texts(path=str(tmp_path / "a.parquet"))]
    assert recipe.output == str(tmp_path)


def test_data_in_python():
    dataset = Dataset.from_dict({"text": ["a"]})
    assert Evaluation(texts=dataset).texts.data is dataset
    assert Texts(data=["a", "b"]).data == ["a", "b"]
    with pytest.raises(RecipeError, match=r"Texts\.data\[1\]: expected text, got the number 3"):
        Texts(data=["a", 3])
    with pytest.raises(RecipeError, match=r"TeacherSpec\.teacher: is an object given in Python, got the text 'x'"):
        TeacherSpec(teacher="x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage(train="all", steps="3"), r"Stage\.steps: expected a whole number, got the text '3'; write it without"),
        (lambda: Stage(train="all", steps=True), r"Stage\.steps: expected a whole number, got true"),
        (lambda: Stage(train="all", losses={"cosine": "1e-4"}), r"Stage\.losses\.cosine: expected a number, got the text '1e-4'"),
        (lambda: Stage(train="al"), r"Stage\.train: unknown value 'al'; did you mean 'all'\?"),
        (lambda: Stage(train=3), r"Stage\.train: expected text, a mapping or a list of texts, got the number 3"),
        (lambda: Stage(train={}), r"must not be empty; write {last_layers: 3}"),
        (lambda: Stage(train="last_layers"), r"says not how many layers; write {last_layers: 3}"),
        (lambda: Stage(train=[]), r"Stage\.train: must not be empty"),
        (lambda: Stage(train="all", name="../x"), r"Stage\.name: names a folder"),
        (lambda: Stage(train="all", margin=float("inf")), r"Stage\.margin: expected a number, got the number inf"),
        (lambda: Projection(dims=[]), r"Projection\.dims: must not be empty"),
        (lambda: Projection(dims=["32"]), r"Projection\.dims\[0\]: expected a whole number, got the text '32'"),
        (lambda: Projection(dims=[8], heads="nestd"), r"Projection\.heads: unknown value 'nestd'; did you mean 'nested'\?"),
        (lambda: Projection(dims=[8], rotation=None), r"Projection\.rotation: expected none, random, principal or learned, got nothing"),
        (lambda: Student(model=""), r"Student\.model: must not be empty"),
        (lambda: Student(model="x", layers=[1, 0]), r"Student\.layers\[1\]: must be in ascending order, got 0 after 1"),
        (lambda: Student(model="x", layers=[-1]), r"Student\.layers\[0\]: must be at least 0, got -1"),
        (lambda: Texts(columns="text"), r"Texts\.columns: expected a list of texts, got the text 'text'; write \[text\]"),
        (lambda: Texts(roles=["query"]), r"Texts\.roles: expected a mapping, got a list"),
        (lambda: TeacherSpec(model="x", weight=0), r"TeacherSpec\.weight: must be above 0, got 0"),
        (lambda: TeacherSpec(model="x", dtype="float64"), r"TeacherSpec\.dtype: unknown value 'float64'; did you mean 'float16'"),
        (lambda: TeacherSpec(model="x", prompts={1: "a"}), r"TeacherSpec\.prompts\.1: a name must be text, got the number 1"),
        (lambda: Objective(loss="X", texts=3), r"Objective\.texts\[0\]: expected a mapping with path, dataset, data, config, \.\.\."),
        (lambda: Evaluation(texts={"pth": "x"}), r"Evaluation\.texts\.pth: unknown field; did you mean 'path'\?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_mistake_of_a_part_comes_at_once(mapping):
    mapping["stages"][0] |= {"steps": 0, "batch": "8"}
    mapping["projection"]["dims"] = [4, 4]
    del mapping["student"]["model"]
    with pytest.raises(RecipeError) as caught:
        Recipe(**mapping)
    assert [problem.path for problem in caught.value.problems] == [
        "Recipe.student",
        "Recipe.projection.dims[1]",
        "Recipe.stages[0].steps",
        "Recipe.stages[0].batch",
    ]
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
    assert str(caught.value).count("\n") == 3


def test_an_unknown_argument_says_which_one_was_meant():
    with pytest.raises(RecipeError, match=r"Stage\.lerning_rate: unknown field; did you mean 'learning_rate'\?"):
        Stage(train="all", lerning_rate=1)


def test_build_leaves_gaps_and_goes_on():
    found = []
    recipe = build(Recipe, {"output": 3, "student": {"modl": "x"}, "stages": [{"train": "all", "steps": 2}, 7]}, found)
    assert recipe.output is None
    assert recipe.student.model is None
    assert [show_path(path) for path, _ in found] == ["output", "student.modl", "stages[1]"]
    assert build(Recipe, "x", []).stages is None


def test_training_arguments():
    stage = Stage(train="all", steps=10, arguments={"weight_decay": 0.1, "bf16": True})
    assert stage.training_arguments() == {
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 128,
        "max_steps": 10,
        "weight_decay": 0.1,
        "bf16": True,
    }
    stage = Stage(train="all", epochs=2, learning_rate=3, arguments={"per_device_train_batch_size": 4})
    assert stage.training_arguments() == {
        "learning_rate": 3.0,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2.0,
    }
    with pytest.raises(
        ValueError, match=r"Stage 'all' gives both 'batch' and the argument 'per_device_train_batch_size'"
    ):
        Stage(train="all", batch=2, arguments={"per_device_train_batch_size": 4}).training_arguments()


def test_weights_of_zero_are_left_out():
    assert Stage(train="all", losses={"cosine": 1, "triplet": 0}).weights(None) == {"cosine": 1.0}


def test_losses_by_default_are_the_cosine_at_every_dimension_where_the_student_has_the_teachers_axes():
    paper = {"cosine": 10.0, "similarity": 200.0, "triplet": 20.0}
    nested, headed = Projection(dims=[64, 32]), Projection(dims=[64, 32], teacher_head=True)
    text, vision = Stage(train="all", steps=1), Stage(train="vision", steps=1)
    short = Stage(train="all", steps=1, dims=[32])
    assert (text.weights(nested), text.heads_of_cosine(nested)) == ({"cosine": 10.0}, [64, 32])
    assert (short.weights(nested), short.heads_of_cosine(nested)) == ({"cosine": 10.0}, [32])
    bits = Stage(train="all", steps=1, bits=True)
    assert (bits.weights(nested), bits.weights(headed)) == ({"cosine": 10.0, "similarity": 20.0}, paper)
    assert (text.weights(headed), text.heads_of_cosine(headed)) == (paper, "full")
    assert (vision.weights(headed), vision.heads_of_cosine(headed)) == (paper, [64, 32])
    assert Stage(train="all", steps=1, cosine_dims="full").heads_of_cosine(nested) == "full"
    assert not Stage(train="all", steps=1, losses={}).distils


@pytest.mark.parametrize("part", PARTS)
def test_every_field_is_described_once(part):
    for option in fields(part):
        help_text = option.metadata["help"]
        assert help_text[0].islower() or help_text.startswith("{")
        assert not help_text.endswith(".")
        assert option.kw_only


def test_the_reference_has_every_field():
    text = reference()
    for part in (Recipe, Student, TeacherSpec, Texts, Images, Projection, Stage, Objective, Evaluation):
        assert f"### {part.__name__}\n" in text
        for option in fields(part):
            assert f"| `{option.name}` | " in text
    assert "| `start` | `ridge`, `random`, `identity` |  |" in text
    assert "| `model` | text | required | name or folder of a sentence-transformers or transformers model |" in text
    assert "0x" not in text


def test_nearest():
    assert nearest("Lerning_Rate", ["learning_rate", "losses"]) == "learning_rate"
    assert nearest("xyz", ["learning_rate"]) is None


def test_paths_are_shown_as_people_write_them():
    assert show_path(("stages", 1, "losses", "cosine")) == "stages[1].losses.cosine"
    assert show_path(()) == ""


def test_problems_are_shown_with_their_place():
    assert str(Problem(message="is wrong", path="a.b", line=3, source="r.yaml")) == "r.yaml:3: a.b: is wrong"
    assert str(Problem(message="is wrong", path="a.b", line=3)) == "line 3: a.b: is wrong"
    assert str(Problem(message="is odd", level="warning")) == "warning: is odd"


def test_a_missing_extra_says_how_to_install_it():
    error = MissingExtraError("onnxruntime", extra="onnx", purpose="Exporting to ONNX")
    assert str(error) == (
        "Exporting to ONNX needs onnxruntime, which is not installed. Run: pip install 'st-distill[onnx]'"
    )
    assert isinstance(error, ImportError)
    assert error.name == "onnxruntime"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_public_names_exist():
    assert all(hasattr(schema, name) for name in schema.__all__)


def test_dimensions_weigh_as_themselves_in_the_cosine_term_but_for_vision():
    assert Stage(train="all").weights_of_cosine() == "proportional"
    assert Stage(train="all", cosine_weights="equal").weights_of_cosine() == "equal"
    assert Stage(train="vision").weights_of_cosine() == "equal"
