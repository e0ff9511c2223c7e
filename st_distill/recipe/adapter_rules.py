"""The rules of a stage's ``lora``: what of peft.LoraConfig a stage can train and merge, and what the encoder has for it."""

from __future__ import annotations

import re
import warnings
from dataclasses import MISSING, fields
from typing import Any

import peft
import regex
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS
from transformers.pytorch_utils import Conv1D

from st_distill.errors import one_line
from st_distill.nearest import any_of, suggest
from st_distill.recipe.adapters import FIELDS, layers_name, lora_config
from st_distill.recipe.arguments import hints_of
from st_distill.recipe.models import encoder_without_weights
from st_distill.recipe.patterns import matching
from st_distill.recipe.run_rules import RunRules
from st_distill.recipe.schema import Stage
from st_distill.recipe.student import encoder_layers
from st_distill.words import FieldPath

__all__ = ["AdapterRules", "parameter_names"]

#: Names that a student may have before those of its encoder's own parts.
_PREFIXES = ("0.model.", "0.auto_model.")
#: Why a field of peft.LoraConfig is none of a recipe's, where more can be said than that adapters have no use for it.
_REFUSED = {
    "bias": "adapters leave biases as they are; train them in a stage of their own, train: [bias]",
    "layers_pattern": "the student's layers are known; leave it out",
    "modules_to_save": "trains copies of whole modules, which are not merged into the encoder; train them in a stage of their "
    "own, by 'train'",
    "task_type": "names the head of a model in peft's own wrapper; a student has no such head, so leave it out",
}
#: Of another library, or of a paper.
_OTHER_NAMES = {"rank": "r", "lora_rank": "r", "lora_r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
#: peft's word for every linear layer.
_ALL_LINEAR = "all-linear"
#: The modules that peft has adapters for.
_ADAPTABLE = (
    *(torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d),
    *(torch.nn.MultiheadAttention, Conv1D),
)


class AdapterRules(RunRules):
    """What a stage may say of adapters."""

    def encoder(self, stage: Stage) -> torch.nn.Module | None:
        """The student's text encoder without weights, for a stage whose student has no vision encoder yet."""
        before = self.recipe.stages[: self.recipe.stages.index(stage)]
        if self.student_model is None or any(earlier.trains_vision for earlier in before):
            return None
        return encoder_without_weights(self.student_model)

    def lora(self, path: FieldPath, stage: Stage) -> None:
        where = (*path, "lora")
        student = self.recipe.student
        in_4bit = student is not None and student.load_in_4bit
        trains_encoder = stage.train not in ("projection", "vision")
        if in_4bit and trains_encoder and stage.lora is None and self.sound((*path, "train"), where):
            self.error(
                where, "weights in 4 bits (student.load_in_4bit) cannot be trained themselves; give lora: {r: 16}"
            )
        if stage.lora is None or not self.sound(where):
            return
        if stage.train in ("projection", "vision"):
            self.error(
                where, f"adapters belong to the text encoder's layers, which train: {stage.train} does not train"
            )
        before = len(self.problems)
        options = self._lora_options(where, stage.lora)
        if options.get("use_dora") and in_4bit:
            self.error((*where, "use_dora"), "cannot be merged into weights that were in 4 bits; leave it out")
        self._lora_layers(where, options)
        # Else what is left of the options may be no mistake by itself.
        if len(self.problems) == before and self.sound((*path, "train")):
            self._lora_targets(where, stage, options)

    def _lora_options(self, where: FieldPath, given: dict[str, Any]) -> dict[str, Any]:
        """The given options that adapters have, of the right type and in range; the others are reported."""
        hints = hints_of(peft.LoraConfig)
        reserved = {
            name: _REFUSED.get(name, "means nothing for adapters that are merged into the encoder; leave it out")
            for name in hints
            if name not in FIELDS and given.get(name) != _defaults()[name]
        }
        reserved |= {name: f"unknown field; did you mean '{ours}'?" for name, ours in _OTHER_NAMES.items()}
        options = self.options(where, given, hints, reserved)
        for name in ("r", "lora_alpha"):
            if name in options and options[name] < 1:
                self.error((*where, name), f"must be at least 1, got {options.pop(name)}")
        if "lora_dropout" in options and not 0 <= options["lora_dropout"] < 1:
            self.error((*where, "lora_dropout"), f"must be from 0 to below 1, got {options.pop('lora_dropout'):g}")
        for name in ("rank_pattern", "alpha_pattern"):
            for key, value in (options.get(name) or {}).items():
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    self.error((*where, name, str(key)), f"must be a whole number of at least 1, got {value}")
        if options.get("init_lora_weights", True) not in (True, "gaussian"):
            self.error(
                (*where, "init_lora_weights"),
                f"must be true or gaussian, got {options.pop('init_lora_weights')}: the other starts change the encoder, or "
                "need data beforehand, and a stage that is stopped and continued would not find that again",
            )
        return options

    def _lora_layers(self, where: FieldPath, options: dict[str, Any]) -> None:
        if options.get("target_modules") in ([], ""):
            self.error((*where, "target_modules"), "must not be empty; leave it out for peft's own choice")
        chosen = options.get("layers_to_transform")
        if chosen == []:
            self.error((*where, "layers_to_transform"), "must not be empty; leave it out for all layers")
        depth = self.student_depth
        if depth is None or chosen is None or not self.sound(("student", "layers")):
            return
        for index, layer in enumerate([chosen] if isinstance(chosen, int) else chosen):
            if not 0 <= layer < depth:
                place = (*where, "layers_to_transform", *([] if isinstance(chosen, int) else [index]))
                self.error(place, f"the student has {depth} layers, so a layer is 0 to {depth - 1}, got {layer}")

    def _lora_targets(self, where: FieldPath, stage: Stage, options: dict[str, Any]) -> None:
        """Whether the encoder has modules for the adapters."""
        encoder, targets, place = self.encoder(stage), options.get("target_modules"), (*where, "target_modules")
        if encoder is None:
            return
        names = [name for name, _ in encoder.named_modules() if name]
        ends = sorted({name.rpartition(".")[2] for name, module in encoder.named_modules() if _is_adaptable(module)})
        before = len(self.problems)
        if isinstance(targets, list):
            for index, target in enumerate(targets):
                if not any(f".{name}".endswith(f".{target}") for name in names):
                    self.error((*place, index), f"the encoder has no '{target}'{suggest(str(target), ends)}")
        elif isinstance(targets, str) and targets.lower() != _ALL_LINEAR:
            try:
                re.compile(targets)
                found = bool(matching(targets, names, whole=True))
            except re.error as error:
                self.error(place, f"'{targets}' is no regular expression: {error}")
            except ValueError as error:  # it takes too long, as it would in peft
                self.error(place, one_line(error))
            else:
                is_end = any(name.rpartition(".")[2] == targets for name in names)
                offer = f"write [{targets}] for every module called so" if is_end else f"give a list of {any_of(ends)}"
                if not found:
                    self.error(
                        place,
                        f"a text is a regular expression for whole names, and '{targets}' is none of a module, such as "
                        f"'{names[-1]}'; {offer}",
                    )
        elif targets is None and encoder.config.model_type not in USUAL_TARGETS:
            self.error(
                where,
                f"peft has no usual target_modules for '{encoder.config.model_type}'; give a list of {any_of(ends)}",
            )
        if isinstance(excluded := options.get("exclude_modules"), str):
            try:
                matching(excluded, names, whole=True)
            except (ValueError, regex.error) as error:
                self.error((*where, "exclude_modules"), one_line(error))
        if len(self.problems) == before:
            self._lora_applies(where, stage, encoder)

    def _lora_applies(self, where: FieldPath, stage: Stage, encoder: torch.nn.Module) -> None:
        """Whether peft takes the adapters, and where to."""
        try:
            layers = encoder_layers(encoder)
        except ValueError:
            return  # a run says so, of whichever part it needs
        name, depth = layers_name(encoder, layers), self.student_depth or len(layers)
        del layers[depth:]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config = lora_config(stage, name, depth, parameter_names(encoder))
                targets = config.target_modules
                if targets is not None and not (isinstance(targets, str) and targets.lower() == _ALL_LINEAR):
                    for inner, module in encoder.named_modules():
                        if inner and check_target_module_exists(config, inner) and not _is_adaptable(module):
                            kind = type(module).__name__
                            self.error(
                                (*where, "target_modules"),
                                f"'{inner}' is a {kind}, and only linear, embedding and convolution layers have adapters",
                            )
                            return
                peft.inject_adapter_in_model(config, encoder)
        except (ValueError, TypeError, ImportError) as error:
            self.error(where, one_line(error))


def parameter_names(encoder: torch.nn.Module) -> list[str]:
    """What a student may call the parameters of its encoder."""
    return [f"{prefix}{name}" for name, _ in encoder.named_parameters() for prefix in _PREFIXES]


def _is_adaptable(module: torch.nn.Module) -> bool:
    return isinstance(module, _ADAPTABLE)


def _defaults() -> dict[str, Any]:
    """The defaults of peft.LoraConfig, None for those that are made anew."""
    return {option.name: None if option.default is MISSING else option.default for option in fields(peft.LoraConfig)}
