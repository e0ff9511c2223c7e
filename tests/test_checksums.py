"""A model is compared with the checksums that are noted of it before anything in it is used."""

from __future__ import annotations

import shutil

import pytest
from sentence_transformers import SentenceTransformer

from st_distill import Teacher
from st_distill.checksums import require_whole, work_folder_of
from st_distill.cli import main
from st_distill.exporting import export, info, load_student
from st_distill.files import manifest, sha256, write_json, write_record
from st_distill.modules import MatryoshkaProjection
from st_distill.pretrain.check import check_pretraining
from st_distill.pretrain.schema import Encoder, Pretraining, TokenizerSpec
from st_distill.recipe.state import RunState
from st_distill.verify import verify


def flip(path):
    """One bit of the last number of a file of weights."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.fixture
def exported(make_student, tmp_path):
    export(make_student(MatryoshkaProjection(32, [24, 8])).eval(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def stage(make_student, tmp_path):
    """The model of a stage that is done, in the work folder of a run."""
    work = tmp_path / "out-run"
    folder = work / "stages" / "1-all" / "model"
    work.mkdir()
    (work / "recipe.yaml").write_text(f"output: {tmp_path}/out\n")
    state = RunState(work)
    state.recipe = sha256(work / "recipe.yaml")
    state.plan([{"name": "all", "fields": {}}], from_stage=1)
    make_student(MatryoshkaProjection(32, [24, 8])).eval().save(str(folder))
    state.finish(0, {})
    return folder


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (
            lambda folder: flip(folder / "2_Dense" / "model.safetensors"),
            "2_Dense/model.safetensors: the content has changed",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: there is no such file"),
        (lambda folder: shutil.rmtree(folder / "3_Normalize"), "3_Normalize/config.json: there is no such file"),
        (
            lambda folder: (folder / "sentence_bert_config.json").write_text('{"max_seq_length": -5}'),
            "sentence_bert_config.json: there are 22 bytes, where",
        ),
        (lambda folder: (folder / "st_distill.json").write_text("{"), "st_distill.json: it cannot be read"),
    ],
    ids=["a bit of the weights", "tokenizer", "normalisation", "length", "description"],
)
def test_a_damaged_export_is_not_used(harm, told, exported, tmp_path):
    harm(exported)
    for use in (load_student, info, lambda folder: export(folder, tmp_path / "other"), lambda folder: ask(folder)):
        with pytest.raises(ValueError, match=f"model is damaged: {told}.*or export it again: st-distill export"):
            use(exported)
    assert not (tmp_path / "other").exists()


def test_a_stage_is_no_teacher(stage):
    with pytest.raises(
        ValueError, match="it as a standard model with st-distill export .*/1-all/model FOLDER, and name"
    ):
        ask(stage)


def ask(folder):
    return Teacher(str(folder)).encode(["a cat"], role="document")


def test_the_readers_own_changes_are_none(exported):
    (exported / "README.md").write_text("# My own card")
    (exported / "notes.txt").write_text("notes")
    require_whole(exported)
    SentenceTransformer(str(exported), device="cpu").save(str(exported))
    with pytest.raises(ValueError, match="Where the change is your own, remove its st_distill.json"):
        require_whole(exported)
    (exported / "st_distill.json").unlink()
    require_whole(exported)


def test_a_damaged_stage_is_not_exported(stage, tmp_path):
    (tmp_path / "link").symlink_to(stage)
    export(stage, tmp_path / "whole")
    flip(stage / "2_MatryoshkaProjection" / "model.safetensors")
    again = "or do the stage again with: st-distill run .*/out-run/recipe.yaml --resume --from-stage 1"
    for folder in (stage, tmp_path / "link"):
        with pytest.raises(ValueError, match=f"stage 1 is damaged: in .*/2_Mat.*, the content has changed.*{again}"):
            export(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_stage_is_known_where_it_is_copied_to(stage, tmp_path):
    copied = shutil.copytree(stage, tmp_path / "copied")
    (copied / "README.md").write_text("# My own card")
    assert (verify(copied).is_whole, verify(copied).compared) == (True, True)
    export(copied, tmp_path / "whole")
    assert not (tmp_path / "whole" / "st_distill_stage.json").exists()
    flip(copied / "2_MatryoshkaProjection" / "model.safetensors")
    told = "copied is damaged: 2_Mat.*: the content has changed.*, or copy it again from its run"
    with pytest.raises(ValueError, match=told):
        export(copied, tmp_path / "model")
    (found,) = verify(copied).findings
    assert (found.file, found.remedy) == ("2_MatryoshkaProjection/model.safetensors", "copy it again from its run")
    assert not (tmp_path / "model").exists()


def test_the_card_of_a_stage_may_be_changed(stage, tmp_path):
    (stage / "README.md").write_text("# My own card")
    assert verify(stage.parents[2]).findings == verify(stage).findings == []
    export(stage, tmp_path / "model")


def test_a_damaged_stage_is_told_once(stage):
    flip(stage / "2_MatryoshkaProjection" / "model.safetensors")
    found = verify(stage)
    assert (found.notes, found.compared) == ([], True)
    (finding,) = found.findings
    assert finding.file == "2_MatryoshkaProjection/model.safetensors"
    assert finding.remedy.startswith("do the stage again with: st-distill run ")
    assert [told.remedy for told in verify(stage.parents[2]).findings if told.file.endswith(finding.file)] == [
        finding.remedy
    ]


def test_nothing_tells_whether_another_programs_model_is_whole(make_student, tmp_path):
    make_student().save(str(tmp_path / "model"))
    found = verify(tmp_path / "model")
    assert (found.findings, found.compared) == ([], False)
    assert found.as_text().endswith("model can be used; whether it is as it was written, nothing tells.")
    (tmp_path / "model" / "modules.json").write_text("[")
    found = verify(tmp_path / "model")
    assert [finding.remedy for finding in found.findings] == ["restore it from a copy"]
    assert "can be used" not in found.as_text()


def test_a_model_beside_the_run_json_of_another_program_is_taken_as_it_is(make_student, tmp_path):
    make_student().save(str(tmp_path / "model"))
    (tmp_path / "run.json").write_text("[]")
    require_whole(tmp_path / "model")
    assert work_folder_of(tmp_path / "model") is None


def test_a_stage_that_is_not_done_has_no_checksums_yet(stage):
    work = stage.parents[2]
    stages = [{"name": "all", "done": False, "fields": {}}]
    write_record(work / "run.json", {"format": "st-distill/run", "version": 1, "recipe": "0", "stages": stages})
    (stage / "st_distill_stage.json").unlink()
    flip(stage / "2_MatryoshkaProjection" / "model.safetensors")
    load_student(stage)


def test_a_damaged_encoder_is_a_mistake_of_a_pretraining(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "encoder")
    write_json(folder / "st_distill_pretraining.json", {"files": manifest(folder)})
    flip(folder / "model.safetensors")
    (tmp_path / "texts.txt").write_text("a cat\n")
    recipe = Pretraining(
        output=str(tmp_path / "out"),
        encoder=Encoder(model=str(folder)),
        tokenizer=TokenizerSpec(model=str(folder)),
        texts=str(tmp_path / "texts.txt"),
        steps=1,
    )
    told = [f"{problem.path}: {problem.message}" for problem in check_pretraining(recipe)]
    for path in ("encoder.model", "tokenizer.model"):
        assert [line for line in told if line.startswith(f"{path}: The model {folder} is damaged: model.safetensors: ")]


def test_an_export_that_would_be_taken_for_whole(make_student, tmp_path):
    student = make_student(MatryoshkaProjection(32, [24, 8])).eval()
    student.save(str(tmp_path / "wordless"))
    (tmp_path / "wordless" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="The tokenizer of .*/wordless must know words"):
        export(tmp_path / "wordless", tmp_path / "model")
    student[2].linears[0].weight.data[0, 0] = float("nan")
    student.save(str(tmp_path / "broken"))
    with pytest.raises(
        ValueError, match="The weights of .*/broken must be finite numbers. There is NaN or infinity in 2"
    ):
        export(tmp_path / "broken", tmp_path / "model")
    assert not (tmp_path / "model").exists()


NAME = "README.txt\nThe model c/m is whole.\n\x1b[8m hf_abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("noted", "told"),
    [
        ([], "it does not say what the files were"),
        (None, "it does not say what the files were"),
        ({"files": []}, "it does not say what the files were"),
        ({"files": {"a": None}}, "it does not say what the files were"),
        ({"files": {"a": {"bytes": 1}}}, "it does not say what the files were"),
        ({"files": {"a": {"bytes": "1", "sha256": "0"}}}, "it does not say what the files were"),
        ({"files": {"a" * 300: {"bytes": 1, "sha256": "0"}}}, "there is no such file"),
    ],
)
@pytest.mark.parametrize("description", ["st_distill.json", "st_distill_stage.json"])
def test_what_a_stranger_has_noted(description, noted, told, make_student, tmp_path, capsys):
    make_student().save(str(tmp_path / "model"))
    write_json(tmp_path / "model" / description, noted)
    assert main(["verify", str(tmp_path / "model")]) == 1
    assert f": {told}; to mend it: " in capsys.readouterr().out
    with pytest.raises(ValueError, match=f"is damaged: .*{told}.*remove its {description}"):
        load_student(tmp_path / "model")


def test_a_strangers_name_is_one_line_and_no_code(make_student, tmp_path, capsys):
    make_student().save(str(tmp_path / "model"))
    write_json(tmp_path / "model" / "st_distill_stage.json", {"files": {NAME: {"bytes": 1, "sha256": "0"}}})
    assert main(["verify", str(tmp_path / "model")]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(r"README.txt\nThe model c/m is whole.\n\x1b[8m …: there is no such file; to mend it")
    assert second == f"The model {tmp_path / 'model'} is not whole: 1 finding."
    assert main(["info", str(tmp_path / "model")]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "hf_" not in said
