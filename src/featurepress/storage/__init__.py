"""Folders and buckets behind one small contract: list, read, write whole, create only if absent."""

from __future__ import annotations

from pathlib import Path

from featurepress.errors import DestinationError
from featurepress.storage.base import (
    Data,
    Entry,
    Storage,
    map_concurrently,
    pieces,
    reporting_damage,
    run_concurrently,
)
from featurepress.storage.connection import SCHEMES, Address, scheme_of
from featurepress.storage.folder import FolderStorage


def open_storage(location: str) -> Storage:
    """Return the storage at `location`, a path or a bucket's url. Nothing is created or touched.

    Raises
    ------
    DestinationError
        The location cannot be a folder's path, nor a place in a bucket.
    """
    if scheme := scheme_of(location):
        if scheme not in SCHEMES:
            raise DestinationError(
                f"The scheme '{scheme}' of '{location}' holds no feature sets. "
                f"Give a path, or a url that begins with {', '.join(f'{name}://' for name in SCHEMES)}."
            )
        from featurepress.storage.bucket import BucketStorage

        return BucketStorage(str(Address.parse(location, DestinationError)).rstrip("/"))
    if not location or "\0" in location:
        raise DestinationError(f"A feature set lies in a folder or a bucket. Got {location!r}; give 'features/'.")
    return FolderStorage(str(Path(location).expanduser().absolute()))


def is_below(place: str, folder: str) -> bool:
    """Whether a place, spelled in full, lies below a folder or a bucket's prefix."""
    return place.startswith(f"{folder.rstrip('/')}/")


__all__ = [
    "Data",
    "Entry",
    "FolderStorage",
    "Storage",
    "is_below",
    "map_concurrently",
    "open_storage",
    "pieces",
    "reporting_damage",
    "run_concurrently",
]
