"""Keys that the fast library cannot spell: empty parts, ``.``, ``..``, control characters, a leading slash.

Amazon's own library lists and reads them. It takes much longer for a page, so it is asked only where such a key has
turned up.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from featurepress.storage.connection import s3_endpoint, s3_session

_UNSPEAKABLE = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|$)|[\x00-\x1f\x7f]")


def is_unspeakable(key: str) -> bool:
    """Whether a key has a part that is empty, ``.`` or ``..``, or holds a control character."""
    return _UNSPEAKABLE.search(key) is not None


def list_all(bucket: str, prefix: str, start_after: str, *, anonymous: bool) -> Iterator[tuple[str, int, str]]:
    """Yield key, size and etag of the objects of an S3 bucket, whatever they are called, in byte order."""
    pages = _client(anonymous, s3_endpoint()).get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=start_after):
        for one in page.get("Contents", ()):
            yield one["Key"], one["Size"], one["ETag"]


def has_leading_slash(bucket: str, *, anonymous: bool) -> bool:
    """Whether an S3 bucket holds keys that begin with a slash; the fast library lists them without it."""
    found = _client(anonymous, s3_endpoint()).list_objects_v2(Bucket=bucket, Prefix="/", MaxKeys=1)
    return bool(found.get("KeyCount"))


def get(bucket: str, key: str, *, etag: str, anonymous: bool) -> bytes:
    """Get an object of an S3 bucket, whatever it is called, if it still has the etag."""
    condition = {"IfMatch": etag} if etag else {}
    data: bytes = _client(anonymous, s3_endpoint()).get_object(Bucket=bucket, Key=key, **condition)["Body"].read()
    return data


def head(bucket: str, key: str, *, anonymous: bool) -> tuple[int, str]:
    """Ask for size and etag of such an object."""
    found = _client(anonymous, s3_endpoint()).head_object(Bucket=bucket, Key=key)
    return found["ContentLength"], found["ETag"]


@functools.lru_cache(maxsize=8)
def _client(anonymous: bool, endpoint: str) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    session = s3_session()
    config = Config(
        signature_version=UNSIGNED if anonymous else None,
        retries={"total_max_attempts": 6, "mode": "standard"},
        s3={"addressing_style": "path"} if endpoint else {},
    )
    return session.create_client("s3", endpoint_url=endpoint or None, config=config)
