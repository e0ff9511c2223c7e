"""A tokenizer trained from the corpus, or taken from a model, and texts as the tokens and words it makes of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

__all__ = ["Tokens", "WordTokenizer", "train_tokenizer"]

#: Of a text that is cut, the words at its end that the cut may have changed.
_DOUBTFUL_WORDS = 2


class Tokens(NamedTuple):
    """Tokens of a text, and the number of the word that each belongs to (-1 for special tokens), both int32 (tokens,)."""

    input_ids: np.ndarray
    words: np.ndarray


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Literal["wordpiece", "bytes"] = "wordpiece",
    vocab_size: int = 30_522,
    lowercase: bool = True,
    min_frequency: int = 2,
) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary is learned from ``texts``.

    Args:
        texts: gone through once.
        kind: wordpiece, as BERT's; or bytes, the byte-level byte-pair encoding of GPT-2 and RoBERTa, which has a token for
            everything.
        vocab_size: tokens at most, special ones included.
        lowercase: of wordpiece alone: whether capitals (and accents, as in BERT) are put aside.
        min_frequency: how often a pair of pieces must be there to become a token.

    Raises:
        ValueError: where the texts give no words at all.
    """
    if kind == "wordpiece":
        special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
        backend = Tokenizer(models.WordPiece(unk_token=special["unk"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(special.values()),
            show_progress=False,
        )
    else:
        special = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(  # type: ignore[assignment]
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(special.values()),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    backend.train_from_iterator(texts, trainer)
    learned = backend.get_vocab_size() - len(special) - len(getattr(trainer, "initial_alphabet", []))
    if learned < 1:
        raise ValueError("The texts must have words to learn a vocabulary from. Got none instead: see their column.")
    ends = [(special[name], backend.token_to_id(special[name])) for name in ("cls", "sep")]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{special['cls']} $A {special['sep']}",
        pair=f"{special['cls']} $A {special['sep']} $B:1 {special['sep']}:1",
        special_tokens=ends,
    )
    names = {f"{name}_token": token for name, token in special.items()}
    if kind == "wordpiece":
        return BertTokenizerFast(tokenizer_object=backend, do_lower_case=lowercase, **names)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


class WordTokenizer:
    """Turns texts into tokens and the words that they belong to.

    Args:
        tokenizer: a fast tokenizer with mask and padding tokens.
        whole_words: whether the words are those of the tokenizer (what it splits a text into before it looks for tokens);
            otherwise every token counts as a word of its own.

    Raises:
        ValueError: for a tokenizer that cannot serve, saying why.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, whole_words: bool = True) -> None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not tokenizer.is_fast:
            raise ValueError(f"The tokenizer must be a fast one, which knows its words. Got {name}, which is not.")
        for token in ("mask", "pad"):
            if getattr(tokenizer, f"{token}_token_id") is None:
                raise ValueError(
                    f"The tokenizer must have a {token} token. Got {name}, which has none: add one to its folder, or "
                    "train a tokenizer."
                )
        self.tokenizer = tokenizer
        self.whole_words = whole_words
        self._backend: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        probe = self._backend.encode("one two three", add_special_tokens=True)
        inner = [place for place, is_special in enumerate(probe.special_tokens_mask) if not is_special]
        if whole_words and len({probe.word_ids[place] for place in inner}) < 3:
            raise ValueError(
                f"The tokenizer must split texts into words for whole words to be masked. Got {name}, which does not: set "
                "whole_words: false, or take another tokenizer."
            )
        #: Special tokens that stand before a text, and after it, int32.
        self.before = np.array(probe.ids[: inner[0]], np.int32)
        self.after = np.array(probe.ids[inner[-1] + 1 :], np.int32)
        self._special = np.array(sorted(set(tokenizer.all_special_ids)), np.int32)

    @property
    def added(self) -> int:
        """Special tokens that `framed` puts around a text."""
        return len(self.before) + len(self.after)

    @property
    def ordinary_ids(self) -> np.ndarray:
        """The vocabulary without special tokens, int32 (tokens,)."""
        ids = np.array(sorted(self.tokenizer.get_vocab().values()), np.int32)
        return np.setdiff1d(ids, self._special)

    def contents(self, texts: Sequence[str], *, limit: int | None = None) -> Iterator[Tokens]:
        """The tokens of each text, without special ones around it; the first ``limit`` of them.

        Special tokens that stand in a text itself, unknown ones among them, have the word -1.
        """
        # A token rarely has more than eight characters, and of a long document only its beginning may be wanted.
        letters = None if limit is None else 8 * limit + 64
        encodings = self._backend.encode_batch([text[:letters] for text in texts], add_special_tokens=False)
        for text, encoding in zip(texts, encodings):
            if letters is not None and len(text) > letters:
                last = len(encoding.ids) and encoding.word_ids[-1]
                known = sum(word is not None and word <= (last or 0) - _DOUBTFUL_WORDS for word in encoding.word_ids)
                if known < (limit or 0):
                    encoding = self._backend.encode(text, add_special_tokens=False)
            yield self._tokens(encoding.ids[:limit], encoding.word_ids[:limit])

    def _tokens(self, ids: list[int], word_ids: list[int | None]) -> Tokens:
        input_ids = np.array(ids, np.int32)
        if self.whole_words:
            words = np.array([-1 if word is None else word for word in word_ids], np.int32)
        else:
            words = np.arange(len(ids), dtype=np.int32)
        return Tokens(input_ids, np.where(np.isin(input_ids, self._special), -1, words).astype(np.int32))

    def framed(self, tokens: Tokens) -> Tokens:
        """The tokens with the special ones before and after them that the tokenizer's model expects."""
        outside = [np.full(len(part), -1, np.int32) for part in (self.before, self.after)]
        return Tokens(
            np.concatenate([self.before, tokens.input_ids, self.after]),
            np.concatenate([outside[0], tokens.words, outside[1]]),
        )
