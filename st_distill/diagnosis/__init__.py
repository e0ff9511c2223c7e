"""What goes wrong with a distillation, in plain words: what was seen, what it means, and what to do.

While a model trains, `DiagnosisCallback` looks at the loss and at the embeddings that the training makes anyway. Before and
after it, functions look at the vectors, at the texts, and at what student and teacher read of them. Each gives a list of
`Finding`, which is empty where nothing is wrong.
"""

from __future__ import annotations

from st_distill.diagnosis.data import diagnose_duplicates, diagnose_overlap
from st_distill.diagnosis.finding import Finding
from st_distill.diagnosis.readers import Reader, diagnose_prompts, diagnose_reading
from st_distill.diagnosis.training import DiagnosisCallback
from st_distill.diagnosis.vectors import diagnose_rows, diagnose_vectors

__all__ = [
    "DiagnosisCallback",
    "Finding",
    "Reader",
    "diagnose_duplicates",
    "diagnose_overlap",
    "diagnose_prompts",
    "diagnose_reading",
    "diagnose_rows",
    "diagnose_vectors",
]
