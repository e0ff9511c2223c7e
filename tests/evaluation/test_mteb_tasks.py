from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict
from lookup import lookup, on_circle

from st_distill.cli import main
from st_distill.errors import MissingExtraError
from st_distill.evaluation.mteb_tasks import evaluate_mteb, find_mteb_tasks


def test_missing_extra_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'st-distill\[mteb\]'"):
        find_mteb_tasks(["STSBenchmark"])


@pytest.fixture
def local_sts():
    """A task of MTEB with four pairs of its own."""
    mteb = pytest.importorskip("mteb")
    from mteb.abstasks import AbsTaskSTS

    rows = {"sentence1": ["a"] * 4, "sentence2": ["b", "c", "d", "f"], "score": [5.0, 4.0, 0.5, 1.0]}

    class LocalSTS(AbsTaskSTS):
        metadata = mteb.get_task("STSBenchmark").metadata.model_copy(update={"name": "LocalSTS"})
        min_score, max_score = 0, 5

        def load_data(self, **options):
            self.dataset = DatasetDict(test=Dataset.from_dict(rows))
            self.data_loaded = True

    return LocalSTS


@pytest.mark.filterwarnings("ignore")  # mteb's own
def test_texts_of_mteb_that_are_cut_are_told(local_sts, make_student, caplog):
    with caplog.at_level("WARNING", "st_distill"):
        evaluate_mteb(make_student(max_seq_length=4), [local_sts()], prompts={"text": "the dog "}, precisions=["int8"])
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("st_distill")]
    assert told.startswith(
        "5 of 5 texts (5 of LocalSTS) have more tokens than the model's 4, up to 5, and are truncated"
    )


@pytest.mark.filterwarnings("ignore")  # mteb's own
def test_a_task_of_mteb_from_local_data(local_sts, tmp_path):
    model = lookup(on_circle({"a": 0, "b": 10, "c": 50, "d": 60, "f": 180}))
    (task,) = evaluate_mteb(model, [local_sts()], dims=[2, 1], precisions=["float32", "binary"], folder=tmp_path)
    assert (task["name"], task["kind"]) == ("LocalSTS", "sts")
    assert task["scores"]["2"]["float32"]["main_score"] == pytest.approx(0.8)
    assert sorted(set(model[0].seen)) == ["a", "b", "c", "d", "f"]
    assert len(model[0].seen) <= 8  # both columns once, for two dimensions and two precisions
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1-binary", "2", "2-binary"]
    stored = json.loads((tmp_path / "2" / "LocalSTS.json").read_text())
    assert stored["scores"]["test"][0]["main_score"] == pytest.approx(0.8)
    assert {"task_name", "mteb_version", "scores"} <= set(stored)
    (alone,) = evaluate_mteb(model, [local_sts()], dims=[2], precisions=["int8"])
    (beside,) = evaluate_mteb(model, [local_sts()], dims=[2], precisions=["float32", "int8"])
    assert alone["scores"]["2"]["int8"] == beside["scores"]["2"]["int8"]
    model[0].table["c"][0] = float("nan")
    with pytest.raises(
        ValueError, match="vectors of the model hold NaN or infinity, in 1 of 4 texts, the first being 'c'"
    ):
        evaluate_mteb(model, [local_sts()])


@pytest.mark.filterwarnings("ignore")  # mteb's own
def test_results_of_mteb_replace_their_own_alone(local_sts, make_student, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("st_distill.evaluation.mteb_tasks.find_mteb_tasks", lambda names: [local_sts()])
    make_student().save(str(tmp_path / "model"))
    words = ["eval", str(tmp_path / "model"), "mteb:LocalSTS", "--mteb-results", str(tmp_path / "results")]
    file = tmp_path / "results" / "32" / "LocalSTS.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"precious": 1}')
    assert main(words) == 2
    assert f"The file of --mteb-results is replaced, and {file} is not one" in capsys.readouterr().err
    file.unlink()
    (file.parent / "LocalSTS.json.17.tmp").touch()  # of a killed command
    for _ in range(2):
        assert main(words) == 0
        assert [path.name for path in file.parent.iterdir()] == ["LocalSTS.json"]
        assert "scores" in json.loads(file.read_text())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("SciFcat", r"; did you mean 'SciFact'\?"),
        ("stsbenchmark", r"; did you mean 'STSBenchmark'\?"),
        ("emotion", r"; did you mean '\w*Emotion\w*'\?"),
        ("xqzxqzxqz", r": mteb available-tasks lists the names of all\."),
    ],
)
def test_a_task_that_mteb_has_not_is_told_with_the_nearest(name, remedy):
    pytest.importorskip("mteb")
    with pytest.raises(ValueError, match=f"^MTEB has no task '{name}'{remedy}$"):
        find_mteb_tasks([name])
