"""Every code block of the pages: Python runs, recipes are checked, and so do our own commands, with tiny models; others, which
install, launch or take long, are looked at.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from page_blocks import PAGES, ROOT, Block, blocks_of
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

from st_distill import Teacher, TeacherStore, cli, losses
from st_distill.cli.parser import make_parser
from st_distill.evaluation.task_list import tasks_of_words
from st_distill.pretrain import check_pretraining
from st_distill.recipe import Recipe, arguments, check

EXTRAS = ConfigParser()
EXTRAS.read(ROOT / "setup.cfg")

#: What stands around a part of a recipe: the rest of one.
REST = {
    "output": "out/checked",
    "student": {"model": "small-encoder"},
    "teachers": [{"model": "teacher-one"}, {"model": "teacher-two"}],
    "texts": [{"path": "my-texts.parquet"}],
    "projection": {"dims": [384, 64]},
    "stages": [{"train": "all", "steps": 10}],
}

#: A page may write a model that another page starts from.
ELSEWHERE = ["output=out/checked"]


def pages_with(*languages: str) -> list[str]:
    return [page for page in PAGES if any(block.language in languages for block in blocks_of(page))]


# --- Python -----------------------------------------------------------------------------------------------------------


def of_evaluation(texts: list[str]) -> dict[str, Any]:
    student = SentenceTransformer("small-encoder")
    texts = [*texts, *(f"{text}, too" for text in texts)]
    return {
        "texts": texts,
        "model": student,
        "columns": ["question"] * 16 + ["answer"] * 16,
        "teacher_vectors": torch.randn(32, 24),
        "train_dataset": Dataset.from_dict({"text": texts, "label": torch.randn(32, 24).tolist()}),
        "loss": losses.SimilarityDistill(student),
        "SentenceTransformerTrainer": SentenceTransformerTrainer,
    }


def of_store(texts: list[str]) -> dict[str, Any]:
    teacher = Teacher(lambda texts: torch.randn(len(texts), 8), name="some", revision="1")
    return {"store": TeacherStore.create("teachers", texts, [teacher], show_progress=False)}


def of_diagnosis(texts: list[str]) -> dict[str, Any]:
    found = of_evaluation(texts)
    return found | {"dataset": found["train_dataset"], "held_out": texts[:2]}


#: What a page's reader has already, besides ``texts``.
HAS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "docs/diagnosis.md": of_diagnosis,
    "docs/evaluation.md": of_evaluation,
    "docs/store.md": of_store,
}


@pytest.mark.filterwarnings(
    # torch's exporter to ONNX warns of its own parts
    "ignore::DeprecationWarning:torch",
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:onnxscript",
    "ignore:.*isinstance.treespec.*:FutureWarning",
)
@pytest.mark.parametrize("page", pages_with("python"))
def test_python(page, world, sentences):
    names: dict[str, Any] = {"__name__": "__main__", "texts": list(sentences)}
    if page in HAS:
        names |= HAS[page](names["texts"])
    for block in blocks_of(page):
        if block.language == "python" and not block.not_run:
            # Empty lines before it give a traceback the page's own line numbers.
            exec(compile("\n" * block.line + block.text, ROOT / block.file, "exec"), names)


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_recipes(page, world, monkeypatch):
    monkeypatch.setattr(arguments, "_REPORTS", {})  # the page's reader has installed what a stage reports to
    for number, block in enumerate(blocks_of(page)):
        if block.language == "yaml" and not block.not_run:
            content = yaml.safe_load(block.text)
            file = world / f"{number}.yaml"
            file.write_text(block.text)
            where = f"{block.file}, line {block.line}"
            if "tasks" in content:
                specs, names = tasks_of_words([str(file)], {})
                assert specs or names, where
            elif {"encoder", "tokenizer"} & set(content):
                assert not mistakes(check_pretraining(file, ELSEWHERE)), where
            else:
                if not {"preset", "output"} & set(content):
                    assert set(content) <= set(Recipe.__dataclass_fields__), f"no recipe, and no part of one: {where}"
                    file.write_text(yaml.safe_dump(REST | content))
                assert not mistakes(check(file, ELSEWHERE)), where


def mistakes(problems: list[Any]) -> list[str]:
    return [str(problem) for problem in problems if problem.level == "error"]


# --- Commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands(page, request):
    here = [block for block in blocks_of(page) if block.language == "bash" and not block.not_run]
    for block in here:
        for words in commands(block):
            understand(words, f"{block.file}, line {block.line}")
    runs = [(block, words) for block in here for words in commands(block) if is_run(words)]
    if runs:
        request.getfixturevalue("world_of_a_run")
    if page == "docs/pretraining.md":
        shutil.copy("pretraining.yaml", "recipe.yaml")
    for block, words in runs:
        run(words[1:], f"{block.file}, line {block.line}")


def is_run(words: list[str]) -> bool:
    # A name in capitals is the reader's to fill in.
    return words[0] == "st-distill" and not any(re.fullmatch(r"[A-Z]+(\.\.\.)?", w) for w in words)


def run(arguments: list[str], where: str) -> None:
    """Fails for a command that does not end well. The reader of a page has not run it before."""
    if arguments[0] in ("run", "pretrain") and not {"--resume", "--evaluate"} & set(arguments):
        output = yaml.safe_load(Path(arguments[1]).read_text())["output"]
        for folder in (output, f"{output}-run"):
            shutil.rmtree(folder, ignore_errors=True)
    if arguments[0] == "mine":
        Path(arguments[3]).unlink(missing_ok=True)
    if arguments[0] == "report" and "--no-speed" not in arguments:
        arguments = [*arguments, "--no-speed"]
    assert cli.main(arguments) == 0, f"{shlex.join(arguments)} fails: {where}"


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def understand(words: list[str], where: str) -> None:
    """Fails for a command that is none."""
    program, *rest = words
    module = rest.index("-m") if "-m" in rest else None
    if program == "st-distill" or (module is not None and rest[module + 1] == "st_distill"):
        try:
            make_parser().parse_args(rest if program == "st-distill" else rest[module + 2 :])
        except SystemExit:
            pytest.fail(f"{shlex.join(words)} is no command: {where}")
    elif program == "python" and module is not None:
        path = ROOT / rest[module + 1].replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"no module {rest[module + 1]}: {where}"
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), f"no file {rest[0]}: {where}"
    elif program == "make":
        assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text(), f"no target {rest[0]}: {where}"
    elif program == "pip":
        extras = re.fullmatch(r"st-distill(?:\[([a-z,]+)\])?", rest[-1])
        assert extras, f"the page installs {rest[-1]}: {where}"
        assert set((extras[1] or "report").split(",")) <= set(EXTRAS["options.extras_require"]), where
    else:
        pytest.fail(f"the tests know no program {program}: {where}")
    if "--config_file" in rest:
        assert (ROOT / rest[rest.index("--config_file") + 1]).is_file(), where


# --- All --------------------------------------------------------------------------------------------------------------


def test_every_block_says_what_it_is():
    unknown = [
        f"{block.file}, line {block.line}"
        for page in PAGES
        for block in blocks_of(page)
        if block.language not in ("python", "yaml", "bash")
    ]
    assert not unknown, "neither python nor yaml nor bash"


def test_few_blocks_are_not_run():
    assert len({(block.file, block.line) for page in PAGES for block in blocks_of(page) if block.not_run}) <= 3


def test_every_example_is_named_in_the_guide():
    page = (ROOT / "docs" / "guide" / "getting-started.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - {"quickstart_data.py", "sample.py"}
    assert scripts == set(re.findall(r"\.\./\.\./examples/(\w+\.py)", page))
