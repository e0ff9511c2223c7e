"""Hard negatives for pairs of texts, by the miner of sentence-transformers, as a file that a stage learns from."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from st_distill.errors import sentence
from st_distill.files import remove_abandoned, replacing
from st_distill.limits import reading
from st_distill.nearest import suggest_path
from st_distill.options import check_whole_number, is_number
from st_distill.recipe.data import load_texts
from st_distill.recipe.models import load_model
from st_distill.recipe.schema import Texts
from st_distill.recipe.start import tell_too_long_texts

__all__ = ["mine_negatives"]

logger = logging.getLogger(__name__)

#: Similarities that are in memory at a time: a gigabyte of float32.
_SIMILARITIES = 2**28


def mine_negatives(
    model: SentenceTransformer | str | os.PathLike[str],
    pairs: Texts | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    corpus: Texts | str | os.PathLike[str] | None = None,
    negatives: int = 15,
    skip: int = 0,
    margin: float | None = None,
    max_seq_length: int | None = None,
    batch_size: int = 32,
) -> int:
    """Write each pair with the texts that the model takes for its answer most, and that are not.

    The search is sentence_transformers.util.mine_hard_negatives, over all second columns and the ``corpus``; a text that is
    the second of any pair with the same first one is no negative of it, nor is the first one itself. Nothing is drawn at
    random: the same input gives the same file on the same machine. The log says which sources have texts that the model
    does not read to their end.

    Args:
        model: the model, its folder or its name; its own prompts for queries and documents are used.
        pairs: two columns of texts, a query and what belongs to it; both if the source has no more.
        path: parquet file to write, which is not there yet: the two columns, ``negative_1`` to ``negative_<negatives>``.
        corpus: one column of further texts to search.
        negatives: how many a pair gets, at least 1; 15 in Jina Embeddings 2 (arXiv 2310.19923).
        skip: leave out so many of the nearest ones, which may be right answers that nobody has marked.
        margin: leave out a text whose cosine is above that of the pair less this share of it, from 0 to below 1.
        max_seq_length: tokens of a text that the model is to read here; None: as many as ever.
        batch_size: texts encoded at a time.

    Returns:
        Rows written. A pair with too few negatives is left out, and the log says how many were.

    Raises:
        ValueError: for an option out of range, columns that are not there, a model that is not there or cannot read so many
            tokens, a file that is there or in no folder, a column with the name of one that is written, and where no pair has
            so many negatives.
    """
    _check_options(negatives=negatives, skip=skip, margin=margin, batch_size=batch_size)
    target = Path(path)
    _check_target(target)
    dataset = _columns(pairs, "pairs", 2)
    _check_names(dataset, negatives)
    found = [] if corpus is None else list(_columns(corpus, "corpus", 1)["text"])
    query, answer = dataset.column_names
    texts = dict.fromkeys([*found, *dataset[answer]])
    if len(texts) <= negatives + skip:
        raise ValueError(
            f"The texts to search must be more than {negatives + skip}, the 'negatives' and those to 'skip'. Got {len(texts)} "
            "different ones: give a 'corpus', or ask for fewer."
        )
    if not isinstance(model, SentenceTransformer):
        model = load_model(os.fspath(model))
    pairs_given = {*zip(dataset[query], dataset[answer])}
    wanted = len(pairs_given)
    # A query that is itself among the texts is the nearest of all to itself, and no wrong answer.
    own = [text for text in dict.fromkeys(dataset[query]) if text in texts and (text, text) not in pairs_given]
    more = Dataset.from_dict({query: own, answer: own}, features=dataset.features)
    added = concatenate_datasets([dataset, more]) if own else dataset
    with reading(model, max_seq_length):
        tell_too_long_texts(model, [_source(source) for source in (pairs, corpus) if source is not None])
        mined = mine_hard_negatives(
            added,
            model,
            anchor_column_name=query,
            positive_column_name=answer,
            corpus=found or None,
            range_min=skip,
            relative_margin=margin,
            num_negatives=negatives,
            output_format="n-tuple",
            batch_size=batch_size,
            faiss_batch_size=max(1, _SIMILARITIES // len(texts)),
            verbose=False,
        )
    if own:
        mined = mined.filter(lambda row: (row[query], row[answer]) in pairs_given)
    if len(mined) == 0:
        raise ValueError(
            f"At least one of the {wanted} pairs must have {negatives} negatives. Got none: ask for fewer, or take a smaller "
            "'margin' or 'skip'."
        )
    remove_abandoned(target.absolute().parent, target.name)
    with replacing(target) as file:
        # The library's own writer puts a fingerprint into the file, which is another one every time.
        pq.write_table(mined.with_format("arrow")[:].replace_schema_metadata(None), file)
    if len(mined) < wanted:
        logger.warning(
            "%d of %d pairs have fewer than %d negatives and are left out.", wanted - len(mined), wanted, negatives
        )
    return len(mined)


def _check_options(*, negatives: int, skip: int, margin: float | None, batch_size: int) -> None:
    for name, value, lowest in (("negatives", negatives, 1), ("skip", skip, 0), ("batch_size", batch_size, 1)):
        check_whole_number(f"'{name}'", value, least=lowest)
    if margin is not None and not (is_number(margin, 0) and margin < 1):
        raise ValueError(f"The 'margin' must be from 0 to below 1. Got {margin} instead.")


def _check_target(target: Path) -> None:
    if target.suffix != ".parquet":
        raise ValueError(f"The 'path' must end in .parquet. Got '{target}' instead.")
    folder = target.absolute().parent
    if not folder.exists():
        offer = suggest_path(folder, Path.is_dir) or ": make it, or name another one"
        raise ValueError(sentence(f"The 'path' is '{target}', and there is no folder '{folder}'{offer}"))
    if not folder.is_dir():
        raise ValueError(f"The 'path' is '{target}', and '{folder}' is no folder. Name a file in a folder.")
    if os.path.lexists(target):
        raise ValueError(
            f"The 'path' must be a new file, and '{target}' is there already. Remove it, or name another one."
        )


def _check_names(pairs: Dataset, negatives: int) -> None:
    """No text is to be lost because a column of negatives has the name of its own."""
    written = [f"negative_{place}" for place in range(1, negatives + 1)]
    if twice := next((name for name in pairs.column_names if name in written), None):
        raise ValueError(
            f"The 'pairs' have a column '{twice}', which is the name of one that is written, of the negatives. Rename it."
        )


def _source(given: Texts | str | os.PathLike[str]) -> Texts:
    return given if isinstance(given, Texts) else Texts(path=os.fspath(given))


def _columns(source: Texts | str | os.PathLike[str], name: str, count: int) -> Dataset:
    """The texts of a source that must have so many columns; a single one is called ``text``."""
    dataset = load_texts(_source(source))
    if len(dataset.column_names) != count:
        wanted = "two columns" if count == 2 else "one column"
        raise ValueError(
            f"The '{name}' must have {wanted} of texts. Got {', '.join(dataset.column_names)}: name {wanted} of them."
        )
    return dataset.rename_columns({dataset.column_names[0]: "text"}) if count == 1 else dataset
