"""Coverage-guided fuzzing of what reads recipes, descriptions and tables of texts; needs atheris (the extra ``fuzz``).

    python tests/inputs/coverage_guided.py recipe -max_total_time=300 -timeout=20 -rss_limit_mb=4096

What comes after the target's name is for libFuzzer, a folder of inputs to begin with and to add to included. A target that
raises anything but a mistake in words, takes longer or more memory, ends with the input that did it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["st_distill", "yaml"]):
    import numpy as np

    from st_distill import Teacher, TeacherStore
    from st_distill.recipe import Texts
    from st_distill.recipe.data import columns_of, load_texts
    from st_distill.recipe.load import load_recipe

FOLDER = Path(tempfile.mkdtemp())


def recipe(content: bytes) -> None:
    (FOLDER / "recipe.yaml").write_bytes(content)
    load_recipe(FOLDER / "recipe.yaml")


def description(content: bytes) -> None:
    store = FOLDER / "store"
    if not store.exists():
        teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="first", revision="1")
        TeacherStore.create(store, ["a", "b"], teacher, show_progress=False)
    (store / "store.json").write_bytes(content)
    TeacherStore.open(store).gather([0, 1])


def texts(content: bytes) -> None:
    for ending in ("txt", "csv", "jsonl"):
        path = FOLDER / f"texts.{ending}"
        path.write_bytes(content)
        columns_of(Texts(path=str(path)))
        load_texts(Texts(path=str(path)))


TARGETS = {"recipe": recipe, "description": description, "texts": texts}


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]

    def one(content: bytes) -> None:
        with contextlib.suppress(ValueError, TypeError, OSError):
            target(content)

    logging.disable(logging.CRITICAL)  # of texts that are empty
    try:
        atheris.Setup(sys.argv, one)
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
