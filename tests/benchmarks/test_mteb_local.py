"""The command that docs/evaluation.md names runs, on made data in the place of STS-B's."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mteb_local.py"


@pytest.mark.filterwarnings("ignore")  # mteb's own
def test_mteb_and_eval_say_the_same(make_student, sentences, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mteb")
    make_student().save(str(tmp_path / "model"))
    (tmp_path / "stsb").mkdir()
    rows = {"sentence1": sentences[:8], "sentence2": sentences[8:16], "score": [float(n) for n in range(8)]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "stsb" / "test.parquet")
    words = ["--data", str(tmp_path), "--model", str(tmp_path / "model"), "--dims", "32,8"]
    monkeypatch.setattr(sys, "argv", ["mteb_local.py", *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = re.findall(r"^STSBenchmark +(\d+) +(\S+) +(\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert [dim for dim, _, _ in found] == ["32", "8"]
    assert all(theirs == ours for _, theirs, ours in found)
