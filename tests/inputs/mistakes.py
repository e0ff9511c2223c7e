"""What counts as a mistake of the user's that is told in words for a person."""

from __future__ import annotations

import traceback
from pathlib import Path

import st_distill
from st_distill.errors import RecipeError

#: What the library raises for input that cannot be right. Anything else is a defect.
MISTAKES = (ValueError, TypeError, OSError)
_PACKAGE = Path(st_distill.__file__).parent


def in_words(mistake: BaseException) -> bool:
    """Whether st-distill itself has raised a mistake, so that it says it in its own words, and not Python or a library.

    What the system says of a file that it names is as good.
    """
    most = 100_000 if isinstance(mistake, RecipeError) else 5000  # which has a line for each mistake
    if not 10 < len(str(mistake)) < most:
        return False
    if isinstance(mistake, OSError) and mistake.errno is not None and mistake.filename is not None:
        return True
    frame = traceback.extract_tb(mistake.__traceback__)[-1]
    return Path(frame.filename).is_relative_to(_PACKAGE) and (frame.line or "").startswith("raise ")
