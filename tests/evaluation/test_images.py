from __future__ import annotations

import pytest
from lookup import lookup, on_circle

from st_distill.evaluation import (
    ImageRetrievalEvaluator,
)


def test_image_retrieval_known_by_hand(images):
    pictures = [images[0], images[4], images[8], images[12]]
    colours = [picture.getpixel((0, 0)) for picture in pictures]
    table = on_circle({"warm": 0, "cold": 90, "other": 180})
    # Two images are "warm": at 10 and 100 degrees; "cold" lies at 82, "other" at 95.
    table |= dict(zip(colours, on_circle(dict(zip("abcd", (10, 100, 82, 95)))).values()))
    evaluator = ImageRetrievalEvaluator(pictures, ["warm", "warm", "cold", "other"], at=(1, 2, 10), dims=[2])
    assert evaluator.primary_metric == "recall@10_2"
    scores = evaluator(lookup(table))
    # warm: the image at 10 degrees comes first. cold: 95 lies nearer to 90 than 82. other: 100 lies nearer than 95.
    assert scores["recall@1_2"] == pytest.approx(1 / 3)
    assert scores["recall@2_2"] == 1
    assert scores["recall@10_2"] == 1
    assert scores["chance@1"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert scores["chance@2"] == pytest.approx((1 - 1 / 6 + 1 / 2 + 1 / 2) / 3)
    assert scores["chance@10"] == 1


def test_images_all_alike_find_nothing(images):
    pictures = images[::4]
    colours = {picture.getpixel((0, 0)): [1.0, 0.0] for picture in pictures}
    texts = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 1.0], "d": [0.5, 0.2]}
    scores = ImageRetrievalEvaluator(pictures, list(texts), at=(1, 3))(lookup(colours | texts))
    assert scores["recall@1_2"] == scores["recall@3_2"] == 0


def test_image_retrieval_checks_its_columns(images):
    with pytest.raises(ValueError, match="'images' and 'captions'.*Got 16 and 1"):
        ImageRetrievalEvaluator(images, ["a"])
    with pytest.raises(ValueError, match="at least one image"):
        ImageRetrievalEvaluator([], [])
    with pytest.raises(TypeError, match="The 'images' parameter must be a list of images. Got NoneType instead"):
        ImageRetrievalEvaluator(None, ["a"])
    with pytest.raises(ValueError, match="'at' parameter"):
        ImageRetrievalEvaluator(images[:1], ["a"], at=(0,))


def test_a_model_of_texts_finds_no_pictures(make_student):
    """It would take a picture's path for a text."""
    with pytest.raises(ValueError, match="must be a model that takes images. Got one that takes text instead"):
        ImageRetrievalEvaluator(["a.png"], ["a"])(make_student())
