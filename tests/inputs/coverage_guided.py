"""Coverage-guided fuzzing of what reads recipes, descriptions, tables of texts and vectors; needs atheris (the extra ``fuzz``).

    python tests/inputs/coverage_guided.py recipe -max_total_time=300 -timeout=20 -rss_limit_mb=4096

What comes after the target's name is for libFuzzer, a folder of inputs to begin with and to add to included. It begins with
valid inputs and knows the format's words. A target that raises anything but a mistake in words, or takes longer or more
memory, ends with the input that did it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["st_distill", "yaml"]):
    import numpy as np
    from mistakes import MISTAKES, in_words

    from st_distill import Teacher, TeacherStore
    from st_distill.files import write_record
    from st_distill.recipe import Texts
    from st_distill.recipe.data import columns_of, load_texts
    from st_distill.recipe.load import dump_recipe, load_recipe, presets

FOLDER = Path(tempfile.mkdtemp())
STORE = FOLDER / "store"


def recipe(content: bytes) -> None:
    (FOLDER / "recipe.yaml").write_bytes(content)
    load_recipe(FOLDER / "recipe.yaml")


def description(content: bytes) -> None:
    (STORE / "store.json").write_bytes(content)
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(content)
        if isinstance(value, dict):  # with a checksum that fits: what has none is looked at no further
            write_record(STORE / "store.json", {field: entry for field, entry in value.items() if field != "sha256"})
    TeacherStore.open(STORE).gather([0, 1])


def texts(content: bytes) -> None:
    for ending in ("txt", "csv", "jsonl"):
        path = FOLDER / f"texts.{ending}"
        path.write_bytes(content)
        one(lambda path=path: columns_of(Texts(path=str(path))))
        one(lambda path=path: load_texts(Texts(path=str(path))))


def vectors(content: bytes) -> None:
    (FOLDER / "vectors.npy").write_bytes(content)
    for _ in Teacher.from_vectors(FOLDER / "vectors.npy", texts=["a", "b", "c"]).blocks():
        pass


TARGETS = {"recipe": recipe, "description": description, "texts": texts, "vectors": vectors}


def seeds(target: str) -> list[bytes]:
    """Valid inputs of a target."""
    if target == "recipe":
        return [dump_recipe(load_recipe(preset, ["student.model=some/model"])).encode() for preset in presets()]
    if target == "description":
        teacher = Teacher(lambda texts: np.ones((len(texts), 2)), name="first", revision="1")
        TeacherStore.create(STORE, ["a", "b"], teacher, show_progress=False)
        return [(STORE / "store.json").read_bytes()]
    if target == "texts":
        rows = [{"text": "a", "score": 1.5}, {"text": "ä\u2028", "score": None}]
        return [b"a\nb\r\nc\n", b'text,score\n"a, ""b""",1.5\nc,\n', "\n".join(map(json.dumps, rows)).encode()]
    contents = []
    for dtype in ("float32", "float16", "int64"):
        np.save(content := io.BytesIO(), np.arange(6).reshape(3, 2).astype(dtype))
        contents.append(content.getvalue())
    return contents


#: What the formats have beside the words of their seeds.
SIGNS = [
    *(
        "&a",
        "*a",
        "<<: ",
        "!!str ",
        "%YAML 1.2\n",
        "---\n",
        "? ",
        "|-\n ",
        "~",
        ".inf",
        ".nan",
        "1e999",
        "null",
        "true",
    ),
    *(
        '"\\U0010ffff"',
        "\\ud800",
        "\ufeff",
        "\0",
        "\r",
        "\u2028",
        "[[",
        "{}",
        "[]",
        '""',
        "9" * 30,
        "-1",
        "{'descr': '<f4', ",
        "|O",
    ),
]


def dictionary(contents: Iterable[bytes]) -> str:
    """The words of some inputs, and those that no input has, as libFuzzer reads them."""
    words = {word for content in contents for word in re.findall(rb"[A-Za-z_<>][\w/-]+:? ?", content)}
    words |= {sign.encode("utf-8", "surrogatepass") for sign in SIGNS}
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in sorted(words))


def one(use) -> None:
    try:
        use()
    except MISTAKES as mistake:
        if not in_words(mistake):
            raise


def main() -> None:
    name = sys.argv.pop(1)
    logging.disable(logging.CRITICAL)  # of texts that are empty
    begin = FOLDER / "seeds"
    begin.mkdir()
    contents = seeds(name)
    for number, content in enumerate(contents):
        (begin / str(number)).write_bytes(content)
        TARGETS[name](content)  # which is valid
    (FOLDER / "words").write_text(dictionary(contents), encoding="ascii")
    try:
        atheris.Setup(
            [*sys.argv, f"-dict={FOLDER / 'words'}", str(begin)], lambda content: one(lambda: TARGETS[name](content))
        )
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
