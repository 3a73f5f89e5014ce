"""The kinds of sources: a closed table from the name in a description to the class."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from featurepress.records import SourceSpec
from featurepress.settings import ImageSettings
from featurepress.sources.base import Source

# Closed: a plan read from disk cannot name other code.
KINDS = {
    "folder": "featurepress.sources.folder:FolderSource",
    "objects": "featurepress.sources.objects:ObjectSource",
    "archive": "featurepress.sources.archive:ArchiveSource",
    "table": "featurepress.sources.table:TableSource",
    "uris": "featurepress.sources.uris:UriSource",
    "delayed": "featurepress.testing:DelayedSource",
    "memory": "featurepress.testing:MemorySource",
}


def open_source(spec: SourceSpec, limits: ImageSettings | None = None) -> Source:
    """Give the live source of a description; `limits` are what one image may cost."""
    module, _, name = KINDS[spec.kind].partition(":")
    return cast(Source, getattr(import_module(module), name)(spec, limits or ImageSettings()))
