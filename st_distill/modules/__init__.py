"""Modules of a student in training, and the ALiBi encoder.

Training modules turn into standard sentence-transformers modules by ``to_standard()``. The ALiBi encoder is a transformers
model; importing this package registers it with transformers' Auto classes.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from st_distill.modules.alibi_checkpoint import (
    load_published,
    load_published_state_dict,
    published_state_dict,
    save_published,
)
from st_distill.modules.alibi_config import AlibiBertConfig
from st_distill.modules.alibi_model import AlibiBertForMaskedLM, AlibiBertForSequenceClassification, AlibiBertModel
from st_distill.modules.image import Transformer
from st_distill.modules.matryoshka import MatryoshkaProjection

__all__ = [
    "AlibiBertConfig",
    "AlibiBertForMaskedLM",
    "AlibiBertForSequenceClassification",
    "AlibiBertModel",
    "MatryoshkaProjection",
    "Transformer",
    "load_published",
    "load_published_state_dict",
    "published_state_dict",
    "save_published",
]

AutoConfig.register(AlibiBertConfig.model_type, AlibiBertConfig)
AutoModel.register(AlibiBertConfig, AlibiBertModel)
AutoModelForMaskedLM.register(AlibiBertConfig, AlibiBertForMaskedLM)
AutoModelForSequenceClassification.register(AlibiBertConfig, AlibiBertForSequenceClassification)
