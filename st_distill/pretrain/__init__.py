"""Masked-language-model pretraining: from texts to an encoder that sentence-transformers can start from."""

from __future__ import annotations

from st_distill.pretrain.check import check_pretraining, load_pretraining
from st_distill.pretrain.runner import PretrainResult, evaluate_encoder, pretrain
from st_distill.pretrain.schema import Encoder, LengthEvaluation, Masking, Pretraining, TokenizerSpec

__all__ = [
    "Encoder",
    "LengthEvaluation",
    "Masking",
    "PretrainResult",
    "Pretraining",
    "TokenizerSpec",
    "check_pretraining",
    "evaluate_encoder",
    "load_pretraining",
    "pretrain",
]
