"""Listings of what the user wrote, and failures to read."""

from __future__ import annotations

from typing import Any

import pytest

from featurepress.errors import ImageError
from featurepress.settings import ListingSettings
from featurepress.sources import Listing, Source, describe
from featurepress.specs import ImageRef


def listing(*locations: Any, settings: ListingSettings | None = None, **options: Any) -> Listing:
    all_files, destination = options.pop("all_files", False), options.pop("destination", "")
    specs = describe(list(locations), ListingSettings(all_files=all_files), destination=destination)
    return Listing(specs, settings or ListingSettings(), **options)


def uris(*locations: Any, **options: Any) -> list[str]:
    return [ref.uri for ref in listing(*locations, **options)]


def failure(source: Source, ref: ImageRef) -> str:
    """Return the reason why an image cannot be read."""
    with pytest.raises(ImageError) as caught:
        source.read(ref)
    assert caught.value.stage == "read"
    return caught.value.reason
