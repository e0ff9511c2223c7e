"""The ALiBi BERT itself: encoder, masked-LM head and sequence classification head.

This file is copied into saved folders as it is, with the two beside it that it imports, and runs there without st_distill.
The names of the weights are those of the published English checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from .alibi_attention import PLANS, Plan, alibi_slopes
from .alibi_config import AlibiBertConfig

#: What the gate of each feed-forward passes through.
GATES = {"geglu": "gelu", "reglu": "relu"}


class Embeddings(nn.Module):
    """Word and token-type embeddings, without positions: (batch, length) to (batch, length, width)."""

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, token_type_ids: Tensor | None) -> Tensor:
        # Without types every token has the first one.
        types = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        return self.dropout(self.LayerNorm(words + types))


class SelfAttention(nn.Module):
    """The three maps of an attention, and the attention that the plan makes of them."""

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, states: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            line(states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for line in (self.query, self.key, self.value)
        )
        found, weights = plan.attend(query, key, value, self.dropout if self.training else 0.0)
        return found.transpose(1, 2).flatten(2), weights


class AttentionOutput(nn.Module):
    """The map behind the attention, and the normalisation behind the sum."""

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, found: Tensor, states: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(found)) + states)


class Attention(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AttentionOutput(config)

    def forward(self, states: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
        found, weights = self.self(states, plan)
        return self.output(found, states), weights


class FeedForward(nn.Module):
    """Gated feed-forward (arXiv 2002.05202): ``wo(gate(first half) * second half)``, summed and normalised."""

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.gate = ACT2FN[GATES[config.feed_forward]]
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        gated, linear = self.gated_layers(states).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(self.gate(gated) * linear)) + states)


class Layer(GradientCheckpointingLayer):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = FeedForward(config)

    def forward(self, states: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
        states, weights = self.attention(states, plan)
        return self.mlp(states), weights


class Encoder(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class AlibiBertPreTrainedModel(PreTrainedModel):
    """What the three models share: configuration, weights' first values, and the choice of the attention."""

    config_class = AlibiBertConfig
    base_model_prefix = "bert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Embeddings", "Layer"]
    _supports_sdpa = True
    _supports_flex_attn = True

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """The kind of attention: ``"blockwise"`` where none is asked for.

        Raises:
            ValueError: for a kind that this model does not have.
        """
        if requested_attention is None:
            return "blockwise"
        if requested_attention not in PLANS:
            raise ValueError(
                f"The 'attn_implementation' of an ALiBi BERT must be {', '.join(map(repr, PLANS))}. "
                f"Got {requested_attention!r} instead."
            )
        return requested_attention

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True


class AlibiBertModel(AlibiBertPreTrainedModel):
    """Post-LayerNorm BERT without position embeddings, with symmetric ALiBi (arXiv 2310.19923, section 3).

    ``attn_implementation`` chooses how attention is computed, with equal results. ``"blockwise"`` (the default) needs memory
    in proportion to the length, forward and backward, and does no work for padding. ``"sdpa"`` holds one bias of heads x
    length x length and has no steps that depend on the texts, which suits short texts on a GPU, and ``torch.compile``.
    ``"flex_attention"`` is the GPU kernel for long texts. ``"eager"`` returns the attention's weights.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Encode a batch of texts.

        Args:
            input_ids: (batch, length) token numbers.
            attention_mask: (batch, length), 1 for tokens and 0 for padding on either side; default: no padding.
            token_type_ids: (batch, length), from 0 to below ``type_vocab_size``; default: 0.
            inputs_embeds: (batch, length, hidden_size), instead of ``input_ids``.
            output_hidden_states: also return the states before and after every layer.
            output_attentions: also return the attention's weights; for ``"eager"`` alone.
            return_dict: False for a tuple.

        Returns:
            ``last_hidden_state``, (batch, length, hidden_size), zero at padding.

        Raises:
            ValueError: for inputs of other shapes, a batch longer than ``max_position_embeddings``, or weights asked of
                another kind of attention than ``"eager"``.
            torch.OutOfMemoryError: where the batch does not fit in memory; the sentence names its length and what to do.
        """
        inputs = inputs_embeds if input_ids is None else input_ids
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("Exactly one of 'input_ids' and 'inputs_embeds' must be given.")
        batch, length = inputs.shape[:2]
        kind = self.config._attn_implementation
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_weights = self.config.output_attentions if output_attentions is None else output_attentions
        if with_weights and kind != "eager":
            raise ValueError(f"The 'output_attentions' need attn_implementation='eager'. Got {kind!r} instead.")
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"The texts must have at most {self.config.max_position_embeddings} tokens, the model's "
                f"'max_position_embeddings'. Got {length} instead: truncate them in the tokenizer, or raise the limit in the "
                "model's config, which ALiBi allows."
            )
        if attention_mask is not None and attention_mask.shape != (batch, length):
            raise ValueError(
                f"The 'attention_mask' must have the shape {(batch, length)}, as the texts. "
                f"Got {tuple(attention_mask.shape)} instead."
            )
        remedy = "" if kind == "blockwise" else "load the model with attn_implementation='blockwise', "
        with _memory(inputs, f"with attn_implementation={kind!r}", remedy):
            if inputs_embeds is None:
                inputs_embeds = self.embeddings.word_embeddings(input_ids)
            states = self.embeddings(inputs_embeds, token_type_ids)
            plan = self._plan(attention_mask, states, kind)
            states = plan.pack(states)
            all_states, all_weights = [states], []
            for layer in self.encoder.layer:
                states, weights = layer(states, plan)
                if with_states:
                    all_states.append(states)
                if with_weights:
                    all_weights.append(weights)
            found = BaseModelOutput(
                last_hidden_state=plan.unpack(states),
                hidden_states=tuple(plan.unpack(states) for states in all_states) if with_states else None,
                attentions=tuple(all_weights) if with_weights else None,
            )
        return found if _as_dict(self.config, return_dict) else found.to_tuple()

    def _plan(self, attention_mask: Tensor | None, states: Tensor, kind: str) -> Plan:
        mask = None if attention_mask is None else attention_mask.to(states.device, torch.bool)
        slopes = alibi_slopes(self.config.num_attention_heads)
        if torch.compiler.is_exporting():
            kind = "eager"  # the other kinds have steps, or operators, that an exported graph cannot have
        elif kind in ("blockwise", "flex_attention") and not states.numel():
            kind = "eager"  # no texts, or none with a token: there is nothing to cut into blocks
        elif kind == "blockwise":
            return _blockwise_plan(slopes, mask, states)
        elif not torch.compiler.is_compiling() and mask is not None and bool(mask.all()):
            mask = None
        return PLANS[kind](slopes, mask, states)


# Cutting into blocks depends on the texts' lengths, which a compiled graph cannot.
@torch.compiler.disable
def _blockwise_plan(slopes: list[float], mask: Tensor | None, states: Tensor) -> Plan:
    return PLANS["blockwise"](slopes, None if mask is None or bool(mask.all()) else mask, states)


@contextlib.contextmanager
def _memory(inputs: Tensor, where: str, remedy: str = "") -> Iterator[None]:
    """Names the batch, (batch, length, ...), and what to do in the error of an allocation that fails."""
    try:
        yield
    except RuntimeError as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not out_of_memory or torch.compiler.is_compiling():
            raise
        batch, length = inputs.shape[:2]
        raise torch.OutOfMemoryError(
            f"A batch of {batch} texts, the longest of {length} tokens, does not fit in memory {where}: {remedy}make the batch "
            "smaller, truncate texts at fewer tokens, or, in training, switch on gradient checkpointing. "
            f"({str(error).splitlines()[0]})"
        ) from error


def _as_dict(config: AlibiBertConfig, return_dict: bool | None) -> bool:
    return config.return_dict if return_dict is None else return_dict


class PredictionTransform(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN["gelu"]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.LayerNorm(self.activation(self.dense(states)))


class Predictions(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.transform(states))


class MaskedLMHead(nn.Module):
    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)

    def forward(self, states: Tensor) -> Tensor:
        return self.predictions(states)


class AlibiBertForMaskedLM(AlibiBertPreTrainedModel):
    """`AlibiBertModel` with BERT's masked-LM head, which shares the word embeddings."""

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__(config)
        self.bert = AlibiBertModel(config)
        self.cls = MaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Scores of every token at every place.

        Args:
            labels: (batch, length) token numbers, -100 where nothing is to be predicted. The others are as in
                `AlibiBertModel.forward`; ``num_items_in_batch`` divides the sum of the loss, as the Trainer asks.

        Returns:
            ``logits``, (batch, length, vocab_size), or (labelled tokens, vocab_size) for ``sparse_prediction`` with labels,
            and with labels ``loss``, the mean cross-entropy in nats.

        Raises:
            torch.OutOfMemoryError: as `AlibiBertModel.forward` does; for logits that do not fit, too.
        """
        found = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        states, loss = found.last_hidden_state, None
        sparse = self.config.sparse_prediction
        remedy = "" if sparse or labels is None else "set the config's sparse_prediction, for labelled tokens alone, "
        with _memory(states, f"in the masked-LM head, of {self.config.vocab_size} logits for a token", remedy):
            if labels is not None and sparse:
                labelled = labels != -100
                states, labels = states[labelled], labels[labelled]
            logits = self.cls(states)
            if labels is not None:
                loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        output = MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=found.hidden_states, attentions=found.attentions
        )
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


class Pooler(nn.Module):
    """One vector for a text, (batch, width): the first token's or the tokens' mean, mapped and squashed."""

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__()
        self.pooling = config.classifier_pooling
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        if attention_mask is None:
            pooled = states[:, 0] if self.pooling == "cls" else states.mean(1)
        else:
            mask = attention_mask.to(states.device, torch.bool)
            if self.pooling == "cls":
                first = mask.int().argmax(1)
                pooled = states[torch.arange(len(states), device=states.device), first]
            else:
                pooled = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)  # padding is zero
        return torch.tanh(self.dense(pooled))


class AlibiBertForSequenceClassification(AlibiBertPreTrainedModel):
    """`AlibiBertModel` with a pooler and a linear map to ``num_labels`` classes, or one number."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: AlibiBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = AlibiBertModel(config)
        self.pooler = Pooler(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Scores of every class for each text.

        Args:
            labels: (batch,) classes, or numbers where there is one label, or (batch, num_labels) shares of several. The
                others are as in `AlibiBertModel.forward`.

        Returns:
            ``logits``, (batch, num_labels), and with labels ``loss``.

        Raises:
            torch.OutOfMemoryError: as `AlibiBertModel.forward` does.
        """
        found = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        states, loss = found.last_hidden_state, None
        with _memory(states, "in the classification head"):
            logits = self.classifier(self.dropout(self.pooler(states, attention_mask)))
            if labels is not None:
                loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=found.hidden_states, attentions=found.attentions
        )
        return output if _as_dict(self.config, return_dict) else output.to_tuple()
