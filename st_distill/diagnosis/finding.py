"""One thing that is wrong, or looks so."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that looks wrong, told so that one can act on it.

    Args:
        name: what it is called, the same for everything of its kind: "collapsed", "duplicates".
        seen: what was seen, with the numbers; a clause without a full stop, as the next two are.
        means: what that means.
        remedy: what to do.
    """

    name: str
    seen: str
    means: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}. That means: {self.means}. What to do: {self.remedy}."

    def as_json(self) -> dict[str, str]:
        """The same as plain values."""
        return asdict(self)
