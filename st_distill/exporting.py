"""From a student in training to a standard sentence-transformers model."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from sentence_transformers.util import fullname
from torch import nn
from transformers import PreTrainedTokenizerBase

from st_distill.alignment import align_files, align_weights
from st_distill.card import tell_usage
from st_distill.checksums import CHECKED, EDITABLE, EXPORT, others_file, require_whole, stage_around
from st_distill.errors import one_line, sentence
from st_distill.files import (
    in_the_way,
    manifest,
    put_aside,
    read_json,
    refuse_link,
    replacing_folder,
    write_json,
    write_text,
)
from st_distill.modules import MatryoshkaProjection, Transformer
from st_distill.modules.alibi_checkpoint import refuse_published
from st_distill.nearest import suggest_path
from st_distill.options import check_path
from st_distill.store.format import DESCRIPTION as STORE_DESCRIPTION
from st_distill.teacher.models import OF_FILES

_MODEL = "a SentenceTransformer, or the folder of one"


def export(
    model: SentenceTransformer | str | os.PathLike[str],
    path: str | os.PathLike[str],
    dim: int | None = None,
    *,
    normalize: bool = True,
    old_names: bool = False,
) -> SentenceTransformer:
    """Write ``model`` as a folder that plain ``SentenceTransformer(path)`` loads, without st-distill and without flags.

    Args:
        model: a student, or the folder of one.
        path: the folder to write: a new one, or that of an earlier export, which is replaced once the new one is complete.
        dim: export one dimension: a prefix of a nested projection, or one of several independent heads. Default: the
            largest (whose prefixes are the smaller ones, where they are nested).
        normalize: end the model in a Normalize module, so that its full vectors have unit length. A vector that is
            truncated afterwards has a shorter one, as with every sentence-transformers model.
        old_names: name the modules as sentence-transformers did before version 6, ``sentence_transformers.models.Dense``. It
            reads both; servers with a reader of their own, such as text-embeddings-inference, may know these alone.

    Returns:
        The exported model.

    Raises:
        ValueError: for a ``dim`` that is none of the projection's, a module that has no standard form, a folder that holds
            something else than an export, or one of a model that is damaged: its export would be taken for whole.
    """
    path = _checked_target(path)
    noted = None
    if not isinstance(model, SentenceTransformer):
        check_path("'model' parameter", model, wanted=_MODEL)
        folder = Path(model)
        _check_apart(path, folder)
        model = load_student(folder)
        noted = _noted_dims(folder)
        _require_sound(model, folder)
    standard = to_standard(model, dim, normalize=normalize)
    # What is an export already has no projection that knows them.
    dims = _dims(model, dim) if noted is None or dim is not None else noted
    _write(standard, path, dims=dims, old_names=old_names)
    return standard


def export_teacher(
    student: SentenceTransformer | str | os.PathLike[str],
    teacher: SentenceTransformer,
    path: str | os.PathLike[str],
) -> SentenceTransformer:
    """Write the teacher in its student's space: documents embedded by the one are found by queries of the other.

    The teacher's vectors are multiplied by the rotation that the student's coordinates follow, a sentence-transformers Dense
    without bias, and brought to unit length: cosines between them are what they were, where the student is as wide as the
    teacher, and every prefix is on the axes of the student's. The folder is as standard as the student's export.

    Args:
        student: the student as it was trained, with its MatryoshkaProjection, or the folder of it. An exported student no
            longer has the rotation.
        teacher: its one teacher, with the prompts and the ``truncate_dim`` that it was asked with.
        path: the folder to write; see `export`.

    Returns:
        The exported teacher.

    Raises:
        ValueError: for a student without a projection, or whose coordinates follow no single teacher (a teacher's head, or
            several teachers), a teacher of another width, or a folder that holds something else than an export.
    """
    path = _checked_target(path)
    if not isinstance(student, SentenceTransformer):
        check_path("'student' parameter", student, wanted=_MODEL)
        _check_apart(path, Path(student))
        student = load_student(student)
    projection = _projection(student)
    if projection is None:
        raise ValueError(
            "The 'student' must have a MatryoshkaProjection, which knows the teacher's axes. Got a model without one: give the "
            "student as it was trained, not its export."
        )
    if projection.teacher_head is not None:
        raise ValueError(
            "The 'student' must follow the teacher's coordinates with its embedding. Got one with a teacher's head, which does "
            "it instead, and is in no export: train without teacher_head."
        )
    modules: list[nn.Module] = list(teacher.children())
    width = next(
        found
        for module in reversed(modules)
        if (found := getattr(module, "get_embedding_dimension", lambda: None)()) is not None
    )
    seen = teacher.get_embedding_dimension()  # less than the width, with a truncate_dim
    expected = projection.out_features if projection.rotation is None else projection.rotation.shape[0]
    if seen != expected:
        raise ValueError(
            f"The 'teacher' must have the {expected} dimensions that the student's rotation is for. Got {seen} instead; of a "
            "student of several teachers no single one can be exported."
        )
    if projection.rotation is not None or seen != width:
        axes = torch.zeros(projection.out_features, width)
        axes[:, :seen] = torch.eye(seen) if projection.rotation is None else projection.rotation.cpu().mT
        dense = Dense(width, projection.out_features, bias=False, activation_function=None, init_weight=axes)
        modules.append(dense.to(next((parameter.dtype for parameter in teacher.parameters()), torch.float32)))
    if not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    rotated = with_modules(teacher, modules).eval()
    _write(rotated, path, dims=_dims(student, None))
    return rotated


def _projection(model: SentenceTransformer) -> MatryoshkaProjection | None:
    return next((module for module in model.children() if isinstance(module, MatryoshkaProjection)), None)


def _check_apart(path: Path, model: Path) -> None:
    """Neither of the folder to write and that of the model lies in the other, which would be changed or lost by it."""
    written, read = (Path(os.path.realpath(folder)) for folder in (path, model))
    if written == read:
        raise ValueError(f"The 'path' must be another folder than the model's own. Got {path} for both.")
    if written in read.parents or read in written.parents:
        raise ValueError(
            f"The 'path' and the model's folder must lie apart. Got {path} and {model}, of which one lies in the other: choose "
            "another folder."
        )


def _checked_target(target: str | os.PathLike[str]) -> Path:
    check_path("'path' parameter", target)
    path = Path(target)
    if path.name.strip() in ("", ".."):
        raise ValueError(
            f"The 'path' must end with the name of a folder, which is written beside it first. Got '{path}' instead: name one, "
            "such as out/model."
        )
    refuse_link(path)
    if (blocking := in_the_way(path)) is not None:
        raise ValueError(f"The 'path' must be a place for a folder. Got {path} instead, where {blocking} is no folder.")
    if (around := stage_around(path)) is not None:
        raise ValueError(
            f"The 'path' must lie outside the stages of a run, which have checksums. Got {path}, which lies in {around}: "
            "choose another folder."
        )
    if (file := others_file(path, EXPORT)) is not None:
        raise ValueError(
            f"The 'path' must be a new or empty folder, or that of an earlier export (with a {EXPORT}), which is then "
            f"replaced. Got {path} instead, which holds '{file}' besides: choose another folder, or move that away."
        )
    return path


def not_finite(model: nn.Module) -> Iterator[str]:
    """Names of a model's tensors that hold NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            yield name


def _require_sound(model: SentenceTransformer, folder: Path) -> None:
    """Refuse what libraries load from files that are damaged, where no checksums of them are noted."""
    if name := next(not_finite(model), None):
        raise ValueError(
            f"The weights of {folder} must be finite numbers. There is NaN or infinity in {name}: restore the model, or train "
            "it again."
        )
    tokenizer = getattr(model[0], "tokenizer", None)
    # Without its files transformers makes a tokenizer of the right kind, to which every word is unknown.
    if isinstance(tokenizer, PreTrainedTokenizerBase) and set(tokenizer.get_vocab()) <= set(
        tokenizer.all_special_tokens
    ):
        raise ValueError(
            f"The tokenizer of {folder} must know words. It knows none, as if its files were missing (tokenizer.json): restore "
            "them."
        )


def _write(standard: SentenceTransformer, path: Path, *, dims: list[int], old_names: bool = False) -> None:
    """Save a model of standard modules, with what an export says of itself, and put it where an earlier one was."""
    description = describe(standard, dims=dims)
    with replacing_folder(path) as folder:
        standard.save(str(folder))
        align_files(folder)
        if old_names:
            _name_as_before(folder)
        # The card is for its readers to change.
        write_json(folder / EXPORT, description | {CHECKED: manifest(folder, without=EDITABLE)})
        tell_usage(folder, description, standard.prompts)


def _name_as_before(folder: Path) -> None:
    """The classes of a folder's modules by their names of before sentence-transformers 6."""
    for path in sorted(folder.rglob("modules.json")) + sorted(folder.rglob("router_config.json")):
        text = path.read_text(encoding="utf-8")
        write_text(path, re.sub(r'"sentence_transformers\.[\w.]+\.(\w+)"', r'"sentence_transformers.models.\1"', text))


def to_standard(model: SentenceTransformer, dim: int | None = None, *, normalize: bool = True) -> SentenceTransformer:
    """The same model in sentence-transformers' own modules; see `export` for the arguments."""
    projection = _projection(model)
    if dim is not None and projection is None:
        raise ValueError(
            f"The 'dim' can only be chosen for a model with a MatryoshkaProjection. Got {dim} for one without: give the model "
            "of the last stage in the run's folder (stages/<number>-<name>/model), or cut the vectors by truncate_dim."
        )
    modules: list[nn.Module] = []
    for module in model.children():
        if isinstance(module, MatryoshkaProjection):
            modules += module.to_standard(dim)
        elif hasattr(module, "to_standard"):
            modules += module.to_standard()
        else:
            modules.append(module)
    if foreign := [fullname(module) for module in modules if not fullname(module).startswith("sentence_transformers.")]:
        raise ValueError(
            f"The model must consist of modules with a standard form. Got {', '.join(foreign)} instead; a model that holds "
            "them cannot be loaded without its code."
        )
    if normalize and not isinstance(modules[-1], Normalize):
        modules.append(Normalize())
    return with_modules(model, modules).eval()


def with_modules(model: SentenceTransformer, modules: list[nn.Module]) -> SentenceTransformer:
    """A model of these modules that keeps the prompts, the similarity and the card of ``model``."""
    other = SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )
    other.model_card_data = model.model_card_data
    other.model_card_data.register_model(other)
    return other


def load_student(
    path: str | os.PathLike[str], *, device: str | None = None, model_kwargs: dict[str, Any] | None = None
) -> SentenceTransformer:
    """Load a student that was saved in training, with st-distill's own modules in it. No code from the folder is run.

    Args:
        path: its folder.
        device: where to; by default the best there is.
        model_kwargs: further arguments for transformers' ``from_pretrained``, such as a ``quantization_config``.

    Raises:
        ValueError: for a folder that is no model's, or whose files are damaged, which is looked at first where checksums are
            noted of them, or that holds an ALiBi encoder in the published layout.
    """
    path = Path(path)
    require_whole(path)
    _check_folder(path)
    classes = {fullname(module): module for module in (MatryoshkaProjection, Transformer)}
    try:
        model = SentenceTransformer._load_with_module_classes(
            str(path), classes, device=device, model_kwargs=model_kwargs
        )
    except Exception as error:  # whatever the libraries make of broken files
        if not isinstance(error, OF_FILES):
            raise
        raise ValueError(
            f"The model {path} cannot be loaded: {one_line(error)}. To look at every file: st-distill verify "
            f"{shlex.quote(str(path))}"
        ) from error
    refuse_published(model, path)
    return align_weights(model)


def describe(model: SentenceTransformer, *, dims: list[int] | None = None) -> dict[str, Any]:
    """What ``st-distill info`` says of a model: dimensions, whether vectors have unit length, modalities, size.

    Args:
        model: any sentence-transformers model.
        dims: the dimensions it was trained for; default: what its folder says, else the full width alone.
    """
    width = model.get_embedding_dimension()
    unit = isinstance(list(model.children())[-1], Normalize)
    return {
        "dims": dims or [width],
        "unit_length": {"full": unit, "truncated": False},
        "modalities": sorted(str(modality) for modality in model.modalities),
        # A static embedding reads any number of tokens, and JSON has no infinity.
        "max_seq_length": None if model.max_seq_length == float("inf") else model.max_seq_length,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`describe` for a folder, with the dimensions that the export noted there, or that its projection has."""
    path = Path(path)
    student = load_student(path, device="cpu")
    projection = _projection(student)
    return describe(student, dims=_noted_dims(path) or (None if projection is None else projection.dims))


def _noted_dims(path: Path) -> list[int] | None:
    """The dimensions that an export noted in its folder; None in a folder that is none."""
    if not (path / EXPORT).is_file():
        return None
    noted = read_json(path / EXPORT)
    if not isinstance(noted, dict) or not noted.get("dims") or not isinstance(noted["dims"], list):
        raise ValueError(f"The file {path / EXPORT} must have the model's 'dims'. It does not: export it again.")
    return noted["dims"]


def left_aside(path: Path, aside: Path) -> str:
    """What to do about an export that was killed between two renames."""
    return (
        f"There is no {path}: an export that took its place was killed, and has left the earlier model in {aside}. Bring it "
        f"back with: {shlex.join(['mv', str(aside), str(path)])}"
    )


def _check_folder(path: Path) -> None:
    if (aside := put_aside(path)) is not None:
        raise ValueError(left_aside(path, aside))
    if not os.path.lexists(path):
        raise ValueError(sentence(f"There is no folder '{path}'{suggest_path(path, _is_model)}"))
    if not _is_model(path):
        raise ValueError(sentence(f"The 'path' must be a model's folder. Got {path} instead, {_in_its_place(path)}"))
    if not read_json(path / "modules.json"):
        raise ValueError(f"The file {path / 'modules.json'} must name the model's modules. It names none.")


def _is_model(path: Path) -> bool:
    return (path / "modules.json").is_file()


def _in_its_place(path: Path) -> str:
    """What a path is that is no model, and what to call for it."""
    quoted = shlex.quote(str(path))
    if (path / "run.json").is_file():
        model = path.parent / path.name.removesuffix("-run")
        named = f"; its model is {model}" if model != path and _is_model(model) else "; name its recipe's output"
        return f"the work folder of a run{named}, or call st-distill report {quoted}"
    if (path / STORE_DESCRIPTION).is_file():
        return f"a store of teachers' vectors; call st-distill verify {quoted} for it"
    return f"which has no modules.json{suggest_path(path, _is_model)}"


def _dims(model: SentenceTransformer, dim: int | None) -> list[int]:
    projection = _projection(model)
    if dim is not None:
        return [dim]
    if projection is None:
        return [model.get_embedding_dimension()]
    return list(projection.dims) if projection.heads != "independent" else [projection.out_features]
