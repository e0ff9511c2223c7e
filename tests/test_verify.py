"""Each kind of damage is found, and mended where it can be."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_distill import Teacher, TeacherStore, files
from st_distill.cli import main
from st_distill.exporting import export
from st_distill.locks import FolderLock
from st_distill.modules import MatryoshkaProjection
from st_distill.recipe import load_recipe, run
from st_distill.recipe.state import RunState, may_be_worked_in
from st_distill.records import setting_work
from st_distill.report.run import read_run
from st_distill.store import damage
from st_distill.verify import verify

TEXTS = [f"text {number}" for number in range(10)]
PAIRS = [(text, role) for text in TEXTS for role in ("query", "document")]


class Asked:
    """A teacher whose vectors depend on the text alone; knows what it was asked."""

    revision = "1"

    def __init__(self, name: str = "first") -> None:
        self.name = name
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        return np.stack([np.random.default_rng([*text.encode()]).normal(size=6) for text in texts])


def build(path, texts=PAIRS, *teachers):
    given = [Teacher(teacher, batch_size=4, prompts={"query": "q: "}) for teacher in teachers or (Asked(),)]
    return TeacherStore.create(path, texts, given, shard_rows=4, show_progress=False)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # the end of an npy file is data, that of a JSON file a checksum or a bracket
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def delete(path):
    path.unlink()


DAMAGES = [flip, truncate, delete]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "store"
    build(path)
    return path


@pytest.fixture
def store(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "store")


def found(verification) -> list[str]:
    return [finding.file for finding in verification.findings]


def test_a_whole_store(store):
    assert verify(store).is_whole
    assert verify(store, repair=True).findings == []  # which needs neither texts nor teachers


@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize(
    "file",
    [
        "store.json",
        "store.copy.json",
        "index/00000.hashes.npy",
        "index/00000.pairs.npy",
        "teachers/first/00000.npy",
        "teachers/first/00003.texts.npy",
    ],
)
def test_damage_is_found_and_mended(file, harm, store, whole):
    before = build(whole).gather(range(20))
    harm(store / file)
    if (file, harm) != ("store.copy.json", delete):  # an old store has no copy either
        assert found(verify(store)) == [file]
    asked = Asked()
    teacher = Teacher(asked, batch_size=4, prompts={"query": "q: "})
    mended = verify(store, repair=True, texts=PAIRS, teachers=teacher, show_progress=False)
    assert mended.is_whole
    assert verify(store).findings == []
    assert len(asked.texts) == (4 if file.startswith("teachers") else 0)  # the one shard, and nothing else
    np.testing.assert_allclose(TeacherStore.open(store).gather(range(20)), before, atol=1e-6)


@pytest.mark.parametrize("harm", DAMAGES)
def test_one_repair_mends_the_whole_index_and_a_shard(harm, store, whole):
    files_of_both = ["index/00000.hashes.npy", "index/00000.pairs.npy", "teachers/first/00001.npy"]
    for file in files_of_both:
        harm(store / file)
    assert set(files_of_both) <= set(found(verify(store)))
    asked = Asked()
    teacher = Teacher(asked, batch_size=4, prompts={"query": "q: "})
    assert verify(store, repair=True, texts=PAIRS, teachers=teacher, show_progress=False).is_whole
    assert len(asked.texts) == 4
    for file in files_of_both[:2]:
        assert (store / file).read_bytes() == (whole / file).read_bytes()


def test_texts_in_another_order_give_the_vectors_but_not_the_index(store):
    delete(store / "teachers/first/00001.npy")
    teacher = Teacher(Asked(), prompts={"query": "q: "})
    assert verify(store, repair=True, texts=PAIRS[::-1], teachers=teacher, show_progress=False).is_whole
    delete(store / "index/00000.hashes.npy")
    left = verify(store, repair=True, texts=PAIRS[::-1], teachers=teacher, show_progress=False)
    assert not left.is_whole
    assert "the texts do not give it again" in left.findings[0].message


def test_a_repair_that_is_killed_leaves_nothing(store, whole, monkeypatch):
    index = store / "index" / "00000.hashes.npy"
    index.unlink()
    replace = os.replace

    def killed(source, target):
        if target == index:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            verify(store, repair=True, texts=PAIRS, teachers=Teacher(Asked(), prompts={"query": "q: "}))
    shutil.copy(whole / "index" / index.name, index)
    build(store)
    assert sorted(path.name for path in index.parent.iterdir()) == sorted(os.listdir(whole / "index"))


def test_what_cannot_be_embedded_again_stays(store):
    file = store / "teachers/first/00000.npy"
    flip(file)
    content = file.read_bytes()
    asked = Asked()
    teacher = Teacher(asked, prompts={"query": "q: "})
    missing = verify(store, repair=True, texts=PAIRS[-2:], teachers=teacher, show_progress=False)
    assert "4 of its texts are not given" in missing.findings[0].message
    remedy = "repair it with the recipe that has them (--recipe FILE), or restore the file from a copy"
    assert missing.findings[0].remedy == remedy
    assert not asked.texts
    other = verify(store, repair=True, texts=PAIRS, teachers=Teacher(Asked("other")), show_progress=False)
    assert "teacher 'first' is not given" in other.findings[0].message
    assert other.findings[0].remedy == remedy
    assert not missing.is_whole
    assert not other.is_whole
    assert file.read_bytes() == content


def repaired(store, texts=PAIRS, function=None):
    """What a repair with a teacher finds; also what the teacher was asked."""
    asked = function or Asked()
    teacher = Teacher(asked, batch_size=2, prompts={"query": "q: "})
    return verify(store, repair=True, texts=texts, teachers=teacher, show_progress=False), asked.texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revision": "2"}, "must have the revision '1'"),
        ({"truncate_dim": 4}, "must have the settings"),
        ({"prompts": {"query": "query: "}}, "must have the prompt for the role 'query' 'q: '"),
    ],
)
def test_another_teacher_repairs_nothing(options, message, store):
    """It cannot make the vectors again that it would replace, however damaged these are."""
    for shard in store.glob("teachers/first/?????.npy"):
        flip(shard)
    kept = {path: path.read_bytes() for path in store.rglob("*") if path.is_file() and path.name != "lock"}
    before = verify(store)
    teacher = Teacher(Asked(), **({"prompts": {"query": "q: "}} | options))
    with pytest.raises(ValueError, match=message):
        verify(store, repair=True, texts=PAIRS, teachers=teacher, show_progress=False)
    assert {path: path.read_bytes() for path in kept} == kept
    assert verify(store) == before
    assert len(before.findings) == 6


def test_a_repair_whose_teacher_fails_loses_nothing(store, whole):
    """The damaged file stays until its texts have vectors in another, and what the teacher gave is kept."""
    flip(store / "teachers/first/00000.npy")
    failing = Asked()

    def fail(texts):
        if failing.texts:
            raise RuntimeError("the server is gone")
        return Asked.__call__(failing, texts)

    fail.name, fail.revision = "first", "1"
    with pytest.raises(RuntimeError, match="the server is gone"):
        verify(store, repair=True, texts=PAIRS, teachers=Teacher(fail, batch_size=2, prompts={"query": "q: "}))
    assert found(verify(store)) == ["teachers/first/00000.npy"]
    mended, asked = repaired(store)
    assert mended.is_whole
    assert (len(failing.texts), len(asked)) == (2, 2)
    assert verify(store).findings == []
    assert not (store / "teachers/first/00000.npy").exists()
    np.testing.assert_allclose(
        TeacherStore.open(store).gather(range(20)), TeacherStore.open(whole).gather(range(20)), atol=1e-6
    )


def test_a_repair_that_is_killed_before_its_end_goes_on(store, monkeypatch):
    flip(store / "teachers/first/00000.npy")

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(damage.Builder, "take_out", killed)
        with pytest.raises(KeyboardInterrupt):
            repaired(store)
    assert found(verify(store)) == ["teachers/first/00000.npy"]
    mended, asked = repaired(store)
    assert mended.is_whole
    assert not asked
    assert TeacherStore.open(store).describe()["teachers"]["first"]["vectors"] == 20


def test_what_can_be_embedded_again_is(tmp_path):
    store = tmp_path / "store"
    before = build(store, PAIRS, Asked(), Asked("second")).gather(range(20))
    for name in ("first", "second"):
        flip(store / f"teachers/{name}/00000.npy")
    mended, asked = repaired(store)
    assert [(finding.file, finding.repaired) for finding in mended.findings] == [
        ("teachers/first/00000.npy", True),
        ("teachers/second/00000.npy", False),
    ]
    assert "teacher 'second' is not given to embed its texts again" in mended.findings[1].message
    assert len(asked) == 4
    flip(store / "teachers/second/00000.npy")  # which restores it
    assert verify(store).findings == []
    np.testing.assert_allclose(TeacherStore.open(store).gather(range(20)), before, atol=1e-6)


def test_a_build_that_was_stopped_is_told_and_gone_on_with(tmp_path, capsys):
    store = tmp_path / "store"
    failing = Asked()

    def fail(texts):
        if len(failing.texts) >= 6:
            raise RuntimeError("the server is gone")
        return failing(texts)

    fail.name, fail.revision = "first", "1"
    teachers = [Teacher(function, batch_size=2) for function in (fail, Asked("second"))]
    with pytest.raises(RuntimeError):
        TeacherStore.create(store, TEXTS, teachers, show_progress=False)
    stopped = verify(store)
    assert found(stopped) == ["teachers/first", "teachers/second"]
    assert "4 of the 10 rows have no vector of this teacher: a build is running, or was" in stopped.findings[0].message
    assert stopped.findings[1].message.startswith("10 of the 10 rows")
    assert "st-distill embed RECIPE" in stopped.findings[0].remedy
    assert stopped.as_text().endswith("is not whole: 2 findings.")
    asked = Asked()
    verify(store, repair=True, texts=TEXTS, teachers=[Teacher(asked), Teacher(Asked("second"))], show_progress=False)
    assert len(asked.texts) == 4
    assert verify(store).is_whole
    # A teacher that was not asked for a role misses nothing there.
    TeacherStore.create(store, [("new", "query")], Teacher(Asked("second")), show_progress=False)
    assert verify(store).is_whole


def test_a_build_that_was_stopped_before_its_first_file_is_told(store):
    for name in ("store.json", "store.copy.json"):
        (store / name).unlink()
    (finding,) = verify(store).findings
    assert finding.message == "there is none yet: the first build is running, or was stopped"
    assert "st-distill embed RECIPE" in finding.remedy
    assert repaired(store) == (verify(store), [])


@pytest.mark.parametrize("file", ["store.json", "store.copy.json"])
@pytest.mark.parametrize("harm", [flip, truncate])
def test_a_damaged_description_says_its_remedy_once(file, harm, store):
    harm(store / file)
    assert verify(store).as_text().count("--repair") == 1


def test_an_older_description_costs_nothing(store):
    older = {name: (store / name).read_bytes() for name in ("store.json", "store.copy.json")}
    more = [*PAIRS, *((f"new {number}", "query") for number in range(3))]
    build(store, more)
    (store / "store.json").write_bytes(older["store.json"])
    with pytest.raises(
        ValueError, match=r"older than its copy, which names 1 more of .* Put its copy store.copy.json in"
    ):
        build(store, more)
    (finding,) = verify(store).findings
    assert "it is older than its copy, which names 1 more of the files of vectors" in finding.message
    mended, asked = repaired(store, more)
    assert mended.is_whole
    assert not asked
    assert verify(store).findings == []


def test_files_that_no_description_names_are_put_aside(store, caplog):
    """Both descriptions were put back from an older state."""
    older = {name: (store / name).read_bytes() for name in ("store.json", "store.copy.json")}
    more = [*PAIRS, *((f"new {number}", "query") for number in range(3))]
    build(store, more)
    names = [
        "index/00001.hashes.npy",
        "index/00001.pairs.npy",
        "teachers/first/00006.npy",
        "teachers/first/00006.texts.npy",
    ]
    later = {name: (store / name).read_bytes() for name in names}
    for name, content in older.items():
        (store / name).write_bytes(content)
    for number in range(2):
        build(store)
        assert f"4 files in the store {store}, the first index/00001.hashes.npy, are not in its" in caplog.text
        aside = store / "aside" / f"{number:05d}"
        assert {name: (aside / name).read_bytes() for name in names} == later
        assert not any((store / name).exists() for name in names)
        for name, content in later.items():
            (store / name).write_bytes(content)


def test_a_file_without_a_row_is_no_work_of_a_build(store, caplog):
    path = store / "teachers" / "first" / "00006.npy"
    np.save(path, np.empty((0, 4), dtype=np.float16))
    build(store)
    assert not path.exists()
    assert not (store / "aside").exists()
    assert not caplog.records


def journal_of(store, name="first"):
    """The last shard of a store, put into the journal of a process that has died."""
    description = files.read_record(store / "store.json")
    entry = description["teachers"]["first"]
    own = json.loads(
        json.dumps(entry | {"shards": [entry["shards"].pop()]}).replace("teachers/first", f"teachers/{name}")
    )
    files.write_record(store / "store.json", description)
    session = store / "processes" / "0123456789abcdef"
    session.mkdir(parents=True)
    files.write_record(session / "1.journal.json", description | {"index": [], "teachers": {name: own}})
    return session / "1.journal.json"


def test_what_stands_in_a_journal_is_part_of_the_store(store):
    journal_of(store)
    assert verify(store).findings == []
    asked = Asked()
    build(store, PAIRS, asked)
    assert not asked.texts


@pytest.mark.parametrize("harm", [flip, truncate])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_damaged_journal_is_mended_or_put_aside(harm, copies, store, whole):
    journal = journal_of(store)
    for path in [journal, files.copy_of(journal)][:copies]:
        harm(path)
    command = f"st-distill verify {store} --repair"
    with pytest.raises(ValueError, match=rf"1\.journal\.json .*1\.journal\.copy\.json in its place, or .*{command}"):
        build(store)
    text = verify(store).as_text()
    assert text.startswith("processes/0123456789abcdef/1.journal.json: ")
    mended, asked = repaired(store)
    assert mended.is_whole
    assert len(asked) == (0 if copies == 1 else 2)
    assert verify(store).findings == []
    assert not (store / "processes").exists()
    if copies == 2:  # what it named may have been paid for
        last = "teachers/first/00005.npy"
        (aside,) = (store / "aside").rglob(f"*/{last}")
        assert aside.read_bytes() == (whole / last).read_bytes()


def test_a_journal_of_an_unknown_teacher(store):
    journal_of(store, "stranger")
    with pytest.raises(
        ValueError, match="1.journal.json, there are vectors of teacher 'stranger', which store.json has not"
    ):
        build(store)
    mended, asked = repaired(store)
    assert mended.is_whole
    assert len(asked) == 2
    build(store)


def test_both_descriptions_gone_is_said(store):
    truncate(store / "store.json")
    truncate(store / "store.copy.json")
    left = verify(store, repair=True, texts=PAIRS, teachers=Teacher(Asked()), show_progress=False)
    assert "Its copy cannot be read either" in left.findings[0].message


def test_a_lost_description_does_not_let_a_build_remove_the_vectors(store):
    delete(store / "store.json")
    with pytest.raises(ValueError, match="has lost its store.json.*st-distill verify .*store --repair"):
        build(store)
    with pytest.raises(FileNotFoundError, match="has lost its store.json"):
        TeacherStore.open(store)
    assert (store / "teachers/first/00000.npy").is_file()


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN or infinity in row 2"), (3.0, "row 2 has the length")])
def test_values_that_cannot_be(value, message, store):
    """A file that is as it was written, by a program that wrote wrong numbers."""
    path = store / "teachers/first/00000.npy"
    vectors = np.load(path)
    vectors[2, 1] = value
    np.save(path, vectors)
    description = files.read_record(store / "store.json")
    shard = description["teachers"]["first"]["shards"][0]
    shard["vectors"] |= files.describe(path)._asdict()
    files.write_record(store / "store.json", description)
    assert message in verify(store).findings[0].message


@pytest.mark.parametrize("content", [b"no array", b""])
def test_a_file_that_is_no_array(content, store):
    """As its description says, which a stranger has written."""
    for file, place in (("teachers/first/00000.npy", "vectors"), ("teachers/first/00000.texts.npy", "texts")):
        (store / file).write_bytes(content)
        description = files.read_record(store / "store.json")
        description["teachers"]["first"]["shards"][0][place] |= files.describe(store / file)._asdict()
        files.write_record(store / "store.json", description)
        told = [finding.message for finding in verify(store).findings if finding.file == file]
        assert len(told) == 1
        assert "is not an npy file" in told[0]


def test_check_reads_what_opening_does_not(store):
    flip(store / "teachers/first/00002.npy")
    opened = TeacherStore.open(store)
    with pytest.raises(ValueError, match=r"00002.npy, the content has changed.*st-distill verify"):
        opened.check()


def test_a_link_out_of_the_store_is_damage(store, tmp_path):
    file = store / "teachers/first/00000.npy"
    shutil.move(file, tmp_path / "elsewhere.npy")
    file.symlink_to(tmp_path / "elsewhere.npy")
    assert damage.find_damage(store) == [
        damage.Damage("teachers/first/00000.npy", "a link leads out of the store"),
    ]


def test_nothing_behind_a_link_in_a_store_is_read_or_moved(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    files.write_record(outside / "1.journal.json", {"mine": True})
    (outside / "1.journal.json").write_text("mine")
    (store / "processes").mkdir()
    (store / "processes" / "abc").symlink_to(outside)
    expected = damage.Damage("processes/abc", "a link leads out of the store", "put what it leads to in its place")
    assert damage.find_damage(store) == [expected]
    with pytest.raises(ValueError, match="processes/abc is a link: put what it leads to in its place"):
        verify(store, repair=True, texts=["a cat"], teachers=[])
    assert (outside / "1.journal.json").read_text() == "mine"
    shutil.rmtree(store / "processes")
    shutil.move(store / "store.json", outside / "store.json")
    (store / "store.json").symlink_to(outside / "store.json")
    assert [found.file for found in damage.find_damage(store)] == ["store.json"]


# --- runs and models ---------------------------------------------------------------------------------------------------

RECIPE = """\
output: {folder}/out
student: {{model: {student}, layers: [0, 3], pooling: mean, max_seq_length: 16}}
teachers: [{{model: {teacher}, name: teacher}}]
texts: {folder}/texts.txt
projection: {{dims: [24, 8]}}
stages:
  - train: projection
    steps: 2
    batch: 8
    arguments: {{use_cpu: true, disable_tqdm: true}}
  - train: all
    steps: 2
    batch: 8
    arguments: {{use_cpu: true, disable_tqdm: true}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_bert, sentences):
    """A folder with a finished run."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("run")
    transformer = Transformer(tiny_bert, max_seq_length=16)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "teacher"))
    (folder / "texts.txt").write_text("\n".join(sentences), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, student=tiny_bert, teacher=folder / "teacher"))
    run(folder / "recipe.yaml", show_progress=False)
    assert verify(folder / "out-run").findings == []
    assert verify(folder / "out").findings == []
    return folder


@pytest.mark.parametrize(
    ("file", "repaired"),
    [
        ("run.json", True),
        ("run.copy.json", True),
        ("recipe.yaml", True),
        ("teachers/store.json", True),
        ("teachers/teachers/teacher/00000.npy", True),
        ("start/start.json", True),
        ("stages/2-all/model/modules.json", False),
    ],
)
@pytest.mark.parametrize("harm", DAMAGES)
def test_damage_of_a_run(file, repaired, harm, finished, capsys):
    work = finished / "out-run"
    kept = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    try:
        harm(work / file)
        (finding,) = verify(work).findings
        assert finding.file == ("start" if file.startswith("start/") else file)
        arguments = ["verify", str(work), "--repair", "--recipe", str(work / "recipe.yaml")]
        if file == "recipe.yaml":
            arguments[-1] = str(finished / "recipe.yaml")
        assert main(arguments) == (0 if repaired else 1)
        said = capsys.readouterr().out
        assert ("is whole" in said) == repaired
        if not repaired:
            assert "--resume --from-stage 2" in said
    finally:
        for path, content in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("results.json", text) for text in ("{", "[]", '{"results": 3}', '{"results": {}, "environment": []}')),
        *((name, '{"results": {}, "sha256": "0"}') for name in ("results.json", "findings.json")),
        *(("findings.json", text) for text in ("{", "[]", '{"before": 3}', '{"after": [{"name": "collapsed"}]}')),
    ],
)
def test_damaged_results_are_measured_again(file, content, finished, capsys):
    """One answer, wherever it is told; and it is one that helps."""
    work = finished / "out-run"
    damaged = work / file
    kept = {name: (work / name).read_bytes() for name in ("results.json", "findings.json")}
    try:
        damaged.write_text(content)
        command = f"Remove it, and measure again with: st-distill run {work}/recipe.yaml --resume"
        with pytest.raises(ValueError, match=f"{damaged} .*{command}"):
            read_run(work)
        (finding,) = verify(work).findings
        assert finding.file == file
        assert finding.remedy == f"r{command[1:]}"
        assert verify(work, repair=True).is_whole
        assert not damaged.exists()
        assert main(["run", str(work / "recipe.yaml"), "--resume"]) == 0
        capsys.readouterr()
        assert verify(work).findings == []
        assert read_run(work).environment
        assert (work / "findings.json").read_bytes() == kept["findings.json"]
    finally:
        for name, whole in kept.items():
            (work / name).write_bytes(whole)


def command_of(text: str) -> list[str]:
    """The words behind ``st-distill`` of the command that a sentence ends with."""
    return shlex.split(text.rpartition(" with: st-distill ")[2])


def test_the_run_that_is_mended_is_the_one_that_was_looked_at(finished, tmp_path, capsys):
    """A copy's recipe.yaml names the work folder of the run that it was copied from."""
    copy = shutil.copytree(finished / "out-run", tmp_path / "a copy: 1")
    original = {path: path.read_bytes() for path in (finished / "out-run").rglob("*") if path.is_file()}
    flip(copy / "stages/1-projection/model/modules.json")
    (finding,) = verify(copy).findings
    assert finding.remedy.startswith(
        f"do the stage, and the stages after it, again (which replaces the model {finished / 'out'} too; "
        "--set output=FOLDER names another place) with: st-distill run "
    )
    command = [*command_of(finding.remedy), "--set", f"output={tmp_path / 'out'}"]
    assert main(command) == 0, capsys.readouterr().err
    assert verify(copy).findings == []
    assert (tmp_path / "out" / "modules.json").is_file()
    assert {path: path.read_bytes() for path in (finished / "out-run").rglob("*") if path.is_file()} == original
    flip(copy / "stages/2-all/model/modules.json")
    (finding,) = verify(copy).findings  # it leads there now
    recipe = shlex.quote(str(copy / "recipe.yaml"))
    assert finding.remedy == f"do the stage again with: st-distill run {recipe} --resume --from-stage 2"


@pytest.mark.parametrize("name", ["1", "true", "~", "a: b", "'", "null", "é #1", "-x"])
def test_any_folder_is_named_to_a_command(name, tmp_path):
    option, override = setting_work(tmp_path / name)
    assert option == "--set"
    assert override == f"work={tmp_path / name}" or override[5] in "'\""
    _, override = setting_work(Path(name))
    (tmp_path / "recipe.yaml").write_text("output: out\nstudent: s\nstages: [{train: all}]\n")
    assert load_recipe(tmp_path / "recipe.yaml", [override]).work == name


def test_what_else_is_said_of_a_copy_leads_there_too(finished, tmp_path):
    copy = shutil.copytree(finished / "out-run", tmp_path / "bk")
    setting = f"--set work={copy}"
    (copy / "results.json").write_text("{")
    (finding,) = verify(copy).findings
    assert finding.remedy.endswith(f"with: st-distill run {copy}/recipe.yaml {setting} --resume")
    (copy / "results.json").unlink()
    (copy / "recipe.yaml").write_text("output: [")
    (finding,) = verify(copy).findings
    assert finding.remedy.endswith(f"; where that file has another work folder, with {setting} too")
    flip(copy / "stages/2-all/model/modules.json")
    assert verify(copy).findings[-1].remedy.endswith(f"{copy}/recipe.yaml {setting} --resume --from-stage 2")
    shutil.copy(finished / "out-run" / "recipe.yaml", copy)
    for name in ("run.json", "run.copy.json"):
        (copy / name).write_text("{")
    (finding, *_) = verify(copy).findings
    assert finding.remedy.endswith(f"with: st-distill run {copy}/recipe.yaml {setting} --resume")
    for name in ("run.json", "run.copy.json"):
        (copy / name).unlink()
    with pytest.raises(ValueError, match=f"remove {copy}/stages to do them again .*{setting} --resume$"):
        RunState(copy)


def test_a_run_without_its_vectors_is_told_of(finished):
    """To remove them when all is done is no damage."""
    work = finished / "out-run"
    (work / "teachers").rename(work / "away")
    try:
        found = verify(work)
    finally:
        (work / "away").rename(work / "teachers")
    assert found.is_whole
    assert "the teachers' vectors (teachers) are not there any more" in found.as_text()


def test_a_run_that_is_writing(finished, tmp_path):
    """A checkpoint that it has not finished is no damage; of a killed run it is."""
    work = shutil.copytree(finished / "out-run", tmp_path / "work")
    state = files.read_record(work / "run.json")
    state["stages"][1]["done"] = False
    files.write_record(work / "run.json", state)
    (work / "stages/2-all/checkpoints/checkpoint-2").mkdir(parents=True)
    with FolderLock(work):
        found = verify(work)
    assert found.findings == []
    assert f"{work} is being written" in found.as_text()
    (finding,) = verify(work).findings
    assert finding.file == "stages/2-all/checkpoints/checkpoint-2"


STAGE = {"name": "a", "done": True, "fields": {}}


@pytest.mark.parametrize(
    "stages",
    [
        None,
        5,
        [5],
        [{}],
        [STAGE | {"name": "a/../../../outside"}],
        [STAGE | {"name": ".."}],
        [STAGE | {"done": "yes"}],
        [STAGE | {"files": []}],
        [STAGE | {"files": {"modules.json": 5}}],
        [STAGE | {"files": {"modules.json": {}}}],
        [STAGE | {"metrics": 5}],
        [STAGE | {"folder": "../outside"}],
        [STAGE | {"folder": "."}, STAGE],
    ],
)
def test_a_strangers_state_of_a_run_is_refused(stages, tmp_path, capsys):
    """A continued run and a repair remove folders by what it says."""
    work, kept = tmp_path / "out-run", tmp_path / "outside" / "checkpoints" / "checkpoint-5" / "mine.txt"
    (work / "stages" / "1-a").mkdir(parents=True)
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    files.write_record(work / "run.json", {"format": "st-distill/run", "version": 1, "stages": stages})
    for options in ([], ["--repair"]):
        assert main(["verify", str(work), *options]) == 1
        assert "must list a run's stages" in capsys.readouterr().out
    with pytest.raises(ValueError, match="Restore it, or remove it, run.copy.json and"):
        RunState(work)
    assert kept.exists()


@pytest.mark.parametrize("content", ["[]", "5", "{}", '{"format": "st-distill/run", "version": 1, "stages": 5}'])
def test_a_state_of_another_shape_comes_back_from_its_copy(content, finished, tmp_path, capsys):
    work = shutil.copytree(finished / "out-run", tmp_path / "out-run")
    (work / "run.json").write_text(content)
    mending = f"does not. Put its copy run.copy.json in its place, or mend it with: st-distill verify {work} --repair"
    assert main(["report", str(work)]) == 2
    assert mending in capsys.readouterr().err
    with pytest.raises(ValueError, match=re.escape(mending)):
        RunState(work)
    assert main(["verify", str(work), "--repair"]) == 0
    capsys.readouterr()
    assert RunState(work).stages == RunState(finished / "out-run").stages
    for name in ("run.json", "run.copy.json"):
        (work / name).write_text(content)
    with pytest.raises(ValueError, match="It does not. Restore it, or remove it, run.copy.json and"):
        RunState(work)
    assert main(["verify", str(work), "--repair"]) == 1
    assert "to mend it: restore it, or remove it, run.copy.json and" in capsys.readouterr().out
    for name in ("run.json", "run.copy.json"):
        (work / name).unlink()
    shutil.rmtree(work / "stages")
    assert may_be_worked_in(work)
    assert not RunState(work).exists


def test_a_copy_of_a_state_that_has_another_shape_is_written_again(finished, tmp_path):
    work = shutil.copytree(finished / "out-run", tmp_path / "out-run")
    (work / "run.copy.json").write_text("[]")
    assert found(verify(work)) == ["run.copy.json"]
    assert verify(work, repair=True).is_whole
    assert verify(work).findings == []


@pytest.mark.parametrize("place", ["pooled", "stages/1-projection/checkpoints", "start"])
def test_nothing_is_removed_behind_a_link(place, finished, tmp_path, capsys):
    work = shutil.copytree(finished / "out-run", tmp_path / "out-run")
    kept = [tmp_path / "outside" / name for name in ("vectors.npy", "checkpoint-5/model.safetensors", "start.json")]
    kept[1].parent.mkdir(parents=True)
    for path in kept:
        path.write_text("mine")
    shutil.rmtree(work / place, ignore_errors=True)
    (work / place).symlink_to(tmp_path / "outside")
    recipe = ["--set", f"output={tmp_path}/out", "--resume"]
    for command in (["verify", str(work), "--repair"], ["run", str(finished / "recipe.yaml"), *recipe]):
        assert main(command) == 2
        assert f"{place} is a link" in capsys.readouterr().err
    assert all(path.exists() for path in kept)


def test_a_repair_from_another_folder_says_where_the_paths_start(finished, tmp_path, monkeypatch):
    copy = shutil.copytree(finished / "out-run", tmp_path / "out-run")
    recipe = (copy / "recipe.yaml").read_text().replace(str(finished / "texts.txt"), "texts.txt")
    (copy / "recipe.yaml").write_text(recipe)
    flip(copy / "teachers/teachers/teacher/00000.npy")
    monkeypatch.chdir(tmp_path)
    told = r"own recipe, .*out-run/recipe.yaml, must .* no file or folder 'texts.txt'.* Its relative paths start in the folder"
    with pytest.raises(ValueError, match=told):
        verify(copy, repair=True, show_progress=False)
    monkeypatch.chdir(finished)
    assert verify(copy, repair=True, show_progress=False).findings[-1].repaired


def test_several_runs_may_read_one_store(finished, tmp_path):
    work = shutil.copytree(finished / "out-run", tmp_path / "out-run")
    shutil.move(work / "teachers", tmp_path / "shared")
    (work / "teachers").symlink_to(tmp_path / "shared")
    assert verify(work).findings == []


def test_what_a_killed_run_left_of_a_stage_that_is_done_is_removed(finished):
    work = finished / "out-run"
    left = [work / "stages/1-projection/checkpoints/checkpoint-2/optimizer.pt", work / "pooled/abc/00000.npy"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.touch()
    (work / "stages/1-projection/checkpoints/runs").mkdir()
    run(finished / "recipe.yaml", resume=True, show_progress=False)
    assert not any(path.exists() for path in (*left, work / "stages/1-projection/checkpoints", work / "pooled"))
    assert (work / "stages/1-projection/runs").is_dir()  # TensorBoard's
    assert verify(work).findings == []


def test_a_recipe_in_the_folder_lets_no_code_run(finished, tmp_path, capsys):
    """The folder may be a stranger's, with a teacher that brings code and a recipe that lets it run."""
    work = shutil.copytree(finished / "out-run", tmp_path / "out-run")
    teacher = shutil.copytree(finished / "teacher", tmp_path / "teacher")
    modules = json.loads((teacher / "modules.json").read_text())
    modules[1]["type"] = "mine.Pooling"
    (teacher / "modules.json").write_text(json.dumps(modules))
    (teacher / "mine.py").write_text(
        f"from sentence_transformers.sentence_transformer.modules import Pooling\nopen({str(tmp_path / 'here')!r}, 'w').close()"
    )
    recipe = (work / "recipe.yaml").read_text().replace(str(finished / "teacher"), str(teacher))
    recipe = recipe.replace("name: teacher", "name: teacher\n  trust_remote_code: true")
    (work / "recipe.yaml").write_text(recipe)
    description = files.read_record(work / "teachers/store.json")
    description["teachers"]["teacher"]["revision"] = Teacher(str(teacher), trust_remote_code=True).revision
    files.write_record(work / "teachers/store.json", description)
    (work / "teachers/teachers/teacher/00000.npy").unlink()
    assert main(["verify", str(work), "--repair"]) == 2
    allowed = ["--set", "teachers.0.trust_remote_code=true"]
    told = capsys.readouterr().err
    assert "a file, which may be a stranger's, lets no code run" in told
    assert f"if you trust the model, give {' '.join(allowed)}" in told
    assert main(["verify", str(work), "--repair", "--recipe", str(work / "recipe.yaml")]) == 2
    assert not (tmp_path / "here").exists()
    main(["verify", str(work), "--repair", *allowed])
    assert (tmp_path / "here").exists()  # so that what was refused is what would have run


def test_a_damaged_stage_is_not_gone_on_from(finished):
    model = finished / "out-run" / "stages" / "2-all" / "model" / "modules.json"
    content = model.read_bytes()
    try:
        model.write_bytes(content + b" ")
        with pytest.raises(ValueError, match=r"The model of stage 2 is damaged: .*--resume --from-stage 2"):
            run(finished / "recipe.yaml", resume=True, show_progress=False)
    finally:
        model.write_bytes(content)


def test_a_run_without_its_state_is_not_begun_anew(finished):
    work = finished / "out-run"
    kept = {name: (work / name).read_bytes() for name in ("run.json", "run.copy.json")}
    try:
        (work / "run.json").unlink()
        with pytest.raises(ValueError, match=r"has lost its run.json.*st-distill verify"):
            run(finished / "recipe.yaml", show_progress=False)
        flip(work / "run.copy.json")
        for lost in (True, False):
            if not lost:
                (work / "run.copy.json").rename(work / "run.json")
            with pytest.raises(ValueError, match=r"run.json.* Restore it, or remove it, run.copy.json and .*stages"):
                run(finished / "recipe.yaml", show_progress=False)
        (work / "run.json").unlink()
        with pytest.raises(ValueError, match=r"has lost its run.json.*or remove .*stages"):
            run(finished / "recipe.yaml", show_progress=False)
    finally:
        for name, content in kept.items():
            (work / name).write_bytes(content)


def test_vectors_whose_recipe_is_lost_too_are_told_with_what_mends_both(finished):
    work = finished / "out-run"
    for path in (work / "recipe.yaml", *(work / "teachers/teachers/teacher").iterdir()):
        path.write_bytes(b"")
    first, *others = verify(work, repair=True).findings
    assert first.file == "recipe.yaml"
    assert {finding.remedy for finding in others} == {f"st-distill verify {work} --repair --recipe RECIPE"}
    assert not any(finding.repaired for finding in (first, *others))
    assert verify(work, repair=True, recipe=finished / "recipe.yaml").is_whole
    assert verify(work).findings == []


@pytest.mark.parametrize("harm", DAMAGES)
@pytest.mark.parametrize("file", ["model.safetensors", "modules.json", "st_distill.json"])
def test_damage_of_a_model(file, harm, make_student, tmp_path):
    export(make_student(MatryoshkaProjection(32, [8, 4])), tmp_path / "model")
    assert verify(tmp_path / "model").findings == []
    harm(next((tmp_path / "model").rglob(file)))
    if (file, harm) == ("st_distill.json", delete):
        found = verify(tmp_path / "model")
        assert found.is_whole  # any model of sentence-transformers has none
        assert "no checksums are noted of it" in found.as_text()
    else:
        (finding, *_) = verify(tmp_path / "model").findings
        assert finding.file.endswith(file)


def test_an_export_that_was_killed_between_two_renames(make_student, tmp_path, capsys):
    target = tmp_path / "model"
    export(make_student(MatryoshkaProjection(32, [8])), target)
    (tmp_path / ".model.st-distill").mkdir()
    target.rename(tmp_path / ".model.st-distill" / "old")
    for command in ("verify", "info"):
        assert main([command, str(target)]) == 2
        said = capsys.readouterr().err
        assert f"Bring it back with: mv {tmp_path}/.model.st-distill/old {target}" in said
    export(make_student(MatryoshkaProjection(32, [8])), target)
    assert verify(target).findings == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_folder_that_one_is_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, message in (("verify", "It has none of these"), ("info", "which has no modules.json")):
        assert main([command, "."]) == 2
        assert message in capsys.readouterr().err


def test_a_readers_own_card_is_no_damage(make_student, tmp_path):
    export(make_student(MatryoshkaProjection(32, [8])), tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    assert verify(tmp_path / "model").is_whole


def test_the_command(store, tmp_path, capsys):
    assert main(["verify", str(store)]) == 0
    assert capsys.readouterr().out == f"The store {store} is whole.\n"
    flip(store / "teachers/first/00000.npy")
    assert main(["verify", str(store), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["whole"], said["findings"][0]["file"]) == ("store", False, "teachers/first/00000.npy")
    for _ in range(2):  # it replaces its own
        assert main(["verify", str(store), "--json", str(tmp_path / "found.json")]) == 1
    assert json.loads((tmp_path / "found.json").read_text()) == said
    assert main(["verify", str(store), "--repair"]) == 2
    assert "Give the recipe (--recipe FILE)" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    assert f"There is no folder '{tmp_path}/nothing'.\n" in capsys.readouterr().err
