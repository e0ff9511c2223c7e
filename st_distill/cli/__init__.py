"""The command line, ``st-distill check|embed|run|verify|eval|report|export|mine|info|pretrain|glue``.

`parser` has the commands' arguments, `commands` what each does; here is how one ends, well or with a sentence.
``embed``, ``run`` and ``pretrain`` may be started in several processes, ``torchrun --nproc_per_node 8 -m st_distill run
recipe.yaml``: one of them speaks for all.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from st_distill.cli.commands import (
    embed_command,
    export_command,
    glue_command,
    mine_command,
    pretrain_command,
    run_command,
)
from st_distill.cli.parser import make_parser
from st_distill.cli.shared import speaks
from st_distill.credentials import holds_credentials
from st_distill.errors import OtherProcessError, RecipeError, one_line, printable
from st_distill.files import no_place
from st_distill.stopping import Stopped, raising


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0; 1 where `verify` finds damage; 2 for a mistake, told in a sentence on
    stderr; 130 and 143, as shells have it, where Ctrl-C or SIGTERM has stopped it, and 141 where nobody reads what it prints.
    """
    _open_closed_streams()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # the libraries' bars would fill a log with carriage returns
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # of sentence-transformers' own; those of st-distill are lines here
    options = make_parser().parse_args(arguments)
    try:
        os.getcwd()
    except FileNotFoundError:
        print("st-distill: the current folder has been removed. Change to one that is there.", file=sys.stderr)
        return 2
    if hasattr(sys.stdout, "reconfigure"):  # a name in a recipe may hold characters that no terminal can show
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("st_distill").setLevel(logging.INFO if speaks() else logging.WARNING)
    try:
        _check_names(options)
        with raising():
            output = sys.stdout
            code: int = options.command(options)
            return code or (0 if sys.stdout is output else 128 + signal.SIGPIPE)  # replaced where nobody reads it
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
            told = printable(f"{_sentence(error)}{_about_the_disk(error, options)}", lines=True)
            print(f"st-distill: {told}", file=sys.stderr, flush=True)
        return 2


def _open_closed_streams() -> None:
    """Let what is said go nowhere where Python was started with a closed stream (``2>&-``), which it has as None."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115


class _Printable(logging.Formatter):
    """Of what is logged, names that a stranger has chosen too, what a terminal may be given."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def _check_names(options: argparse.Namespace) -> None:
    """What no name can be, and no prompt, told before any work. None of them is repeated: a login may stand in it.

    An empty text names nothing, such as a variable of the shell that is not set: it is neither this folder nor left out.
    """
    paths = {"path"} if options.command in (export_command, mine_command) else set()
    written = {"out", "json", "csv", "mteb_results"} | paths
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
        if (why := no_place(value) or _among_stages(value)) is not None:
            printed = ", or - to print the figures" if name == "json" else ""
            raise ValueError(f"{shown} {why}. Name another place{printed}.")
        if holds_credentials(value):
            raise ValueError(
                f"{shown} holds a login or a token, and the names of what is written are kept. Name another."
            )


def _among_stages(path: str) -> str | None:
    from st_distill.checksums import stage_around

    around = stage_around(path)
    return None if around is None else f"lies in {around}, where a run has its stages"


def _sentence(error: Exception) -> str:
    if isinstance(error, RecipeError):  # a line for each mistake
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"The name {printable(str(error.filename))[:60]}… is longer than names can be. Give another one."
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, MemoryError)):
        return " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {one_line(error)}. Where it comes from is shown with --debug."


def _about_the_disk(error: Exception, options: argparse.Namespace) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f". Make room on the disk.{_how_to_go_on(options)}"
    return ""


def _how_to_go_on(options: argparse.Namespace) -> str:
    if options.command is glue_command:
        return " What is done is kept; go on with the same command."
    names = {embed_command: "embed", run_command: "run", pretrain_command: "pretrain"}
    if options.command not in names:
        return ""
    words = ["st-distill", names[options.command], options.recipe]
    words += [word for override in options.overrides for word in ("--set", override)]
    words += ["--resume"] if options.command is not embed_command else []
    return f" What is done is kept; go on with: {shlex.join(words)}"
