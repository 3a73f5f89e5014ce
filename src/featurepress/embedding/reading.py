"""Read the bytes of images before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from featurepress.errors import ImageError
from featurepress.ledger import Plan
from featurepress.settings import Settings
from featurepress.sources import open_source, require_visible
from featurepress.sources.base import Source, read_ahead
from featurepress.specs import ImageRef, SourceSpec


def read_images(
    specs: Sequence[SourceSpec], settings: Settings, refs: Iterable[ImageRef]
) -> Iterator[tuple[ImageRef, bytes | ImageError]]:
    """Yield each reference with its bytes, or with the error, in order; several are read at the same time.

    Images that the listing found unreadable, or too large, are not read.
    """
    sources: list[Source] = [open_source(spec, settings.images) for spec in specs]
    max_bytes = settings.images.max_bytes

    def read(ref: ImageRef) -> bytes:
        if ref.problem is not None:
            raise ImageError("list", ref.problem)
        if ref.size > max_bytes:
            raise ImageError("read", f"too many bytes: {ref.size}, above the limit of {max_bytes} (--max-bytes)")
        return sources[ref.source].read(ref)

    memory, readings = settings.resources.memory_bytes, [source.reading for source in sources]
    ahead_bytes = max(reading.ahead_bytes for reading in readings)
    return read_ahead(
        read,
        refs,
        threads=max(reading.in_flight for reading in readings),
        ahead_bytes=ahead_bytes if memory is None else max(1024**2, min(ahead_bytes, memory // 32)),
        timeout_seconds=settings.images.timeout_seconds,
        group_size=min(reading.group for reading in readings),
    )


def content_of(data: bytes | ImageError) -> bytes:
    """Return the bytes that were read, or raise the error."""
    if isinstance(data, ImageError):
        raise data
    return data


def require_visible_sources(plan: Plan) -> None:
    """Check that this process sees the same sources as the driver, once per run and process."""
    if plan.seen and plan.run_id not in _CHECKED_RUNS:
        require_visible(plan.sources, plan.settings.images, plan.seen)
        _CHECKED_RUNS.add(plan.run_id)


_CHECKED_RUNS: set[str] = set()
