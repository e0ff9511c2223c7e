from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, Features, Image, Value
from fault_helpers import RECIPE, SEEING_STAGES, STAGES, Project, Undisturbed, forked
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_distill.verify import verify


def pytest_collection_modifyitems(items):
    for item in items:
        if "faults" in item.path.parts:
            # Python warns of forks in a process with threads.
            item.add_marker(pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"))


@pytest.fixture(scope="session")
def fault_models(tmp_path_factory, tiny_bert) -> Path:
    folder = tmp_path_factory.mktemp("fault-models")
    transformer = Transformer(tiny_bert, max_seq_length=16)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "teacher"))
    return folder


@pytest.fixture(scope="session")
def make_project(fault_models, tiny_bert, sentences, images):
    def make(folder: Path, *, seeing: bool = False) -> Project:
        (folder / "texts.txt").write_text("\n".join(sentences))
        (folder / "held-out.txt").write_text("\n".join(sentences[:5]))
        arguments = "{use_cpu: true, disable_tqdm: true, save_steps: 2}"
        teacher = fault_models / "teacher"
        recipe = RECIPE + (SEEING_STAGES if seeing else STAGES)
        recipe = recipe.format(folder=folder, student=tiny_bert, teacher=teacher, arguments=arguments)
        if seeing:
            features = Features({"image": Image(), "caption": Value("string")})
            pictures = Dataset.from_dict({"image": images, "caption": sentences}, features=features)
            pictures.to_parquet(folder / "images.parquet")
        (folder / "recipe.yaml").write_text(recipe)
        return Project(folder)

    return make


@pytest.fixture
def project(make_project, tmp_path) -> Project:
    """A folder with a recipe that has not been run."""
    return make_project(tmp_path)


@pytest.fixture
def seeing_project(make_project, tmp_path) -> Project:
    """The same with a stage that trains vision."""
    return make_project(tmp_path, seeing=True)


@pytest.fixture(scope="session")
def undisturbed(make_project, tmp_path_factory) -> Undisturbed:
    """Such a run when nothing happens."""
    return _undisturbed(make_project(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="session")
def undisturbed_seeing(make_project, tmp_path_factory) -> Undisturbed:
    return _undisturbed(make_project(tmp_path_factory.mktemp("undisturbed"), seeing=True))


def _undisturbed(project: Project) -> Undisturbed:
    ended = forked(project.run, project.folder)
    assert ended.code == 0, ended.said
    assert verify(project.work).findings == []
    return Undisturbed(project.results(), ended.changes, ended.seconds)
