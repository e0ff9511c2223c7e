"""Parquet files as one dataset in the cache of `datasets`, mapped into memory, each file by the very name it has.

The reader of `datasets` takes a name for a pattern, which may be that of another file, for an address where it has ``::``, and
puts the values of the environment into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.table import table_cast
from pyarrow.parquet import ParquetFile, read_schema

from st_distill.tables import exact

__all__ = ["read_parquet"]

#: Rows that are in memory at a time, where a row group has more.
_BATCH = 10_000


def read_parquet(files: Sequence[Path]) -> datasets.Dataset:
    """The rows of these files, which have the columns of the first one; what is in the cache already is not read again."""
    # A file that has changed is another one for the cache.
    stamps = [(exact(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files]
    builder = _Builder(dataset_name="parquet", files=stamps)
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


@dataclass
class _Config(datasets.BuilderConfig):
    """Path, time of change and size of each file, of which the name in the cache is made."""

    files: Sequence[tuple[str, int, int]] = ()


class _Builder(datasets.ArrowBasedBuilder):
    BUILDER_CONFIG_CLASS = _Config

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=datasets.Features.from_arrow_schema(read_schema(self.config.files[0][0])))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("train", {"paths": [path for path, _, _ in self.config.files]})]

    def _generate_tables(self, paths: list[str]) -> Iterator[tuple[str, pa.Table]]:
        schema = self.info.features.arrow_schema
        for path in paths:
            with ParquetFile(path, pre_buffer=False) as file:
                # One row group after another: a single iteration over all of them keeps what it has read.
                for group in range(file.num_row_groups):
                    for place, batch in enumerate(file.iter_batches(_BATCH, row_groups=[group])):
                        yield f"{path}, {group}, {place}", table_cast(pa.Table.from_batches([batch]), schema)
