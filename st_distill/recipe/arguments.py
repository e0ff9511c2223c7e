"""What is wrong with training arguments, all of it, without a trainer and without touching a device."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import nn
from transformers import Trainer, get_scheduler
from transformers.integrations import integration_utils as integrations
from transformers.training_args import ParallelMode, TrainingArguments

from st_distill.errors import one_line
from st_distill.nearest import suggest

__all__ = ["HARDWARE", "RESERVED", "compile_complaint", "complaints", "hints_of", "range_complaint"]

RESERVED = {
    "output_dir": "checkpoints go to the recipe's work folder; set work instead",
    "resume_from_checkpoint": "a run continues by itself with --resume; remove this",
    "hub_token": "a token does not belong in a recipe, which is kept and passed on; log in with 'hf auth login' instead",
}
#: They are looked at apart, because whether they can be depends on the machine.
HARDWARE = (
    *("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32", "use_cpu", "deepspeed", "fsdp", "fsdp_config"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "parallelism_config"),
)
#: Ranges that the training arguments do not look at themselves, and that show hours later.
_ABOVE_ZERO = (
    *("learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "logging_steps", "save_steps", "save_total_limit", "eval_accumulation_steps"),
)
_AT_LEAST_ZERO = (
    *("weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "dataloader_num_workers", "eval_steps"),
    *("eval_delay", "seed", "data_seed", "label_smoothing_factor"),
)
#: The words of arguments that are plain text to Python, which look them up when the trainer is made.
_WORDS = {
    option.name: list(option.metadata["choices"])
    for option in fields(SentenceTransformerTrainingArguments)
    if "choices" in option.metadata
}
#: What transformers reports to: whether it can, and what pip installs for it. Others need more than a package, and say so.
_REPORTS: dict[str, tuple[Callable[[], bool], str]] = {
    "azure_ml": (integrations.is_azureml_available, "azureml-sdk"),
    "clearml": (integrations.is_clearml_available, "clearml"),
    "codecarbon": (integrations.is_codecarbon_available, "codecarbon"),
    "dagshub": (integrations.is_dagshub_available, "dagshub mlflow"),
    "dvclive": (integrations.is_dvclive_available, "dvclive"),
    "flyte": (integrations.is_flyte_deck_standard_available, "flytekit flytekitplugins-deck-standard"),
    "mlflow": (integrations.is_mlflow_available, "mlflow"),
    "neptune": (integrations.is_neptune_available, "neptune"),
    "swanlab": (integrations.is_swanlab_available, "swanlab"),
    "tensorboard": (integrations.is_tensorboard_available, "tensorboard"),
    "trackio": (integrations.is_trackio_available, "trackio"),
    "wandb": (integrations.is_wandb_available, "wandb"),
}


def range_complaint(name: str, value: Any) -> str | None:
    """Why an argument cannot be this value, whatever the others are; None where it can."""
    is_text = isinstance(value, str)
    if is_text and name in _WORDS and value not in _WORDS[name]:
        return f"cannot be '{value}'{suggest(value, _WORDS[name], always=True)}"
    if name == "optim_args" and is_text and value and any(part.count("=") != 1 for part in value.split(",")):
        return f"must be name=value, with a comma before the next one, got '{value}'"
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if name == "max_steps" and value != -1 and value < 1:
        return f"must be at least 1, got {value}"
    if name in _ABOVE_ZERO and not value > 0:
        return f"must be above 0, got {value:g}"
    if name in _AT_LEAST_ZERO and not value >= 0:
        return f"must be at least 0, got {value:g}"
    if name in ("adam_beta1", "adam_beta2") and not 0 <= value < 1:
        return f"must be from 0 to below 1, got {value:g}"
    return None


@cache
def _unplaced(cls: type[TrainingArguments]) -> type[TrainingArguments]:
    """Training arguments that validate themselves and leave alone devices, processes and accelerate's global state."""
    nowhere = {
        "_setup_devices": property(lambda self: torch.device("cpu")),
        "device": property(lambda self: torch.device("cpu")),
        "n_gpu": property(lambda self: 0),
        "parallel_mode": property(lambda self: ParallelMode.NOT_PARALLEL),
    }
    return type(cls.__name__, (cls,), nowhere)


def complaints(
    arguments: dict[str, Any], cls: type[TrainingArguments] = SentenceTransformerTrainingArguments
) -> Iterator[tuple[str | None, str]]:
    """What the training arguments say against themselves, and the argument that each complaint is about."""
    arguments = dict(arguments)
    if (complaint := _report_complaint(arguments.get("report_to"))) is not None:
        yield "report_to", complaint
        del arguments["report_to"]
    while (found := _complaint(arguments, cls)) is not None:
        about, complaint = found
        blamed = max(
            (name for name in about or arguments if name in arguments and name in complaint), key=len, default=None
        )
        if blamed is None and about:
            blamed = next((name for name in about if name in arguments), None)
        elif blamed is None:
            alone = (
                name for name in arguments if _complaint({k: v for k, v in arguments.items() if k != name}, cls) is None
            )
            blamed = next(alone, None)
        yield blamed, complaint
        if blamed is None:
            return
        del arguments[blamed]


def _report_complaint(report_to: str | list[str] | None) -> str | None:
    """What the trainer would say of it when everything before the training is done."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    if len(names) == 1 and names[0] in ("all", "none"):
        return None
    known = integrations.INTEGRATION_TO_CALLBACK
    for name in names:
        if name in ("all", "none"):
            return f"'{name}' must stand alone; remove it, or the others"
        if name not in known:
            return f"'{name}' is nothing that transformers reports to{suggest(name, known, always=True)}"
    missing = [_REPORTS[name][1] for name in names if name in _REPORTS and not _REPORTS[name][0]()]
    if not missing:
        return None
    return f"{' and '.join(missing)} must be installed to report to it; run: pip install {' '.join(missing)}"


def compile_complaint(backend: str | None, mode: str | None) -> str | None:
    """Why torch.compile knows no such backend, or this mode of its own one; None where it does."""
    known = [word.value.lower() for word in DynamoBackend]
    if backend is not None and backend.lower() not in known:
        return f"unknown value '{backend}'{suggest(backend, known, always=True)}"
    if mode is not None and backend in (None, "inductor"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.compile(nn.Identity(), mode=mode)
        except RuntimeError as error:
            return one_line(error)
    return None


def _complaint(arguments: dict[str, Any], cls: type[TrainingArguments]) -> tuple[tuple[str, ...], str] | None:
    """The first one, and the arguments that it can be about, the likeliest before; none of them where all can be."""
    about: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = _unplaced(cls)(output_dir="unused", **{"report_to": "none", **arguments})  # type: ignore[arg-type]
            about = ("save_strategy",)
            if made.save_strategy == "best" and made.metric_for_best_model is None:
                raise ValueError(
                    "best needs metric_for_best_model and eval_strategy, which say what is best; give them"
                )
            about = ("optim_args", "optim")
            optimizer = _optimizer(made)
            about = ("lr_scheduler_kwargs", "lr_scheduler_type")
            steps = made.max_steps if made.max_steps > 0 else 1000
            get_scheduler(made.lr_scheduler_type, optimizer, 0, steps, made.lr_scheduler_kwargs)
    except Exception as error:  # they validate themselves by exceptions of several kinds
        return about, one_line(error)
    return None


def _optimizer(made: TrainingArguments) -> torch.optim.Optimizer:
    """One as the trainer makes it, of a model of one layer."""
    model = nn.Sequential(nn.Linear(1, 1))
    if made.optim_target_modules is not None:
        made.optim_target_modules = "all-linear"
    kind, options = Trainer.get_optimizer_cls_and_kwargs(made, model)
    if {"params", "model", "optimizer_dict"} & set(options):  # one that looks at the parameters of the true model
        return torch.optim.SGD(model.parameters(), lr=made.learning_rate)
    return kind(model.parameters(), **options)


@cache
def hints_of(cls: type) -> dict[str, Any]:
    names = {option.name for option in fields(cls)}
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name in names}
