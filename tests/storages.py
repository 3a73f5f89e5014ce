"""Storages in a folder whose requests are slow or fail; processes of a run share them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurepress.errors import StorageError
from featurepress.storage import Data, Entry, FolderStorage, pieces


@dataclass(frozen=True)
class HookedStorage(FolderStorage):
    """A folder that calls `before` ahead of each request: the base of folders that are slow or fail."""

    def before(self, request: str, name: str, n_bytes: int) -> None:
        """Sleep or raise; `request` is ``list``, ``stat``, ``read``, ``open``, ``create`` and so on."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """See `Storage`; one request per 1,000 objects."""
        for i, entry in enumerate(super().list(prefix)):
            if i % 1_000 == 0:
                self.before("list", prefix, 0)
            yield entry

    def stat(self, name: str) -> Entry | None:
        """See `Storage`."""
        self.before("stat", name, 0)
        return super().stat(name)

    def read(self, name: str) -> bytes | None:
        """See `Storage`."""
        self.before("read", name, 0)
        return super().read(name)

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """See `Storage`."""
        self.before("open", name, 0)
        return super().open_version(name)

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """See `Storage`."""
        data = b"".join(pieces(data))
        self.before("create", name, len(data))
        return super().create(name, data, durable=durable)

    def write(self, name: str, data: Data) -> None:
        """See `Storage`."""
        data = b"".join(pieces(data))
        self.before("write", name, len(data))
        super().write(name, data)

    def replace(self, name: str, data: Data, version: str) -> bool:
        """See `Storage`."""
        data = b"".join(pieces(data))
        self.before("replace", name, len(data))
        return super().replace(name, data, version)

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """See `Storage`."""
        with super().stream(name) as file:
            yield file
            self.before("stream", name, file.tell())

    def delete(self, name: str) -> None:
        """See `Storage`."""
        self.before("delete", name, 0)
        super().delete(name)


@dataclass(frozen=True)
class QuotaStorage(HookedStorage):
    """A folder with a limit on the bytes of its objects; picklable, and shared by all processes.

    Parameters
    ----------
    root : str
        The folder.
    quota_file : str
        A file that holds the number of bytes; write a larger one to make space.
    delay_seconds : float
        Added to every write.
    """

    quota_file: str = ""
    delay_seconds: float = 0.0

    def before(self, request: str, name: str, n_bytes: int) -> None:
        """Raise StorageError if the data would exceed the quota."""
        if request not in ("create", "write", "replace", "stream"):
            return
        time.sleep(self.delay_seconds)
        if request == "create" and Path(self.root, name).exists():
            return
        if sum(entry.size for entry in self.list("")) + n_bytes > int(Path(self.quota_file).read_text("utf-8")):
            raise StorageError(
                f"Cannot write '{self.root}/{name}': no space left on device; free some space and run again."
            )


@dataclass(frozen=True)
class DelayedStorage(HookedStorage):
    """A folder whose every request takes `delay_seconds` longer, as that of a distant bucket."""

    delay_seconds: float = 0.0

    @property
    def is_remote(self) -> bool:
        """Always, so that it is used like a bucket."""
        return True

    def before(self, request: str, name: str, n_bytes: int) -> None:
        """Sleep."""
        time.sleep(self.delay_seconds)
