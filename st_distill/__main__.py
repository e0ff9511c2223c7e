"""``python -m st_distill``: the command line, for launchers that start a module in several processes."""

from __future__ import annotations

import sys

from st_distill.cli import main

if __name__ == "__main__":
    sys.exit(main())
