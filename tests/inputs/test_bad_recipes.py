"""Recipes as nobody should write them."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from st_distill.cli import main
from st_distill.credentials import holds_credentials, without_credentials
from st_distill.errors import RecipeError
from st_distill.recipe import load_recipe, run
from st_distill.recipe.check import check
from st_distill.recipe.load import dump_recipe, presets
from st_distill.yaml_tree import MAX_BYTES

GOOD = {
    "output": "out/small",
    "student": {"model": "some/model", "layers": [0, 2, 5], "max_seq_length": 64},
    "teachers": [{"model": "other/model", "weight": 0.5, "prompts": {"query": "q: "}}, {"vectors": "vectors.npy"}],
    "texts": [{"path": "texts.parquet", "columns": ["a"], "roles": {"a": "query"}, "limit": 5}],
    "images": {"path": "pictures", "vision": {"model_type": "siglip_vision_model"}},
    "projection": {"dims": [64, 32], "start": "ridge"},
    "stages": [
        {"train": {"last_layers": 2}, "steps": 5, "losses": {"cosine": 1.0}, "arguments": {"bf16": True}},
        {"name": "end", "train": ["encoder"], "epochs": 0.5, "lora": {"r": 4}},
    ],
    "evaluation": {"texts": "held-out.txt"},
}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["5", "1e-4", "yes", "all", "full", "../../etc/passwd", "\0", "\ud800", "a" * 300, "(", "a{99999999999}"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


#: Nine lists, each of the one before it ten times: a billion values.
BOMB = "l0: &l0 [x]\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 10))


#: Lists in lists, 29 deep each, in the innermost of which is the one before.
DEEP = "l0: &l0 [x]\n" + "".join(f"l{n}: &l{n} {'[' * 29}*l{n - 1}{']' * 29}\n" for n in range(1, 20))


def places(value, path=()):
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*path, key))


PLACES = [path for path in places(GOOD) if path]


def changed(path, value):
    recipe = json.loads(json.dumps(GOOD))
    target = recipe
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return recipe


@pytest.fixture
def read(tmp_path, outcome):
    """A function that reads a recipe of this content, and says what came of it."""

    def of(content: bytes | str) -> str:
        path = tmp_path / "r.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return outcome(lambda: load_recipe(path))

    return of


def test_the_recipe_that_is_changed_is_good(read):
    assert read(yaml.safe_dump(GOOD)) == "success"


@given(st.sampled_from(PLACES), values)
def test_any_value_at_any_place(tmp_path, read, path, value):
    # JSON is YAML, and has an escape for every character.
    said = read(json.dumps(changed(path, value)))
    if said == "success":
        recipe = load_recipe(tmp_path / "r.yaml")
        (tmp_path / "again.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        assert load_recipe(tmp_path / "again.yaml") == recipe


@given(st.sampled_from([path for path in PLACES if isinstance(path[-1], str)]), st.text(min_size=1, max_size=12))
def test_an_unknown_name_of_a_field(read, path, name):
    recipe = json.loads(json.dumps(GOOD))
    target = recipe
    for key in path[:-1]:
        target = target[key]
    target[name] = target.pop(path[-1])
    read(json.dumps(recipe))


@given(st.binary(max_size=200))
def test_any_bytes(read, content):
    read(content)


@given(st.text(alphabet="[]{}:-,&*!|>'\"#%@`?~<= \n\tabc019.", max_size=120))
def test_any_yaml(read, content):
    read(content)


@given(st.integers(0, len(yaml.safe_dump(GOOD)) - 1), st.binary(min_size=1, max_size=3))
def test_a_recipe_with_bytes_changed(read, place, content):
    good = yaml.safe_dump(GOOD).encode()
    read(good[:place] + content + good[place + len(content) :])


@given(st.sampled_from(PLACES), values)
def test_the_check_of_any_value(tmp_path, outcome, path, value):
    (tmp_path / "r.yaml").write_text(json.dumps(changed(path, value)))
    outcome(lambda: check(tmp_path / "r.yaml"))


@given(st.text(max_size=30), values)
def test_any_override(outcome, field, value):
    outcome(lambda: load_recipe("jasper", [f"{field}={json.dumps(value)}"]))
    outcome(lambda: load_recipe("jasper", [field]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "values"),
        ("output: &a\n  b: *a\n", "holds itself"),
        ("output: &a [*a]\n", "holds itself"),
        ("output: *nothing\n", "undefined alias"),
        ("output: !!python/object/apply:os.system ['touch here']\n", "tag"),
        ("output: !!python/name:os.system\n", "tag"),
        ("output: !!binary aGk=\n", "tag"),
        ("output: !!set {a, b}\n", "tag"),
        ("? [a, b]\n: c\n", "name of a field must be text"),
        ("[" * 5000, "nested more than 32 deep"),
        ("- " * 5000, "nested more than 32 deep"),
        ("{" * 5000, "nested more than 32 deep"),
        ("output: " + "9" * 5000, "output"),
        ("output: a\noutput: b\n", "is there twice"),
        ("---\noutput: a\n---\noutput: b\n", "single document"),
        ("output: \"\0\"", "character that YAML does not allow"),
        ("\ufeff", "is empty"),
        ("# nothing\n", "is empty"),
        ("just words", "must be a mapping"),
        ("- a\n- b\n", "must be a mapping"),
        ("output: 'unclosed\n", "not valid YAML"),
        ("<<: 5\n", "must name a mapping"),
        ("preset: nothing\n", "unknown preset"),
        ("preset: [jasper]\n", "unknown preset"),
        ("preset: jasper\nstages: 5\n", "stages"),
        ("preset: jasper\nstages: {nothing: null}\n", "no stage 'nothing'"),
        ("x" * (MAX_BYTES + 1), "larger than 1 MB"),
        ("a: 1\n" * 100, "is there twice"),
        ("output: [" + "a," * 490_000 + "]", "has more than 20,000 values"),
        ("".join(f"a{number}: 1\n" for number in range(20_001)), "has more than 20,000 values"),
        (DEEP, "r.yaml:2: "),
        (DEEP, "is nested more than 32 deep, by its aliases"),
        ('output: out\nseed: "\\UFFFFFFFF"', "r.yaml:2: is not valid YAML: the escape of a character"),
        ('output: out\nseed: "\\U00110000"', "r.yaml:2: is not valid YAML: the escape of a character"),
        (f"%YAML 1{'1' * 5000}.1\n---\noutput: out\n", "r.yaml:1: is not valid YAML"),
    ],
)  # fmt: skip
def test_attacks_and_mistakes(content, message, read, tmp_path):
    assert message in read(content)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("field", ["student.trust_remote_code", "teachers.0.trust_remote_code"])
@pytest.mark.parametrize("value", ["yes", '"true"', "1", "on", "[true]"])
def test_code_runs_by_the_word_true_alone(field, value):
    with pytest.raises(RecipeError, match="trust_remote_code: expected true or false"):
        load_recipe("jasper", [f"{field}={value}"])


@pytest.mark.parametrize(
    ("lines", "path", "line"),
    [
        ("student: {model: a/b, trust_remote_code: true}", "student", 2),
        ("student:\n  model: a/b\n  trust_remote_code: TRUE", "student", 4),
        ("student: &one {model: a/b, trust_remote_code: true}\nteachers: [*one]", "teachers.0", 2),
        ("teachers: {model: a/b, <<: {trust_remote_code: true}}", "teachers.0", 2),
    ],
)
def test_a_file_lets_no_code_run(lines, path, line, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"preset: jasper\n{lines}\n")
    given = f"{path}.trust_remote_code=true"
    with pytest.raises(RecipeError, match=re.escape(f"if you trust the model, give --set {given}")) as refused:
        load_recipe(tmp_path / "recipe.yaml")
    assert refused.value.problems[-1].line == line
    (tmp_path / "recipe.yaml").write_text("preset: jasper\nstudent: a/b\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", [given])
    assert (recipe.student if path == "student" else recipe.teachers[0]).trust_remote_code


@pytest.mark.parametrize("preset", presets())
def test_no_preset_runs_code(preset):
    recipe = load_recipe(preset, ["student.model=some/student"])
    assert not recipe.student.trust_remote_code
    assert not any(teacher.trust_remote_code for teacher in recipe.teachers)


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "..", ".hidden", "a\0b", "a" * 200, ""])
@pytest.mark.parametrize("path", [("teachers", 0, "name"), ("stages", 1, "name")])
def test_names_of_folders_lead_nowhere_else(path, name, read):
    assert "must be of up to 100 letters" in read(json.dumps(changed(path, name)))


def test_a_character_may_be_escaped_as_json_does_it(tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps({**GOOD, "output": "out/🙂"}), encoding="ascii")
    assert load_recipe(tmp_path / "r.yaml").output == "out/🙂"


@pytest.mark.parametrize("half", ["\ude42", "\ude42\ud83d", "🙂\ude42"])
def test_half_a_character_is_told_with_its_place(half, read):
    assert "output: holds '\\ud" in read(json.dumps({**GOOD, "output": half}))
    assert "is half of a character" in read(json.dumps({**GOOD, half: 1}))


@pytest.mark.parametrize("content", ["output: \ud800", 'student: {model: "\\ud800"}', "output: [", "\xff"])
def test_the_command_says_it_in_a_sentence(content, tmp_path, capfd):
    (tmp_path / "r.yaml").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert main(["check", str(tmp_path / "r.yaml")]) == 2
    said = "".join(capfd.readouterr())
    assert "mistake" in said
    assert "--debug" not in said


@pytest.mark.parametrize("command", [["check"], ["run"], ["pretrain"], ["pretrain", "--check"]])
@pytest.mark.parametrize("value", ["hf_secret", "[hf_secret"])
def test_a_token_given_by_an_override_is_not_repeated(command, value, tmp_path, capsys):
    field = "arguments.hub_token" if command[0] == "pretrain" else "stages.0.arguments.hub_token"
    preset = "jina-2-small" if command[0] == "pretrain" else "jasper"
    assert main([*command, preset, "--set", f"{field}={value}"]) == 2
    said = "".join(capsys.readouterr())
    assert f"--set {field}=…" in said
    assert "hf_secret" not in said


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (["stages.0.arguments={hub_token: hf_secret}"], "--set stages.0.arguments=…"),
        (["stages.0.arguments={hub_token: hf_secret, x: ["], "--set stages.0.arguments=…: the value is not valid YAML"),
        (["stages.0.arguments.hub_token=*hf_secret"], "the value is not valid YAML"),
        (["stages.0.arguments=[hub_token, hf_secret]"], "expected a mapping, got a list"),
        (["stages.0.arguments='hub_token: hf_secret'"], "expected a mapping, got a text"),
        (["stages.0.arguments={hub_token:hf_secret}"], "stages[0].arguments.hub_token…: unknown field"),
        (["student.model={token: hf_secret}"], "--set student.model=…"),
        (["stages.0.arguments.hub_token hf_secret"], "--set …: is not of the form"),
        (["stages.0.arguments.{hub_token: hf_secret}=1"], "--set …: is not of the form"),
        (["stages.0.arguments.hub_token=hf_secret", "stages.0.arguments.hub_token.x=1"], "has no fields, it is a text"),
        (["store_dtype='token hf_secret'"], "got a text"),
    ],
)
def test_a_token_is_repeated_in_no_message(overrides, shown, outcome):
    said = outcome(lambda: load_recipe("jasper", overrides))
    if said == "success":  # what arguments there are is looked at later
        said = "\n".join(map(str, check("jasper", overrides)))
    assert shown in said
    assert "hf_secret" not in said


@pytest.mark.parametrize(
    "word", ["hub_token={a: hf_secret}", "hub_token=[hf_secret", "hub_token:hf_secret", "hub_token=a"]
)
def test_no_token_of_an_argument_of_glue_is_repeated(word, tmp_path, capsys):
    assert main(["glue", "some/model", "--data", str(tmp_path), "--set", word]) == 2
    said = "".join(capsys.readouterr())
    assert "--set" in said or "hub_token" in said
    assert "hf_secret" not in said


SECRETS = [
    "https://me:hidden@example.org/a",
    "https://hidden@example.org/a",
    "s3://key:hidden@bucket/a.parquet",
    "https://example.org/a?x=1&X-Amz-Signature=hidden",
    "hf_hidden" + "Ab3" * 8,
    "my_hf_hidden" + "Ab3" * 8 + "_x",
    "sk-hidden-" + "Ab3" * 8,
    "github_pat_hidden" + "Ab3" * 8,
    "https:me:hidden@example.org/a",
    "https://me:hid@hidden@example.org/a",
]
FIELDS = [
    ("student", "model"),
    ("teachers", 0, "model"),
    ("texts", 0, "path"),
    ("output",),
    ("stages", 0, "arguments", "run_name"),
    ("stages", 0, "name"),
    ("evaluation",),
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: ".".join(map(str, field)))
def test_no_login_or_token_in_any_field(field, secret, tmp_path, capsys):
    """Nothing else is said of such a recipe, because it would be repeated, and nothing is written."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(changed(field, secret)))
    assert main(["run", str(tmp_path / "r.yaml")]) == 2
    said = "".join(capsys.readouterr())
    assert "a login or a token does not belong in a recipe" in said
    assert "hidden" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_login_or_token_by_an_override_a_name_or_an_argument(secret, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**GOOD, secret: 1}))
    for command in (
        ["check", str(tmp_path / "r.yaml")],
        ["check", "jasper", "--set", f"student.model={secret}"],
        ["pretrain", "jina-2-small", "--set", f"arguments.run_name={secret}"],
        ["check", secret],
        ["info", secret],
        ["verify", secret],
        ["export", secret, str(tmp_path / "out")],
        ["report", secret],
        ["run", "jasper", secret],
        ["glue", "some/model", "--data", "x", "--epochs", secret],
        [secret],
    ):
        with contextlib.suppress(SystemExit):  # of a command line that is not understood
            assert main(command) == 2
        assert "hidden" not in "".join(capsys.readouterr()), command


def test_a_recipe_made_in_python_has_no_login_either(tmp_path):
    recipe = load_recipe("jasper", [f"output={tmp_path}/out"])
    recipe.teachers[0].model = SECRETS[0]
    (problem,) = check(recipe)
    assert problem.path == "teachers[0].model"
    with pytest.raises(RecipeError, match="a login or a token"):
        run(recipe)
    assert list(tmp_path.iterdir()) == []


def test_what_only_looks_like_a_login():
    for harmless in (
        "https://example.org/@someone/a",
        "a@b.org",
        "someone/hf_model",
        "data?x=1",
        "s3://bucket/a@2.parquet",
    ):
        assert not holds_credentials(harmless)
        assert without_credentials(harmless) == harmless


def test_a_token_does_not_belong_in_a_recipe(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(changed(("stages", 0, "arguments"), {"hub_token": "hf_secret"})))
    assert main(["check", str(tmp_path / "r.yaml")]) == 2
    said = capsys.readouterr().out
    assert "hub_token: a token does not belong in a recipe" in said
    assert "hf_secret" not in said
