"""Running a recipe: the teachers' vectors, the student's start, the stages one after another, the finished model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import set_seed

from st_distill.checksums import CHECKED, EDITABLE, noted_damage
from st_distill.diagnosis import DiagnosisCallback
from st_distill.environment import environment
from st_distill.errors import Problem, RecipeError, one_line, sentence
from st_distill.evaluation import TeacherFidelityEvaluator
from st_distill.evaluation.failures import failure, failures
from st_distill.exporting import export, export_teacher, load_student
from st_distill.files import differences, manifest, read_json, read_signed, write_json, write_signed, write_text
from st_distill.limits import set_max_seq_length
from st_distill.modules.matryoshka import find_projection
from st_distill.recipe.card import write_run_card
from st_distill.recipe.check import check
from st_distill.recipe.data import fingerprint, read_images
from st_distill.recipe.diagnose import (
    all_findings,
    diagnose_recipe,
    diagnose_store,
    diagnose_student,
    known_findings,
    write_findings,
)
from st_distill.recipe.embedding import embed_texts, fidelity_texts
from st_distill.recipe.frozen import POOLED, PooledVectors, pooled_vectors, reads_pooled_vectors, with_frozen_encoder
from st_distill.recipe.load import dump_recipe, load_recipe
from st_distill.recipe.measuring import measure, texts_and_vectors
from st_distill.recipe.processes import STORE, Processes, locked
from st_distill.recipe.quantized import load_in_4bit
from st_distill.recipe.schema import Recipe, Stage, Texts
from st_distill.recipe.stages import StageData, distill_loss, label_texts, run_stage, save_model, text_data
from st_distill.recipe.start import start_student, tell_too_long_texts
from st_distill.recipe.state import RunState, fields_digest, stage_fields
from st_distill.recipe.student import choose_attention
from st_distill.recipe.teachers import teacher_model, teacher_view
from st_distill.recipe.vision import OwnVectors, image_data, with_eyes
from st_distill.records import is_begun
from st_distill.store import StoreView, TeacherStore
from st_distill.teacher import Teacher
from st_distill.teacher.identity import folder_revision

logger = logging.getLogger(__name__)

#: In the folder of the student before its first stage: what determined it, and the checksums of its files.
START = "start.json"
#: Fields whose mistakes leave a trained student one that can be exported; and the ends of arguments of which that is true.
_NOT_FOR_THE_END = ("evaluation", "teachers", "student.attn_implementation")
_NEEDED_IN_TRAINING = (".bf16", ".bf16_full_eval", ".fp16", ".tf32", ".fsdp", ".debug", ".optim")


@dataclass(frozen=True)
class RunResult:
    """What `run` gives: the exported model's folder, what was measured of it (see `st_distill.evaluation.evaluate`), and what
    looked wrong: each a `st_distill.diagnosis.Finding`'s fields, and "when".
    """

    output: Path
    results: dict[str, Any]
    findings: list[dict[str, str]] = field(default_factory=list)


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

    Under torchrun or ``accelerate launch`` every process calls this with equal arguments, and gets the same result. They
    train together; all that is written is written by the main process (see docs/scaling.md).

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
    with Processes() as processes:
        problems = check(recipe, overrides, diagnose=False, here=True)
        errors = [problem for problem in problems if problem.level == "error"]
        # A run that has trained already may go on to its end without what only the training needs, or the evaluation.
        may_be_unneeded = [
            problem.path.startswith(_NOT_FOR_THE_END) or problem.path.endswith(_NEEDED_IN_TRAINING)
            for problem in errors
        ]
        if errors and not (resume and from_stage is None and all(may_be_unneeded)):
            raise RecipeError(errors)
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(os.fspath(recipe), overrides)
        _join(processes, recipe)
        return _Run(recipe, processes, show_progress).run(resume=resume, from_stage=from_stage, errors=errors)


def embed(recipe: Recipe, *, show_progress: bool = True) -> TeacherStore:
    """Only the first part of `run`: the teachers' vectors of every text of the recipe, in its work folder.

    Raises:
        BlockingIOError: where another process runs in the same work folder.
    """
    with Processes() as processes:
        _join(processes, recipe)
        with locked(recipe.work_folder, processes):
            sources = [*recipe.texts, *fidelity_texts(recipe)]
            return embed_texts(recipe, sources, (processes.rank, processes.count), show_progress and processes.is_main)


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
    teacher = None
    if evaluation.texts is not None and recipe.teachers:
        with Processes() as processes:
            _join(processes, recipe)
            recipe.work_folder.mkdir(parents=True, exist_ok=True)
            store = embed_texts(recipe, [evaluation.texts], (processes.rank, processes.count), show_progress)
            processes.by_main(store.check)
            teacher = teacher_view(recipe, store)
    return measure(model, recipe, evaluation, teacher)


class _Run:
    def __init__(self, recipe: Recipe, processes: Processes, show_progress: bool) -> None:
        self.recipe = recipe
        self.processes = processes
        self.show_progress = show_progress and processes.is_main
        self.folder = recipe.work_folder
        self.output = Path(recipe.output)
        self._is_checked = False

    def run(self, *, resume: bool, from_stage: int | None, errors: Sequence[Problem]) -> RunResult:
        """Run it; ``errors`` in its evaluation or teachers stop it where a stage is left to be done."""
        if from_stage is not None and not 1 <= from_stage <= len(self.recipe.stages):
            stages = ", ".join(f"{number} {stage.name}" for number, stage in enumerate(self.recipe.stages, start=1))
            raise ValueError(f"The 'from_stage' must be the number of a stage ({stages}). Got {from_stage} instead.")
        if from_stage is not None and not is_begun(self.folder):
            raise ValueError(
                f"The folder {self.folder} has no run, so there is none to resume from stage {from_stage}. Leave out "
                "--from-stage to begin one, or name the run's own folder with --set work=FOLDER."
            )
        with locked(self.folder, self.processes):
            state = self.processes.by_main(lambda: self._planned(resume, from_stage, errors)) or RunState(self.folder)
            if all(stage["done"] for stage in state.stages):
                logger.info("Every stage is done already.")
                self.processes.by_main(lambda: self._diagnose(len(state.stages), None, []))
                model = load_student(state.stage_folder(len(state.stages) - 1) / "model")
            else:
                model = self._stages(state)
            results = self._finish(model, state)
            # Read again, because only the main process has entered what the stages found.
            found = all_findings(known_findings(self.folder), RunState(self.folder).stages)
            return RunResult(self.output, results, found)

    def _planned(self, resume: bool, from_stage: int | None, errors: Sequence[Problem]) -> RunState:
        state = RunState(self.folder)
        if state.has_begun and not resume:
            raise ValueError(
                f"The folder {self.folder} already holds a run. Continue it with --resume, or choose a new output or work "
                "folder."
            )
        text = _as_yaml(self.recipe)
        digest = None if text is None else hashlib.sha256(text.encode("utf-8")).hexdigest()
        # What has been changed in a recipe since its run began is looked at as that of a new one.
        if errors and (digest is None or state.recipe != digest or not all(stage["done"] for stage in state.stages)):
            raise RecipeError(errors)
        for problem in errors:
            logger.warning("%s", problem)
        state.recipe = digest
        state.plan(self._plan(), from_stage=from_stage)
        self._clear(state)
        if text is not None:
            write_text(self.folder / "recipe.yaml", text)
        return state

    def _plan(self) -> list[dict[str, Any]]:
        texts = {f"texts[{index}]": fingerprint(source) for index, source in enumerate(self.recipe.texts)}
        plan = []
        student = self.recipe.student.model
        own = {"student": folder_revision(Path(student))} if Path(student).is_dir() else {}
        for index, stage in enumerate(self.recipe.stages):
            data = {**own, **texts} if index == 0 else {}
            data |= {
                f"also[{i}][{j}]": fingerprint(source)
                for i, objective in enumerate(stage.also)
                for j, source in enumerate(objective.texts)
            }
            if stage.trains_vision and self.recipe.images is not None:
                data["images"] = fingerprint(self.recipe.images)
            fields = stage_fields(self.recipe, index, data, processes=self.processes.count)
            plan.append({"name": str(stage.name), "fields": fields})
        return plan

    def _stages(self, state: RunState) -> SentenceTransformer:
        first = next(index for index, stage in enumerate(state.stages) if not stage["done"])
        # The teachers' vectors are only needed where a stage is left that reads them, or a projection starts from them.
        wanted = any(stage.distils and not stage.trains_vision for stage in self.recipe.stages[first:])
        starts = first == 0 and self.recipe.projection is not None
        labelled: list[tuple[Dataset, Texts]] = []
        store: TeacherStore | None = None
        teacher: StoreView | None = None
        if self.recipe.teachers and (wanted or starts or self._evaluates_fidelity(first)):
            sources = [*self.recipe.texts, *fidelity_texts(self.recipe)]
            process = (self.processes.rank, self.processes.count)
            store = embed_texts(self.recipe, sources, process, self.show_progress)
            teacher = self._checked(store)
            labelled = label_texts(self.recipe.texts, store)
        self.processes.by_main(lambda: self._diagnose(first, store, labelled))
        start = self.folder / "start"
        model = self._before(first, state, labelled, teacher)
        if first == 0 and self.processes.is_main:
            tell_too_long_texts(model, [texts for _, texts in self.recipe.learned_texts()])
        for index in range(first, len(state.stages)):
            stage, folder = self.recipe.stages[index], state.stage_folder(index)
            title = f"Stage {index + 1} of {len(state.stages)}, {stage.name}"
            logger.info("%s.", title)
            base = state.stage_folder(index - 1) / "model" if index else start
            if self.recipe.student.load_in_4bit and stage.lora is not None:
                model = choose_attention(load_in_4bit(base), self.recipe.student)
            set_seed(self.recipe.seed + index)
            if stage.trains_vision:
                model, data = self._vision_stage(stage, model, fields_digest(state.stages[:index]))
                trainee = model
            else:
                trainee = self._trainee(stage, model, labelled)
                data = text_data(stage, self.recipe, labelled, trainee, teacher)
            metrics = run_stage(
                stage,
                model,
                data,
                trainee=trainee,
                title=title,
                folder=folder,
                base=base,
                seed=self.recipe.seed + index,
                evaluator=self._evaluator(teacher),
                processes=self.processes,
                # Another stage may train what this one does not; `diagnose_recipe` looks at all of them.
                diagnosis=DiagnosisCallback(dimensions=False) if self.recipe.diagnosis else None,
            )
            if self.processes.count > 1:
                # Every process goes on with what the main one wrote, also where each held a part of the weights.
                model = self._load(folder / "model")
            if self.processes.is_main:
                state.finish(index, metrics | {"skipped_images": data.skipped})
                shutil.rmtree(self.folder / POOLED, ignore_errors=True)
                self._clear(state)
        return model

    def _clear(self, state: RunState) -> None:
        """Remove what stages that are done have no use for; also what a run left that was killed before it came to this."""
        for index, stage in enumerate(state.stages):
            folder = state.stage_folder(index)
            if stage["done"] and (logs := folder / "checkpoints" / "runs").is_dir():
                shutil.move(logs, folder / "runs")  # where TensorBoard's are, whatever becomes of the checkpoints
            if stage["done"]:
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if all(stage["done"] for stage in state.stages):
            shutil.rmtree(self.folder / POOLED, ignore_errors=True)

    def _diagnose(self, first: int, store: TeacherStore | None, labelled: list[tuple[Dataset, Texts]]) -> None:
        """Tell what looks wrong before stage ``first`` (from 0); a run that goes on has told it."""
        if not self.recipe.diagnosis or (first > 0 and "before" in known_findings(self.folder)):
            return
        try:
            found = [finding for _, finding in diagnose_recipe(self.recipe, vectors=store is None)]
            if store is not None and labelled:
                found += diagnose_store(self.recipe, store, labelled)
        except (ValueError, TypeError, LookupError, OSError) as error:  # no reason not to train
            logger.warning("The recipe could not be diagnosed: %s.", one_line(error))
            return
        write_findings(self.folder, "before", found)

    def _checked(self, store: TeacherStore) -> StoreView:
        """The teachers' vectors, compared with their checksums once in a run: neither trained on nor measured by if damaged."""
        if not self._is_checked:
            self.processes.by_main(store.check)
            self._is_checked = True
        return teacher_view(self.recipe, store)

    def _trainee(
        self, stage: Stage, model: SentenceTransformer, labelled: list[tuple[Dataset, Texts]]
    ) -> SentenceTransformer:
        """What the trainer sees of the student: itself, or its projection behind vectors that the encoder makes once."""
        rows = sum(len(dataset) for dataset, _ in labelled)
        if not stage.distils or not reads_pooled_vectors(stage, rows, processes=self.processes.count):
            return model
        *modules, _ = model.children()
        encoder = SentenceTransformer(modules=modules, device=str(model.device))

        def pooled() -> PooledVectors:
            return pooled_vectors(self.folder, encoder, labelled, show_progress=self.show_progress)

        made = self.processes.by_main(pooled)
        return with_frozen_encoder(model, pooled() if made is None else made)

    def _load(self, folder: Path) -> SentenceTransformer:
        return choose_attention(load_student(folder), self.recipe.student)

    def _before(
        self, first: int, state: RunState, labelled: list[tuple[Dataset, Texts]], teacher: StoreView | None
    ) -> SentenceTransformer:
        """The student as it is before stage ``first`` (from 0)."""
        if first > 0:
            return self._load(state.stage_folder(first - 1) / "model")
        start = self.folder / "start"

        def make() -> SentenceTransformer:
            digest = fields_digest(state.stages[:1])
            if start_of(start) == digest:
                return self._load(start)
            set_seed(self.recipe.seed)
            model = start_student(
                self.recipe, labelled, teacher, processes=self.processes.count, show_progress=self.show_progress
            )
            save_model(model, start)
            write_json(start / START, {"of": digest, CHECKED: manifest(start, without=EDITABLE)})
            return model

        model = self.processes.by_main(make)
        return self._load(start) if model is None else model

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
        texts, vectors = texts_and_vectors(evaluation.texts, teacher)
        spec = self.recipe.projection
        dims = None if spec is None else [max(spec.dims)]
        return TeacherFidelityEvaluator(texts, vectors, dims=dims, neighbours=min(10, max(1, len(texts) - 1)))

    def _vision_stage(
        self, stage: Stage, model: SentenceTransformer, digest: str
    ) -> tuple[SentenceTransformer, StageData]:
        spec = self.recipe.images
        if spec is None:
            raise ValueError("A stage that trains vision needs the recipe's 'images'.")
        model = with_eyes(model, spec)
        projection = find_projection(model)
        if projection is None or self.recipe.projection is None:
            raise ValueError("A stage that trains vision needs the recipe's 'projection'. Got none instead.")
        pictures, skipped = read_images(spec)
        name = f"student-{digest}"
        captions = TeacherStore.create(
            self.folder / "captions",
            list(pictures[spec.caption]),
            [Teacher(OwnVectors(model, projection), name=name, revision=digest)],
            dtype="float32",
            process=(self.processes.rank, self.processes.count),
            show_progress=self.show_progress,
        )
        self.processes.by_main(captions.check)
        loss = distill_loss(stage, self.recipe.projection, model, captions.view(teachers=[name]), match_dims=True)
        data = image_data(pictures, captions, spec)
        return model, StageData({"images": data}, {"images": loss}, {"images": {}}, skipped)

    def _finish(self, model: SentenceTransformer, state: RunState) -> dict[str, Any]:
        results_path = self.folder / "results.json"
        text = _as_yaml(self.recipe)
        wanted = json.dumps([fields_digest(state.stages), str(self.output), text])
        data = self._evaluation_data()
        stored = _results(results_path)
        outputs = [self.output, *([self.recipe.teacher_output] if self.recipe.export_teacher else [])]
        is_done = text is not None and stored.get("of") == wanted
        # What is gone cannot be measured again, and the figures of then are kept.
        is_done = is_done and all(stored.get("data", {}).get(name) == content for name, content in data.items())
        # What could not be measured is tried again.
        is_done = is_done and not failures(stored["results"])
        # What was found is looked for again where it cannot be read.
        is_done = is_done and (not self.recipe.diagnosis or "after" in known_findings(self.folder))
        # One that is damaged is written again.
        is_done = is_done and all((o / "modules.json").is_file() and not noted_damage(o) for o in outputs)
        self.processes.meet()  # before the main process writes what the others are looking at
        if is_done:
            return stored["results"]
        self.processes.by_main(lambda: self._write(model, state.stages, results_path, {"of": wanted, "data": data}))
        return read_signed(results_path)["results"]

    def _evaluation_data(self) -> dict[str, str]:
        """Name and content of what the evaluation reads, but for tasks and what is not there."""
        evaluation, data = self.recipe.evaluation, {}
        for name in ("texts", "similarity", "retrieval", "images") if evaluation is not None else ():
            if (source := getattr(evaluation, name)) is not None:
                with contextlib.suppress(ValueError, OSError):
                    data[name] = fingerprint(source)
        return data

    def _of_held_out_texts(self, source: Texts) -> StoreView:
        """The teachers' vectors of the evaluation's texts; no teacher is asked for what the store has.

        In the main process alone, which measures: the others wait for it, whatever goes wrong here.
        """
        try:
            store = TeacherStore.open(self.folder / STORE)
            texts_and_vectors(source, teacher_view(self.recipe, store))
        except (ValueError, OSError):
            store = embed_texts(self.recipe, [source], (0, 1), self.show_progress)
        if not self._is_checked:
            store.check()
        return teacher_view(self.recipe, store)

    def _write(
        self,
        model: SentenceTransformer,
        stages: list[dict[str, Any]],
        results_path: Path,
        known_by: dict[str, Any],
    ) -> None:
        """The main process's part of the end: the exported model, and what is measured of it."""
        spec, length = self.recipe.projection, self.recipe.student.export_max_seq_length
        if length is not None:
            set_max_seq_length(model, length)
        exported = export(model, self.output)
        if spec is not None and spec.heads == "independent":
            for dim in spec.dims:
                export(model, self.output.with_name(f"{self.output.name}-{dim}"), dim)
        logger.info("Exported to %s.", self.output)
        results, evaluation, teacher = {}, self.recipe.evaluation, None
        if evaluation is not None:
            failed = []
            if evaluation.texts is not None and self.recipe.teachers:
                try:
                    teacher = self._of_held_out_texts(evaluation.texts)
                except Exception as error:  # of data, of a teacher, of memory: what was trained is kept all the same
                    failed.append(failure("fidelity", error))
            results = measure(exported, self.recipe, evaluation, teacher, failed=failed)
        if self.recipe.diagnosis:
            try:
                write_findings(self.folder, "after", diagnose_student(self.recipe, exported, teacher))
            except Exception as error:  # of the model, of memory: the card and the figures are written all the same
                logger.warning("The student could not be diagnosed: %s", sentence(one_line(error)))
        machine = environment()
        write_run_card(self.output, self.recipe, stages, results, machine)
        write_signed(results_path, {**known_by, "results": results, "environment": machine})
        if self.recipe.export_teacher:  # at last, because the teacher may be gone by now
            export_teacher(model, teacher_model(self.recipe.teachers[0]), self.recipe.teacher_output)
            logger.info("Teacher in the student's space: %s.", self.recipe.teacher_output)


def start_of(folder: Path) -> str | None:
    """What determined the student before its first stage that is saved in a folder; None where it is not whole."""
    try:
        noted = read_json(folder / START)
        return None if any(differences(folder, noted["files"])) else noted["of"]
    except (FileNotFoundError, IsADirectoryError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _as_yaml(recipe: Recipe) -> str | None:
    """The recipe's YAML, or None where it holds Python objects, which have none."""
    try:
        return dump_recipe(recipe)
    except TypeError:
        return None


def _join(processes: Processes, recipe: Recipe) -> None:
    arguments = [stage.training_arguments() for stage in recipe.stages]
    timeout = max(float(given.get("ddp_timeout", 1800.0)) for given in arguments)
    processes.join(cpu=any(given.get("use_cpu") for given in arguments), timeout=timeout)


def _results(path: Path) -> dict[str, Any]:
    """The measurements of an earlier run; nothing where there are none, or they cannot be read and are measured again."""
    try:
        stored = read_signed(path)
    except (FileNotFoundError, ValueError):
        return {}
    return stored if isinstance(stored, dict) and "results" in stored else {}
