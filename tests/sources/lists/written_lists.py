"""Write lists for tests, and list them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurepress.errors import SourceError
from featurepress.settings import ImageSettings
from featurepress.sources.lists.uris import UriSource
from featurepress.specs import SourceSpec


def source(
    base: Path, location: str = "list.txt", *, limits: ImageSettings | None = None, **options: Any
) -> UriSource:
    one = UriSource(SourceSpec("uris", location, str(base), options), limits)
    one.locations.readers = dict.fromkeys(("http", "https", "s3", "gs", "az"), str.encode)
    return one


def write(base: Path, text: str | bytes, name: str = "list.txt") -> None:
    path = base / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def uris(base: Path, location: str = "list.txt", **options: Any) -> list[str]:
    return [ref.uri for ref in source(base, location, **options).list()]


def refusal(base: Path, location: str = "list.txt", **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        next(iter(source(base, location, **options).list()), None)
    return str(caught.value)
