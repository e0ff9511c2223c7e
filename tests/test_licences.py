"""Whether what st-distill needs may be used with it: the licences that the installed packages name, offline."""

from __future__ import annotations

import re
from importlib import metadata

from packaging.requirements import Requirement

#: Words of licences that ask for no more than their own text to be kept, or that reach no further than their files.
ALLOWED = (
    "apache",
    "mit",
    "bsd",
    "isc",
    "python software foundation",
    "psf",
    "mpl",
    "mozilla",
    "unlicense",
    "zlib",
    "hpnd",
)
ALLOWED += ("historical permission", "cc0", "0bsd", "bsl", "boost", "public domain")
FORBIDDEN = re.compile(r"\b(agpl|gpl|gnu (affero )?general public|proprietary|non-?commercial|sspl)", re.IGNORECASE)
#: Packages that come under several licences, or none in words, and what they are.
KNOWN: dict[str, str] = {}


def needed(name: str, extras: frozenset[str]) -> set[str]:
    """A distribution and all that it needs on this machine."""
    left, seen = [(name, extras)], set()
    while left:
        one = left.pop()
        key = re.sub(r"[-_.]+", "-", one[0]).lower(), one[1]
        try:
            requires = metadata.requires(one[0]) or []
        except metadata.PackageNotFoundError:  # an extra that is not installed
            continue
        if key in seen:
            continue
        seen.add(key)
        for requirement in map(Requirement, requires):
            chosen = [{"extra": extra} for extra in one[1] or [""]]
            if requirement.marker is None or any(requirement.marker.evaluate(extra) for extra in chosen):
                left.append((requirement.name, frozenset(requirement.extras)))
    return {key for key, _ in seen}


def licence(name: str) -> str:
    fields = metadata.metadata(name)
    classifiers = [value.rpartition(" :: ")[2] for value in fields.get_all("Classifier") or [] if "License ::" in value]
    named = fields.get("License-Expression") or "; ".join(classifiers) or fields.get("License") or ""
    return KNOWN.get(name, named).strip()


def test_every_package_that_is_needed_has_a_free_licence():
    names = needed("st-distill", frozenset({"report"}))
    assert {"torch", "transformers", "sentence-transformers", "numpy"} <= names
    unclear = {
        name: licence(name)[:100]
        for name in names - {"st-distill"}
        if not any(word in licence(name).lower() for word in ALLOWED) or FORBIDDEN.search(licence(name)[:200])
    }
    assert unclear == {}
