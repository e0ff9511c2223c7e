from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from st_distill.exporting import export
from st_distill.modules import MatryoshkaProjection
from st_distill.recipe import Evaluation, Recipe, TeacherSpec, Texts
from st_distill.recipe.card import evaluation_results, write_run_card

RESULTS = {
    "dims": [24, 8],
    "fidelity": {
        "texts": 16,
        "neighbours": 10,
        "spearman": {"24": 0.91, "8": 0.7},
        "overlap": {"24": 0.625, "8": 0.5},
    },
    "retrieval": {
        "pairs": 6,
        "scores": {
            "student": {"ndcg@10": {"24": 0.5, "8": 0.25}, "accuracy@1": {"24": 0.4, "8": 0.2}},
            "large": {"ndcg@10": {"24": 0.75}, "accuracy@1": {"24": 0.5}},
        },
    },
    "similarity": {"pairs": 5, "scores": {"student": {"spearman": {"24": 0.8, "8": None}}}},
    "models": {"student": {"parameters": 17_500_000, "megabytes": 70.0, "texts_per_second": 340.4}},
}
EMISSIONS = {"emissions": 12.0, "energy_consumed": 0.25, "source": "codecarbon", "training_type": "fine-tuning"}
STAGES = [
    {"name": "projection", "metrics": {"steps": 40, "train_runtime": 90.0, "citations": {"One": "@misc{one}"}}},
    {"name": "all", "metrics": {"steps": 40, "citations": {"Two": "@misc{two}"}, "emissions": EMISSIONS}},
]


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "first|teacher").mkdir()
    (tmp_path / "first|teacher" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    return Recipe(
        output=str(tmp_path / "small"),
        student={"model": "someone/encoder", "layers": [0, 3]},
        teachers=[
            {"model": str(tmp_path / "first|teacher"), "name": "first"},
            {"model": "someone/large", "name": "large", "weight": 0.5},
        ],
        texts=[{"dataset": "someone/texts"}, {"path": str(tmp_path / "own.parquet")}],
        projection={"dims": [24, 8]},
        stages=[
            {"train": "projection", "steps": 40, "batch": 8, "losses": {"cosine": 10, "similarity": 200, "triplet": 0}},
            {
                "train": {"last_layers": 1},
                "steps": 40,
                "batch": 8,
                "also": [{"loss": "CoSENTLoss", "texts": {"path": str(tmp_path / "own.parquet")}}],
            },
        ],
    )


@pytest.fixture
def card(recipe, make_student):
    export(make_student(MatryoshkaProjection(32, [24, 8])), recipe.output)
    path = Path(recipe.output) / "README.md"
    trained = ModelCard.load(path, ignore_metadata_errors=False)
    # What the trainers of two stages leave.
    trained.data.tags += ["dataset_size:900", "loss:JasperDistill", "dataset_size:12000"]
    trained.save(path)
    write_run_card(Path(recipe.output), recipe, STAGES, RESULTS, {"Processor": "one | two"})
    return ModelCard.load(Path(recipe.output) / "README.md", ignore_metadata_errors=False)


def test_metadata_that_the_hub_reads(card):
    data = card.data.to_dict()
    assert data["base_model"] == "someone/encoder"
    assert data["datasets"] == ["someone/texts"]
    assert {"sentence-transformers", "loss:JasperDistill", "distillation", "matryoshka"} <= set(data["tags"])
    assert [tag for tag in data["tags"] if tag.startswith("dataset_size:")] == ["dataset_size:12000"]
    assert data["library_name"] == "sentence-transformers"
    assert data["co2_eq_emissions"]["emissions"] == 12.0
    assert "license" not in data
    (entry,) = data["model-index"]
    assert entry["name"] == "small"
    scores = {
        (result.task_type, result.dataset_name, result.metric_type): result.metric_value
        for result in card.data.eval_results
    }
    assert scores["information-retrieval", "Held-out pairs, 8 dimensions", "cosine_ndcg@10"] == 0.25
    assert scores["teacher-fidelity", "Held-out texts, 24 dimensions", "spearman"] == 0.91
    assert len(scores) == 9


def test_models_of_folders_are_told_apart(recipe, make_student, tmp_path):
    for name, header in (("one", "base_model: someone/base"), ("two", "model_name: my two"), ("three", "license: mit")):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "README.md").write_text(f"---\n{header}\n---\n")
    recipe.student.model = str(tmp_path / "one" / "model")
    recipe.teachers[0] = TeacherSpec(model=str(tmp_path / "two" / "model"), name="model")
    recipe.teachers[1] = TeacherSpec(model=str(tmp_path / "three" / "model"), name="large")
    export(make_student(MatryoshkaProjection(32, [24, 8])), recipe.output)
    write_run_card(Path(recipe.output), recipe, STAGES, {}, {})
    text = (Path(recipe.output) / "README.md").read_text()
    base = "model (from [someone/base](https://huggingface.co/someone/base)) with 2 of its layers"
    assert f"It is a distilled one: {base}, taught by my two and large." in text


def test_a_data_set_in_a_folder_is_none_of_the_hub(recipe, make_student, tmp_path):
    (tmp_path / "private" / "texts").mkdir(parents=True)
    names = (str(tmp_path / "private" / "texts"), "someone/texts", "squad")
    recipe.texts = [Texts(dataset=name) for name in names]
    export(make_student(MatryoshkaProjection(32, [24, 8])), recipe.output)
    write_run_card(Path(recipe.output), recipe, STAGES, {}, {})
    text = (Path(recipe.output) / "README.md").read_text()
    assert ModelCard(text).data["datasets"] == ["someone/texts", "squad"]
    assert "- texts, data: not known here" in text
    assert "private" not in text


def test_the_kind_of_a_file_is_no_data_set(recipe, make_student):
    export(make_student(MatryoshkaProjection(32, [24, 8])), recipe.output)
    path = Path(recipe.output) / "README.md"
    unknown = "<!-- - **Training Dataset:** Unknown -->\n"
    text = path.read_text()
    assert unknown in text
    path.write_text(text.replace(unknown, "- **Training Datasets:**\n    - parquet\n    - csv\n"))
    write_run_card(Path(recipe.output), recipe, STAGES, {}, {})
    text = path.read_text()
    assert "Training Dataset" not in text
    assert "- parquet" not in text
    assert "- **Output Dimensionality:** 24 dimensions" in text
    assert "- Texts: own.parquet" in text


def test_examples_of_a_card_are_nobodys_texts(recipe, make_student):
    export(make_student(MatryoshkaProjection(32, [24, 8])), recipe.output)
    path = Path(recipe.output) / "README.md"
    card = ModelCard(path.read_text())
    card.data.widget = [
        {"source_sentence": "a private text", "sentences": ["another one"]}
    ]  # of a run of earlier versions
    path.write_text(str(card))
    write_run_card(Path(recipe.output), recipe, STAGES, {}, {})
    text = path.read_text()
    assert "private" not in text
    assert "source_sentence: The weather is lovely today." in text


def test_identifiers_of_tasks_are_valid_and_nobodys(recipe):
    names = ["a/test", "a/test, limit 20", "a/test (2)", "a test", "数据", "../x..y--z", "L" * 200]
    task = {"kind": "sts", "metric": "spearman", "scores": {"64": {"float32": {"spearman": 0.5}}}}
    found = evaluation_results(recipe, {"tasks": {"tasks": [task | {"name": name} for name in names]}})
    types = [result.dataset_type for result in found]
    assert types[:5] == ["a-test-64", "a-test-limit-20-64", "a-test-2-64", "a-test-no.2-64", "task-64"]
    for name in types:
        validate_repo_id(name)
        assert "/" not in name
    assert len(set(types)) == len(names)
    assert [result.dataset_name for result in found] == [f"{name}, 64 dimensions" for name in names]


def test_only_dimensions_that_a_loss_looked_at_are_called_trained(recipe, make_student):
    for stage in recipe.stages:
        stage.dims = [16]
    recipe.stages[1].cosine_dims = [24]
    recipe.projection.dims = [24, 16, 8]
    export(make_student(MatryoshkaProjection(32, [24, 16, 8])), recipe.output)
    assert "They can be cut to 16, 8 dimensions" in (Path(recipe.output) / "README.md").read_text()
    write_run_card(Path(recipe.output), recipe, STAGES, {}, {})
    text = (Path(recipe.output) / "README.md").read_text()
    assert "The model was also trained at 16 dimensions: `model.encode(texts, truncate_dim=16)`" in text
    assert "The first 16 dimensions of a vector" in text
    assert "matryoshka" in text
    recipe.stages[0].dims = recipe.stages[1].dims = [24]
    write_run_card(Path(recipe.output), recipe, STAGES, {}, {})
    text = (Path(recipe.output) / "README.md").read_text()
    assert "trained at" not in text
    assert "Shorter vectors" not in text


def test_what_was_not_measured_is_no_result(recipe):
    assert evaluation_results(recipe, {}) == []
    assert [result.metric_value for result in evaluation_results(recipe, {"similarity": RESULTS["similarity"]})] == [
        0.8
    ]


def test_a_model_that_is_student_and_teacher_is_listed_as_both(recipe, make_student):
    recipe.teachers[1].model = recipe.student.model
    export(make_student(MatryoshkaProjection(32, [24, 8])), recipe.output)
    write_run_card(Path(recipe.output), recipe, STAGES, RESULTS, {})
    text = (Path(recipe.output) / "README.md").read_text()
    assert "someone/encoder), the student's start and a teacher: not known here" in text


def test_sections(card, tmp_path):
    text = card.text
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        *("Model Details", "Usage", "Dimensions", "Results", "Training", "Licence", "Additional Resources", "Citation")
    ]
    assert "[someone/encoder](https://huggingface.co/someone/encoder) with 2 of its layers, taught by first and" in text
    assert "| 24 | 91.0 | 62.5 | 50.0 | 75.0 | 80.0 |" in text
    assert "| 8 | 70.0 | 50.0 | 25.0 | - | - |" in text
    assert "| projection | projection | cosine 10, similarity 200 | 40 | 8 | 0.0001 | 1.5 |" in text
    # The second stage has the default, the cosine alone.
    assert "learns to give a text the teachers' vector (`cosine`) and a batch the teachers' matrix" in text
    assert "`triplet`" not in text
    assert "CoSENTLoss" in text
    assert "first\\|teacher, a teacher: cc-by-nc-4.0" in text
    assert "[someone/texts](https://huggingface.co/datasets/someone/texts), data: not known here" in text
    assert "0.250 kWh, 0.012 kg" in text
    assert "@misc{one}" in text
    assert "@misc{two}" in text
    assert "Processor: one \\| two" in text
    assert str(tmp_path) not in text


def test_what_failed_is_told_without_this_machine(recipe, make_student, tmp_path):
    elsewhere = "its error is in the log of the run and in its report"
    own = tmp_path / "own.parquet"
    recipe.evaluation = Evaluation(tasks=["secret/x.parquet"])
    recipe.texts[0].path = "My Files/secret project/pairs.parquet"
    told = {
        f"Row 3 of {own} must have a text in column 'a'": "Row 3 of own.parquet must have a text in column 'a'",
        f"{tmp_path}/first|teacher/config.json has no 'a'": "config.json has no 'a'",
        "My Files/secret project/pairs.parquet cannot be read": "pairs.parquet cannot be read",
        "Files/secret project/pairs.parquet cannot be read": elsewhere,
        "There is no file or folder 'x.tsv'; did you mean 'owner-of-a.tsv'?": "There is no file or folder 'x.tsv'",
        "'a " + "b " * 100_000: elsewhere,
        "secret/x.parquet cannot be read": "x.parquet cannot be read",
        "hidden/x.parquet cannot be read": elsewhere,
        "C:\\data\\x y.tsv cannot be read": elsewhere,
        "/users/an owner/x.tsv cannot be read": elsewhere,
        "'someone/large' has no tokenizer": "'someone/large' has no tokenizer",
        "someone/large/x.bin is damaged": elsewhere,
        "the model's vectors, the first being 'my dog': see": "the model's vectors, the first being '…': see",
        """Got "it's me" instead, 'one' and 'a \"b\" c'""": "Got '…' instead, 'one' and '…'",
        "Row 1 of column 'b c'. Got 'secret' instead": "Row 1 of column '…'. Got '…' instead",
        f"{own} is broken" + "!" * 900: "own.parquet is broken" + "!" * 278 + "…",
    }
    entries = [{"name": "a_task", "error": error} for error in told]
    tasks = {"dims": [24], "precisions": ["float32"], "tasks": [], "failed": entries[1:]}
    export(make_student(MatryoshkaProjection(32, [24, 8])), recipe.output)
    write_run_card(Path(recipe.output), recipe, STAGES, {"dims": [24], "tasks": tasks, "failed": entries[:1]}, {})
    text = ModelCard.load(Path(recipe.output) / "README.md").text
    listed = text.partition("Could not be measured:\n\n")[2].partition("\n\n")[0]
    assert listed.replace("\\", "").splitlines() == [f"- a_task: {line}" for line in told.values()]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload needs. ``files`` of the server holds what was committed."""

    server: HubServer

    def log_message(self, *args):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append(f"GET {self.path}")
        if self.path.startswith("/api/models/someone/small"):
            return self.answer({"id": "someone/small", "sha": "0" * 40, "siblings": []})
        return self.answer({"error": "Entry not found"}, 404)

    def do_HEAD(self):
        self.server.asked.append(f"HEAD {self.path}")
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_POST(self):
        self.server.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            return self.answer({"url": f"{self.server.url}/someone/small", "name": "someone/small"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"{self.server.url}/someone/small/commit/{'1' * 40}"
            return self.answer({"success": True, "commitUrl": url, "commitOid": "1" * 40})
        return self.answer({"errors": [], "warnings": []})  # the check of the metadata


class HubServer(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Hub)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


PUSH = """
import sys
from sentence_transformers import SentenceTransformer
print(SentenceTransformer(sys.argv[1], device="cpu").push_to_hub("someone/small", token="hf_none"))
"""


def test_push_to_hub(card, recipe, tmp_path):
    """As for any sentence-transformers model; the repository is the one that the usage then names."""
    with HubServer() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", PUSH, recipe.output], env=environment, capture_output=True, text=True, check=False
        )
        hub.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("1" * 40)
    assert {"modules.json", "model.safetensors", "2_Dense/config.json", "README.md"} <= set(hub.files)
    pushed = ModelCard(hub.files["README.md"].decode(), ignore_metadata_errors=False)
    assert 'model = SentenceTransformer("someone/small", truncate_dim=8)' in pushed.text
    assert pushed.data.to_dict() == card.data.to_dict()
    assert "## Results" in pushed.text
