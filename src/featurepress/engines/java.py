"""Whether there is a Java for Spark, and what to do if not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from featurepress.errors import EngineError

LEAST_JAVA = 17

_ADVICE = (
    f"Spark needs Java {LEAST_JAVA} or later{{}}. Install it (Debian and Ubuntu: sudo apt install "
    f"openjdk-{LEAST_JAVA}-jre-headless; macOS: brew install openjdk@{LEAST_JAVA}), or name its folder in "
    "JAVA_HOME."
)


def require_java() -> None:
    """Raise EngineError unless Spark would find a Java that it can run on."""
    java = find_java()
    if java is None:
        raise EngineError(_ADVICE.format(", and there is none"))
    version = java_version(java)
    if version is None:
        raise EngineError(_ADVICE.format(f", and '{java} -version' does not answer"))
    if version < LEAST_JAVA:
        raise EngineError(_ADVICE.format(f", and '{java}' is Java {version}"))


def find_java() -> str | None:
    """Give the Java that Spark would start: that of JAVA_HOME, or the first on the PATH."""
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home, "bin", "java")
        return str(java) if java.exists() else None
    return shutil.which("java")


def java_version(java: str) -> int | None:
    """Give the major version of a Java; None if it does not say."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(match[1]) if match else None
