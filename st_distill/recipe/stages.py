"""One stage of a recipe: its data, its loss, and one SentenceTransformerTrainer."""

from __future__ import annotations

import copy
import inspect
import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sentence_transformers.sentence_transformer.losses as library_losses
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.util.distributed import get_world_size
from torch import nn
from transformers.trainer_utils import SaveStrategy

from st_distill.card import widget
from st_distill.diagnosis import DiagnosisCallback
from st_distill.errors import writing
from st_distill.losses import JasperDistill, TeacherRows
from st_distill.recipe.adapters import add_adapters, merge_adapters
from st_distill.recipe.checkpoints import drop_damaged, last_checkpoint
from st_distill.recipe.data import LABEL_COLUMNS, load_texts
from st_distill.recipe.processes import Processes
from st_distill.recipe.progress import show_progress_of
from st_distill.recipe.schema import Objective, Projection, Recipe, Stage, Texts
from st_distill.recipe.student import dropout_of, trained_parameters, training_only
from st_distill.recipe.trainer import StageTrainer
from st_distill.sampler import LengthGroupedBatchSampler, SharedBatchSampler, StoreOrderBatchSampler
from st_distill.store import TeacherStore

#: What the trainer is given where neither the recipe nor sentence-transformers says better.
_ARGUMENT_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 1,
}


@dataclass
class StageData:
    """What a stage trains on: datasets by name, the loss of each, and the student's prompts for each one's columns.

    ``shares`` are those of the datasets in the batches, where the recipe gives them; ``skipped`` counts pictures that were
    left out because they cannot be read.
    """

    datasets: dict[str, Dataset]
    losses: dict[str, nn.Module]
    prompts: dict[str, dict[str, str]]
    skipped: int = 0
    shares: dict[str, float] = field(default_factory=dict)


def distill_loss(
    stage: Stage, projection: Projection, model: SentenceTransformer, teacher: TeacherRows, *, match_dims: bool
) -> JasperDistill:
    """The stage's distillation loss; ``match_dims`` where the teacher is the student itself."""
    dims = projection.dims if stage.dims is None else stage.dims
    cosine_dims = stage.heads_of_cosine(projection)
    return JasperDistill(
        model,
        teacher=teacher,
        dims=None if dims == "full" else dims,
        cosine_dims=None if cosine_dims == "full" else cosine_dims,
        cosine_weights=stage.weights_of_cosine(),
        weights=stage.weights(projection),
        margin=stage.margin,
        bits=stage.bits,
        match_dims=match_dims,
        mini_batch_size=stage.mini_batch_size,
        length_parts=stage.length_parts,
        gather_across_devices=_gathers(stage),
    )


def _gathers(stage: Stage) -> bool:
    return stage.gather_across_devices and get_world_size() > 1


def label_texts(sources: list[Texts], store: TeacherStore) -> list[tuple[Dataset, Texts]]:
    """Each source's texts with the store's row numbers as labels."""
    labelled = []
    for source in sources:
        dataset = load_texts(source)
        labelled.append((store.add_labels(dataset, dataset.column_names, roles=source.roles or None), source))
    return labelled


def text_data(
    stage: Stage,
    recipe: Recipe,
    labelled: list[tuple[Dataset, Texts]],
    model: SentenceTransformer,
    teacher: TeacherRows | None,
) -> StageData:
    """The stage's texts, and the loss of each dataset.

    For distillation, sources of as many columns and the same prompts are mixed; others stay datasets of their own, as every
    source of ``also`` does, because the other rows of a batch are what a row is told apart from.

    Raises:
        ValueError: where the stage distils and there is no teacher or no projection.
    """
    data = StageData({}, {}, {})
    if stage.distils:
        if teacher is None or recipe.projection is None:
            raise ValueError(
                f"The stage '{stage.name}' distils, so the recipe needs 'teachers' and a 'projection'. Give them, or set "
                "losses: {} and 'also'."
            )
        loss = distill_loss(stage, recipe.projection, model, teacher, match_dims=False)
        _add_distilled(data, labelled, loss)
    for index, objective in enumerate(stage.also):
        sources = recipe.sources(objective)
        for place, source in enumerate(sources):
            name = f"also-{index + 1}" if len(sources) == 1 else f"also-{index + 1}-{place + 1}"
            data.datasets[name] = load_texts(source, labels=True)
            data.losses[name] = _library_loss(objective, stage, model)
            data.prompts[name] = dict(source.prompts)
            if source.share is not None:
                data.shares[name] = source.share
    return data


def _library_loss(objective: Objective, stage: Stage, model: SentenceTransformer) -> nn.Module:
    loss_class = getattr(library_losses, objective.loss)
    known, options = inspect.signature(loss_class).parameters, dict(objective.options)
    if _gathers(stage) and "gather_across_devices" in known:
        options.setdefault("gather_across_devices", True)
    if stage.mini_batch_size is not None and "mini_batch_size" in known:
        options.setdefault("mini_batch_size", stage.mini_batch_size)
    loss: nn.Module = loss_class(model, **options)
    return loss


def _add_distilled(data: StageData, labelled: list[tuple[Dataset, Texts]], loss: JasperDistill) -> None:
    groups: dict[str, list[Dataset]] = {}
    prompts: dict[str, dict[str, str]] = {}
    for dataset, source in labelled:
        columns = [column for column in dataset.column_names if column != "label"]
        key = json.dumps([len(columns), [source.prompts.get(column) for column in columns]])
        first = groups.setdefault(key, [])
        if first:
            dataset = dataset.rename_columns(
                {old: new for old, new in zip(dataset.column_names, first[0].column_names) if old != new}
            )
            dataset = dataset.cast(first[0].features)
        else:
            prompts[key] = {column: source.prompts[column] for column in columns if column in source.prompts}
        first.append(dataset)
    for index, (key, datasets) in enumerate(groups.items()):
        name = "texts" if index == 0 else f"texts-{index + 1}"
        data.datasets[name] = concatenate_datasets(datasets) if len(datasets) > 1 else datasets[0]
        data.losses[name] = loss
        data.prompts[name] = prompts[key]


def run_stage(
    stage: Stage,
    model: SentenceTransformer,
    data: StageData,
    *,
    trainee: SentenceTransformer,
    title: str,
    folder: Path,
    base: Path,
    seed: int,
    evaluator: BaseEvaluator | None,
    processes: Processes,
    diagnosis: DiagnosisCallback | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, from the folder's last checkpoint where there is one, and save it as ``folder/model``.

    With several processes the saved model is what counts: where each holds a part of the weights (FSDP, ZeRO-3), ``model``
    is of no use afterwards.

    Args:
        stage: the stage.
        model: the student.
        data: what it trains on.
        trainee: what the trainer sees of the student: itself, or its projection behind vectors that are read.
        title: what its progress, and the services that it reports to, call it.
        folder: of the stage.
        base: where the student is saved as it was before the stage.
        seed: of the trainer.
        evaluator: for stages that evaluate while they train.
        processes: that train together; every one of them calls this.
        diagnosis: looks at the training; its findings are among the metrics.

    Returns:
        The trainer's own metrics.

    Raises:
        ValueError: with several processes, for data that are fewer rows than their joint batch.
        Stopped: SIGTERM or Ctrl-C came; there is a checkpoint of the step in which it came.
    """
    checkpoints = folder / "checkpoints"
    processes.by_main(lambda: drop_damaged(checkpoints))
    several = len(data.datasets) > 1
    run_name = f"{folder.parent.parent.name}: {title}"
    steps = _steps(stage, data, processes.count)
    defaults = {**_ARGUMENT_DEFAULTS, "run_name": run_name, "dataloader_pin_memory": torch.cuda.is_available()}
    # Often enough for a short stage to be judged by its log.
    defaults["logging_steps"] = max(1, min(10, steps // 10))
    arguments = {**defaults, **stage.training_arguments()}
    if arguments.get("load_best_model_at_end"):
        # The best checkpoint may be older than the last one, from which a killed run continues.
        arguments["save_total_limit"] = max(2, arguments["save_total_limit"] or 2)
    if stage.group_by_length:
        arguments["batch_sampler"] = LengthGroupedBatchSampler
    if stage.window_shards is not None:
        # Without 'also', every dataset of the stage has the distillation loss and its teacher.
        store = next(iter(data.losses.values())).teacher
        arguments["batch_sampler"] = partial(StoreOrderBatchSampler, store=store, window_shards=stage.window_shards)
    if data.shares and several:
        shares = [data.shares[name] for name in data.datasets]
        arguments["multi_dataset_batch_sampler"] = partial(SharedBatchSampler, shares=shares)
    prompts = data.prompts if several else next(iter(data.prompts.values()))
    if any(data.prompts.values()):
        arguments.setdefault("prompts", prompts)
    if evaluator is not None and arguments.get("load_best_model_at_end"):
        # The trainer's own default is the loss on held-out data, of which there is none.
        arguments.setdefault("metric_for_best_model", evaluator.primary_metric)
        arguments.setdefault("greater_is_better", evaluator.greater_is_better)
    if processes.on_cpu:
        arguments["use_cpu"] = True
    args = SentenceTransformerTrainingArguments(output_dir=str(checkpoints), **{"seed": seed, **arguments})
    _check_rows(data, args.train_batch_size, processes.count, drop_last=args.dataloader_drop_last)
    trained = trained_parameters(model, stage.train)
    _check_kernel(model, trained, args.device)
    if stage.lora is not None:
        add_adapters(model, stage, base)
        # They stand in for the encoder layers they are in; what has none (the projection) is trained itself.
        adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
        trained = {name for name in trained if not name.startswith("0.")} | adapters
    with training_only(model, trained), dropout_of(model, stage.dropout):
        card = trainee.model_card_data
        # What is drawn from the training data for the card would be written to where the stage before was saved.
        card.save_dir = None
        # Where it has examples, none are drawn from the training data.
        card.widget = widget()
        trainer = StageTrainer(
            model=trainee,
            args=args,
            train_dataset=DatasetDict(data.datasets) if several else next(iter(data.datasets.values())),
            loss=data.losses if several else next(iter(data.losses.values())),
            evaluator=evaluator if args.eval_strategy != "no" else None,
            callbacks=None if diagnosis is None else [diagnosis],
        )
        _forget_rows(trainee)
        show_progress_of(trainer, title, *_inputs(stage, data, args.train_batch_size * processes.count))
        is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        whole = copy.deepcopy(model).cpu() if is_sharded and processes.is_main else model
        if trainer.is_fsdp_enabled:
            # The library's trainer cannot load a checkpoint of parts: a stage that is stopped begins anew.
            args.save_strategy = SaveStrategy.NO
        last = None if trainer.is_fsdp_enabled else last_checkpoint(checkpoints)
        with _run_of_its_own():
            metrics = trainer.train_in_order(last)
        if is_sharded:
            weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
            if processes.is_main:  # the only one that is given them all
                whole.load_state_dict(_as_in(model, trainee, weights), strict=trainee is model)
        history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_runtime" in entry]
        metrics |= {"steps": trainer.state.global_step, **_for_card(trainee)}
        metrics["findings"] = [] if diagnosis is None else [finding.as_json() for finding in diagnosis.findings]
        metrics["history"] = [{key: _finite(value) for key, value in entry.items()} for entry in history]
    whole.eval()
    if stage.lora is not None and (processes.is_main or not is_sharded):
        merge_adapters(whole)
    processes.by_main(lambda: save_model(whole, folder / "model"))
    return metrics


@contextmanager
def _run_of_its_own() -> Iterator[None]:
    """A stage is a run of its own to Weights & Biases, whose integration would go on with the run of the stage before."""
    before = getattr(sys.modules.get("wandb"), "run", None)
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and before is None and getattr(wandb, "run", None) is not None:
        wandb.finish()


def _steps(stage: Stage, data: StageData, processes: int) -> int:
    """About how many steps the stage has."""
    arguments = stage.training_arguments()
    if (steps := arguments.get("max_steps", -1)) > 0:
        return int(steps)
    rows = sum(len(dataset) for dataset in data.datasets.values())
    return int(arguments.get("num_train_epochs", 1) * rows / stage.effective_batch(processes))


def _inputs(stage: Stage, data: StageData, batch: int) -> tuple[int, int, str]:
    """How many texts or pictures are in a batch of so many rows and in the data, and what they are called.

    Rows, where the datasets differ in their columns.
    """
    rows = sum(len(dataset) for dataset in data.datasets.values())
    columns = {
        sum(column not in LABEL_COLUMNS for column in dataset.column_names) for dataset in data.datasets.values()
    }
    if len(columns) > 1:
        return batch, rows, "rows"
    count = columns.pop()
    return batch * count, rows * count, "pictures" if stage.trains_vision else "texts"


def _for_card(model: SentenceTransformer) -> dict[str, Any]:
    """What sentence-transformers' trainer collects for the model card, and the next stage's trainer would replace."""
    card = model.model_card_data
    found: dict[str, Any] = {"citations": dict(card.citations)}
    tracker = getattr(card.code_carbon_callback, "tracker", None)
    if getattr(tracker, "_start_time", None) is not None:
        found["emissions"] = card.get_codecarbon_data()["co2_eq_emissions"]
    return found


def _forget_rows(model: SentenceTransformer) -> None:
    """Have the card keep no rows of the training data, which may be private; pictures would be written beside the model."""
    for dataset in model.model_card_data.train_datasets:
        for key in ("examples", "examples_table"):
            dataset.pop(key, None)


def _as_in(
    model: SentenceTransformer, trainee: SentenceTransformer, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The trainee's weights under the names that the model has for them: the two end in the same module."""
    if trainee is model:
        return weights
    return {f"{len(model) - 1}.{name.partition('.')[2]}": value for name, value in weights.items()}


def _check_rows(data: StageData, batch: int, processes: int, *, drop_last: bool) -> None:
    """Several processes train on full batches alone, so that none of them waits for rows that there are not."""
    for name, dataset in data.datasets.items():
        if drop_last and processes == 1 and len(dataset) < batch:
            raise ValueError(
                f"The stage's data must be at least {batch} rows, a batch, because dataloader_drop_last leaves out smaller "
                f"ones. Got {len(dataset)} rows of '{name}' instead: take a smaller batch, or leave dataloader_drop_last out."
            )
        if processes > 1 and len(dataset) < batch * processes:
            raise ValueError(
                f"The stage's data must be at least {batch * processes} rows, the joint batch of {processes} processes with "
                f"{batch} each. Got {len(dataset)} rows of '{name}' instead: take a smaller batch, or fewer processes."
            )


def _check_kernel(model: SentenceTransformer, trained: set[str], device: torch.device) -> None:
    config = getattr(model.transformers_model, "config", None)
    if device.type != "cpu" or getattr(config, "_attn_implementation", None) != "flex_attention":
        return
    if any(name.startswith("0.") for name in trained):
        raise ValueError(
            "The student's attn_implementation must have a backward pass where its encoder is trained. Got flex_attention on a "
            "CPU, which has none there: leave it out, or set sdpa."
        )


def save_model(model: SentenceTransformer, folder: Path) -> None:
    """Save a student in training, whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        model.save(str(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _finite(value: Any) -> Any:
    # JSON has no NaN. The trainer logs one for the terms of a loss that no step since the last log has used.
    return None if isinstance(value, float) and not math.isfinite(value) else value
