"""A recipe in two processes (gloo, CPU). This file is also the program that the launcher starts in each of them."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

from st_distill import cli
from st_distill.errors import OtherProcessError
from st_distill.recipe import checkpoints, dump_recipe, load_recipe, processes, runner, stages
from st_distill.recipe.processes import Processes
from st_distill.recipe.schema import PAPER_LOSSES, Recipe
from st_distill.recipe.stages import StageData
from st_distill.recipe.state import stage_fields

STEPS = 20
#: Steps from the beginning before which process 1 is killed: in the middle of the second stage, after a checkpoint.
KILLED_AT = STEPS + 13


# --- what runs in each of the two processes -----------------------------------------------------------------------------


def run_recipe(folder: Path) -> None:
    """Run the recipe and note this process's own vectors after every stage; the first time, process 1 is killed."""
    processes._GRACE = 0.0  # no launcher ends the process that fails second here
    rank, resume = int(os.environ["RANK"]), (folder / "out-run").exists()
    train_stage, training_step = runner.run_stage, SentenceTransformerTrainer.training_step
    steps = iter(range(1000))

    def noting(stage, model, *args, **options):
        metrics = train_stage(stage, model, *args, **options)
        np.save(folder / f"{stage.name}-{rank}.npy", model.encode(texts(folder), show_progress_bar=False))
        return metrics

    def dying(self, *args, **options):
        if next(steps) == KILLED_AT and rank == 1 and not resume:
            os.kill(os.getpid(), signal.SIGKILL)
        return training_step(self, *args, **options)

    runner.run_stage, SentenceTransformerTrainer.training_step = noting, dying
    result = runner.run(load_recipe(str(folder / "recipe.yaml")), resume=resume, show_progress=False)
    (folder / f"result-{rank}.json").write_text(json.dumps([str(result.output), result.results]))
    (folder / f"steps-{rank}.json").write_text(json.dumps(next(steps)))
    (folder / f"exit-{rank}.json").write_text(json.dumps(cli.main(["run", str(folder / "recipe.yaml")])))


def meet_and_fail(folder: Path) -> None:
    """What each process is told when the other one fails, in three runs one after another."""
    heard = []
    for failing in (0, 1):
        try:
            with Processes() as group:
                group.join(cpu=True)
                heard.append(group.by_main(lambda: "from main"))
                if group.rank == failing:
                    raise ValueError(f"process {failing} fails")
                group.meet()
        except (ValueError, OtherProcessError) as error:
            heard.append(str(error))
    try:
        with Processes() as group:
            group.join(cpu=True)
            group.meet()
            raise ValueError("both fail")
    except (ValueError, OtherProcessError) as error:
        heard.append(type(error).__name__)
    (folder / f"heard-{group.rank}.json").write_text(json.dumps(heard))
    processes.leave()


def texts(folder: Path) -> list[str]:
    return list(Dataset.from_parquet(str(folder / "texts.parquet"))["text"][:16])


# --- the tests ------------------------------------------------------------------------------------------------------------


def launch(folder: Path) -> subprocess.CompletedProcess[str]:
    """This file in two processes, as torchrun starts them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, __file__, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert, images):
    """A folder with a student without dropout, its teacher, texts of several lengths, pairs, and pictures."""
    folder = tmp_path_factory.mktemp("processes")
    shutil.copytree(tiny_bert, folder / "student")
    config = json.loads((folder / "student" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "student" / "config.json").write_text(json.dumps(config))
    animals, places = ["a cat", "the dog", "one bird", "five fish"], ["in the house", "on the river", "", "runs"]
    colours = ["red", "green", "blue", "yellow"]
    rows = [f"{animal} {place} and {colour}" for animal in animals for place in places for colour in colours]
    Dataset.from_dict({"text": rows}).to_parquet(folder / "texts.parquet")
    Dataset.from_dict({"query": rows[:16], "document": rows[16:32]}).to_parquet(folder / "pairs.parquet")
    captions = [f"{colour} square {number}" for colour in colours for number in ("one", "two", "three", "four")]
    features = Features({"image": Image(), "caption": Value("string")})
    Dataset.from_dict({"image": images, "caption": captions}, features=features).to_parquet(folder / "images.parquet")
    return folder


@pytest.fixture
def make_recipe(folder, tiny_bert, vision):
    def make(*, output: str, batch: int) -> Recipe:
        arguments = {"use_cpu": True, "disable_tqdm": True, "save_steps": 5}
        common = {"steps": STEPS, "batch": batch, "losses": PAPER_LOSSES, "arguments": arguments}
        ranking = {"loss": "MultipleNegativesRankingLoss", "texts": str(folder / "pairs.parquet")}
        return Recipe(
            output=str(folder / output),
            student={"model": str(folder / "student"), "layers": [0, 3], "max_seq_length": 32, "pooling": "mean"},
            teachers=[tiny_bert],
            texts=[str(folder / "texts.parquet")],
            images={"path": str(folder / "images.parquet"), "vision": vision},
            # So few texts span fewer axes than the projection has: the others, which learned ones start from, are any.
            projection={"dims": [24, 8], "rotation": "random"},
            stages=[
                {"train": "projection", "group_by_length": True, **common},
                {"train": {"last_layers": 1}, "lora": {"r": 2}, **common},
                {"train": "all", "also": [ranking], "mini_batch_size": 3, **common},
                {"train": "vision", **common},
            ],
            evaluation={"texts": str(folder / "pairs.parquet"), "teachers": False},
        )

    return make


def test_two_processes_killed_and_resumed_equal_one_with_the_joint_batch(folder, make_recipe):
    (folder / "recipe.yaml").write_text(dump_recipe(make_recipe(output="out", batch=4)))
    killed = launch(folder)
    assert killed.returncode != 0
    state = json.loads((folder / "out-run" / "run.json").read_text())
    assert [stage["done"] for stage in state["stages"]] == [True, False, False, False]
    assert {stage["fields"]["stage.effective_batch"] for stage in state["stages"]} == {8}
    # Sealed when every process had written its part.
    checkpoint = checkpoints.numbered(folder / "out-run/stages/2-last-1-layers/checkpoints")[-1]
    assert checkpoints.what_is_wrong(checkpoint) is None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= json.loads((checkpoint / checkpoints.SEAL).read_text()).keys()

    resumed = launch(folder)
    assert resumed.returncode == 0, resumed.stderr
    # The second stage went on at its checkpoint of step 10.
    assert json.loads((folder / "steps-1.json").read_text()) == 3 * STEPS - 10
    assert (folder / "result-0.json").read_text() == (folder / "result-1.json").read_text()
    first, second = (json.loads((folder / f"heard-{rank}.json").read_text()) for rank in (0, 1))
    ended = "Process {} ended because another one of the 2 failed."
    assert first[:4] == ["from main", "process 0 fails", "from main", ended.format(0)]
    assert second[:4] == [None, ended.format(1), None, "process 1 fails"]
    assert {first[4], second[4]} == {"ValueError", "OtherProcessError"}

    one = make_recipe(output="one", batch=8)
    alone = runner.run(one, show_progress=False)
    expected = SentenceTransformer(str(alone.output), device="cpu")
    found = SentenceTransformer(str(folder / "out"), device="cpu")
    pictures = [row["image"] for row in Dataset.from_parquet(str(folder / "images.parquet"))]
    for inputs in (texts(folder), pictures):
        np.testing.assert_allclose(found.encode(inputs), expected.encode(inputs), atol=1e-4)
    start = SentenceTransformer(str(folder / "student"), device="cpu")
    assert not np.allclose(found.encode(texts(folder))[:, :8], start.encode(texts(folder))[:, :8], atol=1e-2)
    for name in ("projection", "last-1-layers", "all", "vision"):
        # Of each process's own weights, before it read what the main one wrote.
        np.testing.assert_array_equal(np.load(folder / f"{name}-0.npy"), np.load(folder / f"{name}-1.npy"))

    # The command line without --resume: the mistake is said once, and both processes end with it.
    assert resumed.stderr.count("already holds a run. Continue it with --resume") == 1
    assert [json.loads((folder / f"exit-{rank}.json").read_text()) for rank in (0, 1)] == [2, 2]


class TestEffectiveBatch:
    @pytest.mark.parametrize(("processes", "batch"), [(1, 8), (2, 4), (8, 1)])
    def test_counts_processes(self, processes, batch, make_recipe):
        recipe = make_recipe(output="out", batch=batch)
        fields = stage_fields(recipe, 1, {}, processes=processes)
        assert fields == stage_fields(make_recipe(output="out", batch=8), 1, {})

    def test_relations_within_each_process_are_another_result(self, make_recipe):
        recipe = make_recipe(output="out", batch=4)
        recipe.stages[1].gather_across_devices = False
        assert stage_fields(recipe, 1, {}, processes=2)["stage.gather_across_devices"] is False
        assert "stage.gather_across_devices" not in stage_fields(recipe, 1, {})


def test_fewer_rows_than_the_joint_batch_are_refused():
    data = StageData({"texts": Dataset.from_dict({"text": ["a", "b", "c"]})}, {}, {})
    stages._check_rows(data, 4, 1, drop_last=False)
    with pytest.raises(ValueError, match=r"at least 4 rows, the joint batch of 2 processes with 2 each. Got 3 rows"):
        stages._check_rows(data, 2, 2, drop_last=False)
    with pytest.raises(ValueError, match="at least 4 rows, a batch, because dataloader_drop_last .* Got 3 rows"):
        stages._check_rows(data, 4, 1, drop_last=True)


if __name__ == "__main__":
    # Processes that wait for each other forever end with what each of them waits for.
    faulthandler.dump_traceback_later(120, exit=True)
    torch.set_num_threads(1)
    run_recipe(Path(sys.argv[1]))
    meet_and_fail(Path(sys.argv[1]))
