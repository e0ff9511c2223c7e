"""`st-distill embed` behind a launcher: two processes on the CPU make one store."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from st_distill import TeacherStore
from st_distill.recipe import Recipe, dump_recipe
from st_distill.store.processes import FOLDER


def test_the_command_line_in_two_processes(tmp_path, make_student, sentences):
    make_student().save(str(tmp_path / "teacher"))
    texts = [f"{first} and {second}" for first in sentences for second in sentences]
    Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "texts.parquet")
    recipe = Recipe(
        output=str(tmp_path / "out"),
        student=str(tmp_path / "teacher"),
        teachers=[{"name": "t", "model": str(tmp_path / "teacher"), "device": "cpu"}],
        texts=[str(tmp_path / "texts.parquet")],
        projection={"dims": [16]},
        stages=[{"train": "projection", "steps": 1, "arguments": {"use_cpu": True}}],
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    # Not --cpu, by which accelerate starts one process, whatever their number.
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*launcher, "--main_process_port", "0", "-m", "st_distill", "embed", str(tmp_path / "recipe.yaml")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("256 rows by t, together 32 dimensions.") == 1
    work = tmp_path / "out-run" / "teachers"
    shards = json.loads((work / "store.json").read_text())["teachers"]["t"]["shards"]
    rows = {shard["vectors"]["file"]: shard["rows"] for shard in shards}
    assert rows.keys() == {"teachers/t/00000.npy", "teachers/t/00000-1.npy"}
    assert sum(rows.values()) == 256
    assert min(rows.values()) > 64  # shares drawn by chance, of 128 each on average
    assert not (work / FOLDER).exists()
    store = TeacherStore.open(work)
    expected = SentenceTransformer(str(tmp_path / "teacher"), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(store.gather(store.ids(texts)), expected, atol=1e-3)
