"""BERT and RoBERTa without their poolers, in a standard class that has none.

The image-and-text models of transformers pass on what their text encoder returns, and since transformers 5.24 they refuse
a pooler's output, while ``AutoModel`` gives every BERT a pooler. ELECTRA (arXiv 2003.10555) is the same network without.
"""

from __future__ import annotations

from accelerate import init_empty_weights
from transformers import BertModel, ElectraConfig, ElectraModel, PreTrainedModel, RobertaModel, XLMRobertaModel

__all__ = ["without_pooler"]

_POSITIONS = "embeddings.position_embeddings.weight"


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder itself, or, where it is a BERT, RoBERTa or XLM-RoBERTa, its weights as an ELECTRA: the same vectors.

    RoBERTa counts positions from behind the padding token's number, and of padding none. ELECTRA counts from 0, so that
    padding must be on the right, as it is by the tokenizers of these models.

    Args:
        encoder: a model as ``transformers.AutoModel`` makes it; its weights are shared, not copied.
    """
    if not isinstance(encoder, (BertModel, RobertaModel, XLMRobertaModel)):
        return encoder
    weights = {name: value for name, value in encoder.state_dict().items() if not name.startswith("pooler.")}
    if not isinstance(encoder, BertModel):
        weights[_POSITIONS] = weights[_POSITIONS][encoder.config.pad_token_id + 1 :].clone()
    known = ElectraConfig().to_dict().keys() - {"architectures", "model_type", "transformers_version"}
    settings = {name: value for name, value in encoder.config.to_dict().items() if name in known}
    settings |= {"embedding_size": encoder.config.hidden_size, "max_position_embeddings": len(weights[_POSITIONS])}
    with init_empty_weights(include_buffers=False):
        electra = ElectraModel._from_config(
            ElectraConfig(**settings), attn_implementation=encoder.config._attn_implementation
        )
    electra.load_state_dict(weights, assign=True)
    return electra.to(encoder.device).train(encoder.training)
