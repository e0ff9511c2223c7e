"""Where a teacher's vectors come from, and a function as the simplest of such sources."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np


class Variant(NamedTuple):
    """How a text is put to a teacher: the ``prompt`` before it, and the ``task`` a Router model takes it for."""

    prompt: str
    task: str | None


class Source(Protocol):
    """Where a teacher's vectors come from."""

    label: str
    """Says what it is, in the store's description."""

    def revision(self) -> str: ...

    def prompts(self) -> tuple[Mapping[str, str], str]:
        """The source's own prompts by role, and the one for all other roles."""

    def task(self, role: str) -> str | None: ...

    def lengths(self, texts: list[str], variant: Variant) -> np.ndarray | None:
        """Tokens of each text as the source reads it, prompt and limit included: (texts,); None where there are none."""

    def ask(self, texts: list[str], variant: Variant) -> Any:
        """Whatever the source returns for a batch of texts."""

    def release(self) -> None: ...


class Function:
    """A function of the user's own."""

    def __init__(self, function: Callable[..., Any], *, revision: str | None) -> None:
        revision = revision if revision is not None else getattr(function, "revision", None)
        if not isinstance(revision, str) or not revision:
            raise ValueError(
                "The 'revision' parameter of Teacher must be given for a function (or be its attribute), because it tells "
                f"its vectors from those of another version. Got {revision!r} instead; pass revision='1', say."
            )
        self.function = function
        self._revision = revision
        own_name = getattr(function, "__name__", type(function).__name__)
        name = getattr(function, "name", None)
        self.default_name = name if name is not None else own_name
        self.label = f"function {own_name}"
        try:
            self._takes_prompt = "prompt" in inspect.signature(function).parameters
        except (TypeError, ValueError):  # a builtin has no signature to look at
            self._takes_prompt = False

    def revision(self) -> str:
        return self._revision

    def prompts(self) -> tuple[Mapping[str, str], str]:
        return {}, ""

    def task(self, role: str) -> str | None:
        return None

    def lengths(self, texts: list[str], variant: Variant) -> None:
        """A function does not say."""

    def ask(self, texts: list[str], variant: Variant) -> Any:
        if self._takes_prompt:
            return self.function(texts, prompt=variant.prompt)
        return self.function([variant.prompt + text for text in texts] if variant.prompt else texts)

    def release(self) -> None:
        """The function is the user's."""
