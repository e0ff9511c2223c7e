"""Every mistake of a recipe at once, before any work starts. No weights are loaded; configurations are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from st_distill.arrays import read_array_header
from st_distill.checksums import EXPORT
from st_distill.errors import MissingExtraError, Problem, RecipeError, format_problems, one_line
from st_distill.evaluation import read_task
from st_distill.evaluation.data import local_path
from st_distill.evaluation.mteb_tasks import find_mteb_tasks
from st_distill.evaluation.task_list import tasks_of_entries
from st_distill.limits import positions_of
from st_distill.modules.lengths import tell_too_long
from st_distill.nearest import suggest
from st_distill.options import check_path
from st_distill.recipe import quantized
from st_distill.recipe.adapter_rules import parameter_names
from st_distill.recipe.conversion import as_mapping
from st_distill.recipe.data import load_scored_pairs, load_texts, prompted_columns, read_images
from st_distill.recipe.diagnose import diagnose_recipe
from st_distill.recipe.image_rules import ImageRules
from st_distill.recipe.load import Document, in_order, read_document
from st_distill.recipe.models import UnknownModel, encoder_without_weights, text_tokenizer
from st_distill.recipe.patterns import matching
from st_distill.recipe.run_rules import attention_dropout
from st_distill.recipe.schema import ImageSource, Projection, Recipe, Stage, TeacherSpec
from st_distill.recipe.sources import rows_of
from st_distill.recipe.stage_rules import StageRules
from st_distill.recipe.start import chosen_start
from st_distill.tables import exact, existing_path
from st_distill.teacher import Teacher
from st_distill.vectors import Vectors
from st_distill.words import FieldPath, show_path

__all__ = ["check", "format_problems"]


def check(
    recipe: Recipe | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    diagnose: bool = True,
    here: bool = False,
) -> list[Problem]:
    """What is wrong with a recipe, by line; an empty list, or one of warnings alone, can run.

    Args:
        recipe: a recipe made in Python, a YAML file, or the name of a preset.
        overrides: assignments ``a.b=value``, as `load_recipe` takes them, for a file or preset.
        diagnose: look at the data and tokenizers of a recipe without mistakes too, and warn of what looks wrong.
        here: it is this machine that the recipe is to run on: bf16 or flex_attention without an accelerator, by which a run
            would end, is a mistake and no warning.

    It finds unknown names, with the nearest valid one, wrong types, values out of range, fields that contradict each
    other, files and columns that are not there, model folders without a model, and dimensions and layers that a model's
    configuration does not have. A hub's model is looked at where its configuration is in the local cache or the hub can
    be reached; otherwise, and for settings that this machine has not the hardware for, there is a warning.
    """
    if isinstance(recipe, Recipe):
        document = Document(as_mapping(recipe))
        if problems := document.credentials():
            return problems
    else:
        check_path("recipe", recipe, wanted="a Recipe, a YAML file or the name of a preset")
        try:
            document = read_document(recipe, overrides)
        except RecipeError as error:
            return error.problems
    built, problems = document.build()
    rules = _Rules(document, built, problems)
    rules.here = here
    rules.run()
    if diagnose and rules.recipe.diagnosis and not any(problem.level == "error" for problem in problems):
        rules.diagnose()
    return in_order(problems)


class _Rules(StageRules, ImageRules):
    """Every rule that needs more than one field, subject by subject."""

    def run(self) -> None:
        self.folders()
        self.student()
        self.teachers()
        for index, texts in enumerate(self.recipe.texts or []):
            # Labels beside the texts are for losses of 'also'.
            self.texts(("texts", index), texts, numbers=not self.distils, learnt=True)
        self.lengths()
        self.projection()
        self.teacher_space()
        self.stages()
        self.flex()
        self.images()
        self.evaluation()

    def diagnose(self) -> None:
        try:
            found = diagnose_recipe(self.recipe)
        except (ValueError, TypeError, LookupError, OSError):
            return  # a run says what is wrong with the data further on
        for path, finding in found:
            self.warn(path, f"{finding.name}: {finding.seen}; {finding.remedy}")

    # --- folders -----------------------------------------------------------------------------------------------------

    def folders(self) -> None:
        projection = self.recipe.projection
        heads = projection.dims if projection is not None and projection.heads == "independent" else []
        beside = [f"{Path(self.recipe.output or '').name}-{dim}" for dim in heads]
        if self.recipe.export_teacher and self.recipe.output:
            beside.append(Path(self.recipe.teacher_output).name)
        student = None if self.recipe.student is None else self.recipe.student.model
        self.run_folders(
            description=EXPORT,
            beside=beside,
            read=[student, *(teacher.model for teacher in self.recipe.teachers)],
        )

    # --- models ------------------------------------------------------------------------------------------------------

    def student(self) -> None:
        student, path = self.recipe.student, ("student",)
        if student is None:
            return
        if student.load_in_4bit and not quantized.INSTALLED:
            self.error((*path, "load_in_4bit"), str(quantized.missing()))
        model = self.model(path, student.model, student.revision, student.trust_remote_code)
        if model is None:
            return
        if student.pooling is not None and model.is_standard:
            self.error(
                (*path, "pooling"),
                f"'{student.model}' is a sentence-transformers model with a pooling of its own; leave pooling out",
            )
        if student.attn_implementation is not None:
            self.kernel((*path, "attn_implementation"), student.attn_implementation, model.config)
        if model.depth is not None and self.sound((*path, "layers")):
            for index, layer in enumerate(student.layers or []):
                if layer >= model.depth:
                    self.error(
                        (*path, "layers", index),
                        f"the student has {model.depth} layers, so a layer is 0 to {model.depth - 1}, got {layer}",
                    )
        for name in ("max_seq_length", "export_max_seq_length"):
            tokens, longest = getattr(student, name), model.positions
            if tokens is None or not self.sound((*path, name)):
                continue
            if (encoder := encoder_without_weights(model)) is not None:
                longest = positions_of(encoder)
            if model.is_static:
                self.error((*path, name), "a static embedding reads texts of any length; leave it out")
            elif longest is not None and tokens > longest:
                self.error((*path, name), f"the student takes at most {longest} tokens, got {tokens}")

    def flex(self) -> None:
        """What flex_attention cannot do in the stages whose gradients go through the encoder."""
        student, path = self.recipe.student, ("student", "attn_implementation")
        if student is None or student.attn_implementation != "flex_attention" or not self.sound(path, ("stages",)):
            return
        config = None if self.student_model is None else self.student_model.config
        through = []
        for index, stage in enumerate(self.recipe.stages or []):
            trains = self.trains_encoder(stage)
            share = attention_dropout(config) if stage.dropout is None else stage.dropout
            if trains and share:
                where = ("stages", index, "dropout")
                self.error(where, f"flex_attention has no dropout, got {share:g}; set dropout: 0")
            if trains or stage.trains_vision:
                through.append(stage)
        if through:
            self.flex_backward(path, use_cpu=any(stage.arguments.get("use_cpu") is True for stage in through))

    def trains_encoder(self, stage: Stage) -> bool:
        """Whether a stage is known to train the text encoder."""
        if not isinstance(stage.train, list):
            return stage.train not in ("projection", "vision")
        encoder = self.encoder(stage)
        names = [] if encoder is None else parameter_names(encoder)
        try:
            return any(matching(pattern, names) for pattern in stage.train)
        except ValueError:  # the pattern takes too long, which its own rule says
            return False

    def teachers(self) -> None:
        self.teacher_widths = [
            self.teacher(("teachers", index), teacher) for index, teacher in enumerate(self.recipe.teachers or [])
        ]
        self.unique("teachers", [teacher.name for teacher in self.recipe.teachers or []])

    @property
    def teacher_width(self) -> int | None:
        """Width of the teachers' vectors together, where all are known."""
        if not self.teacher_widths or not self.sound(("teachers",)):
            return None
        known = [width for width in self.teacher_widths if width is not None]
        return sum(known) if len(known) == len(self.teacher_widths) else None

    def teacher(self, path: FieldPath, teacher: TeacherSpec) -> int | None:
        """Checks a teacher and returns the width of its vectors, if that can be known."""
        if not self.one_of(path, teacher, ("model", "vectors", "teacher")):
            return None
        if teacher.teacher is not None:
            self.python_teacher(path, teacher)
            return _own_width(teacher.teacher)
        if teacher.vectors is not None:
            self.unused(path, teacher, "vectors that exist already", _ONLY_MODELS)
            width = self.vectors(path, teacher)
        else:
            self.unused(path, teacher, "a model", ("column", "text_column", "texts"))
            self.device((*path, "device"), teacher.device)
            model = self.model(path, teacher.model, teacher.revision, teacher.trust_remote_code)
            width = None if model is None else model.width
        if width is not None and teacher.truncate_dim is not None:
            if teacher.truncate_dim > width:
                self.error((*path, "truncate_dim"), f"the teacher has {width} dimensions, got {teacher.truncate_dim}")
            return min(width, teacher.truncate_dim)
        return width

    def device(self, path: FieldPath, device: str | None) -> None:
        if device is None or not self.sound(path):
            return
        try:
            wanted = torch.device(device)
        except RuntimeError:
            self.error(path, f"must be a device as torch names it, such as cpu or cuda:1, got '{device}'")
            return
        if wanted.type == "meta":
            self.error(path, "must be a device that computes, such as cpu or cuda, got 'meta', which holds no numbers")
        if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
            self.warn(path, f"this machine has {torch.cuda.device_count()} devices of kind cuda, got '{device}'")

    def python_teacher(self, path: FieldPath, teacher: TeacherSpec) -> None:
        given = teacher.teacher
        if isinstance(given, Teacher):
            self.unused(path, teacher, "a Teacher, which has its own", (*_ONLY_MODELS, "revision", "truncate_dim"))
            if teacher.name != given.name:
                self.error((*path, "name"), f"the Teacher is called '{given.name}', got '{teacher.name}'; remove it")
        elif not callable(given):
            self.error((*path, "teacher"), f"must be a Teacher or a function, got a {type(given).__name__}")
        elif isinstance(given, torch.nn.Module):
            return
        elif teacher.revision is None and not isinstance(getattr(given, "revision", None), str):
            self.error(
                path,
                "a function needs a 'revision', which tells its vectors from those of another version; any text will do",
            )

    def vectors(self, path: FieldPath, teacher: TeacherSpec) -> int | None:
        texts = None
        if teacher.texts is not None:
            texts = self.texts((*path, "texts"), teacher.texts)
        try:
            file = existing_path(str(teacher.vectors))
            if file.suffix == ".npy":
                if teacher.texts is None and self.sound((*path, "texts")):
                    self.error(path, "vectors in an npy file need 'texts', in the same order")
                shape = read_array_header(file).shape
                if len(shape) != 2:
                    raise ValueError(f"{file} must hold an array (texts, dimension). Got the shape {shape} instead.")
                if texts is not None and self.sound((*path, "texts")):
                    self.one_vector_a_text(path, teacher, shape[0], list(texts.values()).count("text"))
                width: int | None = shape[1]
            elif file.suffix == ".parquet":
                width = self.parquet_vectors(path, teacher, file)
            elif file.is_dir():
                width = None
            else:
                raise ValueError(f"{file} must be an npy or parquet file, or a folder that save_to_disk wrote.")
            if self.sound(path):  # as a run opens them, which chooses the columns and looks at their types
                given = () if file.suffix == ".npy" or teacher.texts is not None else None
                Vectors(file, texts=given, column=teacher.column, text_column=teacher.text_column, revision=None)
            return width
        except ValueError as error:
            self.error((*path, "vectors"), str(error).rstrip("."))
        return None

    def one_vector_a_text(self, path: FieldPath, teacher: TeacherSpec, vectors: int, columns: int) -> None:
        assert teacher.texts is not None
        try:
            rows = rows_of(teacher.texts)
        except ValueError as error:
            self.error((*path, "texts"), str(error).rstrip("."))
            return
        if rows is not None and rows * columns != vectors:
            self.error(
                (*path, "texts"),
                f"there must be a text for each of the {vectors} vectors in {teacher.vectors}, in the same order, got "
                f"{rows * columns}",
            )

    def parquet_vectors(self, path: FieldPath, teacher: TeacherSpec, file: Path) -> int | None:
        try:
            parquet = pq.ParquetFile(exact(file))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        with parquet:
            names = parquet.schema_arrow.names
            missing = False
            for field in ("column", "text_column"):
                name = getattr(teacher, field)
                if name is not None and name not in names:
                    self.error((*path, field), f"{file} has no column '{name}'{suggest(name, names, always=True)}")
                    missing = True
            if missing or teacher.column is None:
                return None
            for batch in parquet.iter_batches(batch_size=1, columns=[teacher.column]):
                first = batch.column(0)[0].as_py()
                return len(first) if isinstance(first, list) else None
        return None

    # --- lengths -----------------------------------------------------------------------------------------------------

    def lengths(self) -> None:
        """Texts above the student's limit, where the recipe refuses them: all are read, which is why it has to ask."""
        student = self.recipe.student
        if student is None or student.too_long != "refuse" or not self.sound(("student",)):
            return
        try:
            tokenizer, limit = text_tokenizer(student.model, student.revision, trusted=student.trust_remote_code)
        except (UnknownModel, ValueError) as error:
            self.error(("student", "too_long"), f"cannot be looked at: {one_line(error)}")
            return
        limit = student.max_seq_length or limit
        if limit is None:
            return
        for path, source in self.recipe.learned_texts():
            if not self.sound(path):
                continue
            try:
                columns = prompted_columns(source)
            except ValueError as error:
                self.error(path, one_line(error))
                continue
            if (told := tell_too_long(tokenizer, columns, limit)) is not None:
                self.error(path, f"{told}; split them, raise max_seq_length, or set too_long: truncate")

    # --- projection --------------------------------------------------------------------------------------------------

    def projection(self) -> None:
        projection, path = self.recipe.projection, ("projection",)
        if projection is None or not projection.dims or not self.sound(path):
            return
        widest, where = max(projection.dims), (*path, "dims", projection.dims.index(max(projection.dims)))
        student, teacher = self.student_model, self.teacher_width
        distils = [stage for stage in self.recipe.stages or [] if not stage.trains_vision and stage.distils]
        start = self.start(projection)
        if start == "identity":
            widths = [widest] if not projection.teacher_head else [widest, teacher or 0]
            if student is not None and student.pooled is not None and max(widths) > student.pooled:
                self.error(
                    where if max(widths) == widest else (*path, "teacher_head"),
                    f"an identity start needs heads no wider than the student's {student.pooled} dimensions, got "
                    f"{max(widths)}; leave that one out, or set start: ridge",
                )
            pooled = student.pooled if student is not None else None
            if projection.rotation != "none" and pooled is not None and teacher is not None:
                if pooled != teacher:
                    self.error(
                        (*path, "start"),
                        f"an identity start takes the student's {pooled} dimensions for the teachers' {teacher}; set "
                        "start: ridge, or rotation: none",
                    )
                elif projection.heads == "none":
                    self.error((*path, "rotation"), "heads: none has no map that could turn; set rotation: none")
        if projection.heads == "none":
            self.no_heads(projection, widest)
        # Where nobody has asked for a ridge start, the stages that distil say already that there is no teacher.
        asks = projection.start is not None or not distils
        if not self.recipe.teachers and start == "ridge" and asks and self.sound(("teachers",)):
            self.error((*path, "start"), "a ridge start needs a teacher to learn from; set start: identity, or random")
        if teacher is None or widest <= teacher:
            return
        # Each with its remedy, because whoever wants such a width needs them all.
        wrong = {}
        if start == "ridge":
            wrong["a ridge start cannot give it"] = "start: random"
        if projection.rotation != "none":
            wrong["a rotation cannot reach it"] = "rotation: none"
        if any(self.compares(stage, widest) for stage in distils):
            wrong["the cosine term has nothing to compare it with"] = (
                "teacher_head: true (or losses without the cosine)"
            )
        if self.recipe.export_teacher:
            wrong["the exported teacher has no such axes"] = "export_teacher: false"
        if wrong:
            self.error(
                where,
                f"{widest} is above the teachers' {teacher} dimensions: {'; '.join(wrong)}. Leave it out, or set "
                f"{', and '.join(wrong.values())}",
            )

    def start(self, projection: Projection) -> str:
        student = self.recipe.student
        if student is None or not self.sound(("student",), ("teachers",)):
            return projection.start or "ridge"
        return chosen_start(projection, student, self.recipe.teachers)

    def no_heads(self, projection: Projection, widest: int) -> None:
        path, student = ("projection", "heads"), self.student_model
        start = self.start(projection)
        if student is not None and start == "ridge" and not student.is_static:
            self.error(path, "'none' with a ridge start needs a static embedding as the student; leave heads out")
        elif start == "random":
            self.error(path, "'none' has no map that could start at random; set start: ridge or identity")
        elif projection.teacher_head:
            self.error(path, "'none' has no teacher_head either; remove one of them")
        elif start == "identity" and student is not None and student.pooled not in (None, widest):
            self.error(
                path, f"'none' needs the student's {student.pooled} dimensions as the largest of dims, got {widest}"
            )
        if any(stage.train == "projection" for stage in self.recipe.stages or []):
            self.error(path, "'none' leaves nothing for a stage with train: projection; leave that stage out, or heads")

    def teacher_space(self) -> None:
        """Whether the student's coordinates follow one teacher that can be written beside it."""
        recipe, path = self.recipe, ("export_teacher",)
        if not recipe.export_teacher or not self.sound(("teachers",), ("projection",), ("stages",)):
            return
        if len(recipe.teachers) != 1 or recipe.teachers[0].model is None:
            got = f"{len(recipe.teachers)} teachers" if len(recipe.teachers) != 1 else "one without a 'model'"
            self.error(path, f"needs one teacher that is a model, got {got}; leave it out")
        elif recipe.projection is None:
            self.error(path, "needs a 'projection', which knows the teacher's axes; leave it out")
        elif recipe.projection.teacher_head:
            self.error(
                path, "needs embeddings in the teacher's coordinates, which teacher_head takes over; leave one out"
            )
        elif not any(
            "cosine" in stage.weights(recipe.projection) for stage in recipe.stages if not stage.trains_vision
        ):
            self.error(
                path, "needs a stage with a cosine term, without which the student's space is its own; leave it out"
            )

    def compares(self, stage: Stage, dim: int) -> bool:
        """Whether the cosine term of a stage compares this, the widest, head with the teachers' coordinates."""
        projection = self.recipe.projection
        if "cosine" not in stage.weights(projection):
            return False
        heads = stage.heads_of_cosine(projection)
        return dim in heads if isinstance(heads, list) else projection is None or not projection.teacher_head

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluation(self) -> None:
        evaluation, path = self.recipe.evaluation, ("evaluation",)
        if evaluation is None:
            return
        for index, teacher in enumerate(self.recipe.teachers or []):
            if evaluation.teachers and teacher.model is not None and teacher.name == "student":
                self.error(
                    ("teachers", index, "name"),
                    "'student' is taken in the evaluation's tables; give this teacher another name",
                )
        if evaluation.texts is not None:
            self.texts((*path, "texts"), evaluation.texts)
            self.rows((*path, "texts"), evaluation.texts, load_texts)
            if not self.recipe.teachers and self.sound(("teachers",)):
                self.error((*path, "texts"), "closeness to the teachers needs a teacher")
        for field, numbers in (("similarity", 1), ("retrieval", 0)):
            source = getattr(evaluation, field)
            if source is None:
                continue
            columns = self.texts((*path, field), source, numbers=numbers > 0)
            if columns is None or not self.sound((*path, field, "columns")):
                continue
            kinds = list(columns.values())
            wanted = ["text", "text", "number"][: 2 + numbers]
            what = "two columns of texts" + (" and then one of numbers" if numbers else "")
            if source.columns is not None and len(columns) == len(source.columns) and kinds != wanted:
                self.error((*path, field, "columns"), f"must be {what}")
            elif source.columns is None and (kinds.count("text") < 2 or kinds.count("number") < numbers):
                got = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
                self.error((*path, field), f"must have {what}, got {got}")
            else:
                self.rows((*path, field), source, load_scored_pairs if numbers else load_texts)
        self.tasks((*path, "tasks"), evaluation.tasks or [])
        if evaluation.images is not None:
            self.pictures((*path, "images"), evaluation.images)
            self.pictures_to_measure((*path, "images"))
            self.rows((*path, "images"), evaluation.images, read_images)

    def rows(self, path: FieldPath, source: Any, read: Callable[[Any], Any]) -> None:
        """Every row of what is measured on after hours of training, as the evaluation will read it, where they are few."""
        most = _MOST_PICTURES if isinstance(source, ImageSource) else _MOST_TEXTS
        known = any(problem.level == "error" and problem.path.startswith(show_path(path)) for problem in self.problems)
        if source.dataset is not None or known or not self.sound(path):
            return
        try:
            if (rows_of(source) or 0) <= most:
                read(source)
        except (ValueError, TypeError, OSError) as error:
            self.error(path, one_line(error))

    def tasks(self, path: FieldPath, entries: list[Any]) -> None:
        """Tasks are known, local data are read as the evaluation will read them, and the student can be measured on them."""
        found = len(self.problems)
        for index, entry in enumerate(entries):
            modalities: set[str] = set()
            try:
                specs, names = tasks_of_entries([entry], {})
                for task in find_mteb_tasks(names) if names else []:
                    modalities.update(task.metadata.modalities)
                for spec in specs:
                    if local_path(spec.source) is not None:
                        modalities.update(*(task.modalities for task in read_task(spec)))
                    elif spec.kind == "image_retrieval":
                        modalities.add("image")
            except (ValueError, TypeError, OSError, MissingExtraError) as error:
                self.error((*path, index), one_line(error))
            if "image" in modalities:
                self.pictures_to_measure((*path, index))
        if len(self.problems) == found:
            try:
                tasks_of_entries(entries, {})
            except ValueError as error:
                self.error(path, one_line(error))

    def pictures_to_measure(self, path: FieldPath) -> None:
        """A student that is measured on pictures takes them, as far as that can be known before it is made."""
        if self.trains_vision or not self.sound(("stages",), ("student",)):
            return
        if self.student_model is not None and self.student_model.is_of_texts:
            self.error(
                path,
                "needs a student that takes pictures, and this one takes texts alone; leave it out, or add a stage that trains "
                "vision",
            )
        else:
            self.warn(path, _IMAGE_MODEL)


_IMAGE_MODEL = "no stage trains vision, so the student has to be an image model already"
#: Rows of an evaluation that are looked at before a run, each: seconds of reading.
_MOST_TEXTS, _MOST_PICTURES = 100_000, 1000
_ONLY_MODELS = ("prompts", "dtype", "device", "batch_size", "batch_tokens", "max_seq_length", "trust_remote_code")


def _own_width(teacher: Any) -> int | None:
    measure = getattr(teacher, "get_embedding_dimension", None)
    return measure() if callable(measure) else None
