"""The quality benchmark's arithmetic and command line; its trainings are no part of the tests."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality.methods import DIMS, Settings
from benchmarks.quality.plot import draw
from benchmarks.quality.results import TASKS, chosen, groups, labels, run_name
from benchmarks.quality.trials import TRIALS


def lines_of(name: str, scores: dict[int, float], *, student: str = "3-layer", seed: int = 0, **settings) -> list[dict]:
    """Lines of one run with the same score on every task."""
    about = Settings("st-distill", student, seed, **settings)
    return [
        {
            "run": run_name(name, about),
            "name": name,
            "student": student,
            "seed": seed,
            "seconds": 60.0,
            "cpu_seconds": 60.0,
            "parameters": 1_000_000,
            "texts_per_second": 100.0,
            "settings": about.as_dict(),
            "split": "test",
            "task": task,
            "dim": dim,
            "scores": {metric: score},
        }
        for task, metric in TASKS.items()
        for dim, score in scores.items()
    ]


TEACHER = [
    line | {"run": "teacher", "name": "teacher", "student": "teacher", "seconds": 0.0, "settings": {}}
    for line in lines_of("teacher", dict.fromkeys(DIMS, 0.8))
]


def test_runs_that_differ_in_a_setting_have_names_and_labels_of_their_own():
    kinds = [{"steps": 300}, {"steps": 100}, {"steps": 300, "batch": 32}, {"steps": 300, "overrides": ("seed=1",)}]
    assert len({run_name("plain", Settings("st-distill", **kind)) for kind in kinds}) == 4
    lines = [line for kind in kinds[:3] for line in lines_of("plain", {384: 0.5}, **kind)]
    assert set(labels(lines).values()) == {
        "plain (batch 64, steps 300)",
        "plain (batch 64, steps 100)",
        "plain (batch 32, steps 300)",
    }


def test_a_mean_is_that_of_the_tasks_over_seeds_alone():
    lines = lines_of("plain", {128: 0.5}) + lines_of("plain", {128: 0.7}, seed=1) + lines_of("other", {128: 0.1})
    lines[0]["scores"] = {"spearman": 0.0}
    table = groups(lines, "test", "3-layer")
    assert table["plain"][128]["mean"] == pytest.approx([40.0, 70.0])
    assert table["other"][128]["mean"] == pytest.approx([10.0])


def test_chosen_runs_are_of_one_budget_and_untrained_ones_of_any():
    lines = TEACHER + lines_of("plain", {384: 0.5}, steps=300) + lines_of("plain", {384: 0.6}, steps=100)
    kept = chosen(lines, steps=300, batch=64)
    assert {line["name"] for line in kept} == {"teacher", "plain"}
    assert {line["settings"]["steps"] for line in kept if line["settings"]} == {300}


def test_pictures_of_one_budget(tmp_path, monkeypatch, capsys):
    scores = dict.fromkeys(DIMS, 0.7)
    lines = [line for steps in (100, 300) for line in lines_of("st-distill", scores, steps=steps, batch=32)]
    lines += TEACHER + lines_of("st-distill", dict.fromkeys(DIMS, 0.1), steps=200, batch=32, rate=1.0)
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["quality", "plot", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        command.main()
    assert "--steps 100 --batch 32, --steps 200 --batch 32, --steps 300 --batch 32" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words, "--steps", "300"])
    command.main()
    assert {path.name for path in tmp_path.glob("*.svg")} == {"dimension-3-layer.svg", "time.svg", "size.svg"}


def test_time_has_runs_that_differ_in_steps_alone(tmp_path, monkeypatch):
    from benchmarks.quality import plot

    drawn = []
    monkeypatch.setattr(plot, "_line", lambda axes, name, points, style: drawn.append((name, len(points))))
    lines = [line for steps in (100, 300) for line in lines_of("st-distill", dict.fromkeys(DIMS, 0.7), steps=steps)]
    lines += TEACHER + lines_of("st-distill", dict.fromkeys(DIMS, 0.1), steps=200, rate=1.0)
    monkeypatch.setattr(plot, "_save", lambda *arguments: None)
    draw(lines, "test", tmp_path, steps=300)
    of_time = ("st-distill", 2)
    assert drawn == [("st-distill", 5), ("teacher", 5), of_time, ("st-distill", 1), ("teacher", 1)]


def test_a_point_of_time_is_the_mean_of_all_seeds_and_what_has_no_time_is_told(tmp_path, monkeypatch):
    """Runs of before the processors' time was noted count in the quality."""
    from benchmarks.quality import plot

    drawn = {}
    monkeypatch.setattr(plot, "_save", lambda axes, figure, path: None)
    monkeypatch.setattr(plot, "_line", lambda axes, name, points, style: drawn.update({name: points}))
    monkeypatch.setattr(plot, "_against_size", lambda *given: None)
    lines = TEACHER + lines_of("untrained", dict.fromkeys(DIMS, 0.1))
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        lines += lines_of("st-distill", dict.fromkeys(DIMS, score), seed=seed, steps=300)
    lines += lines_of("st-distill", dict.fromkeys(DIMS, 0.8), steps=1500)
    lines += lines_of("cosine", dict.fromkeys(DIMS, 0.4), steps=300)
    of_before = {"untrained", "cosine"}
    for line in lines:
        if line["name"] in of_before or (line["seed"] == 0 and line["settings"].get("steps") == 300):
            del line["cpu_seconds"]
        if line["name"] == "untrained":
            line["seconds"] = 0.0
        elif line["seed"] == 2:
            line["cpu_seconds"] = 120.0
    assert draw(lines, "test", tmp_path, steps=300) == [
        "time.svg has untrained, 1 seed",
        "time.svg has st-distill of 300 steps, 3 seeds, the time of 2",
        "time.svg has st-distill of 1500 steps, 1 seed",
        "time.svg leaves out cosine of 300 steps, whose time is not known",
    ]
    assert drawn["untrained"] == [pytest.approx((0.0, 10.0))]
    assert drawn["st-distill"] == [pytest.approx((1.0, 80.0)), pytest.approx((1.5, 60.0))]


def test_pictures_have_runs_of_one_plan(tmp_path, monkeypatch):
    from benchmarks.quality import plot

    drawn = []
    monkeypatch.setattr(plot, "_line", lambda axes, name, points, style: drawn.append(points))
    monkeypatch.setattr(plot, "_save", lambda *arguments: None)
    before = lines_of("st-distill", dict.fromkeys(DIMS, 0.2), seed=0) + lines_of("st-distill", {128: 0.1}, steps=100)
    lines = [line | {"plan": "aaaaaaaa"} for line in before]
    lines += [line | {"plan": "bbbbbbbb"} for line in lines_of("st-distill", dict.fromkeys(DIMS, 0.7), seed=1)]
    told = draw(TEACHER + lines, "test", tmp_path, steps=600)
    assert told == [
        "time.svg has st-distill of 600 steps, 1 seed",
        'no picture has st-distill (steps 600, plan "aaaaaaaa"), 3-layer: later runs of that name are of another kind',
        'no picture has st-distill (steps 100, plan "aaaaaaaa"), 3-layer: later runs of that name are of another kind',
    ]
    scores = {score for points in drawn for _, score in points}
    assert sorted(scores) == pytest.approx([70.0, 80.0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trial", "plane"], "unknown trial plane: give --set, or one of plain"),
        (["trial", "mine", "--set", "seed"], "must be of the form field=value"),
        (["trial", "mine", "--set", "foo.bar=1"], "foo"),
        (["trial", "mine", "--set", "stages.all.steps=3"], "give --steps instead"),
        (
            ["trial", "batch-32", "--steps", "500"],
            "the trial batch-32 has a number of steps of its own: leave --steps out",
        ),
        (["trial", "rate-3e-4", "--rate", "1e-3"], "the trial rate-3e-4 has a rate of its own: leave --rate out"),
        (["trial", "layers-mean", "--student", "static"], "is one of the 3-layer student"),
        (["trial", "three-stages", "--student", "1-layer"], "is one of the 3-layer student"),
        (["trial", "plain", "--steps", "0"], "--steps: must be a whole number from 1 on; got 0"),
        (["trial", "plain", "--seeds", "-1"], "--seeds: must be a whole number from 0 on; got -1"),
        (["run", "--rate", "nan"], "--rate: must be above 0; got nan"),
        (["run", "--dropout", "x"], "--dropout: invalid dropout value"),
        (["run", "--dropout", "2"], "--dropout: must be from 0 to below 1"),
        (["run"], "The --data must be a folder as texts.py and tasks.py describe it"),
        (["table"], "holds no test results of that kind"),
    ],
)
def test_mistakes_are_told_before_any_work(words, message, tmp_path, monkeypatch, capsys):
    given = ["--data", str(tmp_path / "none"), "--teacher", "none"] if words[0] != "table" else []
    monkeypatch.setattr(sys, "argv", ["quality", *words, *given, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


def test_all_trials_take_what_is_asked_where_they_have_none_of_their_own(tmp_path, minilm, monkeypatch):
    done = {}
    monkeypatch.setattr(command, "require", lambda *given: None)
    monkeypatch.setattr(command, "run_teachers", lambda shop, split: None)
    monkeypatch.setattr(command, "run_method", lambda shop, name, settings, splits: done.update({name: settings}))
    words = ["--data", str(tmp_path), "--teacher", minilm, "--out", str(tmp_path / "out")]
    asked = ["--steps", "7", "--batch", "4", "--rate", "2e-3"]
    monkeypatch.setattr(sys, "argv", ["quality", "trial", "all", *words, *asked])
    command.main()
    assert list(done) == list(TRIALS)
    own = {name: (settings.steps, settings.batch, settings.rate) for name, settings in done.items()}
    assert {name: found for name, found in own.items() if found != (7, 4, 2e-3)} == {
        "ridge-only": (1, 4, 2e-3),
        "rate-3e-4": (7, 4, 3e-4),
        "rate-1e-3": (7, 4, 1e-3),
        "batch-32": (300, 32, 2e-3),
        "batch-16": (600, 16, 2e-3),
    }


def test_a_teacher_that_is_not_there_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "scifact").mkdir(parents=True)
    words = ["--data", str(tmp_path / "data"), "--teacher", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["quality", "run", *words])
    with pytest.raises(SystemExit):
        command.main()
    assert f"The teacher's model '{tmp_path}/none' could not be loaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        *("nothing", "{}", "[]"),
        *(
            json.dumps({key: value for key, value in TEACHER[0].items() if key != left})
            for left in ("seconds", "scores")
        ),
    ],
)
def test_a_line_that_is_no_result_is_named(text, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(TEACHER[0]) + f"\n{text}\n")
    monkeypatch.setattr(sys, "argv", ["quality", "table", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert f"{results}, line 2, is no result of this benchmark" in capsys.readouterr().err


def test_a_table_of_runs_that_are_not_there(tmp_path, monkeypatch, capsys):
    """The teacher and the untrained student, which are of any budget, do not stand for them."""
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in TEACHER))
    monkeypatch.setattr(sys, "argv", ["quality", "table", "--steps", "77", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        command.main()
    assert "holds no test results of that kind" in capsys.readouterr().err


def test_a_folder_of_other_data_is_refused(tmp_path):
    from benchmarks.quality.teacher import Workshop

    (tmp_path / "data" / "scifact").mkdir(parents=True)
    Workshop(tmp_path / "out", tmp_path / "data", "one", rows=10)
    Workshop(tmp_path / "out", tmp_path / "data", "one", rows=10)
    for teacher, rows in (("one", 20), ("two", 10)):
        with pytest.raises(ValueError, match="Name another --out"):
            Workshop(tmp_path / "out", tmp_path / "data", teacher, rows=rows)


def test_the_table_says_what_is_kept_of_the_teacher(tmp_path, monkeypatch, capsys):
    lines = TEACHER + lines_of("plain", dict.fromkeys(DIMS, 0.6))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", ["quality", "table", "--out", str(tmp_path)])
    command.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| plain | 128 |")]
    assert rows[0].endswith("| 60.00 | 75.0 | 75.0 | 1 | 60 | 100 |")
