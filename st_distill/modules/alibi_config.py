"""What an ALiBi BERT is made of. This file and the two beside it that it needs are copied into saved folders as they are.

So nothing here may import st_distill: a folder loads, with ``trust_remote_code=True``, where torch and transformers are all
there is.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

from transformers import PreTrainedConfig

#: The published sizes (arXiv 2310.19923, table 1), each with 64 dimensions a head.
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "feed_forward": "geglu",
    },
    "base": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "feed_forward": "geglu",
    },
    "large": {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feed_forward": "reglu",  # GEGLU was unstable at this size
    },
}

FEED_FORWARDS = ("geglu", "reglu")
POOLINGS = ("cls", "mean")


class AlibiBertConfig(PreTrainedConfig):
    """Configuration of `AlibiBertModel`: post-LayerNorm BERT, symmetric ALiBi, gated feed-forward (arXiv 2310.19923).

    The defaults are the published base model; `AlibiBertConfig.preset` has all three.

    Args:
        vocab_size: number of tokens, at least 1.
        hidden_size: width, a multiple of ``num_attention_heads``.
        num_hidden_layers: at least 1.
        num_attention_heads: any number from 1; ALiBi's slopes are interpolated where it is no power of two.
        intermediate_size: width between the two maps of the feed-forward, at least 1.
        feed_forward: ``"geglu"`` or ``"reglu"``: which function the gate passes through.
        hidden_dropout_prob: after the embeddings, the attention and the feed-forward, from 0 to below 1.
        attention_probs_dropout_prob: of the attention's weights, from 0 to below 1; most attention kinds are faster
            without it, and flex_attention cannot train with it.
        classifier_dropout: before the classification head, from 0 to below 1; None for ``hidden_dropout_prob``.
        classifier_pooling: what the classification head sees: the first token's vector (``"cls"``) or their ``"mean"``.
        max_position_embeddings: the most tokens a text may have. There is nothing learned for a position, so the limit
            can be changed at any time.
        type_vocab_size: number of token types, at least 1.
        layer_norm_eps: above 0.
        initializer_range: standard deviation of new weights, at least 0.
        pad_token_id: the token of padding, from 0 to below ``vocab_size``, whose vector starts as zero; None for none.
        tie_word_embeddings: whether the masked-LM head shares the word embeddings.
        sparse_prediction: whether the masked-LM head, given labels, computes the logits of labelled tokens alone, as
            (labelled tokens, vocab_size): the loss is the same, in a third of the time at 30 % masking.

    Raises:
        ValueError: for a value of another type, or outside these ranges.
    """

    model_type = "alibi_bert"
    _auto_class = "AutoConfig"

    def __init__(
        self,
        *,
        vocab_size: int = 30528,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        feed_forward: str = "geglu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.0,
        classifier_dropout: float | None = None,
        classifier_pooling: str = "cls",
        max_position_embeddings: int = 8192,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        pad_token_id: int | None = 0,
        tie_word_embeddings: bool = True,
        sparse_prediction: bool = False,
        **kwargs: Any,
    ) -> None:
        whole = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "max_position_embeddings": max_position_embeddings,
            "type_vocab_size": type_vocab_size,
        }
        for name, value in whole.items():
            if not _is_number(value, int) or value < 1:
                raise ValueError(
                    f"The '{name}' of AlibiBertConfig must be a whole number from 1. Got {value!r} instead."
                )
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"The 'hidden_size' of AlibiBertConfig must be a multiple of 'num_attention_heads', {num_attention_heads}. "
                f"Got {hidden_size} instead."
            )
        shares = {
            "hidden_dropout_prob": hidden_dropout_prob,
            "attention_probs_dropout_prob": attention_probs_dropout_prob,
            "classifier_dropout": hidden_dropout_prob if classifier_dropout is None else classifier_dropout,
        }
        for name, share in shares.items():
            if not _is_number(share) or not 0 <= share < 1:
                raise ValueError(
                    f"The '{name}' of AlibiBertConfig must be a number from 0 to below 1. Got {share!r} instead."
                )
        if not _is_number(layer_norm_eps) or not 0 < layer_norm_eps < math.inf:
            raise ValueError(
                f"The 'layer_norm_eps' of AlibiBertConfig must be a number above 0. Got {layer_norm_eps!r} instead."
            )
        if not _is_number(initializer_range) or not 0 <= initializer_range < math.inf:
            raise ValueError(
                f"The 'initializer_range' of AlibiBertConfig must be a number from 0. Got {initializer_range!r} instead."
            )
        if pad_token_id is not None and not (_is_number(pad_token_id, int) and 0 <= pad_token_id < vocab_size):
            raise ValueError(
                f"The 'pad_token_id' of AlibiBertConfig must be a token of the vocabulary, 0 to {vocab_size - 1}, or None. "
                f"Got {pad_token_id!r} instead."
            )
        for name, flag in (("tie_word_embeddings", tie_word_embeddings), ("sparse_prediction", sparse_prediction)):
            if not isinstance(flag, bool):
                raise ValueError(f"The '{name}' of AlibiBertConfig must be True or False. Got {flag!r} instead.")
        for name, choice, choices in (
            ("feed_forward", feed_forward, FEED_FORWARDS),
            ("classifier_pooling", classifier_pooling, POOLINGS),
        ):
            if choice not in choices:
                raise ValueError(
                    f"The '{name}' of AlibiBertConfig must be {' or '.join(map(repr, choices))}. Got {choice!r} instead."
                )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.feed_forward = feed_forward
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.classifier_pooling = classifier_pooling
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.sparse_prediction = sparse_prediction
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **kwargs)
        # Every class, whichever one is saved: a base model's folder then serves AutoModelForMaskedLM too.
        self.auto_map = {
            "AutoConfig": "alibi_config.AlibiBertConfig",
            "AutoModel": "alibi_model.AlibiBertModel",
            "AutoModelForMaskedLM": "alibi_model.AlibiBertForMaskedLM",
            "AutoModelForSequenceClassification": "alibi_model.AlibiBertForSequenceClassification",
        }

    @classmethod
    def preset(cls, size: str, **changes: Any) -> AlibiBertConfig:
        """The configuration of a published size, ``"small"``, ``"base"`` or ``"large"``, with some fields changed.

        Raises:
            ValueError: for another size.
        """
        if size not in SIZES:
            raise ValueError(f"The 'size' must be {', '.join(map(repr, SIZES))}. Got {size!r} instead.")
        return cls(**{**SIZES[size], **changes})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in transformers, but a folder of another kind of model is refused, not read with a warning.

        Raises:
            ValueError: where the configuration's ``model_type`` is another one; the sentence says why.
        """
        found, _ = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if found.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(explain_other_model(found, pretrained_model_name_or_path))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)


def _is_number(value: Any, kind: Any = numbers.Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def explain_published(place: Any) -> str:
    """Why a folder in the published layout is not loaded as what it says it is."""
    return (
        f"{place} holds an ALiBi BERT in the published layout, whose configuration calls itself 'bert', so that plain "
        "loaders silently build an ordinary BERT with random position embeddings from it. Write it anew by "
        "st_distill.modules.load_published(folder).save_pretrained(other), with its tokenizer, and name that."
    )


def explain_other_model(found: dict[str, Any], place: Any) -> str:
    """Why the configuration ``found`` is no `AlibiBertConfig`, in a sentence or two."""
    if found.get("position_embedding_type") == "alibi":
        return explain_published(place)
    return (
        f"{place} must hold an ALiBi BERT, a model of the type 'alibi_bert'. Got the type {found.get('model_type')!r} "
        "instead: a model trained with position embeddings does not work without them."
    )
