"""Tasks of MTEB, run by MTEB's own code on vectors that are encoded once for all dimensions and precisions."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_distill.errors import MissingExtraError, sentence
from st_distill.evaluation.base import checked_dims, dims_of, width_of
from st_distill.evaluation.sweep import EncodedOnce, Precision, checked_precisions
from st_distill.evaluation.truncation import tell_truncated
from st_distill.files import remove_abandoned, write_bytes
from st_distill.nearest import offer, suggest

__all__ = ["evaluate_mteb", "find_mteb_tasks", "result_files"]

#: MTEB's types of task, where they are called otherwise here.
_KINDS = {
    "Classification": "classification",
    "Clustering": "clustering",
    "PairClassification": "pair_classification",
    "Reranking": "reranking",
    "Retrieval": "retrieval",
    "STS": "sts",
    "Summarization": "summarization",
    "Any2AnyRetrieval": "image_retrieval",
}


def _mteb() -> Any:
    try:
        import mteb
    except ImportError:
        raise MissingExtraError("mteb", extra="mteb", purpose="Measuring a task of MTEB") from None
    return mteb


def find_mteb_tasks(names: Sequence[str]) -> list[Any]:
    """MTEB's tasks of these names, without their data.

    Raises:
        MissingExtraError: mteb is not installed.
        ValueError: MTEB has no task of a name.
    """
    mteb = _mteb()
    tasks = []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError:
            known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]
            longer = [task for task in known if name.lower() in task.lower()]  # emotion: EmotionClassification
            found = offer(min(longer, key=len)) if longer else suggest(name, known)
            raise ValueError(
                sentence(f"MTEB has no task '{name}'{found or ': mteb available-tasks lists the names of all'}")
            ) from None
    return tasks


def result_files(
    folder: str | os.PathLike[str], tasks: Sequence[Any], dims: Sequence[int], precisions: Sequence[Precision]
) -> list[Path]:
    """The files that `evaluate_mteb` writes."""
    return [_result_file(folder, *of) for of in itertools.product(tasks, dims, precisions)]


def _result_file(folder: str | os.PathLike[str], task: Any, dim: int, precision: Precision) -> Path:
    place = str(dim) if precision == "float32" else f"{dim}-{precision}"
    return Path(folder, place, f"{task.metadata.name}.json")


def _write_result(result: Any, path: Path) -> None:
    """MTEB writes in place, and would leave half a file where it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    with tempfile.TemporaryDirectory() as folder:
        result.to_disk(Path(folder, path.name))
        write_bytes(path, Path(folder, path.name).read_bytes())


def evaluate_mteb(
    model: SentenceTransformer,
    tasks: Sequence[Any],
    *,
    dims: Sequence[int] | None = None,
    precisions: Sequence[Precision] = ("float32",),
    prompts: Mapping[str, str] | None = None,
    batch_size: int = 32,
    folder: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Measure a model on tasks of MTEB.

    Args:
        model: any sentence-transformers model; its prompts are used as MTEB uses them, by task, type of task, or query and
            document.
        tasks: of MTEB (`find_mteb_tasks`), or of one's own, derived from its classes.
        dims: prefixes of the vectors; None: the full width alone.
        precisions: of float32, int8 and binary. int8 takes its range from all that the task encodes.
        prompts: put before the texts instead of the model's own: "query", "document", and "text" for any other.
        batch_size: texts encoded at a time.
        folder: where MTEB's own results go, as ``<dimension>/<task>.json``, or ``<dimension>-<precision>/<task>.json``.

    Returns:
        The entries of "tasks" in what `st_distill.evaluation.evaluate_tasks` returns, with MTEB's main score alone.

    Raises:
        MissingExtraError: mteb is not installed.
    """
    mteb = _mteb()
    from mteb.models import SentenceTransformerEncoderWrapper

    wanted, kept = dims_of(checked_dims(dims), width_of(model)), checked_precisions(precisions)
    measured = []
    for task in tasks:
        encoded = EncodedOnce(model, prompts=prompts)

        def results_at(dim: int | None, precision: Precision, task: Any = task, encoded: EncodedOnce = encoded) -> Any:
            wrapper = SentenceTransformerEncoderWrapper(model)
            wrapper.model = encoded.at(dim, precision)
            options = {"batch_size": batch_size, "show_progress_bar": False}
            found = mteb.evaluate(
                wrapper, task, encode_kwargs=options, cache=None, co2_tracker=False, show_progress_bar=False
            )
            return found.task_results[0]

        if kept[0] == "int8":
            results_at(None, "float32")  # only a first pass tells what the task encodes
        scores: dict[str, dict[str, dict[str, float]]] = {str(dim): {} for dim in wanted}
        for precision in kept:
            for dim in wanted:
                result = results_at(dim, precision)
                scores[str(dim)][precision] = {"main_score": float(result.get_score())}
                if folder is not None:
                    _write_result(result, _result_file(folder, task, dim, precision))
        tell_truncated(model, {task.metadata.name: encoded.texts()})  # MTEB's code alone knows them beforehand
        kind = str(task.metadata.type)
        measured.append(
            {
                "name": task.metadata.name,
                "kind": _KINDS.get(kind, kind),
                "metric": "main_score",
                "examples": None,
                "scores": scores,
            }
        )
    return measured
