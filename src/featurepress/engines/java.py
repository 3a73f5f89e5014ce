"""Check that Java is installed for Spark."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from featurepress.errors import EngineError

MIN_JAVA_VERSION = 17

_ADVICE = (
    f"Spark needs Java {MIN_JAVA_VERSION} or later{{}}. Install it (Debian and Ubuntu: sudo apt install "
    f"openjdk-{MIN_JAVA_VERSION}-jre-headless; macOS: brew install openjdk@{MIN_JAVA_VERSION}), or set "
    "JAVA_HOME to its folder."
)


def require_java() -> None:
    """Raise EngineError unless Spark would find a Java version that it supports."""
    java = find_java()
    if java is None:
        raise EngineError(_ADVICE.format(", and no Java was found"))
    version = java_version(java)
    if version is None:
        raise EngineError(_ADVICE.format(f", and '{java} -version' prints no version"))
    if version < MIN_JAVA_VERSION:
        raise EngineError(_ADVICE.format(f", and '{java}' is Java {version}"))


def find_java() -> str | None:
    """Return the Java that Spark would start: that of JAVA_HOME, or the first on the PATH."""
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home, "bin", "java")
        return str(java) if java.exists() else None
    return shutil.which("java")


def java_version(java: str) -> int | None:
    """Return the major version of a Java executable; None if it prints none."""
    try:
        output = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(match[1]) if match else None
