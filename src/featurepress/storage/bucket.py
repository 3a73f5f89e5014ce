"""A prefix of a bucket as a storage."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import tempfile
from collections.abc import Callable, Iterator
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
UNCONDITIONAL: set[tuple[str, str]] = set()


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
    def is_remote(self) -> bool:
        """Always True."""
        return True

    @property
    def is_conditional(self) -> bool:
        """Whether the store has refused no condition in this process."""
        return self._bucket not in UNCONDITIONAL

    @property
    def _address(self) -> Address:
        return Address.parse(self.root)

    @property
    def _bucket(self) -> tuple[str, str]:
        return self._address.scheme, self._address.bucket

    @property
    def _is_google(self) -> bool:
        return self._address.scheme == "gs"

    @property
    def _store(self) -> ObjectStore:
        return connect(*self._bucket)

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._address.key, name) if part)

    def _url(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _version(self, found: Any) -> str:
        """Return the version for a condition: the etag, or on Google the generation, which listings lack."""
        return (found["version"] or "") if self._is_google else etag_of(found)

    def prepare(self) -> None:
        """Do nothing: a bucket has no folders."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`, in byte order, which is the order of stores."""
        start = len(self._key("")) + 1 if self._key("") else 0
        try:
            for found in list_objects(self._store, self._key(prefix)):
                name = found["path"][start:]
                if not name.rpartition("/")[2].startswith("."):
                    yield Entry(name, found["size"], self._version(found))
        except store_errors() as error:
            raise refused("list", self._url(prefix), error) from None

    def stat(self, name: str) -> Entry | None:
        """Request size and etag of the object."""
        import obstore

        found = self._request("read", name, lambda: obstore.head(self._store, self._key(name)), missing_ok=True)
        return Entry(name, found["size"], self._version(found)) if found else None

    def read(self, name: str) -> bytes | None:
        """Get the object."""
        import obstore

        found = self._request(
            "read", name, lambda: obstore.get(self._store, self._key(name)).bytes(), missing_ok=True
        )
        return None if found is None else bytes(found)

    def open(self, name: str) -> BinaryIO:
        """Open the object. A small one is read by a single request."""
        return self.open_version(name)[0]

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the object, and return the file and its version. Later requests require the same etag."""
        import obstore

        def get() -> tuple[Any, bytes | None]:
            found = obstore.get(self._store, self._key(name))
            return found.meta, bytes(found.bytes()) if found.meta["size"] <= 2 * _BLOCK_BYTES else None

        meta, data = self._request("read", name, get)
        if data is not None:
            return io.BytesIO(data), self._version(meta)
        condition = {"if_match": etag} if (etag := etag_of(meta)) else {}
        file = Ranges(self._store, self._key(name), self._url(name), meta["size"], condition)
        return cast(BinaryIO, io.BufferedReader(file, _BLOCK_BYTES)), self._version(meta)

    def write(self, name: str, data: Data) -> None:
        """Put the object."""
        self._put(name, _joined(data))

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Put the object if there is none. Without conditional requests, check first, which is not safe."""
        content = _joined(data)
        if self.is_conditional:
            with contextlib.suppress(_UnsupportedError):
                return self._put(name, content, "create")
        return self.stat(name) is None and self._put(name, content)

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Put the object if it still has this etag or generation."""
        content = _joined(data)
        if self.is_conditional:
            with contextlib.suppress(_UnsupportedError):
                return self._put(name, content, {"version" if self._is_google else "e_tag": version})
        entry = self.stat(name)
        return entry is not None and entry.version == version and self._put(name, content)

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
                except FileNotFoundError as error:  # also if the upload is complete and that answer was lost
                    entry = None if Refusal.of(error).kind == "bucket" else self.stat(name)
                    if entry is None or entry.size != size:
                        raise

            self._request("write", name, upload)

    def sync(self, prefix: str) -> None:
        """Do nothing: stored objects are durable."""

    def delete(self, name: str) -> None:
        """Delete the object."""
        import obstore

        self._request("delete", name, lambda: obstore.delete(self._store, self._key(name)), missing_ok=True)

    def _put(self, name: str, data: bytes | memoryview, mode: Any = None) -> bool:
        """Put the object under the condition `mode`, and return whether it was met.

        A single request, so that a killed process leaves no unfinished upload.
        """
        import obstore

        store = connect(*self._bucket, timeout_seconds=_PUT_SECONDS, tries=2)
        try:
            retrying(lambda: obstore.put(store, self._key(name), data, mode=mode, use_multipart=False))
        except store_errors() as error:
            refusal = Refusal.of(error)
            if refusal.kind in ("exists", "changed") or (refusal.kind == "missing" and isinstance(mode, dict)):
                return False
            if refusal.kind == "unsupported" and mode is not None:
                UNCONDITIONAL.add(self._bucket)
                raise _UnsupportedError from error
            raise refused("write", self._url(name), error) from None
        return True

    def _request(self, verb: str, name: str, call: Callable[[], Any], *, missing_ok: bool = False) -> Any:
        """Return the result of `call`, with retries and errors of this library; None for a missing object."""
        try:
            return retrying(call)
        except store_errors() as error:
            if Refusal.of(error).kind != "missing":
                raise refused(verb, self._url(name), error) from None
            if missing_ok:
                return None
            gone = FileNotFoundError(errno.ENOENT, "no such object", self._url(name))
            raise StorageError(f"Cannot {verb} '{self._url(name)}': no such object.") from gone


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
                for found in page:
                    yield found
                    start, n_failures = found["path"], 0
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

    `url` is for messages; `options` are those of each request, such as the required etag.
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
