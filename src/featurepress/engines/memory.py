"""How a lack of memory shows, and what people are told of it."""

from __future__ import annotations

import re
import socket

from featurepress.errors import EngineError, FeaturepressError

# Of Python, of glibc's loader, of C++, of the kernel; of YARN, Kubernetes and Ray about what they have killed.
_SIGNS = re.compile(
    r"bad_alloc|Cannot allocate memory|failed to map segment|can't start new thread|exceeding .*memory limits|"
    r"exit code 137|OOMKilled|OutOfMemory"
)


def short_of_memory(error: BaseException, advice: str, *, where: str = "") -> EngineError | None:
    """Give what to raise in place of an error that a lack of memory has caused; None for any other.

    Parameters
    ----------
    error : BaseException
        What a worker, or whoever watches it, has raised.
    advice : str
        What to do, as "give --memory".
    where : str
        The host; by default this one.
    """
    if isinstance(error, FeaturepressError):
        return None
    reason = next((line.strip() for line in str(error).splitlines() if _SIGNS.search(line)), "")
    if not reason and not isinstance(error, MemoryError):
        return None
    reason = (reason or type(error).__name__)[:300].rstrip(".")
    return EngineError(
        f"A worker on {where or socket.gethostname()} ran out of memory ({reason}): {advice}, and run the same "
        "command again."
    )
