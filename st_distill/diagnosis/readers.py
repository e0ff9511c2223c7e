"""What student and teacher read of a text: tokens, truncation, and prompts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from st_distill.diagnosis.arguments import check_list, check_name, check_text
from st_distill.diagnosis.finding import Finding

__all__ = ["Reader", "diagnose_prompts", "diagnose_reading", "prompts_of_card"]

#: Texts that are tokenised.
_SAMPLE = 256
#: Characters of each that are tokenised, for each token that the longer reader takes.
_CHARACTERS = 16
#: Share of texts that one of the two must cut, and the other not.
_CUT = 0.05
#: Share of unknown tokens that the student may have more than the teacher.
_UNKNOWN = 0.02
#: Prompts that model cards put in quotes, as those of E5, Nomic, BGE and instruction-tuned models do.
_PROMPT = re.compile(
    r"[\"'`“]((?:query|passage|document|search_query|search_document|clustering|classification): ?"
    r"|Represent this [^\"'`”]{3,80}: ?|Instruct: [^\"'`”]{0,120})"
)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What of a model decides which part of a text it reads.

    Args:
        name: what to call it.
        tokenizer: of transformers.
        max_seq_length: tokens of a text, those of its prompt and the special ones included; None for no limit.
        prompt: put before every text.
    """

    name: str
    tokenizer: Any
    max_seq_length: int | None
    prompt: str = ""

    @classmethod
    def of(cls, model: Any, name: str, *, prompt: str = "") -> Self | None:
        """The reader in a sentence-transformers model; None for one that has no tokenizer of transformers.

        Raises:
            TypeError: for what is no such model.
        """
        from sentence_transformers import SentenceTransformer
        from transformers import PreTrainedTokenizerBase

        if not isinstance(model, SentenceTransformer):
            raise TypeError(
                f"The 'model' must be a SentenceTransformer. Got {type(model).__name__} instead: load it first."
            )
        tokenizer = getattr(model[0], "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return None
        return cls(name=name, tokenizer=tokenizer, max_seq_length=model.max_seq_length, prompt=prompt)


def diagnose_reading(texts: Sequence[str], student: Reader, teacher: Reader) -> list[Finding]:
    """Whether student and teacher read the same part of the same words.

    Args:
        texts: texts of training; 256 of them, evenly spread, are looked at.
        student: how the student reads.
        teacher: how a teacher reads.

    Returns:
        Findings named "truncated differently" and "tokenised differently".

    Raises:
        TypeError: for what is no list, and in it no text, and for what is no `Reader`.
    """
    check_list("texts", texts, indexed=True)
    for name, reader in (("student", student), ("teacher", teacher)):
        if not isinstance(reader, Reader):
            raise TypeError(
                f"The '{name}' must be a Reader. Got {type(reader).__name__} instead: Reader.of gives one of a model that "
                "has a tokenizer of transformers, and None of another."
            )
    step = max(1, len(texts) // _SAMPLE)
    sample = list(texts[::step][:_SAMPLE])
    for text in sample:
        check_text(text)
    sample = [text for text in sample if text.strip()]
    if not sample:
        return []
    longest = max(reader.max_seq_length or 0 for reader in (student, teacher)) or None
    sample = [text[: None if longest is None else _CHARACTERS * longest] for text in sample]
    ours, theirs = _tokens(sample, student), _tokens(sample, teacher)
    return [*_truncation(ours, theirs, student, teacher), *_unknown(ours, theirs, student, teacher)]


def _tokens(texts: list[str], reader: Reader) -> list[list[int]]:
    prompted = [reader.prompt + text for text in texts]
    tokens: list[list[int]] = reader.tokenizer(prompted, truncation=False, padding=False, verbose=False)["input_ids"]
    return tokens


def _truncation(ours: list[list[int]], theirs: list[list[int]], student: Reader, teacher: Reader) -> list[Finding]:
    def cut(tokens: list[list[int]], reader: Reader) -> list[bool]:
        limit = reader.max_seq_length
        return [limit is not None and len(text) > limit for text in tokens]

    by_student, by_teacher = cut(ours, student), cut(theirs, teacher)
    found = []
    for cutter, whole, share, means in (
        (
            student,
            teacher,
            sum(mine and not other for mine, other in zip(by_student, by_teacher)) / len(ours),
            "the student is to give a part of these texts the vector of all of it, which it cannot know",
        ),
        (
            teacher,
            student,
            sum(other and not mine for mine, other in zip(by_student, by_teacher)) / len(ours),
            "the teacher's vectors are of a part of these texts, and the student learns to leave the rest out",
        ),
    ):
        if share > _CUT:
            remedy = (
                f"give the {'student' if cutter is student else 'teacher'} a larger max_seq_length, or cut the texts"
            )
            found.append(
                Finding(
                    name="truncated differently",
                    seen=f"{100 * share:.0f} % of {len(ours)} texts are cut by {cutter.name} at {cutter.max_seq_length} tokens "
                    f"and read whole by {whole.name} ({whole.max_seq_length or 'no'} tokens at most)",
                    means=means,
                    remedy=remedy,
                )
            )
    return found


def _unknown(ours: list[list[int]], theirs: list[list[int]], student: Reader, teacher: Reader) -> list[Finding]:
    def unknown(tokens: list[list[int]], reader: Reader) -> float:
        number = reader.tokenizer.unk_token_id
        total = sum(map(len, tokens))
        return 0.0 if number is None or not total else sum(text.count(number) for text in tokens) / total

    mine, other = unknown(ours, student), unknown(theirs, teacher)
    if mine <= other + _UNKNOWN:
        return []
    return [
        Finding(
            name="tokenised differently",
            seen=f"{100 * mine:.0f} % of the tokens of {len(ours)} texts are unknown words to {student.name}, and "
            f"{100 * other:.0f} % to {teacher.name}",
            means="the student cannot see what the teacher tells these texts apart by",
            remedy="take a student whose vocabulary has the language and the script of the texts",
        )
    ]


def diagnose_prompts(
    teacher: str,
    configured: Mapping[str, str],
    *,
    roles: Collection[str | None],
    given: str | Mapping[str, str] | None = None,
    default: str | None = None,
    card: str | None = None,
) -> list[Finding]:
    """Whether the prompts that a teacher was trained with are put before its texts.

    Args:
        teacher: what to call it.
        configured: role to prompt, as its configuration has them ("prompts" in config_sentence_transformers.json).
        roles: of the texts that it embeds; None for texts without one.
        given: the prompts that it is asked with: of every text, or of a role.
        default: the configured one that texts without a role have.
        card: its model card, read for prompts in quotes where the configuration has none.

    Returns:
        Findings named "prompts missing".

    Raises:
        TypeError: for an argument of another kind.
    """
    check_name("teacher", teacher)
    if not isinstance(configured, Mapping):
        raise TypeError(
            f"The 'configured' must be a mapping from role to prompt. Got {type(configured).__name__} instead."
        )
    if isinstance(roles, (str, Mapping)) or not isinstance(roles, Collection):
        raise TypeError(f"The 'roles' must be a list of roles, or of None. Got {roles!r} instead: put it in a list.")
    if given is not None and not isinstance(given, (str, Mapping)):
        raise TypeError(
            f"The 'given' must be a prompt, a mapping from role to prompt, or None. Got {type(given).__name__} instead."
        )
    if card is not None:
        check_name("card", card)
    if isinstance(given, str) or any(role in (given or {}) for role in roles):
        return []
    prompts = {role: prompt for role, prompt in configured.items() if prompt}
    own = {None: configured.get(default or "", "")} | prompts
    if any(own.get(role) for role in roles):
        return []
    if prompts:
        told = ", ".join(f"{role} ('{_shown(prompt)}')" for role, prompt in list(prompts.items())[:4])
        seen = f"{teacher} has prompts for {told}, and no text has one of these roles"
        remedy = f"give the texts' columns roles, such as {{question: {next(iter(prompts))}}}, or the teacher 'prompts'"
    elif written := prompts_of_card(card or ""):
        told = " and ".join(f"'{prompt}'" for prompt in written[:2])
        seen = (
            f"the card of {teacher} writes {told} before texts, its configuration names no prompts, and none are given"
        )
        remedy = f"give the teacher 'prompts', such as {{query: '{written[0]}'}}, and the texts' columns roles"
    else:
        return []
    found = Finding(
        name="prompts missing",
        seen=seen,
        means="the teacher is asked as it was not trained to be, and its vectors are worse than they can be",
        remedy=f"{remedy}; an empty prompt ('') says that none is wanted",
    )
    return [found]


def prompts_of_card(card: str) -> list[str]:
    """Prompts that a model card shows in quotes, each once."""
    return list(dict.fromkeys(match[1] for match in _PROMPT.finditer(card)))


def _shown(prompt: str) -> str:
    return prompt if len(prompt) <= 40 else prompt[:39] + "…"
