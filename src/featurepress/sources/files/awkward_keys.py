"""Keys that the fast library cannot spell: empty parts, ``.``, ``..``, control characters, a slash at either end.

Amazon's own library lists and reads them. It takes much longer for a page, so it is asked only where such a key has
turned up. On other stores the folders around them are listed one by one.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

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

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_AWKWARD = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|$)|[\x00-\x1f\x7f]")
_REASON = "it holds a key that this store's library cannot spell"


class Object(NamedTuple):
    """An object of a listing; with a problem, a folder that cannot be listed, or not to its end."""

    key: str
    size: int
    etag: str
    problem: str | None = None


class OutOfOrderError(ValueError):
    """The fast library has shortened a key: what it lists is not what there is."""


def is_awkward(key: str) -> bool:
    """Whether a key has a part that is empty, ``.`` or ``..``, or holds a control character."""
    return bool(key) and _AWKWARD.search(key) is not None


def must_be_listed_otherwise(error: BaseException) -> bool:
    """Whether the fast library has met a key that it cannot spell."""
    return isinstance(error, OutOfOrderError) or Refusal.of(error).kind == "path"


def list_fast(store: ObjectStore, prefix: str, start: str = "") -> Iterator[Object]:
    """Yield the objects below a prefix, after a key, in byte order; the library takes slashes off their ends.

    Raises OutOfOrderError where it has: but what is empty, and would be in order with its slash, is the marker of a
    folder, and gets it back.
    """
    last = start
    for one in list_objects(store, prefix, start):
        found = Object(one["path"], one["size"], etag_of(one))
        if found.key == prefix or (found.size == 0 and found.key <= last):
            found = found._replace(key=f"{found.key}/")
        if found.key <= last:
            raise OutOfOrderError
        last = found.key
        yield found


# -- any store: folder by folder -----------------------------------------------------------------------------


def list_folder(store: ObjectStore, prefix: str, last: str, wanted: Callable[[str], bool]) -> Iterator[Object]:
    """Yield the objects below a prefix, after the key `last`, in byte order; folders that cannot be listed too.

    Parameters
    ----------
    store : ObjectStore
        The bucket.
    prefix : str
        Whole parts of keys, without the last slash; "" for all.
    last : str
        Only what comes after this key.
    wanted : callable
        Says of a folder, spelled with its slash, whether anybody would miss it.
    """
    try:
        is_begun = not prefix or last.startswith(f"{prefix}/")
        for found in list_fast(store, prefix, last if is_begun else ""):
            yield found
            last = found.key
    except store_errors() as error:
        if not must_be_listed_otherwise(error):
            raise
        yield from list_level(store, prefix, last, wanted)


def list_level(store: ObjectStore, prefix: str, last: str, wanted: Callable[[str], bool]) -> Iterator[Object]:
    """Do the same where the fast library cannot: what lies in the folder itself, and each folder in it."""
    import obstore

    folder = f"{prefix}/" if prefix else ""
    try:
        level: Any = retrying(lambda: obstore.list_with_delimiter(store, prefix or None))
    except store_errors() as error:
        if Refusal.of(error).kind != "path":
            raise
        if wanted(folder):
            yield from _unlisted(folder, last, error)
        return
    found = [
        Object(one["path"] + "/" * (one["path"] == prefix), one["size"], etag_of(one)) for one in level["objects"]
    ]
    inner = [Object(f"{one}/", -1, "") for one in level["common_prefixes"]]
    for one in sorted(found + inner):
        if one.size >= 0:
            if one.key > last:
                yield one
        elif one.key == "/":  # the library cannot ask for what is below it
            if one.key > last and wanted("/"):
                yield Object("/", 0, "", f"cannot list the folder: {_REASON}")
        elif one.key > last or last.startswith(one.key):
            yield from list_folder(store, one.key[:-1], last, wanted)


def _unlisted(folder: str, last: str, error: BaseException) -> Iterator[Object]:
    """Yield what stands for a folder that cannot be listed, or not beyond `last`, in its place in the order."""
    if folder > last or not last:
        yield Object(folder, 0, "", f"cannot list the folder: {_REASON}")
    elif folder != last:
        match = re.search(r'[Pp]ath "((?:[^"\\]|\\.)+)"', str(error))
        key = match[1] if match else ""
        if key > last:
            yield Object(key, 0, "", "cannot list the folder to its end: from here on " + _REASON)
        elif key != last:
            raise StorageError(
                f"The folder '{folder}' cannot be listed to its end: {_REASON}. Some of its images are in the "
                "listing already; rename that key, and resume."
            )


# -- S3: by Amazon's own library -----------------------------------------------------------------------------


def list_all(bucket: str, prefix: str, start_after: str, *, anonymous: bool) -> Iterator[Object]:
    """Yield the objects of an S3 bucket, whatever they are called, in byte order."""
    pages = _client(anonymous, s3_endpoint(), s3_region()).get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=prefix, StartAfter=start_after):
        for one in page.get("Contents", ()):
            yield Object(one["Key"], one["Size"], one["ETag"])


def has_leading_slash(bucket: str, *, anonymous: bool) -> bool:
    """Whether an S3 bucket holds keys that begin with a slash; the fast library lists them without it."""
    client = _client(anonymous, s3_endpoint(), s3_region())
    return bool(client.list_objects_v2(Bucket=bucket, Prefix="/", MaxKeys=1).get("KeyCount"))


def get(bucket: str, key: str, *, anonymous: bool, max_bytes: int, **options: str) -> tuple[int, bytes]:
    """Get an object of an S3 bucket, whatever it is called: its size, and its bytes unless they are too many.

    Parameters
    ----------
    bucket, key : str
        Where it is.
    anonymous : bool
        Sign nothing.
    max_bytes : int
        Above that, none is read.
    **options
        As botocore calls them: ``IfMatch``, ``Range``.
    """
    client = _client(anonymous, s3_endpoint(), s3_region())
    found = client.get_object(Bucket=bucket, Key=key, **options)
    with contextlib.closing(found["Body"]) as body:
        return found["ContentLength"], b"" if found["ContentLength"] > max_bytes else body.read()


def head(bucket: str, key: str, *, anonymous: bool) -> Object:
    """Ask for size and etag of such an object."""
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
