"""The objectives of `functional` as sentence-transformers losses, for SentenceTransformerTrainer and ``model.fit``.

Every loss takes one or several text (or image) columns and a label column that says what the teacher thinks of them:

- vectors: float (batch, dim), one for all columns of a row, or (batch, columns, dim);
- row numbers of the `TeacherStore` given as ``teacher``: int (batch,) or (batch, columns). This is the fast path: the
  vectors are read from the store when the batch is there, and need no collator.

Several columns make one batch: the relations are those of all its texts, so a query meets its document there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, Protocol, get_args

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import CachedLossMixin, has_static_embedding_input
from sentence_transformers.util.distributed import all_gather, all_gather_with_grad, get_world_size
from torch import Tensor, nn

from st_distill import functional
from st_distill.batch import Batch, CosineWeights
from st_distill.modules.matryoshka import find_projection, unwrap
from st_distill.options import check_whole_number, is_number
from st_distill.padding import embed_by_length

__all__ = ["CosineDistill", "JasperDistill", "SimilarityDistill", "TripletDistill"]

#: Weights of the three terms in arXiv 2412.19048, section 3.
PAPER_WEIGHTS = {"cosine": 10.0, "similarity": 200.0, "triplet": 20.0}
#: Margin of the relative-similarity term in arXiv 2412.19048, section 3.
PAPER_MARGIN = 0.015


class TeacherRows(Protocol):
    """What a loss needs of a `TeacherStore`, or of a view of one."""

    @property
    def dimension(self) -> int: ...

    def gather(self, ids: Any) -> Tensor: ...


class _DistillLoss(nn.Module, CachedLossMixin):
    """What the losses share: embedding the columns, reading the labels, and the views of every dimension."""

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        teacher: TeacherRows | None = None,
        dims: Sequence[int] | None = None,
        match_dims: bool = False,
        mini_batch_size: int | None = None,
        length_parts: int | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__()
        if teacher is not None and not hasattr(teacher, "gather"):
            raise TypeError(
                f"The 'teacher' of {type(self).__name__} must be a TeacherStore or a view of one. Got "
                f"{type(teacher).__name__} instead. Embed the texts with TeacherStore.create(path, texts, [teacher]) first."
            )
        if not isinstance(unwrap(model), SentenceTransformer):
            raise TypeError(
                f"The 'model' of {type(self).__name__} must be a SentenceTransformer. Got {type(model).__name__} instead."
            )
        check_whole_number("'mini_batch_size'", mini_batch_size, optional=True)
        check_whole_number("'length_parts'", length_parts, optional=True)
        if mini_batch_size is not None and has_static_embedding_input(model):
            raise ValueError(
                "A 'mini_batch_size' needs a model whose batches can be cut, which StaticEmbedding's cannot. Leave it out: "
                "static embeddings need little memory."
            )
        self.model = model
        self.teacher = teacher
        self.match_dims = match_dims
        self.gather_across_devices = gather_across_devices
        self.mini_batch_size = mini_batch_size
        self.length_parts = length_parts
        self.uses_gradient_cache = mini_batch_size is not None
        self.dims = self._check_dims("dims", dims)

    def _check_dims(self, name: str, dims: Sequence[int] | None) -> list[int] | None:
        if dims is None:
            return None
        if isinstance(dims, str) or not isinstance(dims, Iterable):
            raise TypeError(f"The '{name}' must be a list of dimensions, such as [256, 64]. Got {dims!r} instead.")
        dims = list(dims)
        width = self.model.get_embedding_dimension()
        projection = find_projection(self.model)
        allowed = projection.dims if projection is not None and projection.heads == "independent" else None
        if (
            not dims
            or any(isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1 for dim in dims)
            or len(set(dims)) < len(dims)
        ):
            raise ValueError(f"The '{name}' must be distinct positive dimensions. Got {dims} instead.")
        if allowed is not None and not set(dims) <= set(allowed):
            raise ValueError(f"The '{name}' must be among the projection's heads {allowed}. Got {dims} instead.")
        if width is not None and max(dims) > width:
            raise ValueError(f"The '{name}' must not exceed the model's {width} dimensions. Got {max(dims)} instead.")
        return sorted(map(int, dims), reverse=True)

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch; the trainer and ``model.fit`` call it.

        Args:
            sentence_features: for each column the features of the batch, as ``model.preprocess`` gives them.
            labels: vectors or row numbers, see the module's description.

        Raises:
            TypeError: for labels that are no tensor.
            ValueError: for labels that are missing, of the wrong shape, not finite, or no rows of the store; for no column.
        """
        features = list(sentence_features)
        if not features:
            raise ValueError(
                f"{type(self).__name__} needs a column of texts or images at least. Got none instead: the dataset has a label "
                "column alone."
            )
        labels = self._check_labels(labels, len(features))
        projection = find_projection(self.model)
        if self.is_wrapped and projection is not None and len(projection.linears) > 1:
            raise TypeError(
                f"{type(self).__name__} cannot be wrapped in MatryoshkaLoss where the projection has independent heads or a "
                "teacher's head, which have no common prefix. Give the loss dims=[...] itself."
            )
        if self.uses_gradient_cache:
            return self.forward_cached(features, labels)
        parts = self._parts()
        with self._all_heads():
            embeddings = [embed_by_length(self.model, column, parts) for column in features]
        return self._loss(embeddings, labels)

    def _parts(self) -> int | None:
        """Into how many parts a column is split; None: its lengths decide."""
        # Several processes must call the model as often as each other, a compiled one would compile each length, and a
        # loss modifier keeps what the first dimension's call returned for the others.
        if self.length_parts is None and (get_world_size() > 1 or hasattr(self.model, "_orig_mod") or self.is_wrapped):
            return 1
        return self.length_parts

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> Any:
        """GradCache's way to embed some rows of a column: with every head, like ``forward``."""
        with self._all_heads():
            return super().embed_minibatch(*args, **kwargs)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """GradCache's middle step: the loss of all the mini-batches' embeddings, back-propagated to them."""
        loss = self._loss([torch.cat(column) for column in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def _all_heads(self) -> AbstractContextManager[None]:
        projection = find_projection(self.model)
        return nullcontext() if projection is None else projection.all_heads()

    def _loss(self, embeddings: list[Tensor], labels: Any) -> Tensor:
        terms = self._all_terms(embeddings, labels)
        return torch.stack(list(terms.values())).sum()

    def _all_terms(self, embeddings: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        if self.gather_across_devices and self._compares_texts:
            embeddings = [all_gather_with_grad(embedding) for embedding in embeddings]
            labels = all_gather(labels)
        student = torch.cat(embeddings)
        with torch.autocast(device_type=student.device.type, enabled=False):
            teacher = self._teacher_vectors(labels, embeddings)
            batch = Batch(self.model, student, teacher, match_dims=self.match_dims, is_wrapped=self.is_wrapped)
            return self._terms(batch)

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def _compares_texts(self) -> bool:
        """Whether a term compares a batch's texts with each other. One that does not is a mean over rows, and the mean of
        the processes' gradients, which training takes anyway, is that of the joint batch."""
        return True

    @property
    def is_wrapped(self) -> bool:
        """Whether a loss modifier such as MatryoshkaLoss has put its own forward around the model or this loss."""
        inner = unwrap(self.model)
        modifiers = [self.__dict__.get("calculate_loss")]
        modifiers += [vars(module).get("forward") for module in (self.model, inner, *inner.children())]
        return any(type(modifier).__module__.startswith("sentence_transformers.") for modifier in modifiers)

    def _check_labels(self, labels: Tensor | None, columns: int) -> Tensor:
        name = type(self).__name__
        if labels is None:
            raise ValueError(
                f"{name} needs a 'label' column with the teacher's vectors or row numbers of a TeacherStore. Got none instead. "
                "TeacherStore.add_labels adds one."
            )
        if not isinstance(labels, Tensor):
            raise TypeError(
                f"The labels of {name} must be a tensor, as the trainer's collator makes it. Got {type(labels).__name__} "
                "instead; torch.tensor makes one."
            )
        if labels.is_floating_point():
            if labels.ndim not in (2, 3) or (labels.ndim == 3 and labels.shape[1] != columns) or not labels.shape[-1]:
                raise ValueError(
                    f"Vectors as labels must have the shape (batch, dim) or (batch, {columns}, dim) for {columns} columns. "
                    f"Got {tuple(labels.shape)} instead."
                )
            functional.check_finite(labels.flatten(end_dim=-2))
        elif self.teacher is None:
            raise ValueError(
                f"{name} got labels of {labels.dtype} and shape {tuple(labels.shape)}, which can only be row numbers of a "
                "TeacherStore, but it has none. Pass teacher=TeacherStore.open(path), or vectors as labels."
            )
        elif labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[1] != columns):
            raise ValueError(
                f"Row numbers as labels must have the shape (batch,) or (batch, {columns}) for {columns} columns. "
                f"Got {tuple(labels.shape)} instead."
            )
        return labels

    def _teacher_vectors(self, labels: Tensor, embeddings: list[Tensor]) -> Tensor:
        """The teacher's vectors, (columns x batch, dim), one column after another."""
        if len(labels) != len(embeddings[0]):
            raise ValueError(
                f"There must be a label for every row of the batch. Got {len(labels)} labels and {len(embeddings[0])} rows "
                "instead."
            )
        if len(labels) == 0:
            raise ValueError("The batch must have at least one row. Got an empty one instead.")
        is_vectors = labels.is_floating_point()
        if labels.ndim == (3 if is_vectors else 2):
            labels, repeats = labels.transpose(0, 1).flatten(end_dim=1), 1
        else:
            repeats = len(embeddings)
        vectors = labels
        if not is_vectors and self.teacher is not None:
            vectors = self.teacher.gather(labels.cpu())
            functional.check_finite(vectors)
        return vectors.detach().repeat(repeats, 1)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        config = {
            "dims": self.dims,
            "match_dims": self.match_dims,
            "mini_batch_size": self.mini_batch_size,
            "length_parts": self.length_parts,
            "gather_across_devices": self.gather_across_devices,
        }
        return {key: value for key, value in config.items() if value not in (None, False)}

    @property
    def citation(self) -> str:
        return """
@misc{zhang2025jasperstelladistillationsota,
    title={Jasper and Stella: distillation of SOTA embedding models},
    author={Dun Zhang and Jiacheng Li and Ziyang Zeng and Fulong Wang},
    year={2025},
    eprint={2412.19048},
    archivePrefix={arXiv},
    primaryClass={cs.IR}
}
"""


class CosineDistill(_DistillLoss):
    """1 - cos(student, teacher), the mean over the batch; arXiv 2412.19048, equation 1.

    Where the model's projection has a rotation, the teacher is rotated first; where it has a head of the teacher's width,
    that head is compared. Inside MatryoshkaLoss every prefix is compared with the teacher's prefix of that width.

    Args:
        model: the student.
        teacher: the store (or a view of it) whose row numbers the labels are; not needed where the labels are vectors.
        dims: compare the student's prefixes (or heads) of these dimensions, each with as many of the teacher's axes, and
            average; default: the full width.
        cosine_weights: of the dimensions in that average: "equal", or "proportional" to the dimension.
        match_dims: compare with the teacher's vector of the same head instead, unrotated: for a teacher that is the
            student itself (stage 4).
        mini_batch_size: texts embedded at a time, with GradCache, so that memory does not grow with the batch.
        length_parts: into how many parts of like length the encoder takes a column of the batch, each part padded to its own
            longest text; the loss is that of the whole batch. Default: as many as are worth it, in several processes
            1. GradCache has its mini-batches instead.
        gather_across_devices: accepted as by the other losses. A mean over rows needs no other process's rows: each process
            returns that of its own, and the mean of their gradients is that of the joint batch.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        teacher: TeacherRows | None = None,
        dims: Sequence[int] | None = None,
        cosine_weights: CosineWeights = "equal",
        match_dims: bool = False,
        mini_batch_size: int | None = None,
        length_parts: int | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(
            model,
            teacher=teacher,
            dims=dims,
            match_dims=match_dims,
            mini_batch_size=mini_batch_size,
            length_parts=length_parts,
            gather_across_devices=gather_across_devices,
        )
        self.cosine_weights = _check_cosine_weights(cosine_weights)

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        return {"cosine": batch.cosine(self.dims, self.cosine_weights)}

    @property
    def _compares_texts(self) -> bool:
        return False

    def get_config_dict(self) -> dict[str, Any]:
        config = super().get_config_dict()
        return config if self.cosine_weights == "equal" else {**config, "cosine_weights": self.cosine_weights}


class SimilarityDistill(_DistillLoss):
    """Mean squared difference of the student's and the teacher's cosine matrices; arXiv 2412.19048, equation 2.

    Student and teacher may have any two widths. Args: as `CosineDistill`; ``dims`` are the student's prefixes (or heads),
    each compared with the whole teacher and averaged; ``gather_across_devices`` takes the loss over the joint batch of all
    processes.
    """

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        return {"similarity": batch.similarity(self.dims)}


class TripletDistill(_DistillLoss):
    """Mean hinge over all pairs of pairs that the teacher ranks strictly; arXiv 2412.19048, equation 3, exact.

    Student and teacher may have any two widths. Args: as `SimilarityDistill`, and ``margin``: the least distance wanted
    between the student's two similarities, at least 0.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        teacher: TeacherRows | None = None,
        dims: Sequence[int] | None = None,
        margin: float = PAPER_MARGIN,
        match_dims: bool = False,
        mini_batch_size: int | None = None,
        length_parts: int | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(
            model,
            teacher=teacher,
            dims=dims,
            match_dims=match_dims,
            mini_batch_size=mini_batch_size,
            length_parts=length_parts,
            gather_across_devices=gather_across_devices,
        )
        functional.check_margin(margin)
        self.margin = margin

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        return {"triplet": batch.triplet(self.dims, self.margin)}

    def get_config_dict(self) -> dict[str, Any]:
        return {"margin": self.margin, **super().get_config_dict()}


class JasperDistill(_DistillLoss):
    """The three terms, weighted, from one run of the model: ``{"cosine": ..., "similarity": ..., "triplet": ...}``.

    The trainer logs each term and trains on their sum. The weighted terms are those of arXiv 2412.19048, section 3.

    Args:
        model: the student.
        teacher: the store (or a view of it) whose row numbers the labels are; not needed where the labels are vectors.
        dims: Matryoshka dimensions: similarity and triplet are averaged over them. Default: the full width.
        cosine_dims: dimensions of the cosine term. Default: the full width, or ``dims`` with ``match_dims``.
        cosine_weights: of these dimensions in the cosine term's average: "equal", or "proportional" to the dimension.
        weights: weight of each term, at least 0; a term that is left out is not computed.
        margin: of the triplet term, at least 0.
        bits: average similarity and triplet over the signs of each head's vectors as well, for embeddings that are to be
            stored as bits; see `functional.bit_similarities`.
        match_dims: compare every head with the teacher's own vector of that head, unrotated: for a teacher that is the
            student itself (stage 4, where the caption's embedding teaches the image's).
        mini_batch_size: texts embedded at a time, with GradCache, so that memory does not grow with the batch.
        length_parts: into how many parts of like length the encoder takes a column of the batch, each part padded to its own
            longest text; the loss is that of the whole batch. Default: as many as are worth it, in several processes
            1. GradCache has its mini-batches instead.
        gather_across_devices: take the losses over the joint batch of all processes. With the cosine term alone there is
            nothing to gather, see `CosineDistill`.

    Raises:
        TypeError: inside MatryoshkaLoss and other loss modifiers, which cannot wrap a loss that returns several terms.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        teacher: TeacherRows | None = None,
        dims: Sequence[int] | None = None,
        cosine_dims: Sequence[int] | None = None,
        cosine_weights: CosineWeights = "equal",
        weights: Mapping[str, float] | None = None,
        margin: float = PAPER_MARGIN,
        bits: bool = False,
        match_dims: bool = False,
        mini_batch_size: int | None = None,
        length_parts: int | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        super().__init__(
            model,
            teacher=teacher,
            dims=dims,
            match_dims=match_dims,
            mini_batch_size=mini_batch_size,
            length_parts=length_parts,
            gather_across_devices=gather_across_devices,
        )
        if weights is not None and not isinstance(weights, Mapping):
            raise TypeError(f"The 'weights' must be a mapping such as {PAPER_WEIGHTS}. Got {weights!r} instead.")
        weights = dict(PAPER_WEIGHTS if weights is None else weights)
        if unknown := set(weights) - set(PAPER_WEIGHTS):
            raise ValueError(
                f"The 'weights' must be of {', '.join(PAPER_WEIGHTS)}. Got {', '.join(sorted(map(str, unknown)))} instead."
            )
        if not all(is_number(weight, 0.0) and weight < math.inf for weight in weights.values()) or not any(
            weights.values()
        ):
            raise ValueError(f"The 'weights' must be numbers of at least 0, and one above it. Got {weights} instead.")
        functional.check_margin(margin)
        self.weights = {name: float(weights[name]) for name in PAPER_WEIGHTS if weights.get(name)}
        self.margin = margin
        self.bits = bits
        self.cosine_weights = _check_cosine_weights(cosine_weights)
        self.cosine_dims = self._check_dims("cosine_dims", cosine_dims)
        if self.cosine_dims is None and match_dims:
            self.cosine_dims = self.dims

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> dict[str, Tensor]:
        if self.is_wrapped:
            raise TypeError(
                "JasperDistill cannot be wrapped in a loss modifier such as MatryoshkaLoss, because it returns several terms. "
                "Give it dims=[...] itself: it averages its terms over them."
            )
        loss = super().forward(sentence_features, labels)
        if isinstance(loss, dict):
            return loss
        # With GradCache one tensor carries the gradient of all; the first term becomes that one, less the others' values.
        terms = dict(self._cached_terms)
        first, *others = terms
        terms[first] = loss - sum(terms[name] for name in others) if others else loss
        return terms

    def _loss(self, embeddings: list[Tensor], labels: Any) -> Any:
        terms = self._all_terms(embeddings, labels)
        if not self.uses_gradient_cache:
            return terms
        self._cached_terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        compute = {
            "cosine": lambda: batch.cosine(self.cosine_dims, self.cosine_weights),
            "similarity": lambda: batch.similarity(self.dims, bits=self.bits),
            "triplet": lambda: batch.triplet(self.dims, self.margin, bits=self.bits),
        }
        return {name: weight * compute[name]() for name, weight in self.weights.items()}

    @property
    def _compares_texts(self) -> bool:
        return self.weights.keys() != {"cosine"}

    def get_config_dict(self) -> dict[str, Any]:
        config = {"weights": self.weights, "margin": self.margin, **super().get_config_dict()}
        if self.bits:
            config["bits"] = True
        if self.cosine_weights != "equal":
            config["cosine_weights"] = self.cosine_weights
        return config if self.cosine_dims is None else {**config, "cosine_dims": self.cosine_dims}


def _check_cosine_weights(weights: Any) -> CosineWeights:
    if weights not in get_args(CosineWeights):
        raise ValueError(f"The 'cosine_weights' must be equal or proportional. Got {weights!r} instead.")
    return weights
