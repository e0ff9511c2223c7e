"""Texts of an evaluation that a model does not read to their end, which ``encode`` truncates without a word."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    BaseEvaluator,
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
    RerankingEvaluator,
)
from transformers import PreTrainedTokenizerBase

from st_distill.evaluation.kinds import ClassificationEvaluator, ClusteringEvaluator, SummarizationEvaluator
from st_distill.evaluation.sweep import Use, own_prompt
from st_distill.limits import most_tokens
from st_distill.modules.lengths import longer_than

__all__ = ["prompted_texts", "tell_truncated", "texts_of"]

logger = logging.getLogger(__name__)


def texts_of(
    evaluator: BaseEvaluator, model: SentenceTransformer, prompts: Mapping[str, str] | None = None
) -> list[str]:
    """All texts that an evaluator gives the model, with the prompt before each; none of an evaluator that is not known here.

    Args:
        evaluator: that of a `Task`.
        model: its own prompts are used where ``prompts`` have none.
        prompts: as in `SweepEvaluator`.
    """
    found: list[tuple[Use, Iterable[Any]]] = []
    if isinstance(evaluator, ClassificationEvaluator):
        found = [("text", evaluator.train_texts), ("text", evaluator.texts)]
    elif isinstance(evaluator, ClusteringEvaluator):
        found = [("text", texts) for texts, _ in evaluator.sets]
    elif isinstance(evaluator, SummarizationEvaluator):
        found = [("text", texts) for texts in (*evaluator.human, *evaluator.machine)]
    elif isinstance(evaluator, (BinaryClassificationEvaluator, EmbeddingSimilarityEvaluator)):
        found = [("text", evaluator.sentences1), ("text", evaluator.sentences2)]
    elif isinstance(evaluator, InformationRetrievalEvaluator):
        found = [("query", evaluator.queries), ("document", evaluator.corpus)]
    elif isinstance(evaluator, RerankingEvaluator):
        for sample in evaluator.samples:
            found += [("query", [sample["query"]]), ("document", [*sample["positive"], *sample["negative"]])]
    return prompted_texts(model, found, prompts)


def prompted_texts(
    model: SentenceTransformer, columns: Iterable[tuple[Use, Iterable[Any]]], prompts: Mapping[str, str] | None = None
) -> list[str]:
    """The texts among inputs of each use (there may be pictures too) as the model reads them, with the prompt before each."""
    texts = []
    for use, inputs in columns:
        given = (prompts or {}).get(use)
        before = own_prompt(model, use) if given is None else given
        texts += [before + item for item in inputs if isinstance(item, str)]
    return texts


def tell_truncated(model: SentenceTransformer, parts: Mapping[str, Sequence[str]], *, name: str = "model") -> None:
    """One warning with the number of different texts that the model does not read to their end, and where they are.

    Args:
        model: the model.
        parts: the texts of what is measured, by its name, with their prompts.
        name: what the sentence calls the model.
    """
    limit = model.max_seq_length
    if not isinstance(limit, int) or not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        return  # a static embedding reads any number of words
    found, count, most = [], 0, 0
    for part, texts in parts.items():
        distinct = list(dict.fromkeys(texts))
        long, longest = longer_than(model.tokenizer, distinct, limit)
        count, most = count + len(distinct), max(most, longest)
        found += [(part, len(long))] if long else []
    if not found:
        return
    can = most_tokens(model)
    logger.warning(
        "%d of %d texts (%s) have more tokens than the %s's %d, up to %d, and are truncated there%s.",
        sum(long for _, long in found),
        count,
        ", ".join(f"{long} of {part}" for part, long in found),
        name,
        limit,
        most,
        f"; its encoder can read {can} (max_seq_length)" if can is not None and can > limit else "",
    )
