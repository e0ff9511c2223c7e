"""Students in 4 bits. Those that need bitsandbytes are skipped where it is not installed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast

from st_distill.errors import MissingExtraError
from st_distill.exporting import load_student
from st_distill.recipe import Recipe, check, quantized, runner

needs_bitsandbytes = pytest.mark.skipif(not quantized.INSTALLED, reason="bitsandbytes is not installed")


@pytest.fixture
def make_recipe(tmp_path, tiny_bert, sentences):
    """Recipes for a student whose layers are wide enough for blocks of 64 weights."""
    torch.manual_seed(0)
    tokenizer = BertTokenizerFast.from_pretrained(tiny_bert)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    texts = [f"{a} and {b}" for a in sentences[:8] for b in sentences[8:]]
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "texts.parquet")
    arguments = {"use_cpu": True, "disable_tqdm": True, "save_steps": 2}
    stage = {"train": "all", "lora": {"r": 2}, "steps": 4, "batch": 8, "learning_rate": 1e-3, "arguments": arguments}

    def make(*, work: str, **changes) -> Recipe:
        return Recipe(
            output=str(tmp_path / "out"),
            work=str(tmp_path / work),
            student={"model": str(tmp_path / "wide"), "load_in_4bit": True, "max_seq_length": 32, "pooling": "mean"},
            teachers=[tiny_bert],
            texts=[str(tmp_path / "texts.parquet")],
            projection={"dims": [24, 8]},
            stages=[{**stage, **changes}],
        )

    return make


def test_without_bitsandbytes_the_answer_is_the_line_that_installs_it(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "INSTALLED", False)
    (problem,) = check(make_recipe(work="run"))
    assert problem.path == "student.load_in_4bit"
    assert problem.message.endswith("Run: pip install 'st-distill[qlora]'")
    with pytest.raises(MissingExtraError, match="A student in 4 bits needs bitsandbytes"):
        quantized.load_in_4bit(tmp_path)


def test_only_adapters_are_trained(make_recipe, monkeypatch):
    monkeypatch.setattr(quantized, "INSTALLED", True)
    (problem,) = check(make_recipe(work="run", lora=None))
    assert problem.path == "stages[0].lora"
    assert problem.message.endswith("give lora: {r: 16}")
    assert check(make_recipe(work="run", lora=None, train="projection")) == []


@needs_bitsandbytes
class TestTraining:
    def test_the_result_is_a_plain_model(self, make_recipe, tmp_path, sentences, monkeypatch):
        seen, train_stage = [], runner.run_stage

        def run_stage(stage, model, *args, **options):
            seen.append(sum(quantized.is_quantized(module) for module in model.modules()))
            return train_stage(stage, model, *args, **options)

        monkeypatch.setattr(runner, "run_stage", run_stage)
        runner.run(make_recipe(work="run"), show_progress=False)
        assert seen == [2 * 6 + 1]  # query, key, value and three dense layers, and the pooler
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert "quantization_config" not in config
        model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
        assert not any(quantized.is_quantized(module) for module in model.modules())
        # 4 bits and four steps move the weights a little, and the pooled vectors hardly.
        trained = load_student(tmp_path / "run" / "stages" / "1-all" / "model", device="cpu")
        start = load_student(tmp_path / "run" / "start", device="cpu")
        assert trained.state_dict().keys() == start.state_dict().keys()
        query = "0.model.encoder.layer.0.attention.self.query.weight"
        change = (trained.state_dict()[query] - start.state_dict()[query]).abs().max()
        assert 0.0 < change < 0.05
        cosines = nn.functional.cosine_similarity(
            *(m.encode(sentences, convert_to_tensor=True) for m in (trained, start))
        )
        assert cosines.min() > 0.8

    def test_a_killed_run_ends_where_an_undisturbed_one_ends(self, make_recipe, tmp_path, sentences, run_and_interrupt):
        runner.run(make_recipe(work="whole"), show_progress=False)
        whole = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(sentences)
        run_and_interrupt(make_recipe(work="cut"), 3)
        runner.run(make_recipe(work="cut"), resume=True, show_progress=False)
        cut = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(sentences)
        np.testing.assert_allclose(cut, whole, atol=1e-5)
