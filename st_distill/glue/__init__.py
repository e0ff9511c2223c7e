"""GLUE: an encoder fine-tuned and measured on nine tasks of understanding, beside the table of Jina Embeddings 2."""

from __future__ import annotations

from st_distill.glue.finetune import Settings, glue
from st_distill.glue.results import report_glue

__all__ = ["Settings", "glue", "report_glue"]
