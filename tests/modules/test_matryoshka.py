from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from st_distill.exporting import load_student
from st_distill.functional import cosine_distill, normalize
from st_distill.modules import MatryoshkaProjection
from st_distill.modules.matryoshka import fold_into_table
from st_distill.modules.rotation import principal_rotation, random_rotation


@pytest.fixture
def pooled() -> torch.Tensor:
    return torch.randn(300, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def teacher(pooled) -> torch.Tensor:
    """Teacher vectors that an affine map of the pooled vectors reaches up to norms and a little noise."""
    generator = torch.Generator().manual_seed(1)
    return pooled @ torch.randn(12, 20, generator=generator) + 0.5 + 0.01 * torch.randn(300, 20, generator=generator)


PROJECTIONS = {
    "nested": lambda: MatryoshkaProjection(12, [4, 8]),
    "rotated": lambda: MatryoshkaProjection(12, [8, 4], rotation=random_rotation(20, 8)),
    "independent": lambda: MatryoshkaProjection(12, [8, 4, 2], heads="independent", bias=False),
    "teacher head": lambda: MatryoshkaProjection(12, [8], teacher_head=20),
}
WITHOUT_HEADS = {
    "no heads": lambda: MatryoshkaProjection(12, [12, 4], heads="none"),
    "no heads, rotated": lambda: MatryoshkaProjection(12, [12, 4], heads="none", rotation=random_rotation(20, 12)),
}


@pytest.mark.parametrize("make", (PROJECTIONS | WITHOUT_HEADS).values(), ids=(PROJECTIONS | WITHOUT_HEADS).keys())
def test_save_and_load(make, tmp_path, pooled):
    projection = make()
    projection.save(str(tmp_path))
    loaded = MatryoshkaProjection.load(str(tmp_path))
    assert loaded.get_config_dict() == projection.get_config_dict()
    assert {name: torch.equal(value, loaded.state_dict()[name]) for name, value in projection.state_dict().items()} == (
        dict.fromkeys(projection.state_dict(), True)
    )
    assert torch.equal(
        loaded({"sentence_embedding": pooled})["sentence_embedding"],
        projection({"sentence_embedding": pooled})["sentence_embedding"],
    )


@pytest.mark.parametrize("make", PROJECTIONS.values(), ids=PROJECTIONS.keys())
def test_standard_module_gives_the_same_vectors(make, pooled):
    projection = make()
    (dense,) = projection.to_standard()
    assert type(dense) is Dense
    expected = projection({"sentence_embedding": pooled})["sentence_embedding"]
    assert torch.equal(dense({"sentence_embedding": pooled})["sentence_embedding"], expected)


def test_without_heads_the_pooled_vector_has_the_prefixes(pooled):
    projection = MatryoshkaProjection(12, [4, 12], heads="none")
    with projection.all_heads():
        assert torch.equal(projection({"sentence_embedding": pooled})["sentence_embedding"], pooled)
    assert projection.views() == {12: slice(0, 12), 4: slice(0, 4)}
    assert list(projection.parameters()) == []
    assert projection.to_standard() == []
    (cut,) = projection.to_standard(4)
    assert torch.equal(cut({"sentence_embedding": pooled})["sentence_embedding"], pooled[:, :4])


@pytest.fixture
def static() -> SentenceTransformer:
    """A static embedding of four words, 12 wide."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "green": 2, "blue": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


def test_a_folded_projection_gives_the_same_vectors(static, tmp_path):
    texts = ["red", "green green blue", "red other"]
    projection = MatryoshkaProjection(12, [8, 4], rotation=random_rotation(20, 8))
    expected = projection({"sentence_embedding": static.encode(texts, convert_to_tensor=True).clone()})[
        "sentence_embedding"
    ]
    rest = fold_into_table(projection, static[0])
    static.append(rest)
    assert static.get_embedding_dimension() == 8
    assert (rest.heads, rest.dims) == ("none", [8, 4])
    assert torch.equal(rest.rotation, projection.rotation)
    assert [name for name, parameter in static.named_parameters() if parameter.requires_grad] == ["0.embedding.weight"]
    assert torch.allclose(static.encode(texts, convert_to_tensor=True), expected, atol=1e-6)
    static.save(str(tmp_path))
    loaded = load_student(tmp_path)
    assert torch.allclose(loaded.encode(texts, convert_to_tensor=True), expected, atol=1e-6)
    assert not static.encode([""], convert_to_tensor=True).any()


def test_standard_modules_of_single_heads(pooled):
    projection = MatryoshkaProjection(12, [8, 4], heads="independent", teacher_head=20)
    with projection.all_heads():
        heads = projection({"sentence_embedding": pooled})["sentence_embedding"]
    assert heads.shape == (300, 8 + 4 + 20)
    views = {**projection.views(), 20: projection.teacher_view()}
    for dim, view in views.items():
        (dense,) = projection.to_standard(dim)
        assert torch.equal(dense({"sentence_embedding": pooled})["sentence_embedding"], heads[:, view])
    with pytest.raises(ValueError, match=r"must be one of the projection's dimensions \[20, 8, 4\]. Got 5"):
        projection.to_standard(5)


def test_prefixes_are_the_smaller_heads(pooled):
    projection = MatryoshkaProjection(12, [4, 8])
    whole = projection({"sentence_embedding": pooled})["sentence_embedding"]
    part = projection.to_standard(4)[0]({"sentence_embedding": pooled})["sentence_embedding"]
    torch.testing.assert_close(whole[:, :4], part)


def test_dims_come_largest_first():
    projection = MatryoshkaProjection(12, [2, 8, 4])
    assert projection.dims == [8, 4, 2]
    assert projection.get_embedding_dimension() == 8


def test_identity_start(pooled):
    projection = MatryoshkaProjection(12, [12, 4])
    projection.start_identity()
    assert torch.equal(projection({"sentence_embedding": pooled})["sentence_embedding"], pooled)
    with pytest.raises(ValueError, match="no wider than the pooled vector of 12 dimensions. Got one of 16"):
        MatryoshkaProjection(12, [16]).start_identity()


def test_identity_start_turns_as_the_teacher_is_turned(pooled):
    projection = MatryoshkaProjection(12, [8, 4], heads="independent", rotation=random_rotation(12, 8), teacher_head=12)
    projection.start_identity()
    with projection.all_heads():
        every = projection({"sentence_embedding": pooled})["sentence_embedding"]
    aligned = projection.align(pooled)
    torch.testing.assert_close(every, torch.cat([aligned, aligned[:, :4], pooled], dim=1))
    # Axes that nothing turns are the first coordinates, whatever the teacher's width.
    for width in (16, 10):
        projection = MatryoshkaProjection(12, [8], rotation=torch.eye(width, 8))
        projection.start_identity()
        assert torch.equal(projection({"sentence_embedding": pooled})["sentence_embedding"], pooled[:, :8])
    with pytest.raises(ValueError, match="Got one of 12 dimensions, and a rotation of the teacher's 20"):
        MatryoshkaProjection(12, [8], rotation=random_rotation(20, 8)).start_identity()


@pytest.mark.parametrize("rotate", [random_rotation, None], ids=["random", "principal"])
def test_ridge_start_points_to_the_rotated_teacher(pooled, teacher, rotate):
    rotation = principal_rotation([teacher], 8) if rotate is None else rotate(20, 8)
    projection = MatryoshkaProjection(12, [8, 4], rotation=rotation)
    before = projection({"sentence_embedding": pooled.clone()})["sentence_embedding"]
    projection.start_ridge([(pooled[:100], teacher[:100]), (pooled[100:], teacher[100:])], penalty=1e-6)
    after = projection({"sentence_embedding": pooled.clone()})["sentence_embedding"]
    aligned = projection.align(normalize(teacher))
    assert cosine_distill(before, aligned).item() > 0.5
    assert cosine_distill(after, aligned).item() < 0.05


def test_ridge_start_is_least_squares(pooled):
    """For a target that is affine in the pooled vector, and of unit length, ridge regression finds it."""
    angles = torch.linspace(0, 1, 300, dtype=torch.float64)
    target = torch.stack([angles.cos(), angles.sin()], dim=1)
    features = torch.cat([target, pooled[:, :2].double()], dim=1)
    projection = MatryoshkaProjection(4, [2]).double()
    projection.start_ridge([(features, target)], penalty=0.0)
    torch.testing.assert_close(
        projection({"sentence_embedding": features})["sentence_embedding"], target, atol=1e-5, rtol=0
    )


def test_ridge_start_of_every_head(pooled, teacher):
    projection = MatryoshkaProjection(
        12, [8, 4], heads="independent", teacher_head=20, rotation=random_rotation(20, 8, seed=3)
    )
    projection.start_ridge([(pooled, teacher)])
    with projection.all_heads():
        heads = projection({"sentence_embedding": pooled})["sentence_embedding"]
    views, aligned = projection.views(), projection.align(normalize(teacher))
    torch.testing.assert_close(heads[:, views[4]], heads[:, views[8]][:, :4])
    assert cosine_distill(heads[:, views[8]], aligned).item() < 0.05
    assert cosine_distill(heads[:, projection.teacher_view()], teacher).item() < 0.05


def test_ridge_start_of_a_constant_student(teacher):
    projection = MatryoshkaProjection(12, [20])
    projection.start_ridge([(torch.ones(300, 12), teacher)])
    assert torch.isfinite(projection.linears[0].weight).all()


def test_dims_of_numpy(tmp_path):
    projection = MatryoshkaProjection(12, np.array([4, 8]))
    assert projection.dims == [8, 4]
    projection.save(str(tmp_path))
    assert MatryoshkaProjection.load(str(tmp_path)).dims == [8, 4]


class TestErrors:
    @pytest.mark.parametrize(
        "dims", [[], [0], [4, 4], [-1], [2.5], [True], 16, None, np.array([2.0]), np.array([4, 4])]
    )
    def test_dims(self, dims):
        with pytest.raises(ValueError, match="'dims' of MatryoshkaProjection must be distinct positive whole numbers"):
            MatryoshkaProjection(12, dims)

    @pytest.mark.parametrize("width", [12.0, 0, -3, "12", None])
    def test_widths(self, width):
        with pytest.raises(ValueError, match=f"'in_features' of MatryoshkaProjection must be .* Got {width!r} instead"):
            MatryoshkaProjection(width, [4])
        if width is not None:
            with pytest.raises(ValueError, match=f"'teacher_head' of MatryoshkaProjection .* Got {width!r} instead"):
                MatryoshkaProjection(12, [4], teacher_head=width)

    def test_rotation_of_numpy(self):
        with pytest.raises(TypeError, match="'rotation' must be a torch.Tensor. Got ndarray instead"):
            MatryoshkaProjection(12, [8], rotation=np.eye(20, 8))

    def test_heads(self):
        with pytest.raises(ValueError, match="must be 'nested', 'independent' or 'none'. Got 'both'"):
            MatryoshkaProjection(12, [4], heads="both")

    @pytest.mark.parametrize("shape", [(20, 4), (4, 8), (8,)])
    def test_rotation_shape(self, shape):
        with pytest.raises(ValueError, match=r"shape \(teacher_features, 8\)"):
            MatryoshkaProjection(12, [8], rotation=torch.zeros(shape))

    def test_rotation_that_is_none(self):
        with pytest.raises(ValueError, match="must have orthonormal columns"):
            MatryoshkaProjection(12, [8], rotation=torch.ones(20, 8))

    def test_teacher_of_another_width(self):
        with pytest.raises(ValueError, match="for teacher vectors of 20 dimensions. Got 8 instead"):
            MatryoshkaProjection(12, [8], rotation=random_rotation(20, 8)).align(torch.ones(3, 8))

    def test_ridge_without_data(self):
        with pytest.raises(ValueError, match="at least one batch"):
            MatryoshkaProjection(12, [8]).start_ridge([])

    def test_ridge_of_a_head_wider_than_the_teacher(self, pooled, teacher):
        with pytest.raises(ValueError, match="no wider than the teacher's 20 dimensions. Got one of 24"):
            MatryoshkaProjection(12, [24]).start_ridge([(pooled, teacher)])

    @pytest.mark.parametrize(("dims", "teacher_head"), [([8], None), ([16, 12], None), ([12], 20)])
    def test_no_heads_that_would_be_needed(self, dims, teacher_head):
        with pytest.raises(
            ValueError, match=f"pooled vector's width, 12, .* Got {max(dims)} and {teacher_head} instead"
        ):
            MatryoshkaProjection(12, dims, heads="none", teacher_head=teacher_head)

    def test_ridge_without_heads(self, pooled, teacher):
        with pytest.raises(ValueError, match="needs heads. Got a projection without"):
            MatryoshkaProjection(12, [12], heads="none").start_ridge([(pooled, teacher)])

    def test_what_no_table_can_take(self, static):
        with pytest.raises(
            ValueError, match="Only nested heads .* Got 'independent' heads and a teacher's head of None"
        ):
            fold_into_table(MatryoshkaProjection(12, [8, 4], heads="independent"), static[0])
        with pytest.raises(ValueError, match="Got 'nested' heads and a teacher's head of 20"):
            fold_into_table(MatryoshkaProjection(12, [8], teacher_head=20), static[0])
        with pytest.raises(ValueError, match="that the projection reads, 16. Got 12 instead"):
            fold_into_table(MatryoshkaProjection(16, [8]), static[0])
