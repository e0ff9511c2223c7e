"""The machine and the packages that something ran with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["environment"]

_PACKAGES = ("st-distill", "sentence-transformers", "transformers", "torch", "datasets", "accelerate", "numpy")


def environment() -> dict[str, str]:
    """What this process runs on, label to value: system, processor, memory, accelerators and versions of packages.

    What the system does not tell is left out. No name of the machine and no path is among it.
    """
    import torch

    found = {
        "System": f"{platform.system()} {platform.machine()}",
        "Processor": _processor(),
        "Processor cores": str(_cores()),
        "Memory": _memory(),
        "Accelerators": ", ".join(_accelerators()) or "none",
        "Threads of torch": str(torch.get_num_threads()),
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {label: value for label, value in found.items() if value}


def _cores() -> int:
    # Those this process may use, which a container may have fewer of than the machine.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        return ""


def _accelerators() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["Apple GPU"] if torch.backends.mps.is_available() else []
