"""The commands' names, arguments and help."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from st_distill import __version__
from st_distill.cli.commands import (
    check_command,
    embed_command,
    eval_command,
    export_command,
    glue_command,
    info_command,
    mine_command,
    pretrain_command,
    report_command,
    run_command,
    verify_command,
)
from st_distill.credentials import without_credentials
from st_distill.nearest import nearest, offer

_Number = TypeVar("_Number", int, float)
_RECIPE_HELP = "a recipe's YAML file, or the name of a preset"


class _Parser(argparse.ArgumentParser):
    """A parser that says a mistake in a sentence, as everything else does, and not below the whole usage.

    An option has one name, in whole: a shortened one would be another option's as soon as there is one that begins like it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As everywhere, but an unknown option is told before what is missing, and with the one that may be meant."""
        words = sys.argv[1:] if args is None else list(args)
        known, before = self._option_string_actions, ""
        if self._subparsers is not None:  # the words behind the command are its own parser's
            words = list(itertools.takewhile(lambda word: word.startswith("-"), words))
        for word in itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            # Neither a number below zero, nor several short options in one word, nor a text with spaces, which is a value.
            is_option = re.match(r"-[^\d.\s]\S*$", word) and (name[1] == "-" or name[:2] not in known)
            if is_option and name not in known:
                self.error(self._about(word, name, before))
            before = word
        return super().parse_known_args(args, namespace)

    def _about(self, word: str, name: str, before: str) -> str:
        """What to say of an option that there is not."""
        known = self._option_string_actions
        parsers = {} if self._subparsers is None else self._subparsers._group_actions[0].choices
        if any(name in parser._option_string_actions for parser in parsers.values()):  # type: ignore[union-attr]
            return f"the option {name} stands behind the command: {self.prog} COMMAND {name}"
        if before in known and known[before].nargs is None:
            return f"there is no option {name}; if it is the value of {before}, write {before}={word}"
        meant = next((option for option in known if option.startswith(name)), None) or nearest(name, known)
        return f"there is no option {name}{'' if meant is None else offer(meant)}"

    def error(self, message: str) -> NoReturn:
        told = without_credentials(" ".join(message.split()).rstrip("."))
        self.exit(2, f"st-distill: {told}{'' if told.endswith('?') else '.'} See {self.prog} --help.\n")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="st-distill", description="Distil small, fast text and image embedding models out of large ones."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    command = _command(
        commands,
        check_command,
        "check",
        "print every mistake of a recipe at once; loads no weights",
        "check recipe.yaml",
    )
    command.add_argument("recipe", help=_RECIPE_HELP)
    _add_overrides(command)

    command = _command(
        commands,
        embed_command,
        "embed",
        "embed a recipe's texts with its teachers, nothing else",
        "embed recipe.yaml",
    )
    command.add_argument("recipe", help=_RECIPE_HELP)
    _add_overrides(command)

    command = _command(
        commands,
        run_command,
        "run",
        "run a recipe to the finished model",
        "run recipe.yaml --set stages.0.steps=100",
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
        commands,
        verify_command,
        "verify",
        "look whether a store, a run or a model is as it was written; exit code 1 where it is not",
        "verify out/jasper-run --repair",
    )
    command.add_argument("path", help="folder of a store, a run (its work folder) or a model")
    command.add_argument(
        "--repair", action="store_true", help="embed again what is damaged, and remove what a continued run makes again"
    )
    command.add_argument("--recipe", metavar="FILE", help="recipe of the store; by default the run's own")
    _add_overrides(command)
    _add_json(command, "print what is found as JSON, or write it to this file")

    _add_eval(commands)

    command = _command(
        commands,
        report_command,
        "report",
        "write the report of a run, one HTML page with pictures",
        "report out/jasper-run",
    )
    command.add_argument("run", help="work folder of a run")
    command.add_argument("--out", metavar="FOLDER", help="where to write; report in the work folder by default")
    command.add_argument("--no-speed", action="store_true", help="measure no speed and memory; the run's own stay")

    command = _command(
        commands,
        export_command,
        "export",
        "write a student as a standard model",
        "export out/small-run/stages/3-all/model out/small-128 --dim 128",
    )
    command.add_argument("model", help="folder of a student in training")
    command.add_argument("path", help="folder to write")
    command.add_argument("--dim", type=int, help="export this dimension alone")
    command.add_argument(
        "--old-names",
        action="store_true",
        help="name the modules as before sentence-transformers 6; text-embeddings-inference knows these alone",
    )

    command = _command(
        commands,
        mine_command,
        "mine",
        "find hard negatives for pairs of texts",
        "mine out/pairs pairs.parquet negatives.parquet --columns query,document --negatives 15",
    )
    command.add_argument("model", help="name or folder of a sentence-transformers model")
    command.add_argument(
        "pairs", help="a file or folder of texts, with a column of queries and one of what belongs to each"
    )
    command.add_argument("path", help="parquet file to write")
    command.add_argument(
        "--columns", type=_words, metavar="A,B", help="the two columns; by default the only ones of texts"
    )
    command.add_argument("--corpus", metavar="FILE", help="further texts to search, in one column")
    command.add_argument("--corpus-column", metavar="C", help="that column; by default the only one of texts")
    command.add_argument("--negatives", type=int, default=15, metavar="N", help="of each pair; 15 by default")
    command.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the nearest N")
    command.add_argument(
        "--margin", type=float, metavar="SHARE", help="leave out what is nearer than the pair less this share of it"
    )
    command.add_argument("--limit", type=int, metavar="N", help="the first so many pairs")
    _add_max_seq_length(command)
    command.add_argument("--batch-size", type=int, default=32, metavar="N", help="texts encoded at a time")

    command = _command(
        commands,
        pretrain_command,
        "pretrain",
        "train an encoder to find masked words",
        "pretrain recipe.yaml --set steps=1000",
    )
    command.add_argument("recipe", help="a pretraining recipe's YAML file, or the name of a preset")
    _add_overrides(command)
    command.add_argument("--resume", action="store_true", help="continue the run in the work folder")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only print every mistake of the recipe at once")
    what.add_argument(
        "--evaluate", metavar="MODEL", help="train nothing; measure this model as the recipe's evaluation says"
    )
    _add_json(command)

    _add_glue(commands)

    command = _command(
        commands, info_command, "info", "say what a model is: dimensions, unit length, size", "info out/jasper"
    )
    command.add_argument("model", help="folder of a model")
    return parser


def _command(  # type: ignore[no-untyped-def]
    commands, function, name: str, help: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: st-distill {example}"
    )
    command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    command.set_defaults(command=function)
    return command


def _add_eval(commands) -> None:  # type: ignore[no-untyped-def]
    command = _command(
        commands,
        eval_command,
        "eval",
        "measure a model on tasks, or as a recipe's evaluation says",
        "eval out/jasper data/scifact sts:data/pairs.tsv mteb:STSBenchmark --dims 384,128 --precisions float32,int8",
    )
    command.add_argument("model", help="name or folder of a sentence-transformers model")
    command.add_argument(
        "tasks",
        nargs="+",
        metavar="task",
        help="a file or folder of data, or a data set of the hub, KIND: before it where the data do not tell; mteb:NAME; a "
        f"YAML file with a list of tasks; or, alone, {_RECIPE_HELP}",
    )
    _add_overrides(command)
    command.add_argument("--dims", type=_numbers, metavar="N,N", help="dimensions; the model's own by default")
    command.add_argument("--precisions", type=_words, metavar="A,B", help="of float32,int8,binary; float32 by default")
    command.add_argument(
        "--split",
        metavar="NAME",
        help="part of the data to measure on; test by default, or else validation or dev; not with mteb:NAME, which MTEB "
        "measures whole",
    )
    command.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="the first so many rows of each task's data, or queries of a collection; not with mteb:NAME either",
    )
    _add_max_seq_length(command)
    command.add_argument("--query-prompt", metavar="TEXT", help="before queries, instead of the model's own prompt")
    command.add_argument("--document-prompt", metavar="TEXT", help="before documents, likewise")
    command.add_argument("--text-prompt", metavar="TEXT", help="before any other text, likewise")
    command.add_argument("--batch-size", type=int, metavar="N", help="texts encoded at a time; 32 by default")
    _add_json(command)
    command.add_argument("--csv", metavar="FILE", help="also write every figure here, a row each")
    command.add_argument("--mteb-results", metavar="FOLDER", help="also write MTEB's own results here")


def _add_glue(commands) -> None:  # type: ignore[no-untyped-def]
    command = _command(
        commands,
        glue_command,
        "glue",
        "fine-tune an encoder on the tasks of GLUE and measure it, beside the paper's table",
        "glue out/encoder --data data/glue --tasks rte,stsb --learning-rates 2e-5,5e-5",
    )
    command.add_argument("model", help="name or folder of an encoder of transformers")
    command.add_argument(
        "--data", required=True, help="folder with a folder for each task, or the name of a data set of the hub"
    )
    command.add_argument("--tasks", type=_words, metavar="A,B", help="names of tasks; by default all that are there")
    command.add_argument(
        "--out", metavar="FOLDER", help="what is finished is kept here; out/glue and the model's last name by default"
    )
    command.add_argument("--epochs", type=float, default=3.0, metavar="N", help="passes over each task; 3 by default")
    command.add_argument("--steps", type=int, metavar="N", help="at most so many optimiser steps, instead")
    command.add_argument("--batch", type=int, default=32, metavar="N", help="texts of a step; 32 by default")
    command.add_argument(
        "--learning-rates", type=_rates, default=[2e-5], metavar="A,B", help="the best of them counts; 2e-5 by default"
    )
    command.add_argument("--max-length", type=int, default=128, metavar="N", help="tokens of a text; 128 by default")
    command.add_argument("--limit", type=int, metavar="N", help="the first so many rows of every part")
    command.add_argument("--seed", type=int, default=42, metavar="N", help="of everything random; 42 by default")
    command.add_argument(
        "--set",
        dest="arguments",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of transformers.TrainingArguments",
    )
    command.add_argument("--trust-remote-code", action="store_true", help="let code of the model's own run")
    _add_json(command)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _numbers(text: str) -> list[int]:
    return _each(text, int, "whole numbers with commas between them, as in 384,128")


def _rates(text: str) -> list[float]:
    return _each(text, float, "numbers with commas between them, as in 2e-5,5e-5")


def _each(text: str, kind: Callable[[str], _Number], wanted: str) -> list[_Number]:
    try:
        return [kind(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {wanted}. Got '{text}' instead.") from None


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe",
    )


def _add_json(
    command: argparse.ArgumentParser, help: str = "print the figures as JSON, or also write them to this file"
) -> None:
    command.add_argument("--json", metavar="FILE", nargs="?", const="-", help=help)


def _add_max_seq_length(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--max-seq-length",
        type=int,
        metavar="N",
        help="tokens of a text that the model reads; by default as many as it was saved with",
    )
