"""The rules of a recipe's stages: what is trained, for how long, on which losses, by which arguments."""

from __future__ import annotations

import inspect
import warnings
from enum import Enum
from functools import cache
from itertools import product

import torch
from sentence_transformers.sentence_transformer import losses as standard_losses
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

from st_distill.errors import one_line
from st_distill.nearest import suggest
from st_distill.recipe.adapter_rules import AdapterRules, parameter_names
from st_distill.recipe.arguments import RESERVED, range_complaint
from st_distill.recipe.columns import Kind
from st_distill.recipe.data import LABEL_COLUMNS
from st_distill.recipe.patterns import matching, pattern_error
from st_distill.recipe.schema import SHORTHAND_ARGUMENTS, STAGE_DEFAULTS, Objective, Stage, Texts
from st_distill.recipe.sources import columns_of
from st_distill.words import FieldPath, show_path

__all__ = ["StageRules"]

_RESERVED = {
    **RESERVED,
    "neftune_noise_alpha": "the trainer of sentence-transformers cannot add noise to a student's embeddings; remove this",
}
#: What the names of a projection's parameters are made of.
_PLACES, _HEADS, _KINDS = range(1, 6), range(12), ("weight", "bias")


class StageRules(AdapterRules):
    """What a stage may say, beside the projection, the student and the other stages."""

    def stages(self) -> None:
        stages = self.recipe.stages or []
        self.unique("stages", [stage.name for stage in stages])
        seen_vision = False
        for index, stage in enumerate(stages):
            path: FieldPath = ("stages", index)
            if seen_vision and not stage.trains_vision and self.sound((*path, "train")):
                self.error((*path, "train"), "stages that train texts must stand before those that train vision")
            seen_vision = seen_vision or stage.trains_vision
            self.stage(path, stage)
        if self.distils:
            for field, what in (("teachers", "a teacher to learn from"), ("texts", "texts to learn on")):
                if not getattr(self.recipe, field) and self.sound((field,)):
                    alone = "; a stage of 'also' alone says losses: {}" if any(stage.also for stage in stages) else ""
                    self.error((field,), f"a stage with distillation losses needs {what}{alone}")
        if self.recipe.projection is None and self.sound(("projection",)):
            for index, stage in enumerate(stages):
                if stage.distils or stage.train == "projection":
                    self.error(("stages", index), "needs the recipe's 'projection', such as {dims: [512, 256]}")

    @property
    def distils(self) -> bool:
        """Whether a stage learns texts from the teachers."""
        return any(stage.distils and not stage.trains_vision for stage in self.recipe.stages or [])

    def stage(self, path: FieldPath, stage: Stage) -> None:
        self.train(path, stage)
        self.duration(path, stage)
        self.stage_dims(path, stage)
        self.lora(path, stage)
        for index, objective in enumerate(stage.also or []):
            self.objective((*path, "also", index), objective)
        self.shares(path, stage)
        if self.sound((*path, "losses"), (*path, "also")) and not stage.distils and not stage.also:
            self.error(
                (*path, "losses"), "the stage has nothing to learn from: give a loss a weight above 0, or 'also'"
            )
        self.terms(path, stage)
        self.batch(path, stage)
        self.arguments(path, stage)
        self.rates(path, stage)

    def train(self, path: FieldPath, stage: Stage) -> None:
        if not self.sound((*path, "train")):
            return
        where = (*path, "train")
        if isinstance(stage.train, dict):
            depth, count = self.student_depth, stage.train.get("last_layers")
            if depth is not None and count is not None and count > depth and self.sound(("student", "layers")):
                self.error((*where, "last_layers"), f"the student has {depth} layers, got {count}")
        if stage.trains_vision:
            if self.recipe.images is None and self.sound(("images",)):
                self.error(where, "training vision needs 'images'")
            if stage.also:
                self.error(
                    (*path, "also"), "the text encoder is frozen while vision is trained; give this to another stage"
                )
        elif self.recipe.images is not None and isinstance(stage.train, list) and not self.recipe.texts:
            self.error(where, "only a stage with train: vision learns from images")
        elif isinstance(stage.train, list) and (encoder := self.encoder(stage)) is not None:
            names = _student_names(encoder)
            for index, pattern in enumerate(stage.train):
                try:
                    if not matching(pattern, names):
                        self.error(
                            (*where, index), f"'{pattern}' is found in no parameter's name, such as '{names[0]}'"
                        )
                except ValueError as error:
                    self.error((*where, index), str(error))

    def duration(self, path: FieldPath, stage: Stage) -> None:
        shorts = [(*path, short) for short in SHORTHAND_ARGUMENTS]
        if not self.sound(*shorts, (*path, "arguments")):
            return
        for short, argument in SHORTHAND_ARGUMENTS.items():
            if getattr(stage, short) is not None and argument in stage.arguments:
                self.error((*path, "arguments", argument), f"means the same as '{short}'; remove one of them")
        given = [
            short
            for short in ("steps", "epochs")
            if getattr(stage, short) is not None or SHORTHAND_ARGUMENTS[short] in stage.arguments
        ]
        if len(given) == 2:
            where = (*path, "epochs") if stage.epochs is not None else (*path, "arguments", "num_train_epochs")
            self.error(where, "steps and epochs are both given; remove one of them")
        elif not given:
            self.error(path, "says not how long to train; give steps or epochs")

    def stage_dims(self, path: FieldPath, stage: Stage) -> None:
        if self.recipe.projection is None or not self.recipe.projection.dims or not self.sound(("projection", "dims")):
            return
        for field in ("dims", "cosine_dims"):
            value = getattr(stage, field)
            if not isinstance(value, list) or not self.sound((*path, field)):
                continue
            for index, dim in enumerate(value):
                if dim not in self.recipe.projection.dims:
                    shown = ", ".join(map(str, self.recipe.projection.dims))
                    self.error((*path, field, index), f"{dim} is not among the projection's dims ({shown})")

    def terms(self, path: FieldPath, stage: Stage) -> None:
        """Fields that are about a term which the stage does not have."""
        if not stage.distils or not self.sound((*path, "losses")):
            return
        terms = stage.weights(self.recipe.projection)
        relations = "similarity" in terms or "triplet" in terms
        idle = {
            "margin": ("triplet", stage.margin != Stage.margin and "triplet" not in terms),
            "bits": ("similarity or triplet", stage.bits and not relations),
            "cosine_dims": ("cosine", stage.cosine_dims is not None and "cosine" not in terms),
            "cosine_weights": ("cosine", stage.cosine_weights is not None and "cosine" not in terms),
            "dims": ("similarity or triplet", None not in (stage.dims, stage.cosine_dims) and not relations),
        }
        for field, (term, is_idle) in idle.items():
            if is_idle and self.sound((*path, field)):
                given = ", ".join(f"{name}: {weight:g}" for name, weight in terms.items())
                self.warn(
                    (*path, field), f"has no effect where losses are {{{given}}}; add {term} to them, or leave it out"
                )

    def batch(self, path: FieldPath, stage: Stage) -> None:
        if not self.sound((*path, "batch"), (*path, "arguments"), (*path, "losses")):
            return
        where = (*path, "batch") if stage.batch is not None else (*path, "arguments", "per_device_train_batch_size")
        batch = stage.batch if stage.batch is not None else stage.arguments.get("per_device_train_batch_size")
        relations = [name for name in ("similarity", "triplet") if name in stage.weights(self.recipe.projection)]
        if batch == 1 and relations:
            self.error(
                where, f"{' and '.join(relations)} compare the rows of a batch, so it must have at least 2 of them"
            )
        elif batch == 2 and "triplet" in relations:
            self.warn(where, "the triplet term is always 0 in a batch of 2 rows; take at least 3")
        ours = [name for name in ("group_by_length", "window_shards") if getattr(stage, name)]
        if ours and "batch_sampler" in stage.arguments:
            self.error(
                (*path, "arguments", "batch_sampler"),
                f"cannot stand beside {ours[0]}, which makes the batches; keep one",
            )
        if isinstance(batch, int) and stage.mini_batch_size is not None and stage.mini_batch_size >= batch:
            self.warn(
                (*path, "mini_batch_size"),
                f"is not below the batch of {batch} rows, so it saves no memory and costs a second forward pass; leave it out",
            )
        elif (
            stage.mini_batch_size is not None
            and list(stage.weights(self.recipe.projection)) == ["cosine"]
            and not stage.also
        ):
            self.warn(
                (*path, "mini_batch_size"),
                "costs a second forward pass, which the cosine alone does not need, as it looks at each text by itself; take "
                "a smaller batch with arguments: {gradient_accumulation_steps: ...}, whose gradient is the same",
            )
        if stage.length_parts is not None and stage.mini_batch_size is not None:
            self.warn(
                (*path, "length_parts"), "has no effect beside mini_batch_size, which cuts the batch; leave it out"
            )
        if stage.window_shards is not None:
            for other in ("group_by_length", "also"):
                if getattr(stage, other):
                    self.error(
                        (*path, "window_shards"), f"orders the batches by the store, which leaves no room for '{other}'"
                    )
        self.cached(path, stage)
        if batch == 1 and any("Negatives" in str(objective.loss) for objective in stage.also or []):
            self.error(where, "a loss with in-batch negatives needs a batch of at least 2 rows")

    def cached(self, path: FieldPath, stage: Stage) -> None:
        """A stage of ``also`` alone gives its ``mini_batch_size`` to the losses that know what it is."""
        losses = [_standard_losses().get(objective.loss) for objective in stage.also or []]
        if stage.mini_batch_size is None or stage.distils or not losses or None in losses:
            return
        if not any("mini_batch_size" in inspect.signature(loss).parameters for loss in losses if loss is not None):
            names = ", ".join(sorted({objective.loss for objective in stage.also}))
            offer = suggest(f"Cached{stage.also[0].loss}", _standard_losses())
            self.error((*path, "mini_batch_size"), f"means nothing for {names}{offer}")

    def shares(self, path: FieldPath, stage: Stage) -> None:
        """All sources of a stage have a share of its batches, or none has."""
        places: list[tuple[FieldPath, Texts]] = []
        for index, objective in enumerate(stage.also or []):
            where: FieldPath = (*path, "also", index, "texts") if objective.texts else ("texts",)
            places += [((*where, place), texts) for place, texts in enumerate(self.recipe.sources(objective) or [])]
        if stage.distils and not stage.trains_vision:
            places += [(("texts", place), texts) for place, texts in enumerate(self.recipe.texts or [])]
        shared = [place for place, texts in places if texts.share is not None]
        if not shared:
            return
        if stage.distils:
            self.error((*shared[0], "share"), "means nothing in a stage with distillation losses; remove it")
        elif len(shared) < len(places):
            without = next(place for place, texts in places if texts.share is None)
            self.error(
                without, f"the stage's other sources have a 'share', such as {show_path(shared[0])}; give it one"
            )
        elif "multi_dataset_batch_sampler" in stage.arguments:
            where = (*path, "arguments", "multi_dataset_batch_sampler")
            self.error(where, "the 'share' of each source orders the batches already; remove one of them")

    def columns(self, path: FieldPath, texts: Texts, kinds: dict[str, Kind] | None, loss: str) -> None:
        """Whether a loss finds its columns, as far as that can be told from outside."""
        where = (*path, "columns") if texts.columns is not None else path
        for name, kind in (kinds or {}).items():
            if kind == "number" and texts.columns is not None and name not in LABEL_COLUMNS:
                self.error(
                    where,
                    f"the trainer takes a column of numbers for labels only if it is called {' or '.join(LABEL_COLUMNS)}, "
                    f"got '{name}'; rename it",
                )
        found = [name for name, kind in (kinds or {}).items() if kind == "text"]
        if kinds is not None and len(found) < 2 and "Negatives" in str(loss) and self.sound(path):
            self.error(
                where,
                f"{loss} needs a column of texts and one of what belongs to each, got {', '.join(found) or 'none'}",
            )

    def objective(self, path: FieldPath, objective: Objective) -> None:
        for index, texts in enumerate(objective.texts or []):
            place = (*path, "texts", index)
            self.columns(place, texts, self.texts(place, texts, numbers=True, learnt=True), objective.loss)
        if not objective.texts and self.sound((*path, "texts"), ("texts",)):
            if not self.recipe.texts:
                self.error(("texts",), "a loss of 'also' without texts of its own learns from the recipe's; give them")
            for index, texts in enumerate(self.recipe.texts or []):
                self.columns(("texts", index), texts, _columns_of(texts), objective.loss)
        if not objective.loss or not self.sound((*path, "loss")):
            return
        known = _standard_losses()
        loss = known.get(objective.loss)
        if loss is None:
            reason = suggest(objective.loss, known)
            if objective.loss in standard_losses.__all__:
                reason = ", or one that needs a model or another loss as its argument, which a recipe cannot give"
            self.error((*path, "loss"), f"'{objective.loss}' is no loss of sentence-transformers{reason}")
            return
        if not self.sound((*path, "options")):
            return
        parameters = list(inspect.signature(loss).parameters.values())[1:]
        names = [parameter.name for parameter in parameters]
        for name in objective.options:
            if name not in names:
                offer = suggest(name, names, always=True)
                self.error((*path, "options", name), f"{objective.loss} has no such argument{offer}")
        for parameter in parameters:
            if parameter.default is inspect.Parameter.empty and parameter.name not in objective.options:
                self.error(path, f"{objective.loss} needs options: {{{parameter.name}: ...}}")
        if "Negatives" in objective.loss and self.sound((*path, "options")):
            # Those of this family look at their options as they are made, and at the model hardly at all.
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    loss(torch.nn.Sequential(torch.nn.Identity()), **objective.options)
            except (ValueError, TypeError) as error:
                self.error((*path, "options"), one_line(error))

    # --- training arguments ------------------------------------------------------------------------------------------

    def arguments(self, path: FieldPath, stage: Stage) -> None:
        where = (*path, "arguments")
        if not self.sound(where):
            return
        before = len(self.problems)
        good = self.known_arguments(where, stage.arguments, SentenceTransformerTrainingArguments, _RESERVED)
        held_out = self.recipe.evaluation is not None and self.recipe.evaluation.texts is not None
        self.evaluates(where, good, stage.arguments, held_out=held_out, metrics=self.metrics())
        for short, argument in SHORTHAND_ARGUMENTS.items():
            if getattr(stage, short) is not None and argument not in stage.arguments and self.sound((*path, short)):
                good[argument] = getattr(stage, short)
        self.joint_arguments(
            where,
            {**STAGE_DEFAULTS, **good},
            SentenceTransformerTrainingArguments,
            given=stage.arguments,
            places={argument: (*path, short) for short, argument in SHORTHAND_ARGUMENTS.items()},
            reported={problem.path for problem in self.problems[before:] if problem.level == "error"},
        )

    def metrics(self) -> list[str]:
        """The names of what the evaluation during training measures; none where the width is not known."""
        projection = self.recipe.projection
        if projection is None or not projection.dims or not self.sound(("projection", "dims")):
            return []
        overlaps = [f"overlap{neighbours}" for neighbours in range(10, 0, -1)]
        return [f"{name}_{max(projection.dims)}" for name in ("spearman", "cka", "cosine", *overlaps)]

    def rates(self, path: FieldPath, stage: Stage) -> None:
        """Learning rates of their own for parameters that are named by patterns, as the trainer will look for them."""
        where, given = (*path, "arguments", "learning_rate_mapping"), stage.arguments.get("learning_rate_mapping")
        if isinstance(given, str):
            self.error(where, "expected a mapping of patterns to rates, got text; write {'embeddings': 1e-5}")
        if not isinstance(given, dict) or not self.sound(where):
            return
        encoder = self.encoder(stage)
        names = [] if encoder is None else [f"model.{name}" for name in _student_names(encoder)]
        # A stage with more than these has parameters whose names are not known here.
        all_known = encoder is not None and not (stage.also or stage.lora or stage.trains_vision)
        for pattern, rate in given.items():
            if (complaint := range_complaint("learning_rate", rate)) is not None:
                self.error((*where, pattern), complaint)
            if (why := pattern_error(pattern)) is not None:
                self.error((*where, pattern), f"is not a regular expression: {why}")
                continue
            try:
                if not matching(pattern, names) and all_known:
                    message = f"'{pattern}' is found in no parameter's name, such as '{names[0]}'"
                    self.error((*where, pattern), message)
            except ValueError as error:
                self.error((*where, pattern), str(error))


def _student_names(encoder: torch.nn.Module) -> list[str]:
    """What a student may call its parameters, those of its projection among them."""
    heads = [f"{place}.linears.{head}.{kind}" for place, head, kind in product(_PLACES, _HEADS, _KINDS)]
    return parameter_names(encoder) + heads


def _columns_of(texts: Texts) -> dict[str, Kind] | None:
    """The columns of a source whose own mistakes are reported elsewhere."""
    try:
        kinds = columns_of(texts)
    except ValueError:
        return None
    names = texts.columns if texts.columns is not None else list(kinds or {})
    return None if kinds is None else {name: kinds[name] for name in names if name in kinds}


@cache
def _standard_losses() -> dict[str, type]:
    """The losses that plain options can make: no enumerations, no data loaders, none around another loss or model."""
    known = {}
    for name in standard_losses.__all__:
        loss = getattr(standard_losses, name)
        if not inspect.isclass(loss) or issubclass(loss, Enum) or not issubclass(loss, torch.nn.Module):
            continue
        if not {"loss", "guide"} & set(inspect.signature(loss).parameters):
            known[name] = loss
    return known
