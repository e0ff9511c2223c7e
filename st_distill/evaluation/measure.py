"""Everything that a recipe asks for, of a student and its teachers, with their size and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_distill.evaluation.base import checked_dims, checked_model, checked_positive, checked_texts, dims_of
from st_distill.evaluation.fidelity import TeacherFidelityEvaluator
from st_distill.evaluation.images import ImageRetrievalEvaluator
from st_distill.evaluation.pairs import retrieval_evaluator, similarity_evaluator
from st_distill.matrices import as_matrix
from st_distill.timing import texts_per_second

__all__ = ["evaluate", "model_size", "throughput"]


def model_size(model: torch.nn.Module) -> dict[str, float]:
    """``parameters``, a count (shared ones once), and ``megabytes``, 10**6 bytes of parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "megabytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
    }


def throughput(model: SentenceTransformer, texts: Sequence[str], *, batch_size: int = 32, repeats: int = 3) -> float:
    """Texts per second through ``model.encode``, tokenisation included: median of ``repeats`` passes over ``texts``.

    One untimed batch comes first.
    """
    texts = checked_texts("texts", texts)
    if not texts:
        raise ValueError("The 'texts' parameter must hold at least one text. Got none instead.")
    checked_positive("repeats", repeats)
    checked_positive("batch_size", batch_size)
    return texts_per_second(
        lambda batch: model.encode(batch, batch_size=batch_size, show_progress_bar=False),
        texts,
        batch_size=batch_size,
        repeats=repeats,
    )


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
    if teachers is not None and not isinstance(teachers, Mapping):
        raise TypeError(
            f"The 'teachers' parameter must be a mapping from name to model. Got {type(teachers).__name__} instead."
        )
    for name, parts, wanted_parts in (
        ("retrieval", retrieval, ("queries", "documents")),
        ("similarity", similarity, ("first sentences", "second sentences", "scores")),
        ("images", images, ("images", "captions")),
    ):
        if parts is not None and (isinstance(parts, str) or len(parts) != len(wanted_parts)):
            raise TypeError(
                f"The '{name}' parameter must be a tuple of {', '.join(wanted_parts)}. Got something else instead."
            )
    checked_model("student", student)
    models = {"student": student, **(teachers or {})}
    if len(models) == len(teachers or {}):
        raise ValueError("The 'teachers' parameter must not name a teacher 'student': rename it.")
    width = student.get_embedding_dimension()
    if width is None:
        raise ValueError("The 'student' parameter must be a model that knows its dimension. Got one that does not.")
    wanted = dims_of(checked_dims(dims), width)
    results: dict[str, Any] = {"dims": list(wanted)}

    if texts is not None and teacher_vectors is not None:
        texts, vectors = checked_texts("texts", texts), as_matrix("'teacher_vectors' parameter", teacher_vectors)
        fidelity = TeacherFidelityEvaluator(
            texts, vectors, dims=wanted, neighbours=min(10, max(1, len(texts) - 1)), batch_size=batch_size
        )
        scores = fidelity(student)
        results["fidelity"] = {
            "texts": len(texts),
            "neighbours": fidelity.neighbours,
            "spearman": {str(dim): scores[f"spearman_{dim}"] for dim in wanted},
            "overlap": {str(dim): scores[f"overlap{fidelity.neighbours}_{dim}"] for dim in wanted},
            "cka": {str(dim): scores[f"cka_{dim}"] for dim in wanted},
        }
        # What is left of the teachers' own vectors at these dimensions, for comparison.
        shorter = [dim for dim in wanted if dim <= vectors.shape[1]]
        own = fidelity.scores(vectors, shorter)
        results["fidelity"]["teachers_cut"] = {
            "spearman": {str(dim): own[f"spearman_{dim}"] for dim in shorter},
            "overlap": {str(dim): own[f"overlap{fidelity.neighbours}_{dim}"] for dim in shorter},
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
        try:
            scores = build(own)(model) if own else {}
        except ValueError as error:
            if name == "student":
                raise
            raise ValueError(f"The teacher '{name}' cannot be measured: {error}") from error
        table[name] = {
            metric: {str(dim): _finite(scores[f"{key}_{dim}"]) for dim in own} for metric, key in shown.items()
        }
    return {"scores": table}


def _finite(score: float) -> float | None:
    """JSON has no NaN, which the library's correlations are where all similarities are equal."""
    return float(score) if np.isfinite(score) else None
