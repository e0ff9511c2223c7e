"""The command line, ``st-distill check|embed|run|verify|eval|report|export|mine|info|pretrain|glue``: thin layers.

``embed``, ``run`` and ``pretrain`` may be started in several processes, ``torchrun --nproc_per_node 8 -m st_distill run
recipe.yaml``: one of them speaks for all.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from st_distill import __version__
from st_distill.cli.shared import checked_recipe, give_json, require_place, speaks, tell_failed
from st_distill.credentials import holds_credentials, without_credentials
from st_distill.errors import OtherProcessError, Problem, RecipeError, one_line
from st_distill.files import no_place
from st_distill.nearest import nearest, offer
from st_distill.stopping import Stopped, raising

_Number = TypeVar("_Number", int, float)
_RECIPE_HELP = "a recipe's YAML file, or the name of a preset"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 1 where `verify` finds damage; 2 for a mistake, told in a sentence on
    stderr; 130 and 143, as shells have it, where Ctrl-C or SIGTERM has stopped it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # the libraries' bars would fill a log with carriage returns
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # of sentence-transformers' own; those of st-distill are lines here
    options = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):  # a name in a recipe may hold characters that no terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("st_distill").setLevel(logging.INFO if speaks() else logging.WARNING)
    try:
        _check_names(options)
        with raising():
            return options.command(options)
    except KeyboardInterrupt as error:
        if options.debug:
            raise
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        if speaks():
            print(
                f"st-distill: stopped by {signal.Signals(number).name}.{_how_to_go_on(options)}",
                file=sys.stderr,
                flush=True,
            )
        return 128 + number
    except Exception as error:
        if options.debug:
            raise
        if not isinstance(error, OtherProcessError):  # or another process has said it
            told = without_credentials(f"{_sentence(error)}{_about_the_disk(error, options)}")
            print(f"st-distill: {told}", file=sys.stderr, flush=True)
        return 2


def _check_names(options: argparse.Namespace) -> None:
    """What no name can be, and no prompt, told before any work. None of them is repeated: a login may stand in it.

    An empty text names nothing, such as a variable of the shell that is not set: it is neither this folder nor left out.
    """
    written = {"out", "json", "csv", "mteb_results"} | ({"path"} if options.command in (_export, _mine) else set())
    for name, value in vars(options).items():
        shown = f"The '{name.replace('_', '-')}'"
        if name.endswith("_prompt"):
            if value and holds_credentials(value):
                raise ValueError(
                    f"{shown} holds a login or a token, and it would be kept with the figures. Leave it out."
                )
            continue
        words = [word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str)]
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"{shown} must not be empty. Give a name, or leave the option out.")
        if any("\0" in word for word in words):
            raise ValueError(f"{shown} holds a zero byte, which no name may. Give another name.")
        if name not in written or value in (None, "-"):
            continue
        if (why := no_place(value)) is not None:
            printed = ", or - to print the figures" if name == "json" else ""
            raise ValueError(f"{shown} {why}. Name another place{printed}.")
        if holds_credentials(value):
            raise ValueError(
                f"{shown} holds a login or a token, and the names of what is written are kept. Name another."
            )


def _sentence(error: Exception) -> str:
    if isinstance(error, RecipeError):  # a line for each mistake
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (
            f"The name {without_credentials(str(error.filename))[:60]}… is longer than names can be. Give another one."
        )
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, MemoryError)):
        return " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {one_line(error)}. Where it comes from is shown with --debug."


def _about_the_disk(error: Exception, options: argparse.Namespace) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f". Make room on the disk.{_how_to_go_on(options)}"
    return ""


def _how_to_go_on(options: argparse.Namespace) -> str:
    if options.command is _glue:
        return " What is done is kept; go on with the same command."
    names = {_embed: "embed", _run: "run", _pretrain: "pretrain"}
    if options.command not in names:
        return ""
    words = ["st-distill", names[options.command], options.recipe]
    words += [word for override in options.overrides for word in ("--set", override)]
    words += ["--resume"] if options.command is not _embed else []
    return f" What is done is kept; go on with: {shlex.join(words)}"


class _Parser(argparse.ArgumentParser):
    """A parser that says a mistake in a sentence, as everything else does, and not below the whole usage.

    An option has one name, in whole: a shortened one would be another option's as soon as there is one that begins like it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As everywhere, but an unknown option is told before what is missing, and with the one that may be meant."""
        words = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        if self._subparsers is not None:  # the words behind the command are its own parser's
            words = list(itertools.takewhile(lambda word: word.startswith("-"), words))
        for word in itertools.takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            # Neither a number below zero, nor several short options in one word.
            if re.match(r"-[^\d.\s]\S*$", name) and name not in known and (name[1] == "-" or name[:2] not in known):
                longer = next((option for option in known if option.startswith(name)), None)
                meant = longer or nearest(name, known)
                self.error(f"there is no option {name}{'' if meant is None else offer(meant)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        told = without_credentials(" ".join(message.split()).rstrip("."))
        self.exit(2, f"st-distill: {told}{'' if told.endswith('?') else '.'} See {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
        commands,
        _verify,
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
        commands, _report, "report", "write the report of a run, one HTML page with pictures", "report out/jasper-run"
    )
    command.add_argument("run", help="work folder of a run")
    command.add_argument("--out", metavar="FOLDER", help="where to write; report in the work folder by default")
    command.add_argument("--no-speed", action="store_true", help="measure no speed and memory; the run's own stay")

    command = _command(
        commands,
        _export,
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
        _mine,
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
        _pretrain,
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


def _add_eval(commands) -> None:  # type: ignore[no-untyped-def]
    command = _command(
        commands,
        _eval,
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
        _glue,
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


def _check(options: argparse.Namespace) -> int:
    from st_distill.recipe.check import check

    try:
        problems = check(options.recipe, options.overrides)
    except RecipeError as error:
        problems = error.problems
    return _say(options, problems)


def _say(options: argparse.Namespace, problems: Sequence[Problem]) -> int:
    """Print the mistakes of a recipe, and return the exit code that they come to."""
    from st_distill.errors import format_problems

    if problems:
        print(format_problems(problems, options.recipe))
    errors = sum(problem.level == "error" for problem in problems)
    if errors:
        print(f"{errors} mistake{'s' if errors > 1 else ''} in {without_credentials(options.recipe)}.")
        return 2
    print(f"{options.recipe} is ready to run.")
    return 0


def _embed(options: argparse.Namespace) -> int:
    from st_distill.recipe import embed
    from st_distill.recipe.processes import Processes, leave

    with Processes():  # so that a mistake is said once
        recipe = checked_recipe(options.recipe, options.overrides)
    store = embed(recipe)
    leave()
    if speaks():
        print(f"{len(store)} rows by {', '.join(store.teachers)}, together {store.dimension} dimensions.")
    return 0


def _run(options: argparse.Namespace) -> int:
    from st_distill.evaluation.failures import failures
    from st_distill.recipe import run
    from st_distill.recipe.processes import leave
    from st_distill.report import findings_report, report

    if options.from_stage is not None and not options.resume:
        raise ValueError("The option --from-stage continues a run, so it needs --resume too.")
    result = run(options.recipe, overrides=options.overrides, resume=options.resume, from_stage=options.from_stage)
    leave()
    if speaks():
        if result.results:
            print(report(result.results))
        if result.findings:
            print(f"\n{findings_report(result.findings)}\n")
        print(f"The model is in {result.output}.")
    return tell_failed(failures(result.results))


def _verify(options: argparse.Namespace) -> int:
    from st_distill.verify import verify

    require_place("json", options.json)
    found = verify(options.path, repair=options.repair, recipe=options.recipe, overrides=options.overrides)
    if options.json is None:
        print(found.as_text())
    else:
        give_json(options.json, found.as_json())
    return 0 if found.is_whole else 1


def _eval(options: argparse.Namespace) -> int:
    from st_distill.cli.evaluation import measure

    return measure(options)


def _report(options: argparse.Namespace) -> int:
    from st_distill.report.page import write_page

    page = write_page(options.run, options.out, speed=not options.no_speed)
    print(f"The report is {page}.")
    return 0


def _export(options: argparse.Namespace) -> int:
    from st_distill.exporting import export

    export(options.model, options.path, options.dim, old_names=options.old_names)
    print(f"The model is in {options.path}.")
    return 0


def _mine(options: argparse.Namespace) -> int:
    from st_distill.mining import mine_negatives
    from st_distill.recipe import Texts

    if options.corpus_column is not None and options.corpus is None:
        raise ValueError("The option --corpus-column names a column of --corpus, and none is given. Leave it out.")
    columns = None if options.corpus_column is None else [options.corpus_column]
    corpus = None if options.corpus is None else Texts(path=options.corpus, columns=columns)
    rows = mine_negatives(
        options.model,
        Texts(path=options.pairs, columns=options.columns, limit=options.limit),
        options.path,
        corpus=corpus,
        negatives=options.negatives,
        skip=options.skip,
        margin=options.margin,
        max_seq_length=options.max_seq_length,
        batch_size=options.batch_size,
    )
    print(f"{rows} pairs with {options.negatives} negatives each are in {options.path}.")
    return 0


def _info(options: argparse.Namespace) -> int:
    from st_distill.exporting import info

    print(json.dumps(info(options.model), indent=2))
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from st_distill.pretrain import check_pretraining, evaluate_encoder, load_pretraining, pretrain
    from st_distill.pretrain.evaluation import report_accuracy
    from st_distill.recipe.processes import leave

    if options.check:
        return _say(options, check_pretraining(options.recipe, options.overrides))
    require_place("json", options.json)
    if options.evaluate:
        results = evaluate_encoder(options.evaluate, load_pretraining(options.recipe, options.overrides))
        said = f"This is {options.evaluate}."
    else:
        result = pretrain(options.recipe, overrides=options.overrides, resume=options.resume)
        leave()
        results, said = result.results, f"The model is in {result.output}."
    if speaks():
        if options.json != "-":
            print(f"{report_accuracy(results)}\n{said}" if results else said)
        give_json(options.json, results)
    return 0


def _glue(options: argparse.Namespace) -> int:
    from st_distill.glue import Settings, glue, report_glue
    from st_distill.recipe.load import assignments

    require_place("json", options.json)
    names = ("epochs", "steps", "batch", "learning_rates", "max_length", "limit", "seed")
    settings = Settings(**{name: getattr(options, name) for name in names}, arguments=assignments(options.arguments))
    results = glue(
        options.model,
        options.data,
        options.out or Path("out/glue", Path(options.model).name),
        tasks=options.tasks,
        settings=settings,
        trust_remote_code=options.trust_remote_code,
    )
    if options.json != "-":
        print(report_glue(results))
    give_json(options.json, results)
    return 0
