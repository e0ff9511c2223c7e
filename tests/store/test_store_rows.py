"""What comes back: rows by number, numbers by text, in one process and in several."""

from __future__ import annotations

import copy
import math
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from store_material import TEXTS, Counting, create, teacher_of, two_teachers

from st_distill import TeacherStore
from st_distill.store.format import Hashes

# --- gather


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_gather_concatenates_units_and_makes_a_unit(tmp_path, dtype):
    store = two_teachers(tmp_path / "s", dtype=dtype)
    assert store.dimension == 5
    half = math.sqrt(0.5)
    expected = [
        [half, 0, 0.6 * half, 0.8 * half, 0],
        [0, half, 0, 0, half],
        [0, 0, 0, 1, 0],  # the first teacher's zeros stay zeros, and the second makes the unit alone
        [0, 0, 0, 0, 0],
    ]
    vectors = store.gather(np.arange(4))
    assert vectors.dtype == torch.float32
    assert vectors.device.type == "cpu"
    assert vectors.numpy() == pytest.approx(np.array(expected), abs=2e-4 if dtype == "float16" else 1e-6)
    assert vectors.norm(dim=1).numpy() == pytest.approx(np.array([1, 1, 1, 0]), abs=1e-6)


def test_gather_with_weights(tmp_path):
    store = two_teachers(tmp_path / "s", dtype="float32")
    expected = np.array([1, 0, 2 * 0.6, 2 * 0.8, 0]) / math.sqrt(5)
    for weights in ([1, 2], np.array([1, 2], np.float32), {"second": 2}, {"first": 1.0, "second": 2.0}):
        assert store.gather(0, weights=weights).numpy() == pytest.approx(expected, abs=1e-6)
    swapped = store.gather(0, teachers=["second", "first"], weights=[2, 1]).numpy()
    assert swapped == pytest.approx(np.roll(expected, 3), abs=1e-6)
    assert store.gather(0, weights=[0, 1]).numpy() == pytest.approx(np.array([0, 0, 0.6, 0.8, 0]), abs=1e-6)
    assert store.gather(2, weights=[1, 0]).abs().sum() == 0  # the weight is with zeros


def test_cosines_are_the_mean_by_squared_weights(tmp_path):
    first, second = Counting(), Counting({text: [len(text), index, 1.0] for index, text in enumerate(TEXTS)})
    store = create(tmp_path / "s", TEXTS, first, second, dtype="float32")
    together = store.gather(range(10), weights=[3, 4])
    apart = [store.gather(range(10), teachers=[name]) for name in ("first", "second")]
    mean = (9 * apart[0] @ apart[0].T + 16 * apart[1] @ apart[1].T) / 25
    assert torch.allclose(together @ together.T, mean, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        list,
        np.array,
        lambda ids: np.array(ids, np.uint8),
        torch.tensor,
        lambda ids: torch.tensor(ids, dtype=torch.int32),
    ],
)
def test_gather_takes_row_numbers_of_any_shape(tmp_path, make):
    store = create(tmp_path / "s", TEXTS, Counting(), shard_rows=3)
    ids = [[7, 0, 7], [3, 9, 1]]
    vectors = store.gather(make(ids))
    assert vectors.shape == (2, 3, 4)
    for row in range(2):
        for column in range(3):
            assert torch.equal(vectors[row, column], store.gather(ids[row][column]))
    assert store.gather(make(ids[0])[:0]).shape == (0, 4)


@pytest.mark.parametrize("ids", [[-1], [0, 10], 10, torch.tensor([[3, 99]])])
def test_row_numbers_outside(tmp_path, ids):
    store = create(tmp_path / "s", TEXTS, Counting())
    with pytest.raises(
        ValueError, match=r"Labels must be row numbers of the store .*, from 0 to 9. Got (-1|10|99), which"
    ):
        store.gather(ids)


@pytest.mark.parametrize("ids", [[0.0], torch.zeros(1), [True], ["a"], [None]])
def test_row_numbers_must_be_whole_numbers(tmp_path, ids):
    store = create(tmp_path / "s", TEXTS[:1], Counting())
    with pytest.raises(TypeError, match="Row numbers of a store must be whole numbers"):
        store.gather(ids)


def test_row_numbers_of_several_lengths(tmp_path):
    store = create(tmp_path / "s", TEXTS[:2], Counting())
    with pytest.raises(ValueError, match="Got rows of several lengths"):
        store.gather([[0, 1], [0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ["third"]}, r"distinct names of \['first', 'second'\]. Got \['third'\]"),
        ({"teachers": []}, "distinct names"),
        ({"teachers": ["first", "first"]}, "distinct names"),
        ({"weights": [1]}, "one number for each of the teachers"),
        ({"weights": 1}, r"one number for each of the teachers .* Got \[1\]"),
        ({"weights": [1, -1]}, "none negative"),
        ({"weights": [0, 0]}, "one at least above 0"),
        ({"weights": [1, math.inf]}, "none negative or infinite"),
        ({"weights": [1, math.nan]}, "none negative or infinite"),
        ({"weights": {"third": 1}}, r"for teachers among \['first', 'second'\]. Got \['third'\] too"),
    ],
)
def test_teachers_and_weights_that_cannot_be(tmp_path, options, message):
    store = two_teachers(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        store.gather(0, **options)
    with pytest.raises(ValueError, match=message):
        store.view(**options)


def test_rows_without_a_vector_of_one_teacher(tmp_path):
    first, second = Counting(), Counting()
    create(tmp_path / "s", ["a", ("b", "query")], first)
    store = create(tmp_path / "s", ["a"], first, second)
    with pytest.raises(
        ValueError, match=r"vector of teacher 'second' .* Got 1 of 2 without, the first row 1 \(role 'query'\)"
    ):
        store.gather([0, 1])
    assert store.gather([0, 1], teachers=["first"]).shape == (2, 4)
    assert store.gather([0]).shape == (1, 8)


def test_a_view_is_a_store_with_settled_teachers(tmp_path):
    store = two_teachers(tmp_path / "s")
    view = store.view(teachers=["second", "first"], weights={"first": 2})
    assert (view.teachers, view.dimension, len(view)) == (["second", "first"], 5, 4)
    assert torch.equal(
        view.gather(torch.arange(4)), store.gather(range(4), teachers=["second", "first"], weights=[1, 2])
    )
    assert view.ids(["b"]).tolist() == [1]
    assert store.view(teachers=["second"]).dimension == 3


def test_a_random_store_gives_back_what_was_put_in(tmp_path):
    generator = np.random.default_rng(0)
    texts = [f"{number} " + "x" * int(generator.integers(0, 50)) for number in range(3000)]
    vectors = {text: generator.standard_normal(8) for text in texts}
    function = Counting(vectors)
    path = tmp_path / "s"
    TeacherStore.create(path, texts[:1700], teacher_of(function, batch_size=64), shard_rows=500, show_progress=False)
    store = TeacherStore.create(path, texts, teacher_of(function, batch_size=64), shard_rows=700, show_progress=False)
    order = generator.permutation(3000)
    found = store.gather(order).numpy()
    expected = np.stack([function.unit(texts[place]) for place in order])
    assert np.abs(found - expected).max() < 1e-3
    assert store.ids([texts[place] for place in order]).tolist() == order.tolist()


# --- ids


def test_unknown_texts(tmp_path):
    store = create(tmp_path / "s", ["a", ("b", "query")], Counting())
    with pytest.raises(
        ValueError, match=r"in the store .* without a role. Got 2 of 3 that are not, the first 'x{60}…'"
    ):
        store.ids(["a", "x" * 100, "y"])
    with pytest.raises(ValueError, match=r"the first 'b'; it has this text in the roles \['query'\]"):
        store.ids(["b"])
    with pytest.raises(ValueError, match=r"in the role 'document'. Got 1 of 1 .* in the roles \[None\]"):
        store.ids(["a"], role="document")
    assert store.ids([]).dtype == np.int64


@pytest.mark.parametrize(("texts", "message"), [(["a", None], "NoneType at position 1"), ([3], "int at position 0")])
def test_texts_that_are_none(tmp_path, texts, message):
    store = create(tmp_path / "s", ["a"], Counting())
    with pytest.raises(TypeError, match=message):
        store.ids(texts)
    with pytest.raises(TypeError, match="one string instead"):
        store.ids("a")


def test_hashes_that_agree_in_their_first_half_are_told_apart():
    hashes = np.zeros((5, 16), dtype=np.uint8)
    hashes[:4, 15] = range(4)
    hashes[4, 0] = 1
    table = Hashes()
    table.add(hashes[:3])
    table.add(hashes[3:4])
    assert table.find(hashes[::-1]).tolist() == [-1, 3, 2, 1, 0]
    assert table.find(hashes[:0]).tolist() == []


@pytest.mark.parametrize("half", [0, 1])
def test_hashes_that_agree_in_a_half_do_not_crowd(half, monkeypatch):
    """A stranger may choose them: if they wanted one place, entering them would take the square of their number."""
    hashes = np.random.default_rng(0).integers(0, 256, (100_000, 16), dtype=np.uint8)
    hashes[:, 8 * half : 8 * half + 8] = 7
    steps = []
    after = Hashes._after
    monkeypatch.setattr(Hashes, "_after", lambda self, places: steps.append(len(places)) or after(self, places))
    table = Hashes()
    table.add(hashes)
    assert table.find(hashes).tolist() == list(range(len(hashes)))
    assert sum(steps) < 5 * len(hashes)


def test_many_hashes_in_blocks_of_any_size():
    hashes = np.random.default_rng(0).integers(0, 256, (5000, 16), dtype=np.uint8)
    hashes[:100, :8] = 0
    table = Hashes()
    for first, last in [(0, 1), (1, 1), (1, 70), (70, 3000), (3000, 4990)]:
        table.add(hashes[first:last])
    assert table.find(hashes).tolist() == [*range(4990), *[-1] * 10]


# --- copies and processes


def test_copies_read_the_same(tmp_path):
    store = create(tmp_path / "s", TEXTS, Counting(), Counting(), shard_rows=3)
    expected = store.gather(range(10))
    for other in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store), copy.copy(store)):
        assert torch.equal(other.gather(range(10)), expected)
        assert other.ids(TEXTS).tolist() == list(range(10))
    view = pickle.loads(pickle.dumps(store.view(teachers=["second"])))
    assert torch.equal(view.gather([1]), store.gather([1], teachers=["second"]))
    assert len(pickle.dumps(store)) < 20_000  # the index, not the vectors


class Rows(torch.utils.data.Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, row):
        return self.store.gather(row)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # torch starts the workers, in a process with threads
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_store_works_in_loader_workers(tmp_path):
    store = create(tmp_path / "s", TEXTS, Counting(), shard_rows=3)
    expected = store.gather(range(10))  # the parent's maps are open when the workers are forked
    loader = torch.utils.data.DataLoader(Rows(store), batch_size=5, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


def test_an_open_store_is_a_snapshot(tmp_path):
    store = create(tmp_path / "s", TEXTS[:5], Counting())
    create(tmp_path / "s", TEXTS, Counting())
    assert len(store) == 5
    assert len(TeacherStore.open(tmp_path / "s")) == 10
    assert store.gather(range(5)).shape == (5, 4)


def test_open_shards_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr("st_distill.store.store._OPEN_SHARDS", 2)
    store = create(tmp_path / "s", TEXTS, Counting(), shard_rows=1)
    assert store.gather(range(10)).shape == (10, 4)
    assert store._map.cache_info().currsize == 2


def test_progress_is_shown_on_standard_error(tmp_path, capsys):
    TeacherStore.create(tmp_path / "s", TEXTS[:4], teacher_of(Counting()))
    TeacherStore.create(tmp_path / "s", TEXTS, teacher_of(Counting()))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "first: 4 of 4 texts, " in shown.err
    assert "first: 6 of 6 texts, " in shown.err  # what was there already is no work
    TeacherStore.create(tmp_path / "s", TEXTS, teacher_of(Counting()))
    assert capsys.readouterr().err == ""  # and nothing is shown of no work
    create(tmp_path / "s", [*TEXTS, "new"], Counting())
    assert capsys.readouterr().err == ""
