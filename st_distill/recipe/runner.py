"""Running a recipe: the teachers' vectors, the student's start, the stages one after another, the finished model."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import set_seed

from st_distill.errors import RecipeError
from st_distill.evaluation import TeacherFidelityEvaluator, evaluate
from st_distill.exporting import export, load_student
from st_distill.files import FolderLock, write_json
from st_distill.losses import find_projection
from st_distill.modules import MatryoshkaProjection, Transformer
from st_distill.modules.image import load_image
from st_distill.modules.matryoshka import principal_rotation, random_rotation
from st_distill.recipe.check import check
from st_distill.recipe.data import fingerprint, load_scored_pairs, load_texts, read_images
from st_distill.recipe.load import dump_recipe, load_recipe
from st_distill.recipe.schema import Recipe, Stage, TeacherSpec, Texts
from st_distill.recipe.stages import StageData, distill_loss, label_texts, run_stage, save_model, text_data
from st_distill.recipe.state import RunState, fields_digest, stage_fields
from st_distill.recipe.student import build_student
from st_distill.store import StoreView, TeacherStore
from st_distill.teacher import Teacher

logger = logging.getLogger(__name__)

#: Rows of teacher vectors, or texts, that are looked at together outside of training.
_CHUNK = 1024
#: Held-out texts that speed is measured on.
_SPEED_TEXTS = 256


@dataclass(frozen=True)
class RunResult:
    """What `run` gives: the exported model's folder, and what was measured of it (see `st_distill.evaluation.evaluate`)."""

    output: Path
    results: dict[str, Any]


def run(
    recipe: Recipe | str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    from_stage: int | None = None,
    show_progress: bool = True,
) -> RunResult:
    """Run a recipe to its end and export the student.

    The work folder (``<output>-run``) keeps the teachers' vectors, each finished stage's student and the run's state. A
    stage that is done and whose determining fields (data, model, losses, optimiser, effective batch) are unchanged is not
    done again; one that was killed goes on at its last checkpoint.

    Args:
        recipe: a recipe, its file, or the name of a preset.
        overrides: changes to it, as ``"stages.0.steps=100"``.
        resume: continue the run that is in the work folder already.
        from_stage: with ``resume``, number (from 1) of the first stage to do again.
        show_progress: show progress bars while texts are embedded.

    Raises:
        RecipeError: for a recipe with mistakes, all of them at once.
        ValueError: for a work folder that holds a run that cannot or may not be continued.
        BlockingIOError: where another process runs in the same work folder.
    """
    if isinstance(recipe, Recipe) and overrides:
        raise ValueError("The 'overrides' are for a recipe from a file. Got a Recipe: change its fields instead.")
    if errors := [problem for problem in check(recipe, overrides) if problem.level == "error"]:
        raise RecipeError(errors)
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(os.fspath(recipe), overrides)
    return _Run(recipe, show_progress).run(resume=resume, from_stage=from_stage)


def embed(recipe: Recipe, *, show_progress: bool = True) -> TeacherStore:
    """Only the first part of `run`: the teachers' vectors of every text of the recipe, in its work folder.

    Raises:
        BlockingIOError: where another process runs in the same work folder.
    """
    work = recipe.work_folder
    work.mkdir(parents=True, exist_ok=True)
    with FolderLock(work, purpose="a recipe is running there"):
        return _embed(recipe, [*recipe.texts, *_fidelity_texts(recipe)], show_progress)


def evaluate_model(model: SentenceTransformer, recipe: Recipe, *, show_progress: bool = True) -> dict[str, Any]:
    """Measure any sentence-transformers model as the ``evaluation`` of a recipe says.

    Args:
        model: the model; it is measured at those of the projection's dimensions that it has.
        recipe: the recipe; the teachers' vectors of its evaluation texts are embedded where its work folder has not got them.
        show_progress: show progress bars while texts are embedded.

    Returns:
        What `st_distill.evaluation.evaluate` returns.

    Raises:
        ValueError: for a recipe without ``evaluation``.
    """
    evaluation = recipe.evaluation
    if evaluation is None:
        raise ValueError("The recipe must have an 'evaluation' to measure a model by. Got none instead: add one.")
    width = model.get_embedding_dimension()
    dims = [dim for dim in recipe.projection.dims if width is not None and dim <= width]
    nested = recipe.projection.heads == "nested"
    options: dict[str, Any] = {"dims": dims if dims and nested else None}
    if evaluation.texts is not None and recipe.teachers:
        recipe.work_folder.mkdir(parents=True, exist_ok=True)
        store = _view(recipe, _embed(recipe, [evaluation.texts], show_progress))
        texts, vectors = _texts_and_vectors(evaluation.texts, store)
        options |= {"texts": texts, "teacher_vectors": vectors, "speed": texts[:_SPEED_TEXTS]}
    if evaluation.retrieval is not None:
        dataset = load_texts(evaluation.retrieval)
        options["retrieval"] = tuple(list(dataset[column]) for column in dataset.column_names[:2])
    if evaluation.similarity is not None:
        options["similarity"] = load_scored_pairs(evaluation.similarity)
    if evaluation.images is not None and model.supports("image"):
        spec = evaluation.images
        pictures = read_images(spec).dataset.cast_column(spec.image, Image(decode=False))
        options["images"] = ([load_image(stored) for stored in pictures[spec.image]], list(pictures[spec.caption]))
    if evaluation.teachers:
        options["teachers"] = {
            str(spec.name): _teacher_model(spec) for spec in recipe.teachers if spec.model is not None
        }
    return evaluate(model, **options)


class _Run:
    def __init__(self, recipe: Recipe, show_progress: bool) -> None:
        self.recipe = recipe
        self.show_progress = show_progress
        self.folder = recipe.work_folder
        self.output = Path(recipe.output)

    def run(self, *, resume: bool, from_stage: int | None) -> RunResult:
        if from_stage is not None and not 1 <= from_stage <= len(self.recipe.stages):
            raise ValueError(f"The 'from_stage' must be from 1 to {len(self.recipe.stages)}. Got {from_stage} instead.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(self.folder, purpose="a recipe is running there"):
            state = RunState(self.folder)
            if state.exists and not resume:
                raise ValueError(
                    f"The folder {self.folder} already holds a run. Continue it with --resume, or choose a new output or work "
                    "folder."
                )
            state.plan(self._plan(), from_stage=from_stage)
            if (text := _as_yaml(self.recipe)) is not None:
                (self.folder / "recipe.yaml").write_text(text, encoding="utf-8")
            if all(stage["done"] for stage in state.stages):
                logger.info("Every stage is done already.")
                model = load_student(state.stage_folder(len(state.stages) - 1) / "model")
            else:
                model = self._stages(state)
            return RunResult(self.output, self._finish(model, state))

    def _plan(self) -> list[dict[str, Any]]:
        texts = {f"texts[{index}]": fingerprint(source) for index, source in enumerate(self.recipe.texts)}
        plan = []
        for index, stage in enumerate(self.recipe.stages):
            data = dict(texts) if index == 0 else {}
            data |= {f"also[{i}]": fingerprint(objective.texts) for i, objective in enumerate(stage.also)}
            if stage.trains_vision and self.recipe.images is not None:
                data["images"] = fingerprint(self.recipe.images)
            plan.append({"name": str(stage.name), "fields": stage_fields(self.recipe, index, data)})
        return plan

    def _stages(self, state: RunState) -> SentenceTransformer:
        first = next(index for index, stage in enumerate(state.stages) if not stage["done"])
        # The texts and their vectors are only needed where a stage is left that reads texts.
        texts_wanted = any(not stage.trains_vision for stage in self.recipe.stages[first:])
        labelled: list[tuple[Dataset, Texts]] = []
        teacher: StoreView | None = None
        if self.recipe.teachers and (texts_wanted or first == 0 or self._evaluates_fidelity(first)):
            store = _embed(self.recipe, [*self.recipe.texts, *_fidelity_texts(self.recipe)], self.show_progress)
            teacher = _view(self.recipe, store)
            labelled = label_texts(self.recipe.texts, store)
        start = self.folder / "start"
        if first > 0:
            model = load_student(state.stage_folder(first - 1) / "model")
        elif (start / "modules.json").is_file() and _read(start / "digest.txt") == fields_digest(state.stages[:1]):
            model = load_student(start)
        else:
            set_seed(self.recipe.seed)
            model = self._start(labelled, teacher)
            save_model(model, start)
            (start / "digest.txt").write_text(fields_digest(state.stages[:1]), encoding="utf-8")
        for index in range(first, len(state.stages)):
            stage, folder = self.recipe.stages[index], state.stage_folder(index)
            logger.info("Stage %d of %d: %s.", index + 1, len(state.stages), stage.name)
            set_seed(self.recipe.seed + index)
            if stage.trains_vision:
                model, data = self._vision_stage(stage, model, fields_digest(state.stages[:index]))
            elif teacher is None:
                raise ValueError(
                    f"Stage {index + 1} learns from texts, so the recipe needs 'teachers'. Got none instead."
                )
            else:
                loss = distill_loss(stage, self.recipe.projection, model, teacher, match_dims=False)
                data = text_data(stage, labelled, loss, model)
            metrics = run_stage(
                stage,
                model,
                data,
                folder=folder,
                base=state.stage_folder(index - 1) / "model" if index else start,
                seed=self.recipe.seed + index,
                evaluator=self._evaluator(teacher),
            )
            state.finish(index, metrics | {"skipped_images": data.skipped})
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return model

    def _evaluates_fidelity(self, first: int) -> bool:
        evaluation = self.recipe.evaluation
        strategies = [stage.training_arguments().get("eval_strategy", "no") for stage in self.recipe.stages[first:]]
        return (
            evaluation is not None and evaluation.texts is not None and any(strategy != "no" for strategy in strategies)
        )

    def _evaluator(self, teacher: StoreView | None) -> TeacherFidelityEvaluator | None:
        evaluation = self.recipe.evaluation
        if teacher is None or evaluation is None or evaluation.texts is None:
            return None
        texts, vectors = _texts_and_vectors(evaluation.texts, teacher)
        dims = [max(self.recipe.projection.dims)]
        return TeacherFidelityEvaluator(texts, vectors, dims=dims, neighbours=min(10, max(1, len(texts) - 1)))

    # --- the student before the first stage ------------------------------------------------------------------------

    def _start(self, labelled: list[tuple[Dataset, Texts]], teacher: StoreView | None) -> SentenceTransformer:
        spec = self.recipe.projection
        student = build_student(self.recipe.student)
        width = student.get_embedding_dimension()
        rotation, teacher_head = None, None
        if teacher is not None:
            teacher_head = teacher.dimension if spec.teacher_head else None
            rotation = self._rotation(labelled, teacher)
        projection = MatryoshkaProjection(
            width, spec.dims, heads=spec.heads, rotation=rotation, teacher_head=teacher_head
        ).to(student.device)
        if spec.start == "identity":
            projection.start_identity()
        elif spec.start == "ridge":
            if teacher is None:
                raise ValueError("A ridge start needs the recipe's 'teachers'. Got none instead: start at random.")
            logger.info("Projection: ridge regression of the teachers' vectors.")
            projection.start_ridge(self._ridge_batches(student, labelled, teacher))
        student.append(projection)
        return student

    def _rotation(self, labelled: list[tuple[Dataset, Texts]], teacher: StoreView) -> Tensor | None:
        spec = self.recipe.projection
        dim = max(spec.dims)
        if dim > teacher.dimension:
            return None  # the check has seen to it that the teacher's head takes the cosine term
        if spec.rotation == "random":
            return random_rotation(teacher.dimension, dim, seed=self.recipe.seed)
        if spec.rotation == "principal":
            ids = np.unique(np.concatenate([np.asarray(dataset["label"]).reshape(-1) for dataset, _ in labelled]))
            return principal_rotation((teacher.gather(part) for part in _chunks(ids)), dim)
        return None if dim == teacher.dimension else torch.eye(teacher.dimension, dim)

    def _ridge_batches(
        self, student: SentenceTransformer, labelled: list[tuple[Dataset, Texts]], teacher: StoreView
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pooled vectors and teacher vectors of a seeded sample, large enough for the regression to be well determined."""
        wanted = max(20_000, 64 * student.get_embedding_dimension())
        rows = sum(len(dataset) * (len(dataset.column_names) - 1) for dataset, _ in labelled)
        share = min(1.0, wanted / rows)
        generator = np.random.default_rng(self.recipe.seed)
        for dataset, source in labelled:
            columns = [column for column in dataset.column_names if column != "label"]
            kept = np.sort(generator.permutation(len(dataset))[: max(1, round(share * len(dataset)))])
            for part in _chunks(kept):
                rows_part = dataset[part]
                labels = np.asarray(rows_part["label"]).reshape(len(part), -1)
                for index, column in enumerate(columns):
                    prompt = source.prompts.get(column)
                    pooled = student.encode(
                        list(rows_part[column]), prompt=prompt, convert_to_tensor=True, show_progress_bar=False
                    )
                    yield pooled, teacher.gather(labels[:, index]).to(pooled.device)

    # --- the stage of images -----------------------------------------------------------------------------------------

    def _vision_stage(
        self, stage: Stage, model: SentenceTransformer, digest: str
    ) -> tuple[SentenceTransformer, StageData]:
        spec = self.recipe.images
        if spec is None:
            raise ValueError("A stage that trains vision needs the recipe's 'images'.")
        pictures, skipped = read_images(spec)
        if not isinstance(model[0], Transformer):
            model = _with_eyes(model, spec.vision, spec.tokens)
        projection = find_projection(model)
        if projection is None:
            raise ValueError("A stage that trains vision needs a student with a projection.")
        captions = TeacherStore.create(
            self.folder / "captions",
            list(pictures[spec.caption]),
            [Teacher(_OwnVectors(model, projection), name=f"student-{digest}", revision=digest)],
            dtype="float32",
            show_progress=self.show_progress,
        )
        dataset = captions.add_labels(pictures.select_columns([spec.image, spec.caption]), [spec.caption])
        # Undecoded on disk, so that it is load_image that reads them, whatever their mode.
        dataset = dataset.remove_columns(spec.caption).cast_column(spec.image, Image(decode=False))
        dataset = dataset.with_transform(partial(_decode, image=spec.image))
        teacher = captions.view(teachers=[f"student-{digest}"])
        loss = distill_loss(stage, self.recipe.projection, model, teacher, match_dims=True)
        return model, StageData({"images": dataset}, {"images": loss}, {"images": {}}, skipped)

    # --- the end -------------------------------------------------------------------------------------------------------

    def _finish(self, model: SentenceTransformer, state: RunState) -> dict[str, Any]:
        digest = fields_digest(state.stages)
        results_path = self.folder / "results.json"
        text = _as_yaml(self.recipe)
        wanted = json.dumps([digest, str(self.output), text])
        stored = json.loads(_read(results_path) or "{}")
        if text is not None and stored.get("of") == wanted and (self.output / "modules.json").is_file():
            return stored["results"]
        spec = self.recipe.projection
        exported = export(model, self.output)
        if spec.heads == "independent":
            for dim in spec.dims:
                export(model, self.output.with_name(f"{self.output.name}-{dim}"), dim)
        logger.info("Exported to %s.", self.output)
        results = {}
        if self.recipe.evaluation is not None:
            results = evaluate_model(exported, self.recipe, show_progress=self.show_progress)
        write_json(results_path, {"of": wanted, "results": results})
        return results


class _OwnVectors:
    """The student's own embedding of a caption, every head side by side: the teacher of stage 4."""

    def __init__(self, model: SentenceTransformer, projection: MatryoshkaProjection) -> None:
        self.model, self.projection = model, projection

    def __call__(self, texts: list[str]) -> np.ndarray:
        with self.projection.all_heads():
            return self.model.encode(texts, show_progress_bar=False)


def make_teacher(spec: TeacherSpec) -> Teacher:
    """The teacher that a recipe describes."""
    if isinstance(spec.teacher, Teacher):
        return spec.teacher
    if spec.vectors is not None:
        texts = None if spec.texts is None else _flat(spec.texts)
        return Teacher.from_vectors(
            spec.vectors,
            texts=texts,
            column=spec.column,
            text_column=spec.text_column,
            name=spec.name,
            revision=spec.revision,
            truncate_dim=spec.truncate_dim,
        )
    return Teacher(
        spec.teacher if spec.teacher is not None else spec.model,
        prompts=spec.prompts or None,
        name=spec.name,
        revision=spec.revision,
        dtype=spec.dtype,
        device=spec.device,
        batch_size=spec.batch_size or 32,
        max_seq_length=spec.max_seq_length,
        truncate_dim=spec.truncate_dim,
        trust_remote_code=spec.trust_remote_code,
    )


def _teacher_model(spec: TeacherSpec) -> SentenceTransformer:
    """A teacher as a model to measure, as it is asked for vectors: with its prompts, dtype and widths."""
    model = SentenceTransformer(
        spec.model,
        device=spec.device,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        truncate_dim=spec.truncate_dim,
        model_kwargs=None if spec.dtype is None else {"dtype": spec.dtype},
    )
    if isinstance(spec.prompts, str):
        model.prompts = dict.fromkeys({*model.prompts, "query", "document", "every"}, spec.prompts)
        model.default_prompt_name = "every"
    else:
        model.prompts |= spec.prompts
    if spec.max_seq_length is not None:
        model.max_seq_length = spec.max_seq_length
    return model


def _as_yaml(recipe: Recipe) -> str | None:
    """The recipe's YAML, or None where it holds Python objects, which have none."""
    try:
        return dump_recipe(recipe)
    except TypeError:
        return None


def _decode(rows: dict[str, list[Any]], *, image: str) -> dict[str, list[Any]]:
    return {**rows, image: [load_image(stored) for stored in rows[image]]}


def _with_eyes(model: SentenceTransformer, vision: Any, tokens: int | None) -> SentenceTransformer:
    """The text model with a vision encoder in front; its text vectors do not change, which `from_encoders` looks at."""
    modules: list[nn.Module] = [Transformer.from_encoders(model, vision, tokens=tokens), *list(model.children())[1:]]
    seeing = SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )
    seeing.model_card_data = model.model_card_data
    seeing.model_card_data.register_model(seeing)
    if (projection := find_projection(seeing)) is not None:
        projection.rotate(None)  # from here on the teacher is the student itself
    return seeing


def _embed(recipe: Recipe, sources: list[Texts], show_progress: bool) -> TeacherStore:
    """The teachers' vectors of the texts of ``sources``; what the store has is not embedded again."""
    rows = _Rows(sources)
    teachers = [make_teacher(spec) for spec in recipe.teachers]
    logger.info("Teachers: %s.", ", ".join(teacher.name for teacher in teachers))
    return TeacherStore.create(recipe.work_folder / "teachers", rows, teachers, show_progress=show_progress)


def _view(recipe: Recipe, store: TeacherStore) -> StoreView:
    names = [str(spec.name) for spec in recipe.teachers]
    return store.view(teachers=names, weights=[spec.weight for spec in recipe.teachers])


def _fidelity_texts(recipe: Recipe) -> list[Texts]:
    evaluation = recipe.evaluation
    return [] if evaluation is None or evaluation.texts is None else [evaluation.texts]


class _Rows:
    """The (text, role) pairs of some sources, which can be gone through again for each teacher."""

    def __init__(self, sources: list[Texts]) -> None:
        self.sources = [(load_texts(source), source.roles) for source in sources]

    def __len__(self) -> int:
        return sum(len(dataset) * len(dataset.column_names) for dataset, _ in self.sources)

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        for dataset, roles in self.sources:
            for column in dataset.column_names:
                yield from ((text, roles.get(column)) for text in dataset[column])


def _flat(source: Texts) -> list[str]:
    dataset = load_texts(source)
    return [text for column in dataset.column_names for text in dataset[column]]


def _texts_and_vectors(source: Texts, store: StoreView) -> tuple[list[str], Tensor]:
    """All texts of a source, and the teachers' vectors of each in its column's role, (texts, dimension)."""
    dataset = load_texts(source)
    columns = {column: list(dataset[column]) for column in dataset.column_names}
    ids = [store.ids(texts, role=source.roles.get(column)) for column, texts in columns.items()]
    return [text for texts in columns.values() for text in texts], store.gather(np.concatenate(ids))


def _chunks(ids: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
