"""Recognise the errors that a lack of memory causes."""

from __future__ import annotations

import re
import socket

from featurepress.errors import EngineError, FeaturepressError

# Messages of C++, glibc, the kernel and Python; then those of YARN, Kubernetes and Ray about a killed process.
_MESSAGES = re.compile(
    r"bad_alloc|Cannot allocate memory|failed to map segment|can't start new thread|exceeding .*memory limits|"
    r"exit code 137|OOMKilled|OutOfMemory"
)


def short_of_memory(error: BaseException, advice: str, *, where: str = "") -> EngineError | None:
    """Return the error to raise in place of one that a lack of memory has caused; None for other errors.

    `advice` says what the user can do, such as "lower --workers"; `where` is the host, by default this machine.
    """
    if isinstance(error, FeaturepressError):
        return None
    reason = next((line.strip() for line in str(error).splitlines() if _MESSAGES.search(line)), "")
    if not reason and not isinstance(error, MemoryError):
        return None
    reason = (reason or type(error).__name__)[:300].rstrip(".")
    return EngineError(
        f"A worker on {where or socket.gethostname()} ran out of memory ({reason}): {advice}, and run the same "
        "command again."
    )
