"""The trainer of a stage, where it is not the library's."""

from __future__ import annotations

import pytest
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

from st_distill.recipe.trainer import StageTrainer

#: Python's own engine is at it for ever.
CATASTROPHIC = "^(([a-zA-Z0-9_.])+)+!$"


@pytest.fixture
def groups(make_student, tmp_path):
    """The parameters' names by their learning rate, of one dataset or, with ``several``, of two."""

    def found(rates, *, several=False):
        student = make_student()
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path), learning_rate=1e-5, learning_rate_mapping=rates, report_to="none", use_cpu=True
        )
        data = Dataset.from_dict({"anchor": ["a cat", "a dog"], "positive": ["a cat", "a dog"]})
        loss = MultipleNegativesRankingLoss(student)
        trainer = StageTrainer(
            model=student,
            args=arguments,
            train_dataset={"a": data, "b": data} if several else data,
            loss={"a": loss, "b": loss} if several else loss,
        )
        optimizer = trainer.create_optimizer()
        assert trainer.args.learning_rate_mapping == rates
        names = {id(parameter): name for name, parameter in student.named_parameters()}
        by_rate: dict[float, set[str]] = {}
        for group in optimizer.param_groups:
            by_rate.setdefault(group["lr"], set()).update(names[id(parameter)] for parameter in group["params"])
        return by_rate, set(names.values())

    return found


@pytest.mark.parametrize("several", [False, True])
def test_parameters_have_the_rate_of_the_last_pattern_that_is_found_in_their_name(groups, several):
    by_rate, names = groups({r"layer\.[01]\.": 1e-3, r"layer\.1\..*bias$": 1e-2}, several=several)
    later = {name for name in names if ".layer.1." in name and name.endswith("bias")}
    first = {name for name in names if ".layer.0." in name or ".layer.1." in name} - later
    assert first
    assert later
    assert by_rate == {1e-2: later, 1e-3: first, 1e-5: names - first - later}


def test_no_pattern_is_looked_for_for_ever(groups):
    with pytest.raises(
        ValueError, match="of learning_rate_mapping must be found in a parameter's name, such as 'model.0."
    ):
        groups({CATASTROPHIC: 1e-3})


def test_all_parameters_have_the_one_rate_without_patterns(groups):
    by_rate, names = groups({})
    assert by_rate == {1e-5: names}
