"""Images in the buckets of object stores."""

from __future__ import annotations

import collections
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.records import ImageRef, SourceSpec
from featurepress.settings import ImageSettings
from featurepress.sources import unspeakable
from featurepress.sources.base import BY_REQUEST, KeyFilter, glob_regex
from featurepress.sources.folder import glob_root, has_magic
from featurepress.storage.bucket import Ranges, list_objects
from featurepress.storage.connection import Address, Refusal, connect, etag_of, refused, retrying, store_errors

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# A request may take a third of what a read may, so that one that hangs is made again before the read is given up.
_REQUESTS_A_READ = 3
_SLOW_BYTES = 8 * 1024**2  # objects above that get all the time there is
# The first keys of what lies in a feature set, whatever it is called.
_OF_A_FEATURE_SET = re.compile(
    r"(.*?)/?(?:manifest\.json|plan/(?:g\d+/)?(?:plan|listing)\.json|plan/(?:g\d+/)?chunk-\d{8}\.parquet|"
    r"(?:features|failures)/part-\d{8}\.parquet|receipts/part-\d{8}(?:\.g\d+)?\.json|"
    r"attempts/part-\d{8}-[0-9a-f]+|csv/part-\d{5}\.csv)",
    re.DOTALL,
)


class Object(NamedTuple):
    """An object of a listing."""

    key: str
    size: int
    etag: str


class ObjectSource:
    """Images below a prefix of a bucket, matched by a glob, or one object.

    The store lists its keys in byte order and page by page, which is how they are passed on. Keys with a part that
    begins with a dot, feature sets, and the markers that consoles make for empty folders are passed over.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a url such as ``s3://bucket/photos/``; with ``*``, ``?`` or ``[…]`` it is a glob. Options as of
        `FolderSource`, and ``anonymous`` (bool).
    limits : ImageSettings, optional
        What one image may cost.

    Notes
    -----
    A listing goes on after any key for the price of what is left, but on Azure, which lists from the beginning and
    drops what lies before. Costs 1 request per 1,000 keys.
    """

    reading = BY_REQUEST

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self.location = spec.location
        self._address = Address.parse(spec.location, SourceError)
        self._url = str(replace(self._address, key=""))
        self._glob = glob_regex(self._pattern()) if has_magic(self._address.key) else None
        self._prefix = glob_root(self._address.key) if self._glob else self._address.key.rstrip("/")
        self._filter = KeyFilter.of(spec)
        self._anonymous = bool(spec.options.get("anonymous", False))
        destination = str(spec.options.get("destination", ""))
        is_near = destination.startswith(self._url)
        self._destination = destination.removeprefix(self._url) + "/" if is_near else ""
        self._limits = limits or ImageSettings()
        self._skipped: collections.Counter[str] = collections.Counter()

    def _pattern(self) -> str:
        # A closing slash asks for folders; what a glob names whole stands for all that is below it.
        return self._address.key + "**" * self._address.key.endswith("/")

    @property
    def skipped(self) -> collections.Counter[str]:
        """What the listing has passed over, by reason."""
        return self._skipped

    # -- listing ---------------------------------------------------------------------------------------------

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of their urls."""
        self._skipped.clear()
        try:
            self._store()
        except StorageError as error:  # there are no credentials
            raise SourceError(str(error)) from error
        if self._glob is None and self._address.key and not self._address.key.endswith("/"):
            one = self._single()
            if one is not None:
                yield from [one] if one.order > start_after else []
                return
        sets, last = "\0", self._url.encode()
        for found in self._objects(start_after):
            uri = self._url + found.key
            order = uri.encode()
            if order <= last:
                raise SourceError(
                    f"The listing of '{self.location}' is not in byte order: '{uri}' comes after "
                    f"'{last.decode()}'. Give a list of its urls instead (a .txt file)."
                )
            last = order
            if order <= start_after or found.key.startswith(sets) or not self._matches(found.key):
                continue
            if reason := self._passes_over(found):
                self._skipped[reason] += 1
                if reason in ("feature set", "the destination"):
                    sets = self._set_of(found.key)
                continue
            yield _reference(uri, found)

    def _single(self) -> ImageRef | None:
        """Give the reference of the one object that has the location's very name, if there is one."""
        import obstore

        try:
            found = retrying(lambda: obstore.head(self._store(), self._address.key))
        except FileNotFoundError:
            return None
        except store_errors() as error:
            if Refusal.of(error).kind in ("path", "denied"):
                return (
                    None  # without the right to list, a store says so of what is not there; the listing will tell
                )
            raise self._refused_listing(error) from None
        return _reference(self.location, Object(self._address.key, found["size"], etag_of(found)))

    def _objects(self, start_after: bytes) -> Iterator[Object]:
        """Yield all objects below the prefix: the fast way, and from a key that it cannot spell the slow one."""
        start = start_after.decode().removeprefix(self._url) if start_after.startswith(self._url.encode()) else ""
        last = start
        try:
            if self._is_listed_slowly():
                raise _OutOfOrderError
            for found in self._fast(start):
                if found.key.encode() <= last.encode() and last != start:
                    raise _OutOfOrderError
                last = found.key
                yield found
        except store_errors() as error:
            if not isinstance(error, _OutOfOrderError) and Refusal.of(error).kind != "path":
                raise self._refused_listing(error) from None
            yield from self._slow(last)

    def _fast(self, start: str) -> Iterator[Object]:
        for one in list_objects(self._store(), self._prefix, start):
            yield Object(one["path"], one["size"], etag_of(one))

    def _is_listed_slowly(self) -> bool:
        is_whole = self._address.scheme == "s3" and not self._prefix
        return is_whole and unspeakable.has_leading_slash(self._address.bucket, anonymous=self._anonymous)

    def _slow(self, last: str) -> Iterator[Object]:
        if self._address.scheme != "s3":
            raise SourceError(
                f"'{self.location}' holds a key with an empty part, '.', '..' or a control character after "
                f"'{self._url}{last}', beyond which this store cannot be listed. Rename it, or name the folders "
                "beside it as sources."
            )
        prefix = f"{self._prefix}/" if self._prefix else ""
        try:
            for one in unspeakable.list_all(self._address.bucket, prefix, last, anonymous=self._anonymous):
                yield Object(*one)
        except store_errors() as error:
            raise self._refused_listing(error) from None

    def _passes_over(self, found: Object) -> str:
        key = found.key
        if self._destination and key.startswith(self._destination):
            return "the destination"
        below = key[len(self._prefix) :].lstrip("/") if self._prefix else key
        if key.endswith("/") and found.size == 0:
            return "not a regular file"
        if any(part.startswith(".") and part not in (".", "..") for part in below.split("/")):
            return "dot file"
        if _OF_A_FEATURE_SET.fullmatch(key):
            return "feature set"
        return self._filter.passes_over(below)

    def _matches(self, key: str) -> bool:
        if self._glob is None or self._glob.fullmatch(key):
            return True
        parts = key.split("/")
        return any(self._glob.fullmatch("/".join(parts[:n])) for n in range(1, len(parts)))

    def _set_of(self, key: str) -> str:
        """Give the prefix of the feature set in which a key lies, which is passed over and counted as one."""
        if self._destination and key.startswith(self._destination):
            return self._destination
        match = _OF_A_FEATURE_SET.fullmatch(key)
        return f"{match[1]}/" if match and match[1] else "\0"

    def _refused_listing(self, error: BaseException) -> SourceError | StorageError:
        refusal = Refusal.of(error)
        if refusal.kind == "transient":
            return refused("list", self.location, error)
        if refusal.kind == "missing":
            refusal = Refusal("bucket", "there is no such bucket")
        return SourceError(f"Cannot list '{self.location}': {refusal}{refusal.advice}.")

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, ref: ImageRef) -> bytes:
        """Get an object, and make sure that it is the one that was listed."""
        address = replace(self._address, key=self._key(ref))
        return read_object(address, anonymous=self._anonymous, limits=self._limits, etag=ref.version, size=ref.size)

    def look(self, ref: ImageRef) -> ImageRef:
        """Ask for size and etag again."""
        import obstore

        try:
            found = retrying(lambda: obstore.head(self._store(), self._key(ref)))
        except store_errors() as error:
            failed = _failed_read(error, replace(self._address, key=self._key(ref)), anonymous=self._anonymous)
            if isinstance(failed, StorageError):
                raise failed from None
            return ref._replace(size=0, version="", problem=failed.reason)
        return ref._replace(size=found["size"], version=etag_of(found), problem=None)

    def open(self, ref: ImageRef) -> BinaryIO:
        """Open an object that is no image but holds some; each of its ranges is asked for with the listed etag."""
        now = self.look(ref)
        if now.problem is not None:
            raise ImageError("read", now.problem)
        if now.version != ref.version:
            raise ImageError("read", "changed since listing")
        options = {"if_match": ref.version} if ref.version else {}
        file = Ranges(self._store(), self._key(ref), self._url + self._key(ref), ref.size, options)
        return io.BufferedReader(file, 1024**2)

    def _key(self, ref: ImageRef) -> str:
        return ref.order.decode().removeprefix(self._url)

    def _store(self) -> ObjectStore:
        return _store_of(self._address, self._anonymous, self._limits.timeout_seconds)


def read_object(
    address: Address, *, anonymous: bool, limits: ImageSettings, etag: str = "", size: int = 0
) -> bytes:
    """Get one object whole.

    Parameters
    ----------
    address : Address
        Bucket and key.
    anonymous : bool
        Sign nothing.
    limits : ImageSettings
        Time of the read, and most bytes.
    etag : str
        What the listing said; "" if nobody listed it.
    size : int
        Bytes, as listed; 0 if not known.

    Raises
    ------
    ImageError
        It is gone, has changed, is too large, or may not be read.
    StorageError
        The store does not answer any more, or refuses the credentials.
    """
    import obstore

    seconds = limits.timeout_seconds / (1 if size > _SLOW_BYTES else _REQUESTS_A_READ)
    options: Any = {"if_match": etag} if etag else {}

    def get() -> bytes:
        if address.scheme == "s3" and unspeakable.is_unspeakable(address.key):
            return unspeakable.get(address.bucket, address.key, etag=etag, anonymous=anonymous)
        found = obstore.get(_store_of(address, anonymous, seconds), address.key, options=options)
        if found.meta["size"] > limits.max_bytes:
            n_bytes = found.meta["size"]
            raise ImageError(
                "read", f"too many bytes: {n_bytes}, above the limit of {limits.max_bytes} (--max-bytes)"
            )
        return bytes(found.bytes())

    try:
        data = retrying(get)
    except (ImageError, StorageError):
        raise
    except store_errors() as error:
        raise _failed_read(error, address, anonymous=anonymous) from None
    if size and len(data) != size:
        raise ImageError("read", "changed since listing")
    return data


def _failed_read(error: BaseException, address: Address, *, anonymous: bool) -> ImageError | StorageError:
    """Give the error of one image, or that of the whole source if no other image would fare better."""
    if isinstance(error, StorageError):
        return error
    refusal = Refusal.of(error)
    if refusal.kind == "denied" and not _may_list(address, anonymous=anonymous):
        refusal = Refusal("credentials", "the credentials are refused for the whole bucket")
    if refusal.kind in ("bucket", "region", "credentials"):
        return StorageError(f"Cannot read '{address}': {refusal}{refusal.advice}, and resume.")
    reason = {
        "missing": "vanished since listing",
        "changed": "changed since listing",
        "denied": refusal.reason,
        "path": "its key cannot be spelled in a request",
    }.get(refusal.kind, f"no answer: {refusal.reason}")
    return ImageError("read", reason)


def _may_list(address: Address, *, anonymous: bool) -> bool:
    """Whether the credentials are still good for the folder of a key: it has been listed, when the run began."""
    import obstore

    folder = address.key.rpartition("/")[0]
    try:
        for _ in obstore.list(_store_of(address, anonymous, 20.0), folder or None, chunk_size=1):
            break
    except store_errors() as error:
        return Refusal.of(error).kind not in ("denied", "credentials")
    return True


def _store_of(address: Address, anonymous: bool, seconds: float) -> ObjectStore:
    return connect(address.scheme, address.bucket, anonymous=anonymous, timeout_seconds=seconds, tries=4)


def _reference(uri: str, found: Object) -> ImageRef:
    return ImageRef(uri, 0, found.size, found.etag)


class _OutOfOrderError(ValueError):
    """The fast library has shortened a key: what it lists is not what there is."""
