"""The model card of a recipe's model: what was distilled from what and how, and what was measured of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import HFValidationError, validate_repo_id

from st_distill import __version__
from st_distill.card import dimensions, escaped, markdown_table, replace_sections, section, usage, widget
from st_distill.checksums import EXPORT
from st_distill.evaluation.failures import failures
from st_distill.figures import defined, percent, quality_columns, task_table
from st_distill.files import read_json
from st_distill.recipe.conversion import Part
from st_distill.recipe.diagnose import trained_dims
from st_distill.recipe.schema import ImageSource, Projection, Recipe, Stage, TeacherSpec, Texts
from st_distill.words import folder_name

__all__ = ["evaluation_results", "write_run_card"]

#: What the student learns to give, by each term of the distillation loss.
_TERMS = {
    "cosine": "a text the teachers' vector (`cosine`)",
    "similarity": "a batch the teachers' matrix of similarities (`similarity`)",
    "triplet": "pairs of texts the teachers' order (`triplet`, by a margin)",
}
#: Metrics of `quality_columns` as a card names them.
_METRICS = {"spearman": "Spearman", "ndcg@10": "nDCG@10", "sts": "STS"}
#: Fields of a recipe that name files and folders, and those that may name a repository of the hub instead.
_PATHS = ("path", "vectors", "output", "work")
_MAY_BE_HUB = ("model", "dataset", "vision", "source", "tasks")
_DATA_FILES = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".yaml", ".yml", ".npy")
#: What an error offers instead of a name that is not there: names of other files.
_HINT = re.compile(r"[;,]? did you mean .*?\?(?=\s|$)")
#: In an error's quotes: what has spaces in it, or was got, which may be a text or a label of the data.
_OF_THE_DATA = re.compile(r"""(?<!\w)(?:(?<=Got )(['"]).+?\1|(['"])[^'"]*?\s.*?\2)(?!\w)""")
#: In sentence-transformers' card: the names of the trainer's data.
_TRAINING_DATA = re.compile(r"^- \*\*Training Datasets?:\*\*\n(?:[ \t]+- .*\n)+", re.MULTILINE)
#: Letters of an identifier, at most; the hub has 96, and a number and a dimension come behind it.
_IDENTIFIER = 64
#: Letters of an error that a card repeats, at most, and of one that is looked at.
_LONGEST = 300
_LONGEST_READ = 2000


def write_run_card(
    folder: Path,
    recipe: Recipe,
    stages: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    environment: Mapping[str, str],
) -> None:
    """Complete the README.md of a recipe's exported model.

    Folders of this machine are named by their last part alone, since a card is for others.

    Args:
        folder: of the exported model.
        recipe: what made it.
        stages: of the run's state, each with its "name" and, when it is done, the trainer's "metrics".
        results: what `st_distill.evaluation.evaluate` found; empty where nothing was measured.
        environment: label to value.
    """
    name = Path(recipe.output).name
    description = read_json(folder / EXPORT)
    # Dimensions that a projection has and no loss looked at are not recommended.
    trained = trained_dims(recipe)
    told = description | {
        "dims": [dim for dim in description["dims"] if dim == description["dims"][0] or dim in trained]
    }
    prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    # Of the data it knows those of the last stage, and of files their kind ("parquet").
    details = _TRAINING_DATA.sub("", section(folder, "Model Details"))
    sections = {"Model Details": details} if details else {}
    sections |= {"Usage": usage(told, prompts), "Dimensions": dimensions(told, trained=True)}
    if results:
        sections["Results"] = _results(results, recipe)
    sections["Training"] = _training(recipe, stages, environment)
    sections["Licence"] = _licences(recipe)
    sections["Citation"] = _citations(stages)
    tags = ["distillation", *(["matryoshka"] if len(told["dims"]) > 1 else [])]
    replace_sections(
        folder,
        sections,
        # They speak of the last stage alone.
        drop=("Training Details", "Evaluation"),
        opening=_opening(name, recipe, description),
        metadata=_metadata(folder, name, recipe, stages, results, tags),
    )


def _metadata(
    folder: Path,
    name: str,
    recipe: Recipe,
    stages: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    tags: list[str],
) -> dict[str, Any]:
    known = metadata_load(folder / "README.md") or {}
    fields: dict[str, Any] = {
        "tags": list(dict.fromkeys(_one_size([*(known.get("tags") or []), *tags]))),
        "model_name": name,
        "eval_results": evaluation_results(recipe, results) or None,
        "widget": widget(),
    }
    if datasets := [name for name in _datasets(recipe) if not Path(name).exists()]:
        fields["datasets"] = datasets
    if (base := _hub_name(recipe.student.model)) is not None:
        fields["base_model"] = base
    if emissions := [stage["metrics"]["emissions"] for stage in stages if stage.get("metrics", {}).get("emissions")]:
        fields["co2_eq_emissions"] = {
            **emissions[-1],
            **{
                key: sum(entry[key] for entry in emissions)
                for key in ("emissions", "energy_consumed", "hours_used")
                if all(key in entry for entry in emissions)
            },
        }
    return fields


def _one_size(tags: Sequence[str]) -> list[str]:
    """The tags, with the largest alone of those that say how many rows the trainer of a stage had."""
    sizes = [tag for tag in tags if re.fullmatch(r"dataset_size:\d+", tag)]
    largest = max(sizes, key=lambda tag: int(tag.rpartition(":")[2]), default=None)
    return [tag for tag in tags if tag not in sizes or tag == largest]


def evaluation_results(recipe: Recipe, results: Mapping[str, Any]) -> list[EvalResult]:
    """The student's figures, as the hub keeps them: one for each task, metric and dimension, in [-1, 1] or [0, 1]."""
    found: list[EvalResult] = []
    words: dict[str, str] = {}

    def add(task: str, task_name: str, data: str, metric: str, metric_name: str, scores: Mapping[str, Any]) -> None:
        if data not in words:
            words[data] = _distinct(_identifier(data), set(words.values()))
        for dim, value in defined(scores).items():
            if value is not None:
                found.append(
                    EvalResult(
                        task_type=task,
                        task_name=task_name,
                        dataset_type=f"{words[data]}-{dim}",
                        dataset_name=f"{data}, {dim} dimensions",
                        metric_type=metric,
                        metric_name=metric_name,
                        metric_value=float(value),
                    )
                )

    if fidelity := results.get("fidelity"):
        nearest = fidelity["neighbours"]
        task = ("teacher-fidelity", "Teacher fidelity", "Held-out texts")
        add(*task, "spearman", "Spearman of similarities", fidelity["spearman"])
        add(*task, f"overlap@{nearest}", f"Overlap of {nearest} nearest texts", fidelity["overlap"])
    if retrieval := results.get("retrieval"):
        scores = retrieval["scores"]["student"]
        add("information-retrieval", "Retrieval", "Held-out pairs", "cosine_ndcg@10", "nDCG@10", scores["ndcg@10"])
        add(
            "information-retrieval",
            "Retrieval",
            "Held-out pairs",
            "cosine_accuracy@1",
            "Accuracy@1",
            scores["accuracy@1"],
        )
    if similarity := results.get("similarity"):
        scores = similarity["scores"]["student"]
        add(
            "semantic-similarity",
            "Semantic similarity",
            "Scored pairs",
            "spearman_cosine",
            "Spearman",
            scores["spearman"],
        )
    if images := results.get("images"):
        for key in (key for key in images if key.startswith("recall@")):
            add("text-to-image-retrieval", "Text to image", "Held-out images", key, key.capitalize(), images[key])
    for measured in (results.get("tasks") or {}).get("tasks", []):
        values = {dim: by_precision["float32"][measured["metric"]] for dim, by_precision in measured["scores"].items()}
        kind = measured["kind"].replace("_", "-")
        add(kind, kind.replace("-", " ").capitalize(), measured["name"], measured["metric"], measured["metric"], values)
    return found


def _identifier(name: str) -> str:
    """``name`` in the letters that the hub's identifiers have, and no slash: that would name a stranger's repository."""
    return (
        re.sub(r"[-.]*[^a-z0-9.-]+[-.]*|[-.]{2,}", "-", name.lower()).strip("-.")[:_IDENTIFIER].rstrip("-.") or "task"
    )


def _distinct(word: str, others: Container[str]) -> str:
    numbered = (f"{word}-no.{number}" for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([word], numbered) if candidate not in others)


def _opening(name: str, recipe: Recipe, description: Mapping[str, Any]) -> str:
    kinds = "texts and images" if "image" in description["modalities"] else "texts"
    teachers = [
        _model(teacher.model, called=_own_name(teacher)) if teacher.model else escaped(str(teacher.name))
        for teacher in recipe.teachers
    ]
    taught = f", taught by {_listed(teachers)}" if teachers else ""
    layers = recipe.student.layers
    start = _model(recipe.student.model) + ("" if layers is None else f" with {len(layers)} of its layers")
    return (
        f"# {escaped(name)}\n\n"
        f"This is a [sentence-transformers](https://www.SBERT.net) model that maps {kinds} to vectors of "
        f"{description['dims'][0]} dimensions. It is a distilled one: {start}{taught}."
    )


def _results(results: Mapping[str, Any], recipe: Recipe) -> str:
    columns: list[tuple[str, Mapping[str, float | None]]] = []
    for metric, model, scores in quality_columns(results):
        name = _METRICS.get(metric, metric)
        columns.append((name if model is None else f"{name}, {escaped(model)}", scores))
    notes = []
    if fidelity := results.get("fidelity"):
        nearest = fidelity["neighbours"]
        notes.append(
            f"Spearman and overlap@{nearest}: agreement with the teachers on {fidelity['texts']:,} held-out texts, in the "
            f"order of all similarities and in each text's {nearest} nearest."
        )
    if retrieval := results.get("retrieval"):
        notes.append(f"nDCG@10: retrieval with {retrieval['pairs']:,} pairs of a query and its document.")
    if similarity := results.get("similarity"):
        notes.append(f"STS: Spearman's correlation with the scores of {similarity['pairs']:,} pairs.")
    if images := results.get("images"):
        keys = [key for key in images if key.startswith("recall@")]
        columns += [(key, images[key]) for key in keys]
        chances = ", ".join(f"{100 * images[key.replace('recall', 'chance')]:.1f}" for key in keys)
        notes.append(f"{', '.join(keys)}: a caption finds its image among {images['images']:,} (chance: {chances}).")
    rows = [[str(dim), *(percent(scores.get(str(dim))) for _, scores in columns)] for dim in results["dims"]]
    table = markdown_table(["Dimensions", *(header for header, _ in columns)], rows)
    models = results.get("models") or {}
    speeds = []
    for model, figures in models.items():
        rate = figures.get("texts_per_second")
        told = "-" if rate is None else f"{rate:,.0f}"
        speeds.append(
            [escaped(model), f"{figures['parameters'] / 1e6:,.1f} M", f"{figures['megabytes']:,.0f} MB", told]
        )
    parts = ["All times 100.", table, "\n".join(f"- {note}" for note in notes)] if columns else []
    if (measured := results.get("tasks")) and measured["tasks"]:
        headers, tasks = task_table(measured)
        by_task = [
            [escaped(task), kind.replace("_", " "), escaped(metric), *figures] for task, kind, metric, *figures in tasks
        ]
        parts += ["Tasks, times 100, by dimension.", markdown_table(["Task", "Kind", "Metric", *headers], by_task)]
    if speeds:
        parts.append(markdown_table(["Model", "Parameters", "Weights", "Texts per second"], speeds))
    if failed := failures(results):
        lines = [f"- {escaped(entry['name'])}: {escaped(_reason(entry['error'], recipe))}" for entry in failed]
        parts += ["Could not be measured:", "\n".join(lines)]
    return "\n\n".join(parts)


def _training(recipe: Recipe, stages: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> str:
    rows = []
    for spec, state in zip(recipe.stages, stages):
        metrics = state.get("metrics", {})
        steps = metrics.get("steps")
        seconds = metrics.get("train_runtime")
        rows.append(
            [
                escaped(str(spec.name)),
                escaped(_trained(spec)),
                escaped(_losses(spec, recipe.projection)),
                "-" if steps is None else f"{steps:,}",
                f"{spec.effective_batch():,}",
                f"{spec.training_arguments()['learning_rate']:g}",
                "-" if seconds is None else f"{seconds / 60:.1f}",
            ]
        )
    header = ["Stage", "Trains", "Losses and weights", "Steps", "Batch", "Learning rate", "Minutes"]
    parts = [
        f"By st-distill {__version__}, in {len(rows)} stage{'' if len(rows) == 1 else 's'}.",
        markdown_table(header, rows),
    ]
    terms = {term for stage in recipe.stages for term in stage.weights(recipe.projection)}
    if terms:
        *first, last = [phrase for term, phrase in _TERMS.items() if term in terms]
        phrases = f"{', '.join(first)} and {last}" if first else last
        paper = "Jasper and Stella ([arXiv 2412.19048](https://arxiv.org/abs/2412.19048))"
        parts.append(f"The student learns to give {phrases}, as in {paper}.")
    if recipe.teachers:
        teachers = [
            [
                escaped(str(teacher.name)),
                _model(teacher.model) if teacher.model else "given vectors",
                f"{teacher.weight:g}",
            ]
            for teacher in recipe.teachers
        ]
        parts += ["### Teachers", markdown_table(["Teacher", "Model", "Weight"], teachers)]
    data = [f"- Texts: {_data(source)}" for source in recipe.texts]
    data += [f"- Images: {_data(recipe.images)}"] if recipe.images is not None else []
    if data:
        parts += ["### Data", "\n".join(data)]
    emissions = [stage["metrics"]["emissions"] for stage in stages if stage.get("metrics", {}).get("emissions")]
    if emissions:
        energy, carbon = (sum(entry[key] for entry in emissions) for key in ("energy_consumed", "emissions"))
        parts += [
            "### Environmental impact",
            f"Measured by [CodeCarbon](https://github.com/mlco2/codecarbon): {energy:.3f} kWh, {carbon / 1000:.3f} kg of CO2.",
        ]
    parts += ["### Environment", "\n".join(f"- {label}: {escaped(value)}" for label, value in environment.items())]
    return "\n\n".join(parts)


def _trained(stage: Stage) -> str:
    if isinstance(stage.train, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in stage.train.items())
    return ", ".join(stage.train) if isinstance(stage.train, list) else stage.train


def _losses(stage: Stage, projection: Projection | None) -> str:
    terms = [f"{loss} {weight:g}" for loss, weight in stage.weights(projection).items()]
    return ", ".join([*terms, *(objective.loss for objective in stage.also)])


def _licences(recipe: Recipe) -> str:
    """What the licences of all that went into the model say, as far as this machine knows; the choice is the user's."""
    lines = []
    roles = {recipe.student.model: ["the student's start"]}
    for teacher in recipe.teachers:
        if teacher.model is not None:
            roles.setdefault(teacher.model, []).append("a teacher")
    for model, parts in roles.items():
        role = " and ".join(dict.fromkeys(parts))
        lines.append(f"- {_model(model)}, {role}: {_licence_of(model, 'model') or 'not known here'}")
    for dataset in _datasets(recipe):
        lines.append(f"- {_data_link(dataset)}, data: {_licence_of(dataset, 'dataset') or 'not known here'}")
    return "\n".join(["No licence was chosen for this model. What it was made from comes under:", "", *lines])


def _licence_of(name: str, kind: str) -> str | None:
    licence = _card_of(name, kind).get("license")
    return escaped(str(licence)) if licence else None


def _card_of(name: str, kind: str) -> dict[str, Any]:
    """The metadata of a model or dataset, as far as this machine has them."""
    if Path(name).exists():
        card: Any = Path(name) / "README.md"
    else:
        try:
            card = try_to_load_from_cache(name, "README.md", repo_type=kind)
        except HFValidationError:
            return {}
    if not isinstance(card, (str, Path)) or not Path(card).is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except ValueError:
        return {}  # a stranger's card need not be well-formed


def _citations(stages: Sequence[Mapping[str, Any]]) -> str:
    citations: dict[str, str] = {}
    for stage in stages:
        citations |= stage.get("metrics", {}).get("citations", {})
    return "\n\n".join(
        ["### BibTeX", *(f"#### {escaped(name)}\n\n```bibtex\n{text.strip()}\n```" for name, text in citations.items())]
    )


def _datasets(recipe: Recipe) -> list[str]:
    """The datasets that the model learned from: names on the hub, and folders that are there."""
    sources: list[Texts | ImageSource] = [*recipe.texts, *([recipe.images] if recipe.images is not None else [])]
    return list(dict.fromkeys(source.dataset for source in sources if source.dataset is not None))


def _hub_name(name: str) -> str | None:
    """``name``, where it names a repository of the hub: "owner/model", and no folder here."""
    if Path(name).exists() or name.count("/") != 1:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _model(name: str, *, called: str | None = None) -> str:
    """A model of the hub with its address; one of a folder as it is called, and what its card says that it was made from."""
    if hub := _hub_name(name):
        return _link(hub)
    card = _card_of(name, "model")
    label = escaped(str(called or card.get("model_name") or Path(name).name))
    bases = card.get("base_model")
    base = _hub_name(bases) if isinstance(bases, str) else None
    return f"{label} (from {_link(base)})" if base else label


def _own_name(teacher: TeacherSpec) -> str | None:
    """The name that the recipe gives to a teacher; None where it is no more than its folder's."""
    return None if teacher.name == folder_name(Path(str(teacher.model)).name) else teacher.name


def _link(hub: str) -> str:
    return f"[{hub}](https://huggingface.co/{hub})"


def _data_link(name: str) -> str:
    """A data set of the hub with its address; of a folder the last part alone."""
    if _hub_name(name):
        return f"[{escaped(name)}](https://huggingface.co/datasets/{name})"
    return escaped(Path(name).name)


def _data(source: Texts | ImageSource) -> str:
    if source.dataset is not None:
        return _data_link(source.dataset)
    return escaped(Path(source.path).name) if source.path is not None else "given in Python"


def _reason(sentence: str, recipe: Recipe) -> str:
    """Why something was not measured, without the data and the folders of this machine, and not longer than a line or two.

    The recipe's own paths become their last part. What has a slash in it then may be a path, of which nobody can tell where
    it begins, since folders have spaces in their names: it is not repeated.
    """
    elsewhere = "its error is in the log of the run and in its report"
    if len(sentence) > _LONGEST_READ:  # the patterns' time grows with the square
        return elsewhere
    sentence = _HINT.sub("", sentence)
    paths, names = _places(vars(recipe))
    for path in sorted(paths, key=len, reverse=True):
        place = rf"(?<![\w./\\-]){re.escape(path)}"
        sentence = re.sub(rf"{place}[/\\](?=\w)", "", sentence)
        sentence = re.sub(rf"{place}(?![\w-])", lambda _, path=path: Path(path).name, sentence)  # type: ignore[misc]
    sentence = _OF_THE_DATA.sub("'…'", sentence)
    rest = sentence
    for name in names:
        rest = re.sub(rf"(?<![\w./\\-]){re.escape(name)}(?![\w./\\-])", "", rest)
    if "/" in rest or "\\" in rest:
        return elsewhere
    return sentence if len(sentence) <= _LONGEST else sentence[: _LONGEST - 1].rstrip() + "…"


def _places(fields: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """All that has a slash in the fields of a part of a recipe: paths, in every way to write them, and the hub's names."""
    paths: set[str] = set()
    names: set[str] = set()
    for field, value in fields.items():
        if field in ("data", "teacher"):  # Python's own, and texts
            continue
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, (Part, Mapping)):
                more_paths, more_names = _places(entry if isinstance(entry, Mapping) else vars(entry))
                paths |= more_paths
                names |= more_names
            elif isinstance(entry, str) and field in _MAY_BE_HUB and _hub_name(entry) and not _is_file_name(entry):
                names.add(entry)
            elif isinstance(entry, str) and field in (*_PATHS, *_MAY_BE_HUB) and entry:
                written = {entry, str(Path(entry)), str(Path(entry).absolute()), str(Path(entry).resolve())}
                paths |= {path for path in written if "/" in path or "\\" in path}
    return paths, names


def _is_file_name(name: str) -> bool:
    """Whether "owner/name" looks like a file that is not there any more."""
    return Path(name).suffix.lower() in _DATA_FILES or Path(name).parent.is_dir()


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
