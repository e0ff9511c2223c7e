"""Every mistake of a pretraining recipe at once, before any work starts. No weights are loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from st_distill.checksums import ENCODER, require_whole
from st_distill.errors import Problem, RecipeError, one_line
from st_distill.options import check_path
from st_distill.pretrain.schema import PRETRAINING, SHORTHAND_ARGUMENTS, Pretraining, TokenizerSpec
from st_distill.pretrain.tokenizer import WordTokenizer
from st_distill.recipe.arguments import RESERVED
from st_distill.recipe.conversion import as_mapping
from st_distill.recipe.data import document_column
from st_distill.recipe.load import Document, in_order, read_document
from st_distill.recipe.run_rules import RunRules, attention_dropout
from st_distill.recipe.schema import Texts
from st_distill.words import FieldPath

__all__ = ["check_pretraining", "load_pretraining"]

_RESERVED = {
    **RESERVED,
    "learning_rate": "set the recipe's learning_rate instead",
    "max_steps": "set the recipe's steps instead",
    "num_train_epochs": "set the recipe's epochs instead",
    "per_device_train_batch_size": "set the recipe's batch and device_batch instead",
    "gradient_accumulation_steps": "follows from the recipe's batch and device_batch; remove this",
    "seed": "set the recipe's seed instead",
    "train_sampling_strategy": "the order of the rows follows from the recipe's seed; remove this",
    "label_smoothing_factor": "masked words are learned as they are; remove this",
}


def load_pretraining(path_or_preset: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Pretraining:
    """Read a pretraining recipe, as `st_distill.recipe.load_recipe` reads one of distillation.

    Raises:
        RecipeError: with every syntax error, unknown field, wrong type and value out of range, each with its line.
    """
    recipe, problems = read_document(path_or_preset, overrides, kind=PRETRAINING).build()
    if problems:
        raise RecipeError(problems)
    return recipe


def check_pretraining(
    recipe: Pretraining | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    processes: int = 1,
    here: bool = False,
) -> list[Problem]:
    """What is wrong with a pretraining recipe, by line; an empty list, or one of warnings alone, can run.

    Args:
        recipe: a recipe made in Python, a YAML file, or the name of a preset.
        overrides: assignments ``a.b=value`` for a file or preset.
        processes: how many will train together.
        here: it is this machine that the recipe is to run on; see `st_distill.recipe.check`.
    """
    if isinstance(recipe, Pretraining):
        document = Document(as_mapping(recipe), kind=PRETRAINING)
        if problems := document.credentials():
            return problems
    else:
        check_path("recipe", recipe, wanted="a Pretraining, a YAML file or the name of a preset")
        try:
            document = read_document(recipe, overrides, kind=PRETRAINING)
        except RecipeError as error:
            return error.problems
    built, problems = document.build()
    rules = _Rules(document, built, problems)
    rules.here = here
    rules.run(processes)
    return in_order(problems)


class _Rules(RunRules):
    """The rules that need more than one field, files or a model's configuration."""

    recipe: Pretraining  # type: ignore[assignment]

    def run(self, processes: int) -> None:
        recipe = self.recipe
        encoder, tokenizer = recipe.encoder, recipe.tokenizer
        self.run_folders(
            description=ENCODER,
            read=[part.model for part in (encoder, tokenizer) if part is not None],
        )
        config = self.encoder()
        positions = getattr(config, "max_position_embeddings", None)
        positions = positions if isinstance(positions, int) else None
        self.attention(config)
        self.tokenizer(config)
        for index, texts in enumerate(recipe.texts or []):
            self.documents(("texts", index), texts)
        if positions is not None and recipe.max_length > positions and self.sound(("max_length",)):
            self.error(("max_length",), f"the encoder takes at most {positions} tokens, got {recipe.max_length}")
        self.evaluation(positions)
        self.duration()
        self.batch(processes)
        self.arguments()

    def encoder(self) -> PretrainedConfig | None:
        """Checks the encoder and returns its configuration, if that can be known."""
        encoder, path = self.recipe.encoder, ("encoder",)
        if encoder is None or not self.one_of(path, encoder, ("model", "config")):
            return None
        if encoder.model is not None:
            facts = self.model(path, encoder.model, encoder.revision, encoder.trust_remote_code)
            return None if facts is None else facts.config
        self.unused(path, encoder, "a configuration", ("revision", "trust_remote_code"))
        config = self.configuration((*path, "config"), encoder.config or {})
        if config is None:
            return None
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            message = f"transformers has no masked-language model of the type '{config.model_type}'; bert is one"
            self.error((*path, "config", "model_type"), message)
        return config

    def attention(self, config: PretrainedConfig | None) -> None:
        encoder, path = self.recipe.encoder, ("encoder", "attn_implementation")
        if encoder is None or encoder.attn_implementation is None or not self.sound(path, ("encoder", "config")):
            return
        self.kernel(path, encoder.attn_implementation, config)
        if encoder.attn_implementation != "flex_attention":
            return
        self.flex_backward(path, use_cpu=self.recipe.arguments.get("use_cpu") is True)
        if share := attention_dropout(config):
            name = "attention_probs_dropout_prob"
            if encoder.config is not None and hasattr(config, name):
                message = f"flex_attention has no dropout, got {share:g}; set {name}: 0"
                self.error(("encoder", "config", name), message)
            else:
                self.error(path, f"flex_attention has no dropout, and the encoder has {share:g}; set sdpa")

    def tokenizer(self, config: PretrainedConfig | None) -> None:
        spec, path = self.recipe.tokenizer, ("tokenizer",)
        if spec is None or not self.one_of(path, spec, ("model", "train")):
            return
        if spec.train is not None:
            self.unused(path, spec, "a tokenizer that is trained", ("revision",))
            if spec.train == "bytes":
                self.unused(path, spec, "a byte-level tokenizer", ("lowercase",))
            if spec.vocab_size is not None:  # else no more than it turns out to need
                self.vocabulary((*path, "vocab_size"), spec.vocab_size, config)
            return
        self.unused(path, spec, "a model's tokenizer", ("vocab_size", "lowercase", "documents"))
        self.given_tokenizer((*path, "model"), spec, config)

    def vocabulary(self, path: FieldPath, tokens: int, config: PretrainedConfig | None) -> None:
        """Whether the encoder has a vector for each token of the tokenizer at ``path``; without a size of its own it has."""
        encoder, where = self.recipe.encoder, ("encoder", "config")
        known = getattr(config, "vocab_size", None)
        if encoder is None or not isinstance(known, int) or known >= tokens or not self.sound(path, where):
            return
        if encoder.model is not None:
            message = f"the encoder '{encoder.model}' knows {known} tokens, got {tokens}; take its own tokenizer"
            self.error(path, message)
        elif "vocab_size" in (encoder.config or {}):
            message = f"the tokenizer has up to {tokens} tokens, got {known}; leave it out for as many as that has"
            self.error((*where, "vocab_size"), message)

    def given_tokenizer(self, path: FieldPath, spec: TokenizerSpec, config: PretrainedConfig | None) -> None:
        masking = self.recipe.masking
        try:
            require_whole(str(spec.model))
        except ValueError as error:
            self.error(path, one_line(error))
            return
        try:
            found = AutoTokenizer.from_pretrained(spec.model, revision=spec.revision)
        except Exception as error:  # files of any shape, and whatever a network does
            if Path(str(spec.model)).is_dir():
                self.error(path, f"'{spec.model}' holds no tokenizer: {one_line(error)}")
            else:
                self.warn(path, f"'{spec.model}' is not in the local cache, and could not be looked up: not checked")
            return
        try:
            WordTokenizer(found, whole_words=masking is None or masking.whole_words)
        except ValueError as error:
            self.error(path, one_line(error))
        self.vocabulary(path, len(found), config)

    def documents(self, path: FieldPath, texts: Texts) -> None:
        before = len(self.problems)
        if self.texts(path, texts) is None and len(self.problems) > before:
            return
        self.unused(path, texts, "pretraining", ("roles", "prompts", "share"))
        if isinstance(texts, Texts) and self.sound((*path, "columns")):
            try:
                document_column(texts)
            except ValueError as error:
                self.error(path, one_line(error))

    def evaluation(self, positions: int | None) -> None:
        evaluation, path = self.recipe.evaluation, ("evaluation",)
        if evaluation is None:
            return
        for index, texts in enumerate(evaluation.texts or []):
            self.documents((*path, "texts", index), texts)
        if self.sound((*path, "lengths")):
            for index, length in enumerate(evaluation.lengths):
                if positions is not None and length > positions:
                    message = f"the encoder takes at most {positions} tokens, got {length}; leave it out"
                    self.error((*path, "lengths", index), message)

    def duration(self) -> None:
        recipe = self.recipe
        if not self.sound(("steps",), ("epochs",), ("arguments",), ("streaming",)):
            return
        if recipe.streaming and recipe.epochs is not None:
            self.error(("epochs",), "the passes over a stream are not known beforehand; give steps")
        elif recipe.steps is not None and recipe.epochs is not None:
            self.error(("epochs",), "steps and epochs are both given; remove one of them")
        elif recipe.steps is None and recipe.epochs is None:
            self.error((), "says not how long to train; give steps or epochs")
        if not recipe.streaming and self.sound(("buffer",)):
            self.unused((), recipe, "a corpus that is not streamed", ("buffer",))
        workers = recipe.arguments.get("dataloader_num_workers", 0)
        if recipe.streaming and recipe.packing and isinstance(workers, int) and workers > 1:
            self.error(("arguments", "dataloader_num_workers"), f"a packed stream is read by one worker, got {workers}")

    def batch(self, processes: int) -> None:
        if not self.sound(("batch",), ("device_batch",)) or self.recipe.batch is None:
            return
        try:
            self.recipe.rows_per_device(processes)
        except ValueError as error:
            self.error(("device_batch",) if self.recipe.device_batch is not None else ("batch",), one_line(error))

    def arguments(self) -> None:
        where = ("arguments",)
        if not self.sound(where):
            return
        given, before = self.recipe.arguments, len(self.problems)
        good = self.known_arguments(where, given, TrainingArguments, _RESERVED)
        held_out = self.recipe.evaluation is not None
        self.evaluates(where, good, given, held_out=held_out, metrics=["loss", "accuracy"])
        for short, argument in SHORTHAND_ARGUMENTS.items():
            if getattr(self.recipe, short) is not None and self.sound((short,)):
                good[argument] = getattr(self.recipe, short)
        self.joint_arguments(
            where,
            good,
            TrainingArguments,
            given=given,
            places={argument: (short,) for short, argument in SHORTHAND_ARGUMENTS.items()},
            reported={problem.path for problem in self.problems[before:] if problem.level == "error"},
        )
