"""What a data set says of itself: texts that are there twice, and evaluation texts that training has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from st_distill.diagnosis.arguments import check_list, check_name, check_text, shown
from st_distill.diagnosis.finding import Finding
from st_distill.options import is_number

__all__ = ["diagnose_duplicates", "diagnose_overlap"]


def diagnose_duplicates(rows: Iterable[str | tuple[str, ...]], *, share: float = 0.05) -> list[Finding]:
    """Whether many rows are there twice.

    Args:
        rows: texts, or the texts of each row; spaces and upper case do not tell two apart.
        share: of rows that were there before, above which it is a finding, in [0, 1).

    Returns:
        Findings named "duplicates".

    Raises:
        ValueError: for a share that is none.
        TypeError: for what is no list, and in it no text.
    """
    _check_share(share)
    check_list("rows", rows)
    seen: set[bytes] = set()
    count = again = 0
    example = ""
    for row in rows:
        if not isinstance(row, (str, tuple, list)) or row in ((), []):
            raise TypeError(
                f"A row must be a text, or a tuple of its texts. Got {shown(repr(row))} instead: leave it out, or write it so."
            )
        texts = (row,) if isinstance(row, str) else row
        key = _key(*texts)
        if key in seen:
            again += 1
            example = example or shown(texts[0])
        seen.add(key)
        count += 1
    if not again or again <= share * count:
        return []
    return [
        Finding(
            name="duplicates",
            seen=f"{again:,} of {count:,} rows ({100 * again / count:.0f} %) were there before, such as '{example}'",
            means="training sees these texts more often than others, and in one batch it learns nothing from the second one",
            remedy="keep one of each, and train for fewer steps",
        )
    ]


def diagnose_overlap(
    train: Iterable[str], held_out: Iterable[str], *, what: str = "evaluation", share: float = 0.01
) -> list[Finding]:
    """Whether texts that a model is measured on are among those that it learns from.

    Args:
        train: texts of training; they are gone through once.
        held_out: texts of the evaluation, held in memory as hashes.
        what: what to call the evaluation.
        share: of the different held-out texts, above which it is a finding, in [0, 1).

    Returns:
        Findings named "evaluation texts in training".

    Raises:
        ValueError: for a share that is none.
        TypeError: for what is no list, and in it no text.
    """
    _check_share(share)
    check_list("train", train)
    check_list("held_out", held_out)
    check_name("what", what)
    wanted = {_key(text): text for text in held_out}
    met = {key for text in train if (key := _key(text)) in wanted}
    if not met or len(met) <= share * len(wanted):
        return []
    example = shown(next(text for key, text in wanted.items() if key in met))
    return [
        Finding(
            name="evaluation texts in training",
            seen=f"{len(met):,} of {len(wanted):,} texts of the {what} ({100 * len(met) / len(wanted):.0f} %) are training "
            f"texts too, such as '{example}'",
            means="the figures of the evaluation are better than they will be on texts that the student has not seen",
            remedy="leave these texts out of the training, or measure on others",
        )
    ]


def _check_share(share: float) -> None:
    if not is_number(share, 0) or share >= 1:
        raise ValueError(f"The 'share' must be from 0 to below 1. Got {share!r} instead.")


def _key(*texts: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        check_text(text)
        plain = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
        digest.update(len(plain).to_bytes(8, "little") + plain)
    return digest.digest()
