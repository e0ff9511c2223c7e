"""Logins and tokens in texts that are shown or kept: found, and left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["credentials_in", "holds_credentials", "speaks_of_token", "without_credentials"]

_SPOKEN_OF = re.compile(r"token(?!s|iz)|password|secret|api.?key", re.IGNORECASE)
_SECRETS = (
    # What an address has before its host, with one slash where it was taken for a path; of its query what lets somebody in.
    re.compile(r"(?<=\w\w:/)(/?)[^/\s?#'\"]+(?=@)"),
    # The same with both slashes forgotten.
    re.compile(r"(?<=\w\w:)[^/\s?#'\"@:]+:[^/\s?#'\"@]+(?=@)"),
    re.compile(
        r"(?<=[?&])((?:[\w-]*(?:token|signature|credential|password|secret|api_?key)|sig|key)=)[^&\s'\"]+", re.I
    ),
    # As hubs and clouds write them: Hugging Face, OpenAI and its like, GitHub, Amazon.
    re.compile(r"hf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|(?:gh[a-z]|github_pat)_[A-Za-z0-9_]{20,}|A[KS]IA[A-Z0-9]{16}"),
)


def speaks_of_token(text: str) -> bool:
    """Whether a text speaks of a token or a password, so that no message may repeat it: one may stand in it."""
    return _SPOKEN_OF.search(text) is not None or holds_credentials(text)


def holds_credentials(text: str) -> bool:
    """Whether a text has a login in an address, a signature, or what looks like a token."""
    return any(pattern.search(text) for pattern in _SECRETS)


def without_credentials(text: str) -> str:
    """The text with an ellipsis in place of each.

    >>> without_credentials("s3://me:word@bucket/a.parquet?token=abc")
    's3://…@bucket/a.parquet?token=…'
    """
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: f"{found[1] if found.re.groups else ''}…", text)
    return text


def credentials_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in nested mappings and lists a text, or a name, holds some; ``data`` given in Python is not looked at."""
    if isinstance(value, str) and holds_credentials(value):
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str) and holds_credentials(key):
                yield (*path, key)
            elif key != "data":
                yield from credentials_in(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from credentials_in(inner, (*path, index))
