"""The command line: ``st-distill check|embed|run|eval|export|info``, each a thin layer over one function.

``embed`` and ``run`` may be started in several processes, ``torchrun --nproc_per_node 8 -m st_distill run recipe.yaml``: one of
them speaks for all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from st_distill import __version__
from st_distill.errors import OtherProcessError

_RECIPE_HELP = "a recipe's YAML file, or the name of a preset"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 for a user's mistake, told in a sentence on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("st_distill").setLevel(logging.INFO if _speaks() else logging.WARNING)
    try:
        return options.command(options)
    except (ValueError, TypeError, OSError, ImportError, MemoryError, OtherProcessError) as error:
        if options.debug:
            raise
        if not isinstance(error, OtherProcessError):  # or another process has said it
            print(f"st-distill: {error}", file=sys.stderr, flush=True)
        return 2


def _speaks() -> bool:
    """Whether this process prints: of those that a launcher started, the main one."""
    return os.environ.get("RANK", "0") == "0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="st-distill", description="Distil small, fast text and image embedding models out of large ones."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    command = _command(
        commands, _check, "check", "print every mistake of a recipe at once; loads no weights", "check recipe.yaml"
    )
    command.add_argument("recipe", help=_RECIPE_HELP)
    _add_overrides(command)

    command = _command(
        commands, _embed, "embed", "embed a recipe's texts with its teachers, nothing else", "embed recipe.yaml"
    )
    command.add_argument("recipe", help=_RECIPE_HELP)
    _add_overrides(command)

    command = _command(
        commands, _run, "run", "run a recipe to the finished model", "run recipe.yaml --set stages.0.steps=100"
    )
    command.add_argument("recipe", help=_RECIPE_HELP)
    _add_overrides(command)
    command.add_argument(
        "--resume", action="store_true", help="continue the run in the work folder; finished stages are kept"
    )
    command.add_argument(
        "--from-stage", type=int, metavar="N", help="with --resume: do stage N (from 1) and those after it again"
    )

    command = _command(
        commands, _eval, "eval", "measure a model as a recipe's evaluation says", "eval out/jasper recipe.yaml"
    )
    command.add_argument("model", help="name or folder of a sentence-transformers model")
    command.add_argument("recipe", help=_RECIPE_HELP)
    _add_overrides(command)
    command.add_argument("--json", metavar="FILE", help="also write the figures here")

    command = _command(
        commands,
        _export,
        "export",
        "write a student as a standard model",
        "export out/run/stages/3-all/model out/small --dim 128",
    )
    command.add_argument("model", help="folder of a student in training")
    command.add_argument("path", help="folder to write")
    command.add_argument("--dim", type=int, help="export this dimension alone")

    command = _command(commands, _info, "info", "say what a model is: dimensions, unit length, size", "info out/jasper")
    command.add_argument("model", help="folder of a model")
    return parser


def _command(commands, function, name: str, help: str, example: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: st-distill {example}"
    )
    command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    command.set_defaults(command=function)
    return command


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe",
    )


def _check(options: argparse.Namespace) -> int:
    from st_distill.errors import RecipeError, format_problems
    from st_distill.recipe.check import check

    try:
        problems = check(options.recipe, options.overrides)
    except RecipeError as error:
        problems = error.problems
    if problems:
        print(format_problems(problems, options.recipe))
    errors = sum(problem.level == "error" for problem in problems)
    if errors:
        print(f"{errors} mistake{'s' if errors > 1 else ''} in {options.recipe}.")
        return 2
    print(f"{options.recipe} is ready to run.")
    return 0


def _embed(options: argparse.Namespace) -> int:
    from st_distill.recipe import embed, load_recipe
    from st_distill.recipe.processes import Processes, leave

    with Processes():  # so that a mistake is said once
        recipe = load_recipe(options.recipe, options.overrides)
    store = embed(recipe)
    leave()
    if _speaks():
        print(f"{len(store)} rows by {', '.join(store.teachers)}, together {store.dimension} dimensions.")
    return 0


def _run(options: argparse.Namespace) -> int:
    from st_distill.recipe import run
    from st_distill.recipe.processes import leave
    from st_distill.report import report

    if options.from_stage is not None and not options.resume:
        raise ValueError("The option --from-stage continues a run, so it needs --resume too.")
    result = run(options.recipe, overrides=options.overrides, resume=options.resume, from_stage=options.from_stage)
    leave()
    if _speaks():
        if result.results:
            print(report(result.results))
        print(f"The model is in {result.output}.")
    return 0


def _eval(options: argparse.Namespace) -> int:
    from sentence_transformers import SentenceTransformer

    from st_distill.files import write_json
    from st_distill.recipe import evaluate_model, load_recipe
    from st_distill.report import report

    recipe = load_recipe(options.recipe, options.overrides)
    if options.json and not Path(options.json).absolute().parent.is_dir():
        raise FileNotFoundError(f"The folder of --json {options.json} must exist. Make it first, or name another file.")
    results = evaluate_model(SentenceTransformer(options.model), recipe)
    print(report(results))
    if options.json:
        write_json(options.json, results)
    return 0


def _export(options: argparse.Namespace) -> int:
    from st_distill.exporting import export

    export(options.model, options.path, options.dim)
    print(f"The model is in {options.path}.")
    return 0


def _info(options: argparse.Namespace) -> int:
    from st_distill.exporting import info

    print(json.dumps(info(options.model), indent=2))
    return 0
