"""The report of a run: one HTML page that needs nothing else, and its pictures as PNG files."""

from __future__ import annotations

import importlib
import logging
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from st_distill import __version__
from st_distill.environment import environment
from st_distill.errors import MissingExtraError, one_line
from st_distill.evaluation.failures import failures
from st_distill.exporting import load_student
from st_distill.figures import scores_of
from st_distill.files import in_the_way, remove_abandoned, write_bytes, write_text
from st_distill.recipe.data import load_texts
from st_distill.recipe.measuring import measure, texts_and_vectors
from st_distill.recipe.schema import Recipe, Texts
from st_distill.recipe.teachers import teacher_view
from st_distill.recipe.vision import pictures_and_captions
from st_distill.records import setting_work
from st_distill.report.facts import headline, origin, recipe_text, size_rows, stage_rows, storage_rows, task_rows
from st_distill.report.pictures import (
    COLOURS,
    Picture,
    bars,
    by_dimension,
    gallery_png,
    over_steps,
    printable,
    similarity_scatter,
)
from st_distill.report.run import Run, read_run
from st_distill.report.samples import Difference, Retrieved, differences, gallery, similarity_pairs
from st_distill.report.speed import Speed, measure_speed, missing_backends
from st_distill.store import TeacherStore

logger = logging.getLogger(__name__)

__all__ = ["write_page"]

#: Held-out texts that are compared one by one, at most: their matrix of similarities is looked at whole.
_TEXTS = 2000
_SPEED_TEXTS = 128
#: Parameters up to which a teacher is converted for other backends too; beyond, that takes longer than it tells.
_EXPORTED = 500_000_000
_BEFORE = "before training"
_PAGE = "index.html"
#: By which a page of ours is known (templates/page.html).
_OURS = b'<meta name="generator" content="st-distill '


@dataclass
class _Found:
    """What the page shows beyond the run's own figures. ``absent``: what is not there, and why; ``untried``: what the speed
    was not measured with."""

    before: Mapping[str, Any] = field(default_factory=dict)
    pairs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    right: list[Retrieved] = field(default_factory=list)
    wrong: list[Retrieved] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    compared: int = 0
    absent: list[tuple[str, str]] = field(default_factory=list)


def write_page(
    run: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None, *, speed: bool = True
) -> Path:
    """Write the report of a run: ``index.html``, and ``pictures/`` with each chart and the gallery as PNG.

    The page shows what the run has: one that is not finished, or was not evaluated, gives a shorter one that says what is
    missing. It holds no script and asks for nothing outside itself.

    Args:
        run: the work folder of a run; the recipe's relative paths start at the current folder, as in the run.
        folder: where to write; default: ``report`` in the work folder.
        speed: measure texts per second and memory of the student and its teachers here and now; otherwise the page has the
            evaluation's own figures.

    Returns:
        The path of the page.

    Raises:
        ValueError: for a folder that holds no run.
        OSError: where the report cannot be written, or a finished run's model is not seen from the current folder.
        MissingExtraError: where matplotlib or jinja2 are not installed.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingExtraError(package, extra="report", purpose="The report") from None
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found_run = read_run(run)
    target = Path(folder) if folder is not None else found_run.folder / "report"
    for written in (target, target / "pictures"):
        _require_writable(written)
    found = _collect(found_run, speed=speed)
    for what, reason in found.absent:
        logger.warning("Not shown: %s (%s).", what, reason)
    (target / "pictures").mkdir(parents=True, exist_ok=True)
    for written in (target, target / "pictures"):
        remove_abandoned(written)
    training = _training_pictures(found_run)
    quality = _quality_pictures(found_run.results, found.before)
    scatter = _scatter(found_run.results, found)
    speeds = _speed_picture(found_run.results, found.speeds)
    pictures = [*quality, *training, *([scatter] if scatter else []), *([speeds] if speeds else [])]
    for picture in pictures:
        write_bytes(target / "pictures" / f"{picture.name}.png", picture.png)
    if found.right or found.wrong:
        gallery_of = {"Found": found.right, "Not found first": found.wrong}
        write_bytes(target / "pictures" / "gallery.png", gallery_png(gallery_of))
    templates = Environment(
        loader=PackageLoader("st_distill.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    page = templates.get_template("page.html").render(
        version=__version__,
        title=_title(found_run),
        colours=COLOURS,
        finished=bool(found_run.stages) and all(stage.done for stage in found_run.stages),
        headline=headline(found_run.results, found.speeds),
        origin=origin(found_run),
        stages=stage_rows(found_run),
        quality=quality,
        training=training,
        scatter=scatter,
        found=found,
        shorter=_shorter,
        begun=lambda sentence: sentence[:1].upper() + sentence[1:],
        sizes=size_rows(found_run.results, found.speeds),
        speeds=speeds,
        storage=storage_rows(found_run),
        tasks=task_rows(found_run.results),
        failed=failures(found_run.results),
        findings=found_run.findings,
        nothing_found=_nothing_found(found_run),
        recipe=recipe_text(found_run),
        ran_on=found_run.environment,
        made_on=environment(),
    )
    write_text(target / _PAGE, page)
    return target / _PAGE


def _require_writable(folder: Path) -> None:
    """Whether a part of the report can be written, and is no part of a model, before the work whose result goes there."""
    if (blocking := in_the_way(folder)) is not None:
        raise NotADirectoryError(
            f"The report cannot be written to {folder}: {blocking} is no folder. Name another place with --out."
        )
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(
            f"The report cannot be written to {folder}: the folder {nearest} is not writable. Name another place with --out."
        )
    if (page := folder / _PAGE).is_dir():
        raise IsADirectoryError(
            f"The report cannot be written to {folder}: {page} is a folder. Remove it, or name another place with --out."
        )
    if page.is_file() and _OURS not in page.read_bytes():
        raise FileExistsError(
            f"The report cannot be written to {folder}: {page} is no report of st-distill, and would be replaced. Name another "
            "place with --out."
        )
    # The report shows texts of the evaluation, which would go with the model wherever it is pushed to.
    if model := next((path for path in (folder, *folder.parents) if (path / "modules.json").is_file()), None):
        raise FileExistsError(
            f"The report shall not be written to {folder}: {model} is a model, and the report shows texts of your data. Name "
            "another place with --out."
        )


def _title(run: Run) -> str:
    name = Path(run.recipe.output).name if run.recipe is not None else run.folder.name
    return name or "The student"


def _nothing_found(run: Run) -> str:
    """What stands in place of findings."""
    if run.diagnosed:
        return "Nothing that was looked for was found."
    if run.recipe is not None and not run.recipe.diagnosis:
        return "Nothing was looked for: the recipe says diagnosis: false."
    return "Nothing has been looked for yet."


def _shorter(text: str, limit: int = 260) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


# --- pictures ---------------------------------------------------------------------------------------------------------


def _training_pictures(run: Run) -> list[Picture]:
    pictures = []
    for index, stage in enumerate(run.stages, start=1):
        logged = [entry for entry in stage.history if entry.get("loss") is not None and "step" in entry]
        if logged:
            title = f"Stage {index}, {stage.name}: the loss and its terms"
            pictures.append(over_steps(f"stage-{index}", title, logged, stage.terms))
    return pictures


def _quality_pictures(results: Mapping[str, Any], before: Mapping[str, Any]) -> list[Picture]:
    pictures = []
    if fidelity := results.get("fidelity"):
        nearest = fidelity["neighbours"]
        for key, title, label in (
            ("spearman", "Agreement with the teachers: order of similarities", "Spearman x 100"),
            ("overlap", f"Agreement with the teachers: {nearest} nearest texts", f"of {nearest} nearest shared, %"),
        ):
            series = {"student": fidelity[key]}
            if before.get("fidelity"):
                series[_BEFORE] = before["fidelity"][key]
            if cut := fidelity.get("teachers_cut", {}).get(key):
                series["teachers, cut"] = cut
            pictures.append(by_dimension(f"fidelity-{key}", title, label, series))
    for metric, name, title, label in (
        ("ndcg@10", "retrieval", "Retrieval: a query finds its document", "nDCG@10 x 100"),
        ("sts", "similarity", "Similarity of sentence pairs, against the given scores", "Spearman x 100"),
    ):
        if measured := scores_of(results, metric):
            series = {"student": measured["student"]}
            if start := scores_of(before, metric):
                series[_BEFORE] = start["student"]
            series |= measured
            pictures.append(by_dimension(name, title, label, {model: own for model, own in series.items() if own}))
    if images := results.get("images"):
        for key in (key for key in images if key.startswith("recall@")):
            title = f"Text to image: the right one among the first {key.removeprefix('recall@')}"
            chance = images[key.replace("recall", "chance")]
            series = {"student": images[key]}
            pictures.append(by_dimension(key.replace("@", "-"), title, f"{key}, %", series, chance=chance))
    return pictures


def _scatter(results: Mapping[str, Any], found: _Found) -> Picture | None:
    if not found.pairs:
        return None
    scores = scores_of(results, "spearman").get("student")
    correlation = scores[max(scores, key=int)] if scores else None
    return similarity_scatter(
        "similarities", "Similarity of two texts, student against teachers", found.pairs, correlation
    )


def _speed_picture(results: Mapping[str, Any], speeds: Sequence[Speed]) -> Picture | None:
    values = {}
    for speed in speeds:
        if speed.texts_per_second is not None:
            values[speed.model if speed.backend == "torch" else f"{speed.model}, {speed.backend}"] = (
                speed.texts_per_second
            )
    if not speeds:
        for model, figures in (results.get("models") or {}).items():
            if figures.get("texts_per_second"):
                values[model] = figures["texts_per_second"]
    return bars("speed", "Texts per second", "texts per second", values) if values else None


# --- what is measured for the page --------------------------------------------------------------------------------------


def _collect(run: Run, *, speed: bool) -> _Found:
    found = _Found()
    recipe = run.recipe
    if run.recipe_changed:
        found.absent.append(
            ("the recipe as the run had it", "recipe.yaml has changed since; what is shown is what it says now")
        )
    if recipe is None:
        reason = "the recipe held Python objects, so that the run's folder has no recipe.yaml"
        found.absent.append(("comparisons with the teachers, pictures and speed", reason))
        return found
    if not (Path(recipe.output) / "modules.json").is_file():
        if all(stage.done for stage in run.stages) and not Path(recipe.output).is_absolute():
            command = shlex.join(["st-distill", "run", str(run.folder / "recipe.yaml"), *setting_work(run.folder)])
            raise FileNotFoundError(
                f"The model of the run must be in {recipe.output}, seen from the current folder. It is not: start the report "
                "in the folder in which the run was started, or, where run and model have been moved, say so first with: "
                f"{command} --set output=FOLDER --resume"
            )
        reason = (
            f"there is no model in {recipe.output}, seen from the current folder: the run is not finished, or it was started "
            "in another folder"
        )
        found.absent.append(("comparisons with the teachers, pictures and speed", reason))
        return found
    student = load_student(recipe.output)

    def attempt(what: str, part: Callable[[Recipe, SentenceTransformer, Run, _Found], None]) -> None:
        # A page without one of its parts is of more use than none.
        try:
            part(recipe, student, run, found)
        except (ValueError, TypeError, OSError, ImportError, KeyError, RuntimeError) as error:
            found.absent.append((what, one_line(error)))

    attempt("the student against its teachers, text by text", _compare)
    attempt("the student before training", _measure_start)
    attempt("pictures that captions find", _find_pictures)
    if speed:
        attempt("speed and memory", _measure_speed)
    return found


def _compare(recipe: Recipe, student: SentenceTransformer, run: Run, found: _Found) -> None:
    if recipe.evaluation is None or recipe.evaluation.texts is None or not recipe.teachers:
        raise ValueError("the recipe's evaluation has no held-out texts")
    teacher = teacher_view(recipe, TeacherStore.open(run.folder / "teachers"))
    texts, vectors = texts_and_vectors(recipe.evaluation.texts, teacher)
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    rows = list(first.values())
    if len(rows) > _TEXTS:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.seed))[:_TEXTS]
        rows = [rows[index] for index in sorted(chosen.tolist())]
    if len(rows) < 3:
        raise ValueError(f"the held-out texts are {len(rows)}, too few to compare")
    kept = [texts[row] for row in rows]
    ours = student.encode(kept, convert_to_tensor=True, show_progress_bar=False).float().cpu()
    theirs = vectors[rows].float().cpu()
    found.compared = len(kept)
    found.pairs = similarity_pairs(ours, theirs, seed=recipe.seed)
    found.differences = differences(kept, ours, theirs)


def _measure_start(recipe: Recipe, student: SentenceTransformer, run: Run, found: _Found) -> None:
    evaluation = recipe.evaluation
    if evaluation is None or not (evaluation.texts or evaluation.retrieval or evaluation.similarity):
        raise ValueError("the recipe's evaluation has no texts")
    if not (run.stage_model(-1) / "modules.json").is_file():
        raise ValueError("the run's folder has no start")
    teacher = None
    if evaluation.texts is not None and recipe.teachers:
        teacher = teacher_view(recipe, TeacherStore.open(run.folder / "teachers"))
    start = load_student(run.stage_model(-1))
    found.before = measure(
        start, recipe, replace(evaluation, teachers=False, images=None, tasks=[]), teacher, speed=False
    )
    found.absent += [
        (f"{entry['name']} of the student before training", entry["error"]) for entry in failures(found.before)
    ]


def _find_pictures(recipe: Recipe, student: SentenceTransformer, run: Run, found: _Found) -> None:
    if recipe.evaluation is None or recipe.evaluation.images is None:
        if recipe.images is not None:
            raise ValueError("the recipe's evaluation has no pictures")
        return
    if not student.supports("image"):
        raise ValueError("the student has no vision encoder")
    pictures, captions = pictures_and_captions(recipe.evaluation.images)
    found.right, found.wrong = gallery(student, pictures[:_TEXTS], captions[:_TEXTS], seed=recipe.seed)


def _measure_speed(recipe: Recipe, student: SentenceTransformer, run: Run, found: _Found) -> None:
    models: dict[str, dict[str, Any]] = {"student": {"model_name_or_path": recipe.output}}
    for teacher in recipe.teachers:
        if teacher.model is not None and teacher.trust_remote_code:
            # The recipe may have come with the folder from a stranger, whose word lets no code run.
            found.untried.append(f"{teacher.name} was not measured: it runs code of its own, which a report does not.")
        elif teacher.model is not None:
            models[str(teacher.name)] = {
                "model_name_or_path": teacher.model,
                "revision": teacher.revision,
                "device": teacher.device,
                "model_kwargs": None if teacher.dtype is None else {"dtype": teacher.dtype},
                "max_seq_length": teacher.max_seq_length,
            }
    sizes = {name: model.get("parameters") for name, model in (run.results.get("models") or {}).items()}
    exported = [name for name in models if name == "student" or (sizes.get(name) or math.inf) <= _EXPORTED]
    found.speeds = measure_speed(models, _speed_texts(recipe), exported=exported)
    found.untried += missing_backends()


def _speed_texts(recipe: Recipe) -> list[str]:
    evaluation = recipe.evaluation
    held_out = [evaluation.texts, evaluation.retrieval, evaluation.similarity] if evaluation is not None else []
    sources: list[Texts] = [source for source in (*held_out, *recipe.texts) if source is not None]
    if not sources:
        raise ValueError("the recipe has no texts to measure with")
    dataset = load_texts(sources[0])
    return list(dataset[dataset.column_names[0]][:_SPEED_TEXTS])
