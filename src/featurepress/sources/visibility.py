"""Check that a worker can read the same sources as the driver.

A worker of a cluster may lack a mount or a permission. A folder that is not mounted is often an empty folder, from
which every image seems to have vanished. So the driver names one image of each source that it can read, and a
worker that cannot read these images stops before it turns images into failures.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from featurepress.errors import EngineError, FeaturepressError
from featurepress.settings import ImageSettings
from featurepress.sources.registry import open_source
from featurepress.specs import ImageRef, SourceSpec

MAX_CHECKS = 64  # if there are more references, these are evenly spread
_CONCURRENT_CHECKS = 16


def visible(sources: Sequence[SourceSpec], limits: ImageSettings, refs: Sequence[ImageRef]) -> tuple[ImageRef, ...]:
    """Return the references that this process can read."""
    return tuple(ref for ref, problem in _problems(sources, limits, refs) if problem is None)


def require_visible(sources: Sequence[SourceSpec], limits: ImageSettings, refs: Sequence[ImageRef]) -> None:
    """Raise EngineError, with this host and the source, if this process cannot read what the driver can read."""
    for ref, problem in _problems(sources, limits, refs):
        if problem is not None:
            raise EngineError(
                f"The worker {socket.gethostname()} cannot see '{sources[ref.source]}': {problem.rstrip('.')} "
                f"('{ref.uri}'; the driver can read it). Use a bucket that workers may read, or a folder that is "
                "mounted at the same path on every machine, and run the same command again."
            )


def _problems(
    sources: Sequence[SourceSpec], limits: ImageSettings, refs: Sequence[ImageRef]
) -> Iterator[tuple[ImageRef, str | None]]:
    """Yield references with their problem, None if they can be read."""

    def problem_of(ref: ImageRef) -> str | None:
        try:
            return open_source(sources[ref.source], limits).stat(ref).problem
        except FeaturepressError as error:
            return str(error)

    refs = refs[:: -(-len(refs) // MAX_CHECKS) or 1]
    with ThreadPoolExecutor(_CONCURRENT_CHECKS, thread_name_prefix="featurepress-stat") as pool:
        yield from zip(refs, pool.map(problem_of, refs), strict=True)
