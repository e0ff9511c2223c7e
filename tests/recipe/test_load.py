"""YAML to recipes and back: lines, presets, overrides, and what no recipe should hold."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from datasets import Dataset

from st_distill.errors import RecipeError
from st_distill.recipe.load import dump_recipe, load_recipe, presets, read_document
from st_distill.recipe.schema import Projection, Recipe, Stage, Student, TeacherSpec, Texts
from st_distill.yaml_tree import MAX_VALUES

SMALL = """\
output: out
student: some/student
teachers: {model: some/teacher, weight: 0.5}
texts: texts.parquet
projection: {dims: [32]}
stages:
  - {name: first, train: projection, steps: 10}
  - name: second
    train: all
    epochs: 1
    arguments: {weight_decay: 1e-2}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, overrides=()) -> Recipe:
        content = text if isinstance(text, bytes) else text.encode()
        Path("recipe.yaml").write_bytes(content)
        return load_recipe("recipe.yaml", overrides)

    return load


@pytest.fixture
def value_of(load, tmp_path):
    """A function that reads one YAML value the way recipes do."""

    def value(text: str):
        Path("value.yaml").write_text(f"value: {text}\n")
        return read_document("value.yaml").data["value"]

    return value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("-3", -3),
        ("+7", 7),
        ("4_000", 4000),
        ("010", 10),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("1e", "1e"),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("[a, 1, [b]]", ["a", 1, ["b"]]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("{1: a, true: b}", {"1": "a", "true": "b"}),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_values_are_read_by_the_rules_of_yaml_1_2(value_of, text, expected):
    value = value_of(text)
    assert value == expected
    assert type(value) is type(expected)


def test_a_recipe_is_read(load):
    recipe = load(SMALL)
    assert recipe == Recipe(
        output="out",
        student=Student(model="some/student"),
        teachers=[TeacherSpec(name="teacher", model="some/teacher", weight=0.5)],
        texts=[Texts(path="texts.parquet")],
        projection=Projection(dims=[32]),
        stages=[
            Stage(name="first", train="projection", steps=10),
            Stage(name="second", train="all", epochs=1, arguments={"weight_decay": 0.01}),
        ],
    )
    assert load("\ufeff" + SMALL.replace("\n", "\r\n")) == recipe


@pytest.mark.parametrize("preset", presets())
def test_dumping_and_loading_gives_the_same_recipe(load, preset):
    recipe = load_recipe(preset, ["student.model=some/student"])
    assert load(dump_recipe(recipe)) == recipe


def test_texts_that_look_like_something_else_survive(load):
    recipe = load(SMALL)
    words = [
        "1e-4",
        "true",
        "no",
        "~",
        "",
        "null",
        "2024-01-01",
        "0x1",
        " a ",
        "a: b",
        "# c",
        "é\n",
        "[x]",
        "<<",
        "1_000",
    ]
    recipe.texts[0].columns = words
    recipe.texts[0].prompts = dict.fromkeys(words, "query: ")
    recipe.teachers[0].prompts = {word: word for word in words if word}
    recipe.stages[0].learning_rate = 1e-10
    recipe.seed = 2**32 - 1
    assert load(dump_recipe(recipe)) == recipe


def test_a_recipe_of_python_objects_cannot_be_dumped(load):
    recipe = load(SMALL)
    recipe.texts = [Texts(data=Dataset.from_dict({"text": ["a"]}))]
    with pytest.raises(TypeError, match=r"cannot be written as YAML. Got a Dataset. Save the data"):
        dump_recipe(recipe)
    recipe.texts = [Texts(data=["in the recipe itself"])]
    assert load(dump_recipe(recipe)) == recipe


# --- what is wrong -----------------------------------------------------------------------------------------------------

DEEP = "output: " + "[" * 50 + "]" * 50
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh")
)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "is empty; a recipe has at least output"),
        ("# nothing\n", None, "is empty"),
        ("- a\n", 1, "must be a mapping of fields"),
        ("just words\n", 1, "must be a mapping of fields"),
        ("output: out\nseed: 1\noutput: b\n", 3, "output: is there twice, first in line 1; remove one"),
        ("stages:\n  - train: all\n    train: vision\n", 3, "stages[0].train: is there twice, first in line 2"),
        ("output: out\n\tseed: 1\n", 2, "is not valid YAML: found character '\\t' that cannot start any token"),
        ("output: out\nstages: [\n", 3, "is not valid YAML: expected the node content"),
        ("output: 'out\n", 2, "is not valid YAML: found unexpected end of stream"),
        ("output: a\n---\noutput: b\n", 2, "is not valid YAML: but found another document"),
        ("output: *nothing\n", 1, "is not valid YAML: found undefined alias 'nothing'"),
        ("seed: 1\noutput: !!python/object/apply:os.system ['true']\n", 2, "output: the tag tag:yaml.org,2002:python"),
        ("output: !!timestamp 2024-01-01\n", 1, "is not allowed here; a recipe has plain texts"),
        ("seed: 1\noutput: !!int abc\n", 2, "output: the tag tag:yaml.org,2002:int is not allowed here"),
        (f"output: out\nseed: {'1' * 5000}\n", 2, "seed: has too many digits, 5,000 characters; write a smaller number"),
        ("output: out\n? [a, b]\n: c\n", 2, "the name of a field must be text"),
        ("output: out\nseed: \x07\n", 2, "has a character that YAML does not allow, '\\x07'"),
        (b"output: out\nseed: \xff\n", 2, "is not UTF-8 text; save the file as UTF-8"),
        ("# " + "x" * 1_000_000, None, "is larger than 1 MB"),
        (DEEP, 1, "is nested more than 32 deep"),
        (BOMB, None, f"has more than {MAX_VALUES:,} values, by its aliases"),
        ("output: &a [*a]\n", 1, "output[0]: holds itself, by its aliases; write the values out"),
        ("a: &a 3\noutput:\n  <<: *a\n", 3, "output: '<<' must name a mapping"),
        ("preset: 3\n", 1, "preset: unknown preset '3'; it may be default, jasper, jina-2-hard-negatives or jina-2-pairs"),
        ("preset: jasper\nstages: {visoin: null}\n", 2, "stages.visoin: the preset has no stage 'visoin' to take out; did you"),
        ("preset: jasper\nstages: {visoin: {steps: 1}}\n", 2, "stages[4]: 'train' is missing"),
        ("preset: jasper\nstages: [3]\n", 2, "stages[4]: expected a mapping with name, train"),
        ("preset: jasper\nstages: 3\n", 2, "stages: expected a list, got the number 3"),
        ("preset: jasper\nteachers:\n  - wieght: 3\n", 3, "teachers[0].wieght: unknown field; did you mean 'weight'?"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_line(load, text, line, message):
    with pytest.raises(RecipeError) as caught:
        load(text)
    (problem,) = caught.value.problems
    assert message in str(problem)
    assert (problem.line, problem.source) == (line, "recipe.yaml") or line is None


def test_all_mistakes_come_at_once_in_order_of_lines(load):
    with pytest.raises(RecipeError) as caught:
        load(SMALL.replace("steps: 10", "steps: x").replace("epochs: 1", "epochs: 0").replace("dims: [32]", "dims: []"))
    assert [problem.line for problem in caught.value.problems] == [5, 7, 10]


def test_anchors_and_merge_keys(load):
    text = SMALL.replace("{weight_decay: 1e-2}", "&shared {weight_decay: 0.1, adam_beta2: 0.99}") + (
        "  - name: third\n    train: all\n    steps: 3\n    arguments: {<<: *shared, weight_decay: 0.2}\n"
    )
    assert load(text).stages[2].arguments == {"adam_beta2": 0.99, "weight_decay": 0.2}


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="a file of Linux")
def test_a_file_that_cannot_be_read():
    with pytest.raises(RecipeError, match="^/proc/self/mem: cannot be read: Input/output error$"):
        load_recipe("/proc/self/mem")


def test_a_file_that_is_not_there(load, tmp_path):
    load(SMALL)
    with pytest.raises(RecipeError, match=r"the recipe 'recipe.yml' is no file; did you mean 'recipe.yaml'\?"):
        load_recipe("recipe.yml")
    Path("link.yaml").symlink_to("nothing.yaml")
    with pytest.raises(RecipeError, match=r"the recipe 'link.yaml' is a link to what is not there"):
        load_recipe("link.yaml")
    os.mkfifo("pipe.yaml")
    with pytest.raises(
        RecipeError, match=r"the recipe 'pipe.yaml' is a pipe or a device; did you mean 'recipe.yaml'\?"
    ):
        load_recipe("pipe.yaml")
    with pytest.raises(RecipeError, match=r"the recipe 'jaspre' is no file; did you mean 'jasper'\?"):
        load_recipe("jaspre")
    with pytest.raises(
        RecipeError, match=r"is a folder; give a YAML file or the name of a preset \(default, jasper, jina-2"
    ):
        load_recipe(tmp_path)


# --- presets -----------------------------------------------------------------------------------------------------------


def test_jasper_has_the_numbers_of_the_paper():
    recipe = load_recipe("jasper")
    rows = [(stage.train, stage.batch, stage.learning_rate, stage.steps) for stage in recipe.stages]
    assert rows == [
        ("projection", 128, 1e-4, 4000),
        ({"last_layers": 3}, 128, 8e-5, 7000),
        ("all", 128, 7e-5, 2200),
        ("vision", 90, 1e-4, 3500),
    ]
    for stage in recipe.stages:
        assert stage.losses == {"cosine": 10.0, "similarity": 200.0, "triplet": 20.0}
        assert stage.margin == 0.015
        assert stage.arguments == {"bf16": True, "optim": "adamw_torch"}
    assert [teacher.model for teacher in recipe.teachers] == ["nvidia/NV-Embed-v2", "dunzhang/stella_en_1.5B_v5"]
    assert recipe.student.model == "dunzhang/stella_en_1.5B_v5"
    assert recipe.student.max_seq_length == 512
    assert recipe.images is not None
    assert recipe.images.vision == "google/siglip-so400m-patch14-384"
    assert recipe.projection.heads == "independent"
    assert recipe.projection.teacher_head


def test_the_default_preset_has_all_but_what_is_the_users(load):
    recipe = load("preset: default\nstudent: some/student\nteachers: [some/teacher]\ntexts: texts.parquet\n")
    (stage,) = recipe.stages
    assert stage.weights(recipe.projection) == {"cosine": 10.0}
    assert stage.heads_of_cosine(recipe.projection) == recipe.projection.dims == [384, 256, 128, 64, 32]
    assert recipe.projection.rotation == "learned"
    assert recipe.student.layers is None


def test_a_preset_is_laid_under_a_recipe(load):
    recipe = load("""\
preset: jasper
output: out/mine
texts: texts.parquet
student: {max_seq_length: 256, revision: null}
teachers: [some/teacher]
projection: {dims: [64]}
stages:
  - {name: dimensions, train: [pooler], dims: [64], arguments: {bf16: null, fp16: true}}
  - {name: vision, dims: [64], cosine_dims: [64]}
  - {name: more, train: all, steps: 5}
""")
    base = load_recipe("jasper")
    assert recipe.output == "out/mine"
    assert recipe.student == Student(model=base.student.model, max_seq_length=256)
    assert [teacher.model for teacher in recipe.teachers] == ["some/teacher"]
    assert [stage.name for stage in recipe.stages] == ["projection", "last-layers", "dimensions", "vision", "more"]
    assert recipe.stages[0] == base.stages[0]
    assert recipe.stages[2].train == ["pooler"]
    assert recipe.stages[2].learning_rate == 7e-5
    assert recipe.stages[2].arguments == {"fp16": True, "optim": "adamw_torch"}
    assert recipe.stages[3].steps == 3500


def test_steps_and_epochs_replace_each_other(load):
    text = "preset: default\nstudent: some/student\nteachers: [some/teacher]\ntexts: texts.parquet\n"
    for changed in (load(text + "stages: {all: {steps: 3}}\n"), load(text, ["stages.all.steps=3"])):
        assert (changed.stages[0].steps, changed.stages[0].epochs) == (3, None)
    assert load("preset: jasper\nstages: {projection: {epochs: 2}}\n").stages[0].steps is None
    both = load(text + "stages: {all: {steps: 3, epochs: 2}}\n").stages[0]  # which the check refuses
    assert (both.steps, both.epochs) == (3, 2)


def test_stages_of_a_preset_can_be_named_and_taken_out(load):
    recipe = load(
        "preset: jasper\nstages: {vision: null, last-layers: {train: {last_layers: 2}}, end: {train: all, steps: 1}}"
    )
    assert [stage.name for stage in recipe.stages] == ["projection", "last-layers", "dimensions", "end"]
    assert recipe.stages[1].train == {"last_layers": 2}


# --- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("output=elsewhere", lambda r: r.output == "elsewhere"),
        ("stages.0.steps=3", lambda r: r.stages[0].steps == 3),
        ("stages.second.learning_rate=1e-3", lambda r: r.stages[1].learning_rate == 1e-3),
        ("stages.second.arguments.bf16=true", lambda r: r.stages[1].arguments == {"weight_decay": 0.01, "bf16": True}),
        ("stages.second.arguments.weight_decay=null", lambda r: r.stages[1].arguments == {}),
        ("stages.first=null", lambda r: [stage.name for stage in r.stages] == ["second"]),
        ("teachers.teacher.weight=2", lambda r: r.teachers[0].weight == 2.0),
        ("teachers.0.prompts={query: 'a=b'}", lambda r: r.teachers[0].prompts == {"query": "a=b"}),
        ("texts.0.limit=5", lambda r: r.texts == [Texts(path="texts.parquet", limit=5)]),
        ("student.layers=[0, 1]", lambda r: r.student == Student(model="some/student", layers=[0, 1])),
        ("evaluation.texts.path=held-out.txt", lambda r: r.evaluation.texts.path == "held-out.txt"),
        ("evaluation.texts=held-out.txt", lambda r: r.evaluation.texts.path == "held-out.txt"),
        ("texts=other.csv", lambda r: r.texts == [Texts(path="other.csv")]),
        ("student.revision='1e5'", lambda r: r.student.revision == "1e5"),
        ("seed= 7 ", lambda r: r.seed == 7),
    ],
)  # fmt: skip
def test_overrides(load, override, read):
    assert read(load(SMALL, [override]))


def test_overrides_follow_one_another(load):
    recipe = load(SMALL, ["stages.first=null", "stages.0.name=only", "stages.only.epochs=3"])
    assert [(stage.name, stage.epochs) for stage in recipe.stages] == [("only", 3.0)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: is not of the form field.field=value"),
        ("=3", "--set =3: is not of the form"),
        ("a..b=3", "--set a..b=3: is not of the form"),
        ("stages.9.steps=3", "'stages' has no entry 9; it has 2, numbered from 0"),
        (f"stages.{'9' * 5000}.steps=3", "'stages' has no entry 99999999999999999999…; it has 2, numbered from 0"),
        ("stages.frist.steps=3", "'stages' has no entry 'frist'; did you mean 'first'?"),
        ("texts.first.limit=3", "'texts' is a list, so a number must follow it, such as texts.0, got 'first'"),
        ("seed.x=3", "'seed' has no fields, it is 42"),
        ("seed=[1", "the value is not valid YAML"),
        ("stages.first.stepps=3", "--set stages.first.stepps=3: stages[0].stepps: unknown field; did you mean 'steps'?"),
        ("stages.first.steps='3'", "stages[0].steps: expected a whole number, got the text '3'"),
        ("preset=jasper", "preset: unknown field"),
        ("output=", "--set output=: leaves 'output' out, which a recipe must have; give it a value"),
        (f"seed=-{'1' * 5000}", "the value has too many digits, 5,001 characters; write a smaller number"),
    ],
)  # fmt: skip
def test_overrides_that_do_not_fit(load, override, message):
    with pytest.raises(RecipeError) as caught:
        load(SMALL + "seed: 42\n", [override])
    (problem,) = caught.value.problems
    assert message in str(problem)
    assert problem.line is None


def test_all_overrides_that_do_not_fit_come_at_once(load):
    with pytest.raises(RecipeError, match=r"(?s)--set x: .*\n--set stages\.7=1: "):
        load(SMALL, ["x", "stages.7=1"])


def test_a_name_that_two_entries_have(load):
    with pytest.raises(RecipeError, match="has several entries named 'first'; give the number, from 0"):
        load(SMALL.replace("second", "first"), ["stages.first.steps=1"])
