"""What a loss compares in a batch: every head of the student, and what the teacher says of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from st_distill import functional
from st_distill.modules.matryoshka import find_projection

__all__ = ["Batch", "CosineWeights"]

#: How the dimensions of a cosine term are averaged.
CosineWeights = Literal["equal", "proportional"]


class Relations:
    """The teacher's similarities within a batch, computed once for all terms and dimensions."""

    def __init__(self, unit: Tensor) -> None:
        self.unit = unit

    @cached_property
    def matrix(self) -> Tensor:
        return functional.similarities(self.unit, exact_ties=True)

    @cached_property
    def ranking(self) -> functional.PairRanking:
        return functional.PairRanking(functional.pairs(self.matrix))


class Batch:
    """The student's embeddings of a batch and the teacher's vectors of the same texts.

    A head is named by its dimension; None is the full width: the teacher's head where there is one, else the widest.
    """

    def __init__(
        self, model: nn.Module, embedding: Tensor, vectors: Tensor, *, match_dims: bool, is_wrapped: bool
    ) -> None:
        self.projection = find_projection(model)
        self.match_dims = match_dims
        self.is_wrapped = is_wrapped
        self.embedding = embedding
        self.teacher = Relations(functional.normalize(vectors.to(embedding.device)))
        self._teacher_heads: dict[int | None, Relations] = {}
        self._student_similarities: dict[tuple[int | None, bool], Tensor] = {}

    def cosine(self, dims: list[int] | None, weights: CosineWeights) -> Tensor:
        heads = [None] if dims is None else dims
        terms = [functional.cosine_term(self._cut(self.embedding, head), self._coordinates(head)) for head in heads]
        if dims is None or weights == "equal":
            return torch.stack(terms).mean()
        return torch.stack([dim * term for dim, term in zip(dims, terms)]).sum() / sum(dims)

    def similarity(self, dims: list[int] | None, *, bits: bool = False) -> Tensor:
        terms = [
            functional.similarity_term(similarities, self._relations(head).matrix)
            for head, similarities in self._relation_heads(dims, bits)
        ]
        return torch.stack(terms).mean()

    def triplet(self, dims: list[int] | None, margin: float, *, bits: bool = False) -> Tensor:
        terms = [
            functional.triplet_term(functional.pairs(similarities), self._relations(head).ranking, margin)
            for head, similarities in self._relation_heads(dims, bits)
        ]
        return torch.stack(terms).mean()

    def _relation_heads(self, dims: list[int] | None, bits: bool) -> Iterator[tuple[int | None, Tensor]]:
        """The heads whose relations are compared, each with its similarities, and then those of its signs."""
        has_teacher_head = self.projection is not None and self.projection.teacher_head is not None
        heads = [None] if dims is None else [None, *dims] if has_teacher_head else [*dims]
        for of_signs in (False, True) if bits else (False,):
            for head in heads:
                yield head, self._similarities(head, of_signs)

    def _cut(self, vectors: Tensor, head: int | None) -> Tensor:
        if self.projection is None:
            return vectors[..., :head]
        if head is None:
            head = self.projection.out_features
            if (view := self.projection.teacher_view()) is not None:
                return vectors[..., view]
        return vectors[..., self.projection.views().get(head, slice(0, head))]

    def _similarities(self, head: int | None, of_signs: bool) -> Tensor:
        key = (head, of_signs)
        if key not in self._student_similarities:
            compute = functional.bit_similarities if of_signs else functional.similarities
            self._student_similarities[key] = compute(self._cut(self.embedding, head))
        return self._student_similarities[key]

    def _relations(self, head: int | None) -> Relations:
        if not self.match_dims:
            return self.teacher
        if head not in self._teacher_heads:
            self._teacher_heads[head] = Relations(functional.normalize(self._cut(self.teacher.unit, head)))
        return self._teacher_heads[head]

    def _coordinates(self, head: int | None) -> Tensor:
        """Unit vectors that the student's head should point to."""
        if self.match_dims:
            return self._relations(head).unit
        if head is None and self.projection is not None and self.projection.teacher_head is not None:
            return self.teacher.unit
        aligned = self.teacher.unit if self.projection is None else self.projection.align(self.teacher.unit)
        # Inside MatryoshkaLoss the embedding has been cut already, and the teacher follows.
        width = self.embedding.shape[1] if head is None and self.is_wrapped else head
        return functional.normalize(aligned[..., :width])
