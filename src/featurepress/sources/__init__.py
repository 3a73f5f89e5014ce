"""List images and read their bytes."""

from featurepress.sources.base import Source
from featurepress.sources.describe import Locations, describe
from featurepress.sources.listing import Listing, field_names
from featurepress.sources.registry import KINDS, open_source
from featurepress.sources.visibility import require_visible, visible

__all__ = [
    "KINDS",
    "Listing",
    "Locations",
    "Source",
    "describe",
    "field_names",
    "open_source",
    "require_visible",
    "visible",
]
