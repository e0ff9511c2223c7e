"""How often a caption finds its picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import comb
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_distill.evaluation.base import (
    Evaluator,
    checked_dims,
    checked_list,
    checked_model,
    checked_positive,
    checked_texts,
    dims_of,
    encode,
    prefix,
    same_length,
)

__all__ = ["ImageRetrievalEvaluator"]


class ImageRetrievalEvaluator(Evaluator):
    """Text-to-image retrieval: a caption finds its image among all images.

    Metrics, for each dimension d and each k of ``at``:

    - ``recall@<k>_<d>``, in [0, 1]: the share of distinct captions that have an image of theirs among the k most
      similar images. Where several images carry the same caption, any of them counts. Ties count against the model, so
      that one whose images are all alike finds nothing.
    - ``chance@<k>``: what an arbitrary order of the images reaches on average: for a caption with m of n images
      1 - C(n - m, k) / C(n, k), averaged over captions.

    The primary metric is the recall at the largest k and the largest dimension, the one with the least noise.

    Args:
        images: n images, as the model's ``encode`` takes them (PIL images; a datasets Image column).
        captions: n captions; caption i belongs to image i.
        dims: prefixes of the vectors to judge; None: the full width alone.
        at: the k's.
        name, batch_size, show_progress_bar, write_csv: as in TeacherFidelityEvaluator.
    """

    def __init__(
        self,
        images: Sequence[Any],
        captions: Sequence[str],
        *,
        dims: Sequence[int] | None = None,
        at: Sequence[int] = (1, 10),
        name: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__(name, "image_retrieval", write_csv)
        captions = checked_texts("captions", captions)
        self.images = checked_list("images", images, "images")
        same_length("images", self.images, "captions", captions)
        if not captions:
            raise ValueError("The 'images' parameter must hold at least one image. Got none instead.")
        self.dims = checked_dims(dims)
        self.at = tuple(sorted({checked_positive("at", k) for k in at}))
        self.batch_size = checked_positive("batch_size", batch_size)
        self.show_progress_bar = show_progress_bar

        self.captions = list(dict.fromkeys(captions))
        rows = {caption: row for row, caption in enumerate(self.captions)}
        self._relevant = torch.zeros(len(self.captions), len(self.images), dtype=torch.bool)
        self._relevant[[rows[caption] for caption in captions], range(len(captions))] = True
        count = len(self.images)
        matches = self._relevant.sum(dim=1).tolist()
        self.chance = {
            k: statistics.fmean(1 - comb(count - m, min(k, count)) / comb(count, min(k, count)) for m in matches)
            for k in self.at
        }
        if self.dims is not None:
            self.primary_metric = f"recall@{self.at[-1]}_{self.dims[0]}"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        if not checked_model("model", model).supports("image"):
            raise ValueError(
                f"The 'model' parameter must be a model that takes images. Got one that takes "
                f"{', '.join(map(str, model.modalities))} instead."
            )
        options = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        captions = encode(model, self.captions, **options)
        images = encode(model, self.images, **options)
        metrics = {}
        dims = dims_of(self.dims, captions.shape[1])
        for dim in dims:
            similarities = (prefix(captions, dim) @ prefix(images, dim).T).cpu()
            best = similarities.masked_fill(~self._relevant, -torch.inf).amax(dim=1, keepdim=True)
            before = ((similarities >= best) & ~self._relevant).sum(dim=1)
            for k in self.at:
                metrics[f"recall@{k}_{dim}"] = (before < k).float().mean().item()
        metrics |= {f"chance@{k}": chance for k, chance in self.chance.items()}
        self.primary_metric = f"recall@{self.at[-1]}_{dims[0]}"
        return self.report(model, metrics, output_path, epoch, steps)

    def get_config_dict(self) -> dict[str, Any]:
        return {"dims": self.dims}
