"""How a projection starts where the recipe does not say."""

from __future__ import annotations

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding

from st_distill.recipe.schema import Projection, Stage, Student, TeacherSpec
from st_distill.recipe.start import chosen_heads, chosen_start


@pytest.fixture
def models(tmp_path, make_student):
    """Folders of models: of four layers, 32 wide, one that ends in its pooled vector, one in a map; and a table of words."""
    make_student(Normalize()).save(str(tmp_path / "pooled"))
    mapped = make_student(Dense(32, 32))
    mapped.save(str(tmp_path / "mapped"))
    words = StaticEmbedding(mapped.tokenizer, embedding_dim=32)
    SentenceTransformer(modules=[words], device="cpu").save(str(tmp_path / "table"))
    return tmp_path


@pytest.mark.parametrize(
    ("layers", "start"),
    [
        (None, "identity"),
        ([0, 2, 3], "identity"),
        ([3], "identity"),
        ([0, 1, 2], "ridge"),
    ],
    ids=["all", "some", "the last", "without the last"],
)
def test_a_student_of_its_teachers_layers(models, layers, start):
    student = Student(model=str(models / "pooled"), layers=layers)
    teachers = [TeacherSpec(model=f"{models}/./pooled")]
    assert chosen_start(Projection(dims=[32, 8]), student, teachers) == start


def test_what_the_recipe_says_stands(models):
    student, teachers = Student(model=str(models / "pooled")), [TeacherSpec(model=str(models / "pooled"))]
    for start in ("ridge", "random", "identity"):
        assert chosen_start(Projection(dims=[32], start=start), student, teachers) == start


@pytest.mark.parametrize(
    ("student", "teachers", "projection"),
    [
        ({}, [{"model": "mapped"}], {}),
        ({"model": "mapped"}, [{"model": "mapped"}], {}),
        ({"model": "table"}, [{"model": "table"}], {}),
        ({}, [{"model": "pooled"}, {"model": "mapped"}], {}),
        ({}, [], {}),
        ({}, [{"vectors": "vectors.npy"}], {}),
        ({}, [{"model": "pooled", "truncate_dim": 16}], {}),
        ({}, [{"model": "pooled", "revision": "main"}], {}),
        ({}, [{"model": "pooled"}], {"heads": "none"}),
        ({}, [{"model": "pooled"}], {"dims": [48]}),
    ],
    ids=[
        "another model",
        "a map behind",
        "a table of words",
        "two teachers",
        "no teacher",
        "vectors",
        "a part of the teacher",
        "another revision",
        "no heads",
        "wider than the vectors",
    ],
)
def test_any_other_student_starts_by_regression(models, student, teachers, projection):
    def placed(fields):
        return {key: str(models / value) if key == "model" else value for key, value in fields.items()}

    teachers = [TeacherSpec(**placed(teacher)) for teacher in teachers]
    spec = Projection(**{"dims": [32, 8], **projection})
    assert chosen_start(spec, Student(**placed({"model": "pooled", **student})), teachers) == "ridge"


def test_a_table_that_ridge_starts_and_every_stage_trains_has_no_heads():
    whole, parts = [Stage(train="all")], [Stage(train="projection"), Stage(train="all")]
    spec = Projection(dims=[8])
    assert chosen_heads(spec, whole, "ridge", is_static=True) == "none"
    assert chosen_heads(spec, whole, "ridge", is_static=False) == "nested"
    assert chosen_heads(spec, whole, "random", is_static=True) == "nested"
    assert chosen_heads(spec, parts, "ridge", is_static=True) == "nested"
    assert chosen_heads(Projection(dims=[8], teacher_head=True), whole, "ridge", is_static=True) == "nested"
    assert chosen_heads(Projection(dims=[8], heads="independent"), whole, "ridge", is_static=True) == "independent"
