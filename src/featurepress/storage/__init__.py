"""Folders and buckets behind one protocol: list, read, write whole, create only if absent."""

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
    """Return the storage at `location`, a path or a bucket's url, without accessing it.

    Raises
    ------
    DestinationError
        The location is neither a path nor the url of a bucket.
    """
    if scheme := scheme_of(location):
        if scheme not in SCHEMES:
            raise DestinationError(
                f"The scheme '{scheme}' of '{location}' is not supported here. "
                f"Use a path, or a url that begins with {', '.join(f'{name}://' for name in SCHEMES)}."
            )
        from featurepress.storage.bucket import BucketStorage

        return BucketStorage(str(Address.parse(location, DestinationError)).rstrip("/"))
    if not location or "\0" in location:
        raise DestinationError(
            f"The location must be a folder or a url of a bucket, such as 'features/'. Got {location!r}."
        )
    return FolderStorage(str(Path(location).expanduser().absolute()))


def is_below(location: str, folder: str) -> bool:
    """Whether a complete path or url is below a folder or a bucket's prefix."""
    return location.startswith(f"{folder.rstrip('/')}/")


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
