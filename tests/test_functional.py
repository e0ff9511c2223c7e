from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from st_distill import functional, hinges

OBJECTIVES = [functional.cosine_distill, functional.similarity_distill, functional.triplet_distill]


def random_batch(batch: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_pairs_of_pairs(student: torch.Tensor, teacher: torch.Tensor, margin: float) -> torch.Tensor:
    """The triplet term over every strict comparison, in a matrix, for (P,) similarities; a hinge at zero has the slope 1."""
    strict = teacher[None, :] > teacher[:, None]
    hinges = student[:, None] - student[None, :] + margin
    hinges = torch.where(hinges >= 0, hinges, 0.0)  # torch.clamp has the slope 1 at zero before 2.14, and 0 since
    return hinges[strict].mean() if strict.any() else (student * 0).sum()


def with_duplicates(vectors: torch.Tensor, seed: int) -> torch.Tensor:
    """About a third of the rows are copies of others."""
    generator = torch.Generator().manual_seed(seed)
    copied = torch.rand(len(vectors), generator=generator) < 1 / 3
    source = torch.randint(len(vectors), (len(vectors),), generator=generator)
    return torch.where(copied[:, None], vectors[source], vectors)


def gradient_of(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, student)[0]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance of two tensors, as a part of the second's norm."""
    norm = expected.norm().item()
    return (found - expected).norm().item() / norm if norm else found.norm().item()


def test_doctests():
    assert doctest.testmod(functional).failed == 0


class TestKnownValues:
    def test_cosine_of_right_angle_and_opposite(self):
        student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
        teacher = torch.tensor([[0.0, 2.0], [-3.0, -3.0], [0.0, 1.0]])
        assert functional.cosine_distill(student, teacher).item() == pytest.approx((1 + 2 + 0) / 3)

    def test_similarity_of_orthogonal_student_and_parallel_teacher(self):
        loss = functional.similarity_distill(torch.eye(3), torch.ones(3, 5))
        assert loss.item() == pytest.approx(6 / 9)

    def test_triplet_by_hand(self):
        # Teacher: texts 0 and 1 are alike (cos 0.8), 2 is apart from both (0.6 and 0). Student: 0.6, 0.8, 0, so that only
        # the pairs (0, 1) and (0, 2) are in the wrong order, by 0.2.
        teacher = torch.tensor([[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        student = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        assert functional.triplet_distill(student, teacher, margin=0.0).item() == pytest.approx(0.2 / 3)
        assert functional.triplet_distill(student, teacher).item() == pytest.approx(0.215 / 3)
        assert functional.triplet_distill(student, teacher, margin=1.0).item() == pytest.approx((1.2 + 0.4 + 0.2) / 3)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_teacher_itself_is_best(self, objective):
        teacher = random_batch(12, 6)
        assert objective(teacher.clone(), teacher).item() < objective(random_batch(12, 6, seed=1), teacher).item()

    def test_teacher_itself_has_no_cosine_and_similarity_loss(self):
        teacher = random_batch(12, 6)
        assert functional.cosine_distill(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
        assert functional.similarity_distill(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
        assert functional.triplet_distill(teacher, teacher, margin=0.0).item() == 0


class TestTripletIsExact:
    @pytest.mark.parametrize("batch", range(2, 65))
    def test_every_comparison_is_counted(self, batch):
        """Against all pairs of pairs, both given the same float64 similarities."""
        vectors = random_batch(batch, 6, seed=batch), random_batch(batch, 8, seed=batch + 100)
        ties = with_duplicates(vectors[0], batch), with_duplicates(vectors[1], batch)
        for student, teacher in (vectors, ties):
            student, teacher = (functional.similarities(side, exact_ties=True) for side in (student, teacher))
            # Fewer and fewer different similarities of the teacher.
            for levels, margin in ((None, 0.015), (9, 0.3), (1, 0.015)):
                ranks = functional.pairs(teacher if levels is None else (teacher * levels).round())
                similarity = functional.pairs(student).requires_grad_()
                loss = functional.triplet_term(similarity, functional.PairRanking(ranks), margin)
                expected = all_pairs_of_pairs(similarity, ranks, margin)
                assert loss.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-15)
                assert relative_error(gradient_of(loss, similarity), gradient_of(expected, similarity)) < 1e-6

    def test_one_comparison(self):
        """The teacher finds the second pair more similar, the student by 0.2 the first."""
        similarity = torch.tensor([0.5, 0.3], dtype=torch.float64).requires_grad_()
        loss = functional.triplet_term(similarity, functional.PairRanking(torch.tensor([0.1, 0.9])), 0.1)
        assert loss.item() == pytest.approx(0.3)
        assert gradient_of(loss, similarity).tolist() == [1.0, -1.0]

    @pytest.mark.parametrize("piece", [128, 200, 1024])
    @pytest.mark.parametrize("count", [1, 129, 256, 257, 1500, 2048])
    def test_in_pieces(self, count, piece, monkeypatch):
        """More pairs than are handled at a time, which takes a batch of 513, are cut into pieces."""
        generator = torch.Generator().manual_seed(count)
        student = torch.rand(count, generator=generator, dtype=torch.float64).requires_grad_()
        teacher = (torch.rand(count, generator=generator, dtype=torch.float64) * 500).floor()
        monkeypatch.setattr(hinges, "_PIECE", piece)
        loss = functional.triplet_term(student, functional.PairRanking(teacher), 0.1)
        expected = all_pairs_of_pairs(student, teacher, 0.1)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        assert relative_error(gradient_of(loss, student), gradient_of(expected, student)) < 1e-9

    def test_a_piece_is_as_many_pairs_as_a_cpu_handles_at_a_time(self, monkeypatch):
        """Another device is given all at once, which it handles better than many small pieces."""
        student, teacher = torch.rand(2, 1500, generator=torch.Generator().manual_seed(0)).requires_grad_()
        sizes, count_piece = [], hinges._count_piece
        monkeypatch.setattr(
            hinges, "_count_piece", lambda state, net: sizes.append(len(net)) or count_piece(state, net)
        )
        monkeypatch.setattr(hinges, "_PIECE", 128)
        functional.triplet_term(student, functional.PairRanking(teacher), 0.1)
        # Halved at powers of two, as long as there are more than 128.
        assert sizes == [128] * 11 + [92]
        assert hinges._piece(torch.device("cpu"), 1500) == 128
        assert hinges._piece(torch.device("meta"), 1500) == 1500
        assert hinges._piece(torch.device("meta"), 0) == 1

    @pytest.mark.parametrize(("part", "together"), [(64, 64), (64, 256), (512, 1024)])
    @pytest.mark.parametrize("levels", [None, 500, 5])
    @pytest.mark.parametrize("margin", [0.0, 0.125])
    def test_in_parts(self, part, together, levels, margin, monkeypatch):
        """More pairs than one table counts, which takes a batch of 129, are cut into parts, some together."""
        student, teacher = torch.rand(2, 1500, generator=torch.Generator().manual_seed(part), dtype=torch.float64)
        if levels:
            student, teacher = (student * 32).floor() / 32, (teacher * levels).floor()
        student.requires_grad_()
        monkeypatch.setattr(hinges, "_PART", part)
        monkeypatch.setattr(hinges, "_TABLES", (together, together))
        loss = functional.triplet_term(student, functional.PairRanking(teacher), margin)
        expected = all_pairs_of_pairs(student, teacher, margin)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        assert relative_error(gradient_of(loss, student), gradient_of(expected, student)) < 1e-9

    @pytest.mark.parametrize(
        ("count", "bits", "widths"),
        [
            (1, [], [64]),
            (64, [], [64]),
            (65, [], [128]),
            (128, [], [128]),
            (129, [7], [256]),
            (257, [8, 7], [256, 256]),
            (1500, [10, 9, 8, 7], [256] * 8),
        ],
    )
    def test_no_more_is_done_than_there_are_pairs_for(self, count, bits, widths, monkeypatch):
        """They are sorted by the bits above those of a table, and are a power of two with what is added to them."""
        student, teacher = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
        split_by, counted = [], []
        split, count_parts = hinges._split, hinges._count_parts
        monkeypatch.setattr(hinges, "_split", lambda *given: split_by.append(given[2]) or split(*given))
        monkeypatch.setattr(
            hinges, "_count_parts", lambda state, part: counted.append(state.shape[1]) or count_parts(state, part)
        )
        monkeypatch.setattr(hinges, "_PART", 128)
        monkeypatch.setattr(hinges, "_TABLES", (256, 1024))  # of which a CPU has the smaller one
        functional.triplet_term(student, functional.PairRanking(teacher), 0.1)
        assert split_by == bits
        assert counted == widths

    @pytest.mark.parametrize(("count", "numbers"), [(2**14, 16), (2**17, 4)])
    def test_memory_is_some_numbers_for_each_pair(self, count, numbers):
        """No tensor on the way has more: blocks take the most where pairs are few, and four columns where they are many."""

        class Sizes(TorchDispatchMode):
            largest = 0

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **kwargs or {})
                found = [part.numel() for part in tree_leaves(result) if isinstance(part, torch.Tensor)]
                self.largest = max(self.largest, *found, 0)
                return result

        student, teacher = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
        with Sizes() as sizes:
            functional.triplet_term(student, functional.PairRanking(teacher), 0.1)
        assert 0 < sizes.largest <= numbers * count

    def test_the_largest_tables_count_as_small_ones_do(self, monkeypatch):
        """A table holds as many pairs as numbers of seven bits tell its blocks apart."""
        student, teacher = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        student.requires_grad_()
        largest = functional.triplet_term(student, functional.PairRanking(teacher), 0.1)
        monkeypatch.setattr(hinges, "_PART", 512)
        small = functional.triplet_term(student, functional.PairRanking(teacher), 0.1)
        assert torch.equal(gradient_of(largest, student), gradient_of(small, student))
        assert largest.item() == pytest.approx(small.item(), rel=1e-12)

    def test_pairs_in_the_wrong_order(self):
        """Of n pairs in the opposite order, a unit apart, each is above as many as the teacher has above it."""
        count = 20_000
        student = torch.arange(0, -count, -1, dtype=torch.float64).requires_grad_()
        loss = functional.triplet_term(student, functional.PairRanking(torch.arange(count).double()), 0.5)
        assert loss.item() == pytest.approx((count + 1) / 3 + 0.5, rel=1e-12)  # the mean distance of two of n places
        gradient = gradient_of(loss, student) * (count * (count - 1) / 2)
        wanted = torch.arange(count - 1, -count, -2, dtype=torch.float64)
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-9)

    @pytest.mark.parametrize("levels", [None, 8, 2])
    def test_no_margin(self, levels):
        """A hinge between equal similarities of the student is at zero, and counts as active."""
        student, teacher = torch.rand(2, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if levels:
            student, teacher = (student * levels).floor() / levels, (teacher * levels).floor()
        student.requires_grad_()
        loss = functional.triplet_term(student, functional.PairRanking(teacher), 0.0)
        expected = all_pairs_of_pairs(student, teacher, 0.0)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        assert relative_error(gradient_of(loss, student), gradient_of(expected, student)) < 1e-9

    @pytest.mark.parametrize("batch", [2, 3, 7, 16, 33, 64])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_single_precision_end_to_end(self, batch, autocast):
        student = with_duplicates(random_batch(batch, 32, seed=batch), batch).float().requires_grad_()
        teacher = with_duplicates(random_batch(batch, 48, seed=batch + 100), batch + 1).float()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = functional.triplet_distill(student, teacher)
        exact = student.detach().double().requires_grad_()
        ranks = functional.pairs(functional.similarities(teacher.double(), exact_ties=True))
        expected = all_pairs_of_pairs(functional.pairs(functional.similarities(exact)), ranks, 0.015)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
        assert relative_error(gradient_of(loss, student).double(), gradient_of(expected, exact)) < 1e-3

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("width", [5, 96, 384])
    @pytest.mark.parametrize("batch", [4, 40, 300])
    def test_identical_texts_tie_to_the_last_bit(self, batch, width, dtype):
        teacher = random_batch(batch, width, seed=3).to(dtype)
        half = batch // 2
        teacher[half:] = teacher[:half]
        matrix = functional.similarities(teacher, exact_ties=True)
        assert torch.equal(matrix, matrix.mT)
        assert torch.equal(matrix[:half], matrix[half:])
        assert torch.equal(matrix[:half, half:].diagonal(), torch.ones(half, dtype=dtype))

    def test_both_zeros_tie(self):
        """A product of vectors at right angles may be either."""
        ranking = functional.PairRanking(torch.tensor([0.0, 0.5, -0.0]))
        assert ranking.tied.tolist() == [0, 1]
        assert ranking.comparisons == 2

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_numbers_are_sorted_by_their_bits(self, dtype):
        finfo = torch.finfo(dtype)
        positive = torch.tensor([finfo.tiny, finfo.eps, 0.25, 1.0, 1.0 + finfo.eps, finfo.max, math.inf], dtype=dtype)
        integers = hinges.sortable(torch.cat([-positive.flip(0), torch.zeros(1, dtype=dtype), positive]))
        assert not integers.is_floating_point()
        assert (integers[1:] > integers[:-1]).all()

    def test_rows_that_differ_by_a_bit_do_not_tie(self):
        teacher = torch.ones(3, 4, dtype=torch.float64)
        teacher[1, 0] += 1e-15
        assert functional._first_equal_row(teacher).tolist() == [0, 1, 0]

    def test_the_first_of_equal_rows_is_found_among_thousands(self):
        powers = 2.0 ** torch.arange(-6, 6)
        rows = torch.cartesian_prod(powers, powers, powers)
        expected = torch.arange(len(rows))
        found = functional._first_equal_row(torch.cat([rows, rows.flip(0)]))
        assert torch.equal(found, torch.cat([expected, expected.flip(0)]))

    @pytest.mark.parametrize("strictly", [False, True])
    def test_again_is_the_same_to_the_last_bit(self, strictly):
        student, teacher = random_batch(64, 8).float().requires_grad_(), random_batch(64, 12, seed=1).float()
        first = functional.triplet_distill(student, teacher)
        torch.use_deterministic_algorithms(strictly)
        try:
            second = functional.triplet_distill(student, teacher)
            assert torch.equal(gradient_of(first, student), gradient_of(second, student))
        finally:
            torch.use_deterministic_algorithms(False)
        assert torch.equal(first, second)

    def test_only_identical_texts_gives_zero(self):
        student = torch.randn(8, 4, requires_grad=True)
        loss = functional.triplet_distill(student, torch.randn(1, 5).repeat(8, 1))
        loss.backward()
        assert loss.item() == 0
        assert not student.grad.any()

    def test_gradient_agrees_with_differences(self):
        student, teacher = random_batch(9, 4).requires_grad_(), random_batch(9, 7, seed=1)
        assert torch.autograd.gradcheck(lambda s: functional.triplet_distill(s, teacher, 0.1), (student,))
        assert torch.autograd.gradgradcheck(lambda s: functional.triplet_distill(s, teacher, 0.1), (student,))

    def test_second_backward_is_an_error(self):
        student = random_batch(6, 4).requires_grad_()
        loss = functional.triplet_distill(student, random_batch(6, 4, seed=1))
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


class TestProperties:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_norms_and_order_of_the_batch_do_not_count(self, objective):
        student, teacher = random_batch(10, 6), random_batch(10, 6, seed=1)
        scale, order = (
            random_batch(10, 1, seed=2).abs() + 0.1,
            torch.randperm(10, generator=torch.Generator().manual_seed(0)),
        )
        expected = objective(student, teacher).item()
        assert objective(student * scale, teacher / scale).item() == pytest.approx(expected)
        assert objective(student[order], teacher[order]).item() == pytest.approx(expected)

    @pytest.mark.parametrize("objective", [functional.similarity_distill, functional.triplet_distill])
    def test_a_rotation_of_either_side_does_not_count(self, objective):
        student, teacher = random_batch(10, 6), random_batch(10, 12, seed=1)
        rotation = torch.linalg.qr(random_batch(6, 6, seed=2)).Q
        assert objective(student @ rotation, teacher).item() == pytest.approx(objective(student, teacher).item())

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_extreme_norms(self, scale):
        student, teacher = random_batch(5, 4).float(), random_batch(5, 4, seed=1).float()
        expected = functional.cosine_distill(student, teacher).item()
        assert functional.cosine_distill(student * scale, teacher * scale).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_a_student_row_of_zeros(self, objective):
        student = random_batch(6, 4)
        student[2] = 0
        student.requires_grad_()
        loss = objective(student, random_batch(6, 4, seed=1))
        loss.backward()
        assert math.isfinite(loss.item())
        assert torch.isfinite(student.grad).all()
        assert not student.grad[2].any()

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_a_teacher_row_of_zeros(self, objective):
        teacher = random_batch(6, 4)
        teacher[2] = 0
        assert math.isfinite(objective(random_batch(6, 4, seed=1), teacher).item())

    def test_a_zero_vector_is_at_similarity_zero_with_itself_too(self):
        matrix = functional.similarities(torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), exact_ties=True)
        assert torch.equal(matrix, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_the_teacher_is_a_constant(self, objective):
        student, teacher = random_batch(6, 4).requires_grad_(), random_batch(6, 4, seed=1).requires_grad_()
        objective(student, teacher).backward()
        assert student.grad.any()
        assert teacher.grad is None

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_a_batch_of_one(self, objective):
        student = torch.tensor([[1.0, 0.0]], requires_grad=True)
        loss = objective(student, torch.tensor([[2.0, 0.0]]))
        loss.backward()
        assert loss.item() == 0
        assert torch.isfinite(student.grad).all()

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_half_precision_is_computed_in_single(self, objective):
        student, teacher = random_batch(8, 6).half(), random_batch(8, 6, seed=1).half()
        loss = objective(student, teacher)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(objective(student.float(), teacher.float()).item())

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_single_precision_inside_autocast(self, objective):
        student, teacher = random_batch(8, 64).float(), random_batch(8, 64, seed=1).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = objective(student, teacher)
        assert torch.equal(inside, objective(student, teacher))


class TestErrors:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize(
        ("student", "teacher", "error", "message"),
        [
            (torch.ones(3, 2), torch.ones(4, 2), ValueError, "same batch. Got 3 and 4 rows"),
            (torch.ones(0, 2), torch.ones(0, 2), ValueError, "at least one row"),
            (torch.ones(2), torch.ones(2, 2), ValueError, r"'student' vectors must have the shape \(batch, dim\)"),
            (torch.ones(2, 0), torch.ones(2, 2), ValueError, r"one dimension at least. Got \(2, 0\)"),
            (
                torch.ones(2, 2).numpy(),
                torch.ones(2, 2),
                TypeError,
                "'student' vectors must be a torch.Tensor. Got ndarray",
            ),
            (torch.ones(2, 2), torch.ones(2, 2, 2), ValueError, r"'teacher' vectors must have the shape"),
            (
                torch.ones(2, 2),
                torch.ones(2, 2).long(),
                TypeError,
                "'teacher' vectors must be floating point. Got torch.int64",
            ),
            (
                torch.ones(2, 2),
                torch.tensor([[0.0, 1.0], [math.nan, 1.0]]),
                ValueError,
                "1 of 2 rows.*first being row 1",
            ),
            (torch.ones(2, 2), torch.tensor([[math.inf, 1.0], [1.0, 1.0]]), ValueError, "first being row 0"),
        ],
    )
    def test_bad_input(self, objective, student, teacher, error, message):
        with pytest.raises(error, match=message):
            objective(student, teacher)

    def test_cosine_of_two_widths(self):
        with pytest.raises(ValueError, match="Got 3 for 'student' and 5 for 'teacher'.*projection to 5"):
            functional.cosine_distill(torch.ones(2, 3), torch.ones(2, 5))

    @pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
    def test_margin(self, margin):
        with pytest.raises(ValueError, match="'margin' must be a finite number of at least 0"):
            functional.triplet_distill(torch.ones(2, 3), torch.ones(2, 3), margin)


class TestBits:
    def test_by_hand(self):
        vectors = torch.tensor(
            [[3.0, 1.0, 2.0, 1.0], [0.1, 2.0, 1.0, -9.0], [-1.0, -1.0, -1.0, -1.0], [1.0, -1.0, 1.0, 0.0]]
        )
        half = 0.5**0.5  # three of four signs agree
        wanted = [[1.0, half, -1.0, 0.0], [half, 1.0, -half, half], [-1.0, -half, 1.0, 0.0], [0.0, half, 0.0, 1.0]]
        torch.testing.assert_close(functional.bit_similarities(vectors), torch.tensor(wanted), atol=1e-6, rtol=0)

    def test_gradient_by_hand(self):
        """Of two vectors of signs, at right angles to each other: a step of one moves the sine's angle by pi / 4."""
        vectors = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).requires_grad_()
        functional.bit_similarities(vectors)[0, 1].backward()
        quarter = math.pi / 4
        torch.testing.assert_close(vectors.grad, torch.tensor([[quarter, -quarter], [quarter, quarter]]))

    def test_estimates_the_cosine_of_normal_coordinates(self):
        first, second = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(1))
        vectors = torch.stack([first, 0.6 * first + 0.8 * second])
        assert functional.bit_similarities(vectors)[0, 1].item() == pytest.approx(0.6, abs=0.01)

    def test_lengths_do_not_count(self):
        vectors = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
        lengths = torch.tensor([1e-20, 0.5, 1.0, 7.0, 1e20])[:, None]
        assert torch.equal(functional.bit_similarities(vectors * lengths), functional.bit_similarities(vectors))

    def test_the_gradient_turns_signs(self):
        generator = torch.Generator().manual_seed(3)
        target = functional.similarities(torch.randn(12, 4, generator=generator))
        student = torch.randn(12, 32, generator=generator).requires_grad_()
        optimizer = torch.optim.Adam([student], lr=0.05)
        values = []
        for _ in range(60):
            value = functional.similarity_term(functional.bit_similarities(student), target)
            values.append(value.item())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert values[-1] < 0.2 * values[0]

    def test_a_row_of_zeros_has_no_gradient(self):
        vectors = torch.zeros(2, 3).requires_grad_()
        functional.bit_similarities(vectors).sum().backward()
        assert torch.equal(vectors.grad, torch.zeros(2, 3))
