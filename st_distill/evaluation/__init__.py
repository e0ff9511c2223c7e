"""How close a student is to its teachers, and how good it is, at every dimension and precision.

What judges a model here is a sentence-transformers evaluator: it runs in any trainer (``evaluator=``) and alone
(``evaluator(model)``), and it encodes its texts once, whatever the number of dimensions. A metric at a dimension is
named ``<metric>_<dimension>``; the primary one is that of the largest dimension.
"""

from __future__ import annotations

from st_distill.evaluation.fidelity import TeacherFidelityEvaluator
from st_distill.evaluation.images import ImageRetrievalEvaluator
from st_distill.evaluation.kinds import (
    ClassificationEvaluator,
    ClusteringEvaluator,
    RetrievalEvaluator,
    SummarizationEvaluator,
)
from st_distill.evaluation.measure import evaluate, model_size, throughput
from st_distill.evaluation.measuring import measure_entries
from st_distill.evaluation.pairs import retrieval_evaluator, similarity_evaluator
from st_distill.evaluation.results import evaluate_tasks
from st_distill.evaluation.sweep import SweepEvaluator
from st_distill.evaluation.tasks import Task, TaskSpec, read_task

__all__ = [
    "ClassificationEvaluator",
    "ClusteringEvaluator",
    "ImageRetrievalEvaluator",
    "RetrievalEvaluator",
    "SummarizationEvaluator",
    "SweepEvaluator",
    "Task",
    "TaskSpec",
    "TeacherFidelityEvaluator",
    "evaluate",
    "evaluate_tasks",
    "measure_entries",
    "model_size",
    "read_task",
    "retrieval_evaluator",
    "similarity_evaluator",
    "throughput",
]
