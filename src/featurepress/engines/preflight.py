"""Checks before a cluster is used, because its library may wait for minutes: its address, and Java for Spark."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from featurepress.errors import EngineError

ANSWER_SECONDS = 10.0
MIN_JAVA_VERSION = 17


def require_answer(address: str, *, seconds: float = ANSWER_SECONDS) -> None:
    """Raise EngineError unless one of the hosts in an address accepts a connection within `seconds`.

    An address is ``spark://host:7077,other:7077``, ``sc://host:15002/;…`` or ``host:6379``. One without host and
    port, such as ``local[2]``, ``yarn`` or ``auto``, is not checked.
    """
    reasons = []
    for host, port in hosts_in(address):
        try:
            socket.create_connection((host, int(port)), timeout=seconds).close()
            return
        except OSError as error:
            reasons.append(f"{host}:{port}: {error.strerror or error}")
    if reasons:
        raise EngineError(
            f"The cluster at '{address}' does not answer ({'; '.join(reasons)}). Check the address, and that "
            "the cluster runs."
        )


def hosts_in(address: str) -> list[tuple[str, str]]:
    """Return the hosts and ports in an address; none if only the library understands it."""
    match = re.match(r"(?:(?:spark|sc|ray)://)?([^/;\[\]]+)", address)
    return re.findall(r"([\w.-]+):(\d+)", match[1]) if match and not address.startswith(("local", "k8s")) else []


def require_java() -> None:
    """Raise EngineError unless Spark would find a Java version that it supports."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home, "bin")) if home else None)
    version = java and _java_version(java)
    if not java:
        reason = "no Java was found"
    elif not version:
        reason = f"'{java} -version' prints no version"
    elif version < MIN_JAVA_VERSION:
        reason = f"'{java}' is Java {version}"
    else:
        return
    raise EngineError(
        f"Spark needs Java {MIN_JAVA_VERSION} or later, and {reason}. Install it (Debian and Ubuntu: sudo apt "
        f"install openjdk-{MIN_JAVA_VERSION}-jre-headless; macOS: brew install openjdk@{MIN_JAVA_VERSION}), or set "
        "JAVA_HOME to its folder."
    )


def _java_version(java: str) -> int:
    """Return the major version of a Java executable; 0 if it prints none."""
    try:
        output = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(match[1]) if match else 0
