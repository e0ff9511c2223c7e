"""The student's projection: one linear map whose every prefix is an embedding, or the paper's independent heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Module, StaticEmbedding
from torch import Tensor, nn

from st_distill.functional import normalize
from st_distill.options import check_whole_number

Heads = Literal["nested", "independent", "none"]


class MatryoshkaProjection(Module):
    """Projects the pooled vector so that it is a good embedding at every dimension in ``dims``.

    ``nested`` heads are one linear map to the largest dimension, whose prefixes are the smaller embeddings
    (``encode(..., truncate_dim=d)``). ``independent`` heads are one linear map for each dimension, as in the paper (arXiv
    2412.19048, section 3: FC2 to FC4); ``sentence_embedding`` is then the largest head's, and the others are exported one
    by one. With ``none`` there is no map: the pooled vector itself has these prefixes, and the module only knows the teacher's
    rotation. That is for a student whose own weights can take the map, a static embedding (`fold_into_table`).

    The cosine loss compares coordinates, so it needs to know which of the teacher's axes the student's coordinates
    follow. ``rotation`` says it: its columns are orthonormal directions of the teacher's space, and the losses compare
    the student with ``align(teacher)``. Cosines between teacher vectors do not change under a rotation, but it decides
    how good the prefixes are: a random one spreads the teacher's information evenly over the axes. With
    ``teacher_head`` a further head of the teacher's full width exists in training alone (the paper's FC1), and the
    cosine loss looks at that one instead.

    Args:
        in_features: width of the pooled vector, at least 1; the largest of ``dims`` where there is no map.
        dims: dimensions of the embeddings, each at least 1, no two equal.
        heads: ``"nested"``, ``"independent"`` or ``"none"``.
        bias: whether the linear maps have one.
        rotation: (teacher_features, max(dims)) with orthonormal columns, or None where the teacher is compared as it is.
        teacher_head: width of the training head in the teacher's space, or None for no such head.

    Raises:
        TypeError: for a rotation that is no tensor.
        ValueError: for widths that are no whole numbers from 1, dimensions that are none or are repeated, unknown heads, a
            rotation of another shape or without orthonormal columns, or no heads where the pooled vector is of another width or
            the teacher has one.
    """

    config_keys = ["in_features", "dims", "heads", "bias", "teacher_features", "teacher_head"]
    rotation: Tensor | None

    def __init__(
        self,
        in_features: int,
        dims: Sequence[int],
        *,
        heads: Heads = "nested",
        bias: bool = True,
        rotation: Tensor | None = None,
        teacher_head: int | None = None,
    ) -> None:
        super().__init__()
        check_whole_number("'in_features' of MatryoshkaProjection", in_features)
        check_whole_number("'teacher_head' of MatryoshkaProjection", teacher_head, optional=True)
        if isinstance(dims, Iterable):
            dims = [dim.item() if isinstance(dim, np.integer) else dim for dim in dims]
        if (
            not isinstance(dims, list)
            or not dims
            or any(isinstance(d, bool) or not isinstance(d, int) or d < 1 for d in dims)
            or len(set(dims)) < len(dims)
        ):
            raise ValueError(
                f"The 'dims' of MatryoshkaProjection must be distinct positive whole numbers, in a list. Got {dims} "
                "instead."
            )
        if heads not in ("nested", "independent", "none"):
            raise ValueError(
                f"The 'heads' of MatryoshkaProjection must be 'nested', 'independent' or 'none'. Got {heads!r} instead."
            )
        if heads == "none" and (in_features != max(dims) or teacher_head is not None):
            raise ValueError(
                f"Without heads the largest of 'dims' must be the pooled vector's width, {in_features}, and there is no "
                f"'teacher_head'. Got {max(dims)} and {teacher_head} instead."
            )
        self.in_features = in_features
        self.dims = sorted(dims, reverse=True)
        self.out_features = self.dims[0]
        self.heads = heads
        self.bias = bias
        self.teacher_head = teacher_head
        widths = {"nested": [self.out_features], "independent": list(self.dims), "none": []}[heads]
        if teacher_head is not None:
            widths.append(teacher_head)
        self.linears = nn.ModuleList(nn.Linear(in_features, width, bias=bias) for width in widths)
        self._all_heads = False
        self.register_buffer("rotation", None)
        if rotation is not None:
            self.rotate(rotation)

    @property
    def teacher_features(self) -> int | None:
        """Width of the teacher that ``align`` takes, or None where there is no rotation."""
        return None if self.rotation is None else self.rotation.shape[0]

    def rotate(self, rotation: Tensor | None) -> None:
        """Set the teacher's rotation, (teacher_features, max(dims)) with orthonormal columns, or remove it (None)."""
        if rotation is not None:
            if not isinstance(rotation, Tensor):
                raise TypeError(
                    f"The 'rotation' must be a torch.Tensor. Got {type(rotation).__name__} instead: give "
                    "torch.as_tensor(rotation)."
                )
            if rotation.ndim != 2 or rotation.shape[1] != self.out_features or rotation.shape[0] < rotation.shape[1]:
                raise ValueError(
                    f"The 'rotation' must have the shape (teacher_features, {self.out_features}), with teacher_features at "
                    f"least {self.out_features}. Got {tuple(rotation.shape)} instead. Dimensions above the teacher's need a "
                    "'teacher_head'."
                )
            rotation = rotation.detach().double()
            error = (
                (rotation.mT @ rotation - torch.eye(self.out_features, dtype=torch.float64, device=rotation.device))
                .abs()
                .max()
            )
            if not error < 1e-4:
                raise ValueError(
                    f"The 'rotation' must have orthonormal columns. Got columns whose products are off by {error:.2g} instead."
                )
            rotation = rotation.float().to(next(self.parameters(), rotation).device)
        self.rotation = rotation

    def align(self, teacher: Tensor) -> Tensor:
        """The teacher's vectors (batch, teacher_features) on the student's axes, (batch, max(dims)); same norm or less.

        Raises:
            ValueError: where the teacher's width is not the rotation's.
        """
        if self.rotation is None:
            return teacher
        if teacher.shape[-1] != self.rotation.shape[0]:
            raise ValueError(
                f"The projection's rotation is for teacher vectors of {self.rotation.shape[0]} dimensions. Got "
                f"{teacher.shape[-1]} instead. Give the whole vectors (MatryoshkaLoss cuts vectors given as labels before "
                "they can be rotated: give row numbers of a TeacherStore instead, or use the loss's own 'dims')."
            )
        return teacher @ self.rotation.to(teacher.dtype)

    def views(self) -> dict[int, slice]:
        """Where the head of each dimension lies in the vector that ``all_heads`` gives."""
        if self.heads != "independent":
            return {dim: slice(0, dim) for dim in self.dims}
        starts = [sum(self.dims[:index]) for index in range(len(self.dims))]
        return {dim: slice(start, start + dim) for dim, start in zip(self.dims, starts)}

    def teacher_view(self) -> slice | None:
        """Where the teacher's head lies in the vector that ``all_heads`` gives, or None."""
        return None if self.teacher_head is None else slice(-self.teacher_head, None)

    @contextmanager
    def all_heads(self) -> Iterator[None]:
        """Within this, ``sentence_embedding`` is every head side by side, which is what the losses look at."""
        before, self._all_heads = self._all_heads, True
        try:
            yield
        finally:
            self._all_heads = before

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Replace ``sentence_embedding`` (batch, in_features) by the widest head's (batch, max(dims))."""
        pooled = features["sentence_embedding"]
        if self.heads == "none":
            return features
        if self._all_heads:
            features["sentence_embedding"] = torch.cat([linear(pooled) for linear in self.linears], dim=-1)
        else:
            features["sentence_embedding"] = self.linears[0](pooled)
        return features

    def get_embedding_dimension(self) -> int:
        return self.out_features

    @torch.no_grad()
    def start_identity(self) -> None:
        """Start every head as the first coordinates of the pooled vector itself, turned as the teacher's vectors are.

        With a rotation it takes the pooled vectors for the teacher's, which they are like where the student is made of the
        teacher's layers.

        Raises:
            ValueError: where a head is wider than the pooled vector, or the rotation turns more coordinates than it has.
        """
        if self.rotation is not None and self.rotation[self.in_features :].any():
            raise ValueError(
                f"An identity start takes the pooled vector for the teacher's. Got one of {self.in_features} dimensions, and a "
                f"rotation of the teacher's {self.teacher_features}. Start by ridge regression, or without a rotation."
            )
        for index, linear in enumerate(self.linears):
            if linear.out_features > self.in_features:
                raise ValueError(
                    f"An identity start needs heads no wider than the pooled vector of {self.in_features} dimensions. Got "
                    f"one of {linear.out_features} instead. Leave that dimension out, or start by ridge regression."
                )
            is_teacher = self.teacher_head is not None and index == len(self.linears) - 1
            if self.rotation is None or is_teacher:
                nn.init.eye_(linear.weight)
            else:
                turned = self.rotation[: self.in_features, : linear.out_features].mT
                nn.init.zeros_(linear.weight)[:, : turned.shape[1]].copy_(turned)
            if self.bias:
                nn.init.zeros_(linear.bias)

    @torch.no_grad()
    def start_ridge(self, batches: Iterable[tuple[Tensor, Tensor]], *, penalty: float = 1e-3) -> None:
        """Start every head as the ridge regression of the teacher's aligned unit vectors on the pooled vectors.

        One pass over the batches; memory is that of the normal equations, in_features times the teacher's width in float64.

        Args:
            batches: (pooled, teacher) pairs of shapes (batch, in_features) and (batch, teacher_features).
            penalty: ridge penalty in units of the mean variance of a pooled coordinate, at least 0. The bias is free.

        Raises:
            ValueError: for no batches, no heads, or a head wider than the teacher.
        """
        if not self.linears:
            raise ValueError("A ridge start needs heads. Got a projection without instead: solve it, then fold it.")
        moments = _Moments()
        for pooled, teacher in batches:
            moments.add(pooled, normalize(teacher))
        weight, bias = moments.regress(penalty)  # of the whole teacher, (in_features, teacher_features)
        aligned_weight, aligned_bias = self.align(weight), self.align(bias)
        for index, linear in enumerate(self.linears):
            is_teacher = self.teacher_head is not None and index == len(self.linears) - 1
            head_weight, head_bias = (weight, bias) if is_teacher else (aligned_weight, aligned_bias)
            width = linear.out_features
            if width > head_weight.shape[1]:
                raise ValueError(
                    f"A ridge start needs heads no wider than the teacher's {head_weight.shape[1]} dimensions. Got one of "
                    f"{width} instead. Leave that dimension out, or start at random."
                )
            linear.weight.copy_(head_weight[:, :width].mT)
            if self.bias:
                linear.bias.copy_(head_bias[:width])

    def to_standard(self, dim: int | None = None) -> list[Module]:
        """The projection as sentence-transformers modules: a Dense of the widest head, or of the head ``dim``.

        Without heads the whole vector needs none, and ``dim`` one that cuts.

        Raises:
            ValueError: for a ``dim`` that is no head.
        """
        if self.heads == "none" and dim in (None, self.out_features):
            return []
        linears = list(self.linears) if self.heads == "independent" else [self._linear()] * len(self.dims)
        view = dict(zip(self.dims, linears))
        if self.teacher_head is not None:
            view.setdefault(self.teacher_head, self.linears[-1])
        wanted = self.out_features if dim is None else dim
        if wanted not in view:
            raise ValueError(
                f"The 'dim' must be one of the projection's dimensions {sorted(view, reverse=True)}. Got {dim} instead."
            )
        linear = view[wanted]
        dense = Dense(
            self.in_features,
            wanted,
            bias=linear.bias is not None,
            activation_function=None,
            init_weight=linear.weight.detach()[:wanted].clone(),
            init_bias=None if linear.bias is None else linear.bias.detach()[:wanted].clone(),
        )
        return [dense]

    def _linear(self) -> nn.Linear:
        """The map whose prefixes are the embeddings; without one, the identity."""
        if self.linears:
            return self.linears[0]
        linear = nn.Linear(self.in_features, self.out_features, bias=False)
        nn.init.eye_(linear.weight)
        return linear

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        hub = {key: kwargs[key] for key in ("token", "cache_folder", "revision", "local_files_only") if key in kwargs}
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        teacher_features = config.pop("teacher_features")
        module = cls(**config)
        if teacher_features is not None:
            module.rotation = torch.empty(teacher_features, module.out_features)
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=module, **hub)
        return module


class _Moments:
    """Streaming first and second moments of (pooled, teacher), in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: tuple[Tensor, ...] = ()

    def add(self, pooled: Tensor, teacher: Tensor) -> None:
        pooled, teacher = pooled.double(), teacher.double()
        parts = (pooled.sum(0), teacher.sum(0), pooled.mT @ pooled, pooled.mT @ teacher)
        self.sums = parts if self.count == 0 else tuple(total + part for total, part in zip(self.sums, parts))
        self.count += pooled.shape[0]

    def regress(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weight (in, out) and bias (out,) of the ridge regression of the teacher on the pooled vector."""
        if self.count == 0:
            raise ValueError("A ridge start needs at least one batch of pooled and teacher vectors. Got none instead.")
        mean_in, mean_out = self.sums[0] / self.count, self.sums[1] / self.count
        covariance = self.sums[2] / self.count - torch.outer(mean_in, mean_in)
        cross = self.sums[3] / self.count - torch.outer(mean_in, mean_out)
        # A floor keeps the system solvable where a coordinate never varies (a corpus of one text, say).
        strength = max(penalty, 1e-9) * covariance.diagonal().mean().clamp(min=1e-12)
        weight = torch.linalg.solve(
            covariance + strength * torch.eye(len(mean_in), dtype=torch.float64, device=mean_in.device), cross
        )
        return weight, mean_out - mean_in @ weight


@torch.no_grad()
def fold_into_table(projection: MatryoshkaProjection, embedding: StaticEmbedding) -> MatryoshkaProjection:
    """Put a linear map into the table of the static embedding whose vectors it reads; returns the projection that is left.

    A map of a mean of token vectors is the mean of their maps, so table and map together are one table, of the map's
    width. The student gives the same vectors as before (but for a text without a token, which is now 0 and not the bias), is
    smaller and faster, and its training no longer has two factors that pull at one product.

    Args:
        projection: nested heads without a teacher's head, on the embedding's width.
        embedding: changed in place.

    Raises:
        ValueError: for other heads, or another width.
    """
    if projection.heads != "nested" or projection.teacher_head is not None:
        raise ValueError(
            f"Only nested heads without a teacher's head can be folded. Got {projection.heads!r} heads and a teacher's head of "
            f"{projection.teacher_head} dimensions instead."
        )
    table, linear = embedding.embedding.weight, projection.linears[0]
    if table.shape[1] != projection.in_features:
        raise ValueError(
            f"The static embedding must have the width that the projection reads, {projection.in_features}. Got "
            f"{table.shape[1]} instead."
        )
    embedding.embedding = nn.EmbeddingBag.from_pretrained(linear(table), freeze=False)
    embedding.embedding_dim = projection.out_features
    return MatryoshkaProjection(
        projection.out_features, projection.dims, heads="none", bias=projection.bias, rotation=projection.rotation
    ).to(table.device)


def find_projection(model: nn.Module) -> MatryoshkaProjection | None:
    """The student's MatryoshkaProjection, also where the model is wrapped for distributed training, or None."""
    return next((module for module in unwrap(model).children() if isinstance(module, MatryoshkaProjection)), None)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside what distributed training and torch.compile put around it."""
    while not isinstance(model, SentenceTransformer):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None:
            break
        model = inner
    return model
