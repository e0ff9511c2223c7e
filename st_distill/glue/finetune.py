"""Fine-tuning an encoder on each task by the transformers Trainer, and measuring it on what was held out."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

import st_distill.modules  # noqa: F401 - registers the ALiBi encoder
from st_distill.checksums import require_whole
from st_distill.errors import one_line, sentence
from st_distill.files import describe, in_the_way, read_json, remove_abandoned, replacing_folder, write_json
from st_distill.glue.results import average, figures
from st_distill.glue.tasks import Examples, TaskData, find_tasks
from st_distill.modules.alibi_checkpoint import is_published_alibi
from st_distill.modules.alibi_config import explain_other_model
from st_distill.nearest import any_of, suggest
from st_distill.options import check_distinct, check_whole_number
from st_distill.recipe.arguments import RESERVED, complaints, hints_of, range_complaint
from st_distill.recipe.conversion import convert
from st_distill.recipe.models import why_not
from st_distill.teacher.identity import model_files
from st_distill.words import Found, show_path

__all__ = ["Settings", "glue"]

logger = logging.getLogger(__name__)

#: Tasks that begin with the encoder that MNLI has been learned with, as in the paper (after arXiv 1811.01088).
AFTER_MNLI = ("stsb", "mrpc", "rte")
#: What a kept result may be of that it is not of now, as a message calls each.
_OTHERS = {
    "model": "another model",
    "weights": "other weights of the model",
    "files": "other files of the model",
    "data": "other data",
    "settings": "other settings",
    "after_mnli": "another encoder to begin with",
}
#: Folder that the trainer is given for what it writes, which is removed with all that is in it.
_TRAINING = ".training.st-distill"
_ARGUMENTS: dict[str, Any] = {
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 100,
}
_RESERVED = {
    **RESERVED,
    "num_train_epochs": "set epochs instead",
    "learning_rate": "set learning_rates instead",
    "per_device_train_batch_size": "set batch instead",
    "seed": "set seed instead",
    "save_strategy": "a task is kept when it is finished; remove this",
    "eval_strategy": "a task is measured when it is finished; remove this",
    "remove_unused_columns": "the columns are those of the model; remove this",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How each task is fine-tuned. The defaults are those in use for BERT; the paper chose its own for every task.

    Args:
        epochs: passes over a task's training part.
        steps: at most so many optimiser steps, instead.
        batch: texts (or pairs) of a step on each device.
        learning_rates: peaks to try; the best on the held-out part counts, and is named.
        max_length: tokens that a text or pair is cut at.
        limit: the first so many rows of every part; None for all.
        seed: of everything random.
        arguments: further fields of transformers.TrainingArguments.

    Raises:
        ValueError: for a number out of range, or an argument that is not known or not to be given.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch: int = 32
    learning_rates: Sequence[float] = (2e-5,)
    max_length: int = 128
    limit: int | None = None
    seed: int = 42
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, lowest in (
            ("batch", self.batch, 1),
            ("max_length", self.max_length, 8),
            ("seed", self.seed, 0),
        ):
            check_whole_number(f"'{name}'", value, least=lowest)
        if self.seed >= 2**32:
            raise ValueError(f"The 'seed' must be at most {2**32 - 1}. Got {self.seed} instead.")
        for name, number in (("steps", self.steps), ("limit", self.limit)):
            check_whole_number(f"'{name}'", number, optional=True)
        if not 0 < self.epochs < math.inf:
            raise ValueError(f"The 'epochs' must be a number above 0. Got {self.epochs!r} instead.")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"The 'learning_rates' must be numbers above 0. Got {list(self.learning_rates)} instead.")
        check_distinct("'learning_rates'", list(self.learning_rates))
        known = hints_of(TrainingArguments)
        for name, value in self.arguments.items():
            if name not in known:
                got = f"Got '{name}'{suggest(name, known)}"
                raise ValueError(sentence(f"The 'arguments' must be fields of TrainingArguments. {got}"))
            if name in _RESERVED:
                raise ValueError(f"The 'arguments' must not have '{name}': {_RESERVED[name]}.")
            found: list[Found] = []
            convert(value, known[name], (name,), found)
            for path, message in found:
                told = f"The argument '{show_path(path)}' must be one that TrainingArguments takes: {message}"
                raise ValueError(sentence(told))
            if (complaint := range_complaint(name, value)) is not None:
                raise ValueError(sentence(f"The argument '{name}' {complaint}"))
        for blamed, message in complaints({**_ARGUMENTS, **self.arguments}, TrainingArguments):
            told = f"The 'arguments' must go together. Got a complaint about {blamed or 'them'}: {message}"
            raise ValueError(sentence(told))

    def training_arguments(self, folder: Path, learning_rate: float) -> TrainingArguments:
        given = {"use_cpu": not torch.accelerator.is_available(), **_ARGUMENTS, **self.arguments}
        return TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=self.epochs,
            max_steps=self.steps or -1,
            learning_rate=learning_rate,
            per_device_train_batch_size=self.batch,
            per_device_eval_batch_size=given.pop("per_device_eval_batch_size", self.batch),
            seed=self.seed,
            dataloader_pin_memory=given.pop("dataloader_pin_memory", torch.accelerator.is_available()),
            **given,
        )


def glue(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tasks: Sequence[str] | None = None,
    settings: Settings | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Fine-tune a model on the tasks of GLUE and measure each on its validation part.

    STS-B, MRPC and RTE begin with the encoder fine-tuned on MNLI where that is among the tasks, as in Jina Embeddings 2;
    the others with the model itself. Each finished task is kept in ``output``, so that the same call continues; what
    another model, other data or settings have left there is refused.

    Args:
        model: name or folder of an encoder that transformers has with a sequence classification head.
        data: folder with a folder for each task, or the name of a data set of the hub (``nyu-mll/glue``).
        output: folder for the figures of every task and the model fine-tuned on MNLI.
        tasks: names of tasks; None for all that are in ``data``.
        settings: how each is fine-tuned.
        trust_remote_code: whether code of the model's own may run.

    Returns:
        ``model``; ``tasks``: name to ``score`` (-1 to 1, the mean of the metrics; None where it is not defined), ``metrics``,
        ``examples``, ``learning_rate`` and ``began_with``; and ``average`` of all nine, the two parts of MNLI as one, None
        where a task is missing.

    Raises:
        NotADirectoryError: ``output`` or ``data`` is a file, or a file is in it where a folder is to be.
        IsADirectoryError: a folder is in ``output`` where a task's figures are to be.
        ValueError: before any training, for a model that cannot serve, for mistakes in the data of any task, and for results
            in ``output`` that are of something else.
    """
    settings = Settings() if settings is None else settings
    if (blocking := in_the_way(output)) is not None:
        raise NotADirectoryError(
            f"The 'output' must be a place for a folder. Got {output}, where {blocking} is no folder."
        )
    found = find_tasks(os.fspath(data), tasks)
    loaded = _Model(os.fspath(model), trust_remote_code)
    for task in found:
        task.check(limit=settings.limit)
    run = _Run(loaded, Path(output), settings, found)
    measured: dict[str, Any] = {}
    kept = [run.kept(task) for task in found]  # results of something else are refused now, and not after hours
    for task, before in zip(found, kept, strict=True):
        measured |= run.result(task) if before is None else before
    return {"model": os.fspath(model), "tasks": measured, "average": average(measured)}


class _Model:
    """The model that everything begins with: what can be known before work starts."""

    def __init__(self, name: str, trust_remote_code: bool) -> None:
        self.name = name
        self.how = {"trust_remote_code": trust_remote_code}
        require_whole(name)
        with _opening(name):
            self.config = AutoConfig.from_pretrained(name, **self.how)
            self.tokenizer = AutoTokenizer.from_pretrained(name, **self.how)
        if is_published_alibi(found := self.config.to_dict()) and not trust_remote_code:
            raise ValueError(explain_other_model(found, name))
        head = "AutoModelForSequenceClassification"
        if type(self.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and head not in (
            getattr(self.config, "auto_map", None) or {}
        ):
            raise ValueError(
                f"The model must be an encoder with a sequence classification head. Got '{name}' of the type "
                f"'{self.config.model_type}', for which transformers has none."
            )
        if self.tokenizer.pad_token_id is None:
            raise ValueError(f"The tokenizer of '{name}' must have a padding token. It has none: set one and save it.")
        self.load(name, 2)  # weights that do not fit are found now, and not after hours
        self.weights = _weights(name)
        self.files = _files_beside(name, self.weights)

    def load(self, name: str, labels: int) -> PreTrainedModel:
        """The encoder of a folder with a new head, in float32: in half precision small steps are rounded away."""
        kind = {"problem_type": "regression"} if labels == 1 else {"problem_type": "single_label_classification"}
        with _opening(name), _silent():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                name,
                num_labels=labels,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head of another number of classes
                output_loading_info=True,
                **kind,
                **self.how,
            )
        core = f"{model.base_model_prefix}."
        lost = [key for key in sorted(report["missing_keys"]) if key.startswith(core) and ".pooler." not in key]
        if lost:
            raise ValueError(
                f"The weights of '{name}' must be those of its encoder, {type(model).__name__}. They lack {len(lost)} of them, "
                f"'{lost[0]}' for one: the configuration is of another model."
            )
        misshapen = [found for found in sorted(report["mismatched_keys"]) if found[0].startswith(core)]
        if misshapen:
            key, held, wanted = misshapen[0]
            raise ValueError(
                f"The weights of '{name}' must be of the shapes that its configuration says. {len(misshapen)} of them are not: "
                f"'{key}' is {tuple(held)} where {tuple(wanted)} is said. Mend the configuration, or save the model again."
            )
        return model


class _Run:
    def __init__(self, model: _Model, folder: Path, settings: Settings, tasks: Sequence[TaskData]) -> None:
        self.model = model
        self.folder = folder
        self.settings = settings
        positions = getattr(model.config, "max_position_embeddings", None)
        limits = (settings.max_length, model.tokenizer.model_max_length, positions)
        self.max_length = min(limit for limit in limits if isinstance(limit, int))
        self.mnli = folder / "mnli-model"
        self._mnli_file = folder / "mnli.json"
        self._learns_mnli = any(data.task.name == "mnli" for data in tasks)
        self._data = {data.task.name: data.identity() for data in tasks}
        self._made_by = {
            "model": model.name,
            "weights": model.weights,
            "files": model.files,
            "settings": _plain(settings),
        }

    def kept(self, data: TaskData) -> dict[str, Any] | None:
        """The figures of a task that are in the folder already, by names in the results; None where there are none.

        Raises:
            IsADirectoryError: a folder is where they are to be.
            NotADirectoryError: a file is where the encoder of MNLI is to be.
            ValueError: they, or the encoder that the task begins with, are of something else.
        """
        file, as_now = self.folder / f"{data.task.name}.json", self._identity(data.task.name)
        if file.is_dir():
            raise IsADirectoryError(
                f"The place {file} must be free for figures. It is a folder: remove it or rename it."
            )
        if data.task.name == "mnli" and in_the_way(self.mnli) is not None:
            raise NotADirectoryError(
                f"The place {self.mnli} must be free for a folder. It is a file: remove it or rename it."
            )
        if not file.is_file():
            return None
        kept = read_json(file)
        if others := _others(kept, as_now):
            raise ValueError(
                f"The file {file} must be of this model, data and settings. It is of {others}: remove it, or name another "
                "output folder."
            )
        logger.info("%s: kept from before.", data.task.name)
        return dict(kept["tasks"])

    def _identity(self, name: str) -> dict[str, Any]:
        """All that the figures of a task depend on."""
        after_mnli = self._after_mnli(name)
        learned = _weights(str(self.mnli)) if after_mnli and self._mnli_file.is_file() else {}
        return {**self._made_by, "data": self._data[name], "after_mnli": learned if after_mnli else None}

    def _after_mnli(self, name: str) -> bool:
        """Whether a task begins with the encoder fine-tuned on MNLI, which is there or will be."""
        if name not in AFTER_MNLI:
            return False
        has_figures, has_encoder = self._mnli_file.is_file(), self.mnli.is_dir()
        if self._learns_mnli and not has_figures:
            return True
        if has_figures != has_encoder:
            raise ValueError(
                f"The folder {self.folder} must hold {self._mnli_file.name} and {self.mnli.name} together, for {name} to begin "
                f"with. It has {(self._mnli_file if has_figures else self.mnli).name} alone: remove it, or name another output "
                "folder."
            )
        if has_figures and (others := _others(read_json(self._mnli_file), self._made_by)):
            raise ValueError(
                f"The encoder {self.mnli}, for {name} to begin with, must be of this model and settings. It is of {others}: "
                f"remove it and {self._mnli_file}, or name another output folder."
            )
        return has_encoder

    def result(self, data: TaskData) -> dict[str, Any]:
        """The figures of one task, by names in the results, measured and kept in the folder."""
        name = data.task.name
        start = str(self.mnli) if self._after_mnli(name) else self.model.name
        measured: dict[str, Any] = {}
        for rate in sorted(self.settings.learning_rates):
            logger.info("%s: from %s, learning rate %g.", name, start, rate)
            found, model = self._trial(data, start, rate)
            if measured and _score(found, name) <= _score(measured, name):
                continue
            measured = {part: {**row, "learning_rate": rate, "began_with": start} for part, row in found.items()}
            if name == "mnli":
                self._keep(model, self.mnli)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder, f"{name}.json")
        write_json(self.folder / f"{name}.json", {**self._identity(name), "tasks": measured})
        return measured

    def _keep(self, model: PreTrainedModel, folder: Path) -> None:
        with replacing_folder(folder) as new:
            model.save_pretrained(new)
            self.model.tokenizer.save_pretrained(new)

    def _trial(self, data: TaskData, start: str, rate: float) -> tuple[dict[str, Any], PreTrainedModel]:
        task, limit = data.task, self.settings.limit
        set_seed(self.settings.seed)
        model = self.model.load(start, len(task.classes) or 1)
        folder = self.folder / _TRAINING
        trainer = Trainer(
            model=model,
            args=self.settings.training_arguments(folder, rate),
            train_dataset=_Rows(data.read("train", limit=limit), self.model.tokenizer, self.max_length),
            data_collator=DataCollatorWithPadding(self.model.tokenizer),
        )
        trainer.train()
        measured = {}
        for name, part in task.parts.items():
            rows = _Rows(data.read(part, limit=limit), self.model.tokenizer, self.max_length)
            logits = np.asarray(trainer.predict(rows).predictions)
            predicted = logits.argmax(-1) if task.classes else logits.reshape(-1)
            found = figures(task.metrics, predicted, np.asarray(rows.labels))
            score = found.pop("score")
            measured[name] = {"score": score, "metrics": found, "examples": len(rows)}
        shutil.rmtree(folder, ignore_errors=True)
        return measured, model


class _Rows(Dataset):
    """Tokenised examples as the Trainer takes them."""

    def __init__(self, examples: Examples, tokenizer: Any, max_length: int) -> None:
        self.encoded = tokenizer(*examples.texts, truncation=True, max_length=max_length)
        self.labels = examples.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**{name: values[row] for name, values in self.encoded.items()}, "labels": self.labels[row]}


@contextmanager
def _opening(name: str) -> Iterator[None]:
    """Within this a model's files are read; what the libraries make of broken ones is told with the model's name."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(sentence(f"The model cannot be loaded: {why_not(name, error)}")) from error
    except MemoryError:
        raise
    except Exception as error:  # each file and each configuration is broken in a way of its own
        raise ValueError(
            f"The model '{name}' cannot be loaded, for its files are not as transformers needs them "
            f"({type(error).__name__}: {one_line(error)}). Mend them, or save the model again."
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Within this, transformers does not say that the head is new, which it is meant to be."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _score(measured: Mapping[str, Mapping[str, Any]], name: str) -> float:
    score = measured[name]["score"]
    return -np.inf if score is None else score


def _weights(name: str) -> dict[str, Any]:
    """What tells a model's weights from others: size and checksum of each file of them in its folder; its commit on the hub."""
    folder = Path(name)
    if not folder.is_dir():
        return {"commit": Path(cached_file(name, "config.json")).parent.name}  # as the hub's cache has it
    files = [file for pattern in ("*.safetensors", "pytorch_model*.bin") for file in sorted(folder.glob(pattern))]
    return {file.name: describe(file)._asdict() for file in files}


def _files_beside(name: str, weights: Container[str]) -> dict[str, Any]:
    """The same of the configuration, the tokenizer and what else a model's folder has; empty for one of the hub."""
    folder = Path(name)
    found = [file for file in model_files(folder) if file.parent == folder] if folder.is_dir() else []
    return {file.name: describe(file)._asdict() for file in found if file.name not in weights}


def _others(kept: Mapping[str, Any], as_now: Mapping[str, Any]) -> str:
    """What a kept result is of that it is not of now, for a sentence; empty where it is of the same."""
    told = []
    for name, now in as_now.items():
        if name == "files" and name not in kept:
            continue  # written by an earlier version
        if (before := kept.get(name)) != now:
            details: list[str] = []
            if isinstance(before, dict) and isinstance(now, dict):
                details = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            elif isinstance(before, str):
                details = [before]
            told.append(_OTHERS[name] + (f" ({any_of(details)})" if details else ""))
    return " and ".join(told)


def _plain(settings: Settings) -> dict[str, Any]:
    """As JSON gives it back."""
    return {**asdict(settings), "learning_rates": list(settings.learning_rates), "arguments": dict(settings.arguments)}
