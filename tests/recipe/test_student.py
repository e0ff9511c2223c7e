from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

from st_distill.modules import MatryoshkaProjection
from st_distill.modules import Transformer as ImageTransformer
from st_distill.recipe import stages
from st_distill.recipe.patterns import matching
from st_distill.recipe.schema import Student
from st_distill.recipe.student import (
    build_student,
    dropout_of,
    encoder_layers,
    prune_layers,
    trained_parameters,
    training_only,
)


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_qwen2"])
def test_pruned_layers_are_those_of_the_original(family, request, sentences, tmp_path):
    source = request.getfixturevalue(family)
    whole = SentenceTransformer(modules=[Transformer(source)], device="cpu")
    kept = [0, 2]
    student = build_student(Student(model=source, layers=kept, pooling="mean"), device="cpu")
    originals, layers = encoder_layers(whole[0]), encoder_layers(student[0])
    assert len(layers) == 2
    for new, old in zip(layers, kept):
        for name, value in layers[new if isinstance(new, int) else list(layers).index(new)].state_dict().items():
            assert torch.equal(value, originals[old].state_dict()[name])
    student.save(str(tmp_path / "student"))
    loaded = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    assert loaded[0].auto_model.config.num_hidden_layers == 2
    assert torch.equal(
        loaded.encode(sentences, convert_to_tensor=True), student.encode(sentences, convert_to_tensor=True)
    )


@pytest.mark.parametrize("layers", [[4], [-1], [0, 0], []])
def test_layers_that_are_none(layers, tiny_bert):
    with pytest.raises(ValueError, match="'layers' must be distinct numbers from 0 to 3"):
        prune_layers(Transformer(tiny_bert), layers)


@pytest.mark.parametrize("field", ["max_seq_length", "export_max_seq_length"])
def test_more_tokens_than_the_encoder_reads(field, tiny_bert):
    """Found when the student is made, where no configuration told it before."""
    with pytest.raises(ValueError, match="at most the 64 tokens that the model's encoder can read. Got 65"):
        build_student(Student(model=tiny_bert, **{field: 65}), device="cpu")
    assert build_student(Student(model=tiny_bert, export_max_seq_length=32), device="cpu").max_seq_length == 64


def test_flex_attention_cannot_train_on_a_cpu(tiny_bert):
    student = build_student(Student(model=tiny_bert, attn_implementation="flex_attention"), device="cpu")
    student.append(MatryoshkaProjection(32, [8]))
    with pytest.raises(ValueError, match="must have a backward pass .* Got flex_attention on a CPU"):
        stages._check_kernel(student, trained_parameters(student, "all"), torch.device("cpu"))
    stages._check_kernel(student, trained_parameters(student, "projection"), torch.device("cpu"))
    stages._check_kernel(student, trained_parameters(student, "all"), torch.device("cuda"))


def test_a_projection_the_model_ends_in_is_left_off(make_student, tmp_path):
    make_student(Dense(32, 16), Normalize()).save(str(tmp_path / "model"))
    student = build_student(Student(model=str(tmp_path / "model"), max_seq_length=9), device="cpu")
    assert [type(module) for module in student.children()] == [Transformer, Pooling]
    assert student.get_embedding_dimension() == 32
    assert student.max_seq_length == 9


def test_pooling_of_a_plain_model(tiny_bert):
    assert build_student(Student(model=tiny_bert), device="cpu")[1].pooling_mode == "mean"
    assert build_student(Student(model=tiny_bert, pooling="cls"), device="cpu")[1].pooling_mode == "cls"


class TestTrainedParameters:
    @pytest.fixture
    def student(self, make_student):
        return make_student(MatryoshkaProjection(32, [8, 4]))

    def test_projection(self, student):
        assert trained_parameters(student, "projection") == {"2.linears.0.weight", "2.linears.0.bias"}

    def test_all(self, student):
        assert trained_parameters(student, "all") == {name for name, _ in student.named_parameters()}

    @pytest.mark.parametrize("count", [1, 3])
    def test_last_layers(self, student, count):
        chosen = trained_parameters(student, {"last_layers": count})
        layers = encoder_layers(student[0])
        parameters = dict(student.named_parameters())
        wanted = {id(p) for layer in layers[-count:] for p in layer.parameters()} | {
            id(p) for p in student[2].parameters()
        }
        assert {id(parameters[name]) for name in chosen} == wanted

    def test_a_pattern_that_takes_exponential_time_is_given_up(self):
        with pytest.raises(ValueError, match="must match a name at once. It was still at it after 0.05 seconds"):
            matching("(a|aa)+[^a]", ["a" * 60], seconds=0.05)

    def test_patterns(self, student):
        chosen = trained_parameters(student, [r"layer\.3\.", r"^2\..*bias"])
        assert "2.linears.0.bias" in chosen
        assert "2.linears.0.weight" not in chosen
        assert any(".layer.3." in name for name in chosen)
        assert not any(".layer.2." in name for name in chosen)

    def test_vision(self, student, tiny_siglip):
        seeing = SentenceTransformer(
            modules=[ImageTransformer.from_encoders(student, tiny_siglip), *list(student.children())[1:]], device="cpu"
        )
        chosen = trained_parameters(seeing, "vision")
        parameters = dict(seeing.named_parameters())
        text = {id(parameter) for parameter in seeing[0].text_encoder.parameters()}
        assert not text & {id(parameters[name]) for name in chosen}
        for part in (seeing[0].vision_encoder, seeing[0].projector):
            assert {id(parameters[name]) for name in chosen} & {id(parameter) for parameter in part.parameters()}

    def test_errors(self, student, make_student):
        with pytest.raises(ValueError, match="only where the model has a vision encoder"):
            trained_parameters(student, "vision")
        with pytest.raises(ValueError, match="'last_layers' must be at most the student's 4. Got 5"):
            trained_parameters(student, {"last_layers": 5})
        with pytest.raises(ValueError, match="pattern 'nothing' matches none"):
            trained_parameters(student, ["nothing"])
        with pytest.raises(ValueError, match="has no such parameters"):
            trained_parameters(make_student(), "projection")


class TestTrainingOnly:
    def test_frozen_modules_run_without_dropout(self, make_student, sentences):
        student = make_student(MatryoshkaProjection(32, [8]))
        features = [student.preprocess(sentences) for _ in range(4)]
        with training_only(student, trained_parameters(student, "projection")):
            student.train()
            first, second = (student(f)["sentence_embedding"] for f in features[:2])
            assert torch.equal(first, second)
            assert {n for n, p in student.named_parameters() if p.requires_grad} == {
                "2.linears.0.weight",
                "2.linears.0.bias",
            }
        student.train()
        assert not torch.equal(student(features[2])["sentence_embedding"], student(features[3])["sentence_embedding"])
        assert all(parameter.requires_grad for parameter in student.parameters())

    def test_trained_layers_keep_their_dropout(self, make_student, sentences):
        student = make_student(MatryoshkaProjection(32, [8]))
        with training_only(student, trained_parameters(student, {"last_layers": 1})):
            student.train()
            student(student.preprocess(sentences))
            layers = encoder_layers(student[0])
            modes = [
                {module.training for module in layer.modules() if isinstance(module, nn.Dropout)} for layer in layers
            ]
        assert modes == [{False}, {False}, {False}, {True}]


class TestDropout:
    @pytest.mark.parametrize("family", ["tiny_bert", "tiny_qwen2"])
    def test_is_what_the_stage_says_and_then_the_models_own(self, family, request, sentences):
        model = SentenceTransformer(
            modules=[Transformer(request.getfixturevalue(family)), Pooling(32, "mean")], device="cpu"
        )

        def embed():
            return model(model.preprocess(sentences))["sentence_embedding"]

        exact = embed()
        model.train()
        own = torch.equal(embed(), embed())
        with dropout_of(model, 0.0):
            assert torch.equal(embed(), exact)
        with dropout_of(model, 0.5):
            assert not torch.equal(embed(), embed())
        with dropout_of(model, None):
            assert torch.equal(embed(), embed()) == own
        assert torch.equal(embed(), embed()) == own

    def test_adapters_keep_theirs(self, make_student):
        student = make_student()
        student.add_adapter(LoraConfig(r=2, lora_dropout=0.25, target_modules=["query"]))
        with dropout_of(student, 0.0):
            shares = {name: module.p for name, module in student.named_modules() if isinstance(module, nn.Dropout)}
        assert {share for name, share in shares.items() if "lora_" in name} == {0.25}
        assert {share for name, share in shares.items() if "lora_" not in name} == {0.0}
