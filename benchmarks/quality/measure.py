"""One method's lines of results: its vectors of all tasks' texts, scored at every dimension."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor

from benchmarks.quality.methods import DIMS, TEACHERS, Settings, Trained, plan, teacher_axes, train
from benchmarks.quality.results import Line, append, read, run_name
from benchmarks.quality.students import encode
from benchmarks.quality.tasks import Search
from benchmarks.quality.teacher import Workshop
from st_distill.evaluation import model_size, throughput
from st_distill.files import read_json

#: In the folder of a run whose student is finished: what is known of its training.
_NOTE = "trained.json"


def checked_plan(shop: Workshop, name: str, settings: Settings) -> str | None:
    """The `plan` that a run is trained by now, where what there is of the run is of that plan.

    Raises:
        ValueError: it is of another one, or of none that is noted.
    """
    run, now = run_name(name, settings), plan(settings, shop.teacher_name)
    noted = [(shop.results, line) for line in read(shop.results) if line["run"] == run]
    note = _folder(shop, run) / _NOTE
    if not noted and note.exists():
        noted = [(note, read_json(note))]
    for file, about in noted:
        if (before := about.get("plan")) != now:
            was = "without a plan" if before is None else f"by the plan {before}"
            raise ValueError(
                f"{file} has the run {run} {was}, and the recipe's defaults would train it by {now} now: name another --out, "
                f"or remove its lines and the folder {_folder(shop, run)}."
            )
    return now


def run_method(shop: Workshop, name: str, settings: Settings, splits: list[str]) -> None:
    """Train and measure, unless the results have it already; a trained student is kept and measured on other splits later.

    Raises:
        ValueError: what there is of the run is of another plan.
    """
    run, now = run_name(name, settings), checked_plan(shop, name, settings)
    done = {line["split"] for line in read(shop.results) if line["run"] == run}
    missing = [split for split in splits if split not in done]
    if not missing:
        print(f"{run}: done already")
        return
    folder = _folder(shop, run)
    folder.mkdir(parents=True, exist_ok=True)
    trained = _load(folder) or _kept(train(settings, shop, folder), folder, now)
    pairs = shop.tasks("dev")[0].texts[:512]
    speed = throughput(trained.model, pairs)
    about = {
        "run": run,
        "name": name,
        "student": settings.student,
        "seed": settings.seed,
        "plan": now,
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        **model_size(trained.model),
        "texts_per_second": speed,
        "settings": settings.as_dict(),
    }
    for split in missing:
        vectors, seconds = encode(trained.model, shop.tasks(split))
        lines = score(shop, split, vectors, rotation=trained.rotation, in_teacher_space=trained.in_teacher_space)
        append(shop.results, [about | {"split": split, "encode_seconds": seconds} | line for line in lines])
        print(f"{run}: {split}, training {trained.seconds:.0f} s, embedding {seconds:.0f} s")


def run_teachers(shop: Workshop, split: str) -> None:
    """The teacher itself, truncated, on its own axes and on others."""
    done = {(line["name"], line["split"]) for line in read(shop.results)}
    for name in TEACHERS:
        if (name, split) in done:
            continue
        vectors = shop.teacher_vectors(split)
        if (axes := teacher_axes(name, shop)) is not None:
            vectors = {task: part @ axes for task, part in vectors.items()}
        model = shop.teacher_model()
        about = {"run": name, "name": name, "student": "teacher", "seed": 0, "seconds": 0.0, "settings": {}}
        about |= model_size(model) | {"texts_per_second": throughput(model, shop.tasks("dev")[0].texts[:512])}
        append(shop.results, [about | {"split": split} | line for line in score(shop, split, vectors)])


def score(
    shop: Workshop,
    split: str,
    vectors: dict[str, Tensor],
    *,
    rotation: Tensor | None = None,
    in_teacher_space: bool = False,
) -> list[Line]:
    """A line for each task and dimension of a model's vectors; with the teacher's documents, too, where both share a space."""
    teacher = shop.teacher_vectors(split)
    lines: list[Line] = []
    for task in shop.tasks(split):
        whole = teacher[task.name]
        for dim in DIMS:
            lines.append({"task": task.name, "dim": dim, "scores": task.score(vectors[task.name][:, :dim], whole)})
            if isinstance(task, Search) and in_teacher_space:
                rotated = whole if rotation is None else whole @ rotation
                against = task.against(vectors[task.name][:, :dim], rotated[:, :dim])
                lines.append({"task": "scifact-against-teacher", "dim": dim, "scores": against})
    return lines


def _folder(shop: Workshop, run: str) -> Path:
    return shop.out / "runs" / run


def _kept(trained: Trained, folder: Path, now: str | None) -> Trained:
    """Write the student where `_load` finds it, with its plan; what else the training left there goes."""
    about = {name: getattr(trained, name) for name in ("seconds", "cpu_seconds", "in_teacher_space")}
    shutil.rmtree(folder / "work" / "teachers", ignore_errors=True)
    trained.model.save(str(folder / "student"))
    if trained.rotation is not None:
        save_file({"rotation": trained.rotation.contiguous()}, folder / "rotation.safetensors")
    (folder / _NOTE).write_text(json.dumps(about | {"plan": now}), encoding="utf-8")
    return trained


def _load(folder: Path) -> Trained | None:
    if not (folder / _NOTE).exists():
        return None
    model = SentenceTransformer(str(folder / "student"), device="cpu")
    about = read_json(folder / _NOTE)
    about.pop("plan", None)
    turned = folder / "rotation.safetensors"
    return Trained(model, **about, rotation=load_file(turned)["rotation"] if turned.exists() else None)
