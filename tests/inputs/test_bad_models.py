"""Folders of models whose files a stranger, or a broken disk, has changed: a sentence, of which folder it is."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from st_distill.exporting import info
from st_distill.recipe.models import UnknownModel, read_model
from st_distill.teacher.identity import folder_revision

FILES = ["modules.json", "config.json", "1_Pooling/config.json", "config_sentence_transformers.json"]
CONTENTS = {
    "deep": "[" * 100_000,
    "nothing": "",
    "a number": "5",
    "a list": "[5]",
    "an object": '{"a": 1}',
    "a path that leads out": json.dumps([{"idx": 0, "name": "0", "path": "../m", "type": "mine.Module"}]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("models") / "whole"
    transformer = Transformer(tiny_bert)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return folder


def test_a_pipe_among_the_files_is_not_waited_for(whole, tmp_path, outcome):
    folder = shutil.copytree(whole, tmp_path / "model")
    os.mkfifo(folder / "notes.bin")
    said = outcome(lambda: folder_revision(folder))
    assert f"{folder / 'notes.bin'} is neither: remove it" in said


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("file", FILES)
def test_files_of_another_shape(file, content, whole, tmp_path, outcome):
    folder = shutil.copytree(whole, tmp_path / "model")
    (folder / file).write_text(CONTENTS[content])

    def read() -> None:
        try:
            read_model(str(folder), None)
        except UnknownModel as error:
            raise ValueError(str(error)) from error

    for said in (outcome(read), outcome(lambda: info(folder))):
        assert said == "success" or str(folder) in said
    if file in ("modules.json", "config.json"):
        assert said != "success"
