"""What a model is measured by: for each split the texts, and what their vectors are worth at a dimension.

Every task says which texts it needs, and scores vectors of them, so that a model embeds all texts of all tasks once, whatever
the number of dimensions. Test is for the final table alone; every choice is made on dev.

| task | test | dev | score |
|---|---|---|---|
| sts | STS-B test | STS-B dev | Spearman of cosine and score |
| scifact | 300 test queries, all 5183 documents | 400 training queries, 1500 documents, theirs among them | nDCG@10 |
| clinc | 30 training texts an intent, the test texts | the same, the validation texts | accuracy of a logistic regression |
| novels | parts of 25 novels | parts of 10 others | nDCG@10, a part finding the others of its book |
| fidelity | 1840 texts nobody trained on | 920 others | Spearman of similarities with the teacher's |

All texts are cut to 256 tokens; CLINC150's texts out of scope are left out. Subsets are drawn with fixed seeds.

The data are parquet files, all of them public:

| folder | files (columns) |
|---|---|
| stsb | train, dev, test (sentence1, sentence2, score): the STS Benchmark, English |
| scifact | corpus (_id, title, text), queries (_id, text), qrels_train and qrels_test (query_id, corpus_id, score): BEIR's |
| clinc150 | train, val, test (text, label), "oos" for out of scope |
| wikisplit | tune, validation, test (complex, split), see texts.py |
| snli_devtest | dev, test (premise, hypothesis, label): SNLI |
| nq_open_dev | dev (question): Natural Questions, open |
| wikitext2_validtest | articles (text): the validation and test articles of WikiText-2 |
| novel_parts_4k | parts (doc, part, text): consecutive parts of some 4,300 words from 50 novels out of copyright |
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas
import torch
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.quality.texts import novels_of
from st_distill.evaluation.precisions import as_stored, int8_ranges

#: Tokens that every text is cut to.
TOKENS = 256
#: Candidates that are scored again, for each of the ten results wanted.
RESCORED = 4


class Task(ABC):
    """A task of one split. ``texts`` are what it needs the vectors of, in the order that ``score`` takes them."""

    name: str
    texts: list[str]

    @abstractmethod
    def score(self, vectors: Tensor, teacher: Tensor) -> dict[str, float]:
        """What the vectors (texts, dim) are worth, the first figure being the task's own; ``teacher``: the teacher's, whole."""


class Similarity(Task):
    name = "sts"

    def __init__(self, data: Path, split: str) -> None:
        pairs = pandas.read_parquet(data / f"stsb/{split}.parquet")
        self.texts = [*pairs["sentence1"], *pairs["sentence2"]]
        self.scores = pairs["score"].to_numpy()

    def score(self, vectors: Tensor, teacher: Tensor) -> dict[str, float]:
        first, second = normalize(vectors, dim=1).chunk(2)
        return {"spearman": float(spearmanr((first * second).sum(1).numpy(), self.scores).statistic)}


class Search(Task):
    name = "scifact"

    def __init__(self, data: Path, split: str) -> None:
        corpus = pandas.read_parquet(data / "scifact/corpus.parquet")
        labels = pandas.read_parquet(data / f"scifact/qrels_{'test' if split == 'test' else 'train'}.parquet")
        queries = pandas.read_parquet(data / "scifact/queries.parquet").set_index("_id")["text"]
        chosen = sorted(labels["query_id"].unique())
        documents = sorted(corpus["_id"])
        if split == "dev":
            chosen = _shuffled(chosen)[:400]
            labels = labels[labels["query_id"].isin(chosen)]
            wanted = set(labels["corpus_id"])
            others = [document for document in documents if document not in wanted]
            documents = sorted(wanted) + _shuffled(others)[: 1500 - len(wanted)]
        corpus = corpus.set_index("_id")
        contents = [f"{corpus.title[document]} {corpus.text[document]}" for document in documents]
        self.queries = len(chosen)
        self.texts = [queries[query] for query in chosen] + contents
        self.relevant = torch.zeros(len(chosen), len(documents))
        rows = {query: row for row, query in enumerate(chosen)}
        columns = {document: column for column, document in enumerate(documents)}
        for label in labels[labels["score"] > 0].itertuples():
            self.relevant[rows[label.query_id], columns[label.corpus_id]] = 1.0

    def score(self, vectors: Tensor, teacher: Tensor) -> dict[str, float]:
        queries, documents = self._split(vectors)
        return {"ndcg@10": ndcg(queries @ documents.T, self.relevant)} | self._quantised(queries, documents)

    def against(self, student: Tensor, teacher: Tensor) -> dict[str, float]:
        """The student's queries against the teacher's documents, both (texts, dim) on the same axes."""
        return {"ndcg@10": ndcg(self._split(student)[0] @ self._split(teacher)[1].T, self.relevant)}

    def _split(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        unit = normalize(vectors, dim=1)
        return unit[: self.queries], unit[self.queries :]

    def _quantised(self, queries: Tensor, documents: Tensor) -> dict[str, float]:
        """Queries and documents in int8 or bits; to rescore, the documents so found meet the query as it was."""
        ranges = int8_ranges(documents)
        figures = {}
        precisions: tuple[Literal["int8", "binary"], ...] = ("int8", "binary")
        for precision in precisions:
            first, second = (as_stored(part, precision, ranges) for part in (queries, documents))
            figures[precision] = ndcg(first @ second.T, self.relevant)
            figures[f"{precision} rescored"] = ndcg(_rescored(first @ second.T, queries @ second.T), self.relevant)
        return figures


class Probe(Task):
    name = "clinc"

    def __init__(self, data: Path, split: str) -> None:
        train = pandas.read_parquet(data / "clinc150/train.parquet")
        held_out = pandas.read_parquet(data / f"clinc150/{'test' if split == 'test' else 'val'}.parquet")
        train, held_out = (frame[frame["label"] != "oos"] for frame in (train, held_out))
        train = train.groupby("label").sample(30, random_state=0)
        self.train_labels, self.labels = train["label"].to_numpy(), held_out["label"].to_numpy()
        self.texts = [*train["text"], *held_out["text"]]

    @property
    def held_out(self) -> list[str]:
        return self.texts[len(self.train_labels) :]

    def score(self, vectors: Tensor, teacher: Tensor) -> dict[str, float]:
        # As long as this, because the tolerance is one of the gradient: with unit vectors, of which some models' lie close
        # together, the solver would stop before its first step. The penalty is that of C = 30 and unit vectors.
        length = 16.0
        scaled = length * normalize(vectors.double(), dim=1).numpy()
        count = len(self.train_labels)
        probe = LogisticRegression(C=30.0 / length**2, max_iter=1000, tol=1e-5).fit(scaled[:count], self.train_labels)
        return {"accuracy": float(probe.score(scaled[count:], self.labels))}


class SameBook(Task):
    name = "novels"

    def __init__(self, data: Path, split: str) -> None:
        parts = novels_of(data, split)
        # 256 tokens are at most as many words; the rest would be cut by every model anyway.
        self.texts = [" ".join(text.split()[:TOKENS]) for text in parts["text"]]
        book = torch.from_numpy(pandas.factorize(parts["doc"])[0])
        self.relevant = (book[:, None] == book[None, :]).float().fill_diagonal_(0.0)

    def score(self, vectors: Tensor, teacher: Tensor) -> dict[str, float]:
        unit = normalize(vectors, dim=1)
        return {"ndcg@10": ndcg((unit @ unit.T).fill_diagonal_(-torch.inf), self.relevant)}


class Fidelity(Task):
    name = "fidelity"

    def __init__(self, data: Path, split: str) -> None:
        generator = random.Random(0)
        sentences = pandas.read_parquet(data / "snli_devtest/test.parquet")
        sentences = list(dict.fromkeys([*sentences["premise"], *sentences["hypothesis"]]))
        questions = list(dict.fromkeys(pandas.read_parquet(data / "nq_open_dev/dev.parquet")["question"]))
        articles = pandas.read_parquet(data / "wikitext2_validtest/articles.parquet")["text"]
        passages = [" ".join(words[at : at + 80]) for words in map(str.split, articles) for at in range(0, 800, 200)]
        passages = [passage for passage in dict.fromkeys(passages) if len(passage.split()) == 80]
        self.texts = []
        counts = ((sentences, 1000, 500), (questions, 600, 300), (passages, 240, 120))
        for texts, test, dev in counts:
            generator.shuffle(texts)
            self.texts += texts[::3][:dev] if split == "dev" else [*texts[1::3], *texts[2::3]][:test]

    def score(self, vectors: Tensor, teacher: Tensor) -> dict[str, float]:
        student, teacher = normalize(vectors, dim=1), normalize(teacher, dim=1)
        ours, theirs = student @ student.T, teacher @ teacher.T
        above = torch.triu_indices(len(ours), len(ours), offset=1)
        ranks = [rankdata(matrix[above[0], above[1]].numpy()) for matrix in (ours, theirs)]
        nearest = [matrix.clone().fill_diagonal_(-torch.inf).topk(10).indices for matrix in (ours, theirs)]
        shared = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(2).float().mean()
        return {"spearman": float(np.corrcoef(*ranks)[0, 1]), "overlap@10": float(shared), "cka": cka(student, teacher)}


def _shuffled(values: list[str]) -> list[str]:
    return random.Random(0).sample(values, len(values))


def cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of two sets of vectors of the same texts, in [0, 1]."""
    first, second = (part.double() - part.double().mean(0) for part in (first, second))
    cross = (first.T @ second).square().sum()
    return float(cross / ((first.T @ first).norm() * (second.T @ second).norm()))


def ndcg(scores: Tensor, relevant: Tensor, k: int = 10) -> float:
    """Mean nDCG@k of ``scores`` (queries, documents) where ``relevant`` is 1 for what is to be found, else 0."""
    discount = 1 / torch.log2(torch.arange(2, k + 2).float())
    found = relevant.gather(1, scores.topk(k).indices)
    ideal = relevant.topk(k).values
    return float(((found * discount).sum(1) / (ideal * discount).sum(1)).mean())


def _rescored(coarse: Tensor, fine: Tensor, k: int = 10) -> Tensor:
    """``fine`` where ``coarse`` puts a document among the first 4 k, and below all of these elsewhere."""
    candidates = coarse.topk(min(RESCORED * k, coarse.shape[1])).indices
    return torch.full_like(fine, -torch.inf).scatter(1, candidates, fine.gather(1, candidates))


def tasks(data: Path, split: str) -> list[Task]:
    """Every task of a split, dev or test."""
    return [kind(data, split) for kind in (Similarity, Search, Probe, SameBook, Fidelity)]


def all_texts(chosen: Sequence[Task]) -> list[str]:
    """The distinct texts that some tasks need."""
    return list(dict.fromkeys(text for task in chosen for text in task.texts))


def unseen_texts(data: Path) -> set[str]:
    """Every text that no training may see: all of the tasks', but SciFact's documents and the probe's training texts."""
    unseen: set[str] = set()
    for split in ("dev", "test"):
        for task in tasks(data, split):
            if isinstance(task, Search):
                unseen.update(task.texts[: task.queries])
            else:
                unseen.update(task.held_out if isinstance(task, Probe) else task.texts)
    return unseen
