"""The report's tables: rows of plain texts, made of what a run says and of what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from st_distill.figures import percent, scores_of, task_table
from st_distill.recipe.schema import Images, ImageSource, Recipe, TeacherSpec, Texts
from st_distill.report.run import Run
from st_distill.report.speed import Speed
from st_distill.store import TeacherStore
from st_distill.yaml_tree import Place, parse

__all__ = ["Fact", "Table", "headline", "origin", "recipe_text", "size_rows", "stage_rows", "storage_rows", "task_rows"]


class Fact(NamedTuple):
    """A figure with its name and, in a few words, what it means."""

    name: str
    value: str
    note: str = ""


class Table(NamedTuple):
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def _largest(scores: Mapping[str, float | None]) -> str:
    return max(scores, key=int)


def headline(results: Mapping[str, Any], speeds: Sequence[Speed]) -> list[Fact]:
    """The few figures that decide: quality at the full dimension, size, speed."""
    facts = []
    models = results.get("models") or {}
    for metric, name, unit in (
        ("spearman", "Agreement", "Spearman's correlation with the teachers' similarities"),
        ("ndcg@10", "Retrieval", "nDCG@10"),
        ("sts", "Sentence similarity", "Spearman's correlation"),
    ):
        scores = scores_of(results, metric)
        if not scores:
            continue
        own = scores.pop("student")
        dim = _largest(own)
        note = f"{unit}, times 100, {dim} dimensions"
        rivals = {model: score for model, other in scores.items() if (score := other.get(dim)) is not None}
        if rivals:
            best = max(rivals, key=lambda model: rivals[model])
            note += f"; {best}: {percent(rivals[best])}"
        facts.append(Fact(name, percent(own[dim]), note))
    if images := results.get("images"):
        key = [key for key in images if key.startswith("recall@")][-1]
        dim = _largest(images[key])
        chance = 100 * images[key.replace("recall", "chance")]
        note = f"{key} among {images['images']:,} pictures, {dim} dimensions; chance: {chance:.1f} %"
        found = percent(images[key][dim])
        facts.append(Fact("Text to image", found if found == "-" else f"{found} %", note))
    if "student" in models:
        own = models["student"]["parameters"]
        others = {model: entry["parameters"] for model, entry in models.items() if model != "student"}
        note = f"{models['student']['megabytes']:,.0f} MB"
        if others:
            largest = max(others, key=lambda model: others[model])
            note += f"; {largest}: {_parameters(others[largest])}"
        facts.append(Fact("Parameters", _parameters(own), note))
    rates = _rates(results, speeds)
    if rates.get("student"):
        others = {model: rate for model, rate in rates.items() if model != "student" and rate}
        note = "texts per second"
        if others:
            slowest = min(others, key=lambda model: others[model])
            note += f"; {slowest}: {others[slowest]:,.0f}"
        facts.append(Fact("Speed", f"{rates['student']:,.0f}", note))
    return facts


def _parameters(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 100_000 else f"{count:,}"


def _rates(results: Mapping[str, Any], speeds: Sequence[Speed]) -> dict[str, float]:
    if speeds:
        return {
            speed.model: speed.texts_per_second
            for speed in speeds
            if speed.backend == "torch" and speed.texts_per_second
        }
    models = results.get("models") or {}
    return {name: entry["texts_per_second"] for name, entry in models.items() if entry.get("texts_per_second")}


def origin(run: Run) -> list[Fact]:
    """What was distilled from what."""
    recipe = run.recipe
    if recipe is None:
        return []
    names = _short_names(recipe)
    student = names[recipe.student.model]
    if recipe.student.layers is not None:
        student += f", layers {', '.join(map(str, recipe.student.layers))}"
    dims = (
        "" if recipe.projection is None else f"projection to {', '.join(map(str, recipe.projection.dims))} dimensions"
    )
    facts = [Fact("Student", student, dims)]
    widths = _widths(run)
    for teacher in recipe.teachers:
        notes = [f"weight {teacher.weight:g}"]
        if str(teacher.name) in widths:
            notes.insert(0, f"{widths[str(teacher.name)]} dimensions")
        facts.append(Fact(f"Teacher {teacher.name}", _teacher(teacher, names), ", ".join(notes)))
    facts += [Fact("Texts", _source(source, names)) for source in recipe.texts]
    if recipe.images is not None:
        vision = recipe.images.vision
        kind = (
            names[vision]
            if isinstance(vision, str)
            else f"{(vision or {}).get('model_type', 'none')}, from random weights"
        )
        facts.append(Fact("Pictures", _source(recipe.images, names), f"vision encoder: {kind}"))
    return facts


def _widths(run: Run) -> dict[str, int]:
    try:
        return TeacherStore.open(run.folder / "teachers").dimensions
    except (OSError, ValueError):
        return {}  # a run that has not embedded its texts yet


def _teacher(teacher: TeacherSpec, names: Mapping[str, str]) -> str:
    if teacher.model is not None:
        return names[teacher.model]
    return f"vectors in {names[teacher.vectors]}" if teacher.vectors is not None else "a Python object"


def _source(source: Texts | ImageSource | Images, names: Mapping[str, str]) -> str:
    if source.path is not None:
        return names[source.path]
    return source.dataset if source.dataset is not None else "given in Python"


def _short_names(recipe: Recipe) -> dict[str, str]:
    """Of the files, folders and models of a recipe the name on a page that others see: no more of a path than tells it
    from the others. A name of the hub stays whole."""
    files = [source.path for source in recipe.texts] + [teacher.vectors for teacher in recipe.teachers]
    models: list[Any] = [recipe.student.model, *(teacher.model for teacher in recipe.teachers)]
    if recipe.images is not None:
        files.append(recipe.images.path)
        models.append(recipe.images.vision)
    local = {path for path in files if path is not None}
    named = {name for name in models if isinstance(name, str)}
    local |= {name for name in named if Path(name).is_absolute() or name.count("/") > 1 or Path(name).exists()}
    parts = {path: Path(path).parts for path in local}
    names = {name: name for name in named}
    for path, own in parts.items():
        others = [other for other in parts.values() if other != own]
        kept = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        names[path] = "/".join(own[-kept:])
    return names


def recipe_text(run: Run) -> str | None:
    """The recipe's YAML, with no more of absolute paths than their last part; None where there is none."""
    text = run.recipe_text
    if text is None:
        return None
    for path in sorted(_absolute(parse(text, partial(Place, "recipe.yaml")).plain()), key=len, reverse=True):
        whole = rf"(?<![\w./\\-]){re.escape(path)}(?![\w./\\-])"
        text = re.sub(whole, lambda _, path=path: f"…/{Path(path).name}", text)  # type: ignore[misc]
    return text


def _absolute(value: Any) -> set[str]:
    """The absolute paths in plain data."""
    if isinstance(value, Mapping):
        return set().union(*map(_absolute, value.values()))
    if isinstance(value, list):
        return set().union(*map(_absolute, value))
    return {value} if isinstance(value, str) and Path(value).is_absolute() and Path(value).name else set()


def stage_rows(run: Run) -> Table:
    """What each stage trained, for how long, and how its loss went."""
    rows = []
    for index, stage in enumerate(run.stages):
        spec = run.recipe.stages[index] if run.recipe is not None and index < len(run.recipe.stages) else None
        trained = "" if spec is None else _trains(spec.train)
        losses = [entry["loss"] for entry in stage.history if entry.get("loss") is not None]
        # A run of an older version says no more than where its log ends.
        steps = stage.metrics.get(
            "steps", max((entry["step"] for entry in stage.history if "step" in entry), default=None)
        )
        seconds, rate = stage.metrics.get("train_runtime"), stage.metrics.get("train_samples_per_second")
        rows.append(
            (
                f"{index + 1}. {stage.name}",
                trained,
                "-" if steps is None else f"{steps:,}",
                "-" if spec is None else f"{spec.effective_batch():,}",
                f"{seconds / 60:.1f}" if seconds is not None else "-",
                f"{rate:,.0f}" if rate is not None else "-",
                f"{losses[0]:.3g} to {losses[-1]:.3g}" if losses else ("-" if stage.done else "not done"),
            )
        )
    return Table(("Stage", "Trains", "Steps", "Batch", "Minutes", "Rows per second", "Loss"), rows)


def _trains(train: Any) -> str:
    if isinstance(train, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in train.items())
    return ", ".join(map(str, train)) if isinstance(train, list) else str(train)


def size_rows(results: Mapping[str, Any], speeds: Sequence[Speed]) -> Table:
    """Each model's size, and its speed and memory with each backend."""
    models = results.get("models") or {}
    rows: list[tuple[str, ...]] = []
    if not speeds:
        for name, entry in models.items():
            rate = entry.get("texts_per_second")
            rows.append((name, "torch", *_size(entry), "-" if rate is None else f"{rate:,.0f}"))
    for speed in speeds:
        rate = "failed" if speed.texts_per_second is None else f"{speed.texts_per_second:,.0f}"
        memory = "-" if speed.memory is None else f"{speed.memory:,.0f} MB"
        backend = f"{speed.backend}, {speed.device}" if speed.device else speed.backend
        rows.append((speed.model, backend, *_size(models.get(speed.model)), rate, memory))
    header = ("Model", "Runs on", "Parameters", "Weights", "Texts per second", "Memory")
    if not speeds:  # of which the memory is a part
        return Table(header[:-1], rows)
    return Table(header, rows)


def _size(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    if entry is None:
        return "-", "-"
    return _parameters(entry["parameters"]), f"{entry['megabytes']:,.0f} MB"


def storage_rows(run: Run) -> Table:
    """What a million vectors take, in 10**9 bytes, for each dimension and precision; without an index's own needs."""
    rows = [(f"student, {dim}", *_gigabytes(dim)) for dim in run.results.get("dims") or _dims(run)]
    rows += [(f"{teacher}, {width}", *_gigabytes(width)) for teacher, width in _widths(run).items()]
    return Table(("Model, dimensions", "float32", "int8", "binary"), rows)


def task_rows(results: Mapping[str, Any]) -> Table | None:
    """The rows of `st_distill.figures.task_table`, their words in one; None where no tasks were measured."""
    measured = results.get("tasks")
    if not measured or not measured["tasks"]:
        return None
    headers, rows = task_table(measured)
    named = []
    for name, kind, metric, *figures in rows:
        of = ", ".join(word for word in (kind.replace("_", " "), metric) if word)
        named.append((f"{name} ({of})" if of else name, *figures))
    return Table(("Task", *headers), named)


def _dims(run: Run) -> list[int]:
    projection = None if run.recipe is None else run.recipe.projection
    return [] if projection is None else list(projection.dims)


def _gigabytes(dim: int) -> tuple[str, ...]:
    return tuple(f"{size * 1_000_000 / 1e9:.3f} GB" for size in (4 * dim, dim, -(-dim // 8)))
