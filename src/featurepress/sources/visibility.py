"""Whether this process sees the same sources as another one: the workers of a cluster may lack a mount or a right.

A folder that is not mounted often is an empty one, in which every image seems to have vanished. So the driver
names an image of each source that it sees itself; a worker that does not see these is in the wrong place, and says
so before it turns pictures into failures.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from featurepress.errors import EngineError, FeaturepressError
from featurepress.settings import ImageSettings
from featurepress.sources.registry import open_source
from featurepress.specs import ImageRef, SourceSpec

MOST_LOOKS = 64  # of many sources that many are tried, one as far from the next as the other
_LOOKS_AT_ONCE = 16


def visible(sources: Sequence[SourceSpec], limits: ImageSettings, refs: Sequence[ImageRef]) -> tuple[ImageRef, ...]:
    """Give those of some references that this process sees."""
    return tuple(ref for ref, problem in _looks(sources, limits, refs) if problem is None)


def require_visible(sources: Sequence[SourceSpec], limits: ImageSettings, refs: Sequence[ImageRef]) -> None:
    """Raise EngineError, with the name of this host, unless it sees some references that the driver sees."""
    for ref, problem in _looks(sources, limits, refs):
        if problem is not None:
            raise EngineError(
                f"The worker {socket.gethostname()} cannot see '{sources[ref.source]}': {problem.rstrip('.')} "
                f"('{ref.uri}'; the driver sees it). Give a bucket that workers may read, or a folder that is "
                "mounted at the same path on every machine, and run the same command again."
            )


def _looks(
    sources: Sequence[SourceSpec], limits: ImageSettings, refs: Sequence[ImageRef]
) -> Iterator[tuple[ImageRef, str | None]]:
    """Yield references with what is wrong with them."""

    def look(ref: ImageRef) -> str | None:
        try:
            return open_source(sources[ref.source], limits).look(ref).problem
        except FeaturepressError as error:
            return str(error)

    refs = refs[:: -(-len(refs) // MOST_LOOKS) or 1]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE, thread_name_prefix="featurepress-look") as pool:
        yield from zip(refs, pool.map(look, refs), strict=True)
