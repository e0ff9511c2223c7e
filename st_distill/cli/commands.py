"""What each command does: thin layers over the functions of the package, which load when one is called."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from st_distill.cli.shared import checked_recipe, give_json, require_place, say, speaks, tell_failed
from st_distill.errors import Problem, RecipeError


def check_command(options: argparse.Namespace) -> int:
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
        say(format_problems(problems, options.recipe), lines=True)
    errors = sum(problem.level == "error" for problem in problems)
    if errors:
        say(f"{errors} mistake{'s' if errors > 1 else ''} in {options.recipe}.")
        return 2
    say(f"{options.recipe} is ready to run.")
    return 0


def embed_command(options: argparse.Namespace) -> int:
    from st_distill.recipe import embed
    from st_distill.recipe.processes import Processes, leave

    with Processes():  # so that a mistake is said once
        recipe = checked_recipe(options.recipe, options.overrides)
    store = embed(recipe)
    leave()
    if speaks():
        say(f"{len(store)} rows by {', '.join(store.teachers)}, together {store.dimension} dimensions.")
    return 0


def run_command(options: argparse.Namespace) -> int:
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
            say(report(result.results), lines=True)
        if result.findings:
            say(f"\n{findings_report(result.findings)}\n", lines=True)
        say(f"The model is in {result.output}.")
    return tell_failed(failures(result.results))


def verify_command(options: argparse.Namespace) -> int:
    from st_distill.verify import verify

    require_place("json", options.json)
    found = verify(options.path, repair=options.repair, recipe=options.recipe, overrides=options.overrides)
    if options.json is None:
        say(found.as_text(), lines=True)
    else:
        give_json(options.json, found.as_json())
    return 0 if found.is_whole else 1


def eval_command(options: argparse.Namespace) -> int:
    from st_distill.cli.evaluation import measure

    return measure(options)


def report_command(options: argparse.Namespace) -> int:
    from st_distill.report.page import write_page

    page = write_page(options.run, options.out, speed=not options.no_speed)
    say(f"The report is {page}.")
    return 0


def export_command(options: argparse.Namespace) -> int:
    from st_distill.exporting import export

    export(options.model, options.path, options.dim, old_names=options.old_names)
    say(f"The model is in {options.path}.")
    return 0


def mine_command(options: argparse.Namespace) -> int:
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
    say(f"{rows} pairs with {options.negatives} negatives each are in {options.path}.")
    return 0


def info_command(options: argparse.Namespace) -> int:
    from st_distill.exporting import info

    give_json("-", info(options.model))
    return 0


def pretrain_command(options: argparse.Namespace) -> int:
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
            if results:
                say(report_accuracy(results), lines=True)
            say(said)
        give_json(options.json, results)
    return 0


def glue_command(options: argparse.Namespace) -> int:
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
        say(report_glue(results), lines=True)
    give_json(options.json, results)
    return 0
