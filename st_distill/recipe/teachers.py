"""The teachers that a recipe describes: asked for vectors, measured as models, and read from a store."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer

from st_distill.recipe.data import load_texts
from st_distill.recipe.schema import Recipe, TeacherSpec, Texts
from st_distill.store import StoreView, TeacherStore
from st_distill.teacher import Teacher
from st_distill.teacher.models import load_model

__all__ = ["make_teacher", "teacher_model", "teacher_view"]


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
        batch_size=spec.batch_size,
        batch_tokens=spec.batch_tokens,
        max_seq_length=spec.max_seq_length,
        truncate_dim=spec.truncate_dim,
        trust_remote_code=spec.trust_remote_code,
    )


def teacher_model(spec: TeacherSpec) -> SentenceTransformer:
    """A teacher as a model to measure, as it is asked for vectors: with its prompts, dtype and widths."""
    assert spec.model is not None  # nothing else can be measured
    model = load_model(
        spec.model,
        of="teacher",
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


def teacher_view(recipe: Recipe, store: TeacherStore) -> StoreView:
    """The recipe's teachers in a store, with their weights."""
    names = [str(spec.name) for spec in recipe.teachers]
    return store.view(teachers=names, weights=[spec.weight for spec in recipe.teachers])


def _flat(source: Texts) -> list[str]:
    dataset = load_texts(source)
    return [text for column in dataset.column_names for text in dataset[column]]
