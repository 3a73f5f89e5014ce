"""What a receipt records of the machine: its CPU, and the versions of libraries that may change a feature."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def cpu_name() -> str:
    """Return the name of the processor of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that may change a feature."""
    from importlib.metadata import version

    names = ("featurepress", "openvino", "opencv-python-headless", "pillow", "numpy", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
