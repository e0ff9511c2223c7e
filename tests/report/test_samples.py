from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from st_distill.report.samples import differences, gallery, similarity_pairs


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_text_that_moved_is_the_worst():
    texts = ["zero", "ten", "twenty", "far", "farther"]
    teacher = on_circle(0, 10, 20, 120, 130)
    student = on_circle(0, 10, 20, 120, 16)
    worst, *others = differences(texts, 3 * student, teacher, neighbours=1)
    assert worst.text == "farther"
    assert [(near.text, near.other_rank, near.shared) for near in worst.teacher] == [("far", 4, False)]
    assert [(near.text, near.other_rank, near.shared) for near in worst.student] == [("twenty", 2, False)]
    assert worst.shared == 0
    assert worst.teacher[0].similarity == pytest.approx(0.98481, abs=1e-4)
    assert {entry.text for entry in others} == {"zero", "ten", "twenty", "far"}
    assert next(entry for entry in others if entry.text == "zero").shared == 1


def test_lists_are_no_longer_than_the_texts():
    (entry, *_) = differences(["a", "b", "c"], on_circle(0, 10, 30), on_circle(0, 10, 30), neighbours=5, count=2)
    assert len(entry.student) == len(entry.teacher) == entry.shared == 2


def test_pairs_of_an_equal_student_are_on_the_line():
    vectors = on_circle(*range(0, 180, 12))
    groups = similarity_pairs(2 * vectors, vectors, count=50, seed=3)
    assert [len(group) for group in groups.values()] == [50, 50]
    for group in groups.values():
        assert all(ours == pytest.approx(theirs, abs=1e-6) for theirs, ours in group)
        assert all(theirs < 0.999 for theirs, _ in group)  # never a text with itself
    random, near = (sum(theirs for theirs, _ in group) / 50 for group in groups.values())
    assert near > random
    assert groups == similarity_pairs(2 * vectors, vectors, count=50, seed=3)


class Lookup:
    """Stands in for a model: a vector for each word, and for each picture by its red value."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, inputs, **options):
        return torch.stack(
            [self.vectors[entry if isinstance(entry, str) else entry.getpixel((0, 0))[0]] for entry in inputs]
        )


def test_gallery_tells_right_from_wrong():
    pictures = [Image.new("RGBA", (300, 150), (red, 0, 0, 255)) for red in (10, 20, 30, 40)]
    angles = on_circle(0, 40, 80, 120)
    model = Lookup(dict(zip(["a", "b", "c", 10, 20, 30, 40], [*on_circle(1, 41, 1), *angles])))
    right, wrong = gallery(model, pictures, ["a", "b", "c", "a"], shown=2, count=9)
    assert [(entry.caption, entry.rank) for entry in right] == [("a", 1), ("b", 1)]
    assert [thumbnail.right for thumbnail in right[0].found] == [True, False]
    (missed,) = wrong
    assert (missed.caption, missed.rank) == ("c", 3)
    assert [thumbnail.caption for thumbnail in missed.found] == ["a", "b"]
    assert missed.missed.right
    kind, _, data = missed.missed.url.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (112, 56) == (missed.missed.width, missed.missed.height)
    assert gallery(model, pictures, ["a", "b", "c", "a"], shown=2, count=1)[0][0] in right
