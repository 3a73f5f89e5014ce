"""A prefix of a bucket as a storage."""

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

_BLOCK_BYTES = 1024**2  # read ahead in a large object
_UPLOAD_BYTES = 8 * 1024**2  # of each piece of a multipart upload
_PUT_SECONDS = 300.0  # for a part of tens of megabytes on a slow connection
# Scheme and bucket of stores that have refused a conditional request.
_UNCONDITIONAL: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class BucketStorage:
    """The objects below a prefix of a bucket.

    `create` is a conditional PUT (If-None-Match, or the generation on Google), and so is `replace` (If-Match): the
    store decides between any number of machines. An object is written by a single request, or by a multipart upload
    that is completed or aborted, so readers never see an incomplete object.

    Parameters
    ----------
    root : str
        Url, without a trailing slash.
    """

    root: str

    @property
    def location(self) -> str:
        """The url of the root."""
        return self.root

    @property
    def _address(self) -> Address:
        return Address.parse(self.root)

    @property
    def is_remote(self) -> bool:
        """Return True."""
        return True

    @property
    def is_conditional(self) -> bool:
        """Whether the store has refused no condition in this process."""
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
        """Yield the objects below `prefix`, in byte order, which is the order of stores."""
        start = len(self._key("")) + 1 if self._key("") else 0
        with self._translating_errors("list", prefix):
            for one in list_objects(self._store, self._key(prefix)):
                name = one["path"][start:]
                if not name.rpartition("/")[2].startswith("."):
                    yield Entry(name, one["size"], self._version(one))

    def _version(self, found: Any) -> str:
        """Return what a condition needs: the etag, or on Google the generation, which listings leave out."""
        return (found["version"] or "") if self._address.scheme == "gs" else etag_of(found)

    def stat(self, name: str) -> Entry | None:
        """Request size and etag of the object."""
        import obstore

        with self._translating_errors("look at", name, missing=None):
            found = retrying(lambda: obstore.head(self._store, self._key(name)))
            return Entry(name, found["size"], self._version(found))
        return None

    def read(self, name: str) -> bytes | None:
        """Get the object."""
        import obstore

        with self._translating_errors("read", name, missing=None):
            return bytes(retrying(lambda: obstore.get(self._store, self._key(name)).bytes()))
        return None

    def open(self, name: str) -> BinaryIO:
        """Open the object. A small one is read by a single request."""
        return self.open_version(name)[0]

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the object, and return the file and its version. Later requests require the same etag."""
        import obstore

        store, key = self._store, self._key(name)

        def get() -> tuple[Any, bytes | None]:
            found = obstore.get(store, key)
            return found.meta, bytes(found.bytes()) if found.meta["size"] <= 2 * _BLOCK_BYTES else None

        with self._translating_errors("read", name):
            meta, data = retrying(get)
            if data is not None:
                return io.BytesIO(data), self._version(meta)
            condition = {"if_match": etag} if (etag := etag_of(meta)) else {}
            file = Ranges(store, key, f"{self.root}/{name}", meta["size"], condition)
            return cast(BinaryIO, io.BufferedReader(file, _BLOCK_BYTES)), self._version(meta)
        raise AssertionError("unreachable")

    def write(self, name: str, data: Data) -> None:
        """Put the object."""
        self._put(name, _joined(data), None)

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Put the object if there is none. Without conditional requests, check first, which is not safe."""
        content = _joined(data)
        if self.is_conditional:
            try:
                return self._put(name, content, "create")
            except _UnsupportedError:
                _UNCONDITIONAL.add(self._bucket)
        return self.stat(name) is None and self._put(name, content, None)

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Put the object if it still has this etag or generation."""
        content = _joined(data)
        if self.is_conditional:
            try:
                kind = "version" if self._address.scheme == "gs" else "e_tag"
                return self._put(name, content, {kind: version})
            except _UnsupportedError:
                _UNCONDITIONAL.add(self._bucket)
        entry = self.stat(name)
        return entry is not None and entry.version == version and self._put(name, content, None)

    def _put(self, name: str, data: bytes | memoryview, mode: Any) -> bool:
        """Put the object by a single request, so that a killed process leaves no unfinished upload."""
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
        """Yield a temporary file, and upload it when the block ends without error."""
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

            with self._translating_errors("write", name):
                retrying(upload)

    def sync(self, prefix: str) -> None:
        """Do nothing: stored objects are durable."""

    def delete(self, name: str) -> None:
        """Delete the object."""
        import obstore

        with self._translating_errors("delete", name, missing=None):
            retrying(lambda: obstore.delete(self._store, self._key(name)))

    @contextlib.contextmanager
    def _translating_errors(self, verb: str, name: str, **otherwise: Any) -> Iterator[None]:
        """Convert errors of the store to StorageError. With `missing=None`, ignore a missing object."""
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


def _joined(data: Data) -> bytes | memoryview:
    """Return data in one piece. Pieces are copied into mapped memory, which is freed immediately afterwards."""
    if isinstance(data, bytes | memoryview):
        return data if isinstance(data, bytes) else data.cast("B")  # Arrow's buffers are signed bytes
    # Private: a shared mapping cannot grow, and touching the new pages would kill the process.
    pages, n_bytes = mmap.mmap(-1, _BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), 0
    for piece in data:
        if n_bytes + len(piece) > len(pages):
            pages.resize(max(2 * len(pages), n_bytes + len(piece)))
        pages[n_bytes : n_bytes + len(piece)] = piece
        n_bytes += len(piece)
    return memoryview(pages)[:n_bytes]


def list_objects(store: ObjectStore, prefix: str, start: str = "") -> Iterator[Any]:
    """Yield the objects below a prefix, after the key `start`. Continue from the last key if a page fails."""
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
    """The store does not support conditional requests."""


class _Unclosed(io.BufferedRandom):
    """A file that stays open when a writer closes it, as Arrow's writers do."""

    def __init__(self, file: Any) -> None:
        super().__init__(file.raw)

    def close(self) -> None:
        """Only flush."""
        self.flush()


class Ranges(io.RawIOBase):
    """An object of a bucket as a file. Every read is a range request.

    Parameters
    ----------
    store : ObjectStore
        The bucket.
    key, url : str
        Its key, and its url for messages.
    size : int
        Size in bytes.
    options : dict
        Options of each request, such as the etag that is required.
    """

    def __init__(self, store: ObjectStore, key: str, url: str, size: int, options: Any = None) -> None:
        self._store, self._key, self._url, self._size, self._at = store, key, url, size, 0
        self._options = options or {}

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Request the next bytes."""
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
