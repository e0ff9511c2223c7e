"""How close a student is to its teachers, and how good it is, at every dimension.

What judges a model here is a sentence-transformers evaluator: it runs in any trainer (``evaluator=``) and alone
(``evaluator(model)``), and it encodes its texts once, whatever the number of dimensions. A metric at a dimension is
named ``<metric>_<dimension>``; the primary one is that of the largest dimension.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Mapping, Sequence
from copy import copy
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    BaseEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.util import cos_sim, quantize_embeddings
from torch.nn.functional import normalize

__all__ = [
    "DimensionSweep",
    "ImageRetrievalEvaluator",
    "TeacherFidelityEvaluator",
    "evaluate",
    "model_size",
    "retrieval_evaluator",
    "similarity_evaluator",
    "throughput",
]

# Rows of a similarity matrix that are in memory at a time.
_CHUNK = 1024


def _checked_dims(dims: Sequence[int] | None) -> tuple[int, ...] | None:
    """``dims`` without repetitions, largest first; None stays None (the model's full width)."""
    if dims is None:
        return None
    if isinstance(dims, str) or not isinstance(dims, Sequence) or not dims:
        raise ValueError(f"The 'dims' parameter must be a non-empty list of dimensions, or None. Got {dims!r} instead.")
    for dim in dims:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"The 'dims' parameter must hold whole numbers of at least 1. Got {dim!r} in it instead.")
    return tuple(sorted(set(dims), reverse=True))


def _dims_of(dims: tuple[int, ...] | None, width: int) -> tuple[int, ...]:
    """The dimensions to judge vectors of ``width`` at; sentence-transformers would keep a narrower one silently."""
    if dims is None:
        return (width,)
    if dims[0] > width:
        raise ValueError(
            f"The 'dims' parameter asks for {dims[0]} dimensions, but the model's vectors have {width}: "
            f"leave out the dimensions above {width}, or lift the model's truncate_dim."
        )
    return dims


def _checked_positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"The '{name}' parameter must be a whole number of at least 1. Got {value!r} instead.")
    return value


def _checked_texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"The '{name}' parameter must be a list of texts. Got a single text instead: put it in a list.")
    texts = list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"The '{name}' parameter must hold texts alone. Got {type(text).__name__} at row {row} instead: "
                "drop the row or turn it into a text."
            )
    return texts


def _same_length(first: str, first_values: Sequence[Any], second: str, second_values: Sequence[Any]) -> None:
    if len(first_values) != len(second_values):
        raise ValueError(
            f"The '{first}' and '{second}' parameters must be of equal length, row i of one belonging to row i of the "
            f"other. Got {len(first_values)} and {len(second_values)} rows instead."
        )


def _encode(model: SentenceTransformer, inputs: list[Any], **options: Any) -> torch.Tensor:
    """Vectors of ``inputs``, float32 (rows, width), on the model's device, of whatever length the model gives them."""
    return model.encode(inputs, convert_to_tensor=True, **options).float()


def _prefix(vectors: torch.Tensor, dim: int) -> torch.Tensor:
    """The first ``dim`` columns of ``vectors`` (rows, width), each row of length 1; a zero row stays zero."""
    return normalize(vectors[:, :dim], dim=1)


class _Evaluator(BaseEvaluator):
    """What our evaluators share: metrics named like sentence-transformers' own, in the model card and in a CSV file."""

    def __init__(self, name: str, csv_name: str, write_csv: bool) -> None:
        super().__init__()
        self.name = name
        self.write_csv = write_csv
        self.csv_file = f"{csv_name}{'_' + name if name else ''}_results.csv"

    def _report(
        self,
        model: SentenceTransformer,
        metrics: dict[str, float],
        output_path: str | None,
        epoch: int,
        steps: int,
    ) -> dict[str, float]:
        if output_path is not None and self.write_csv:
            path = Path(output_path) / self.csv_file
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["epoch", "steps", *metrics])
                writer.writerow([epoch, steps, *metrics.values()])
        metrics = self.prefix_name_to_metrics(metrics, self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics


class TeacherFidelityEvaluator(_Evaluator):
    """How well a student keeps the teacher's geometry, which needs no label and no common space.

    Metrics, for each dimension d:

    - ``spearman_<d>``, in [-1, 1]: Spearman's rank correlation between the student's and the teacher's cosine
      similarities, over all pairs of texts (a seeded sample of ``max_pairs`` of them where there are more). 0 where all
      similarities of one of the two are equal, as after a collapse.
    - ``overlap<k>_<d>``, in [0, 1]: the share of a text's k nearest texts by the teacher (k = ``neighbours``) that are
      also among its k nearest by the student, the text itself left out, averaged over texts. Chance: k / (texts - 1).

    The teacher is always taken at its full width.

    Args:
        texts: n texts, at least 3.
        teacher_vectors: (n, any width) array or tensor of finite numbers, of any length; row i belongs to text i.
        dims: prefixes of the student's vectors to judge; None: the full width alone.
        neighbours: k, at most n - 1.
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
        self.texts = _checked_texts("texts", texts)
        if len(self.texts) < 3:
            raise ValueError(f"The 'texts' parameter must hold at least 3 texts. Got {len(self.texts)} instead.")
        vectors = torch.as_tensor(teacher_vectors).detach().cpu().float()
        if vectors.ndim != 2:
            raise ValueError(
                "The 'teacher_vectors' parameter must be a matrix with one row per text. "
                f"Got the shape {tuple(vectors.shape)} instead."
            )
        _same_length("texts", self.texts, "teacher_vectors", vectors)
        bad = (~vectors.isfinite()).any(dim=1).nonzero()
        if len(bad):
            raise ValueError(
                "The 'teacher_vectors' parameter must hold finite numbers. "
                f"Got NaN or infinity in {len(bad)} rows, the first of them {int(bad[0])}: embed these texts again."
            )
        self.neighbours = _checked_positive("neighbours", neighbours)
        if neighbours >= len(self.texts):
            raise ValueError(
                f"The 'neighbours' parameter must be below the number of texts, {len(self.texts)}. "
                f"Got {neighbours} instead."
            )
        self.dims = _checked_dims(dims)
        self.prompt = prompt
        self.batch_size = _checked_positive("batch_size", batch_size)
        self.show_progress_bar = show_progress_bar
        if self.dims is not None:
            self.primary_metric = f"spearman_{self.dims[0]}"

        count = len(self.texts)
        if count * (count - 1) // 2 <= _checked_positive("max_pairs", max_pairs):
            self._pairs = torch.triu_indices(count, count, offset=1)
        else:
            generator = np.random.default_rng(seed)
            first = generator.integers(count, size=max_pairs)
            # 1 to count - 1 places further on, cyclically: never the text itself, every other one equally often.
            second = (first + generator.integers(1, count, size=max_pairs)) % count
            self._pairs = torch.from_numpy(np.stack([first, second]))
        teacher = normalize(vectors, dim=1)
        self._teacher_ranks = _ranks(self._pair_similarities(teacher))
        self._teacher_neighbours = self._nearest(teacher)

    def _pair_similarities(self, vectors: torch.Tensor) -> np.ndarray:
        """Cosines of the chosen pairs of rows of ``vectors``, (pairs,)."""
        pieces = [
            (vectors[first] * vectors[second]).sum(dim=1)
            for first, second in zip(*(side.to(vectors.device).split(64 * _CHUNK) for side in self._pairs))
        ]
        return torch.cat(pieces).cpu().numpy()

    def _nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Row numbers of each row's nearest other rows, (rows, neighbours)."""
        nearest = []
        for start in range(0, len(vectors), _CHUNK):
            similarities = vectors[start : start + _CHUNK] @ vectors.T
            rows = torch.arange(len(similarities), device=vectors.device)
            similarities[rows, rows + start] = -torch.inf
            nearest.append(similarities.topk(self.neighbours, dim=1).indices.cpu())
        return torch.cat(nearest)

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        vectors = _encode(
            model,
            self.texts,
            prompt=self.prompt,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
        )
        metrics = {}
        dims = _dims_of(self.dims, vectors.shape[1])
        for dim in dims:
            student = _prefix(vectors, dim)
            ranks = _ranks(self._pair_similarities(student))
            metrics[f"spearman_{dim}"] = _correlation(ranks, self._teacher_ranks)
            shared = self._nearest(student)[:, :, None] == self._teacher_neighbours[:, None, :]
            metrics[f"overlap{self.neighbours}_{dim}"] = shared.any(dim=2).float().mean().item()
        self.primary_metric = f"spearman_{dims[0]}"
        return self._report(model, metrics, output_path, epoch, steps)

    def get_config_dict(self) -> dict[str, Any]:
        return {"dims": self.dims, "neighbours": self.neighbours}


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 of (n,) numbers; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two (n,) arrays, in [-1, 1]; 0 where one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else 0.0


class ImageRetrievalEvaluator(_Evaluator):
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
        captions = _checked_texts("captions", captions)
        self.images = list(images)
        _same_length("images", self.images, "captions", captions)
        if not captions:
            raise ValueError("The 'images' parameter must hold at least one image. Got none instead.")
        self.dims = _checked_dims(dims)
        self.at = tuple(sorted({_checked_positive("at", k) for k in at}))
        self.batch_size = _checked_positive("batch_size", batch_size)
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
        options = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        captions = _encode(model, self.captions, **options)
        images = _encode(model, self.images, **options)
        metrics = {}
        dims = _dims_of(self.dims, captions.shape[1])
        for dim in dims:
            similarities = (_prefix(captions, dim) @ _prefix(images, dim).T).cpu()
            best = similarities.masked_fill(~self._relevant, -torch.inf).amax(dim=1, keepdim=True)
            before = ((similarities >= best) & ~self._relevant).sum(dim=1)
            for k in self.at:
                metrics[f"recall@{k}_{dim}"] = (before < k).float().mean().item()
        metrics |= {f"chance@{k}": chance for k, chance in self.chance.items()}
        self.primary_metric = f"recall@{self.at[-1]}_{dims[0]}"
        return self._report(model, metrics, output_path, epoch, steps)

    def get_config_dict(self) -> dict[str, Any]:
        return {"dims": self.dims}


class _EncodedOnce:
    """Stands in for a model before an evaluator: encodes each list of texts once, and cuts the vectors as asked."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._vectors: dict[Any, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, inputs: Sequence[str], **options: Any) -> Any:
        return self._cut("encode", inputs, **options)

    def encode_query(self, inputs: Sequence[str], **options: Any) -> Any:
        return self._cut("encode_query", inputs, **options)

    def encode_document(self, inputs: Sequence[str], **options: Any) -> Any:
        return self._cut("encode_document", inputs, **options)

    def _cut(
        self,
        method: str,
        inputs: Sequence[str],
        *,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        precision: Any = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        **options: Any,
    ) -> Any:
        key = (method, tuple(inputs), options.get("prompt"), options.get("prompt_name"))
        if key not in self._vectors:
            self._vectors[key] = getattr(self._model, method)(list(inputs), convert_to_tensor=True, **options)
        vectors = self._vectors[key]
        if truncate_dim is not None:
            vectors = vectors[:, :truncate_dim]
        if normalize_embeddings:
            vectors = normalize(vectors, dim=1)
        if precision not in (None, "float32"):
            vectors = quantize_embeddings(vectors, precision=precision)
        if convert_to_tensor:
            return torch.as_tensor(vectors)
        if isinstance(vectors, torch.Tensor) and convert_to_numpy:
            return vectors.float().cpu().numpy()
        return vectors


class DimensionSweep(BaseEvaluator):
    """Any of sentence-transformers' evaluators of texts, at several dimensions, from one encoding of the texts.

    Metrics are the evaluator's own with the dimension behind them, ``cosine_ndcg@10_128``; the primary one is the
    evaluator's at the largest dimension. In the model card each dimension stands by itself, as sentence-transformers
    shows a truncated model.

    Args:
        evaluator: an evaluator with a ``truncate_dim``, used as a pattern and itself left alone.
        dims: prefixes of the vectors to judge; None: the full width alone.
        primary_metric: the metric, without name and dimension, known before the first run; None: the evaluator's.
    """

    def __init__(
        self, evaluator: BaseEvaluator, *, dims: Sequence[int] | None = None, primary_metric: str | None = None
    ) -> None:
        super().__init__()
        if not hasattr(evaluator, "truncate_dim"):
            raise TypeError(
                "The 'evaluator' parameter must be a sentence-transformers evaluator with a truncate_dim. "
                f"Got {type(evaluator).__name__} instead."
            )
        self.evaluator = evaluator
        self.name: str = getattr(evaluator, "name", "")
        self.dims = _checked_dims(dims)
        self.greater_is_better = evaluator.greater_is_better
        self._primary = primary_metric
        self._at: dict[int, BaseEvaluator] = {}
        if self.dims is not None and primary_metric is not None:
            self.primary_metric = self._key(primary_metric, self.dims[0])

    def _key(self, metric: str, dim: int) -> str:
        return f"{self.name}_{metric}_{dim}" if self.name else f"{metric}_{dim}"

    def _evaluator_at(self, dim: int) -> Any:
        """The pattern's copy for ``dim``, the same one in every run: the model card collects results by evaluator."""
        if dim not in self._at:
            evaluator: Any = copy(self.evaluator)
            evaluator.truncate_dim = dim
            evaluator.name = f"{self.name}-{dim}" if self.name else str(dim)
            # The library names its file in the constructor, by the name alone, and adds to the headers when it runs.
            if hasattr(evaluator, "csv_file"):
                evaluator.csv_file = evaluator.csv_file.replace("_results.csv", f"_{dim}_results.csv")
                evaluator.csv_headers = list(evaluator.csv_headers)
            self._at[dim] = evaluator
        return self._at[dim]

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        encoded = _EncodedOnce(model)
        width = model.get_embedding_dimension()
        if width is None:
            raise ValueError("The 'model' parameter must be a model that knows its dimension. Got one that does not.")
        dims = _dims_of(self.dims, width)
        metrics = {}
        for dim in dims:
            evaluator = self._evaluator_at(dim)
            for metric, value in evaluator(encoded, output_path, epoch, steps).items():
                metrics[self._key(metric.removeprefix(f"{evaluator.name}_"), dim)] = value
            if dim == dims[0]:
                primary = self._primary or evaluator.primary_metric.removeprefix(f"{evaluator.name}_")
                self.primary_metric = self._key(primary, dim)
        return metrics

    @property
    def description(self) -> str:
        return self.evaluator.description

    def get_config_dict(self) -> dict[str, Any]:
        return {"dims": self.dims}


def retrieval_evaluator(
    queries: Sequence[str],
    documents: Sequence[str],
    *,
    dims: Sequence[int] | None = None,
    name: str = "",
    batch_size: int = 32,
    show_progress_bar: bool = False,
    write_csv: bool = True,
) -> DimensionSweep:
    """sentence-transformers' InformationRetrievalEvaluator over pairs, at several dimensions, by cosine similarity.

    ``queries`` and ``documents`` are of equal length: document i is the one relevant to query i, among all documents.
    Equal texts are one query or one document, which may then have several counterparts. Metrics include
    ``cosine_accuracy@1_<d>``, ``cosine_ndcg@10_<d>`` (primary) and ``cosine_mrr@10_<d>``, all in [0, 1]. Queries and
    documents get the prompts of the model's ``encode_query`` and ``encode_document``.
    """
    queries, documents = _checked_texts("queries", queries), _checked_texts("documents", documents)
    _same_length("queries", queries, "documents", documents)
    if not queries:
        raise ValueError("The 'queries' parameter must hold at least one query. Got none instead.")
    query_ids = {text: f"q{row}" for row, text in enumerate(dict.fromkeys(queries))}
    document_ids = {text: f"d{row}" for row, text in enumerate(dict.fromkeys(documents))}
    relevant: dict[str, set[str]] = {}
    for query, document in zip(queries, documents):
        relevant.setdefault(query_ids[query], set()).add(document_ids[document])
    evaluator = InformationRetrievalEvaluator(
        {key: text for text, key in query_ids.items()},
        {key: text for text, key in document_ids.items()},
        relevant,
        name=name,
        batch_size=_checked_positive("batch_size", batch_size),
        show_progress_bar=show_progress_bar,
        write_csv=write_csv,
        # Truncated vectors are not of unit length, so a model's own dot product would compare lengths too.
        score_functions={"cosine": cos_sim},
    )
    return DimensionSweep(evaluator, dims=dims, primary_metric="cosine_ndcg@10")


def similarity_evaluator(
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scores: Sequence[float],
    *,
    dims: Sequence[int] | None = None,
    name: str = "",
    batch_size: int = 32,
    show_progress_bar: bool = False,
    write_csv: bool = True,
) -> DimensionSweep:
    """sentence-transformers' EmbeddingSimilarityEvaluator (STS), at several dimensions, by cosine similarity.

    The three columns are of equal length; ``scores`` may have any unit. Metrics: ``spearman_cosine_<d>`` (primary) and
    ``pearson_cosine_<d>``, in [-1, 1].
    """
    sentences1, sentences2 = _checked_texts("sentences1", sentences1), _checked_texts("sentences2", sentences2)
    scores = [float(score) for score in scores]
    _same_length("sentences1", sentences1, "sentences2", sentences2)
    _same_length("sentences1", sentences1, "scores", scores)
    if len(set(scores)) < 2:
        raise ValueError(
            f"The 'scores' parameter must hold at least two different scores, or there is no order to compare with. "
            f"Got {len(set(scores))} in {len(scores)} rows instead."
        )
    evaluator = EmbeddingSimilarityEvaluator(
        sentences1,
        sentences2,
        scores,
        name=name,
        main_similarity="cosine",
        batch_size=_checked_positive("batch_size", batch_size),
        show_progress_bar=show_progress_bar,
        write_csv=write_csv,
    )
    return DimensionSweep(evaluator, dims=dims, primary_metric="spearman_cosine")


def model_size(model: torch.nn.Module) -> dict[str, float]:
    """``parameters``, a count (shared ones once), and ``megabytes``, 10**6 bytes of parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "megabytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    }


def throughput(model: SentenceTransformer, texts: Sequence[str], *, batch_size: int = 32, repeats: int = 3) -> float:
    """Texts per second through ``model.encode``, tokenisation included: median of ``repeats`` passes over ``texts``.

    One untimed batch comes first, since the first one also pays for starting threads and allocating memory.
    """
    texts = _checked_texts("texts", texts)
    if not texts:
        raise ValueError("The 'texts' parameter must hold at least one text. Got none instead.")
    _checked_positive("repeats", repeats)
    options: dict[str, Any] = {"batch_size": _checked_positive("batch_size", batch_size), "show_progress_bar": False}
    model.encode(texts[:batch_size], **options)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.encode(texts, **options)
        seconds.append(time.perf_counter() - start)
    return len(texts) / statistics.median(seconds)


def evaluate(
    student: SentenceTransformer,
    *,
    teachers: Mapping[str, SentenceTransformer] | None = None,
    dims: Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    teacher_vectors: np.ndarray | torch.Tensor | None = None,
    retrieval: tuple[Sequence[str], Sequence[str]] | None = None,
    similarity: tuple[Sequence[str], Sequence[str], Sequence[float]] | None = None,
    images: tuple[Sequence[Any], Sequence[str]] | None = None,
    speed: Sequence[str] | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Everything at once, as a dictionary that JSON can hold and ``st_distill.report`` shows; what is None is left out.

    Args:
        student: the model.
        teachers: name to model. They answer ``retrieval`` and ``similarity`` too, at those of ``dims`` that they have.
        dims: None: the student's full width alone.
        texts: held-out texts, n of them, to compare the student with ``teacher_vectors`` on.
        teacher_vectors: (n, any width), the vectors that the student was taught, for these texts.
        retrieval: queries and documents, as in retrieval_evaluator.
        similarity: first and second sentences and scores, as in similarity_evaluator.
        images: images and captions, as in ImageRetrievalEvaluator.
        speed: texts to time each model on.
        batch_size: inputs encoded at a time.

    Returns:
        A dictionary with "dims", "fidelity", "retrieval", "similarity", "images" and "models". A score at a dimension
        stands under the dimension's decimal digits, since JSON has no other keys; one that is not defined is None.
    """
    if (texts is None) != (teacher_vectors is None):
        given, missing = ("texts", "teacher_vectors") if teacher_vectors is None else ("teacher_vectors", "texts")
        raise ValueError(f"The '{missing}' parameter must come with '{given}', or neither of them. Got one alone.")
    models = {"student": student, **(teachers or {})}
    if len(models) == len(teachers or {}):
        raise ValueError("The 'teachers' parameter must not name a teacher 'student': rename it.")
    width = student.get_embedding_dimension()
    if width is None:
        raise ValueError("The 'student' parameter must be a model that knows its dimension. Got one that does not.")
    wanted = _dims_of(_checked_dims(dims), width)
    results: dict[str, Any] = {"dims": list(wanted)}

    if texts is not None and teacher_vectors is not None:
        texts = _checked_texts("texts", texts)
        fidelity = TeacherFidelityEvaluator(
            texts, teacher_vectors, dims=wanted, neighbours=min(10, max(1, len(texts) - 1)), batch_size=batch_size
        )
        scores = fidelity(student)
        results["fidelity"] = {
            "texts": len(texts),
            "neighbours": fidelity.neighbours,
            "spearman": {str(dim): scores[f"spearman_{dim}"] for dim in wanted},
            "overlap": {str(dim): scores[f"overlap{fidelity.neighbours}_{dim}"] for dim in wanted},
        }
    if retrieval is not None:
        results["retrieval"] = {"pairs": len(retrieval[0])} | _sweep(
            lambda own: retrieval_evaluator(*retrieval, dims=own, batch_size=batch_size),
            {"accuracy@1": "cosine_accuracy@1", "ndcg@10": "cosine_ndcg@10"},
            models,
            wanted,
        )
    if similarity is not None:
        results["similarity"] = {"pairs": len(similarity[0])} | _sweep(
            lambda own: similarity_evaluator(*similarity, dims=own, batch_size=batch_size),
            {"spearman": "spearman_cosine"},
            models,
            wanted,
        )
    if images is not None:
        evaluator = ImageRetrievalEvaluator(*images, dims=wanted, batch_size=batch_size)
        scores = evaluator(student)
        results["images"] = {
            "images": len(evaluator.images),
            "captions": len(evaluator.captions),
            **{f"recall@{k}": {str(dim): scores[f"recall@{k}_{dim}"] for dim in wanted} for k in evaluator.at},
            **{f"chance@{k}": chance for k, chance in evaluator.chance.items()},
        }
    results["models"] = {name: model_size(model) for name, model in models.items()}
    if speed is not None:
        for name, model in models.items():
            results["models"][name]["texts_per_second"] = throughput(model, speed, batch_size=batch_size)
    return results


def _sweep(build: Any, shown: dict[str, str], models: Mapping[str, SentenceTransformer], dims: tuple[int, ...]) -> Any:
    """``{"scores": {model: {metric: {dim: score}}}}`` of what ``build(dims)`` makes; ``shown``: metric to its key."""
    table: dict[str, Any] = {}
    for name, model in models.items():
        own = [dim for dim in dims if dim <= (model.get_embedding_dimension() or 0)]
        scores = build(own)(model) if own else {}
        table[name] = {
            metric: {str(dim): _finite(scores[f"{key}_{dim}"]) for dim in own} for metric, key in shown.items()
        }
    return {"scores": table}


def _finite(score: float) -> float | None:
    """JSON has no NaN, which the library's correlations are where all similarities are equal."""
    return float(score) if np.isfinite(score) else None
