"""List images and read their bytes."""

from featurepress.sources.base import Source
from featurepress.sources.describe import Locations, describe
from featurepress.sources.kinds import KINDS, open_source
from featurepress.sources.listing import Listing, field_names
from featurepress.sources.sight import require_sight, visible

__all__ = [
    "KINDS",
    "Listing",
    "Locations",
    "Source",
    "describe",
    "field_names",
    "open_source",
    "require_sight",
    "visible",
]
