"""Listings of what the user wrote."""

from __future__ import annotations

from typing import Any

from featurepress.settings import ListingSettings
from featurepress.sources import Listing, describe


def listing(*locations: Any, settings: ListingSettings | None = None, **options: Any) -> Listing:
    all_files, destination = options.pop("all_files", False), options.pop("destination", "")
    specs = describe(list(locations), ListingSettings(all_files=all_files), destination=destination)
    return Listing(specs, settings or ListingSettings(), **options)


def uris(*locations: Any, **options: Any) -> list[str]:
    return [ref.uri for ref in listing(*locations, **options)]
