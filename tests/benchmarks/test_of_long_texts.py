"""The benchmarks of the encoder for long texts run from end to end, on made data, and go on where they were stopped."""

from __future__ import annotations

import json
import sys

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sentence_transformer.modules import Transformer as TextTransformer
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks import alibi, long_documents, pairs, pretraining


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a benchmark as its command does, and returns what it prints."""

    def run(module, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        capsys.readouterr()
        module.main()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("words", [["attention"], ["encode"], ["encode", "--shortest", "5", "--backward"]])
@pytest.mark.parametrize("kind", ["blockwise", "sdpa", "eager", "naive"])
def test_attention(words, kind, run, monkeypatch):
    from st_distill.modules import alibi_config

    monkeypatch.setitem(
        alibi_config.SIZES, "small", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    monkeypatch.setattr(alibi, "WIDTH", 8)
    said = run(alibi, *words, "--kind", kind, "--length", 20, "--batch", 2, "--rounds", 1, "--processor")
    seconds, megabytes = map(float, said.split())
    assert seconds > 0
    assert megabytes >= 0


def test_attention_as_a_table(run):
    said = run(alibi, "attention", "--kinds", "sdpa", "--lengths", 16, "--rounds", 1)
    assert said.splitlines()[0] == "| length | sdpa, s | MB |"
    assert said.splitlines()[2].startswith("| 16 | 0.")


def test_pretraining_with_its_contrast(data, run, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "LENGTHS", [128, 512, 4096])
    words = ["--data", data, "--out", tmp_path, "--steps", 2, 1, "--batch-tokens", 512, "--width", 16]
    said = run(pretraining, *words, "--model", "alibi_bert")
    assert "Accuracy at 4096 less that at 512" in said
    ours = tmp_path / "alibi_bert.results.json"
    assert list(json.loads(ours.read_text())["lengths"]) == ["128", "512", "4096"]
    assert said.endswith(run(pretraining, *words, "--model", "alibi_bert"))  # read, and not done again
    run(pretraining, *words, "--model", "bert", "--beside", ours)
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_pairs_and_hard_negatives(data, run, tmp_path, tiny_alibi):
    words = ["--data", data, "--encoder", tiny_alibi, "--out", tmp_path, "--steps", 1, 1]
    said = run(pairs, *words)
    steps = json.loads((tmp_path / "results.json").read_text())
    assert list(steps) == ["before", "pairs", "hard negatives"]
    assert all(list(figures) == ["scifact ndcg@10", "sts spearman"] for figures in steps.values())
    again = run(pairs, *words).splitlines()  # measured, and not trained again
    assert [line for line in said.splitlines() if line.startswith(tuple(steps))] == again


def test_the_same_book(data, run, tmp_path, tiny_bert, tiny_alibi, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert, model_max_length=256)
    sizes = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    teacher = SentenceTransformer(modules=[TextTransformer(str(tmp_path / "encoder")), Pooling(256)], device="cpu")
    teacher.save(str(tmp_path / "teacher"))
    monkeypatch.setattr(long_documents, "LENGTHS", [64, 512])
    words = ["--teacher", tmp_path / "teacher", "--encoder", tiny_alibi, "--out", tmp_path / "out", "--limit", 70]
    said = run(long_documents, "--data", data, *words, "--steps", 2, "--queries", 1)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results) == ["student at 64", "student at 512", "teacher at 256"]
    assert "4 queries, 10 parts" in said
