"""Where a student agrees with its teachers and where it does not: pairs of texts, single texts, pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

__all__ = ["Difference", "Neighbour", "Retrieved", "Thumbnail", "differences", "gallery", "similarity_pairs"]

#: Side of a picture in the page, in pixels, at most.
_PIXELS = 112


@dataclass(frozen=True)
class Neighbour:
    """A text near another one: its similarity in [-1, 1] by the model whose list it is in, its rank (from 1) by the other
    model, and whether it is in that one's list too."""

    text: str
    similarity: float
    other_rank: int
    shared: bool


@dataclass(frozen=True)
class Difference:
    """A text, and its nearest texts by the student and by the teachers."""

    text: str
    shared: int
    student: tuple[Neighbour, ...]
    teacher: tuple[Neighbour, ...]


def differences(
    texts: Sequence[str], student: torch.Tensor, teacher: torch.Tensor, *, neighbours: int = 5, count: int = 8
) -> list[Difference]:
    """The texts on whose neighbours a student and its teachers differ most, the worst first.

    A text counts as the worse the farther down, on average, the student ranks its nearest texts by the teachers.

    Args:
        texts: n different texts.
        student, teacher: (n, any width) vectors of any length; row i belongs to text i.
        neighbours: texts in each list, fewer where there are not so many.
        count: how many texts to give, at most.
    """
    neighbours = min(neighbours, len(texts) - 1)
    similarities = [_similarities(student), _similarities(teacher)]
    for matrix in similarities:
        matrix.fill_diagonal_(-torch.inf)
    orders = [matrix.argsort(dim=1, descending=True, stable=True) for matrix in similarities]
    # ranks[i, j]: the place, from 0, of text j among those near to text i.
    ranks = [order.argsort(dim=1) for order in orders]
    missed = ranks[0].gather(1, orders[1][:, :neighbours]).float().mean(dim=1)
    found = []
    for row in missed.argsort(descending=True, stable=True)[:count].tolist():
        lists = []
        for own, other in ((0, 1), (1, 0)):
            lists.append(
                tuple(
                    Neighbour(
                        text=texts[near],
                        similarity=float(similarities[own][row, near]),
                        other_rank=int(ranks[other][row, near]) + 1,
                        shared=int(ranks[other][row, near]) < neighbours,
                    )
                    for near in orders[own][row, :neighbours].tolist()
                )
            )
        found.append(Difference(texts[row], sum(near.shared for near in lists[0]), lists[0], lists[1]))
    return found


def similarity_pairs(
    student: torch.Tensor, teacher: torch.Tensor, *, count: int = 700, seed: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """(teacher's, student's) similarities of pairs of rows: "any two texts", and "near ones" by the teacher.

    Most pairs of texts have nothing to do with each other. So the second group, as large as the first, takes of random
    rows one of the ten that are nearest by the teacher.

    Args:
        student, teacher: (n, any width) vectors of any length, n at least 3.
        count: pairs of each group.
        seed: of the choice.
    """
    generator = np.random.default_rng(seed)
    rows = len(student)
    ours, theirs = _similarities(student), _similarities(teacher)
    first = generator.integers(rows, size=count)
    second = (first + generator.integers(1, rows, size=count)) % rows
    near_first = generator.integers(rows, size=count)
    nearest = theirs.clone().fill_diagonal_(-torch.inf).topk(min(10, rows - 1), dim=1).indices.numpy()
    near_second = nearest[near_first, generator.integers(nearest.shape[1], size=count)]
    groups = {"any two texts": (first, second), "near ones": (near_first, near_second)}
    return {label: list(zip(theirs[pair].tolist(), ours[pair].tolist(), strict=True)) for label, pair in groups.items()}


def _similarities(vectors: torch.Tensor) -> torch.Tensor:
    vectors = normalize(vectors.detach().cpu().float(), dim=1)
    return vectors @ vectors.T


@dataclass(frozen=True)
class Thumbnail:
    """A picture in the page: its file (PNG or JPEG), its caption, its size in pixels, and whether it is a right one."""

    data: bytes
    caption: str
    width: int
    height: int
    right: bool

    @property
    def url(self) -> str:
        """The file as a URL that holds it."""
        kind = "png" if self.data.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True)
class Retrieved:
    """A caption, the pictures that the student finds for it, best first, and the rank (from 1) of the right one.

    ``missed`` is the right picture where it is not among them.
    """

    caption: str
    rank: int
    found: tuple[Thumbnail, ...]
    missed: Thumbnail | None


def gallery(
    model: SentenceTransformer,
    pictures: Sequence[PIL.Image.Image],
    captions: Sequence[str],
    *,
    shown: int = 4,
    count: int = 5,
    seed: int = 0,
) -> tuple[list[Retrieved], list[Retrieved]]:
    """Captions whose picture the student finds first, and captions where it does not: chosen at random among each.

    Args:
        model: the student.
        pictures, captions: n of each; caption i belongs to picture i. A picture with an equal caption is as right.
        shown: pictures to give for a caption.
        count: captions of each kind, at most.
        seed: of the choice.
    """
    distinct = list(dict.fromkeys(captions))
    options = {"convert_to_tensor": True, "show_progress_bar": False}
    texts, images = (
        normalize(model.encode(inputs, **options).cpu().float(), dim=1) for inputs in (distinct, list(pictures))
    )
    order = (texts @ images.T).argsort(dim=1, descending=True, stable=True).tolist()
    found = []
    for row, caption in enumerate(distinct):
        rank = next(place for place, image in enumerate(order[row], start=1) if captions[image] == caption)
        found.append((row, caption, rank))
    generator = np.random.default_rng(seed)
    kinds = []
    for is_right in (True, False):
        of_kind = [entry for entry in found if (entry[2] == 1) == is_right]
        chosen = generator.permutation(len(of_kind))[:count]
        entries = []
        for row, caption, rank in (of_kind[index] for index in sorted(chosen)):
            best = [_thumbnail(pictures[image], captions[image], caption) for image in order[row][:shown]]
            missed = order[row][rank - 1] if rank > shown else None
            entries.append(
                Retrieved(
                    caption,
                    rank,
                    tuple(best),
                    None if missed is None else _thumbnail(pictures[missed], captions[missed], caption),
                )
            )
        kinds.append(entries)
    return kinds[0], kinds[1]


def _thumbnail(picture: PIL.Image.Image, caption: str, wanted: str) -> Thumbnail:
    # Drawn anew, so that nothing of the file but its pixels gets into the page.
    small = picture.convert("RGB")
    small.thumbnail((_PIXELS, _PIXELS))
    data = io.BytesIO()
    kind = "PNG" if small.width * small.height <= 64 * 64 else "JPEG"
    small.save(data, format=kind, quality=82)
    return Thumbnail(data.getvalue(), caption, small.width, small.height, caption == wanted)
