"""The stage of images: a student with eyes, its own vectors of the captions as the teacher, and the pictures."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, Image
from sentence_transformers import SentenceTransformer

from st_distill.exporting import with_modules
from st_distill.modules import MatryoshkaProjection, Transformer
from st_distill.modules.image_loading import load_image
from st_distill.modules.matryoshka import find_projection
from st_distill.recipe.data import read_images
from st_distill.recipe.schema import Images, ImageSource
from st_distill.store import TeacherStore


class OwnVectors:
    """The student's own embedding of a caption, every head side by side: the teacher of stage 4."""

    def __init__(self, model: SentenceTransformer, projection: MatryoshkaProjection) -> None:
        self.model, self.projection = model, projection

    def __call__(self, texts: list[str]) -> np.ndarray:
        with self.projection.all_heads():
            return self.model.encode(texts, show_progress_bar=False)


def with_eyes(model: SentenceTransformer, images: Images) -> SentenceTransformer:
    """The text model with a vision encoder in front; its text vectors do not change, which `from_encoders` looks at.

    A model that has one already is returned as it is.
    """
    if isinstance(model[0], Transformer):
        return model
    eyes = Transformer.from_encoders(model, images.vision, tokens=images.tokens)
    seeing = with_modules(model, [eyes, *list(model.children())[1:]])
    if (projection := find_projection(seeing)) is not None:
        projection.rotate(None)  # from here on the teacher is the student itself
    return seeing


def pictures_and_captions(source: ImageSource) -> tuple[list[PIL.Image.Image], list[str]]:
    """All pictures of a source, decoded, and the caption of each."""
    pictures = read_images(source).dataset.cast_column(source.image, Image(decode=False))
    return [load_image(stored) for stored in pictures[source.image]], list(pictures[source.caption])


def image_data(pictures: Dataset, captions: TeacherStore, images: Images) -> Dataset:
    """The pictures, decoded when they are read, each with the row number of its caption's vector as its label."""
    dataset = captions.add_labels(pictures.select_columns([images.image, images.caption]), [images.caption])
    # Undecoded on disk, so that it is load_image that reads them, whatever their mode.
    dataset = dataset.remove_columns(images.caption).cast_column(images.image, Image(decode=False))
    return dataset.with_transform(partial(_decode, image=images.image))


def _decode(rows: dict[str, list[Any]], *, image: str) -> dict[str, list[Any]]:
    return {**rows, image: [load_image(stored) for stored in rows[image]]}
