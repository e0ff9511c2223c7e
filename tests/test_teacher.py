"""Teachers: models, functions and vectors on disk, their prompts, their identity, and what they may return."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore
from st_distill.teacher import Variant


def lengths(texts):
    return [[float(len(text)), 1.0] for text in texts]


def function_teacher(function, **options):
    return Teacher(function, **({"name": "f", "revision": "1"} | options))


@pytest.fixture(scope="module")
def model_folder(tiny_bert, tmp_path_factory):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(tiny_bert, max_seq_length=32)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(
        modules=[transformer, pooling], device="cpu", prompts={"query": "the cat ", "topic": "red "}
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def no_loading(monkeypatch):
    import sentence_transformers

    def fail(self, *args, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sentence_transformers.SentenceTransformer, "__init__", fail)


# --- functions


def test_function_gets_batches_and_prompted_texts():
    batches = []

    def teacher(texts):
        batches.append(texts)
        return lengths(texts)

    vectors = function_teacher(teacher, prompts={"query": "q: "}, batch_size=2).encode(["a", "bb", "ccc"], role="query")
    assert batches == [["q: a", "q: bb"], ["q: ccc"]]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[4, 1], [5, 1], [6, 1]]


def test_function_with_a_prompt_argument_gets_the_prompt():
    def teacher(texts, prompt):
        return [[float(len(prompt)), float(len(text))] for text in texts]

    teacher = function_teacher(teacher, prompts="search_document")
    assert teacher.encode(["abc"]).tolist() == [[15, 3]]
    assert teacher.encode(["abc"], role="query").tolist() == [[15, 3]]


def test_function_may_carry_name_and_revision():
    class Service:
        name = "service"
        revision = "2025-01"

        def __call__(self, texts):
            return torch.tensor(lengths(texts), dtype=torch.bfloat16)

    teacher = Teacher(Service())
    assert (teacher.name, teacher.revision, teacher.settings) == ("service", "2025-01", {})
    assert teacher.encode(["ab"]).tolist() == [[2, 1]]


def test_function_without_a_revision():
    with pytest.raises(ValueError, match=r"'revision' .* must be given for a function .* Got None"):
        Teacher(lengths)


def test_no_texts_ask_nobody():
    def teacher(texts):
        raise AssertionError

    assert function_teacher(teacher).encode([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((2, 3)), "Got 2 vectors for 3 texts"),
        (np.zeros(3), r"Got the shape \(3,\)"),
        (np.zeros((3, 0)), r"Got the shape \(3, 0\)"),
        ([[1.0], [1.0, 2.0], [1.0]], "all rows of one width. Got a list"),
        (np.array([["a"], ["b"], ["c"]]), "must return an array of numbers"),
        (None, "must return an array of numbers"),
        (np.array([[1.0], [np.nan], [1.0]]), r"NaN or infinity for the text 'second' \(row 1 of 3\)"),
        (np.array([[1.0], [1.0], [1e300]]), r"NaN or infinity for the text 'third' \(row 2 of 3\)"),
    ],
)
def test_what_a_teacher_must_not_return(returned, message):
    with pytest.raises(ValueError, match=message):
        function_teacher(lambda texts: returned).encode(["first", "second", "third"])


def test_dimension_must_not_change():
    teacher = function_teacher(lambda texts: np.ones((len(texts), len(texts[0]))), batch_size=1)
    with pytest.raises(ValueError, match=r"vectors of one dimension. Got 3 after 2, first for the text 'abc'"):
        teacher.encode(["ab", "abc"])


def test_truncate_dim():
    teacher = function_teacher(lengths, truncate_dim=1)
    assert teacher.encode(["abc"]).tolist() == [[3]]
    assert teacher.settings == {"truncate_dim": 1}
    with pytest.raises(ValueError, match=r"'truncate_dim' .* at most its dimension, 2. Got 3"):
        function_teacher(lengths, truncate_dim=3).encode(["abc"])


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "../up", ".hidden", "end.", "é", "a b", "nul\0", "x" * 101, 3]
)
def test_names_that_are_no_folder(name):
    with pytest.raises(ValueError, match=r"names a folder. Got"):
        function_teacher(lengths, name=name)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "'batch_size' .* whole number from 1, or None. Got 0"),
        ({"truncate_dim": 1.5}, ValueError, "'truncate_dim' .* Got 1.5"),
        ({"max_seq_length": 8}, ValueError, "'max_seq_length' .* a function: leave it out"),
        ({"device": "cpu"}, ValueError, "'device' .* a function: leave it out"),
        ({"dtype": "int8"}, ValueError, "'dtype' .* Got 'int8'"),
        ({"device": "gpu"}, ValueError, "'device' .* as torch names it.* Got 'gpu'"),
        ({"device": 3}, ValueError, "'device' .* Got 3"),
        ({"prompts": {"query": 3}}, TypeError, "'prompts' .* mapping of roles to strings"),
        ({"prompts": ["query"]}, TypeError, "'prompts' .* mapping of roles to strings"),
    ],
)
def test_options_that_cannot_be(options, error, message):
    with pytest.raises(error, match=message):
        function_teacher(lengths, **options)


def test_what_is_no_teacher():
    with pytest.raises(TypeError, match=r"Got ndarray instead. .*Teacher.from_vectors"):
        Teacher(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="must name a model or a folder"):
        Teacher("")
    with pytest.raises(FileNotFoundError, match="must be a folder that exists, or a name on the hub"):
        Teacher("./no/such/folder")


# --- models


def test_model_answers_as_encode_does(make_student, sentences):
    model = make_student()
    teacher = Teacher(model, name="tiny", batch_size=4)
    assert np.allclose(teacher.encode(sentences), model.encode(sentences), atol=1e-6)


def test_own_prompts_by_role(model_folder, sentences):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_folder), device="cpu")
    teacher = Teacher(model)
    assert teacher.variant("query") == Variant("the cat ", None)
    assert teacher.variant("topic") == Variant("red ", None)
    assert teacher.variant("document") == Variant("", None)
    assert teacher.variant() == Variant("", None)
    assert np.allclose(teacher.encode(sentences, role="query"), model.encode_query(sentences), atol=1e-6)
    given = Teacher(model, {"query": "q ", None: "n "})
    assert [given.variant(role).prompt for role in ("query", "topic", None)] == ["q ", "red ", "n "]
    model.default_prompt_name = "topic"
    assert Teacher(model).variant().prompt == "red "
    assert Teacher(model).variant("unheard").prompt == "red "


def test_lazy_model_knows_prompts_and_identity_without_loading(model_folder, no_loading):
    teacher = Teacher(str(model_folder))
    assert teacher.name == "tiny"
    assert teacher.variant("query") == Variant("the cat ", None)
    assert teacher.variant() == Variant("", None)
    assert teacher.revision.startswith("content:")
    with pytest.raises(AssertionError, match="loaded"):
        teacher.encode(["a cat"])


def test_lazy_model_is_loaded_once_and_released(model_folder, sentences, make_student):
    teacher = Teacher(model_folder, device="cpu", max_seq_length=4, dtype="float32")
    assert teacher.settings == {"dtype": "float32", "max_seq_length": 4}
    vectors = teacher.encode(sentences)
    loaded = teacher._source._model
    teacher.encode(sentences)
    assert teacher._source._model is loaded
    assert loaded.max_seq_length == 32  # the length of one call, not of the model
    assert np.allclose(vectors, make_student(max_seq_length=4).encode(sentences), atol=1e-5)
    teacher.release()
    assert teacher._source._model is None
    assert np.array_equal(teacher.encode(sentences), vectors)


def test_a_device_that_the_machine_has_not(model_folder):
    with pytest.raises(ValueError, match="device must be one of this machine's, .* Got 'cuda:99'"):
        Teacher(str(model_folder), device="cuda:99").encode(["a cat"])


def test_a_model_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match="could not be loaded"):
        Teacher(tmp_path, name="empty").encode(["a"])


def test_an_alibi_encoder_in_a_process_that_has_not_imported_it(tiny_alibi):
    code = "import sys, st_distill; print(st_distill.Teacher(sys.argv[1], device='cpu').encode(['a cat']).shape)"
    done = subprocess.run([sys.executable, "-c", code, tiny_alibi], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(1, 24)\n"), done.stderr


@pytest.mark.parametrize("has_modules", [True, False])
def test_a_published_alibi_encoder_is_no_bert(has_modules, published, sentences, tmp_path):
    """Plain loaders build an ordinary BERT from it, with random weights in the place of its own."""
    from sentence_transformers import SentenceTransformer

    if not has_modules:
        (published / "modules.json").unlink()
    told = "published holds an ALiBi BERT in the published layout.*load_published"
    with pytest.raises(ValueError, match=told):
        TeacherStore.create(tmp_path / "store", sentences, Teacher(published, device="cpu"))
    plain = SentenceTransformer(str(published), device="cpu")
    assert np.isfinite(plain.encode("a cat")).all()
    with pytest.raises(ValueError, match=told):
        Teacher(plain)


def test_revision_of_a_folder_is_its_content(model_folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(model_folder, copy)
    before = Teacher(model_folder).revision
    (copy / "README.md").write_text("other words")
    (copy / "checkpoint-3").mkdir()
    (copy / "checkpoint-3" / "model.safetensors").touch()
    assert Teacher(copy).revision == before
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    weights.write_bytes(content)
    changed = Teacher(copy).revision
    assert changed != before
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert Teacher(copy).revision not in (before, changed)
    assert Teacher(copy, revision="mine").revision == "mine"


def test_revision_of_a_hub_snapshot_is_its_commit(model_folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0123456789" * 4)
    shutil.copytree(model_folder, snapshot)
    assert Teacher(snapshot, name="b").revision == "0123456789" * 4


def test_revision_of_a_hub_name_is_the_commit_in_the_cache(tmp_path, monkeypatch, model_folder, no_loading):
    commit = "abcdef0123" * 4
    cached = tmp_path / "models--somebody--tiny"
    shutil.copytree(model_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    teacher = Teacher("somebody/tiny")
    assert (teacher.name, teacher.label, teacher.revision) == ("tiny", "somebody/tiny", commit)
    assert teacher.variant("query").prompt == "the cat "
    assert Teacher("somebody/tiny", revision="f" * 40).revision == "f" * 40


def test_revision_of_a_model_is_its_weights_and_configuration(make_student, sentences):
    model = make_student()
    before = Teacher(model, name="tiny").revision
    Teacher(model, name="tiny").encode(sentences)
    assert Teacher(model, name="tiny").revision == before
    assert Teacher(make_student(), name="tiny").revision == before
    assert Teacher(make_student(max_seq_length=16), name="tiny").revision != before
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert Teacher(model, name="tiny").revision != before


def test_options_of_loading_are_refused_for_a_loaded_model(make_student):
    with pytest.raises(ValueError, match="'dtype' .* loaded already: leave it out"):
        Teacher(make_student(), name="tiny", dtype="float16")


def test_unpaired_surrogates_and_nul_reach_a_model(make_student):
    vectors = Teacher(make_student(), name="tiny").encode(["a cat \ud800", "a \0 cat", "", "\udc00\ud83d"])
    assert vectors.shape == (4, 32)
    assert np.isfinite(vectors).all()


def test_router_takes_the_role_as_its_task(make_student, tmp_path, sentences):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Router

    torch.manual_seed(0)
    base = make_student()
    router = Router.for_query_document([Dense(32, 8)], [Dense(32, 8)])
    model = SentenceTransformer(modules=[*base, router], device="cpu")
    model.save_pretrained(str(tmp_path / "routed"))
    for teacher in (Teacher(model, name="routed"), Teacher(tmp_path / "routed", device="cpu")):
        assert teacher.variant("query") == Variant("", "query")
        queries = teacher.encode(sentences, role="query")
        documents = teacher.encode(sentences, role="document")
        assert np.allclose(queries, model.encode_query(sentences), atol=1e-5)
        assert np.allclose(documents, model.encode_document(sentences), atol=1e-5)
        assert not np.allclose(queries, documents, atol=1e-3)


# --- vectors on disk

TEXTS = ["one", "two", "three"]
VECTORS = np.array([[1, 0], [0, 2], [3, 4]], dtype=np.float32)


def write_table(path, texts=TEXTS, vectors=None, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = VECTORS.tolist() if vectors is None else vectors
    pq.write_table(pa.table({"text": texts, "embedding": vectors} | columns), path)
    return path


def dataset():
    from datasets import Dataset

    return Dataset.from_dict({"text": TEXTS, "embedding": VECTORS.tolist()})


def vectors_as(kind, folder):
    """Arguments of from_vectors for the same three vectors."""
    if kind == "npy and list":
        np.save(folder / "bought.npy", VECTORS.astype(np.float64))
        return folder / "bought.npy", {"texts": TEXTS}
    if kind == "npy and txt":
        np.save(folder / "bought.npy", VECTORS.astype(np.float16))
        (folder / "texts.txt").write_bytes(b"one\ntwo\r\nthree\n")
        return str(folder / "bought.npy"), {"texts": str(folder / "texts.txt")}
    if kind == "npy and jsonl":
        np.save(folder / "bought.npy", VECTORS)
        (folder / "texts.jsonl").write_text('"one"\n{"text": "two"}\n\n{"text": "three"}\n')
        return folder / "bought.npy", {"texts": folder / "texts.jsonl"}
    if kind == "array and generator":
        return VECTORS, {"texts": iter(TEXTS), "name": "bought"}
    if kind == "tensor":
        return torch.tensor(VECTORS, dtype=torch.bfloat16), {"texts": TEXTS, "name": "bought"}
    if kind == "parquet":
        return write_table(folder / "bought.parquet", number=[1, 2, 3]), {}
    if kind == "parquet and texts":
        return write_table(folder / "bought.parquet", texts=["x", "y", "z"]), {"texts": TEXTS}
    if kind == "parquet folder":
        write_table(folder / "0.parquet", TEXTS[:2], VECTORS[:2].tolist())
        write_table(folder / "1.parquet", TEXTS[2:], VECTORS[2:].tolist())
        return folder, {"name": "bought"}
    if kind == "dataset":
        return dataset(), {"name": "bought"}
    if kind == "shuffled dataset":
        return dataset().select([2, 0, 1]), {"name": "bought"}
    if kind == "iterable dataset":
        return dataset().to_iterable_dataset(), {"name": "bought"}
    if kind == "dataset column":
        return dataset()["embedding"], {"name": "bought", "texts": dataset()["text"]}
    assert kind == "dataset folder"
    dataset().save_to_disk(str(folder / "bought"))
    return folder / "bought", {}


KINDS = [
    "npy and list",
    "npy and txt",
    "npy and jsonl",
    "array and generator",
    "tensor",
    "parquet",
    "parquet and texts",
    "parquet folder",
    "dataset",
    "shuffled dataset",
    "iterable dataset",
    "dataset column",
    "dataset folder",
]


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_from(kind, tmp_path):
    vectors, options = vectors_as(kind, tmp_path)
    teacher = Teacher.from_vectors(vectors, **options)
    assert teacher.name == "bought"
    assert teacher.is_stored
    assert teacher.variant("query") == Variant("", None)
    for _ in range(2):  # they can be gone through again
        found = {text: row.tolist() for texts, rows in teacher.blocks() for text, row in zip(texts, rows)}
        assert found == {"one": [1, 0], "two": [0, 2], "three": [3, 4]}
    assert teacher.encode(["three", "one", "three"], role="query").tolist() == [[3, 4], [1, 0], [3, 4]]


def test_vectors_are_read_in_blocks(tmp_path):
    count = 2500
    vectors = np.ones((count, 2), dtype=np.float32)
    texts = [str(number) for number in range(count)]
    path = write_table(tmp_path / "many.parquet", texts, vectors.tolist())
    for teacher in (Teacher.from_vectors(path), Teacher.from_vectors(vectors, texts=texts, name="many")):
        assert [len(block) for block, _ in teacher.blocks()] == [1024, 1024, 452]


def test_vectors_identity_is_the_first_row(tmp_path):
    first = Teacher.from_vectors(VECTORS, texts=TEXTS, name="a").revision
    longer = np.concatenate([VECTORS, VECTORS])
    assert Teacher.from_vectors(longer, texts=[*TEXTS, "a", "b", "c"], name="a").revision == first
    assert Teacher.from_vectors(VECTORS + 1, texts=TEXTS, name="a").revision != first
    assert Teacher.from_vectors(VECTORS, texts=TEXTS, name="a", revision="v3").revision == "v3"


def test_texts_that_have_no_vector():
    teacher = Teacher.from_vectors(VECTORS, texts=TEXTS, name="a")
    with pytest.raises(ValueError, match=r"Got none for 2 of the texts, such as 'four'; add their vectors"):
        teacher.encode(["four", "one", "five"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [(TEXTS[:2], "Got 2 texts for 3 vectors"), ([*TEXTS, "four"], "Got 4 texts for 3 vectors")],
)
def test_as_many_texts_as_vectors(texts, message):
    with pytest.raises(ValueError, match=message):
        list(Teacher.from_vectors(VECTORS, texts=texts, name="a").blocks())


def test_texts_must_be_strings():
    with pytest.raises(TypeError, match="Got NoneType in row 1"):
        list(Teacher.from_vectors(VECTORS, texts=["one", None, "three"], name="a").blocks())


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], None, [1.0, 2.0]], "Got an empty value in row 1"),
        ([[1.0, 2.0], [1.0, 2.0], [1.0, None]], "Got an empty value in row 2"),
        ([[1.0, 2.0], [1.0], [1.0, 2.0]], "Got 1 in row 1, and 2 in row 0"),
        ([[1.0, 2.0], [1.0, 2.0], [1.0, float("inf")]], r"text 'three' \(row 2\); make that vector again"),
    ],
)
def test_bad_rows_of_a_table(tmp_path, vectors, message):
    with pytest.raises(ValueError, match=message):
        list(Teacher.from_vectors(write_table(tmp_path / "bad.parquet", vectors=vectors)).blocks())


def test_columns_of_a_table(tmp_path):
    path = write_table(tmp_path / "a.parquet", title=TEXTS, other=VECTORS.tolist())
    with pytest.raises(ValueError, match=r"'column' .* Got None; such columns are \['embedding', 'other'\]"):
        Teacher.from_vectors(path)
    with pytest.raises(ValueError, match=r"'text_column' .* Got 'body'; such columns are \['text', 'title'\]"):
        Teacher.from_vectors(path, column="other", text_column="body")
    assert Teacher.from_vectors(path, column="other", text_column="title").encode(["two"]).tolist() == [[0, 2]]


def test_what_is_no_vectors(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.npy").write_bytes(b"broken")
    (tmp_path / "a.parquet").write_bytes(b"broken")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name, message in [
        ("a.csv", "must be an npy or parquet file, or a folder"),
        ("a.npy", "cannot be read as an npy file"),
        ("words.npy", "must be numbers of shape"),
        ("objects.npy", "cannot be read as an npy file"),
        ("a.parquet", "a.parquet cannot be read"),
        ("folder", r"a folder of parquet files, or of Dataset.save_to_disk"),
    ]:
        with pytest.raises(ValueError, match=message):
            Teacher.from_vectors(tmp_path / name, texts=None if name == "a.parquet" else ["a"])
    with pytest.raises(FileNotFoundError, match="There is no"):
        Teacher.from_vectors(tmp_path / "none.npy", texts=["a"])
    with pytest.raises(FileNotFoundError, match="There is no"):
        Teacher.from_vectors(VECTORS, texts=tmp_path / "none.txt", name="a")
    with pytest.raises(ValueError, match="'texts' .* must be given"):
        Teacher.from_vectors(VECTORS, name="a")
    with pytest.raises(TypeError, match="Got int instead"):
        Teacher.from_vectors(3)


@pytest.mark.parametrize("content", [b"broken", b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_a_broken_file_of_vectors_is_not_said_to_be_a_pickle(content, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as an npy file of numbers .* Write them again") as caught:
        Teacher.from_vectors(tmp_path / "a.npy", texts=["a"])
    assert "pickle" not in str(caught.value)


def test_vectors_beyond_float32_are_told_in_the_sentence_alone(tmp_path):
    """Any warning of numpy would be an error here."""
    teacher = Teacher.from_vectors(np.array([[1e300, 1.0]]), texts=["a"], name="t")
    with pytest.raises(ValueError, match="must return finite numbers. Got NaN or infinity for the text 'a'"):
        TeacherStore.create(tmp_path / "s", ["a"], teacher, show_progress=False)


def test_vectors_without_a_file_need_a_name():
    with pytest.raises(ValueError, match="'name' .* must be given"):
        Teacher.from_vectors(VECTORS, texts=TEXTS)


def test_models_have_no_stored_vectors():
    with pytest.raises(ValueError, match="has no stored vectors"):
        next(function_teacher(lengths).blocks())
