"""Whether what st-distill needs may be used with it: the licences that the installed packages name, offline."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement

#: SPDX names of licences that ask for no more than their own text to be kept, or that reach no further than their files.
FREE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT"),
    *("MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
}
#: The same in the words of those who give none.
WORDS = re.compile(
    r"\b(apache|mit|0?bsd|isc|python software foundation|psf|mpl|mozilla|unlicense|zlib|hpnd|historical permission|cc0|boost"
    r"|public domain)\b",
    re.IGNORECASE,
)
FORBIDDEN = re.compile(
    r"\b([al]?gpl|gnu (affero |lesser )?general public|proprietary|non-?commercial|sspl|commons clause|evaluation)",
    re.IGNORECASE,
)
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


def is_free(expression: str | None, named: str) -> bool:
    """Whether a package may be used: by its SPDX expression or, where it has none, by what it calls its licence."""
    if expression is None:
        return bool(WORDS.search(named)) and not FORBIDDEN.search(named[:200])
    if "(" in expression:  # rare enough to ask for every licence in it
        expression = re.sub(r"\sOR\s", " AND ", re.sub("[()]", "", expression))
    return any(
        all(re.split(r"\sWITH\s", name)[0] in FREE for name in re.split(r"\sAND\s", choice))
        for choice in re.split(r"\sOR\s", expression)
    )


def licence(name: str) -> tuple[str | None, str]:
    """The SPDX expression of a package, if it has one, and what it calls its licence otherwise."""
    fields = metadata.metadata(name)
    classifiers = [value.rpartition(" :: ")[2] for value in fields.get_all("Classifier") or [] if "License ::" in value]
    return fields.get("License-Expression"), KNOWN.get(name, "; ".join(classifiers) or fields.get("License") or "")


def test_every_package_that_is_needed_has_a_free_licence():
    names = needed("st-distill", frozenset({"report"}))
    assert {"torch", "transformers", "sentence-transformers", "numpy"} <= names
    assert {name: licence(name) for name in names - {"st-distill"} if not is_free(*licence(name))} == {}


@pytest.mark.parametrize(
    ("expression", "named", "free"),
    [
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND MIT", "", True),
        ("GPL-3.0-only OR MIT", "", True),
        ("GPL-3.0-only AND MIT", "", False),
        ("MIT AND (GPL-2.0-only OR BSD-3-Clause)", "", False),  # who knows brackets may allow it
        ("LicenseRef-MIT-like", "MIT", False),
        ("", "MIT", False),
        (None, "MIT License", True),
        (None, "ISC License (ISCL)", True),
        (None, "BSD-3-Clause", True),
        (None, "Use is limited to evaluation by NVIDIA customers", False),
        (None, "Commons Clause, see disclaimer", False),
        (None, "Apache 2.0 with Commons Clause", False),
        (None, "GNU Lesser General Public License; MIT License", False),
        (None, "", False),
    ],
)
def test_what_is_free(expression, named, free):
    assert is_free(expression, named) is free
