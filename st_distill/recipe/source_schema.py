"""What a recipe says of its data: texts and pictures, and where they are; parts of `st_distill.recipe.schema`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from st_distill.recipe.conversion import Part
from st_distill.recipe.rules import about, above, at_least, names_list, not_empty, python_only
from st_distill.tables import is_utf8
from st_distill.words import Found, describe

__all__ = ["ImageSource", "Images", "Texts"]


def _data_rule(value: Any) -> Iterator[Found]:
    if value is None or hasattr(value, "column_names"):
        return
    if not isinstance(value, list):
        yield (), f"expected a list of texts or a datasets.Dataset, got {describe(value)}"
        return
    for index, text in enumerate(value):
        if not isinstance(text, str):
            yield (index,), f"expected text, got {describe(text)}"
        elif not is_utf8(text):
            yield (index,), f"expected text that UTF-8 can hold, without unpaired surrogates, got {describe(text)}"


@dataclass(kw_only=True)
class Texts(Part):
    """Texts from a file, a folder, the hub or Python. Relative paths start at the working directory."""

    short_for: ClassVar[str | None] = "path"

    path: str | None = field(
        default=None,
        metadata=about(
            "parquet, jsonl, json, csv, tsv or txt (a text a line), a folder of such, or what save_to_disk wrote",
            not_empty,
        ),
    )
    dataset: str | None = field(default=None, metadata=about("name of a dataset on the hub", not_empty))
    data: Any = field(default=None, metadata=about("a list of texts or, in Python, a datasets.Dataset", _data_rule))
    config: str | None = field(default=None, metadata=about("configuration of the hub's dataset"))
    split: str | None = field(default=None, metadata=about("split of a dataset that has several; train by default"))
    revision: str | None = field(default=None, metadata=about("branch, tag or commit of the hub's dataset"))
    columns: list[str] | None = field(
        default=None, metadata=about("columns to use, in this order; every column of texts by default", names_list)
    )
    roles: dict[str, str] = field(
        default_factory=dict, metadata=about("role of a column (query, document), which names the teachers' prompts")
    )
    prompts: dict[str, str] = field(default_factory=dict, metadata=about("the student's own prompt for a column"))
    limit: int | None = field(default=None, metadata=about("use the first so many rows", at_least(1)))
    share: float | None = field(
        default=None,
        metadata=about(
            "how often a batch is of this source, against the shares of the others, in a stage of 'also' alone; by the number "
            "of its rows by default",
            above(0),
        ),
    )


@dataclass(kw_only=True)
class ImageSource(Part):
    """Pictures with their captions."""

    short_for: ClassVar[str | None] = "path"

    path: str | None = field(
        default=None,
        metadata=about(
            "parquet with pictures, or jsonl or csv with their paths; or a folder with metadata.csv, .jsonl or .parquet",
            not_empty,
        ),
    )
    dataset: str | None = field(default=None, metadata=about("name of a dataset on the hub", not_empty))
    data: Any = field(default=None, metadata=about("a datasets.Dataset, in Python", python_only))
    config: str | None = field(default=None, metadata=about("configuration of the hub's dataset"))
    split: str | None = field(default=None, metadata=about("split of a dataset that has several; train by default"))
    revision: str | None = field(default=None, metadata=about("branch, tag or commit of the hub's dataset"))
    image: str = field(default="image", metadata=about("column of the pictures", not_empty))
    caption: str = field(default="caption", metadata=about("column of the captions", not_empty))
    limit: int | None = field(default=None, metadata=about("use the first so many rows", at_least(1)))
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata=about("what an unreadable picture does: stop the run, or be left out and counted")
    )


@dataclass(kw_only=True)
class Images(ImageSource):
    """The pictures of the stages that train vision, and the vision encoder that looks at them."""

    vision: str | dict[str, Any] | None = field(
        default=None,
        metadata=about(
            "name or folder of a vision encoder, or a mapping: a transformers configuration with its model_type, started "
            "from random weights",
            not_empty,
        ),
    )
    tokens: int | None = field(
        default=None,
        metadata=about(
            "visual tokens per picture: the square of patches, pooled in squares; about 64 by default",
            at_least(1),
        ),
    )
