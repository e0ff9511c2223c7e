"""Running a pretraining recipe: tokenizer, corpus, model, training, the finished model and what is measured of it."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from st_distill.checksums import CHECKED, EDITABLE, ENCODER, require_whole
from st_distill.errors import MissingExtraError, RecipeError, sentence, writing
from st_distill.files import (
    flush_folder,
    manifest,
    read_signed,
    remove_leftovers,
    replacing_folder,
    write_json,
    write_signed,
    write_text,
)
from st_distill.modules.alibi_checkpoint import is_published_alibi, refuse_published
from st_distill.modules.alibi_config import explain_published
from st_distill.pretrain.check import check_pretraining, load_pretraining
from st_distill.pretrain.corpus import MaskedRows, MaskedStream, Padding, rows_of, write_rows
from st_distill.pretrain.evaluation import held_out_documents, masked_accuracy
from st_distill.pretrain.masking import WordMasker
from st_distill.pretrain.picture import draw_accuracy
from st_distill.pretrain.schema import Encoder, Pretraining
from st_distill.pretrain.tokenizer import Tokens, WordTokenizer, train_tokenizer
from st_distill.pretrain.training import MaskedWordTrainer
from st_distill.recipe.checkpoints import SEAL, drop_damaged, last_checkpoint, seal, what_is_wrong
from st_distill.recipe.conversion import as_mapping
from st_distill.recipe.data import fingerprint, stream_documents
from st_distill.recipe.load import dump_recipe
from st_distill.recipe.models import UnknownModel, read_config, why_not
from st_distill.recipe.processes import Processes, locked
from st_distill.recipe.schema import Texts
from st_distill.recipe.state import (
    RunState,
    determining_arguments,
    flat_fields,
)
from st_distill.teacher.identity import folder_revision

__all__ = ["PretrainResult", "evaluate_encoder", "pretrain"]

logger = logging.getLogger(__name__)

#: Fields of a recipe that the result does not depend on, or that are looked at in another form.
_FREE_FIELDS = (
    "output",
    "work",
    "device_batch",
    "evaluation",
    "arguments",
    "texts",
    *("learning_rate", "steps", "epochs"),
)
_VOCABULARY_MULTIPLE = 64
_ARGUMENT_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 50,
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 1,
    "remove_unused_columns": False,
}


@dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` gives.

    Args:
        output: folder of the finished model: transformers' own files, which ``SentenceTransformer(output)`` reads too.
        results: what `st_distill.pretrain.evaluation.masked_accuracy` measured; empty without an ``evaluation``.
    """

    output: Path
    results: dict[str, Any]


def pretrain(
    recipe: Pretraining | str | os.PathLike[str], *, overrides: Sequence[str] = (), resume: bool = False
) -> PretrainResult:
    """Train an encoder to find masked words, as a recipe says, and measure it at several lengths.

    The work folder (``<output>-run``) keeps the tokenizer, the tokenised corpus, the trainer's checkpoints, the figures
    (``results.json``) and, where matplotlib is installed, their picture (``accuracy.png``). A run that was killed goes on
    at its last checkpoint and ends as it would have without.

    Args:
        recipe: a recipe, its file, or the name of a preset.
        overrides: changes to it, as ``"steps=100"``.
        resume: continue the run that is in the work folder already.

    Raises:
        RecipeError: for a recipe with mistakes, all of them at once.
        ValueError: for a work folder that holds a run that cannot or may not be continued.
        BlockingIOError: where another process runs in the same work folder.
    """
    with Processes() as processes:
        problems = check_pretraining(recipe, overrides, processes=processes.count, here=True)
        if errors := [problem for problem in problems if problem.level == "error"]:
            raise RecipeError(errors)
        if not isinstance(recipe, Pretraining):
            recipe = load_pretraining(recipe, overrides)
        timeout = float(recipe.arguments.get("ddp_timeout", 1800.0))
        processes.join(cpu=bool(recipe.arguments.get("use_cpu")), timeout=timeout)
        with locked(recipe.work_folder, processes):
            return _Pretraining(recipe, processes).run(resume=resume)


def evaluate_encoder(model: str | os.PathLike[str], recipe: Pretraining) -> dict[str, Any]:
    """Measure any masked-language model as the ``evaluation`` of a recipe says, with its own tokenizer.

    Returns:
        What `st_distill.pretrain.evaluation.masked_accuracy` returns.

    Raises:
        ValueError: for a recipe without ``evaluation``, a model that is not there or has no weights for finding masked words,
            a length that it does not take, and a model in the published ALiBi layout, from which transformers would build
            another one.
    """
    name = os.fspath(model)
    require_whole(name)
    config = _loaded(AutoConfig, name)
    if is_published_alibi(config.to_dict()):
        raise ValueError(explain_published(name))
    positions = getattr(config, "max_position_embeddings", None)
    longest = 0 if recipe.evaluation is None else max(recipe.evaluation.lengths)
    if isinstance(positions, int) and longest > positions:
        raise ValueError(
            f"The lengths of the evaluation must be at most the {positions} tokens that '{model}' takes. Got {longest} "
            f"instead: give --set 'evaluation.lengths=[{positions}]', say."
        )
    tokenizer = WordTokenizer(_loaded(AutoTokenizer, name), whole_words=recipe.masking.whole_words)
    # Another kind of model may not know the kernel of the recipe's own.
    kernel = recipe.encoder.attn_implementation if config.model_type == _model_type(recipe.encoder) else None
    how = {"dtype": torch.float32, "attn_implementation": kernel, "output_loading_info": True}
    encoder, report = _loaded(AutoModelForMaskedLM, name, **how)
    if lost := sorted(report["missing_keys"]):
        raise ValueError(
            f"The weights of '{name}' must be those of a masked-language model, {type(encoder).__name__}. They lack "
            f"{len(lost)} of them, '{lost[0]}' for one, and random ones would be measured: name a model with its head."
        )
    on_cpu = bool(recipe.arguments.get("use_cpu")) or not torch.accelerator.is_available()
    device = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
    return _Measuring(recipe, tokenizer).at_all_lengths(encoder.to(device))


def _loaded(kind: Any, name: str, **how: Any) -> Any:
    """What one of transformers' Auto classes loads by a model's name; ValueError with the reason where it cannot."""
    try:
        return kind.from_pretrained(name, **how)
    except (OSError, ValueError) as error:
        raise ValueError(sentence(f"The model cannot be loaded: {why_not(name, error)}")) from error


def _model_type(spec: Encoder) -> str | None:
    """The kind of model that a recipe trains; None where that is out of reach."""
    if spec.config is not None:
        return spec.config.get("model_type")
    try:
        return read_config(str(spec.model), spec.revision).get("model_type")
    except (UnknownModel, ValueError):
        return None


class _Measuring:
    """The evaluation of a recipe; its documents are read and tokenised once."""

    def __init__(self, recipe: Pretraining, tokenizer: WordTokenizer) -> None:
        if recipe.evaluation is None:
            raise ValueError("The recipe must have an 'evaluation' to measure a model by. Got none instead: add one.")
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.lengths, self.batch_tokens = recipe.evaluation.lengths, recipe.evaluation.batch_tokens
        self.documents: list[Tokens] = held_out_documents(
            _documents(recipe.evaluation.texts), tokenizer, length=max(self.lengths)
        )

    def at_all_lengths(self, model: nn.Module) -> dict[str, Any]:
        return self._at(model, self.lengths)

    def at_the_shortest(self, model: nn.Module) -> dict[str, float]:
        """Accuracy and loss at the shortest of the lengths, for the training's log."""
        measured = self._at(model, [min(self.lengths)])["lengths"][str(min(self.lengths))]
        return {name: measured[name] for name in ("accuracy", "loss")}

    def _at(self, model: nn.Module, lengths: Sequence[int]) -> dict[str, Any]:
        given = self.recipe.arguments
        half = torch.bfloat16 if given.get("bf16") else torch.float16 if given.get("fp16") else None
        return masked_accuracy(
            model,
            self.tokenizer,
            _masker(self.recipe, self.tokenizer),
            self.documents,
            lengths=lengths,
            batch_tokens=self.batch_tokens,
            autocast=half,
        )


class _Pretraining:
    def __init__(self, recipe: Pretraining, processes: Processes) -> None:
        self.recipe = recipe
        self.processes = processes
        self.folder = recipe.work_folder

    def run(self, *, resume: bool) -> PretrainResult:
        state = self.processes.by_main(lambda: self._planned(resume)) or RunState(self.folder)
        backend = self._tokenizer()
        tokenizer = WordTokenizer(backend, whole_words=self.recipe.masking.whole_words)
        # Before the training, because documents that are too short must not be found out after it.
        measuring = None if self.recipe.evaluation is None else _Measuring(self.recipe, tokenizer)
        if not state.stages[0]["done"]:
            self._train(state, tokenizer, measuring)
        self.processes.by_main(lambda: self._finish(state.finished_model(0), measuring is not None))
        results = read_signed(self.folder / "results.json")
        return PretrainResult(Path(self.recipe.output), results)

    def _planned(self, resume: bool) -> RunState:
        state = RunState(self.folder)
        if state.exists and not resume:
            raise ValueError(
                f"The folder {self.folder} already holds a run. Continue it with --resume, or choose a new output or work "
                "folder."
            )
        stage = {"name": "pretraining", "folder": ".", "fields": self._fields()}
        try:
            text = dump_recipe(self.recipe)
            state.recipe = hashlib.sha256(text.encode("utf-8")).hexdigest()
        except TypeError:  # it holds texts given in Python
            text, state.recipe = None, None
        state.plan([stage], from_stage=None, can_go_back=False)
        if state.stages[0]["done"]:
            self._clear()
        else:
            drop_damaged(self.folder / "checkpoints")
        if text is not None:
            write_text(self.folder / "recipe.yaml", text)
        else:
            logger.info("The recipe holds Python objects, so it is not kept as recipe.yaml.")
        return state

    def _fields(self) -> dict[str, Any]:
        recipe = as_mapping(self.recipe)
        recipe["encoder"].pop("attn_implementation", None)
        kept = {name: value for name, value in recipe.items() if name not in _FREE_FIELDS}
        arguments = determining_arguments(self.recipe.training_arguments(self.processes.count))
        models = {"encoder": self.recipe.encoder.model, "tokenizer": self.recipe.tokenizer.model}
        data = {part: folder_revision(Path(model)) for part, model in models.items() if model and Path(model).is_dir()}
        return flat_fields({"recipe": kept, "arguments": arguments, "texts": self._fingerprints(), "data": data})

    def _fingerprints(self) -> list[Any]:
        parts = [
            {k: v for k, v in as_mapping(source).items() if k not in ("data", "path")} for source in self.recipe.texts
        ]
        return [{**part, "content": fingerprint(source)} for part, source in zip(parts, self.recipe.texts)]

    # --- what the training needs -------------------------------------------------------------------------------------

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        folder = self.folder / "tokenizer"

        def make() -> None:
            if folder.is_dir():
                # What a model has been trained with cannot be learned again to the last token.
                if (folder / SEAL).is_file() and (what := what_is_wrong(folder)):
                    raise ValueError(
                        f"The tokenizer {folder} is damaged ({what}). Restore it, or pretrain again in a new work folder."
                    )
                return
            spec = self.recipe.tokenizer
            if spec.train is not None:
                logger.info("Tokenizer: learned from the texts.")
                tokenizer = train_tokenizer(
                    itertools.islice(_documents(self.recipe.texts), spec.documents),
                    kind=spec.train,
                    vocab_size=spec.vocab_size or 30_522,
                    lowercase=spec.lowercase,
                )
            else:
                tokenizer = AutoTokenizer.from_pretrained(spec.model, revision=spec.revision)
            _save_whole(tokenizer.save_pretrained, folder)

        self.processes.by_main(make)
        return AutoTokenizer.from_pretrained(folder)

    def _model(self, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        spec = self.recipe.encoder
        attention = {} if spec.attn_implementation is None else {"attn_implementation": spec.attn_implementation}
        set_seed(self.recipe.seed)
        if spec.model is not None:
            model = AutoModelForMaskedLM.from_pretrained(
                spec.model,
                revision=spec.revision,
                trust_remote_code=spec.trust_remote_code,
                dtype=torch.float32,  # not the checkpoint's, which may be half; bf16 and fp16 are for computing
                **attention,
            )
            refuse_published(model, spec.model)
            if len(tokenizer) > model.config.vocab_size:
                raise ValueError(
                    f"The encoder must know the tokenizer's {len(tokenizer)} tokens. Got '{spec.model}' with "
                    f"{model.config.vocab_size}: take its own tokenizer."
                )
            return model
        given = dict(spec.config or {})
        kind = CONFIG_MAPPING[given.pop("model_type")]
        # A multiple of 64 is what matrix units are fastest with, and 30522 tokens become the published 30528 by it.
        size = -(-len(tokenizer) // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
        if given.get("vocab_size", size) < len(tokenizer):
            raise ValueError(
                f"The encoder must know the tokenizer's {len(tokenizer)} tokens. Got {given['vocab_size']} as its vocab_size: "
                "leave it out of encoder.config."
            )
        known = kind().to_dict()
        special = {
            name: value
            for token in ("pad", "cls", "sep", "mask", "bos", "eos")
            if (name := f"{token}_token_id") in known and (value := getattr(tokenizer, name)) is not None
        }
        config = kind(**{"vocab_size": size, **special, **given})
        return AutoModelForMaskedLM.from_config(config, **attention)

    def _data(self, tokenizer: WordTokenizer, rows: int) -> MaskedRows | MaskedStream:
        recipe, masker = self.recipe, _masker(self.recipe, tokenizer)
        if recipe.streaming:
            return MaskedStream(
                lambda: _documents(recipe.texts),
                tokenizer,
                masker,
                max_length=recipe.max_length,
                packing=recipe.packing,
                buffer=recipe.buffer,
                batch_rows=rows * self.processes.count,
                seed=recipe.seed,
            )
        wanted = [recipe.max_length, recipe.packing, recipe.masking.whole_words, self._fingerprints()]
        wanted.append(tokenizer.tokenizer.backend_tokenizer.to_str())
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / "corpus" / f"{digest}.arrow"

        def write() -> Dataset:
            remove_leftovers(path.parent)
            if not path.is_file():
                logger.info("Corpus: tokenised into %s.", path)
            texts = _documents(recipe.texts)
            return write_rows(path, rows_of(texts, tokenizer, max_length=recipe.max_length, packing=recipe.packing))

        written = self.processes.by_main(write)
        return MaskedRows(Dataset.from_file(str(path)) if written is None else written, masker)

    # --- training and its end ----------------------------------------------------------------------------------------

    def _train(self, state: RunState, tokenizer: WordTokenizer, measuring: _Measuring | None) -> None:
        given = self.recipe.training_arguments(self.processes.count)
        if self.processes.on_cpu:
            given["use_cpu"] = True
        args = TrainingArguments(
            output_dir=str(self.folder / "checkpoints"),
            **{**_ARGUMENT_DEFAULTS, "dataloader_pin_memory": torch.cuda.is_available(), **given},
        )
        # Every process reads the stream itself, so that none has to hand out batches of other lengths than its own.
        args.accelerator_config.dispatch_batches = False
        model = self._model(tokenizer.tokenizer)
        positions = getattr(model.config, "max_position_embeddings", None)
        rounded = -(-self.recipe.max_length // 8) * 8
        in_eights = (args.bf16 or args.fp16) and not (isinstance(positions, int) and rounded > positions)
        data = self._data(tokenizer, args.per_device_train_batch_size)
        if isinstance(data, MaskedRows):
            logger.info("Corpus: %d rows.", len(data))
        trainer = MaskedWordTrainer(
            model=model,
            args=args,
            train_dataset=data,
            data_collator=Padding(int(tokenizer.tokenizer.pad_token_id), multiple=8 if in_eights else 1),
            measure=None if measuring is None else measuring.at_the_shortest,
        )
        last = last_checkpoint(self.folder / "checkpoints")
        metrics = trainer.train_in_order(last)
        # By all of them, because each may hold a part of the weights.
        trainer.save_model(str(self.folder / "model.partial"))

        def finish() -> None:
            _set_limit(tokenizer.tokenizer, model, self.recipe.max_length)
            tokenizer.tokenizer.save_pretrained(self.folder / "model.partial")
            (self.folder / "model.partial" / "training_args.bin").unlink(missing_ok=True)
            shutil.rmtree(self.folder / "model", ignore_errors=True)
            (self.folder / "model.partial").rename(self.folder / "model")
            history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
            state.finish(0, {**metrics, "history": history})
            self._clear()

        self.processes.by_main(finish)

    def _clear(self) -> None:
        """Remove what nobody goes on from when the training is done."""
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    def _finish(self, model: Path, measures: bool) -> None:
        """The main process's part of the end: what is measured of the model, its picture, and the finished folder."""
        results: dict[str, Any] = {}
        if measures:
            results = evaluate_encoder(model, self.recipe)
            picture = self.folder / "accuracy.png"
            try:
                draw_accuracy({Path(self.recipe.output).name: results}, picture, trained_at=self.recipe.max_length)
            except MissingExtraError as error:
                logger.warning("There is no picture: %s", error)
        write_signed(self.folder / "results.json", results)
        output = Path(self.recipe.output)
        with replacing_folder(output) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
            write_json(folder / ENCODER, {"results": results, CHECKED: manifest(folder, without=EDITABLE)})
        logger.info("The model is in %s.", output)


def _documents(sources: Sequence[Texts]) -> Iterator[str]:
    return itertools.chain.from_iterable(map(stream_documents, sources))


def _masker(recipe: Pretraining, tokenizer: WordTokenizer) -> WordMasker:
    masking = recipe.masking
    return WordMasker(
        mask_id=int(tokenizer.tokenizer.mask_token_id),
        ordinary_ids=tokenizer.ordinary_ids,
        share=masking.share,
        mask=masking.replace.get("mask", 0.0),
        random=masking.replace.get("random", 0.0),
        seed=recipe.seed,
    )


def _set_limit(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, trained_at: int) -> None:
    """Let the tokenizer say how long a text may be: what the model takes, or what it was trained at."""
    positions = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = positions if isinstance(positions, int) else trained_at


def _save_whole(save: Callable[[str], Any], folder: Path) -> None:
    """Save into a folder, whole or not at all, with its checksums."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(folder):
        save(str(partial))
    seal(partial)
    partial.rename(folder)
    flush_folder(folder.parent)
