"""``st-distill eval``: a model measured on tasks, or as a recipe says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from st_distill.cli.shared import (
    checked_recipe,
    give_json,
    give_text,
    require_place,
    require_replaceable,
    say,
    tell_failed,
)
from st_distill.options import check_whole_number

#: Options that a recipe says by itself.
_OF_TASKS = (
    "dims",
    "precisions",
    "split",
    "limit",
    "query_prompt",
    "document_prompt",
    "text_prompt",
    "batch_size",
    "csv",
    "mteb_results",
)


def measure(options: argparse.Namespace) -> int:
    from st_distill.evaluation.task_file import is_task_file
    from st_distill.recipe.load import presets

    require_place("json", options.json)
    require_place("csv", options.csv)
    if options.csv == "-":
        raise ValueError("The --csv must be a file. Got - instead: name one, or print the figures with --json.")
    if options.json and options.csv and Path(options.json).resolve() == Path(options.csv).resolve():
        raise ValueError(f"The --json and --csv must be two files. Got {options.csv} for both: name another one.")
    if Path(options.model).suffix in (".yaml", ".yml"):
        raise ValueError(f"{options.model} is no model: st-distill eval MODEL TASK takes the model first.")
    recipes = [
        word
        for word in options.tasks
        if word in presets() or (word.endswith((".yaml", ".yml")) and not is_task_file(word))
    ]
    if not recipes:
        return _eval_tasks(options)
    if len(options.tasks) > 1:
        raise ValueError(f"{recipes[0]} is a recipe, which is measured alone. Got {len(options.tasks)} tasks instead.")
    return _eval_recipe(options, recipes[0])


def _eval_recipe(options: argparse.Namespace, path: str) -> int:
    from st_distill.evaluation.failures import failures
    from st_distill.recipe import evaluate_model
    from st_distill.recipe.models import load_model
    from st_distill.report import report

    for option in _OF_TASKS:
        if getattr(options, option) is not None:
            raise ValueError(
                f"The option --{option.replace('_', '-')} is for tasks; what a recipe measures stands in its 'evaluation'. "
                "Leave the option out."
            )
    recipe = checked_recipe(path, options.overrides)
    results = evaluate_model(load_model(options.model, max_seq_length=options.max_seq_length), recipe)
    if options.json != "-":
        say(report(results), lines=True)
    give_json(options.json, results)
    return tell_failed(failures(results))


def _eval_tasks(options: argparse.Namespace) -> int:
    from st_distill.evaluation import read_task
    from st_distill.evaluation.base import checked_dims, dims_of, width_of
    from st_distill.evaluation.measuring import measure_tasks, require_modalities
    from st_distill.evaluation.mteb_tasks import find_mteb_tasks, result_files
    from st_distill.evaluation.results import csv_of_results
    from st_distill.evaluation.sweep import checked_precisions
    from st_distill.evaluation.task_list import tasks_of_words
    from st_distill.limits import check_own_length
    from st_distill.recipe.models import load_model
    from st_distill.report import task_report

    if options.overrides:
        raise ValueError("The option --set changes a recipe, and none is given. Leave it out.")
    given = {"split": options.split, "limit": options.limit}
    given = {option: value for option, value in given.items() if value is not None}
    specs, names = tasks_of_words(options.tasks, given)
    for option, file in (("json", options.json), ("csv", options.csv)):
        if file and any(Path(spec.source).resolve() == Path(file).resolve() for spec in specs):
            raise FileExistsError(f"The file of --{option} is replaced, and {file} is a task. Name another file.")
    if given and names:
        option = next(iter(given))
        instead = f"Leave it out, or say {option} beside the other tasks in a YAML file" if specs else "Leave it out"
        raise ValueError(
            f"The option --{option} is for tasks from data, and mteb:{names[0]} is measured as MTEB has it, whole. {instead}."
        )
    prompts = {
        use: text for use in ("query", "document", "text") if (text := getattr(options, f"{use}_prompt")) is not None
    }
    # Everything that can be wrong is looked at before the first text is encoded.
    how: dict[str, Any] = {
        "dims": checked_dims(options.dims),
        "precisions": checked_precisions(["float32"] if options.precisions is None else options.precisions),
        "prompts": prompts,
    }
    if options.mteb_results is not None and not names:
        raise ValueError("The option --mteb-results is for tasks of MTEB, mteb:NAME, and none is given. Leave it out.")
    if options.mteb_results is not None and Path(options.mteb_results).is_file():
        raise NotADirectoryError(f"The --mteb-results must be a folder. Got the file {options.mteb_results} instead.")
    batch_size = 32 if options.batch_size is None else options.batch_size
    check_whole_number("--batch-size", batch_size)
    found = find_mteb_tasks(names) if names else []
    tasks = [task for spec in specs for task in read_task(spec, batch_size=batch_size)]
    model = load_model(options.model, max_seq_length=options.max_seq_length)
    check_own_length(model)
    require_modalities(model, tasks, found)
    if options.mteb_results is not None:
        for file in result_files(options.mteb_results, found, dims_of(how["dims"], width_of(model)), how["precisions"]):
            require_replaceable("mteb-results", file)
    measured = measure_tasks(model, tasks, found, batch_size=batch_size, folder=options.mteb_results, **how)
    limit = model.max_seq_length
    results = {"model": options.model, "max_seq_length": limit if isinstance(limit, int) else None, **measured}
    if options.json != "-":
        say(task_report(results), lines=True)
    give_json(options.json, results)
    if options.csv:
        give_text(options.csv, csv_of_results(results))
    return tell_failed(results.get("failed", []))
