"""Keys that obstore cannot address: empty parts, ``.``, ``..``, control characters, a slash at either end.

On S3, botocore lists and reads them. It is much slower, so it is used only after such a key has been found. On
other stores, the folders around them are listed one by one.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import obstore
from obstore.store import ObjectStore

from featurepress.errors import StorageError
from featurepress.storage.bucket import list_objects
from featurepress.storage.connection import (
    Refusal,
    etag_of,
    retrying,
    s3_endpoint,
    s3_region,
    s3_session,
    store_errors,
)

_AWKWARD = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|$)|[\x00-\x1f\x7f]")
_REASON = "it contains a key that this store's library cannot address"


class Object(NamedTuple):
    """An object of a listing; with a problem, a folder that cannot be listed to its end."""

    key: str
    size: int
    etag: str
    problem: str | None = None


class OutOfOrderError(ValueError):
    """Obstore has shortened a key: the names in its listing are wrong."""


def is_awkward(key: str) -> bool:
    """Whether a key has a part that is empty, ``.`` or ``..``, or contains a control character."""
    return bool(key) and _AWKWARD.search(key) is not None


def is_awkward_error(error: BaseException) -> bool:
    """Whether an error of a listing means that obstore cannot address a key."""
    return isinstance(error, OutOfOrderError) or Refusal.of(error).kind == "path"


def list_fast(store: ObjectStore, prefix: str, start: str = "") -> Iterator[Object]:
    """Yield the objects below a prefix and after a key, in byte order, as obstore lists them.

    Obstore removes slashes from the ends of keys. An empty object that would be in order with a slash is the marker
    of a folder, and gets the slash back; for other keys, OutOfOrderError is raised.
    """
    last = start
    for listed in list_objects(store, prefix, start):
        found = Object(listed["path"], listed["size"], etag_of(listed))
        if found.key == prefix or (found.size == 0 and found.key <= last):
            found = found._replace(key=f"{found.key}/")
        if found.key <= last:
            raise OutOfOrderError
        last = found.key
        yield found


# -- any store: folder by folder -----------------------------------------------------------------------------


def list_folder(store: ObjectStore, prefix: str, last: str, is_wanted: Callable[[str], bool]) -> Iterator[Object]:
    """Yield the objects below a prefix and after the key `last`, in byte order.

    The prefix consists of whole parts, without the last slash. A folder that cannot be listed is yielded as an
    object with a problem, if it may contain images of the source (`is_wanted`).
    """
    try:
        is_begun = not prefix or last.startswith(f"{prefix}/")
        for found in list_fast(store, prefix, last if is_begun else ""):
            yield found
            last = found.key
    except store_errors() as error:
        if not is_awkward_error(error):
            raise
        yield from list_level(store, prefix, last, is_wanted)


def list_level(store: ObjectStore, prefix: str, last: str, is_wanted: Callable[[str], bool]) -> Iterator[Object]:
    """Do the same where `list_fast` fails: list the objects of the folder itself, then each folder in it."""
    folder = f"{prefix}/" if prefix else ""
    try:
        level: Any = retrying(lambda: obstore.list_with_delimiter(store, prefix or None))
    except store_errors() as error:
        if Refusal.of(error).kind != "path":
            raise
        if is_wanted(folder):
            yield from _unlisted(folder, last, error)
        return
    objects = [
        Object(listed["path"] + "/" * (listed["path"] == prefix), listed["size"], etag_of(listed))
        for listed in level["objects"]
    ]
    folders = [Object(f"{path}/", -1, "") for path in level["common_prefixes"]]
    for found in sorted(objects + folders):
        if found.size >= 0:
            if found.key > last:
                yield found
        elif found.key == "/":  # obstore cannot list what is below it
            if found.key > last and is_wanted("/"):
                yield Object("/", 0, "", f"cannot list the folder: {_REASON}")
        elif found.key > last or last.startswith(found.key):
            yield from list_folder(store, found.key[:-1], last, is_wanted)


def _unlisted(folder: str, last: str, error: BaseException) -> Iterator[Object]:
    """Yield an object with a problem for a folder that cannot be listed, or not after `last`."""
    if folder > last or not last:
        yield Object(folder, 0, "", f"cannot list the folder: {_REASON}")
    elif folder != last:
        match = re.search(r'[Pp]ath "((?:[^"\\]|\\.)+)"', str(error))
        key = match[1] if match else ""
        if key > last:
            yield Object(key, 0, "", f"cannot list the folder to its end: from here on {_REASON}")
        elif key != last:
            raise StorageError(
                f"The folder '{folder}' cannot be listed to its end: {_REASON}. Some of its images are in the "
                "listing already. Rename that key, and resume."
            )


# -- S3: with botocore ---------------------------------------------------------------------------------------


def list_all(bucket: str, prefix: str, start_after: str, *, anonymous: bool) -> Iterator[Object]:
    """Yield the objects of an S3 bucket with any keys, in byte order."""
    pages = _client(anonymous, s3_endpoint(), s3_region()).get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=start_after):
        for listed in page.get("Contents", ()):
            yield Object(listed["Key"], listed["Size"], listed["ETag"])


def has_leading_slash(bucket: str, *, anonymous: bool) -> bool:
    """Whether an S3 bucket has keys that begin with a slash; obstore lists them without it."""
    client = _client(anonymous, s3_endpoint(), s3_region())
    return bool(client.list_objects_v2(Bucket=bucket, Prefix="/", MaxKeys=1).get("KeyCount"))


def get(bucket: str, key: str, *, anonymous: bool, max_bytes: int, **options: str) -> tuple[int, bytes]:
    """Return the size of an S3 object with any key, and its bytes unless there are more than `max_bytes`.

    `options` are those of botocore: ``IfMatch``, ``Range``.
    """
    client = _client(anonymous, s3_endpoint(), s3_region())
    found = client.get_object(Bucket=bucket, Key=key, **options)
    with contextlib.closing(found["Body"]) as body:
        return found["ContentLength"], b"" if found["ContentLength"] > max_bytes else body.read()


def head(bucket: str, key: str, *, anonymous: bool) -> Object:
    """Return the size and etag of an S3 object with any key."""
    found = _client(anonymous, s3_endpoint(), s3_region()).head_object(Bucket=bucket, Key=key)
    return Object(key, found["ContentLength"], found["ETag"])


@functools.lru_cache(maxsize=8)
def _client(anonymous: bool, endpoint: str, region: str) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        signature_version=UNSIGNED if anonymous else None,
        connect_timeout=5,
        read_timeout=20,
        retries={"total_max_attempts": 3, "mode": "standard"},
        s3={"addressing_style": "path"} if endpoint else {},
    )
    return s3_session().create_client("s3", region_name=region, endpoint_url=endpoint or None, config=config)
