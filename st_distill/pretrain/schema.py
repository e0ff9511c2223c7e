"""What a pretraining recipe says: dataclasses whose fields are the one place where each option is described."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from st_distill.nearest import suggest
from st_distill.recipe.conversion import Part
from st_distill.recipe.load import OF_DISTILLATION, OF_PRETRAINING, Kind
from st_distill.recipe.rules import about, above, at_least, is_seed, not_empty, numbers_list
from st_distill.recipe.schema import Texts
from st_distill.words import Found

__all__ = ["PRETRAINING", "Encoder", "LengthEvaluation", "Masking", "Pretraining", "TokenizerSpec"]

#: Fields that are short for a training argument, and what is used where neither is given.
SHORTHAND_ARGUMENTS = {"learning_rate": "learning_rate", "steps": "max_steps", "epochs": "num_train_epochs"}
ARGUMENT_DEFAULTS: dict[str, Any] = {"learning_rate": 1e-3}
_OUTCOMES = ("mask", "random", "keep")


def _share(value: Any) -> Iterator[Found]:
    if value is not None and not 0 < value <= 1:
        yield (), f"must be above 0 and at most 1, got {value:g}"


def _replacement(value: Any) -> Iterator[Found]:
    for name, share in (value or {}).items():
        if name not in _OUTCOMES:
            yield (name,), f"unknown field{suggest(name, _OUTCOMES, always=True)}"
        elif not 0 <= share <= 1:
            yield (name,), f"must be from 0 to 1, got {share:g}"
    total = sum((value or {}).values())
    if set(value or {}) <= set(_OUTCOMES) and abs(total - 1) > 1e-6:
        yield (), f"the shares of {', '.join(_OUTCOMES)} must add up to 1, got {total:g}"


@dataclass(kw_only=True)
class Encoder(Part):
    """The model that is trained, with its masked-language-model head."""

    short_for: ClassVar[str | None] = "model"

    model: str | None = field(
        default=None,
        metadata=about("name or folder of a transformers model whose weights the training goes on from", not_empty),
    )
    config: dict[str, Any] | None = field(
        default=None,
        metadata=about(
            "a transformers configuration with its model_type, started from random weights; vocabulary and special tokens "
            "are those of the tokenizer",
            not_empty,
        ),
    )
    attn_implementation: str | None = field(
        default=None, metadata=about("attention kernel, as the model names it; the model's own by default", not_empty)
    )
    revision: str | None = field(default=None, metadata=about("branch, tag or commit on the hub"))
    trust_remote_code: bool = field(
        default=False, metadata=about("whether code of the model's own may run; not from a file, by --set alone")
    )


@dataclass(kw_only=True)
class TokenizerSpec(Part):
    """The tokenizer: that of a model, or one trained on the corpus."""

    short_for: ClassVar[str | None] = "model"

    model: str | None = field(
        default=None, metadata=about("name or folder of a model with a fast tokenizer", not_empty)
    )
    train: Literal["wordpiece", "bytes"] | None = field(
        default=None,
        metadata=about(
            "learn one from the texts: wordpiece, as BERT's; bytes: byte-level byte-pair encoding, as GPT-2's"
        ),
    )
    vocab_size: int | None = field(
        default=None, metadata=about("tokens of a trained one at most; 30522 by default", at_least(300))
    )
    lowercase: bool = field(
        default=True, metadata=about("whether a trained wordpiece tokenizer puts capitals and accents aside")
    )
    documents: int | None = field(
        default=None, metadata=about("learn from the first so many documents; all by default", at_least(1))
    )
    revision: str | None = field(default=None, metadata=about("branch, tag or commit on the hub"))


@dataclass(kw_only=True)
class Masking(Part):
    """Which words are hidden, and what stands in their place."""

    share: float = field(default=0.3, metadata=about("of the words of a document", _share))
    whole_words: bool = field(
        default=True, metadata=about("false: every token is chosen by itself, as if it were a word")
    )
    replace: dict[str, float] = field(
        default_factory=lambda: {"mask": 0.8, "random": 0.1, "keep": 0.1},
        metadata=about(
            "of the tokens of hidden words: share of mask tokens, of random ones, and of those that stay", _replacement
        ),
    )


@dataclass(kw_only=True)
class LengthEvaluation(Part):
    """How well masked words are found, at several lengths, on documents that the training has not seen."""

    texts: list[Texts] = field(
        metadata=about("held-out documents; those shorter than the greatest length are left out")
    )
    lengths: list[int] = field(
        default_factory=lambda: [512, 1024, 2048, 4096, 8192],
        metadata=about("in tokens", numbers_list(8, ascending=True)),
    )
    batch_tokens: int = field(default=8192, metadata=about("tokens that the model is given at a time", at_least(1)))


@dataclass(kw_only=True)
class Pretraining(Part):
    """The whole: from which texts, with which tokenizer and model, by which schedule."""

    output: str = field(metadata=about("folder of the finished model", not_empty))
    work: str | None = field(
        default=None,
        metadata=about("folder of the tokenised corpus, checkpoints and state; <output>-run by default", not_empty),
    )
    seed: int = field(default=42, metadata=about("of everything random", is_seed))
    encoder: Encoder = field(metadata=about("the model that is trained"))
    tokenizer: TokenizerSpec = field(metadata=about("where its tokenizer is from"))
    texts: list[Texts] = field(metadata=about("the documents it learns on; one column of each source", not_empty))
    max_length: int = field(
        default=512,
        metadata=about("tokens of a row, special ones included; what a document has beyond is left out", at_least(8)),
    )
    packing: bool = field(
        default=False, metadata=about("put documents end to end into full rows, instead of the beginning of each")
    )
    streaming: bool = field(
        default=False,
        metadata=about(
            "read and tokenise the texts while training, for corpora that do not fit on the disk; needs steps"
        ),
    )
    buffer: int = field(
        default=10_000, metadata=about("of a stream: documents held in memory to be shuffled", at_least(1))
    )
    masking: Masking = field(default_factory=Masking, metadata=about("which words are hidden"))
    batch: int = field(default=256, metadata=about("rows of an optimiser step, over all devices", at_least(1)))
    device_batch: int | None = field(
        default=None,
        metadata=about(
            "rows that a device holds at a time; gradients are accumulated until the batch is full. All of it by default",
            at_least(1),
        ),
    )
    learning_rate: float | None = field(default=None, metadata=about("peak learning rate; 1e-3 by default", above(0)))
    steps: int | None = field(default=None, metadata=about("optimiser steps; or give epochs", at_least(1)))
    epochs: float | None = field(default=None, metadata=about("passes over the texts; or give steps", above(0)))
    arguments: dict[str, Any] = field(
        default_factory=dict, metadata=about("any field of transformers.TrainingArguments")
    )
    evaluation: LengthEvaluation | None = field(
        default=None,
        metadata=about("what the finished model is measured on, and, with eval_strategy, the one in training"),
    )

    @property
    def work_folder(self) -> Path:
        """``work``, or ``<output>-run``."""
        return Path(self.work if self.work is not None else f"{self.output.rstrip('/')}-run")

    def rows_per_device(self, processes: int) -> int:
        """Rows that a device holds at a time.

        Raises:
            ValueError: where the batch cannot be shared out among the processes.
        """
        rows = self.device_batch if self.device_batch is not None else self.batch // processes
        if rows < 1 or self.batch % (rows * processes):
            raise ValueError(
                f"The 'batch' must be a multiple of device_batch times the number of processes. Got {self.batch}, "
                f"{rows} and {processes}: change one of them."
            )
        return rows

    def training_arguments(self, processes: int = 1) -> dict[str, Any]:
        """Keyword arguments for transformers.TrainingArguments: ``arguments`` and what the fields stand for."""
        given: Mapping[str, Any] = {
            argument: getattr(self, short)
            for short, argument in SHORTHAND_ARGUMENTS.items()
            if getattr(self, short) is not None
        }
        rows = self.rows_per_device(processes)
        return {
            **ARGUMENT_DEFAULTS,
            **self.arguments,
            **given,
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": self.batch // (rows * processes),
            "seed": self.seed,
        }


PRETRAINING = Kind(Pretraining, "output, encoder, tokenizer, texts and steps", OF_PRETRAINING, OF_DISTILLATION)
