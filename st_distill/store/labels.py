"""The label column of a dataset: row numbers of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from st_distill.store.texts import CHUNK

__all__ = ["add_labels"]

_LABEL_COLUMNS = ("label", "labels", "score", "scores")  # the names sentence-transformers takes for labels

Ids = Callable[[Iterable[Any], str | None, str, int], np.ndarray]
"""Row numbers of texts in a role; for the sentence about one that is none: what they are, and the first one's number."""


def add_labels(ids: Ids, dataset: Any, columns: str | Sequence[str], roles: str | Mapping[str, str] | None) -> Any:
    """As `TeacherStore.add_labels`, with the rows that ``ids`` says."""
    names = [columns] if isinstance(columns, str) else list(columns)
    role_of = _roles_of(names, roles)
    if isinstance(dataset, dict):  # a DatasetDict is one
        return type(dataset)({name: add_labels(ids, part, columns, roles) for name, part in dataset.items()})
    if not hasattr(dataset, "with_format"):
        raise TypeError(
            "The 'dataset' of add_labels must be a datasets.Dataset, IterableDataset, or dictionary of them. "
            f"Got {type(dataset).__name__} instead."
        )
    _check_label_columns(dataset.column_names, names)
    if not hasattr(dataset, "__len__"):
        return _label_stream(ids, dataset, names, role_of)

    import pyarrow as pa

    labels = np.empty((len(dataset), len(names)), dtype=np.int64)
    selected = dataset.select_columns(names).with_format(None)
    for start in range(0, len(dataset), CHUNK):
        batch = selected[start : start + CHUNK]
        for place, name in enumerate(names):
            what = f"text of column '{name}'"
            labels[start : start + CHUNK, place] = ids(batch[name], role_of[name], what, start)
    flat = pa.array(labels.reshape(-1))
    return dataset.add_column("label", flat if len(names) == 1 else pa.FixedSizeListArray.from_arrays(flat, len(names)))


def _label_stream(ids: Ids, dataset: Any, names: list[str], role_of: Mapping[str, str | None]) -> Any:
    from datasets import Features, Sequence, Value

    def label(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        _check_label_columns(list(batch), names)  # a stream may not know its columns before
        parts = [ids(batch[name], role_of[name], f"text of column '{name}'", 0).tolist() for name in names]
        return {"label": parts[0] if len(names) == 1 else [list(row) for row in zip(*parts)]}

    features = None
    if dataset.features is not None:
        number = Value("int64")
        new = number if len(names) == 1 else Sequence(number, length=len(names))
        features = Features(dataset.features | {"label": new})
    return dataset.map(label, batched=True, features=features)


def _roles_of(columns: list[str], roles: Any) -> dict[str, str | None]:
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"The 'columns' of add_labels must be distinct names, one at least. Got {columns} instead.")
    if roles is None or isinstance(roles, str):
        return dict.fromkeys(columns, roles)
    if not isinstance(roles, Mapping):
        raise TypeError(
            f"The 'roles' of add_labels must be a role, or a mapping of columns to roles. Got {type(roles).__name__} instead."
        )
    if strangers := [name for name in roles if name not in columns]:
        raise ValueError(f"The 'roles' of add_labels must be for columns among {columns}. Got {strangers} too.")
    return {name: roles.get(name) for name in columns}


def _check_label_columns(present: Sequence[str] | None, wanted: Sequence[str]) -> None:
    if present is None:
        return
    if missing := [name for name in wanted if name not in present]:
        raise ValueError(f"The 'columns' of add_labels must be columns of the dataset, {present}. Got {missing} too.")
    if taken := [name for name in _LABEL_COLUMNS if name in present]:
        raise ValueError(
            f"The dataset of add_labels must have no label column yet, because a trainer takes the first it finds. It has "
            f"{taken}: remove or rename it first, with dataset.remove_columns({taken})."
        )
