"""What the quality benchmark's experiments change: terms of known value, layers compared, weights averaged."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from benchmarks.quality.experiments import Experiment, _Average, _Changed, _HiddenStates, applied
from st_distill.losses import JasperDistill
from st_distill.modules import MatryoshkaProjection
from st_distill.recipe import Recipe, run, stages, start
from st_distill.recipe.schema import Projection, Stage, Student

ALL = {"cosine": 10.0, "similarity": 200.0, "triplet": 20.0}
UNIT = {"similarity": 1.0}


def table(vectors, *modules: nn.Module) -> SentenceTransformer:
    """A student that gives the words w0, w1 and so on these vectors."""
    weights = torch.as_tensor(vectors, dtype=torch.float32)
    tokenizer = Tokenizer(models.WordLevel({f"w{row}": row for row in range(len(weights))}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights), *modules], device="cpu")


def words(model: SentenceTransformer) -> list[dict]:
    return [model.preprocess([f"w{row}" for row in range(len(model[0].embedding.weight))])]


def terms(experiment: Experiment, student, teacher, **options) -> dict[str, float]:
    """What the changed loss says of vectors: its terms."""
    model = table(student)
    loss = _Changed(model, experiment=experiment, steps=10, hidden=None, **options)
    found = loss(words(model), torch.as_tensor(teacher, dtype=torch.float32))
    return {name: term.item() for name, term in found.items()}


def random_vectors(seed: int, width: int = 4) -> torch.Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"dims": [4, 2]}, {"dims": [4, 2], "cosine_dims": [4, 2, 1]}])
@pytest.mark.parametrize("cosine_weights", ["equal", "proportional"])
def test_without_a_change_it_is_the_recipes_loss(options, cosine_weights):
    options = {"weights": ALL, "margin": 0.1, "cosine_weights": cosine_weights, **options}
    student, teacher = random_vectors(0), random_vectors(1)
    model = table(student)
    plain = JasperDistill(model, **options)(words(model), teacher)
    assert terms(Experiment(), student, teacher, **options) == pytest.approx(
        {name: term.item() for name, term in plain.items()}, rel=1e-5
    )


def test_spread_is_the_mean_square_of_the_similarities():
    """Two texts alike and one at 60 degrees to both: squares of 1, 1/4 and 1/4."""
    student = [[1.0, 0.0], [2.0, 0.0], [0.5, math.sqrt(0.75)]]
    found = terms(Experiment(spread=4.0), student, torch.eye(3), weights=UNIT)
    assert found["spread"] == pytest.approx(4 * 0.5, rel=1e-5)
    assert terms(Experiment(spread=4.0), torch.eye(3), torch.eye(3), weights=UNIT)["spread"] == pytest.approx(0.0)


def test_two_texts_less_their_mean_are_opposite_whatever_they_are():
    student, teacher = [[1.0, 0.0], [1.0, 0.5]], [[1.0, 0.0], [0.0, 3.0]]
    assert terms(Experiment(centred=True), student, teacher, weights=UNIT)["similarity"] == pytest.approx(0.0, abs=1e-6)
    assert terms(Experiment(), student, teacher, weights=UNIT)["similarity"] > 0.1


def test_long_vectors_do_not_decide_the_mean():
    student, teacher = random_vectors(0), random_vectors(1)
    lengths = torch.tensor([1.0, 100, 1, 7, 1, 1])[:, None]
    centred = [terms(Experiment(centred=True), part, teacher, weights=UNIT) for part in (student, lengths * student)]
    assert centred[0] == pytest.approx(centred[1], rel=1e-4)


def test_neighbours_is_the_divergence_from_the_teachers_softmax():
    """To the teacher two of three texts are alike, of weight 3/4 at this temperature; to the student none is like another.

    3/4 log(3/2) + 1/4 log(1/2) for two texts of three, and 0 for the third.
    """
    experiment = Experiment(neighbours=3.0, temperature=1 / math.log(3))
    teacher = [[1.0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert terms(experiment, torch.eye(3), teacher, weights=UNIT)["neighbours"] == pytest.approx(2 * 0.130812, rel=1e-4)
    assert terms(experiment, teacher, teacher, weights=UNIT)["neighbours"] == pytest.approx(0.0, abs=1e-6)


def test_prefixes_may_follow_the_students_own_vector():
    """All of these vectors is in the prefix, which so has the relations of the whole; only the whole is off the teacher's."""
    student = torch.cat([random_vectors(0, 2), torch.zeros(6, 2)], dim=1)
    options = {"weights": {"similarity": 3.0, "triplet": 5.0}, "margin": 0.0}
    whole = terms(Experiment(own_teacher=True), student, random_vectors(1), dims=[4], **options)
    both = terms(Experiment(own_teacher=True), student, random_vectors(1), dims=[4, 2], **options)
    assert min(whole.values()) > 0.1
    assert both == pytest.approx({name: value / 2 for name, value in whole.items()}, rel=1e-4)


def test_the_own_teacher_does_not_move_towards_its_prefixes():
    model = table(random_vectors(0))
    teacher = model[0].embedding.weight.detach().clone()  # the whole is right
    loss = _Changed(
        model, experiment=Experiment(own_teacher=True), steps=10, hidden=None, dims=[4, 2], weights={"similarity": 1.0}
    )
    loss(words(model), teacher)["similarity"].backward()
    assert model[0].embedding.weight.grad[:, :2].abs().max() > 1e-3
    assert model[0].embedding.weight.grad[:, 2:].abs().max() < 1e-6


@pytest.mark.parametrize(("power", "shares"), [(None, (1 / 2, 1 / 2)), (0.0, (1 / 2, 1 / 2)), (1.0, (1 / 3, 2 / 3))])
def test_short_prefixes_may_weigh_more(power, shares):
    """A vector whose cosine to the teacher's is 1/2, and that of the first half 0."""
    found = terms(
        Experiment(prefix_power=power), [[1.0, 0, 0, 1]], [[0.0, 1, 0, 1]], cosine_dims=[4, 2], weights={"cosine": 10.0}
    )
    assert found["cosine"] == pytest.approx(10 * (shares[0] * 0.5 + shares[1] * 1.0), rel=1e-5)


def test_the_power_is_that_of_the_relations_too():
    options = {"weights": {"similarity": 1.0}, "dims": [4, 2]}
    student, teacher = random_vectors(0), random_vectors(1)
    wide, short = (
        terms(Experiment(), student[:, :dim], teacher, weights={"similarity": 1.0})["similarity"] for dim in (4, 2)
    )
    found = terms(Experiment(prefix_power=2.0), student, teacher, **options)["similarity"]
    assert found == pytest.approx(0.2 * wide + 0.8 * short, rel=1e-5)


def test_relations_may_begin_later():
    model = table(random_vectors(0))
    loss = _Changed(model, experiment=Experiment(relations_after=0.5), steps=4, hidden=None, weights=ALL)
    loss.train()
    found = [set(loss(words(model), random_vectors(1))) for _ in range(4)]
    assert found == [{"cosine"}, {"cosine"}, set(ALL), set(ALL)]


@pytest.mark.parametrize(
    ("experiment", "options", "message"),
    [
        (Experiment(centred=True), {"weights": {"cosine": 1.0}}, "changes the relations, and the stage has none"),
        (Experiment(own_teacher=True), {"weights": {"cosine": 1.0}}, "changes the relations, and the stage has none"),
        (
            Experiment(relations_after=0.5),
            {"weights": {"cosine": 1.0}},
            "changes the relations, and the stage has none",
        ),
        (Experiment(spread=1.0), {"bits": True}, "leaves bits out"),
    ],
)
def test_an_experiment_that_would_change_nothing_is_refused(experiment, options, message):
    with pytest.raises(ValueError, match=message):
        terms(experiment, random_vectors(0), random_vectors(1), **options)


@pytest.mark.parametrize("heads", [{"heads": "independent"}, {"teacher_head": 5}])
def test_heads_that_are_no_prefixes_are_refused(heads):
    model = table(random_vectors(0), MatryoshkaProjection(4, [4, 2], **heads))
    with pytest.raises(ValueError, match="takes prefixes of one vector"):
        _Changed(model, experiment=Experiment(spread=1.0), steps=10, hidden=None)


@pytest.fixture
def whole(make_student, tmp_path) -> str:
    """A model of four layers that drop nothing, of which the second gives what it is given, and the others do much."""
    model = make_student()
    model[0].model.config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    with torch.no_grad():
        for place, layer in enumerate(model[0].model.encoder.layer):
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.mul_(0.0 if place == 1 else 30.0)
                dense.bias.zero_()
    model.save(str(tmp_path / "whole"))
    return str(tmp_path / "whole")


class TestHiddenStates:
    TEXTS = ["a cat", "the dog runs to the river and the small house on the mountain"]

    @staticmethod
    def compared(whole: str, layers: list[int]) -> tuple[SentenceTransformer, _HiddenStates]:
        student = start.build_student(Student(model=whole, layers=layers), device="cpu")
        hidden = _HiddenStates(student[0], SentenceTransformer(whole, device="cpu")[0], layers)
        return student.train(), hidden

    def distance(self, student: SentenceTransformer, hidden: _HiddenStates, *texts: str) -> float:
        student(student.preprocess(list(texts)))
        return hidden.distance().item()

    def test_a_layer_is_compared_with_what_the_next_kept_one_is_given(self, whole):
        """The second layer changes nothing, so the first may stand for both; the third does."""
        assert self.distance(*self.compared(whole, [0, 2]), *self.TEXTS) == pytest.approx(0.0, abs=1e-5)
        assert self.distance(*self.compared(whole, [0, 1, 2, 3]), *self.TEXTS) == pytest.approx(0.0, abs=1e-5)
        assert self.distance(*self.compared(whole, [0, 3]), *self.TEXTS) > 1e-3

    def test_every_token_counts_as_much_and_padding_does_not(self, whole):
        student, hidden = self.compared(whole, [0, 3])
        counts = [int(student.preprocess([text])["attention_mask"].sum()) for text in self.TEXTS]
        alone = [self.distance(student, hidden, text) for text in self.TEXTS]
        assert alone[0] != pytest.approx(alone[1], rel=1e-2)
        expected = (counts[0] * alone[0] + counts[1] * alone[1]) / sum(counts)
        assert self.distance(student, hidden, *self.TEXTS) == pytest.approx(expected, rel=1e-4)

    def test_columns_have_a_mean_and_measuring_leaves_nothing(self, whole):
        student, hidden = self.compared(whole, [0, 3])
        alone = [self.distance(student, hidden, text) for text in self.TEXTS]
        student.eval()
        student(student.preprocess(["a fish"]))
        student.train()
        student(student.preprocess(self.TEXTS[:1]))
        assert self.distance(student, hidden, self.TEXTS[1]) == pytest.approx(sum(alone) / 2, rel=1e-4)

    def test_the_teacher_is_not_trained(self, whole):
        student, hidden = self.compared(whole, [0, 3])
        student(student.preprocess(self.TEXTS))
        hidden.distance().backward()
        first, last = student[0].model.encoder.layer
        assert first.output.dense.weight.grad.abs().max() > 0
        assert last.output.dense.weight.grad is None
        assert all(weight.grad is None for weight in hidden._teacher.parameters())


def test_weights_are_averaged_over_the_last_steps():
    """A weight that is the number of the step, of which the last three of ten have the mean 9."""
    model, average = nn.Linear(1, 1), _Average(0.3)
    model.bias.requires_grad_(False)
    with torch.no_grad():
        model.bias.fill_(5.0)
        for step in range(1, 11):
            model.weight.fill_(step)
            average.on_step_end(None, SimpleNamespace(global_step=step, max_steps=10), None, model=model)
    average.on_train_end(None, None, None, model=model)
    assert model.weight.item() == pytest.approx(9.0)
    assert model.bias.item() == 5.0


def test_kept_layers_may_start_as_means(tiny_bert, tmp_path):
    """Layers 1 and 3 of four, all of whose weights are set to their own numbers here."""
    model = SentenceTransformer(tiny_bert, device="cpu")
    with torch.no_grad():
        for place, layer in enumerate(model[0].model.encoder.layer):
            for weight in layer.parameters():
                weight.fill_(place)
    whole = str(tmp_path / "whole")
    model.save(whole)
    with applied(Experiment(mean_layers=True), whole, [1, 3]):
        student = start.build_student(Student(model=whole, layers=[1, 3]), device="cpu")
    layers = [
        torch.cat([weight.flatten() for weight in layer.parameters()]) for layer in student[0].model.encoder.layer
    ]
    assert [layer.unique().tolist() for layer in layers] == [[0.5], [2.5]]


def test_the_changed_loss_has_the_stages_options():
    stage = Stage(train="all", losses={"cosine": 3, "triplet": 4}, margin=0.5, dims=[4, 2], cosine_dims=[4], steps=9)
    model = table(random_vectors(0), MatryoshkaProjection(4, [4, 2]))
    with applied(Experiment(spread=2.0), "", None):
        loss = stages.distill_loss(stage, Projection(dims=[4, 2]), model, None, match_dims=False)
    plain = stages.distill_loss(stage, Projection(dims=[4, 2]), model, None, match_dims=False)
    assert (type(loss), type(plain)) == (_Changed, JasperDistill)
    assert loss.get_config_dict() == plain.get_config_dict()
    assert (loss.experiment.spread, loss.steps) == (2.0, 9)


def test_a_change_that_the_recipe_does_not_use_is_told():
    before = stages.distill_loss, stages.StageTrainer, start.build_student
    message = "did not use the change of StageTrainer, build_student, distill_loss"
    everything = Experiment(spread=1.0, mean_layers=True, average=0.5)
    with pytest.raises(RuntimeError, match=message), applied(everything, "", None):
        assert stages.distill_loss is not before[0]
    assert (stages.distill_loss, stages.StageTrainer, start.build_student) == before
    with applied(Experiment(temperature=0.1), "", None):
        assert stages.distill_loss is before[0]


def test_of_several_changes_each_has_to_be_used():
    model = table(random_vectors(0), MatryoshkaProjection(4, [4, 2]))
    several = Experiment(spread=1.0, average=0.5)
    with pytest.raises(RuntimeError, match="did not use the change of StageTrainer:"), applied(several, "", None):
        stages.distill_loss(Stage(train="all"), Projection(dims=[4, 2]), model, None, match_dims=False)


def test_a_recipe_runs_changed(make_student, sentences, tmp_path):
    """Two steps, the last of which is all of the average: every change is used, and the terms are in the log."""
    make_student().save(str(tmp_path / "teacher"))
    Dataset.from_dict({"text": sentences}).to_parquet(tmp_path / "texts.parquet")
    arguments = {"disable_tqdm": True, "use_cpu": True}
    recipe = Recipe(
        output=str(tmp_path / "out"),
        student={"model": str(tmp_path / "teacher"), "layers": [0, 3]},
        teachers=[{"model": str(tmp_path / "teacher")}],
        texts=[{"path": str(tmp_path / "texts.parquet")}],
        projection={"dims": [32, 8]},
        stages=[{"train": "all", "steps": 2, "batch": 8, "arguments": arguments}],
        diagnosis=False,
    )
    with applied(Experiment(spread=1.0, hidden=1.0, mean_layers=True, average=0.5), str(tmp_path / "teacher"), [0, 3]):
        run(recipe, show_progress=False)
    (stage,) = json.loads((tmp_path / "out-run" / "run.json").read_text())["stages"]
    assert {"cosine", "spread", "hidden"} <= set(stage["metrics"]["history"][0])
