"""A batch in parts of like length: the same embeddings, from less padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from st_distill.padding import embed_by_length, split_by_length

TEXTS = [
    "the dog",
    "a red fish and a blue fish and a small green bird in the old house by the sea",
    "a cat",
    "the old house",
]


def tokens(lengths, ends):
    """Tokens of the parts, padding included."""
    ordered = -np.sort(-lengths)
    return sum((end - start) * ordered[start] for start, end in zip([0, *ends], ends))


class TestSplit:
    @pytest.mark.parametrize("seed", range(20))
    def test_no_other_split_has_less_padding(self, seed):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(1, 40, generator.integers(1, 9))
        for parts in range(1, len(lengths) + 1):
            ends = split_by_length(lengths, parts)
            assert len(ends) == parts
            assert ends[-1] == len(lengths)
            assert sorted(set(ends)) == ends
            others = itertools.combinations(range(1, len(lengths)), parts - 1)
            assert tokens(lengths, ends) == min(tokens(lengths, [*other, len(lengths)]) for other in others)

    def test_rows_of_one_length_stay_together(self):
        assert split_by_length(np.full(64, 128)) == [64]

    def test_long_rows_part_from_short_ones(self):
        assert split_by_length(np.array([10] * 50 + [256] * 14)) == [14, 64]

    def test_a_few_tokens_are_not_worth_a_forward_pass(self):
        assert split_by_length(np.array([10, 9, 8, 7])) == [4]

    def test_more_parts_than_rows(self):
        assert split_by_length(np.array([3, 2, 1]), 5) == [1, 2, 3]

    def test_a_large_batch(self):
        lengths = np.random.default_rng(0).integers(1, 512, 5000)
        ends = split_by_length(lengths, 6)
        assert len(ends) == 6
        assert ends[-1] == 5000
        assert tokens(lengths, ends) < 1.2 * lengths.sum()


class TestEmbed:
    @pytest.fixture
    def student(self, make_student):
        return make_student().eval()

    def widths(self, student, monkeypatch):
        """The (rows, width) of each forward pass from here on."""
        seen = []
        forward = type(student).forward

        def recorded(self, features, **options):
            seen.append(tuple(features["input_ids"].shape))
            return forward(self, features, **options)

        monkeypatch.setattr(type(student), "forward", recorded)
        return seen

    @pytest.mark.parametrize("parts", [1, 2, 3, 4])
    def test_the_same_embeddings_and_gradients(self, student, parts):
        found = []
        for embed in (lambda f: student(f)["sentence_embedding"], lambda f: embed_by_length(student, f, parts)):
            student.zero_grad()
            embeddings = embed(student.preprocess(TEXTS))
            (embeddings * torch.arange(embeddings.numel()).view_as(embeddings).sin()).sum().backward()
            found.append((embeddings.detach(), [p.grad.clone() for p in student.parameters() if p.grad is not None]))
        (whole, whole_gradients), (split, split_gradients) = found
        torch.testing.assert_close(split, whole, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(split_gradients, whole_gradients, atol=1e-5, rtol=1e-4)

    def test_each_part_is_as_wide_as_its_longest_text(self, student, monkeypatch):
        seen = self.widths(student, monkeypatch)
        features = student.preprocess(TEXTS)
        width = features["input_ids"].shape[1]
        embed_by_length(student, features, 2)
        assert [count for count, _ in seen] == [1, 3]
        assert seen[0][1] == width
        assert seen[1][1] == student.preprocess([TEXTS[3]])["input_ids"].shape[1]

    def test_lengths_decide_by_themselves(self, student, monkeypatch):
        long = " ".join(["fish"] * 60)
        features = student.preprocess(["dog"] * 30 + [long] * 3)
        seen = self.widths(student, monkeypatch)
        embed_by_length(student, features)
        assert [count for count, _ in seen] == [3, 30]

    @pytest.mark.parametrize("extra", ["pixel_values", "input_features"])
    def test_other_features_go_in_one_part(self, student, monkeypatch, extra):
        features = student.preprocess(TEXTS) | {extra: torch.zeros(2, 3)}
        seen = self.widths(student, monkeypatch)
        monkeypatch.setattr(
            type(student[0]), "forward", lambda self, f, **options: {**f, "sentence_embedding": f["input_ids"]}
        )
        student.pop(1)
        embed_by_length(student, features, 2)
        assert len(seen) == 1
