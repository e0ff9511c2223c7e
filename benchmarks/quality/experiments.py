"""Ideas that are not in the package, as changes to the loss and the trainer of a recipe's run.

`applied` puts them in the place of the package's own parts for the time of one run; an idea that wins moves into the package.

Options of `Experiment`, each alone or together with others:

- spread: weight of the mean square of the similarities between different texts (spread-out regulariser, Zhang et al. 2017);
- centred: similarity and triplet of vectors less the mean of the batch's, of student and teacher alike;
- neighbours: weight of the Kullback-Leibler divergence of each text's softmax over the others' similarities, at
  ``temperature``; averaged over the prefixes like the other relations;
- own_teacher: the prefixes' relations follow those of the student's own full vector, the full vector's the teacher's;
- prefix_power: all terms of dimension d weigh (d / 384)^-power, instead of the cosine as d and the relations equally;
- relations_after: share of each stage's steps that is trained on the cosine term alone;
- mean_layers: each kept layer starts as the mean of itself and of the layers left out right below it;
- hidden: weight of the cosine distance between what each kept layer but the last gives for a token, and what the teacher, which
  is asked at every step, gives to the next kept layer;
- average: share of each stage's last steps whose weights are averaged in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any
from unittest import mock

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div, log_softmax, normalize
from transformers import TrainerCallback

from st_distill import functional
from st_distill.losses import JasperDistill
from st_distill.modules.matryoshka import find_projection
from st_distill.recipe import stages
from st_distill.recipe import start as recipe_start
from st_distill.recipe.schema import Stage
from st_distill.recipe.trainer import StageTrainer


@dataclass(frozen=True)
class Experiment:
    """What is changed in one run; see the module's description."""

    spread: float = 0.0
    centred: bool = False
    neighbours: float = 0.0
    temperature: float = 0.05
    own_teacher: bool = False
    prefix_power: float | None = None
    relations_after: float = 0.0
    mean_layers: bool = False
    hidden: float = 0.0
    average: float = 0.0

    @property
    def changes_loss(self) -> bool:
        names = {"spread", "centred", "neighbours", "own_teacher", "prefix_power", "relations_after", "hidden"}
        return any(getattr(self, option.name) != option.default for option in fields(self) if option.name in names)


class _Changed(JasperDistill):
    """The recipe's loss with the changes of an experiment."""

    def __init__(
        self, *args: Any, experiment: Experiment, steps: int, hidden: _HiddenStates | None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.experiment = experiment
        self.hidden = hidden
        self.steps = steps
        self.step = 0
        of_relations = experiment.centred or experiment.own_teacher or experiment.relations_after
        if of_relations and not {"similarity", "triplet"} & set(self.weights):
            raise ValueError("The experiment changes the relations, and the stage has none: give it losses that do.")
        if options.get("bits"):
            raise ValueError("An experiment that changes the loss leaves bits out: try one of the two.")
        projection = find_projection(self.model)
        if projection is not None and len(projection.linears) > 1:
            raise ValueError(
                "An experiment with the loss takes prefixes of one vector: leave teacher_head and independent heads out."
            )

    def _terms(self, batch: Any) -> dict[str, Tensor]:
        experiment = self.experiment
        self.step += self.training
        terms = {}
        if "cosine" in self.weights:
            heads = self.cosine_dims or [batch.embedding.shape[-1]]
            cosines = torch.stack([batch.cosine([dim], "equal") for dim in heads])
            power = -1.0 if self.cosine_weights == "proportional" else 0.0
            terms["cosine"] = self.weights["cosine"] * (cosines * self._shares(heads, power)).sum()
        if self.hidden is not None:
            terms["hidden"] = experiment.hidden * self.hidden.distance()
        if self.step <= experiment.relations_after * self.steps:
            return terms
        heads = self.dims or [batch.embedding.shape[-1]]
        totals: dict[str, list[Tensor]] = {}
        full = batch.embedding[:, : max(heads)]
        for dim in heads:
            target = full.detach() if experiment.own_teacher and dim < max(heads) else batch.teacher.unit
            for name, value in self._relations(batch.embedding[:, :dim], target).items():
                totals.setdefault(name, []).append(value)
        for name, values in totals.items():
            terms[name] = (torch.stack(values) * self._shares(heads, 0.0)).sum()
        return terms

    def _shares(self, heads: list[int], power: float) -> Tensor:
        """The weights of the dimensions, (dim / widest)^-power where the experiment says no other power."""
        power = power if self.experiment.prefix_power is None else self.experiment.prefix_power
        shares = torch.tensor([(dim / max(heads)) ** -power for dim in heads])
        return shares / shares.sum()

    def _relations(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        experiment = self.experiment
        if experiment.centred:
            # Of unit vectors, so that long ones do not decide what the mean is.
            student, teacher = (unit - unit.mean(0) for unit in (normalize(student, dim=1), normalize(teacher, dim=1)))
        ours, theirs = functional.similarities(student), functional.similarities(teacher, exact_ties=True)
        terms = {}
        if "similarity" in self.weights:
            terms["similarity"] = self.weights["similarity"] * functional.similarity_term(ours, theirs)
        if "triplet" in self.weights:
            ranking = functional.PairRanking(functional.pairs(theirs))
            terms["triplet"] = self.weights["triplet"] * functional.triplet_term(
                functional.pairs(ours), ranking, self.margin
            )
        others = ~torch.eye(len(ours), dtype=torch.bool)
        if experiment.spread:
            terms["spread"] = experiment.spread * ours[others].square().mean()
        if experiment.neighbours:
            count = len(ours)
            first, second = (
                log_softmax(matrix[others].view(count, count - 1) / experiment.temperature, dim=1)
                for matrix in (ours, theirs)
            )
            terms["neighbours"] = experiment.neighbours * kl_div(first, second, log_target=True, reduction="batchmean")
        return terms


class _HiddenStates:
    """Compares, while a student of BERT's layers is trained, its layers below the last with the model that they are of.

    Args:
        student: the `Transformer` module in training.
        teacher: that of the whole model.
        layers: which of the teacher's layers the student has, from the first.
    """

    def __init__(self, student: Transformer, teacher: Transformer, layers: Sequence[int]) -> None:
        self._teacher = teacher.model.eval()
        self._next = list(layers)[1:]
        self._outputs: dict[int, Tensor] = {}
        self._distances: list[Tensor] = []
        for place in range(len(self._next)):
            student.model.encoder.layer[place].register_forward_hook(partial(self._keep, place))
        student.register_forward_hook(self._compare)

    def _keep(self, place: int, module: nn.Module, inputs: Any, output: Any) -> None:
        self._outputs[place] = output[0] if isinstance(output, tuple) else output

    def _compare(self, module: nn.Module, inputs: tuple[dict[str, Tensor], ...], output: Any) -> None:
        if not module.training:
            return
        given = {name: inputs[0][name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            theirs = self._teacher(**given, output_hidden_states=True).hidden_states
        is_token = given["attention_mask"].bool()
        for place, layer in enumerate(self._next):
            cosines = cosine_similarity(self._outputs[place][is_token], theirs[layer][is_token], dim=-1)
            self._distances.append(1 - cosines.mean())

    def distance(self) -> Tensor:
        """The mean over the layers and the texts' columns since the last call."""
        mean = torch.stack(self._distances).mean()
        self._distances.clear()
        return mean


class _Average(TrainerCallback):
    """Replaces the weights at the end by their mean over the last share of the steps."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **options: Any) -> None:
        if model is None or state.global_step <= (1 - self.share) * state.max_steps:
            return
        self.count += 1
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                total = self.sums.setdefault(name, torch.zeros_like(parameter, requires_grad=False))
                total += parameter.detach()

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module | None = None, **options: Any) -> None:
        if model is None:
            return
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.sums:
                    parameter.copy_(self.sums[name] / self.count)


def _take_means(student: SentenceTransformer, whole: str, layers: Sequence[int]) -> None:
    """Give each of the student's layers the mean of the ones of the whole model that it stands for."""
    theirs = SentenceTransformer(whole, device="cpu")[0].model.encoder.layer
    below = -1
    with torch.no_grad():
        for layer, last in zip(student[0].model.encoder.layer, layers, strict=True):
            weights = [theirs[place].state_dict() for place in range(below + 1, last + 1)]
            for name, value in layer.state_dict().items():
                value.copy_(torch.stack([of_one[name] for of_one in weights]).mean(0))
            below = last


@contextmanager
def applied(experiment: Experiment, whole: str, layers: Sequence[int] | None) -> Iterator[None]:
    """Within this, a recipe's run is changed as the experiment says.

    Args:
        experiment: what is changed.
        whole: name or folder of the model that the student's layers are of.
        layers: which of its layers the student has; None for one without layers.
    """
    changes, used = dict[str, Any](), set[str]()
    if experiment.changes_loss:
        original = stages.distill_loss

        def changed(
            stage: Stage, projection: Any, model: SentenceTransformer, teacher: Any, *, match_dims: bool
        ) -> JasperDistill:
            plain = original(stage, projection, model, teacher, match_dims=match_dims)
            used.add("distill_loss")
            hidden = None
            if experiment.hidden:
                encoder = SentenceTransformer(whole, device="cpu")[0]
                hidden = _HiddenStates(model[0], encoder, layers or [])
            return _Changed(
                model,
                teacher=teacher,
                dims=plain.dims,
                cosine_dims=plain.cosine_dims,
                cosine_weights=plain.cosine_weights,
                weights=plain.weights,
                margin=plain.margin,
                bits=plain.bits,
                experiment=experiment,
                steps=stage.steps or 0,
                hidden=hidden,
            )

        changes["distill_loss"] = mock.patch.object(stages, "distill_loss", changed)
    if experiment.mean_layers:
        build = recipe_start.build_student

        def meaning(*args: Any, **options: Any) -> SentenceTransformer:
            student = build(*args, **options)
            _take_means(student, whole, layers or [])
            used.add("build_student")
            return student

        changes["build_student"] = mock.patch.object(recipe_start, "build_student", meaning)
    if experiment.average:

        def averaging(*args: Any, **options: Any) -> StageTrainer:
            trainer = StageTrainer(*args, **options)
            trainer.add_callback(_Average(experiment.average))
            used.add("StageTrainer")
            return trainer

        changes["StageTrainer"] = mock.patch.object(stages, "StageTrainer", averaging)
    for change in changes.values():
        change.start()
    try:
        yield
    finally:
        for change in changes.values():
            change.stop()
    if unused := sorted(changes.keys() - used):
        raise RuntimeError(
            f"The recipe did not use the change of {', '.join(unused)}: the figures would be those of the plain one."
        )
