"""Options that are no numbers, or none that can be: one sentence each, wherever they are given."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from datasets import Dataset

from st_distill import Teacher, TeacherStore, export, functional, losses, run
from st_distill.evaluation import TeacherFidelityEvaluator
from st_distill.exporting import export_teacher
from st_distill.options import check_whole_number, is_number
from st_distill.pretrain import pretrain
from st_distill.recipe import load_recipe
from st_distill.sampler import LengthGroupedBatchSampler, StoreOrderBatchSampler


@pytest.mark.parametrize("value", [True, False, 0, -1, 2.0, "2", None, float("nan"), np.float32(2)])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match="The 'count' must be a whole number from 1. Got "):
        check_whole_number("'count'", value)


def test_whole_numbers():
    check_whole_number("'count'", 1)
    check_whole_number("'count'", 0, least=0)
    check_whole_number("'count'", None, optional=True)
    with pytest.raises(ValueError, match="a whole number from 2, or None. Got 1 instead"):
        check_whole_number("'count'", 1, least=2, optional=True)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda: run({"output": "x"}),
            "The recipe must be a Recipe, a YAML file or the name of a preset. Got dict instead",
        ),
        (lambda: run(None), "a Recipe, a YAML file or the name of a preset. Got NoneType instead"),
        (lambda: load_recipe(None), "The recipe must be a YAML file or the name of a preset. Got NoneType instead"),
        (lambda: pretrain(None), "a Pretraining, a YAML file or the name of a preset. Got NoneType instead"),
        (lambda: TeacherStore.open(None), "The 'path' parameter must be a path, .* Got NoneType instead"),
        (
            lambda: TeacherStore.create(None, ["a"], Teacher(torch.ones, name="a", revision="1")),
            "The 'path' parameter must be a path",
        ),
        (
            lambda: export(None, "x"),
            "The 'model' parameter must be a SentenceTransformer, or the folder of one. Got None",
        ),
        (lambda: export("x", None), "The 'path' parameter must be a path, .* Got NoneType instead"),
        (
            lambda: export_teacher(None, None, "x"),
            "The 'student' parameter must be a SentenceTransformer, or the folder",
        ),
    ],
)
def test_what_is_no_path(use, message):
    with pytest.raises(TypeError, match=message):
        use()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, True), (1.0, True), (np.float32(0.5), True), (1.1, False), (True, False), ("0", False), (None, False)],
)
def test_numbers(value, expected):
    assert is_number(value, 0, 1) is expected
    assert not is_number(float("nan"))
    assert is_number(float("inf"))


def store(tmp_path, **options):
    teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="t", revision="1")
    return TeacherStore.create(tmp_path / "s", ["a", "b"], teacher, show_progress=False, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"shard_rows": True},
            ValueError,
            "'shard_rows' of TeacherStore.create must be a whole number from 1. Got True",
        ),
        ({"shard_seconds": "60"}, ValueError, "'shard_seconds' .* must be a number of seconds, at least 0. Got '60'"),
        ({"shard_seconds": None}, ValueError, "'shard_seconds' .* Got None"),
        ({"shard_seconds": float("nan")}, ValueError, "'shard_seconds' .* Got nan"),
        ({"shard_seconds": -1}, ValueError, "'shard_seconds' .* Got -1"),
        (
            {"process": 0},
            TypeError,
            "'process' .* must be two whole numbers, .* Got 0 instead; .* pass process=\\(0, 1\\)",
        ),
        ({"process": (0,)}, TypeError, "'process' .* Got \\(0,\\)"),
        ({"process": ("0", "2")}, TypeError, "'process' .* Got \\('0', '2'\\)"),
        ({"process": (False, 1)}, TypeError, "'process' .* Got \\(False, 1\\)"),
        ({"process": "01"}, TypeError, "'process' .* Got '01'"),
    ],
)
def test_of_a_store(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        store(tmp_path, **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("rank", "count"), [("one", "2"), ("0", ""), ("2", "2"), ("-1", "2")])
def test_of_the_environment(tmp_path, monkeypatch, rank, count):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(ValueError, match=f"RANK and WORLD_SIZE of the environment .* Got '{rank}' and '{count}'"):
        store(tmp_path)
    assert len(store(tmp_path, process=(0, 1))) == 2


@pytest.mark.parametrize("name", ["mini_batch_size", "length_parts"])
def test_of_a_loss(name, make_student):
    with pytest.raises(ValueError, match=f"The '{name}' must be a whole number from 1, or None. Got True"):
        losses.CosineDistill(make_student(), **{name: True})
    with pytest.raises(ValueError, match="'weights' must be numbers of at least 0"):
        losses.JasperDistill(make_student(), weights={"cosine": True})
    with pytest.raises(ValueError, match="'margin' must be a finite number"):
        functional.triplet_distill(torch.eye(3), torch.eye(3), margin=True)


def test_of_a_teacher_and_an_evaluation():
    with pytest.raises(ValueError, match="'batch_size' parameter of Teacher .* Got True"):
        Teacher(len, name="t", revision="1", batch_size=True)
    with pytest.raises(ValueError, match="'neighbours' parameter must be a whole number from 1. Got True"):
        TeacherFidelityEvaluator(["a", "b", "c"], np.eye(3), neighbours=True)


TEXTS = Dataset.from_dict({"text": ["a", None, "ccc"], "label": [0, 1, 0]})


@pytest.mark.parametrize("share", ["0.5", None, True, float("nan"), -0.1])
def test_of_a_share(share):
    texts = TEXTS.select([0, 2])
    with pytest.raises(
        ValueError, match="'random_share' of LengthGroupedBatchSampler must be a number from 0 to 1. Got"
    ):
        LengthGroupedBatchSampler(texts, 2, False, ["label"], random_share=share)


def test_a_text_that_is_none():
    with pytest.raises(TypeError, match="text of column 'text' must be a string .* Got NoneType in row 1; fill it in"):
        LengthGroupedBatchSampler(TEXTS, 2, False, ["label"])


def test_of_the_order_of_a_store(tmp_path):
    make = functools.partial(StoreOrderBatchSampler, TEXTS, 2, False, ["label"])
    for shards in (True, 1.5, "8", None):
        with pytest.raises(ValueError, match="'window_shards' of StoreOrderBatchSampler must be a whole number from 1"):
            make(store=store(tmp_path), window_shards=shards)
    with pytest.raises(TypeError, match=r"'store' of StoreOrderBatchSampler must be a TeacherStore .* Got str instead"):
        make(store=str(tmp_path / "s"))
