"""Check that a cluster answers at its address: its own library may wait for minutes."""

from __future__ import annotations

import re
import socket

from featurepress.errors import EngineError

ANSWER_SECONDS = 10.0


def require_answer(address: str, *, seconds: float = ANSWER_SECONDS) -> None:
    """Raise EngineError unless one of the hosts in an address accepts a connection.

    Parameters
    ----------
    address : str
        ``spark://host:7077,other:7077``, ``sc://host:15002/;…``, ``host:6379``. An address without
        host and port, such as ``local[2]``, ``yarn`` or ``auto``, is not checked.
    seconds : float
        Timeout for each host.
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
