"""Whether there is somebody at a cluster's address, before its own library waits for minutes."""

from __future__ import annotations

import re
import socket

from featurepress.errors import EngineError

ANSWER_SECONDS = 10.0


def require_answer(address: str, *, seconds: float = ANSWER_SECONDS) -> None:
    """Raise EngineError unless one of the hosts in an address takes a connection.

    Parameters
    ----------
    address : str
        ``spark://host:7077,other:7077``, ``sc://host:15002/;…``, ``host:6379``. Addresses that name no host and
        port, such as ``local[2]``, ``yarn`` or ``auto``, are left to the library.
    seconds : float
        How long each is waited for.
    """
    reasons = []
    for host, port in locations_in(address):
        try:
            socket.create_connection((host, int(port)), timeout=seconds).close()
            return
        except OSError as error:
            reasons.append(f"{host}:{port}: {error.strerror or error}")
    if reasons:
        raise EngineError(
            f"The cluster at '{address}' does not answer ({'; '.join(reasons)}). Check the address, and that it "
            "runs."
        )


def locations_in(address: str) -> list[tuple[str, str]]:
    """Give the hosts and ports that an address names; none for what is left to the library."""
    match = re.match(r"(?:(?:spark|sc|ray)://)?([^/;\[\]]+)", address)
    return re.findall(r"([\w.-]+):(\d+)", match[1]) if match and not address.startswith(("local", "k8s")) else []
