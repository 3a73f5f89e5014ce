"""A place in an object store as a storage."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from featurepress.errors import StorageError
from featurepress.storage.base import Data, Entry
from featurepress.storage.connection import (
    TRIES,
    Address,
    Refusal,
    connect,
    etag_of,
    pause,
    refused,
    retrying,
    store_errors,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_BLOCK_BYTES = 1024**2  # of a large object that is read here and there
_UPLOAD_BYTES = 8 * 1024**2  # a piece of a large object that is written
_PUT_SECONDS = 300.0  # a part of tens of megabytes on a slow line
# The stores, as scheme and bucket, that have refused a condition.
_UNCONDITIONAL: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class BucketStorage:
    """What lies below a key prefix of a bucket.

    `create` is one conditional PUT (If-None-Match, or the generation on Google), `replace` another (If-Match):
    the store decides between any number of machines. An object is written by a single request, or by a
    multipart upload that is completed or aborted, so that nobody sees half of one.

    Parameters
    ----------
    root : str
        Url, without a slash at its end.
    """

    root: str

    @property
    def location(self) -> str:
        """The url."""
        return self.root

    @property
    def _address(self) -> Address:
        return Address.parse(self.root)

    @property
    def is_remote(self) -> bool:
        """Yes."""
        return True

    @property
    def is_conditional(self) -> bool:
        """Whether the store has not yet refused a condition in this process."""
        return self._bucket not in _UNCONDITIONAL

    @property
    def _bucket(self) -> tuple[str, str]:
        return self._address.scheme, self._address.bucket

    @property
    def _store(self) -> ObjectStore:
        return connect(*self._bucket)

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._address.key, name) if part)

    def prepare(self) -> None:
        """Do nothing: a bucket has no folders."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, in the order of the store, which is byte order."""
        start = len(self._key("")) + 1 if self._key("") else 0
        with self._asking("list", prefix):
            for one in list_objects(self._store, self._key(prefix)):
                name = one["path"][start:]
                if not name.rpartition("/")[2].startswith("."):
                    yield Entry(name, one["size"], self._version(one))

    def _version(self, found: Any) -> str:
        """Give what a condition is made of: the etag, on Google the generation, which listings leave out."""
        return (found["version"] or "") if self._address.scheme == "gs" else etag_of(found)

    def stat(self, name: str) -> Entry | None:
        """Ask for size and etag of the object."""
        import obstore

        with self._asking("look at", name, missing=None):
            found = retrying(lambda: obstore.head(self._store, self._key(name)))
            return Entry(name, found["size"], self._version(found))
        return None

    def read(self, name: str) -> bytes | None:
        """Get the object."""
        import obstore

        with self._asking("read", name, missing=None):
            return bytes(retrying(lambda: obstore.get(self._store, self._key(name)).bytes()))
        return None

    def open(self, name: str) -> BinaryIO:
        """Open the object; one that fits into a block or two comes by a single request."""
        return self.open_version(name)[0]

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the object, and give its etag, or generation; every request after the first asks for that etag."""
        import obstore

        store, key = self._store, self._key(name)

        def get() -> tuple[Any, bytes | None]:
            found = obstore.get(store, key)
            return found.meta, bytes(found.bytes()) if found.meta["size"] <= 2 * _BLOCK_BYTES else None

        with self._asking("read", name):
            meta, data = retrying(get)
            if data is not None:
                return io.BytesIO(data), self._version(meta)
            condition = {"if_match": etag} if (etag := etag_of(meta)) else {}
            file = Ranges(store, key, f"{self.root}/{name}", meta["size"], condition)
            return cast(BinaryIO, io.BufferedReader(file, _BLOCK_BYTES)), self._version(meta)
        raise AssertionError("unreachable")

    def write(self, name: str, data: Data) -> None:
        """Put the object."""
        self._put(name, _gathered(data), None)

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Put the object if there is none. A store without conditions is asked first, which is no proof."""
        content = _gathered(data)
        if self.is_conditional:
            try:
                return self._put(name, content, "create")
            except _UnsupportedError:
                _UNCONDITIONAL.add(self._bucket)
        return self.stat(name) is None and self._put(name, content, None)

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Put the object if it still has this etag, or generation."""
        content = _gathered(data)
        if self.is_conditional:
            try:
                kind = "version" if self._address.scheme == "gs" else "e_tag"
                return self._put(name, content, {kind: version})
            except _UnsupportedError:
                _UNCONDITIONAL.add(self._bucket)
        entry = self.stat(name)
        return entry is not None and entry.version == version and self._put(name, content, None)

    def _put(self, name: str, data: bytes | memoryview, mode: Any) -> bool:
        """Put by a single request, so that no unfinished upload is left by a process that dies."""
        import obstore

        store = connect(*self._bucket, timeout_seconds=_PUT_SECONDS, tries=2)
        try:
            retrying(lambda: obstore.put(store, self._key(name), data, mode=mode, use_multipart=False))
        except store_errors() as error:
            refusal = Refusal.of(error)
            if refusal.kind in ("exists", "changed") or (refusal.kind == "missing" and isinstance(mode, dict)):
                return False
            if refusal.kind == "unsupported" and mode is not None:
                raise _UnsupportedError from error
            raise refused("write", f"{self.root}/{name}", error) from None
        return True

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Collect the object in a temporary file, and put it when the block ends well."""
        import obstore

        with tempfile.TemporaryFile() as file:
            collected = _Unclosed(file)
            yield cast(BinaryIO, collected)
            collected.flush()
            size = file.seek(0, io.SEEK_END)

            def upload() -> None:
                file.seek(0)
                try:
                    obstore.put(self._store, self._key(name), file, chunk_size=_UPLOAD_BYTES, max_concurrency=4)
                except FileNotFoundError as error:  # also if the answer was lost that the upload is complete
                    if (
                        Refusal.of(error).kind == "bucket"
                        or (entry := self.stat(name)) is None
                        or entry.size != size
                    ):
                        raise

            with self._asking("write", name):
                retrying(upload)

    def sync(self, prefix: str) -> None:
        """Do nothing: what a store has taken survives."""

    def delete(self, name: str) -> None:
        """Delete the object."""
        import obstore

        with self._asking("delete", name, missing=None):
            retrying(lambda: obstore.delete(self._store, self._key(name)))

    @contextlib.contextmanager
    def _asking(self, verb: str, name: str, **otherwise: Any) -> Iterator[None]:
        """Turn what the store refuses into our own error; with `missing=None` an absent object is none."""
        url = f"{self.root}/{name}" if name else self.root
        try:
            yield
        except StorageError:
            raise
        except store_errors() as error:
            refusal = Refusal.of(error)
            if refusal.kind == "missing":
                if "missing" in otherwise:
                    return
                gone = FileNotFoundError(errno.ENOENT, "no such object", url)
                raise StorageError(f"Cannot {verb} '{url}': no such object.") from gone
            raise refused(verb, url, error) from None


def _gathered(data: Data) -> bytes | memoryview:
    """Give data in one piece; what comes in pieces is put into pages that go back to the system at once."""
    if isinstance(data, bytes | memoryview):
        return data if isinstance(data, bytes) else data.cast("B")  # Arrow's bytes have a sign
    # Private: the pages of a shared mapping cannot grow, whoever touches the new ones is killed.
    pages, n_bytes = mmap.mmap(-1, _BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
    for piece in data:
        if n_bytes + len(piece) > len(pages):
            pages.resize(max(2 * len(pages), n_bytes + len(piece)))
        pages[n_bytes : n_bytes + len(piece)] = piece
        n_bytes += len(piece)
    return memoryview(pages)[:n_bytes]


def list_objects(store: ObjectStore, prefix: str, start: str = "") -> Iterator[Any]:
    """Yield the objects below a prefix, after a key; a page that breaks off is asked for again from there."""
    import obstore

    n_failures = 0
    while True:
        try:
            for page in obstore.list(store, prefix or None, offset=start or None, chunk_size=1000):
                for one in page:
                    yield one
                    start, n_failures = one["path"], 0
            return
        except store_errors() as error:
            n_failures += 1
            if n_failures == TRIES or Refusal.of(error).kind != "transient":
                raise
            pause(n_failures)


class _UnsupportedError(Exception):
    """The store does not know conditional requests."""


class _Unclosed(io.BufferedRandom):
    """A file that whoever writes to it may close, as Arrow's writers do, and that is still there."""

    def __init__(self, file: Any) -> None:
        super().__init__(file.raw)

    def close(self) -> None:
        """Only flush."""
        self.flush()


class Ranges(io.RawIOBase):
    """An object of a bucket as a file: every read is a request for a range.

    Parameters
    ----------
    store : ObjectStore
        The bucket.
    key, url : str
        Its name there, and for people.
    size : int
        Its bytes.
    options : dict
        Of each request, such as the etag that it must have.
    """

    def __init__(self, store: ObjectStore, key: str, url: str, size: int, options: Any = None) -> None:
        self._store, self._key, self._url, self._size, self._at = store, key, url, size, 0
        self._options = options or {}

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Get the next bytes."""
        n = min(len(buffer), self._size - self._at)
        if n <= 0:
            return 0
        buffer[:n] = self._get(self._at, self._at + n)
        self._at += n
        return n

    def _get(self, start: int, end: int) -> bytes:
        import obstore

        options: Any = {**self._options, "range": (start, end)}
        try:
            return bytes(retrying(lambda: obstore.get(self._store, self._key, options=options).bytes()))
        except store_errors() as error:
            raise refused("read", self._url, error) from None
