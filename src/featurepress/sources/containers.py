"""The files behind archives, tables and lists: found and opened by the sources of folders and buckets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO, Protocol, cast

from featurepress.settings import ImageSettings
from featurepress.sources.base import Source
from featurepress.sources.registry import open_source
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import scheme_of


class Files(Source, Protocol):
    """A source whose objects are not read whole."""

    def open(self, ref: ImageRef) -> BinaryIO:
        """Open an object for reading at any position; whoever asks closes it.

        Raises ImageError with stage ``read`` if it is gone, unreadable, or changed since it was listed, and
        StorageError if the whole source is away.
        """


def files_behind(spec: SourceSpec, limits: ImageSettings) -> Files:
    """Return the source of the files that a description names: one, or those that a glob matches, in byte order."""
    kind = "objects" if scheme_of(spec.location) else "folder"
    options = {name: spec.options[name] for name in ("anonymous",) if name in spec.options}
    return cast(Files, open_source(replace(spec, kind=kind, options={**options, "all_files": True}), limits))


def in_order(files: Files) -> Iterator[ImageRef]:
    """Yield the files so that the keys of what is in them, ``file#…``, are in byte order.

    A listing has ``a.tar`` before ``a.tar!.tar``; their members come the other way round.
    """
    yield from sorted(files.list(), key=lambda ref: ref.order + b"#")
