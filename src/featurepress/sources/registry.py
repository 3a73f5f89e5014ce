"""The kinds of sources: a closed table from the name in a description to the class."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from featurepress.settings import ImageSettings
from featurepress.sources.base import Source
from featurepress.specs import SourceSpec

# Closed: a plan read from disk cannot name other code.
KINDS = {
    "folder": "featurepress.sources.files.folder:FolderSource",
    "objects": "featurepress.sources.files.objects:ObjectSource",
    "archive": "featurepress.sources.archives.archive:ArchiveSource",
    "table": "featurepress.sources.tables.table:TableSource",
    "uris": "featurepress.sources.lists.uris:UriSource",
    "delayed": "featurepress.testing:DelayedSource",
    "memory": "featurepress.testing:MemorySource",
}


def open_source(spec: SourceSpec, limits: ImageSettings | None = None) -> Source:
    """Return the live source of a description; `limits` apply to each image."""
    module, _, name = KINDS[spec.kind].partition(":")
    return cast(Source, getattr(import_module(module), name)(spec, limits or ImageSettings()))
