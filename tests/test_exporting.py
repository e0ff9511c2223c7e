from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

from st_distill.checksums import noted_damage
from st_distill.exporting import describe, export, export_teacher, info, load_student
from st_distill.modules import MatryoshkaProjection, Transformer
from st_distill.modules.rotation import random_rotation

LOAD_ELSEWHERE = """
import json, sys
import numpy as np
from PIL import Image
try:
    import st_distill
except ImportError:
    pass
else:
    sys.exit("st_distill can be imported here")
from sentence_transformers import SentenceTransformer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
for name in ("text", "seeing"):
    model = SentenceTransformer(f"{folder}/{name}", device="cpu")
    np.save(f"{folder}/{name}-texts.npy", model.encode(texts))
    np.save(f"{folder}/{name}-cut.npy", model.encode(texts, truncate_dim=8))
    if name == "seeing":
        np.save(f"{folder}/images.npy", model.encode([Image.open(f"{folder}/{i}.png") for i in range(4)]))
"""


@pytest.fixture
def student(make_student):
    return make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(48, 24), teacher_head=48)).eval()


def modules_of(folder: Path) -> list[str]:
    return [module["type"] for module in json.loads((folder / "modules.json").read_text())]


def test_only_standard_classes_are_named(student, tmp_path, sentences):
    exported = export(student, tmp_path / "model")
    types = modules_of(tmp_path / "model")
    assert all(name.startswith("sentence_transformers.") for name in types)
    assert [name.rpartition(".")[2] for name in types] == ["Transformer", "Pooling", "Dense", "Normalize"]
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.array_equal(loaded.encode(sentences), exported.encode(sentences))
    before = torch.nn.functional.normalize(student.encode(sentences, convert_to_tensor=True), dim=-1)
    assert torch.equal(torch.from_numpy(loaded.encode(sentences)), before)


def test_every_prefix_is_truncated_by_the_library(student, tmp_path, sentences):
    loaded = export(student, tmp_path / "model")
    for dim in (24, 8):
        assert np.array_equal(loaded.encode(sentences, truncate_dim=dim), loaded.encode(sentences)[:, :dim])


def test_one_dimension_of_nested_and_of_independent_heads(make_student, tmp_path, sentences):
    nested = make_student(MatryoshkaProjection(32, [24, 8])).eval()
    cut = export(nested, tmp_path / "nested-8", dim=8, normalize=False)
    np.testing.assert_allclose(cut.encode(sentences), nested.encode(sentences)[:, :8], atol=1e-6)

    several = make_student(MatryoshkaProjection(32, [24, 8], heads="independent")).eval()
    with several[2].all_heads():
        heads = several.encode(sentences)
    for dim, view in several[2].views().items():
        single = export(several, tmp_path / f"head-{dim}", dim=dim, normalize=False)
        assert np.array_equal(
            SentenceTransformer(str(tmp_path / f"head-{dim}"), device="cpu").encode(sentences), heads[:, view]
        )
        assert single.get_embedding_dimension() == dim


def test_another_environment_without_st_distill(make_student, tiny_siglip, images, sentences, tmp_path):
    """Text-only and text-and-image models load there without trust_remote_code, with equal vectors."""
    text = make_student(MatryoshkaProjection(32, [24, 8], rotation=random_rotation(48, 24))).eval()
    seeing = SentenceTransformer(
        modules=[Transformer.from_encoders(text, tiny_siglip), *list(text.children())[1:]], device="cpu"
    ).eval()
    texts = [*sentences, "", "a cat " * 60]
    exported = {"text": export(text, tmp_path / "text"), "seeing": export(seeing, tmp_path / "seeing")}
    for index in range(4):
        images[index].save(tmp_path / f"{index}.png")

    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(np.__file__).parents[1].iterdir():
        if "st_distill" not in entry.name and not entry.name.startswith("__editable__"):
            (packages / entry.name).symlink_to(entry)
    venv.create(tmp_path / "environment", with_pip=False)
    python = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
    environment = {**os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), "-c", LOAD_ELSEWHERE, str(tmp_path), json.dumps(texts)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, model in exported.items():
        found = torch.from_numpy(np.load(tmp_path / f"{name}-texts.npy"))
        assert torch.equal(found, torch.from_numpy(model.encode(texts)))
        assert torch.equal(torch.from_numpy(np.load(tmp_path / f"{name}-cut.npy")), found[:, :8])
    assert torch.equal(
        torch.from_numpy(np.load(tmp_path / "images.npy")), torch.from_numpy(exported["seeing"].encode(images[:4]))
    )
    assert np.array_equal(np.load(tmp_path / "text-texts.npy"), np.load(tmp_path / "seeing-texts.npy"))


class OnnxEncoder(nn.Module):
    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model({"input_ids": input_ids, "attention_mask": attention_mask})["sentence_embedding"]


@pytest.mark.parametrize("eyes", [False, True], ids=["text", "seeing"])
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)  # the exporter's own
def test_onnx(eyes, make_student, tiny_siglip, sentences, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    student = make_student(MatryoshkaProjection(32, [24, 8])).eval()
    if eyes:
        student = SentenceTransformer(
            modules=[Transformer.from_encoders(student, tiny_siglip), *list(student.children())[1:]], device="cpu"
        )
    model = export(student, tmp_path / "model")
    features = model.preprocess(sentences[:3])
    inputs = (features["input_ids"], features["attention_mask"])
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=32)
    torch.onnx.export(
        OnnxEncoder(model).eval(),
        inputs,
        str(tmp_path / "model.onnx"),
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding"],
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for texts in (sentences[:3], sentences[4:9]):
        features = model.preprocess(texts)
        (vectors,) = session.run(None, {key: features[key].numpy() for key in ("input_ids", "attention_mask")})
        np.testing.assert_allclose(vectors, model.encode(texts), atol=1e-5)


@pytest.mark.parametrize(("backend", "package"), [("onnx", "optimum.onnxruntime"), ("openvino", "optimum.intel")])
def test_backends_of_sentence_transformers(backend, package, make_student, sentences, tmp_path):
    pytest.importorskip(package, reason="optimum does not install beside every version of transformers")
    model = export(make_student(MatryoshkaProjection(32, [24, 8])).eval(), tmp_path / "model")
    other = SentenceTransformer(str(tmp_path / "model"), backend=backend, device="cpu")
    np.testing.assert_allclose(other.encode(sentences), model.encode(sentences), atol=1e-5)


def test_card_and_info_tell_the_lengths(student, tmp_path, sentences):
    model = export(student, tmp_path / "model")
    lengths = np.linalg.norm(model.encode(sentences), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert np.linalg.norm(model.encode(sentences, truncate_dim=8), axis=1).max() < 0.999
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Full vectors have 24 dimensions and have unit length." in card
    assert "Truncated vectors do not have unit length" in card
    told = info(tmp_path / "model")
    assert told["dims"] == [24, 8]
    assert told["unit_length"] == {"full": True, "truncated": False}
    assert told["parameters"] == sum(parameter.numel() for parameter in model.parameters())

    export(student, tmp_path / "raw", normalize=False)
    assert info(tmp_path / "raw")["unit_length"]["full"] is False
    assert "do not have unit length." in (tmp_path / "raw" / "README.md").read_text()


def test_a_student_in_training_loads_and_exports_from_its_folder(student, tmp_path, sentences):
    student.save(str(tmp_path / "student"))
    loaded = load_student(tmp_path / "student", device="cpu")
    assert isinstance(loaded[2], MatryoshkaProjection)
    assert np.array_equal(loaded.encode(sentences), student.encode(sentences))
    from_folder, from_memory = export(tmp_path / "student", tmp_path / "a"), export(student, tmp_path / "b")
    assert np.array_equal(from_folder.encode(sentences), from_memory.encode(sentences))
    assert describe(loaded)["unit_length"]["full"] is False
    assert info(tmp_path / "student")["dims"] == [24, 8]
    with pytest.raises(ValueError, match=r"give the model of the last stage in the run's folder \(stages/"):
        export(tmp_path / "a", tmp_path / "c", dim=8)


def test_the_old_names_of_the_modules(student, tmp_path, sentences):
    expected = export(student, tmp_path / "model").encode(sentences)
    export(tmp_path / "model", tmp_path / "old", old_names=True)
    names = [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")]
    assert modules_of(tmp_path / "old") == names
    assert noted_damage(tmp_path / "old") == []
    assert info(tmp_path / "old")["dims"] == [24, 8]
    assert np.array_equal(SentenceTransformer(str(tmp_path / "old"), device="cpu").encode(sentences), expected)


def test_a_damaged_model_is_told_with_its_file(student, tmp_path):
    export(student, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match="model is damaged: model.safetensors: there are 1000 bytes.*st-distill export STUDENT"
    ):
        info(tmp_path / "model")
    (tmp_path / "model" / "st_distill.json").unlink()
    with pytest.raises(ValueError, match="cannot be loaded: .*header.*st-distill verify"):
        info(tmp_path / "model")
    for content, message in (("[]", "must name the model's modules"), ("[{", "modules.json is not a JSON file")):
        (tmp_path / "model" / "modules.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            info(tmp_path / "model")


def test_a_published_alibi_encoder_is_neither_described_nor_exported(published, tmp_path):
    told = "published holds an ALiBi BERT in the published layout.*load_published"
    with pytest.raises(ValueError, match=told):
        info(published)
    with pytest.raises(ValueError, match=told):
        export(published, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_older_model_is_replaced_whole(student, tmp_path, sentences):
    export(student, tmp_path / "model", dim=8)
    export(student, tmp_path / "model")
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").get_embedding_dimension() == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("path", [".", "/", "out/.."])
def test_an_export_needs_a_name(path, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must end with the name of a folder.* such as out/model"):
        export(student, path)


def test_a_folder_of_something_else_is_left_alone(student, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="must be a new or empty folder, or that of an earlier export"):
        export(student, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_model_that_is_no_export_is_left_alone(student, tmp_path):
    student.save(str(tmp_path))
    before = sorted(path.name for path in tmp_path.iterdir())
    for model in (student, tmp_path):
        with pytest.raises(
            ValueError, match=r"with a st_distill.json.*besides: choose another folder, or move that away"
        ):
            export(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_export_is_not_written_over_itself(student, tmp_path):
    export(student, tmp_path / "model")
    with pytest.raises(ValueError, match="must be another folder than the model's own"):
        export(tmp_path / "model", tmp_path / "model", dim=8)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (" ", "must end with the name of a folder"),
        ("dangling", "must be no link, because it is replaced whole"),
        ("link", "must be no link"),
        ("loop", "must be no link"),
        ("file/model", "must be a place for a folder. Got file/model instead, where file is no folder"),
        (
            "out-run/stages/1-all/model/inner",
            "outside the stages of a run.*lies in .*/out-run/stages/1-all/model: choose",
        ),
        ("out-run/stages/inner", "outside the stages of a run.*lies in .*/out-run/stages: choose"),
        ("student/inner", "must lie apart. Got student/inner and student"),
    ],
)
def test_places_that_are_none(path, told, student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student.save("student")
    shutil.copytree("student", "out-run/stages/1-all/model")
    Path("out-run/run.json").touch()
    Path("out-run/run.copy.json").touch()
    Path("file").touch()
    Path("real").mkdir()
    for name, target in (("dangling", "nothing"), ("link", "real"), ("loop", "loop")):
        Path(name).symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=told):
        export("student", path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_within_the_export_that_would_be_replaced_is_kept(student, tmp_path):
    export(student, tmp_path / "out")
    student.save(str(tmp_path / "out" / "inner"))
    with pytest.raises(ValueError, match="holds 'inner/1_Pooling/config.json' besides"):
        export(tmp_path / "out" / "inner", tmp_path / "out")
    (tmp_path / "out" / "st_distill.json").write_text("damaged")
    with pytest.raises(ValueError, match="must lie apart"):
        export(tmp_path / "out" / "inner", tmp_path / "out")
    assert (tmp_path / "out" / "inner" / "modules.json").is_file()


def test_a_model_that_is_a_link_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="must be a model's folder. Got .*/loop instead"):
        export(tmp_path / "loop", tmp_path / "out")


def test_dimensions_that_are_none(student, make_student, tmp_path):
    with pytest.raises(ValueError, match=r"one of the projection's dimensions \[48, 24, 8\]. Got 16"):
        export(student, tmp_path / "model", dim=16)
    with pytest.raises(ValueError, match="only be chosen for a model with a MatryoshkaProjection"):
        export(make_student(), tmp_path / "model", dim=16)
    assert not list(tmp_path.iterdir())


def test_modules_without_standard_form(make_student, tmp_path):
    class Foreign(nn.Module):
        def forward(self, features):
            return features

    with pytest.raises(ValueError, match="standard form. Got .*Foreign instead"):
        export(make_student(Foreign()), tmp_path / "model")


def test_info_of_no_model(tmp_path):
    with pytest.raises(ValueError, match="has no modules.json"):
        info(tmp_path)
    (tmp_path / "store.json").touch()
    with pytest.raises(ValueError, match=f"a store of teachers' vectors; call st-distill verify {tmp_path} for it.$"):
        info(tmp_path)
    (tmp_path / "run.json").touch()
    with pytest.raises(
        ValueError, match="the work folder of a run; name its recipe's output, or call st-distill report"
    ):
        info(tmp_path)


def test_info_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "run.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Got . instead, the work folder of a run; name its recipe's output"):
        info(".")


def test_a_static_student(make_student, tmp_path, sentences):
    embedding = StaticEmbedding(make_student().tokenizer, embedding_dim=32)
    projection = MatryoshkaProjection(32, [24, 8])
    student = SentenceTransformer(modules=[embedding, projection], device="cpu").eval()
    export(student, tmp_path / "model")
    assert info(tmp_path / "model")["max_seq_length"] is None
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(sentences, convert_to_tensor=True)
    assert torch.allclose(
        loaded, torch.nn.functional.normalize(student.encode(sentences, convert_to_tensor=True)), atol=1e-6
    )


def test_the_teacher_in_its_students_space(make_student, tmp_path, sentences):
    rotation = random_rotation(32, 24, seed=3)
    student = make_student(MatryoshkaProjection(32, [24, 8], rotation=rotation)).eval()
    teacher = make_student().eval()
    teacher.prompts = {"document": "a text "}
    exported = export_teacher(student, teacher, tmp_path / "teacher")
    assert [name.rpartition(".")[2] for name in modules_of(tmp_path / "teacher")][-2:] == ["Dense", "Normalize"]
    assert all(name.startswith("sentence_transformers.") for name in modules_of(tmp_path / "teacher"))
    loaded = SentenceTransformer(str(tmp_path / "teacher"), device="cpu")
    assert loaded.prompts["document"] == "a text "
    vectors = loaded.encode(sentences, convert_to_tensor=True)
    assert torch.equal(vectors, exported.encode(sentences, convert_to_tensor=True))
    # The cosine loss asks the student for exactly these coordinates.
    aligned = student[2].align(teacher.encode(sentences, convert_to_tensor=True))
    assert torch.nn.functional.cosine_similarity(vectors, aligned).min() > 1 - 1e-6
    assert info(tmp_path / "teacher")["dims"] == [24, 8]
    again = export_teacher(student, teacher, tmp_path / "teacher")  # an earlier export is replaced
    assert torch.equal(again.encode(sentences, convert_to_tensor=True), vectors)


def test_a_square_rotation_keeps_the_teachers_cosines(make_student, tmp_path, sentences):
    student = make_student(MatryoshkaProjection(32, [32, 8], rotation=random_rotation(32, 32)))
    teacher = make_student().eval()
    rotated = export_teacher(student, teacher, tmp_path / "teacher")
    first, second = (model.similarity(*[model.encode(sentences)] * 2) for model in (rotated, teacher))
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("rotation", [None, random_rotation(8, 8)], ids=["as it is", "rotated"])
def test_a_truncated_teacher_in_its_students_space(rotation, make_student, tmp_path, sentences):
    teacher = make_student().eval()
    teacher.truncate_dim = 8
    student = make_student(MatryoshkaProjection(32, [8], rotation=rotation))
    exported = export_teacher(student, teacher, tmp_path / "teacher")
    short = teacher.encode(sentences, convert_to_tensor=True)
    wanted = torch.nn.functional.normalize(short if rotation is None else short @ rotation)
    assert torch.allclose(exported.encode(sentences, convert_to_tensor=True), wanted, atol=1e-6)


def test_a_teacher_that_the_student_does_not_follow(student, make_student, tmp_path):
    plain = MatryoshkaProjection(32, [24, 8], rotation=random_rotation(48, 24))
    for pupil, message in (
        (make_student(), "must have a MatryoshkaProjection"),
        (student, "Got one with a teacher's head"),
        (make_student(plain), "must have the 48 dimensions .* Got 32"),
    ):
        with pytest.raises(ValueError, match=message):
            export_teacher(pupil, make_student(), tmp_path / "teacher")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("notes")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        export_teacher(make_student(plain), make_student(), tmp_path / "mine")
