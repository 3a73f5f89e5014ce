"""A place in an object store as a storage."""

from __future__ import annotations

import contextlib
import errno
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from featurepress.errors import StorageError
from featurepress.storage.base import Data, Entry, pieces
from featurepress.storage.connection import Address, Refusal, connect, refused, retrying, store_errors

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_BLOCK_BYTES = 1024**2  # of a large object that is read here and there
_UPLOAD_BYTES = 8 * 1024**2  # a piece of a large object that is written


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
    def _store(self) -> ObjectStore:
        address = self._address
        return connect(address.scheme, address.bucket)

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._address.key, name) if part)

    def prepare(self) -> None:
        """Do nothing: a bucket has no folders."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix`; stores list in byte order, but for Azure's that is not promised."""
        import obstore

        start = len(self._key("")) + 1 if self._key("") else 0
        with self._asking("list", prefix):
            for found in obstore.list(self._store, self._key(prefix) or None):
                for one in found:
                    name = one["path"][start:]
                    if not name.rpartition("/")[2].startswith("."):
                        yield Entry(name, one["size"], one["e_tag"] or "")

    def look(self, name: str) -> Entry | None:
        """Ask for size and etag of the object."""
        import obstore

        with self._asking("look at", name, missing=None):
            found = retrying(lambda: obstore.head(self._store, self._key(name)))
            return Entry(name, found["size"], found["e_tag"] or "")
        return None

    def read(self, name: str) -> bytes | None:
        """Get the object."""
        import obstore

        with self._asking("read", name, missing=None):
            return bytes(retrying(lambda: obstore.get(self._store, self._key(name)).bytes()))
        return None

    def open(self, name: str) -> BinaryIO:
        """Open the object; one that fits into a block or two comes by a single request."""
        import obstore

        with self._asking("read", name):
            head = retrying(lambda: obstore.get(self._store, self._key(name)))
            size = head.meta["size"]
            if size <= 2 * _BLOCK_BYTES:
                with contextlib.suppress(*store_errors()):  # else it is asked for again, with retries
                    return io.BytesIO(bytes(head.bytes()))
                return io.BytesIO(bytes(retrying(lambda: obstore.get(self._store, self._key(name)).bytes())))
            file = Ranges(self._store, self._key(name), f"{self.root}/{name}", size)
            return cast(BinaryIO, io.BufferedReader(file, _BLOCK_BYTES))
        raise AssertionError("unreachable")

    def write(self, name: str, data: Data) -> None:
        """Put the object."""
        self._put("write", name, b"".join(pieces(data)), None)

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Put the object if there is none. A store without conditions is asked first, which is no proof."""
        try:
            return self._put("write", name, b"".join(pieces(data)), "create")
        except _UnsupportedError:
            if self.look(name) is not None:
                return False
            self.write(name, data)
            return True

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Put the object if its etag is still this one."""
        try:
            return self._put("write", name, b"".join(pieces(data)), {"e_tag": version})
        except _UnsupportedError:
            entry = self.look(name)
            if entry is None or entry.version != version:
                return False
            self.write(name, data)
            return True

    def _put(self, verb: str, name: str, data: bytes, mode: Any) -> bool:
        import obstore

        try:
            retrying(
                lambda: obstore.put(
                    self._store, self._key(name), data, mode=mode, use_multipart=None if mode is None else False
                )
            )
        except store_errors() as error:
            refusal = Refusal.of(error)
            if refusal.kind in ("exists", "changed") or (refusal.kind == "missing" and isinstance(mode, dict)):
                return False
            if refusal.kind == "unsupported" and mode is not None:
                raise _UnsupportedError from error
            raise refused(verb, f"{self.root}/{name}", error) from None
        return True

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Collect the object in a temporary file, and put it when the block ends well."""
        import obstore

        with tempfile.TemporaryFile() as file:
            collected = _Unclosed(file)
            yield cast(BinaryIO, collected)
            collected.flush()
            file.seek(0)
            with self._asking("write", name):
                obstore.put(self._store, self._key(name), file, chunk_size=_UPLOAD_BYTES, max_concurrency=4)

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
