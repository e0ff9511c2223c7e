"""The closed-form start of a projection: seconds and memory, by the number of texts.

    python benchmarks/ridge.py

The student's pooled vectors have 384 dimensions, the teachers' together 12,288. Both are random and made a chunk at a time, so
that what is measured is the regression. Each number of texts is a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from st_distill.modules import MatryoshkaProjection
from st_distill.modules.rotation import random_rotation

CHUNK = 1024


def measure(texts: int, width: int, teacher: int) -> None:
    projection = MatryoshkaProjection(width, [width, width // 4], rotation=random_rotation(teacher, width))
    generator = torch.Generator().manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    projection.start_ridge(
        (torch.randn(CHUNK, width, generator=generator), torch.randn(CHUNK, teacher, generator=generator))
        for _ in range(texts // CHUNK)
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{texts:>9} texts: {seconds:6.1f} s, {(after - before) / 1024:5.0f} MB more than before", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, nargs="+", default=[10_240, 102_400])
    parser.add_argument("--width", type=int, default=384, help="of the pooled vectors")
    parser.add_argument("--teacher", type=int, default=12_288, help="width of the teachers' vectors")
    options = parser.parse_args()
    if len(options.texts) == 1:
        measure(options.texts[0], options.width, options.teacher)
        return
    for texts in options.texts:
        sizes = ["--width", str(options.width), "--teacher", str(options.teacher)]
        subprocess.run([sys.executable, __file__, "--texts", str(texts), *sizes], check=True)


if __name__ == "__main__":
    main()
