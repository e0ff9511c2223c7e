from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from PIL import Image
from report_material import TEACHER

from st_distill.cli import main
from st_distill.errors import MissingExtraError
from st_distill.files import read_record, write_record
from st_distill.report import page as report_page
from st_distill.report.page import write_page
from st_distill.report.speed import Speed, resident

NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="session")
def page(finished_run) -> Path:
    return write_page(finished_run)


class Elements(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data):
        self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_shows_what_the_run_has(page):
    elements = Elements(page)
    sections = [attributes["aria-labelledby"] for attributes in elements.of("section")]
    assert [name for name in sections if not name.startswith("pictures-")] == [
        *(
            "origin",
            "findings",
            "quality",
            "training",
            "agreement",
            "differences",
            "pictures",
            "size",
            "storage",
            "recipe",
        ),
    ]
    charts = {attributes["aria-labelledby"].split("-title")[0] for attributes in elements.of("svg")}
    assert charts == {
        *("fidelity-spearman", "fidelity-overlap", "retrieval", "recall-1", "recall-10"),
        *("stage-1", "stage-2", "stage-3", "similarities", "speed"),
    }
    for word in (
        TEACHER,
        "before training",
        "onnxruntime",
        "sentence-transformers",
        "learning_rate: 0.001",
        "0.096 GB",
        "What looks wrong",
        "6 of 12 texts of the evaluation's retrieval (50 %) are training texts too",
    ):
        assert word in elements.text


def test_a_converted_model_has_its_memory(page):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    rows = re.findall(r"<th[^>]*>([^<]*)</th><td>onnxruntime, cpu</td>(.*?)</tr>", page.read_text(encoding="utf-8"))
    assert [name for name, _ in rows] == ["student", TEACHER]
    for _, cells in rows:
        memory = re.findall("<td>([^<]*)</td>", cells)[-1]
        # The conversion, as the libraries alone, takes hundreds of MB.
        assert memory == "-" if resident() is None else 0 < int(memory.removesuffix(" MB")) < 100


def test_every_picture_is_a_png_too(page):
    names = {path.stem for path in (page.parent / "pictures").iterdir()}
    charts = {attributes["aria-labelledby"].split("-title")[0] for attributes in Elements(page).of("svg")}
    assert names == charts | {"gallery"}
    for path in (page.parent / "pictures").iterdir():
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width == 1080


def test_strangers_texts_stay_texts(page):
    elements = Elements(page)
    assert not elements.of("script")
    assert all(attributes["src"].startswith("data:image/") for attributes in elements.of("img"))
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;document.title = &#39;broken&#39;&lt;/script&gt;" in html
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", html)


def test_the_page_can_be_read_by_everyone(page):
    elements = Elements(page)
    identities = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(identities) == len(set(identities))
    for tag, attributes in elements.tags:
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in identities
        for identity in attributes.get("aria-labelledby", "").split():
            assert identity in identities
    assert all(attributes["alt"] for attributes in elements.of("img"))
    levels = [int(tag[1]) for tag, _ in elements.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(next_level <= level + 1 for level, next_level in itertools.pairwise(levels))


CONTRAST = """(() => {
  const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const drawing = element.closest("svg");
    if (drawing && element.tagName !== "text") continue;  // names and descriptions are not drawn
    const style = getComputedStyle(element);
    const colour = luminance(drawing ? style.fill : style.color);
    const ratio = (Math.max(colour, paper) + 0.05) / (Math.min(colour, paper) + 0.05);
    if (ratio < 4.5) found[element.tagName + " " + element.textContent.trim().slice(0, 40)] = ratio;
  }
  return found;
})()"""


@NEEDS_CHROMIUM
def test_in_a_browser(page, tmp_path, request):
    shots = Path(request.config.getoption("--basetemp") or tmp_path) / "screenshots"
    shots.mkdir(exist_ok=True)
    with Browser(tmp_path / "profile") as browser:
        for device, width in (("desktop", 1280), ("phone", 360)):
            for scheme in ("light", "dark"):
                browser.show(page, width=width, scheme=scheme, mobile=device == "phone")
                browser.screenshot(shots / f"{device}-{scheme}.png")
                assert browser.evaluate("document.title") == "small: report of a distillation"
                assert browser.evaluate("document.documentElement.scrollWidth") == width
                assert browser.evaluate(CONTRAST) == {}
                said = [
                    name
                    for name, _ in browser.events
                    if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")
                ]
                said += [event["entry"]["text"] for name, event in browser.events if name == "Log.entryAdded"]
                assert said == []
                asked = [
                    event["request"]["url"] for name, event in browser.events if name == "Network.requestWillBeSent"
                ]
                assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
                assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
                with Image.open(shots / f"{device}-{scheme}.png") as shot:
                    assert shot.width == width
                    assert (max(shot.convert("L").getpixel((2, 2)), 0) < 60) == (scheme == "dark")


def test_a_run_that_is_not_finished(finished_run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "half-run"
    folder.mkdir()
    state = read_record(finished_run / "run.json")
    state["stages"][1] = {**state["stages"][1], "done": False, "metrics": {}}
    write_record(folder / "run.json", state)
    recipe = (finished_run / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace(str(finished_run.with_name("small")), str(tmp_path / "half")))
    assert main(["report", str(tmp_path / "half"), "--out", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out == f"The report is {tmp_path / 'page' / 'index.html'}.\n"
    elements = Elements(tmp_path / "page" / "index.html")
    assert "The run is not finished." in elements.text
    assert "there is no model in" in elements.text
    assert "not done" in elements.text
    assert {attributes["aria-labelledby"].split("-title")[0] for attributes in elements.of("svg")} == {
        "stage-1",
        "stage-3",
    }
    assert not (tmp_path / "page" / "pictures" / "gallery.png").exists()


def test_what_lies_where_the_report_goes(finished_run, tmp_path):
    for name in ("run.json", "recipe.yaml"):
        shutil.copy(finished_run / name, tmp_path)
    with (tmp_path / "recipe.yaml").open("a") as file:
        file.write("# changed\n")
    pictures = tmp_path / "page" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "stage-1.png.7.tmp").write_text("what a killed report left")
    elements = Elements(write_page(tmp_path, tmp_path / "page", speed=False))
    assert "recipe.yaml has changed since" in elements.text
    assert [path.name for path in pictures.iterdir() if path.suffix == ".tmp"] == []
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="results.json must hold a run's results"):
        write_page(tmp_path)


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        ("file", NotADirectoryError, "cannot be written to {0}/file: {0}/file is no folder"),
        ("file/page", NotADirectoryError, "cannot be written to {0}/file/page: {0}/file is no folder"),
        ("link", NotADirectoryError, "cannot be written to {0}/link: {0}/link is no folder"),
        ("old", NotADirectoryError, "cannot be written to {0}/old/pictures: {0}/old/pictures is no folder"),
        ("model", FileExistsError, "shall not be written to {0}/model: {0}/model is a model"),
        ("model/report", FileExistsError, "shall not be written to {0}/model/report: {0}/model is a model"),
        ("closed/new/page", PermissionError, "cannot be written to {0}/closed/new/page: the folder {0}/closed is not"),
        (
            "taken",
            IsADirectoryError,
            "cannot be written to {0}/taken: {0}/taken/index.html is a folder. Remove it, or n",
        ),
    ],
)
def test_a_place_that_cannot_be_is_told_before_the_work(place, error, reason, finished_run, tmp_path, monkeypatch):
    for folder in ("old", "closed", "taken/index.html", "model"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("file", "old/pictures", "model/modules.json"):
        (tmp_path / file).write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    # The right to write is taken away like this, because root would keep it.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    monkeypatch.setattr(report_page, "_collect", lambda *arguments, **options: pytest.fail("the work has begun"))
    with pytest.raises(error, match=re.escape(reason.format(tmp_path)) + ".*ame another place with --out"):
        write_page(finished_run, tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_run(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "must be the work folder of a run, with a run.json" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["null", "NaN"])
def test_figures_that_are_no_numbers_are_dashes(score, finished_run, tmp_path):
    shutil.copy(finished_run / "run.json", tmp_path)
    scores = f'"student": {{"M": {{"24": {score}, "8": 0.5}}}}, "large": {{"M": {{"24": {score}, "8": {score}}}}}'
    parts = (("retrieval", "ndcg@10"), ("similarity", "spearman"))
    told = ", ".join(f'"{part}": {{"pairs": 4, "scores": {{{scores.replace("M", metric)}}}}}' for part, metric in parts)
    (tmp_path / "results.json").write_text(f'{{"results": {{"dims": [24, 8], {told}}}, "environment": {{}}}}')
    page = write_page(tmp_path, speed=False)
    elements = Elements(page)
    assert "nDCG@10, times 100, 24 dimensions" in elements.text
    assert "Line chart of nDCG@10 x 100 against dimensions: student 50.0 at 8 dimensions." in elements.text
    assert not re.search(r"\bnan\b", elements.text, re.IGNORECASE)
    assert page.read_text(encoding="utf-8").count('<th scope="row" dir="auto">24</th><td>-</td><td>-</td>') == 2


@pytest.mark.parametrize(
    ("recipe", "findings", "sentence"),
    [
        ("diagnosis: false\n", None, "Nothing was looked for: the recipe says diagnosis: false."),
        ("", None, "Nothing has been looked for yet."),
        ("", '{"before": []}', "Nothing that was looked for was found."),
    ],
)
def test_a_page_without_findings_says_why(recipe, findings, sentence, finished_run, tmp_path):
    state = read_record(finished_run / "run.json")
    for stage in state["stages"]:
        stage["metrics"].pop("findings", None)
    write_record(tmp_path / "run.json", state)
    recipe = (finished_run / "recipe.yaml").read_text().replace(str(finished_run), str(tmp_path / "gone")) + recipe
    (tmp_path / "recipe.yaml").write_text(recipe)
    if findings is not None:
        (tmp_path / "findings.json").write_text(findings)
    assert sentence in Elements(write_page(tmp_path, speed=False)).text


def test_a_report_from_another_folder_replaces_nothing(finished_run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(finished_run, tmp_path / "small-run", ignore=shutil.ignore_patterns("report"))
    recipe = (copy / "recipe.yaml").read_text().replace(str(finished_run.parent / "small"), "small")
    (copy / "recipe.yaml").write_text(recipe)
    (copy / "report").mkdir()
    before = '<meta name="generator" content="st-distill 0.0.1">'
    (copy / "report" / "index.html").write_text(before)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["report", str(copy)]) == 2
    said = capsys.readouterr().err
    assert "The model of the run must be in small, seen from the current folder. It is not: start" in said
    assert f"with: st-distill run {copy}/recipe.yaml --set work={copy} --set output=FOLDER --resume" in said
    assert [path.name for path in (copy / "report").iterdir()] == ["index.html"]
    assert (copy / "report" / "index.html").read_text() == before


def test_a_page_of_the_user_is_not_replaced(finished_run, tmp_path, capsys):
    (tmp_path / "index.html").write_text("mine")
    assert main(["report", str(finished_run), "--out", str(tmp_path), "--no-speed"]) == 2
    assert "index.html is no report of st-distill, and would be replaced" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_report_runs_no_code_of_a_teacher(finished_run, tmp_path, monkeypatch):
    copy = shutil.copytree(finished_run, tmp_path / "small-run", ignore=shutil.ignore_patterns("report"))
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("teachers:\n- ", "teachers:\n- trust_remote_code: true\n  "))
    asked: dict[str, dict] = {}

    def measured(models, *arguments, **options):
        asked.update(models)
        return [Speed("student", "torch", 10.0, None, "cpu")]

    monkeypatch.setattr(report_page, "measure_speed", measured)
    text = Elements(write_page(copy, tmp_path / "page")).text
    assert list(asked) == ["student"]
    assert "trust_remote_code" not in asked["student"]
    assert f"{TEACHER} was not measured: it runs code of its own, which a report does not." in text


def test_damaged_findings_are_told_and_not_left_out(finished_run, tmp_path, capsys):
    shutil.copy(finished_run / "run.json", tmp_path)
    (tmp_path / "findings.json").write_text('{"before": [')
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.search(
        rf"{tmp_path}/findings.json is not a JSON file .* Remove it, and measure again with: st-distill run", said
    )
    assert not (tmp_path / "report").exists()


def test_a_missing_extra_says_what_to_install(finished_run, tmp_path, monkeypatch):
    shutil.copy(finished_run / "run.json", tmp_path)
    for package in ("jinja2", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            line = f"needs {package}, which is not installed. Run: pip install 'st-distill[report]'"
            with pytest.raises(MissingExtraError, match=re.escape(line)):
                write_page(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_copied_run_is_compared_with_its_own_vectors(finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "copy-run", ignore=shutil.ignore_patterns("report"))
    with (copy / "recipe.yaml").open("a") as file:
        file.write(f"work: {tmp_path / 'gone'}\n")
    elements = Elements(write_page(copy, tmp_path / "page", speed=False))
    (absent,) = re.findall("What is not shown(.*?)What was distilled", elements.text, re.DOTALL)
    changed = "the recipe as the run had it: recipe.yaml has changed since; what is shown is what it says now."
    assert absent.strip() == changed
    sections = [attributes["aria-labelledby"] for attributes in elements.of("section")]
    assert {"agreement", "differences"} <= set(sections)
    assert re.search(r"before training \d+\.\d at 24 dimensions", elements.text)
