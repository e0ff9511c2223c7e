"""What vectors say of themselves, and of the texts that they are said to belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from st_distill.diagnosis.arguments import check_list, check_name, check_text
from st_distill.diagnosis.finding import Finding
from st_distill.matrices import as_matrix
from st_distill.options import check_whole_number

__all__ = ["diagnose_rows", "diagnose_vectors", "spread_of"]

#: Vectors that are compared with each other, at most.
_SAMPLE = 512
#: Standard deviation of the similarities below which they are all alike. Models that are in use have 0.03 and more.
_ALIKE = 0.005
#: Share of the teacher's spread below which the student no longer tells apart what the teacher does.
_SHARE_OF_SPREAD = 0.1
#: Of the middle coordinate's standard deviation: what varies less says nothing of a text.
_CONSTANT = 1e-3
#: Share of such coordinates that is let pass: all-MiniLM-L6-v2 itself has one among its 384.
_CONSTANT_SHARE = 0.01
#: Characters of a text that its words are counted in.
_CHARACTERS = 2000
#: Texts with a neighbour in words below which nothing can be said of a teacher's rows.
_FEWEST = 30
#: Where a text's neighbour in words stands among all texts by the teacher, on average: 0.5 by chance, 1 is the nearest.
_BY_CHANCE = 0.6


def spread_of(vectors: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the cosines of all pairs of different vectors among (rows, dim), at least two rows."""
    unit = normalize(vectors.detach().double(), dim=1)
    row, column = torch.triu_indices(len(unit), len(unit), offset=1)
    similarities = (unit @ unit.mT)[row, column]
    return similarities.mean().item(), similarities.std(correction=0).item()


def diagnose_vectors(vectors: Any, *, teacher: Any = None, of: str = "the student's", seed: int = 0) -> list[Finding]:
    """Whether vectors are numbers, tell texts apart, and use all their coordinates.

    Args:
        vectors: (texts, dim), of texts of which most differ; a sample of 512 of them is looked at.
        teacher: (texts, any dim), the teacher's vectors of the same texts, whose similarities then say what is alike.
        of: whose vectors they are, as a possessive.
        seed: of the sample.

    Returns:
        Findings named "not a number", "collapsed" and "dimension not trained".

    Raises:
        TypeError: for vectors that are no numbers, and an ``of`` that is no text.
        ValueError: for vectors that are no matrix, or not as many as the teacher's, and a seed that is none.
    """
    check_name("of", of)
    check_whole_number("'seed'", seed, least=0)
    student = as_matrix("'vectors'", vectors)
    theirs = None if teacher is None else as_matrix("'teacher'", teacher)
    if theirs is not None and len(theirs) != len(student):
        raise ValueError(
            f"The 'teacher' must have a vector for each of the {len(student)} vectors. Got {len(theirs)} instead: give those "
            "of the same texts."
        )
    if len(student) > _SAMPLE:
        chosen = torch.randperm(len(student), generator=torch.Generator().manual_seed(seed))[:_SAMPLE]
        student, theirs = student[chosen], None if theirs is None else theirs[chosen]
    finite = student.isfinite().all(dim=1)
    if not finite.all():
        return [not_a_number(f"{int((~finite).sum())} of {len(student)} of {of} vectors hold NaN or infinity")]
    if theirs is not None and (bad := _unusable(theirs, "the teacher's")):
        return bad
    if len(student) < 2:
        return []
    found = collapsed(student, theirs, of)
    if len(student) >= _FEWEST and not found:
        found += _constant(student, of)
    return found


def not_a_number(seen: str) -> Finding:
    return Finding(
        name="not a number",
        seen=seen,
        means="training has left the numbers that can be computed with, and the model is of no use from there on",
        remedy="lower the learning rate and warm up (warmup_steps: 0.1); train in bf16 instead of fp16; then start the stage "
        "again, from before this step",
    )


def _unusable(vectors: Tensor, of: str) -> list[Finding]:
    """The finding of a teacher's vectors (rows, dim) that are not finite."""
    bad = (~vectors.isfinite()).any(dim=1)
    if not bad.any():
        return []
    return [
        Finding(
            name="not a number",
            seen=f"{int(bad.sum())} of {len(vectors)} of {of} vectors hold NaN or infinity",
            means="nothing can be learned from them, nor compared with them",
            remedy="embed these texts again, in float32 or bf16 instead of fp16, or leave them out",
        )
    ]


def collapsed(student: Tensor, teacher: Tensor | None, of: str) -> list[Finding]:
    """Whether all similarities are alike, by themselves or beside the teacher's; (rows, dim) and (rows, any dim), finite."""
    mean, spread = spread_of(student)
    seen = (
        f"the cosines of {of} vectors of {len(student)} texts are {mean:.3f} on average and differ by {spread:.2g} "
        "(standard deviation)"
    )
    if teacher is not None:
        reference = spread_of(teacher)[1]
        if spread >= _SHARE_OF_SPREAD * reference:
            return []
        seen += f", the teacher's by {reference:.2g}"
    elif spread >= _ALIKE:
        return []
    return [
        Finding(
            name="collapsed",
            seen=seen,
            means="every text has nearly the same embedding, so that a search finds anything",
            remedy="lower the learning rate; see that the loss compares texts of a batch (similarity or triplet, or "
            "negatives); start from a trained encoder instead of random weights",
        )
    ]


def _constant(vectors: Tensor, of: str) -> list[Finding]:
    deviations = vectors.std(dim=0, correction=0)
    constant = deviations <= _CONSTANT * deviations.median()
    if constant.float().mean() <= _CONSTANT_SHARE:
        return []
    return [untrained(constant, f"{of} vectors", "are the same for every text")]


def untrained(coordinates: Tensor, of: str, what: str) -> Finding:
    """The finding of coordinates, (dim,) of bool, that nothing trains."""
    places = torch.nonzero(coordinates).flatten().tolist()
    return Finding(
        name="dimension not trained",
        seen=f"{len(places)} of the {len(coordinates)} dimensions of {of} ({_ranges(places)}, from 0) {what}",
        means="these dimensions take memory and say nothing; a vector that is cut to fewer dimensions may consist of them",
        remedy="let the loss look at them (its 'dims', or the stage's), or leave them out of the model",
    )


def _ranges(places: list[int]) -> str:
    """``0 to 3, 7``; the first few of them."""
    ranges: list[list[int]] = []
    for place in places:
        if ranges and place == ranges[-1][1] + 1:
            ranges[-1][1] = place
        else:
            ranges.append([place, place])
    told = [str(first) if first == last else f"{first} to {last}" for first, last in ranges[:4]]
    return ", ".join(told) + (" and others" if len(ranges) > 4 else "")


def diagnose_rows(texts: Sequence[str], vectors: Any, *, teacher: str = "the teacher", seed: int = 0) -> list[Finding]:
    """Whether vectors are those of these texts: texts that share many words are alike to every teacher.

    For each text of a sample, the one among the others that has most words (pieces of 2 to 4 letters) in common with it is
    ranked by the teacher's similarity. In shuffled rows it is in the middle on average.

    Args:
        texts: the texts, in any script; few words in common, or fewer than 30 texts, say nothing.
        vectors: (texts, dim), said to be theirs.
        teacher: what to call it.
        seed: of the sample of 512 texts.

    Returns:
        Findings named "vectors of other texts" and "not a number".

    Raises:
        TypeError: for what is no list, and in it no text, for vectors that are no numbers, and a ``teacher`` that is no text.
        ValueError: where there is not a vector for each text, and for a seed that is none.
    """
    check_list("texts", texts, indexed=True)
    check_name("teacher", teacher)
    check_whole_number("'seed'", seed, least=0)
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    theirs = as_matrix("'vectors'", vectors)
    if len(theirs) != len(texts):
        raise ValueError(f"The 'vectors' must be one for each of the {len(texts)} texts. Got {len(theirs)} instead.")
    if bad := _unusable(theirs, f"{teacher}'s"):
        return bad
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        check_text(text)
        if text.strip():
            first.setdefault(text, place)
    places = np.array(list(first.values()), dtype=np.int64)
    if len(places) > _SAMPLE:
        places = np.random.default_rng(seed).choice(places, _SAMPLE, replace=False)
    if len(places) < _FEWEST:
        return []
    pieces = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=2**18, alternate_sign=False)
    counted = TfidfTransformer().fit_transform(pieces.transform(texts[place][:_CHARACTERS] for place in places))
    shared = (counted @ counted.T).toarray()
    np.fill_diagonal(shared, -1.0)
    nearest = shared.argmax(axis=1)
    # Without a neighbour that stands out, words say nothing of a text.
    rows = np.flatnonzero(shared.max(axis=1) > 2 * np.median(shared, axis=1) + 0.05)
    if len(rows) < _FEWEST:
        return []
    unit = normalize(theirs[torch.from_numpy(places)].double(), dim=1)
    alike = (unit @ unit.mT).numpy()
    own = alike[rows, nearest[rows]][:, None]
    np.fill_diagonal(alike, np.nan)
    below, equal = (alike[rows] < own).sum(axis=1), (alike[rows] == own).sum(axis=1) - 1
    rank = float(((below + 0.5 * equal) / max(1, len(places) - 2)).mean())
    if rank >= _BY_CHANCE:
        return []
    return [
        Finding(
            name="vectors of other texts",
            seen=f"of {len(rows)} texts, the one that shares most words with a text is more similar to it by {teacher} than "
            f"{100 * rank:.0f} % of the others are; by chance it would be 50 %, and where the vectors belong to the texts it "
            "is 80 % and more",
            means="the vectors are in another order than the texts, or of other texts, and what is learned from them is noise",
            remedy="write texts and vectors into one table, or again in the same order, and give that",
        )
    ]
