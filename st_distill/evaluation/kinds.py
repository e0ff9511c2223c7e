"""Evaluators of the kinds of task that MTEB has and sentence-transformers has not.

MTEB is arXiv 2210.07316; its protocol is kept where figures depend on it, and the metrics are scikit-learn's and scipy's.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, v_measure_score

from st_distill.evaluation.base import (
    Evaluator,
    checked_labels,
    checked_list,
    checked_numbers,
    checked_positive,
    checked_texts,
    same_length,
)

__all__ = ["ClassificationEvaluator", "ClusteringEvaluator", "RetrievalEvaluator", "SummarizationEvaluator"]

#: Iterations after which MTEB stops its classifier.
_MAX_ITERATIONS = 100
#: Rows a step of the k-means that MTEB clusters with.
_CLUSTER_BATCH = 500


class ClassificationEvaluator(Evaluator):
    """A linear classifier (logistic regression) on the vectors.

    Metrics, averaged over the experiments, all in [0, 1]: ``accuracy`` (primary), ``f1`` (mean over labels),
    ``f1_weighted``, and, where there are two labels, ``ap``, the average precision of the one that sorts last (where any
    text that is judged has it).

    Args:
        train_texts: what the classifier learns on.
        train_labels: their labels, texts or whole numbers.
        texts: what it is judged on.
        labels: their labels.
        samples_per_label: so many training texts of each label are drawn anew in each experiment, as MTEB does (the draws
            differ from MTEB's own); None: one experiment with all of them, a plain linear probe.
        experiments: draws.
        max_iterations: of the solver; it stops there.
        seed: of the draws.
        name, batch_size, show_progress_bar, write_csv: as in TeacherFidelityEvaluator.
    """

    def __init__(
        self,
        train_texts: Sequence[str],
        train_labels: Sequence[Any],
        texts: Sequence[str],
        labels: Sequence[Any],
        *,
        samples_per_label: int | None = 8,
        experiments: int = 10,
        max_iterations: int = _MAX_ITERATIONS,
        seed: int = 42,
        name: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__(name, "classification", write_csv)
        self.texts, labels = checked_texts("texts", texts), checked_labels("labels", labels)
        train, train_labels = checked_texts("train_texts", train_texts), checked_labels("train_labels", train_labels)
        same_length("train_texts", train, "train_labels", train_labels)
        same_length("texts", self.texts, "labels", labels)
        self.labels, known_labels = np.asarray(labels), np.asarray(train_labels)
        if not self.texts:
            raise ValueError("The 'texts' parameter must hold at least one text. Got none instead.")
        known = np.unique(known_labels)
        if len(known) < 2:
            raise ValueError(
                f"The 'train_labels' parameter must hold at least two different labels. Got {len(known)} instead."
            )
        if unknown := set(np.unique(self.labels).tolist()) - set(known.tolist()):
            raise ValueError(
                f"The 'labels' parameter must hold labels of the training texts alone. Got {min(unknown)!r}, which none of "
                "them has."
            )
        if samples_per_label is None:
            draws = [np.arange(len(train))]
        else:
            checked_positive("samples_per_label", samples_per_label)
            generator = np.random.default_rng(seed)
            draws = []
            for _ in range(checked_positive("experiments", experiments)):
                order = generator.permutation(len(train))
                rows = [order[known_labels[order] == label][:samples_per_label] for label in known]
                draws.append(np.concatenate(rows))
        # Only what is drawn is encoded.
        drawn = np.unique(np.concatenate(draws))
        self.train_texts, self._train_labels = [train[row] for row in drawn], known_labels[drawn]
        self._draws = [np.searchsorted(drawn, draw) for draw in draws]
        self.max_iterations = checked_positive("max_iterations", max_iterations)
        self.batch_size = checked_positive("batch_size", batch_size)
        self.show_progress_bar = show_progress_bar
        self.primary_metric = "accuracy"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        options: dict[str, Any] = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        train, test = model.encode(self.train_texts, **options), model.encode(self.texts, **options)
        found: list[dict[str, float]] = []
        for draw in self._draws:
            classifier = LogisticRegression(max_iter=self.max_iterations)
            with warnings.catch_warnings():
                # MTEB's figures are those of a solver that stops here.
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(train[draw], self._train_labels[draw])
            predicted = classifier.predict(test)
            scores = {
                "accuracy": accuracy_score(self.labels, predicted),
                "f1": f1_score(self.labels, predicted, average="macro"),
                "f1_weighted": f1_score(self.labels, predicted, average="weighted"),
            }
            positive = self.labels == classifier.classes_[-1]
            if len(classifier.classes_) == 2 and positive.any():
                scores["ap"] = average_precision_score(positive, classifier.decision_function(test))
            found.append(scores)
        metrics = {metric: float(statistics.fmean(scores[metric] for scores in found)) for metric in found[0]}
        return self.report(model, metrics, output_path, epoch, steps)


class ClusteringEvaluator(Evaluator):
    """K-means on the vectors (mini-batches, as in MTEB), with as many clusters as there are labels.

    Metric: ``v_measure`` in [0, 1], against the labels, averaged over the sets.

    Args:
        sets: texts and their labels; each set is clustered by itself.
        seed: of the k-means.
        name, batch_size, show_progress_bar, write_csv: as in TeacherFidelityEvaluator.
    """

    def __init__(
        self,
        sets: Sequence[tuple[Sequence[str], Sequence[Any]]],
        *,
        seed: int = 42,
        name: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__(name, "clustering", write_csv)
        sets = checked_list("sets", sets, "pairs of texts and their labels")
        for each in sets:
            if isinstance(each, str) or not isinstance(each, Sequence) or len(each) != 2:
                raise TypeError(
                    "The 'sets' parameter must hold pairs of texts and their labels. Got something else in it instead: give "
                    "one set as [(texts, labels)]."
                )
        self.sets = [(checked_texts("sets", texts), checked_labels("sets", labels)) for texts, labels in sets]
        if not self.sets:
            raise ValueError("The 'sets' parameter must hold at least one set of texts and labels. Got none instead.")
        for texts, labels in self.sets:
            same_length("texts of a set", texts, "labels of a set", labels)
            if len(set(labels)) < 2:
                raise ValueError(
                    "The 'sets' parameter must hold at least two different labels in each set. "
                    f"Got {len(set(labels))} in a set of {len(texts)} texts instead."
                )
        self.seed = seed
        self.batch_size = checked_positive("batch_size", batch_size)
        self.show_progress_bar = show_progress_bar
        self.primary_metric = "v_measure"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        everything = [text for texts, _ in self.sets for text in texts]
        vectors = model.encode(everything, batch_size=self.batch_size, show_progress_bar=self.show_progress_bar)
        scores, start = [], 0
        for texts, labels in self.sets:
            own = vectors[start : start + len(texts)]
            start += len(texts)
            clusters = MiniBatchKMeans(
                n_clusters=len(set(labels)), batch_size=_CLUSTER_BATCH, n_init="auto", random_state=self.seed
            )
            with warnings.catch_warnings():
                # Fewer distinct vectors than labels, as after a collapse: a bad score says it.
                warnings.simplefilter("ignore", ConvergenceWarning)
                scores.append(v_measure_score(labels, clusters.fit_predict(own)))
        return self.report(model, {"v_measure": float(statistics.fmean(scores))}, output_path, epoch, steps)


class SummarizationEvaluator(Evaluator):
    """Whether summaries that people call good lie near those that people wrote.

    A machine's summary counts by its largest cosine with a human one. Metrics: ``spearman_cosine`` (primary) and
    ``pearson_cosine``, in [-1, 1], with the given scores, for each text over its machine summaries, averaged over the texts.
    Texts whose scores, or whose cosines, are all equal have no correlation and are left out, as in MTEB; NaN where that
    leaves none.

    Args:
        human: for each text, the summaries that people wrote, at least one.
        machine: for each text, the summaries that are judged.
        scores: for each text, a score of each of its machine summaries, in any unit.
        name, batch_size, show_progress_bar, write_csv: as in TeacherFidelityEvaluator.
    """

    def __init__(
        self,
        human: Sequence[Sequence[str]],
        machine: Sequence[Sequence[str]],
        scores: Sequence[Sequence[float]],
        *,
        name: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        write_csv: bool = True,
    ) -> None:
        super().__init__(name, "summarization", write_csv)
        self.human = [checked_texts("human", texts) for texts in checked_list("human", human, "lists of texts")]
        self.machine = [checked_texts("machine", texts) for texts in checked_list("machine", machine, "lists of texts")]
        self.scores = [checked_numbers("scores", row) for row in checked_list("scores", scores, "lists of numbers")]
        same_length("human", self.human, "machine", self.machine)
        same_length("human", self.human, "scores", self.scores)
        for row, (written, made, given) in enumerate(zip(self.human, self.machine, self.scores)):
            if not written or len(made) != len(given):
                raise ValueError(
                    f"Row {row} must have at least one human summary and a score for each machine summary. "
                    f"Got {len(written)} human ones, {len(made)} machine ones and {len(given)} scores instead."
                )
        self.batch_size = checked_positive("batch_size", batch_size)
        self.show_progress_bar = show_progress_bar
        self.primary_metric = "spearman_cosine"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "show_progress_bar": self.show_progress_bar,
            "convert_to_tensor": True,
        }
        human, machine = (
            torch.split(model.encode([text for row in rows for text in row], **options), [len(row) for row in rows])
            for rows in (self.human, self.machine)
        )
        correlations: dict[str, list[float]] = {"spearman_cosine": [], "pearson_cosine": []}
        for written, made, scores in zip(human, machine, self.scores):
            cosines = cos_sim(made, written).amax(dim=1).cpu().numpy()
            if len(set(scores)) < 2 or np.ptp(cosines) == 0:
                continue
            correlations["spearman_cosine"].append(spearmanr(scores, cosines).statistic)
            correlations["pearson_cosine"].append(pearsonr(scores, cosines).statistic)
        metrics = {
            metric: float(statistics.fmean(values)) if values else float("nan")
            for metric, values in correlations.items()
        }
        return self.report(model, metrics, output_path, epoch, steps)


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """sentence-transformers' InformationRetrievalEvaluator by cosine, with what BEIR's collections need besides.

    - Where relevance has degrees, ``ndcg@10`` counts them, as trec_eval does (the gain is the degree itself, divided by
      log2(1 + rank)). The other metrics take every relevant document for equally good.
    - A query that is itself a document, of the same id and the same text, does not find itself.

    Args:
        queries: id to text; queries without a relevant document are left out.
        corpus: id to document: texts, or pictures.
        relevance: query id to document id to degree; above 0 is relevant.
        options: the library's.
    """

    def __init__(
        self,
        queries: Mapping[str, Any],
        corpus: Mapping[str, Any],
        relevance: Mapping[str, Mapping[str, float]],
        **options: Any,
    ) -> None:
        relevant = {
            query: {document for document, degree in degrees.items() if degree > 0}
            for query, degrees in relevance.items()
        }
        # Truncated vectors are not of unit length, so a model's own dot product would compare lengths too.
        by_cosine: dict[str, Callable[..., torch.Tensor]] = {"cosine": cos_sim}
        super().__init__(dict(queries), dict(corpus), relevant, score_functions=by_cosine, **options)
        if not self.queries:
            raise ValueError("The 'relevance' parameter must have a relevant document for a query. Got none instead.")
        self._documents = corpus
        self._degrees = relevance
        self._has_degrees = any(degree not in (0, 1) for degrees in relevance.values() for degree in degrees.values())
        self.primary_metric = f"cosine_ndcg@{max(self.ndcg_at_k)}"

    def compute_metrics(self, queries_result_list: list[list[dict[str, Any]]]) -> dict[str, dict[int, float]]:
        """The library's figures from each query's hits, a corpus_id and a score each."""
        found = [
            [hit for hit in hits if hit["corpus_id"] != query or self._documents[query] != text]
            for query, text, hits in zip(self.queries_ids, self.queries, queries_result_list)
        ]
        metrics = super().compute_metrics(found)
        if self._has_degrees:
            for k in self.ndcg_at_k:
                each = [self._ndcg(query, hits, k) for query, hits in zip(self.queries_ids, found)]
                metrics["ndcg@k"][k] = statistics.fmean(each)
        return metrics

    def _ndcg(self, query: str, hits: list[dict[str, Any]], k: int) -> float:
        degrees = {document: max(degree, 0) for document, degree in self._degrees[query].items()}
        order = [hit["corpus_id"] for hit in sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))]
        ideal = sorted(degrees.values(), reverse=True)
        return _dcg([degrees.get(document, 0) for document in order[:k]]) / _dcg(ideal[:k])


def _dcg(gains: Sequence[float]) -> float:
    """Discounted cumulative gain of gains in their order, the first one's undiscounted."""
    return float(np.asarray(gains, dtype=float) @ (1 / np.log2(np.arange(2, len(gains) + 2))))
