"""Pipes, devices and folders in the places of files, or links to them, as archives may hold them: told, never waited for."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from st_distill import Teacher, TeacherStore, files
from st_distill.cli import main
from st_distill.exporting import export
from st_distill.modules import MatryoshkaProjection

#: A command that waits for a pipe is killed after so many seconds; one that reads a device to its end has so much memory.
SECONDS, MEMORY = 100, 4 * 2**30

PUT = {
    "pipe": (os.mkfifo, "is a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "of the system": (lambda path: path.symlink_to("/proc/self/status"), "lies in /proc"),
}


def command(*words):
    """The exit code of a command and all that it says, in a process that cannot hang and cannot take the machine's memory.

    In a fork of this one: the imports of a new one take seconds.
    """
    with tempfile.TemporaryFile() as output:
        if not (child := os.fork()):
            code = 70
            try:
                for stream, name in enumerate(("stdout", "stderr"), start=1):
                    os.dup2(output.fileno(), stream)
                    setattr(sys, name, os.fdopen(stream, "w"))
                signal.alarm(SECONDS)
                torch.set_num_threads(1)  # the threads of the parent are not here: what waits for them hangs
                limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                code = main([str(word) for word in words])
            except BaseException as error:
                os.write(2, repr(error).encode())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return code, output.read().decode()


def put(kind, path):
    """Put something else in the place of a file, and return what is told of it."""
    path.unlink(missing_ok=True)
    make, told = PUT[kind]
    make(path)
    return told


@pytest.fixture
def store(tmp_path):
    teacher = Teacher(lambda texts: np.ones((len(texts), 4)), name="first", revision="1")
    TeacherStore.create(tmp_path / "store", ["a", "b"], teacher, show_progress=False)
    return tmp_path / "store"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, tiny_bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("models") / "foreign"
    transformer = Transformer(tiny_bert)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize("kind", PUT)
def test_what_is_read_of_a_file_is_a_plain_one(kind, tmp_path):
    path = tmp_path / "store.json"
    put(kind, path)
    # Before it is opened: none of these may wait.
    with pytest.raises(ValueError, match=PUT[kind][1]):
        files.require_plain(path)
    assert files.odd_file(tmp_path) is None if kind == "folder" else files.odd_file(tmp_path)[0] == path


def test_a_description_has_an_end(tmp_path):
    path = tmp_path / "store.json"
    with path.open("wb") as file:
        file.truncate(files.LARGEST + 1)
    for read in (files.read_json, files.read_signed, files.read_record):
        with pytest.raises(ValueError, match="store.json has 268,435,457 bytes, where at most 268,435,456 are read"):
            read(path)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_description_of_a_store(kind, store):
    told = f"store.json {put(kind, store / 'store.json')}"
    if kind == "device":  # which is a link to one: no link in a store is followed
        told = "a link leads out of the store"
    code, said = command("verify", store)
    assert (code, "store.json: " in said, told in said) == (1, True, True)


@pytest.mark.parametrize("file", ["store.copy.json", "processes/a/1.journal.json"])
def test_a_second_record_of_a_store(file, store):
    (store / file).parent.mkdir(parents=True, exist_ok=True)
    told = put("pipe", store / file)
    code, said = command("verify", store)
    assert (code, f"{file}: " in said, told in said) == (1, True, True)


@pytest.mark.parametrize("file", ["results.json", "findings.json", "run.copy.json"])
def test_a_record_of_a_run(file, tmp_path):
    from st_distill.recipe.state import RunState

    work = tmp_path / "out-run"
    work.mkdir()
    RunState(work).plan([{"name": "all", "fields": {}}], from_stage=1)
    told = put("pipe", work / file)
    code, said = command("verify", work)
    assert (code, f"{file}: it cannot be read" in said or f"{file} {told}" in said) == (1, True)
    if file != "run.copy.json":
        code, said = command("report", work)
        assert (code, f"{file} {told}" in said) == (2, True)


def test_the_card_of_an_export(make_student, tmp_path):
    model = tmp_path / "model"
    export(make_student(MatryoshkaProjection(32, [8])).eval(), model)
    told = put("pipe", model / "README.md")
    code, said = command("verify", model)
    assert (code, f"README.md: it {told}" in said) == (1, True)
    code, said = command("info", model)
    assert (code, f"{model / 'README.md'} {told}" in said) == (2, True)


@pytest.mark.parametrize("file", ["README.md", "1_Pooling/config.json", "modules.json"])
def test_a_file_of_a_foreign_model(file, foreign, tmp_path):
    model = shutil.copytree(foreign, tmp_path / "model")
    told = put("pipe", model / file)
    code, said = command("verify", model)
    assert (code, f"{file}: it {told}" in said) == (1, True)
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\na\ta\t1\na\tb\t0\nb\tc\t0.5\n")
    code, said = command("eval", model, f"sts:{tmp_path}/pairs.tsv")
    assert (code, told in said) == (2, True)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("file", ["st_distill_stage.json", "st_distill.json"])
def test_what_is_noted_of_a_model(file, kind, foreign, tmp_path):
    model = shutil.copytree(foreign, tmp_path / "model")
    told = put(kind, model / file)
    code, said = command("verify", model)
    assert (code, f"{file}: it cannot be read ({model / file} {told}" in said) == (1, True)


def test_a_pipe_behind_a_link_to_a_folder(foreign, tmp_path):
    model = shutil.copytree(foreign, tmp_path / "model")
    (model / "1_Pooling").rename(tmp_path / "elsewhere")
    (model / "1_Pooling").symlink_to("../elsewhere")
    (model / "self").symlink_to(".")  # which is gone through once
    (model / "nothing").symlink_to("nowhere")
    assert files.odd_file(model) is None
    put("pipe", tmp_path / "elsewhere" / "config.json")
    assert files.odd_file(model) == (
        model / "1_Pooling" / "config.json",
        "is a pipe, where a plain file is expected",
    )


def test_links_lead_through_no_disk(foreign, tmp_path, monkeypatch):
    model = shutil.copytree(foreign, tmp_path / "model")
    (tmp_path / "disk").mkdir()
    for number in range(8):
        (tmp_path / "disk" / str(number)).touch()
    (model / "all").symlink_to("../disk")
    assert files.odd_file(model) is None
    monkeypatch.setattr(files, "_LINKED", 7)
    path, what = files.odd_file(model)
    assert path == model / "all"
    assert "leads to more than 7 files outside the folder" in what


def test_a_snapshot_of_the_hubs_cache_is_links(foreign, tmp_path):
    """As huggingface_hub lays it out: a folder of links to blobs."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in foreign.rglob("*") if path.is_file())):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(foreign)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    code, said = command("verify", snapshot)
    assert (code, "can be used" in said) == (0, True)


def test_the_facts_of_a_model(foreign, tmp_path, outcome):
    from st_distill.recipe.models import read_model, text_tokenizer

    model = shutil.copytree(foreign, tmp_path / "model")
    told = put("pipe", model / "tokenizer.json")
    assert told in outcome(lambda: text_tokenizer(str(model), None, trusted=False))
    told = put("folder", model / "config.json")
    assert told in outcome(lambda: read_model(str(model), None))
