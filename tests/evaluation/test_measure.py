from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from lookup import lookup, random_table
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from st_distill import timing
from st_distill.evaluation import (
    TeacherFidelityEvaluator,
    evaluate,
    model_size,
    retrieval_evaluator,
    throughput,
)


def test_evaluators_work_in_the_trainer(tmp_path, make_student, sentences):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = make_student()
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="no",
            metric_for_best_model="eval_spearman_32",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"anchor": sentences[:8], "positive": sentences[8:]}),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=[
            retrieval_evaluator(sentences[:8], sentences[8:], dims=[32, 16]),
            TeacherFidelityEvaluator(sentences, torch.eye(16), dims=[32, 16]),
        ],
    )
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"eval_spearman_32", "eval_overlap10_16", "eval_cosine_ndcg@10_32"} <= logged
    assert trainer.evaluate()["eval_sequential_score"] == trainer.evaluate()["eval_spearman_32"]


def test_model_size_counts_shared_weights_once():
    layer = torch.nn.Linear(3, 2)
    assert model_size(layer) == {"parameters": 8, "megabytes": 32e-6}
    assert model_size(torch.nn.Sequential(layer, layer))["parameters"] == 8
    assert model_size(layer.half())["megabytes"] == 16e-6


def test_throughput_is_the_median_pass(monkeypatch):
    table = random_table(6, 3)
    model = lookup(table)
    # Three passes of 2, 1 and 4 seconds.
    clock = iter([0.0, 2.0, 10.0, 11.0, 20.0, 24.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert throughput(model, list(table), batch_size=4) == 3
    assert len(model[0].seen) == 4 + 3 * 6
    with pytest.raises(ValueError, match="at least one text"):
        throughput(model, [])


@pytest.mark.filterwarnings("ignore:An input array is constant")  # by scipy; the teacher below provokes it
def test_everything_at_once_is_json(make_student, sentences):
    student, teacher = make_student(), lookup(dict(zip(sentences, np.eye(16))))
    results = evaluate(
        student,
        teachers={"eye": teacher},
        dims=[8, 32, 16],
        texts=sentences,
        teacher_vectors=np.eye(16),
        retrieval=(sentences[:8], sentences[8:]),
        similarity=(sentences[:8], sentences[8:], range(8)),
        speed=sentences,
    )
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["dims"] == [32, 16, 8]
    assert results["fidelity"]["neighbours"] == 10
    # The teacher has 16 dimensions.
    assert list(results["fidelity"]["teachers_cut"]["overlap"]) == ["16", "8"]
    assert list(results["retrieval"]["scores"]["student"]["ndcg@10"]) == ["32", "16", "8"]
    assert list(results["retrieval"]["scores"]["eye"]["ndcg@10"]) == ["16", "8"]
    # All similarities of the teacher are 0 here, so that its correlation is not defined.
    assert results["similarity"]["scores"]["eye"]["spearman"]["16"] is None
    assert results["models"]["student"]["texts_per_second"] > 0
    assert "images" not in results


def test_evaluate_images_and_its_errors(images):
    pictures = images[::4]
    table = {picture.getpixel((0, 0)): row for picture, row in zip(pictures, np.eye(4))}
    table |= dict(zip("abcd", np.eye(4)))
    results = evaluate(lookup(table), images=(pictures, list("abcd")))
    assert results["images"]["recall@1"] == {"4": 1.0}
    assert results["images"]["chance@1"] == 0.25
    with pytest.raises(ValueError, match="'teacher_vectors' parameter must come with 'texts'"):
        evaluate(lookup(table), texts=list("abcd"))
    with pytest.raises(ValueError, match="name a teacher 'student'"):
        evaluate(lookup(table), teachers={"student": lookup(table)})
    with pytest.raises(TypeError, match="'teachers' parameter must be a mapping from name to model. Got list instead"):
        evaluate(lookup(table), teachers=[lookup(table)])
    with pytest.raises(TypeError, match="The 'student' parameter must be a SentenceTransformer. Got NoneType instead"):
        evaluate(None)
    with pytest.raises(
        TypeError, match="The 'retrieval' parameter must be a tuple of queries, documents. Got something"
    ):
        evaluate(lookup(table), retrieval=list("abcd"))
    with pytest.raises(TypeError, match="The 'similarity' parameter must be a tuple of first sentences, second sen"):
        evaluate(lookup(table), similarity=(["a"], ["b"]))


def test_teacher_vectors_as_a_list_are_compared_with():
    table = dict(zip("abcd", np.eye(4)))
    of_array, of_list = (
        evaluate(lookup(table), texts=list("abcd"), teacher_vectors=given)["fidelity"]
        for given in (np.eye(4)[:, :3], np.eye(4)[:, :3].tolist())
    )
    assert of_array == of_list
