"""Quality, measured: students by several methods, on several tasks, at several dimensions.

    python -m benchmarks.quality run --data DATA --teacher MINILM --out out/quality
    python -m benchmarks.quality trial plain --data DATA --teacher MINILM --out out/quality --steps 150
    python -m benchmarks.quality table --out out/quality --steps 300 --batch 32
    python -m benchmarks.quality plot --out out/quality

DATA holds parquet files, see texts.py and tasks.py; MINILM is the name or folder of all-MiniLM-L6-v2. Whatever is done is
kept in the output folder, and not done again: the teacher's vectors, the trained students, and results.jsonl. ``run`` is the
final table (test), ``trial`` a variant of the default recipe on the dev tasks. Both refuse a run that is
there already, but was trained by other defaults of the recipe (plan.py).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.measure import checked_plan, run_method, run_teachers
from benchmarks.quality.methods import METHODS, RATES, Settings, plan
from benchmarks.quality.results import chosen, print_table, read
from benchmarks.quality.teacher import Workshop, require
from benchmarks.quality.trials import TRIALS
from st_distill.recipe.load import assignments


def dropout(text: str) -> float | None:
    if text == "model":
        return None
    if not 0 <= (share := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to below 1, or 'model'; got {text}")
    return share


def rate(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
    return number


def count(text: str) -> int:
    return _at_least(1, text)


def seed(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if (number := int(text)) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} on; got {text}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="train and measure the methods")
    run.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != "published-random"])
    run.add_argument("--students", nargs="+", choices=list(RATES), default=["3-layer"])
    run.add_argument("--seeds", nargs="+", type=seed, default=[0])
    run.add_argument("--rate", type=rate, help="peak learning rate of the encoder; by default that of the student")

    trial = commands.add_parser(
        "trial",
        help="a variant of the default recipe, on the dev tasks; 'all': one after another, "
        "each with --steps, --batch and --rate where it has none of its own",
    )
    trial.add_argument("names", nargs="+", help=f"of {', '.join(TRIALS)}, or all; or a new name with --set")
    trial.add_argument("--set", dest="overrides", action="append", default=[], metavar="FIELD=VALUE")
    trial.add_argument("--student", choices=list(RATES), default="3-layer")
    trial.add_argument("--seeds", nargs="+", type=seed, default=[0])
    trial.add_argument("--rate", type=rate)

    for command, steps, split in ((run, 600, "test"), (trial, 150, "dev")):
        command.set_defaults(usual={"steps": steps, "batch": 64})
        command.add_argument("--data", type=Path, required=True, help="folder of the data")
        command.add_argument("--teacher", required=True, help="name or folder of all-MiniLM-L6-v2")
        command.add_argument("--rows", type=count, default=40_000, help="pairs of training texts")
        command.add_argument("--steps", type=count, help=f"by default {steps}")
        command.add_argument("--batch", type=count, help="pairs of a step; by default 64")
        command.add_argument("--splits", nargs="+", choices=["dev", "test"], default=[split])
        command.add_argument("--bf16", action="store_true", help="train in bfloat16 (autocast)")
        command.add_argument(
            "--dropout", type=dropout, default=0.0, help="share that training drops; 'model': the model's own"
        )

    table = commands.add_parser("table", help="print the results")
    plot = commands.add_parser("plot", help="draw the results, a picture per claim")
    for command in (table, plot):
        command.add_argument("--split", choices=["dev", "test"], default="test")
        command.add_argument("--steps", type=count, help="of what was trained, only runs of so many steps")
        command.add_argument("--batch", type=count, help="of what was trained, only runs of so many pairs a step")
    plot.add_argument("--pictures", type=Path, help="where they go; the output folder by default")
    table.add_argument("--student", choices=list(RATES), default="3-layer")
    for command in (run, trial, table, plot):
        command.add_argument("--out", type=Path, default=Path("out/quality"))

    options = parser.parse_args()
    try:
        if options.command in ("table", "plot"):
            show(options)
        else:
            work(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def show(options: argparse.Namespace) -> None:
    results = options.out / "results.jsonl"
    lines, kind = read(results), {"steps": options.steps, "batch": options.batch}
    of_kind = [line for line in chosen(lines, **kind) if line["split"] == options.split]
    asked = any(value is not None for value in kind.values())
    if not of_kind or (asked and not any(line["seconds"] for line in of_kind)):
        raise ValueError(f"{results} holds no {options.split} results of that kind: make them with run or trial")
    if options.command == "table":
        print_table(of_kind, options.split, options.student)
        return
    budgets = {(line["settings"]["steps"], line["settings"]["batch"]) for line in of_kind if line["seconds"]}
    if len(budgets) > 1:
        found = ", ".join(f"--steps {steps} --batch {batch}" for steps, batch in sorted(budgets))
        raise ValueError(f"a picture compares runs of one budget, and {results} holds several: choose {found}")
    from benchmarks.quality.plot import draw

    for sentence in draw(lines, options.split, options.pictures or options.out, **kind):
        print(sentence)


def work(options: argparse.Namespace) -> None:
    asked = {name: getattr(options, name) for name in ("steps", "batch", "rate")}
    asked = {name: value for name, value in asked.items() if value is not None}
    usual = {**options.usual, "dropout": options.dropout, "bf16": options.bf16}
    if options.command == "run":
        given = {**usual, **asked}
        runs = [
            # What is not trained is the same whatever the training would have been.
            (method, Settings(method, student) if method == "untrained" else Settings(method, student, seed, **given))
            for seed in options.seeds
            for student in options.students
            for method in options.methods
        ]
    else:
        every = options.names == ["all"]
        given = {**usual, "student": options.student}
        runs = [
            (name, trial_settings(name, options.overrides, given | {"seed": seed}, asked, keep_own=every))
            for seed in options.seeds
            for name in (TRIALS if every else options.names)
        ]
    for _, settings in runs:
        plan(settings, options.teacher)  # refuses overrides that fit no recipe
    require(options.data, options.teacher)
    shop = Workshop(options.out, options.data, options.teacher, rows=options.rows)
    for name, settings in runs:
        checked_plan(shop, name, settings)
    for split in options.splits:
        run_teachers(shop, split)
    for name, settings in runs:
        run_method(shop, name, settings, options.splits)


def trial_settings(
    name: str, overrides: list[str], given: dict[str, Any], asked: dict[str, Any], *, keep_own: bool = False
) -> Settings:
    """The settings of a trial: the usual ones, those that were asked for, what the trial of that name changes, and ``--set``.

    With ``keep_own`` the steps, batch or rate that a trial has of its own stay; without it asking for others is refused.

    Raises:
        ValueError: there is no such trial, it would not be what its name says, or ``--set`` changes what has an option here.
    """
    if name not in TRIALS and not overrides:
        raise ValueError(f"unknown trial {name}: give --set, or one of {', '.join(TRIALS)}; all stands alone")
    for target in assignments(overrides):  # refuses what is none
        if target.rpartition(".")[2] in ("steps", "batch", "seed"):
            raise ValueError(
                f"--set {target} would be noted as something else: give --{target.rpartition('.')[2]} instead"
            )
    changes = dict(TRIALS.get(name, {}))
    if keep_own:
        asked = {option: value for option, value in asked.items() if option not in changes}
    if clash := sorted(set(changes) & set(asked)):
        own = {"steps": "number of steps"}.get(clash[0], clash[0])
        raise ValueError(f"the trial {name} has a {own} of its own: leave --{clash[0]} out")
    experiment = changes.get("experiment", Experiment())
    needs_layers = {"layers", "stages"} & set(changes) or experiment.hidden or experiment.mean_layers
    if needs_layers and given["student"] != "3-layer":
        raise ValueError(f"the trial {name} is one of the 3-layer student: leave --student out")
    both = (*changes.pop("overrides", ()), *overrides)
    return Settings(**{"method": "st-distill", **given, **asked, "overrides": both, **changes})


if __name__ == "__main__":
    main()
