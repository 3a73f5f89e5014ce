"""Images in the buckets of object stores."""

from __future__ import annotations

import collections
import contextlib
import io
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.ledger.names import KEY_IN_FEATURE_SET, PLAN
from featurepress.settings import ImageSettings
from featurepress.sources.base import BY_REQUEST, KeyFilter, glob_regex
from featurepress.sources.files import awkward_keys
from featurepress.sources.files.awkward_keys import Object, is_awkward
from featurepress.sources.files.folder import glob_root, has_magic
from featurepress.sources.files.ranges import list_in_ranges
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.bucket import Ranges, list_objects
from featurepress.storage.connection import Address, Refusal, connect, etag_of, refused, retrying, store_errors

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# Of the time of a read, one request gets a quarter: one that hangs is made again twice, and one quarter is left to
# ask whether anything answers at all.
_REQUESTS_A_READ = 4
_SLOW_BYTES = 8 * 1024**2  # objects above that get all the time there is
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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
    A listing continues after any key, except on Azure, which lists from the beginning and
    drops what lies before. Costs 1 request per 1,000 keys, one after the other on Azure. Elsewhere a long listing
    is made by many at once (`featurepress.sources.files.ranges`), which are up to twice as many.
    """

    reading = BY_REQUEST

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self.location = spec.location
        self._address = Address.parse(spec.location, SourceError)
        self._url = str(replace(self._address, key=""))
        self._glob = glob_regex(self._pattern()) if has_magic(self._address.key) else None
        root = glob_root(self._address.key) if self._glob else self._address.key.removesuffix("/")
        self._below = "/" if self._address.key == "/" or root == "/" else f"{root}/" if root else ""
        self._filter = KeyFilter.of(spec)
        self._anonymous = bool(spec.options.get("anonymous", False))
        destination = str(spec.options.get("destination", ""))
        is_near = destination.startswith(self._url)
        self._destination = destination.removeprefix(self._url).rstrip("/") + "/" if is_near else ""
        self._limits = limits or ImageSettings()
        self._skipped: collections.Counter[str] = collections.Counter()
        self._sets: dict[str, bool] = {}  # prefix -> whether a feature set lies there
        self._is_in_a_set = False  # whether one lies in the bucket's root, and has been counted

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
        self._sets.clear()
        self._is_in_a_set = False
        try:
            self._store()
        except StorageError as error:  # there are no credentials
            raise SourceError(str(error)) from error
        if self._glob is None and self._address.key and not self._address.key.endswith("/"):
            one = self._single()
            if one is not None:
                yield from [one] if one.order > start_after else []
                return
        try:
            yield from self._listed(start_after)
        except store_errors() as error:
            raise self._refused_listing(error) from None

    def _listed(self, start_after: bytes) -> Iterator[ImageRef]:
        sets, last = "\0", b""
        for found in self._objects(start_after):
            uri = self._url + found.key
            order = uri.encode()
            if order <= last:
                raise SourceError(
                    f"The listing of '{self.location}' is not in byte order: '{uri}' comes after "
                    f"'{last.decode()}'. Give a list of its urls instead (a .txt file)."
                )
            last = order
            if order <= start_after or found.key.startswith(sets):
                continue
            if found.problem is not None:
                yield ImageRef(uri, 0, 0, "", problem=found.problem)
            elif self._matches(found.key):
                if reason := self._passes_over(found):
                    sets = self._count(reason, found.key) or sets
                else:
                    yield _reference(uri, found)

    def _count(self, reason: str, key: str) -> str:
        """Count what is passed over; return the prefix of what is counted as one, destination or feature set."""
        if reason == "the destination":
            self._skipped[reason] += 1
            return self._destination
        if reason == "feature set":
            root = self._set_of(key) or ""
            if root or not self._is_in_a_set:  # one in the bucket's root comes in pieces
                self._skipped[reason] += 1
            self._is_in_a_set = self._is_in_a_set or not root
            return root
        self._skipped[reason] += 1
        return ""

    def _single(self) -> ImageRef | None:
        """Return the reference of the one object that has the location's very name, if there is one."""
        try:
            return _reference(self.location, self._head(self._address.key))
        except FileNotFoundError:
            return None
        except store_errors() as error:
            if Refusal.of(error).kind in ("path", "denied", "missing", "other"):
                return None  # without the right to list, a store denies what is not there; the listing reports it
            raise self._refused_listing(error) from None

    def _objects(self, start_after: bytes) -> Iterator[Object]:
        """Yield all objects below the prefix, the slow way from the first awkward key on."""
        start, prefix = self._start(start_after), self._below.removesuffix("/")
        last = start
        try:
            if self._must_be_listed_slowly(start):
                raise awkward_keys.OutOfOrderError
            for found in self._list_fast(prefix, start):
                last = found.key
                yield found
        except store_errors() as error:
            if not awkward_keys.must_be_listed_otherwise(error):
                raise
            bucket = self._address.bucket
            if self._address.scheme == "s3":
                yield from awkward_keys.list_all(bucket, self._below, last, anonymous=self._anonymous)
            elif is_awkward(self._below.removesuffix("/")) or self._below == "/":
                raise SourceError(
                    f"Cannot list '{self.location}': it has an empty part, '.', '..' or a control character, which "
                    "cannot be asked for on this store. Name a folder above it."
                ) from None
            else:
                yield from awkward_keys.list_level(self._store(), prefix, last, self._wants)

    def _list_fast(self, prefix: str, start: str) -> Iterator[Object]:
        """Yield the objects below a prefix after a key; by many requests where the store can begin at any key."""
        store = self._store()
        if self._address.scheme == "az":
            return awkward_keys.list_fast(store, prefix, start)
        return list_in_ranges(lambda key: awkward_keys.list_fast(store, prefix, key), self._below, start)

    def _start(self, start_after: bytes) -> str:
        """Return the key after which the listing begins, cut before what cannot be sent in a request."""
        key = start_after.removeprefix(self._url.encode()) if start_after.startswith(self._url.encode()) else b""
        try:
            start = key.decode()
        except UnicodeDecodeError as error:  # a character that is cut through
            start = key[: error.start].decode()
        return _CONTROL.split(start, maxsplit=1)[0]

    def _must_be_listed_slowly(self, start: str) -> bool:
        """Whether the fast library would list wrong names: those that begin with a slash, without it."""
        if self._below:
            return is_awkward(self._below.removesuffix("/")) or self._below == "/"
        if self._address.scheme == "s3":
            return awkward_keys.has_leading_slash(self._address.bucket, anonymous=self._anonymous)
        if start >= "0" and self._address.scheme != "az":  # behind the slash; but Azure begins at the beginning
            return False
        for one in list_objects(self._store(), "", ".\U0010ffff"):  # which is before it
            if one["size"]:
                try:
                    return self._head(one["path"]).etag != etag_of(one)
                except FileNotFoundError:
                    return True
        return False

    def _wants(self, folder: str) -> bool:
        """Whether a folder that cannot be listed could hold what is asked for."""
        names = folder.split("/")[:-1]
        if (self._destination and folder.startswith(self._destination)) or _is_hidden(folder[len(self._below) :]):
            return False
        if self._glob is None or self._matches(folder):
            return True
        patterns = self._pattern().split("/")[: len(names)]
        return "**" in patterns or glob_regex("/".join(patterns)).fullmatch("/".join(names)) is not None

    def _passes_over(self, found: Object) -> str:
        key = found.key
        below = key[len(self._below) :].lstrip("/")
        if self._destination and key.startswith(self._destination):
            return "the destination"
        if key.endswith("/") and found.size == 0:
            return "not a regular file"
        if _is_hidden(below):
            return "dot file"
        if self._set_of(key) is not None:
            return "feature set"
        if reason := self._filter.passes_over(below):
            return reason
        return "not a regular file" if found.size == 0 and self._is_marker(key) else ""

    def _is_marker(self, key: str) -> bool:
        """Whether there is a folder's marker instead of an empty object: the fast library takes its slash off."""
        try:
            self._head(key)
        except store_errors() as error:
            return Refusal.of(error).kind == "missing"
        return False

    def _matches(self, key: str) -> bool:
        if self._glob is None or self._glob.fullmatch(key):
            return True
        parts = key.split("/")
        return any(self._glob.fullmatch("/".join(parts[:n])) for n in range(1, len(parts)))

    def _set_of(self, key: str) -> str | None:
        """Return the prefix of the feature set of which a key is a part; "" in the bucket's root, None for none."""
        match = KEY_IN_FEATURE_SET.fullmatch(key)
        if match is None:
            return None
        root = f"{match[1]}/" if match[1] is not None else ""
        if root not in self._sets:
            self._sets[root] = self._is_set(root)
        return root if self._sets[root] else None

    def _is_set(self, root: str) -> bool:
        """Whether a plan lies below a prefix: anybody may call a file manifest.json."""
        import obstore

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
        """Read an object, and check that it has not changed since listing."""
        address = replace(self._address, key=self._key(ref))
        return read_object(address, anonymous=self._anonymous, limits=self._limits, etag=ref.version, size=ref.size)

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the reference with the current size and etag."""
        try:
            found = self._head(self._key(ref))
        except store_errors() as error:
            address = replace(self._address, key=self._key(ref))
            failed = _failed_read(error, address, anonymous=self._anonymous, seconds=self._request_seconds)
            if isinstance(failed, StorageError):
                raise failed from None
            return ref._replace(size=0, version="", problem=failed.reason)
        return ref._replace(size=found.size, version=found.etag, problem=None)

    def open(self, ref: ImageRef) -> BinaryIO:
        """Open an object that is no image but holds some; each of its ranges is asked for with the listed etag."""
        now = self.stat(ref)
        if now.problem is not None:
            raise ImageError("read", now.problem)
        if now.version != ref.version:
            raise ImageError("read", "changed since listing")
        key = self._key(ref)
        if is_awkward(key):
            return io.BytesIO(self.read(ref))
        options = {"if_match": ref.version} if ref.version else {}
        return io.BufferedReader(Ranges(self._store(), key, self._url + key, ref.size, options), 1024**2)

    def _head(self, key: str) -> Object:
        """Ask for size and etag of an object."""
        import obstore

        if self._address.scheme == "s3" and is_awkward(key):
            return retrying(lambda: awkward_keys.head(self._address.bucket, key, anonymous=self._anonymous))
        found = retrying(lambda: obstore.head(self._store(), key))
        return Object(key, found["size"], etag_of(found))

    def _key(self, ref: ImageRef) -> str:
        return ref.order.decode().removeprefix(self._url)

    def _store(self) -> ObjectStore:
        return _store_of(self._address, self._anonymous, self._limits.timeout_seconds)

    @property
    def _request_seconds(self) -> float:
        return self._limits.timeout_seconds / _REQUESTS_A_READ


def read_object(
    address: Address, *, anonymous: bool, limits: ImageSettings, etag: str = "", size: int = 0
) -> bytes:
    """Get one object whole, unsigned if `anonymous`, within the time and the bytes of `limits`.

    Parameters
    ----------
    address : Address
        Bucket and key.
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
    if size > limits.max_bytes:
        raise _too_large(size, limits)
    seconds = limits.timeout_seconds / (1 if size > _SLOW_BYTES else _REQUESTS_A_READ)
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
        raise _too_large(n_bytes, limits)
    if (etag or size) and len(data) != size:
        raise ImageError("read", "changed since listing")
    return data


def _get(address: Address, *, anonymous: bool, seconds: float, etag: str, max_bytes: int) -> tuple[int, bytes]:
    """Make the request; return the object's size, and its bytes unless they are too many."""
    import obstore

    if address.scheme == "s3" and is_awkward(address.key):
        options = {"IfMatch": etag} if etag else {}
        return awkward_keys.get(address.bucket, address.key, anonymous=anonymous, max_bytes=max_bytes, **options)
    condition: Any = {"if_match": etag} if etag else {}
    found = obstore.get(_store_of(address, anonymous, seconds), address.key, options=condition)
    n_bytes = found.meta["size"]
    return n_bytes, b"" if n_bytes > max_bytes else bytes(found.bytes())


def _too_large(n_bytes: int, limits: ImageSettings) -> ImageError:
    return ImageError("read", f"too many bytes: {n_bytes}, above the limit of {limits.max_bytes} (--max-bytes)")


def _failed_read(
    error: BaseException, address: Address, *, anonymous: bool, seconds: float, was_listed: bool = True
) -> ImageError | StorageError:
    """Return the error of one image, or that of the whole source if no other image would fare better."""
    if isinstance(error, StorageError):
        return error
    refusal = Refusal.of(error)
    if refusal.kind == "changed" and address.scheme == "az":  # which also says so of what is not there
        with contextlib.suppress(*store_errors()):
            refusal = _if_missing(address, anonymous=anonymous, seconds=seconds) or refusal
    if refusal.kind == "transient" or (was_listed and refusal.kind in ("denied", "missing", "other")):
        # A head has no body that says why; and what one key is refused for may hold for all.
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
        "path": "its key cannot be spelled in a request",
    }.get(refusal.kind, f"no answer: {refusal.reason}")
    return ImageError("read", reason)


def _if_missing(address: Address, *, anonymous: bool, seconds: float) -> Refusal | None:
    import obstore

    try:
        obstore.head(_store_of(address, anonymous, seconds), address.key)
    except FileNotFoundError as error:
        return Refusal.of(error)
    return None


def _refused_folder(address: Address, *, anonymous: bool, seconds: float) -> Refusal | None:
    """Return what is said to whoever lists the folder of a key; None if it can be listed."""
    import obstore

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


def _reference(uri: str, found: Object) -> ImageRef:
    return ImageRef(uri, 0, found.size, found.etag)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))
