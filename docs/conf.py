"""The documentation site: `make docs` builds it into out/docs, with warnings as errors."""

from __future__ import annotations

import os
import re
import runpy
from pathlib import Path

from st_distill import __version__

DOCS = Path(__file__).parent

project = "st-distill"
copyright = "the authors of st-distill"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_pictures/*"]
myst_heading_anchors = 4
nitpicky = True
# Names of other packages have no page here; a name in single backticks that is none of ours is code.
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(?!st_distill\.).*"),
    ("py:class", r".*\.(AlibiBertPreTrainedModel|Part)"),  # bases, of no use by themselves
]
default_role = "py:obj"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"st-distill {version}"
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False


def _rooted(app, path, parent, content):
    """Links of a file that is included from elsewhere (README.md) start at its own folder."""
    folder = os.path.relpath(DOCS / path.parent, DOCS)

    def moved(match):
        return "](/" + os.path.normpath(os.path.join(folder, match[1])) + ")"

    content[0] = re.sub(r"\]\((?![a-z]+:|#|/)([^)]+)\)", moved, content[0])


def setup(app):
    runpy.run_path(str(DOCS / "pictures.py"))["draw"](DOCS / "_pictures")
    app.connect("include-read", _rooted)
