"""Images in the buckets of object stores."""

from __future__ import annotations

import collections
import io
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import obstore
from obstore.store import ObjectStore

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.ledger.names import KEY_IN_FEATURE_SET, PLAN
from featurepress.settings import ImageSettings
from featurepress.sources.base import BY_REQUEST, require_unchanged, too_many_bytes
from featurepress.sources.files import awkward_keys
from featurepress.sources.files.awkward_keys import Object, is_awkward
from featurepress.sources.files.ranges import list_in_ranges
from featurepress.sources.selection import Glob, NameFilter, glob_root, has_magic
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.bucket import Ranges, list_objects
from featurepress.storage.connection import Address, Refusal, connect, etag_of, refused, retrying, store_errors

# One request gets a quarter of the time of a read. So a request that hangs can be retried twice, and a quarter is
# left to find out whether the store answers at all.
_REQUESTS_PER_READ = 4
_SLOW_BYTES = 8 * 1024**2  # larger objects get all of the time for one request
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ObjectSource:
    """Images below a prefix of a bucket, matched by a glob, or one object.

    The store lists its keys in byte order, page by page, and the images are yielded in this order. Keys with a part
    that begins with a dot, feature sets, and the markers of empty folders are skipped.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a url such as ``s3://bucket/photos/``; with ``*``, ``?`` or ``[…]`` it is a glob. Options as of
        `FolderSource`, and ``anonymous`` (bool).
    limits : ImageSettings, optional
        Limits for one image.

    Notes
    -----
    A listing can continue after any key; Azure lists from the beginning, and the keys before are dropped. It costs
    1 request per 1,000 keys, one at a time on Azure. Elsewhere, a long listing makes many requests at once, up to
    twice as many in total (`featurepress.sources.files.ranges`).
    """

    reading = BY_REQUEST

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self.location = spec.location
        self.skipped: collections.Counter[str] = collections.Counter()
        self._address = Address.parse(spec.location, SourceError)
        self._url = str(replace(self._address, key=""))
        key = self._address.key
        self._glob = Glob(key) if has_magic(key) else None
        root = glob_root(key) if self._glob else key.removesuffix("/")
        self._prefix = "/" if key == "/" or root == "/" else f"{root}/" if root else ""
        self._filter = NameFilter(spec.options)
        self._anonymous = bool(spec.options.get("anonymous", False))
        destination = str(spec.options.get("destination", ""))
        is_same_bucket = destination.startswith(self._url)
        self._destination = destination.removeprefix(self._url).rstrip("/") + "/" if is_same_bucket else ""
        self._limits = limits or ImageSettings()
        self._sets: dict[str, bool] = {}  # prefix -> whether it is a feature set
        self._counted_sets: set[str] = set()

    # -- listing ---------------------------------------------------------------------------------------------

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of their urls."""
        self.skipped.clear()
        self._sets.clear()
        self._counted_sets.clear()
        try:
            self._store()
        except StorageError as error:  # there are no credentials
            raise SourceError(str(error)) from error
        if self._glob is None and self._address.key and not self._address.key.endswith("/"):
            single = self._single()
            if single is not None:
                yield from [single] if single.order > start_after else []
                return
        try:
            yield from self._listed(start_after)
        except store_errors() as error:
            raise self._refused_listing(error) from None

    def _listed(self, start_after: bytes) -> Iterator[ImageRef]:
        skipped_prefix, last = "\0", b""
        for found in self._objects(start_after):
            uri = self._url + found.key
            order = uri.encode()
            if order <= last:
                raise SourceError(
                    f"The listing of '{self.location}' is not in byte order: '{uri}' comes after "
                    f"'{last.decode()}'. Use a list of its urls instead (a .txt file)."
                )
            last = order
            if order <= start_after or found.key.startswith(skipped_prefix):
                continue
            if found.problem is not None:
                yield ImageRef(uri, 0, 0, "", problem=found.problem)
            elif self._glob is None or self._glob.covers(found.key):
                if reason := self._skip_reason(found):
                    skipped_prefix = self._count(reason, found.key) or skipped_prefix
                else:
                    yield ImageRef(uri, 0, found.size, found.etag)

    def _count(self, reason: str, key: str) -> str:
        """Count a skipped object; return the prefix of the objects that are counted together with it."""
        if reason == "feature set":
            root = self._set_of(key) or ""
            if root in self._counted_sets:  # in the bucket's root, its objects are not consecutive
                return ""
            self._counted_sets.add(root)
        self.skipped[reason] += 1
        return {"feature set": self._set_of(key) or "", "the destination": self._destination}.get(reason, "")

    def _single(self) -> ImageRef | None:
        """Return the reference of the object whose url is the location, if it exists."""
        try:
            found = self._head(self._address.key)
            return ImageRef(self.location, 0, found.size, found.etag)
        except FileNotFoundError:
            return None
        except store_errors() as error:
            if Refusal.of(error).kind in ("path", "denied", "missing", "other"):
                return None  # without the right to list, a store denies a missing object; the listing reports it
            raise self._refused_listing(error) from None

    def _objects(self, start_after: bytes) -> Iterator[Object]:
        """Yield all objects below the prefix; from the first awkward key on, by the slower way."""
        start, prefix = self._start(start_after), self._prefix.removesuffix("/")
        last = start
        try:
            if self._has_wrong_names(start):
                raise awkward_keys.OutOfOrderError
            for found in self._list_fast(prefix, start):
                last = found.key
                yield found
        except store_errors() as error:
            if not awkward_keys.is_awkward_error(error):
                raise
            bucket = self._address.bucket
            if self._address.scheme == "s3":
                yield from awkward_keys.list_all(bucket, self._prefix, last, anonymous=self._anonymous)
            elif is_awkward(prefix) or self._prefix == "/":
                raise SourceError(
                    f"Cannot list '{self.location}': it has an empty part, '.', '..' or a control character, which "
                    "cannot be requested from this store. Name a folder above it."
                ) from None
            else:
                yield from awkward_keys.list_level(self._store(), prefix, last, self._is_wanted)

    def _list_fast(self, prefix: str, start: str) -> Iterator[Object]:
        """Yield the objects below a prefix after a key; by many requests if the store can begin at any key."""
        store = self._store()
        if self._address.scheme == "az":
            return awkward_keys.list_fast(store, prefix, start)
        return list_in_ranges(lambda key: awkward_keys.list_fast(store, prefix, key), self._prefix, start)

    def _start(self, start_after: bytes) -> str:
        """Return the key after which the listing begins, cut before characters that a request cannot contain."""
        url = self._url.encode()
        key = start_after.removeprefix(url) if start_after.startswith(url) else b""
        try:
            start = key.decode()
        except UnicodeDecodeError as error:  # the key ends inside a character
            start = key[: error.start].decode()
        return _CONTROL.split(start, maxsplit=1)[0]

    def _has_wrong_names(self, start: str) -> bool:
        """Whether obstore would list wrong names: it removes the slash at the beginning of a key."""
        if self._prefix:
            return is_awkward(self._prefix.removesuffix("/")) or self._prefix == "/"
        if self._address.scheme == "s3":
            return awkward_keys.has_leading_slash(self._address.bucket, anonymous=self._anonymous)
        if start >= "0" and self._address.scheme != "az":  # after the slash; Azure begins at the beginning
            return False
        for listed in list_objects(self._store(), "", ".\U0010ffff"):  # the last key before the slash
            if listed["size"]:
                try:
                    return self._head(listed["path"]).etag != etag_of(listed)
                except FileNotFoundError:
                    return True
        return False

    def _is_wanted(self, folder: str) -> bool:
        """Whether a folder that cannot be listed may contain images of this source."""
        if (self._destination and folder.startswith(self._destination)) or _is_hidden(folder[len(self._prefix) :]):
            return False
        return self._glob is None or self._glob.covers(folder) or self._glob.may_match_below(folder[:-1])

    def _skip_reason(self, found: Object) -> str:
        key = found.key
        below = key[len(self._prefix) :].lstrip("/")
        if self._destination and key.startswith(self._destination):
            return "the destination"
        if key.endswith("/") and found.size == 0:
            return "not a regular file"
        if _is_hidden(below):
            return "dot file"
        if self._set_of(key) is not None:
            return "feature set"
        if reason := self._filter.skip_reason(below):
            return reason
        return "not a regular file" if found.size == 0 and self._is_marker(key) else ""

    def _is_marker(self, key: str) -> bool:
        """Whether an empty object is the marker of a folder, whose slash obstore has removed."""
        try:
            self._head(key)
        except store_errors() as error:
            return Refusal.of(error).kind == "missing"
        return False

    def _set_of(self, key: str) -> str | None:
        """Return the prefix of the feature set that contains a key ("" for the bucket's root), or None."""
        match = KEY_IN_FEATURE_SET.fullmatch(key)
        if match is None:
            return None
        root = f"{match[1]}/" if match[1] is not None else ""
        if root not in self._sets:
            self._sets[root] = self._is_set(root)
        return root if self._sets[root] else None

    def _is_set(self, root: str) -> bool:
        """Whether there is a plan below a prefix: other programs may also call a file manifest.json."""
        try:
            options: Any = {"range": (0, 256)}
            plan = retrying(lambda: obstore.get(self._store(), f"{root}{PLAN}", options=options).bytes())
        except store_errors() as error:
            if Refusal.of(error).kind == "transient":
                raise
            return False
        return b'"featurepress"' in bytes(plan)

    def _refused_listing(self, error: BaseException) -> SourceError | StorageError:
        if isinstance(error, StorageError):
            return error
        refusal = Refusal.of(error)
        if refusal.kind == "transient":
            return refused("list", self.location, error)
        if refusal.kind == "missing":
            refusal = Refusal("bucket", "there is no such bucket")
        return SourceError(f"Cannot list '{self.location}': {refusal}{refusal.advice}.")

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, ref: ImageRef) -> bytes:
        """Read an object, and check that it has not changed since the listing."""
        address = self._address_of(ref)
        return read_object(address, anonymous=self._anonymous, limits=self._limits, etag=ref.version, size=ref.size)

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the reference with the current size and etag."""
        address = self._address_of(ref)
        try:
            found = self._head(address.key)
        except store_errors() as error:
            seconds = self._limits.timeout_seconds / _REQUESTS_PER_READ
            failed = _failed_read(error, address, anonymous=self._anonymous, seconds=seconds)
            if isinstance(failed, StorageError):
                raise failed from None
            return ref._replace(size=0, version="", problem=failed.reason)
        return ref._replace(size=found.size, version=found.etag, problem=None)

    def open(self, ref: ImageRef) -> BinaryIO:
        """Open an object that contains images; each request for a range of it checks the etag."""
        require_unchanged(self, ref)
        key = self._address_of(ref).key
        if is_awkward(key):
            return io.BytesIO(self.read(ref))
        options = {"if_match": ref.version} if ref.version else {}
        return io.BufferedReader(Ranges(self._store(), key, self._url + key, ref.size, options), 1024**2)

    def _head(self, key: str) -> Object:
        """Return the size and etag of an object."""
        if self._address.scheme == "s3" and is_awkward(key):
            return retrying(lambda: awkward_keys.head(self._address.bucket, key, anonymous=self._anonymous))
        found = retrying(lambda: obstore.head(self._store(), key))
        return Object(key, found["size"], etag_of(found))

    def _address_of(self, ref: ImageRef) -> Address:
        return replace(self._address, key=ref.order.decode().removeprefix(self._url))

    def _store(self) -> ObjectStore:
        return _store_of(self._address, self._anonymous, self._limits.timeout_seconds)


def read_object(
    address: Address, *, anonymous: bool, limits: ImageSettings, etag: str = "", size: int = 0
) -> bytes:
    """Return one whole object; etag and size are those of the listing, if it was listed.

    Raises ImageError if it has vanished or changed, is too large, or must not be read, and StorageError if the
    store does not answer, or refuses the credentials.
    """
    if size > limits.max_bytes:
        raise too_many_bytes(size, limits.max_bytes)
    seconds = limits.timeout_seconds / (1 if size > _SLOW_BYTES else _REQUESTS_PER_READ)
    end = time.monotonic() + limits.timeout_seconds

    try:
        n_bytes, data = retrying(
            lambda: _get(address, anonymous=anonymous, seconds=seconds, etag=etag, max_bytes=limits.max_bytes),
            seconds=0.6 * limits.timeout_seconds,
        )
    except store_errors() as error:
        left = math.ceil(max(1.0, min(seconds, end - time.monotonic())))  # few values: each has its own store
        raise _failed_read(error, address, anonymous=anonymous, seconds=left, was_listed=bool(etag)) from None
    if n_bytes > limits.max_bytes:
        raise too_many_bytes(n_bytes, limits.max_bytes)
    if (etag or size) and len(data) != size:
        raise ImageError("read", "changed since listing")
    return data


def _get(address: Address, *, anonymous: bool, seconds: float, etag: str, max_bytes: int) -> tuple[int, bytes]:
    """Return the object's size, and its bytes unless there are more than `max_bytes`."""
    if address.scheme == "s3" and is_awkward(address.key):
        options = {"IfMatch": etag} if etag else {}
        return awkward_keys.get(address.bucket, address.key, anonymous=anonymous, max_bytes=max_bytes, **options)
    condition: Any = {"if_match": etag} if etag else {}
    found = obstore.get(_store_of(address, anonymous, seconds), address.key, options=condition)
    n_bytes = found.meta["size"]
    return n_bytes, b"" if n_bytes > max_bytes else bytes(found.bytes())


def _failed_read(
    error: BaseException, address: Address, *, anonymous: bool, seconds: float, was_listed: bool = True
) -> ImageError | StorageError:
    """Return the error of one image, or that of the whole source if every read would fail."""
    if isinstance(error, StorageError):
        return error
    refusal = Refusal.of(error)
    if refusal.kind == "changed" and address.scheme == "az":  # Azure's answer for a missing object too
        try:
            obstore.head(_store_of(address, anonymous, seconds), address.key)
        except FileNotFoundError as missing:
            refusal = Refusal.of(missing)
        except store_errors():
            pass
    if refusal.kind == "transient" or (was_listed and refusal.kind in ("denied", "missing", "other")):
        # The answer to a HEAD has no body with a reason, and the refusal may apply to all keys.
        whole = _refused_folder(address, anonymous=anonymous, seconds=seconds)
        if whole is not None and whole.kind == refusal.kind == "denied":
            refusal = Refusal("credentials", "the credentials are refused for the whole bucket")
        elif whole is not None and whole.kind in ("bucket", "region", "credentials", refusal.kind):
            refusal = whole
        elif refusal.kind == "transient":
            return ImageError("read", f"no answer: {refusal.reason}")
    if refusal.is_lasting:
        return StorageError(f"Cannot read '{address}': {refusal}{refusal.advice}, and resume.")
    reason = {
        "missing": "vanished since listing",
        "changed": "changed since listing",
        "denied": refusal.reason,
        "path": "a request cannot contain its key",
    }.get(refusal.kind, f"no answer: {refusal.reason}")
    return ImageError("read", reason)


def _refused_folder(address: Address, *, anonymous: bool, seconds: float) -> Refusal | None:
    """Return why the folder of a key cannot be listed; None if it can be."""
    folder = address.key.rpartition("/")[0]
    store = connect(address.scheme, address.bucket, anonymous=anonymous, timeout_seconds=seconds, tries=1)
    try:
        for _ in obstore.list(store, None if is_awkward(folder) else folder, chunk_size=1):
            break
    except store_errors() as error:
        refusal = Refusal.of(error)
        return None if refusal.kind == "path" else refusal
    return None


def _store_of(address: Address, anonymous: bool, seconds: float) -> ObjectStore:
    return connect(address.scheme, address.bucket, anonymous=anonymous, timeout_seconds=seconds, tries=4)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))
