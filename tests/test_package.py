"""What holds for the package as a whole."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import st_distill
from st_distill import recipe
from st_distill.pretrain import Encoder, LengthEvaluation, Masking, Pretraining, TokenizerSpec
from st_distill.recipe.reference import reference

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "st_distill"
#: A module may import those before it, and its own package.
LAYERS = [
    "credentials",
    "errors",
    "nearest",
    "options",
    "locks",
    "files",
    "arrays",
    "words",
    "yaml_tree",
    "records",
    "checksums",
    "stopping",
    "tables",
    "contained",
    "progress",
    "timing",
    "figures",
    "environment",
    "card",
    "matrices",
    "hinges",
    "functional",
    "alignment",
    "modules",
    "limits",
    "vectors",
    "teacher",
    "store",
    "padding",
    "batch",
    "losses",
    "sampler",
    "evaluation",
    "diagnosis",
    "exporting",
    "recipe",
    "mining",
    "pretrain",
    "glue",
    "verify",
    "report",
    "cli",
    "__main__",
]


def imported(path: Path) -> set[str]:
    """Top-level parts of st_distill that a file imports when it runs."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "st_distill":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("st_distill.")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    allowed = {*LAYERS[: LAYERS.index(layer) + 1], "__version__"}
    assert imported(path) <= allowed


def test_every_module_has_its_layer():
    present = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert present - {"__init__"} == set(LAYERS)


def test_import_is_light_and_silent():
    code = "import sys, st_distill; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_public_names_are_there():
    for name in st_distill.__all__:
        assert getattr(st_distill, name) is not None
    assert set(st_distill.__all__) <= set(dir(st_distill))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        st_distill.nothing  # noqa: B018


def test_the_documentation_has_every_field():
    """``python -c "from st_distill import recipe
    from st_distill.recipe.reference import reference; print(reference())"`` prints the tables anew."""
    assert reference().strip() in (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


def test_every_part_of_a_recipe_is_described():
    written = {line.removeprefix("### ") for line in reference().splitlines() if line.startswith("### ")}
    assert written == {name for name in recipe.__all__ if isinstance(getattr(recipe, name), type)} - {"RunResult"}
    page = (ROOT / "docs" / "api" / "recipe.md").read_text(encoding="utf-8")
    assert [name for name in recipe.__all__ if f":: st_distill.recipe.{name}\n" not in page] == []


def test_the_documentation_has_every_field_of_pretraining():
    fields = reference((Pretraining, Encoder, TokenizerSpec, Masking, LengthEvaluation))
    assert fields.strip() in (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
