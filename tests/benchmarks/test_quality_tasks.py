"""The quality benchmark's scores: rankings of known value, in floats, int8 and bits, and against the teacher's documents."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pandas
import pytest
import torch
from torch.nn.functional import normalize

from benchmarks.quality.measure import score
from benchmarks.quality.methods import DIMS
from benchmarks.quality.tasks import Search, _rescored, cka, ndcg
from st_distill.modules.rotation import random_rotation

#: What the relevant document is worth where it is found second.
SECOND = 1 / math.log2(3)


def test_ndcg_of_known_rankings():
    relevant = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]])
    scores = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1]])  # first, and third, of which the gain is 1 / log2(4)
    assert ndcg(scores, relevant, k=4) == pytest.approx((1.0 + 0.5) / 2)


def test_cka_is_of_the_geometry_alone():
    vectors = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    assert cka(vectors, 3 * vectors @ turn + 1) == pytest.approx(1.0, abs=1e-6)
    assert cka(vectors, torch.randn(50, 8, generator=torch.Generator().manual_seed(2))) < 0.4


def search(folder, documents: int, *, queries: int = 1) -> Search:
    """SciFact made small: the first query's document is the first, the second's the second."""
    folder = folder / f"{documents}-{queries}"
    (folder / "scifact").mkdir(parents=True)
    asked, names = [f"q{number:03}" for number in range(queries)], [f"d{number:03}" for number in range(documents)]
    parts = {
        "corpus": {"_id": names, "title": ["title"] * documents, "text": names},
        "queries": {"_id": asked, "text": asked},
        "qrels_test": {"query_id": asked, "corpus_id": names[:queries], "score": [1] * queries},
    }
    for name, columns in parts.items():
        pandas.DataFrame(columns).to_parquet(folder / "scifact" / f"{name}.parquet")
    return Search(folder, "test")


def filled(*rows: list[float]) -> torch.Tensor:
    """(rows, 8) these vectors, with zeros behind."""
    return torch.tensor([row + [0.0] * (8 - len(row)) for row in rows])


#: A query, the right document, and one that is opposite to both, but of the query's signs in more dimensions.
QUERY, RIGHT, OTHER = [1.0, 0.1, 0.1], [1.0, -0.1, -0.1], [-1.0, 0.1, 0.1]


@pytest.mark.parametrize(("others", "place"), [(1, SECOND), (9, 1 / math.log2(11)), (12, 0.0)])
def test_bits_know_signs_alone(others, place, tmp_path):
    """The others come first by their signs; the query itself, which is longest in the first dimension, tells the right one."""
    given = filled(QUERY, RIGHT, *[OTHER] * others, *[[0.0, -1.0, -1.0]] * 12)
    found = search(tmp_path, others + 13).score(given, torch.empty(0))
    right = dict.fromkeys(["ndcg@10", "int8", "int8 rescored", "binary rescored"], 1.0)
    assert found == pytest.approx(right | {"binary": place})


@pytest.mark.parametrize(("others", "again"), [(39, 1.0), (40, 0.0)])
def test_forty_candidates_are_scored_again(others, again, tmp_path):
    """All others come before the right one by their signs."""
    found = search(tmp_path, others + 1).score(filled(QUERY, RIGHT, *[OTHER] * others), torch.empty(0))
    assert (found["ndcg@10"], found["binary"], found["binary rescored"]) == (1.0, 0.0, again)


def test_int8_has_one_range_for_all_dimensions(tmp_path):
    """The second dimension is small everywhere: with a range of its own it would count as much as the first."""
    query, right, other = [0.7, 0.7], [0.9, 0.0, 0.436], [0.5, 0.1, 0.86]
    rest = [[0.0, -place / 100, 0.0, 1.0] for place in range(11)]
    found = search(tmp_path, 13).score(filled(query, right, other, *rest), torch.empty(0))
    assert (found["ndcg@10"], found["int8"]) == (1.0, 1.0)


def test_int8_tells_apart_what_the_largest_coordinate_leaves_room_for(tmp_path):
    """Each query's document is nearer by about a hundredth, where a step is 2 / 255 of a largest coordinate of 1."""
    queries, documents = [[1.0], [0.0, 1.0]], [[0.603, 0.7977], [0.59, 0.8074]]
    rest = [[0.0, 0.0, 1.0]] * 11
    found = search(tmp_path, 13, queries=2).score(filled(*queries, *documents, *rest), torch.empty(0))
    assert (found["ndcg@10"], found["int8"]) == (1.0, 1.0)


def test_int8_ranks_nearly_as_floats_and_bits_less(tmp_path):
    """Documents that are their queries with noise."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(40, 64, generator=generator)
    given = torch.cat([queries, queries + 1.8 * torch.randn(40, 64, generator=generator)])
    found = search(tmp_path, 40, queries=40).score(given, torch.empty(0))
    assert 0.5 < found["binary"] < found["binary rescored"] < found["ndcg@10"]
    assert (found["int8"], found["int8 rescored"]) == pytest.approx((found["ndcg@10"],) * 2, abs=0.02)


def test_candidates_are_four_times_the_results():
    coarse, fine = torch.tensor([[1.0, 5, 4, 3, 2]]), torch.tensor([[9.0, 0.1, 0.4, 0.3, 0.2]])
    assert _rescored(coarse, fine, k=1)[0].tolist() == pytest.approx([-torch.inf, 0.1, 0.4, 0.3, 0.2])
    assert torch.equal(_rescored(coarse, fine, k=2), fine)  # fewer documents than candidates


class TestLines:
    """A student whose vectors are the teacher's, turned."""

    @pytest.fixture
    def lines(self, tmp_path):
        task = search(tmp_path, 40, queries=40)
        generator = torch.Generator().manual_seed(0)
        queries = torch.randn(40, DIMS[0], generator=generator)
        documents = queries + 4 * torch.randn(40, DIMS[0], generator=generator)
        teacher = normalize(torch.cat([queries, documents]), dim=1)
        shop = SimpleNamespace(tasks=lambda split: [task], teacher_vectors=lambda split: {"scifact": teacher})
        turn = random_rotation(DIMS[0], DIMS[0], seed=1)

        def made(**options):
            return score(shop, "test", {"scifact": teacher @ turn}, **options)

        return made, turn

    def test_the_students_queries_find_the_teachers_documents(self, lines):
        made, turn = lines
        found = made(rotation=turn, in_teacher_space=True)
        assert [(line["task"], line["dim"]) for line in found] == [
            (task, dim) for dim in DIMS for task in ("scifact", "scifact-against-teacher")
        ]
        scores = [line["scores"]["ndcg@10"] for line in found]
        assert scores[::2] == pytest.approx(scores[1::2])
        assert scores[0] > scores[-1] + 0.1

    def test_on_other_axes_they_do_not(self, lines):
        made, _ = lines
        found = made(in_teacher_space=True)
        assert found[1]["scores"]["ndcg@10"] < 0.5 * found[0]["scores"]["ndcg@10"]

    def test_a_student_of_no_such_space_is_not_asked(self, lines):
        made, turn = lines
        assert {line["task"] for line in made(rotation=turn)} == {"scifact"}
