"""How well a student keeps its teacher's geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from st_distill.evaluation.base import (
    Evaluator,
    checked_dims,
    checked_positive,
    checked_prompt,
    checked_texts,
    dims_of,
    encode,
    prefix,
    same_length,
)
from st_distill.matrices import as_matrix

__all__ = ["TeacherFidelityEvaluator"]

# Rows of a similarity matrix that are in memory at a time.
_CHUNK = 1024


class TeacherFidelityEvaluator(Evaluator):
    """How well a student keeps the teacher's geometry, which needs no label and no common space.

    Metrics, for each dimension d:

    - ``spearman_<d>``, in [-1, 1]: Spearman's rank correlation between the student's and the teacher's cosine
      similarities, over all pairs of texts (a seeded sample of ``max_pairs`` of them where there are more). 0 where all
      similarities of one of the two are equal, as after a collapse.
    - ``overlap<k>_<d>``, in [0, 1]: the share of a text's k nearest texts by the teacher (k = ``neighbours``) that are
      also among its k nearest by the student, the text itself left out, averaged over texts. Chance: k / (texts - 1).
    - ``cka_<d>``, in [0, 1]: linear centred kernel alignment of the two sets of unit-length vectors (Kornblith et al.,
      arXiv 1905.00414, equation 4): 1 where one is a rotation of the other. 0 where one of the two is a single point. It
      is biased upwards where there are few texts for the dimensions.
    - ``cosine_<d>``, in [-1, 1]: mean cosine between a text's two vectors, where d is the teacher's width: only then have
      the two a space in common.

    The teacher is always taken at its full width.

    Args:
        texts: n texts, at least 3.
        teacher_vectors: (n, any width) array or tensor of finite numbers, of any length; row i belongs to text i.
        columns: name of each text's column ("query" and "document", say), n of them: each column's texts are then also
            compared by themselves, as ``<column>_spearman_<d>`` and so on. None: they are all alike.
        dims: prefixes of the student's vectors to judge; None: the full width alone.
        neighbours: k, at most n - 1, and the size of each column less 1.
        max_pairs: similarities that are compared, at most.
        seed: of the sample of pairs.
        prompt: put before each text for the student; None: the model's default.
        name: put before each metric's name.
        batch_size: texts encoded at a time.
        show_progress_bar: while encoding.
        write_csv: into the folder that a trainer names.
    """

    def __init__(
        self,
        texts: Sequence[str],
        teacher_vectors: np.ndarray | torch.Tensor,
        *,
        columns: Sequence[str] | None = None,
        dims: Sequence[int] | None = None,
        neighbours: int = 10,
        max_pairs: int = 500_000,
        seed: int = 0,
        prompt: str | None = None,
        name: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__(name, "teacher_fidelity", write_csv)
        self.texts = checked_texts("texts", texts)
        vectors = as_matrix("'teacher_vectors' parameter", teacher_vectors)
        same_length("texts", self.texts, "teacher_vectors", vectors)
        bad = (~vectors.isfinite()).any(dim=1).nonzero()
        if len(bad):
            raise ValueError(
                "The 'teacher_vectors' parameter must hold finite numbers. "
                f"Got NaN or infinity in {len(bad)} rows, the first of them {int(bad[0])}: embed these texts again."
            )
        self.neighbours = checked_positive("neighbours", neighbours)
        checked_positive("max_pairs", max_pairs)
        self.dims = checked_dims(dims)
        self.prompt = checked_prompt("prompt", prompt)
        self.batch_size = checked_positive("batch_size", batch_size)
        self.show_progress_bar = show_progress_bar
        if self.dims is not None:
            self.primary_metric = f"spearman_{self.dims[0]}"

        teacher = normalize(vectors, dim=1)
        groups = {"": list(range(len(self.texts)))}
        if columns is not None:
            columns = checked_texts("columns", columns)
            same_length("texts", self.texts, "columns", columns)
            for row, column in enumerate(columns):
                groups.setdefault(f"{column}_", []).append(row)
        self._groups = {
            key: (rows, _Geometry(teacher[rows], key, neighbours, max_pairs, seed)) for key, rows in groups.items()
        }

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        vectors = encode(
            model,
            self.texts,
            prompt=self.prompt,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
        )
        dims = dims_of(self.dims, vectors.shape[1])
        metrics = self.scores(vectors, dims)
        self.primary_metric = f"spearman_{dims[0]}"
        return self.report(model, metrics, output_path, epoch, steps)

    def scores(self, vectors: torch.Tensor, dims: Sequence[int]) -> dict[str, float]:
        """The metrics, at these dimensions, of vectors (n, width) of the texts that are there already."""
        metrics: dict[str, float] = {}
        for dim in dims:
            cut = prefix(vectors, dim)
            for key, (rows, teacher) in self._groups.items():
                metrics |= {f"{key}{name}_{dim}": value for name, value in teacher.compare(cut[rows]).items()}
        return metrics

    def get_config_dict(self) -> dict[str, Any]:
        return {"dims": self.dims, "neighbours": self.neighbours}


class _Geometry:
    """The teacher's side of the comparison: ``vectors`` (n, width) of unit length, of which ``key`` names the column."""

    def __init__(self, vectors: torch.Tensor, key: str, neighbours: int, max_pairs: int, seed: int) -> None:
        count = len(vectors)
        where = f" of the column '{key[:-1]}'" if key else ""
        if count < 3:
            raise ValueError(f"The 'texts' parameter must hold at least 3 texts{where}. Got {count} instead.")
        if neighbours >= count:
            raise ValueError(
                f"The 'neighbours' parameter must be below the number of texts{where}, {count}. Got {neighbours} instead."
            )
        self.neighbours = neighbours
        if count * (count - 1) // 2 <= max_pairs:
            self.pairs = torch.triu_indices(count, count, offset=1)
        else:
            generator = np.random.default_rng(seed)
            first = generator.integers(count, size=max_pairs)
            # 1 to count - 1 places further on, cyclically: never the text itself, every other one equally often.
            second = (first + generator.integers(1, count, size=max_pairs)) % count
            self.pairs = torch.from_numpy(np.stack([first, second]))
        self.vectors = vectors
        self.ranks = rankdata(self._similarities(vectors))
        self.nearest = _nearest(vectors, neighbours)
        self.centred = vectors - vectors.mean(dim=0)
        self.spread = _spread(self.centred)

    def compare(self, student: torch.Tensor) -> dict[str, float]:
        """The metrics of ``student`` (n, any width), of unit length."""
        shared = _nearest(student, self.neighbours)[:, :, None] == self.nearest[:, None, :]
        metrics = {
            "spearman": _correlation(rankdata(self._similarities(student)), self.ranks),
            f"overlap{self.neighbours}": shared.any(dim=2).float().mean().item(),
        }
        student = student.cpu()
        centred = student - student.mean(dim=0)
        spread = _spread(centred) * self.spread
        metrics["cka"] = ((centred.T @ self.centred).norm() ** 2 / spread).item() if spread > 0 else 0.0
        if student.shape[1] == self.vectors.shape[1]:
            metrics["cosine"] = (student * self.vectors).sum(dim=1).mean().item()
        return metrics

    def _similarities(self, vectors: torch.Tensor) -> np.ndarray:
        """Cosines of the chosen pairs of rows of ``vectors``, (pairs,)."""
        pieces = [
            (vectors[first] * vectors[second]).sum(dim=1)
            for first, second in zip(*(side.to(vectors.device).split(64 * _CHUNK) for side in self.pairs))
        ]
        return torch.cat(pieces).cpu().numpy()


def _nearest(vectors: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Row numbers of each row's nearest other rows, (rows, neighbours)."""
    nearest = []
    for start in range(0, len(vectors), _CHUNK):
        similarities = vectors[start : start + _CHUNK] @ vectors.T
        rows = torch.arange(len(similarities), device=vectors.device)
        similarities[rows, rows + start] = -torch.inf
        nearest.append(similarities.topk(neighbours, dim=1).indices.cpu())
    return torch.cat(nearest)


def _spread(centred: torch.Tensor) -> float:
    """Frobenius norm of the covariance of centred rows, by way of the smaller of the two Gram matrices."""
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    # Rounding leaves something of vectors that are all alike.
    return gram.norm().item() if centred.abs().max() > 1e-6 else 0.0


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two (n,) arrays, in [-1, 1]; 0 where one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else 0.0
