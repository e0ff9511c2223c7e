from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from st_distill.modules.poolerless import without_pooler

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.2,
}
KINDS = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL, type_vocab_size=1)),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**SMALL, type_vocab_size=1)),
}


@pytest.fixture(params=KINDS)
def encoder(request):
    torch.manual_seed(0)
    return KINDS[request.param]().eval()


@torch.no_grad()
def test_the_vectors_are_equal_and_no_pooler_is_left(encoder, tmp_path):
    electra = without_pooler(encoder)
    assert type(electra) is ElectraModel
    longest = electra.config.max_position_embeddings
    assert longest == (
        24 if isinstance(encoder, BertModel) else 22
    )  # less than its table by the padding token's 1 and 0
    ids = torch.randint(5, 50, (3, longest))
    mask = torch.ones_like(ids)
    mask[0, 9:], mask[1, 1:] = 0, 0
    ids[mask == 0] = encoder.config.pad_token_id
    electra.save_pretrained(tmp_path)
    for model in (electra, AutoModel.from_pretrained(tmp_path)):
        output = model(input_ids=ids, attention_mask=mask)
        expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.equal(output.last_hidden_state[mask == 1], expected[mask == 1])
        assert "pooler_output" not in output


def test_what_training_needs_stays(encoder):
    encoder.half().train()
    electra = without_pooler(encoder)
    assert electra.training
    assert electra.dtype == torch.float16
    assert electra.config.hidden_dropout_prob == 0.2
    assert all(parameter.requires_grad for parameter in electra.parameters())
    words = electra.get_input_embeddings().weight
    assert words.data_ptr() == encoder.get_input_embeddings().weight.data_ptr()


def test_others_are_left_as_they_are():
    encoder = DistilBertModel(DistilBertConfig(vocab_size=50, dim=32, n_heads=4, n_layers=1, hidden_dim=32))
    assert without_pooler(encoder) is encoder
