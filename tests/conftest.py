"""Tiny models, built here from nothing, that the whole suite shares."""

from __future__ import annotations

import json
import logging
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from PIL import Image

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "to",
    "in",
    "on",
    "and",
    "is",
    "are",
    "red",
    "green",
    "blue",
    "yellow",
    "square",
    "circle",
    "triangle",
    "cat",
    "dog",
    "bird",
    "fish",
    "house",
    "river",
    "mountain",
    "runs",
    "sleeps",
    "eats",
    "sees",
    "quick",
    "slow",
    "small",
    "large",
    "happy",
    "sad",
    "one",
    "two",
    "three",
    "four",
    "five",
    "music",
    "plays",
    "woman",
    "man",
]

SENTENCES = [
    "a cat sleeps in the house",
    "the dog runs to the river",
    "a bird sees a small fish",
    "the woman plays music",
    "a man eats a large fish",
    "two happy dogs in the house",
    "the quick cat runs",
    "a slow river and a mountain",
    "red square on a blue circle",
    "green triangle",
    "three birds on the mountain",
    "the man is sad",
    "five fish in the river",
    "a yellow house",
    "the dog sees the cat",
    "one woman and one man",
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random weights whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """The levels that the command line sets do not reach the tests after it."""
    loggers = [logging.getLogger(), logging.getLogger("st_distill")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return list(SENTENCES)


def _bert_tokenizer(max_length: int = 64):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = special + list("[]<>.,!?0123456789") + letters + ["##" + letter for letter in letters] + WORDS
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length)


def _qwen2_tokenizer(max_length: int = 64):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=max_length,
    )


def _save_text_model(folder: Path, tokenizer, model) -> str:
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> str:
    """Folder of a transformers BERT: 4 layers, 32 wide, dropout 0.1, 64 positions."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = _bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return _save_text_model(tmp_path_factory.mktemp("tiny-bert"), tokenizer, BertModel(config))


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory) -> str:
    """Folder of a transformers Qwen2: 3 layers, 32 wide, bidirectional, byte-level tokens."""
    from transformers import Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    tokenizer = _qwen2_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        is_causal=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save_text_model(tmp_path_factory.mktemp("tiny-qwen2"), tokenizer, Qwen2Model(config))


@pytest.fixture(scope="session")
def tiny_alibi(tmp_path_factory) -> str:
    """Folder of an ALiBi BERT: 2 layers, 24 wide, 3 heads, 8192 tokens."""
    from st_distill.modules import AlibiBertConfig, AlibiBertModel

    torch.manual_seed(0)
    tokenizer = _bert_tokenizer(8192)
    config = AlibiBertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32
    )
    return _save_text_model(tmp_path_factory.mktemp("tiny-alibi"), tokenizer, AlibiBertModel(config))


@pytest.fixture
def published(tiny_alibi, tmp_path) -> Path:
    """Folder of an ALiBi encoder in the published layout, with its tokenizer and a modules.json."""
    from st_distill.modules import AlibiBertModel
    from st_distill.modules.alibi_checkpoint import save_published

    folder = tmp_path / "published"
    save_published(AlibiBertModel.from_pretrained(tiny_alibi), folder)
    for file in Path(tiny_alibi).glob("*token*"):
        shutil.copy(file, folder)
    kind = "sentence_transformers.sentence_transformer.modules"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 24, "pooling_mode": "mean"}')
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory) -> str:
    """Folder of a transformers SigLIP vision encoder: 2 layers, 24 wide, 32 x 32 pixels in 8 x 8 patches."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny-siglip")
    config = SiglipVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
    )
    SiglipVisionModel(config).eval().save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make_student(tiny_bert):
    """A function that returns a fresh sentence-transformers student over the tiny BERT (mean pooling, 32 wide)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    def make(*modules, source: str = tiny_bert, max_seq_length: int = 32) -> SentenceTransformer:
        transformer = Transformer(source, max_seq_length=max_seq_length)
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
        return SentenceTransformer(modules=[transformer, pooling, *modules], device="cpu")

    return make


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Sixteen small pictures: four colours by four shapes' worth of layout."""
    pictures = []
    for red, green, blue in [(220, 30, 30), (30, 220, 30), (30, 30, 220), (220, 220, 30)]:
        for corner in range(4):
            picture = Image.new("RGB", (40, 40), (255, 255, 255))
            left, top = 20 * (corner % 2), 20 * (corner // 2)
            picture.paste((red, green, blue), (left, top, left + 20, top + 20))
            pictures.append(picture)
    return pictures
