"""The model card of an exported model: sentence-transformers' own, with what a reader of the hub looks for besides.

A card is its metadata and a list of sections; a section is a heading of level two and all below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from st_distill.files import write_text

__all__ = ["dimensions", "escaped", "markdown_table", "replace_sections", "section", "tell_usage", "usage", "widget"]

#: sentence-transformers puts the repository's name in its place when a model is pushed to the hub.
_MODEL_ID = "sentence_transformers_model_id"
#: These stay at the end.
_LAST = ("Additional Resources", "Citation")
_TEXTS = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]


def widget() -> list[dict[str, Any]]:
    """What the hub shows a model with: texts that are nobody's, where sentence-transformers' trainer takes training texts."""
    source, *others = _TEXTS
    return [{"source_sentence": source, "sentences": others}]


def tell_usage(folder: Path, description: Mapping[str, Any], prompts: Mapping[str, str]) -> None:
    """Rewrite the usage in a folder's README.md: texts, shorter vectors, queries and documents, pictures.

    Args:
        folder: of the model.
        description: what ``st_distill.exporting.describe`` says of it.
        prompts: the model's.
    """
    replace_sections(folder, {"Usage": usage(description, prompts), "Dimensions": dimensions(description)})


def usage(description: Mapping[str, Any], prompts: Mapping[str, str]) -> str:
    """The section on usage, without its heading."""
    dims = description["dims"]
    shown = "".join(f"    {text!r},\n".replace("'", '"') if "'" not in text else f'    "{text}",\n' for text in _TEXTS)
    parts = [
        "```bash\npip install -U sentence-transformers\n```",
        "### Texts",
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        f'model = SentenceTransformer("{_MODEL_ID}")\n'
        f"sentences = [\n{shown}]\nembeddings = model.encode(sentences)\nprint(embeddings.shape)\n"
        f"# (3, {dims[0]})\nprint(model.similarity(embeddings, embeddings))\n```",
    ]
    if any(prompts.get(name) for name in ("query", "document")):
        parts += [
            "Queries and documents have prompts of their own:",
            '```python\nqueries = model.encode_query(["which planet is red?"])\n'
            'documents = model.encode_document(["Mars is known for its red colour."])\n'
            "print(model.similarity(queries, documents))\n```",
        ]
    if len(dims) > 1:
        others = " or ".join(filter(None, [", ".join(map(str, dims[1:-1])), str(dims[-1])]))
        parts += [
            "### Shorter vectors",
            f"The first {others} dimensions of a vector are embeddings too, and take less room:",
            f'```python\nmodel = SentenceTransformer("{_MODEL_ID}", truncate_dim={dims[1]})\n'
            f"embeddings = model.encode(sentences, normalize_embeddings=True)\n# (3, {dims[1]})\n```",
        ]
    if "image" in description["modalities"]:
        parts += [
            "### Images",
            "Images and texts share one space, so that a text finds its picture:",
            "```python\nfrom PIL import Image\n\n"
            f'model = SentenceTransformer("{_MODEL_ID}")\n'
            'pictures = model.encode([Image.open("first.jpg"), Image.open("second.jpg")])\n'
            'captions = model.encode(["a red square"])\nprint(model.similarity(captions, pictures))\n```',
        ]
    return "\n\n".join(parts)


def dimensions(description: Mapping[str, Any], *, trained: bool = False) -> str:
    """The section on the vectors' dimensions and lengths, without its heading.

    Args:
        description: as of `tell_usage`.
        trained: whether a loss is known to have looked at each of its dimensions.
    """
    full = "have unit length" if description["unit_length"]["full"] else "do not have unit length"
    dims = description["dims"]
    lines = [f"Full vectors have {dims[0]} dimensions and {full}."]
    if len(dims) > 1:
        shorter = ", ".join(map(str, dims[1:]))
        lines += [
            f"{'The model was also trained at' if trained else 'They can be cut to'} {shorter} dimensions: "
            f"`model.encode(texts, truncate_dim={dims[1]})`.",
            "Truncated vectors do not have unit length: compare them by cosine, or pass `normalize_embeddings=True`.",
        ]
    return "\n".join(lines)


def replace_sections(
    folder: Path,
    sections: Mapping[str, str],
    *,
    drop: Sequence[str] = (),
    opening: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Rewrite a folder's README.md.

    Args:
        folder: of the model; without a README.md in it, one is made of the sections alone.
        sections: heading to content. One that the card has is replaced in its place; another one comes before the
            further resources and the citation.
        drop: headings of sections to leave out.
        opening: what stands before the first section; None: what stands there now.
        metadata: fields of the card's YAML header to set.

    Raises:
        ValueError: for metadata that huggingface_hub does not accept.
    """
    path = folder / "README.md"
    card = ModelCard(path.read_text(encoding="utf-8") if path.is_file() else "---\ntags: []\n---\n")
    before, present = _split(card.text)
    kept = {heading: content for heading, content in present.items() if heading not in drop}
    kept |= {heading: f"\n{content.strip()}\n\n" for heading, content in sections.items()}
    tail = {heading: kept.pop(heading) for heading in _LAST if heading in kept}
    body = before if opening is None else f"{opening.strip()}\n\n"
    text = body + "".join(f"## {heading}\n{content}" for heading, content in (kept | tail).items())
    for name, value in (metadata or {}).items():
        setattr(card.data, name, value)
    header = card.data.to_yaml()
    # Parsed again, so that what is written is known to be read.
    write_text(path, str(ModelCard(f"---\n{header}\n---\n\n{text.strip()}\n")))


def section(folder: Path, heading: str) -> str:
    """What stands under a heading of level two in a folder's README.md; empty where there is none."""
    path = folder / "README.md"
    return _split(ModelCard(path.read_text(encoding="utf-8")).text)[1].get(heading, "") if path.is_file() else ""


def _split(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first heading of level two, and the content under each, comments and code left whole."""
    before: list[str] = []
    sections: dict[str, list[str]] = {}
    current = before
    is_code = is_comment = False
    for line in text.lstrip("\n").splitlines(keepends=True):
        if line.lstrip().startswith("```") and not is_comment:
            is_code = not is_code
        elif not is_code:
            # The last mark on a line decides.
            is_comment = line.rfind("<!--") > line.rfind("-->") if "<!--" in line or "-->" in line else is_comment
        if line.startswith("## ") and not is_code and not is_comment:
            current = sections.setdefault(line[3:].strip(), [])
        else:
            current.append(line)
    return "".join(before), {heading: "".join(lines) for heading, lines in sections.items()}


def escaped(text: str) -> str:
    """``text`` as it is, in a line of Markdown or a cell of a table: nothing in it is markup."""
    text = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~])", r"\\\1", text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; its cells are Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join([":---", *["---:"] * (len(header) - 1)]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
