"""Is what lies on the disk what was written? Stores, runs and exported models, looked at file by file, and mended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from st_distill import files
from st_distill.checksums import AGAIN, CHECKED, ENCODER, EXPORT, noted_damage
from st_distill.errors import one_line, printable, sentence
from st_distill.exporting import left_aside, load_student, not_finite
from st_distill.locks import FolderLock, is_locked
from st_distill.nearest import suggest_path
from st_distill.recipe.checkpoints import SEAL, numbered, what_is_wrong
from st_distill.recipe.diagnose import FINDINGS, read_findings
from st_distill.recipe.embedding import what_to_embed
from st_distill.recipe.frozen import POOLED
from st_distill.recipe.load import dump_recipe, load_recipe, load_record
from st_distill.recipe.processes import STORE
from st_distill.recipe.runner import START
from st_distill.recipe.schema import Recipe
from st_distill.recipe.state import RunState, read_results, results_remedy
from st_distill.records import RUN, doing_again, good_copy, setting_work
from st_distill.store.damage import find_damage, mend_store
from st_distill.store.format import DESCRIPTION as STORE_DESCRIPTION
from st_distill.teacher import Teacher

__all__ = ["Finding", "Verification", "verify"]

Kind = Literal["store", "run", "model"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is damaged.

    Args:
        file: its name in the folder.
        message: what is wrong with it.
        remedy: what mends it.
        repaired: whether it has been mended.
    """

    file: str
    message: str
    remedy: str
    repaired: bool = False


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` has found.

    Args:
        kind: what lies in the folder.
        path: the folder.
        findings: what is damaged or not all there, in the order of finding; none where all is as it was written.
        notes: what is as it was written, and yet worth knowing.
        compared: whether there are checksums to compare with; False for another program's model.
    """

    kind: Kind
    path: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compared: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether nothing is damaged, or nothing any more."""
        return all(finding.repaired for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, with ``whole`` beside them."""
        return {"whole": self.is_whole, **asdict(self)}

    def as_text(self) -> str:
        """A line for each finding and note, and one for the whole, as a terminal may have them."""
        lines = []
        for found in self.findings:
            state = "mended" if found.repaired else f"to mend it: {found.remedy}"
            lines.append(f"{found.file}: {found.message}; {state}")
        lines += self.notes
        left = sum(not found.repaired for found in self.findings)
        told = "is whole." if self.compared else "can be used; whether it is as it was written, nothing tells."
        lines.append(
            f"The {self.kind} {self.path} "
            + (f"is not whole: {left} finding{'s' if left > 1 else ''}." if left else told)
        )
        return "\n".join(map(printable, lines))


def verify(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    texts: Iterable[Any] | None = None,
    teachers: Teacher | Sequence[Teacher] | None = None,
    show_progress: bool = True,
) -> Verification:
    """Compare a store, a run's work folder or an exported model with what was written: every file's presence, size and
    checksum, counts and dimensions, finite values, and the description against the content.

    With ``repair`` a store's vectors that are damaged or missing are embedded, as by `TeacherStore.create`, its description
    comes back from its copy, and its index from the texts. What a run makes by itself (checkpoints, the start, pooled
    vectors) is removed if it is damaged, and made again when the run continues. A damaged model cannot be mended here; the
    finding says which command makes it again.

    Args:
        path: the folder.
        repair: mend what can be mended.
        recipe: the recipe of a store or run, or its file; by default the recipe.yaml of the run.
        overrides: changes to that file, as ``"teachers.0.trust_remote_code=true"``.
        texts, teachers: for a store without a recipe, what `TeacherStore.create` was given.
        show_progress: show a progress bar where texts are embedded.

    Raises:
        FileNotFoundError: there is no such folder, or it is none of the three.
        ValueError: a store is to be repaired, and neither a recipe nor texts and teachers are given, or a recipe or overrides
            are given for a model; a RecipeError where the recipe cannot be read, or lets code of a model run.
        BlockingIOError: another process writes there.
    """
    folder = Path(path)
    kind = _kind(folder)
    if overrides and kind == "model":
        raise ValueError(
            f"The option --set (in Python 'overrides') changes the recipe of a run or a store, and {folder} is a model. Leave "
            "it out."
        )
    if recipe is not None and kind == "model":
        raise ValueError(
            f"The option --recipe (in Python 'recipe') is the recipe of a run or a store, and {folder} is a model. Leave "
            "it out."
        )
    if overrides and recipe is None:
        recipe = (folder.parent if kind == "store" else folder) / "recipe.yaml"
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = load_recipe(os.fspath(recipe), overrides)
    notes: list[str] = []
    if kind == "model":
        noted = noted_damage(folder)
        if noted is None:
            notes.append("no checksums are noted of it, so that its files were not compared")
        findings = [Finding(file=damage.file, message=damage.what, remedy=damage.again) for damage in noted or ()]
        return Verification(
            kind=kind,
            path=str(folder),
            findings=findings or list(_of_model(folder)),
            notes=notes,
            compared=noted is not None,
        )
    if kind == "store":
        findings = _of_store(folder, notes)
        if repair and findings:
            if texts is None or teachers is None:
                texts, teachers = _given(folder, folder.parent, recipe)
            given = [teachers] if isinstance(teachers, Teacher) else list(teachers)
            with _held(folder.parent if (folder.parent / RUN).is_file() else None):
                findings = _repair_store(folder, findings, texts, given, show_progress=show_progress)
        return Verification(kind=kind, path=str(folder), findings=findings, notes=notes)
    with _held(folder if repair else None):
        findings = list(_of_run(folder, repair, recipe, show_progress, notes))
    return Verification(kind=kind, path=str(folder), findings=findings, notes=notes)


def _held(folder: Path | None) -> Any:
    """The lock of a run's folder, or nothing."""
    return contextlib.nullcontext() if folder is None else FolderLock(folder, purpose="it is being repaired")


def _kind(folder: Path) -> Kind:
    def has(name: str) -> bool:
        return (folder / name).is_file() or files.copy_of(folder / name).is_file()

    if has(RUN) or (folder / "stages").is_dir() or (folder / STORE / STORE_DESCRIPTION).exists():
        return "run"
    # A pipe in the place of a file, say, is told as what is wrong with it.
    if has(STORE_DESCRIPTION) or (folder / STORE_DESCRIPTION).exists() or (folder / "index").is_dir():
        return "store"
    if any((folder / name).exists() for name in ("modules.json", EXPORT, ENCODER)):
        return "model"
    if (aside := files.put_aside(folder)) is not None:
        raise FileNotFoundError(left_aside(folder, aside))
    if not os.path.lexists(folder):
        raise FileNotFoundError(sentence(f"There is no folder '{folder}'{suggest_path(folder, Path.is_dir)}"))
    raise FileNotFoundError(
        f"The folder {folder} must be a store ({STORE_DESCRIPTION}), a run's work folder ({RUN}) or a model (modules.json). "
        "It has none of these."
    )


def _repairing(folder: Path) -> str:
    return f"st-distill verify {shlex.quote(str(folder))} --repair"


# --- stores ------------------------------------------------------------------------------------------------------------


def _of_store(folder: Path, notes: list[str]) -> list[Finding]:
    remedy, zeros = _repairing(folder), Counter[str]()
    if not (folder.parent / "recipe.yaml").is_file():  # a store of its own does not know its texts and teachers
        remedy += " --recipe RECIPE"
    damaged = find_damage(folder, zeros)
    notes += [
        f"teacher '{name}': {count} of its vectors in {folder.name} {'have' if count > 1 else 'has'} length 0, as it gave "
        "them; docs/store.md says what becomes of their texts"
        for name, count in zeros.items()
        if count
    ]
    return [Finding(file=damage.file, message=damage.what, remedy=damage.remedy or remedy) for damage in damaged]


def _given(store: Path, work: Path, recipe: Recipe | None) -> tuple[Iterable[Any], list[Teacher]]:
    """The texts and teachers of a store, by its recipe."""
    if recipe is None:
        if not (work / "recipe.yaml").is_file():
            raise ValueError(
                f"To repair the store {store}, its texts and teachers are needed. Give the recipe (--recipe FILE), or in "
                "Python texts and teachers."
            )
        recipe = load_recipe(work / "recipe.yaml")
        try:
            return what_to_embed(recipe)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"The run's own recipe, {work / 'recipe.yaml'}, must give the texts again. It does not: {error} Its "
                "relative paths start in the folder in which the run was started: repair it there, or give another recipe "
                "(--recipe FILE)."
            ) from error
    return what_to_embed(recipe)


def _repair_store(
    folder: Path, findings: list[Finding], texts: Iterable[Any], teachers: list[Teacher], *, show_progress: bool
) -> list[Finding]:
    if iter(texts) is texts:
        texts = list(texts)  # they are gone through several times
    with FolderLock(folder, purpose="it is being repaired"):
        damaged = mend_store(folder, texts, teachers, show_progress=show_progress)
    left = [
        Finding(file=damage.file, message=damage.what, remedy=damage.remedy or "restore the file from a copy")
        for damage in damaged
    ]
    names = {finding.file for finding in left}
    return [replace(finding, repaired=True) for finding in findings if finding.file not in names] + left


# --- runs --------------------------------------------------------------------------------------------------------------


def _of_run(
    folder: Path, repair: bool, recipe: Recipe | None, show_progress: bool, notes: list[str]
) -> Iterator[Finding]:
    files.refuse_links(folder, but=[STORE])
    writes = not repair and is_locked(folder / FolderLock.NAME)
    if writes:
        notes.append(f"{folder} is being written: the checkpoint that is not finished, if there is one, was left out")
    state, findings = _run_state(folder, repair)
    yield from findings
    yield from _recipe_of(folder, state, repair, recipe)
    if state is not None and state.exists and not (folder / STORE).is_dir() and _had_teachers(folder):
        notes.append(
            f"the teachers' vectors ({STORE}) are not there any more; a run that needs them embeds the texts again"
        )
    for name in (STORE, "captions"):
        if (folder / name).is_dir():
            yield from _store_of(folder, name, repair, recipe, show_progress, notes)
    yield from _of_start(folder, repair)
    for path in sorted([*(folder / POOLED).rglob("*.npy"), *(folder / "corpus").glob("*.arrow")]):
        if not files.is_whole(path):
            yield _made_again(folder, path, "the content is not what its checksum says", repair)
    if state is not None:
        yield from _of_stages(folder, state, repair, writes)
    tokenizer = folder / "tokenizer"
    if (tokenizer / SEAL).is_file() and (wrong := what_is_wrong(tokenizer)):
        remedy = "restore it from a copy, or pretrain again in a new work folder"
        yield Finding(file=tokenizer.name, message=wrong, remedy=remedy)
    for name, read in (("results.json", read_results), (FINDINGS, read_findings)):
        try:
            read(folder)
        except ValueError as error:
            message = str(error).partition(". ")[0]  # what else it says is the remedy
            remedy = results_remedy(folder)
            finding = _made_again(folder, folder / name, message, repair)
            yield replace(finding, remedy=remedy[0].lower() + remedy[1:])


def _had_teachers(folder: Path) -> bool:
    try:
        return bool(load_record(folder / "recipe.yaml").teachers)
    except (OSError, ValueError):
        return False  # what is wrong with the recipe is a finding of its own


def _of_stages(folder: Path, state: RunState, repair: bool, writes: bool) -> Iterator[Finding]:
    for index, stage in enumerate(state.stages):
        if stage["done"]:
            model = state.stage_folder(index) / "model"
            for name, what in state.damage(index):
                file = (model / name).relative_to(folder).as_posix()
                yield Finding(file=file, message=what, remedy=state.again(index))
        else:
            for checkpoint in numbered(state.stage_folder(index) / "checkpoints"):
                if writes and not (checkpoint / SEAL).exists():
                    continue
                if wrong := what_is_wrong(checkpoint):
                    yield _made_again(folder, checkpoint, wrong, repair)


def _run_state(folder: Path, repair: bool) -> tuple[RunState | None, list[Finding]]:
    path = folder / RUN
    try:
        state = RunState(folder)
    except ValueError as error:
        message = str(error).partition(". ")[0]  # what else it says is the remedy
    else:
        return state, list(_copy_of(path, repair)) if state.exists else []
    if (copied := good_copy(path)) is None:
        remedy = doing_again(folder)
        return None, [Finding(file=RUN, message=message, remedy=f"{remedy[0].lower()}{remedy[1:]}".rstrip("."))]
    if not repair:
        return None, [Finding(file=RUN, message=message, remedy=_repairing(folder))]
    files.write_record(path, copied)
    return RunState(folder), [Finding(file=RUN, message=message, remedy=_repairing(folder), repaired=True)]


def _copy_of(path: Path, repair: bool) -> Iterator[Finding]:
    """The second copy of a record, which must be readable on the day that the first is not."""
    copy = files.copy_of(path)
    if good_copy(path) is not None:
        return
    what = "it cannot be read, or has changed since it was written" if copy.exists() else "there is no such file"
    if repair:
        files.write_record(path, files.read_record(path))
    yield Finding(file=copy.name, message=what, remedy=_repairing(path.parent), repaired=repair)


def _recipe_of(folder: Path, state: RunState | None, repair: bool, recipe: Recipe | None) -> Iterator[Finding]:
    path = folder / "recipe.yaml"
    if state is None or state.recipe is None or (path.is_file() and files.sha256(path) == state.recipe):
        return
    what = "it is not what the run wrote" if path.is_file() else "there is no such file"
    repaired = False
    if repair and recipe is not None:
        with contextlib.suppress(TypeError):  # of Python objects, which no file has
            text = dump_recipe(recipe)
            if repaired := hashlib.sha256(text.encode()).hexdigest() == state.recipe:
                files.write_text(path, text)
    remedy = (
        "continue the run from the recipe's own file with --resume, which writes this copy again; where that file has another "
        f"work folder, with {shlex.join(setting_work(folder))} too"
    )
    yield Finding(file="recipe.yaml", message=what, remedy=remedy, repaired=repaired)


def _store_of(
    folder: Path, name: str, repair: bool, recipe: Recipe | None, show_progress: bool, notes: list[str]
) -> Iterator[Finding]:
    findings = _of_store(folder / name, notes)
    if repair and findings and name == "captions":
        # The student's own vectors of the captions: a continued run makes them again.
        shutil.rmtree(folder / name)
        findings = [replace(finding, repaired=True) for finding in findings]
    elif repair and findings and recipe is None and not _can_be_read(folder / "recipe.yaml"):
        findings = [replace(finding, remedy=f"{_repairing(folder)} --recipe RECIPE") for finding in findings]
    elif repair and findings:
        texts, teachers = _given(folder / name, folder, recipe)
        findings = _repair_store(folder / name, findings, texts, teachers, show_progress=show_progress)
    for finding in findings:
        yield replace(finding, file=f"{name}/{finding.file}")


def _can_be_read(recipe: Path) -> bool:
    try:
        load_record(recipe)
    except (OSError, ValueError):
        return False
    return True


def _of_start(folder: Path, repair: bool) -> Iterator[Finding]:
    start = folder / "start"
    if not start.is_dir():
        return
    try:
        wrong = [f"{name}: {what}" for name, what in files.differences(start, files.read_json(start / START)[CHECKED])]
    except (FileNotFoundError, IsADirectoryError, ValueError, LookupError, TypeError, AttributeError) as error:
        wrong = [f"{START} cannot be read ({error})"]
    if wrong:
        yield _made_again(folder, start, wrong[0], repair)


def _made_again(folder: Path, path: Path, what: str, repair: bool) -> Finding:
    """Something that a continued run makes again, removed where ``repair`` is asked for."""
    if repair:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    remedy = _repairing(folder)
    return Finding(file=path.relative_to(folder).as_posix(), message=what, remedy=remedy, repaired=repair)


# --- models ------------------------------------------------------------------------------------------------------------


def _of_model(folder: Path) -> Iterator[Finding]:
    if (odd := files.odd_file(folder)) is None:
        yield from _of_loaded(folder)
        return
    path, what = odd
    yield Finding(
        file=path.relative_to(folder).as_posix(), message=f"it {what}", remedy="remove it, or restore it from a copy"
    )


def _of_loaded(folder: Path) -> Iterator[Finding]:
    """What is wrong with a model of which no file is known to have changed."""
    if (folder / ENCODER).is_file():
        return
    described = folder / EXPORT
    noted: dict[str, Any] = files.read_json(described) if described.is_file() else {}
    remedy = AGAIN[EXPORT] if noted else "restore it from a copy"
    try:
        model = load_student(folder, device="cpu")
        broken = list(not_finite(model))
        vector = np.asarray(model.encode(["a text"], show_progress_bar=False))[0]
    except Exception as error:  # whatever the libraries make of broken files
        cause = error.__cause__ or error
        message = f"the model cannot be loaded: {type(cause).__name__}: {one_line(cause)}"
        yield Finding(file="modules.json", message=message, remedy=remedy)
        return
    for name in broken:
        yield Finding(file="weights", message=f"there is NaN or infinity in {name}", remedy=remedy)
    if not np.isfinite(vector).all():
        yield Finding(file="weights", message="the vector of a text is not finite", remedy=remedy)
    dims = noted.get("dims")
    if dims and len(vector) != dims[0]:
        message = f"there are {dims[0]} dimensions noted, and vectors have {len(vector)}"
        yield Finding(file=EXPORT, message=message, remedy=remedy)
