from __future__ import annotations

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from sentence_transformers.sentence_transformer.modules import Transformer as TextTransformer
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, RobertaConfig, RobertaModel, SiglipVisionConfig

from st_distill.limits import most_tokens, reading, set_max_seq_length
from st_distill.modules import Transformer


@pytest.fixture
def roberta(tiny_bert, tmp_path) -> SentenceTransformer:
    """Its positions are 20, of which the first two are never a token's: those up to that of padding, 1."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=20,
    )
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    transformer = TextTransformer(str(tmp_path / "roberta"))
    return SentenceTransformer(modules=[transformer, Pooling(8, pooling_mode="mean")], device="cpu")


def test_what_an_encoder_can_read(make_student, tiny_alibi, roberta):
    assert most_tokens(make_student(max_seq_length=16)) == 64
    assert most_tokens(make_student(source=tiny_alibi)) == 8192
    assert most_tokens(roberta) == 18
    set_max_seq_length(roberta, 18)
    roberta.encode("a " * 50)  # to the last position that it has


def test_a_model_with_eyes_reads_what_its_text_encoder_does(make_student):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    eyes = Transformer.from_encoders(make_student(), SiglipVisionConfig(**sizes, image_size=32, patch_size=16))
    assert most_tokens(SentenceTransformer(modules=[eyes], device="cpu")) == 64


def test_within_a_length(make_student):
    model = make_student(max_seq_length=16)
    with reading(model, 64):
        assert model.max_seq_length == 64
    with reading(model, None):
        assert model.max_seq_length == 16
    with pytest.raises(KeyError), reading(model, 8):
        raise KeyError
    assert model.max_seq_length == 16


def test_lengths_that_no_model_reads(make_student):
    model = make_student()
    for tokens, message in (
        (65, "must be at most the 64 tokens that the model's encoder can read. Got 65 instead: take fewer"),
        (1, "must be a whole number from 2. Got 1"),
        (True, "must be a whole number from 2. Got True"),
    ):
        with pytest.raises(ValueError, match=f"The 'max_seq_length' {message}"):
            set_max_seq_length(model, tokens)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    static = SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=4)], device="cpu")
    with pytest.raises(ValueError, match="Got one that begins with StaticEmbedding instead: leave it out"):
        set_max_seq_length(static, 8)
