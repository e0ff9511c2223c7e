"""Any evaluator at several dimensions and precisions, from one encoding of what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, get_args

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import BaseEvaluator
from sentence_transformers.util import quantize_embeddings
from torch.nn.functional import normalize

from st_distill.evaluation.base import append_row, checked_dims, checked_prompt, checked_vectors, dims_of, width_of
from st_distill.evaluation.precisions import as_stored, int8_ranges
from st_distill.options import check_distinct

__all__ = ["EncodedOnce", "Precision", "SweepEvaluator", "Use", "checked_precisions", "own_prompt"]

Precision = Literal["float32", "int8", "binary"]
Use = Literal["text", "query", "document"]

_ENCODERS: dict[str, Use] = {"encode": "text", "encode_query": "query", "encode_document": "document"}
#: Names of a model's prompts for each use, the first one that it has.
_PROMPTS: dict[Use, tuple[str, ...]] = {"text": (), "query": ("query",), "document": ("document", "passage", "corpus")}


def own_prompt(model: SentenceTransformer, use: Use) -> str:
    """What the model itself puts before a text of such a use; empty where it has no prompt."""
    name = next((name for name in _PROMPTS[use] if name in model.prompts), model.default_prompt_name)
    return model.prompts.get(name) or ""


class EncodedOnce:
    """Gives a model before evaluators: each list of inputs is encoded once, whatever is asked of it afterwards.

    Args:
        model: the model.
        prompts: what is put before a text: "query" in ``encode_query``, "document" in ``encode_document``, "text" in
            ``encode``; it stands in for what an evaluator itself asks for. What is left out is the model's own.
    """

    def __init__(self, model: SentenceTransformer, *, prompts: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.prompts = {method: (prompts or {}).get(use) for method, use in _ENCODERS.items()}
        self._vectors: dict[Any, tuple[Sequence[Any], torch.Tensor]] = {}

    def at(self, dim: int | None = None, precision: Precision = "float32") -> Any:
        """What stands in for the model: ``encode``, ``encode_query`` and ``encode_document`` give vectors of this kind.

        Args:
            dim: the first so many dimensions; None: all of them.
            precision: float32: as the model gives them. The others are of the vectors' direction (of unit length after they
                were cut), as sentence-transformers' ``quantize_embeddings`` stores it, and come as floats: int8 in -128 to
                127, in one range for all dimensions, taken from all that was encoded so far; binary as -1 and 1, whose
                cosine orders as the Hamming distance does.
        """
        return _StandIn(self, dim, precision)

    def vectors(self, method: str, inputs: Sequence[Any], options: dict[str, Any]) -> torch.Tensor:
        """Vectors of ``inputs`` as the model gives them, float32 (rows, width), on its device; all finite, or a ValueError."""
        options = {name: value for name, value in options.items() if value is not None}
        if (prompt := self.prompts[method]) is not None:
            options = {name: value for name, value in options.items() if name != "prompt_name"} | {"prompt": prompt}
        encode = getattr(self.model, method)
        # Pictures have no hash; they stay in the cache, so that no other one gets their number.
        rows = tuple(item if isinstance(item, str) else id(item) for item in inputs)
        key = (method, rows, options.get("prompt"), options.get("prompt_name"))
        if key not in self._vectors:
            vectors = encode(list(inputs), convert_to_tensor=True, **options).float()
            self._vectors[key] = inputs, checked_vectors(vectors, inputs)
        return self._vectors[key][1]

    def texts(self) -> list[str]:
        """All texts that were encoded, with the prompt before each."""
        found = []
        for method, rows, prompt, name in self._vectors:
            named = own_prompt(self.model, _ENCODERS[method]) if name is None else self.model.prompts[name]
            before = named if prompt is None else prompt
            found += [before + row for row in rows if isinstance(row, str)]
        return found

    def ranges(self, dim: int | None) -> np.ndarray:
        """The range of int8 of the directions of all that was encoded (`int8_ranges`), (2, dim)."""
        return int8_ranges(
            *(normalize(vectors[:, :dim], dim=1) for _, vectors in self._vectors.values() if len(vectors))
        )


class _StandIn:
    """A model of fewer dimensions or lower precision, as far as an evaluator looks at it."""

    def __init__(self, encoded: EncodedOnce, dim: int | None, precision: Precision) -> None:
        self._encoded = encoded
        self._dim = dim
        self._precision: Precision = precision

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoded.model, name)

    @property
    def model_card_data(self) -> Any:
        # The card has one value a metric; figures of vectors that the model itself does not give would look like its own.
        return self._encoded.model.model_card_data if self._precision == "float32" else _NoCard()

    def get_embedding_dimension(self) -> int | None:
        return self._encoded.model.get_embedding_dimension() if self._dim is None else self._dim

    def encode(self, inputs: Any, **options: Any) -> Any:
        return self._encode("encode", inputs, **options)

    def encode_query(self, inputs: Any, **options: Any) -> Any:
        return self._encode("encode_query", inputs, **options)

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        return self._encode("encode_document", inputs, **options)

    def _encode(
        self,
        method: str,
        inputs: Any,
        *,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        precision: Any = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Any,
    ) -> Any:
        if isinstance(inputs, str):
            vectors = self._cut(self._encoded.vectors(method, [inputs], options), truncate_dim)[0]
        else:
            vectors = self._cut(self._encoded.vectors(method, inputs, options), truncate_dim)
        if normalize_embeddings:
            vectors = normalize(vectors, dim=-1)
        if precision not in (None, "float32"):
            stored = quantize_embeddings(vectors, precision=precision)
            return torch.as_tensor(stored) if convert_to_tensor else stored
        if convert_to_numpy and not convert_to_tensor:
            return vectors.cpu().numpy()
        return vectors

    def _cut(self, vectors: torch.Tensor, truncate_dim: int | None) -> torch.Tensor:
        dim = min((dim for dim in (self._dim, truncate_dim) if dim is not None), default=None)
        vectors = vectors[:, :dim]
        if self._precision == "float32":
            return vectors
        ranges = self._encoded.ranges(dim) if self._precision == "int8" else None
        return as_stored(normalize(vectors, dim=1), self._precision, ranges).to(vectors.device)


class _NoCard:
    def set_evaluation_metrics(self, *arguments: Any, **options: Any) -> None:
        pass


class SweepEvaluator(BaseEvaluator):
    """Any evaluator of sentence-transformers, at several dimensions and precisions, from one encoding.

    Metrics are the evaluator's own with the dimension behind them, ``cosine_ndcg@10_128``, and a precision that is not
    float32 behind that, ``cosine_ndcg@10_128_int8``; the primary one is the evaluator's at the largest dimension and the
    first precision. In the model card each dimension stands by itself, as sentence-transformers shows a truncated model;
    other precisions are not in it. `EncodedOnce.at` says what they are.

    Args:
        evaluator: used as a pattern and itself left alone. It sees vectors of that many dimensions and that precision,
            whatever it is that it computes from them.
        dims: prefixes of the vectors to judge; None: the full width alone.
        precisions: of float32, int8 and binary.
        prompts: put before the texts instead of the model's own: "query", "document", and "text" for any other.
        primary_metric: the metric, without name and dimension, known before the first run; None: the evaluator's.
    """

    def __init__(
        self,
        evaluator: BaseEvaluator,
        *,
        dims: Sequence[int] | None = None,
        precisions: Sequence[Precision] = ("float32",),
        prompts: Mapping[str, str] | None = None,
        primary_metric: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(evaluator, BaseEvaluator):
            raise TypeError(
                "The 'evaluator' parameter must be an evaluator of sentence-transformers. "
                f"Got {type(evaluator).__name__} instead."
            )
        self.evaluator = evaluator
        self.name: str = getattr(evaluator, "name", "")
        self.dims = checked_dims(dims)
        self.precisions = checked_precisions(precisions)
        if prompts is not None and not isinstance(prompts, Mapping):
            raise TypeError(
                f"The 'prompts' parameter must be a mapping with the keys query, document and text. Got {prompts!r} instead."
            )
        if unknown := set(prompts or {}) - {"query", "document", "text"}:
            raise ValueError(
                f"The 'prompts' parameter must have the keys query, document and text. Got '{min(unknown)}' instead."
            )
        given = {use: checked_prompt("prompts", prompt) for use, prompt in (prompts or {}).items()}
        self.prompts = {use: prompt for use, prompt in given.items() if prompt is not None}
        self.greater_is_better = evaluator.greater_is_better
        self.write_csv = getattr(evaluator, "write_csv", True)
        self.csv_file: str = getattr(evaluator, "csv_file", f"{type(evaluator).__name__}_results.csv")
        self._primary = primary_metric
        self._at: dict[tuple[int, Precision], BaseEvaluator] = {}
        if self.dims is not None and primary_metric is not None:
            self.primary_metric = self._key(primary_metric, self.dims[0], self.precisions[0])

    def _key(self, metric: str, dim: int, precision: Precision) -> str:
        key = f"{metric.removesuffix(f'_{dim}')}_{dim}"  # ours name the dimension themselves
        key = f"{self.name}_{key}" if self.name else key
        return key if precision == "float32" else f"{key}_{precision}"

    def _evaluator_at(self, dim: int, precision: Precision) -> Any:
        """The pattern's copy, the same one in every run: the model card collects results by evaluator."""
        if (dim, precision) not in self._at:
            evaluator: Any = copy(self.evaluator)
            if hasattr(evaluator, "truncate_dim"):
                evaluator.truncate_dim = dim
            if hasattr(evaluator, "name"):
                evaluator.name = f"{self.name}-{dim}" if self.name else str(dim)
            if hasattr(evaluator, "csv_headers"):
                evaluator.csv_headers = list(evaluator.csv_headers)  # the library adds to it when it runs
            self._at[dim, precision] = evaluator
        return self._at[dim, precision]

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        dims = dims_of(self.dims, width_of(model))
        encoded = EncodedOnce(model, prompts=self.prompts)
        if self.precisions[0] == "int8":
            # The range of int8 is that of everything that the evaluator reads, which only a first pass tells.
            self.evaluator(_WithoutCard(encoded), None, epoch, steps)
        metrics: dict[str, float] = {}
        for precision in self.precisions:
            for dim in dims:
                evaluator = self._evaluator_at(dim, precision)
                found = evaluator(encoded.at(dim, precision), None, epoch, steps)
                own = f"{getattr(evaluator, 'name', '')}_"
                metrics |= {self._key(key.removeprefix(own), dim, precision): found[key] for key in found}
                if (dim, precision) == (dims[0], self.precisions[0]):
                    primary = self._primary or evaluator.primary_metric.removeprefix(own)
                    self.primary_metric = self._key(primary, dim, precision)
        if self.write_csv:
            append_row(output_path, self.csv_file, metrics, epoch, steps)
        return metrics

    @property
    def description(self) -> str:
        return self.evaluator.description

    def get_config_dict(self) -> dict[str, Any]:
        return {"dims": self.dims, "precisions": self.precisions}


class _WithoutCard(_StandIn):
    """Everything at full width, for a pass whose figures nobody keeps."""

    model_card_data = _NoCard()

    def __init__(self, encoded: EncodedOnce) -> None:
        super().__init__(encoded, None, "float32")


def checked_precisions(precisions: Sequence[str]) -> tuple[Precision, ...]:
    """``precisions``, in the order float32, int8, binary."""
    known: tuple[Precision, ...] = get_args(Precision)
    if isinstance(precisions, str) or not precisions or not set(precisions) <= set(known):
        raise ValueError(
            f"The 'precisions' parameter must be a list of {', '.join(known)}. Got {precisions!r} instead."
        )
    check_distinct("'precisions' parameter", precisions)
    return tuple(precision for precision in known if precision in precisions)
