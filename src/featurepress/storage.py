"""Folders (and later buckets) behind one small contract: list, read, write whole, create only if absent.

An object appears under its name complete or not at all. `create` is what makes a part exactly once: of any
number of attempts, in any processes, one succeeds and the others learn that they lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from featurepress.errors import DestinationError, FeatureSetError, StorageError

Data = bytes | memoryview | Iterable[bytes]  # an iterable: pieces that follow one another
TEMPORARY_SUFFIX = ".featurepress-tmp"


class Entry(NamedTuple):
    """One object of a listing: its name below the storage's root, and its bytes."""

    name: str
    size: int


class Storage(Protocol):
    """Named objects below one root. Instances are small, picklable, and open what they need by themselves.

    Names use ``/``. Objects are whole: readers never see half of one. Every method raises StorageError with
    one line for people where the storage refuses.
    """

    @property
    def location(self) -> str:
        """The root, for people."""

    def prepare(self) -> None:
        """Make the root ready for writing; the driver calls this once, before anything is written."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below the folder `prefix` ("" for all), in byte order of their names."""

    def read(self, name: str) -> bytes | None:
        """Give the object's bytes, or None if there is none."""

    def open(self, name: str) -> BinaryIO:
        """Open the object for reading at any position.

        Where there is none, the StorageError is raised from a FileNotFoundError.
        """

    def write(self, name: str, data: Data) -> None:
        """Create or replace the object, whole."""

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Create the object only if there is none; say whether this call did it.

        With `durable` it is sure to survive a power cut once this returns. Without, which is quicker on a
        disk, a power cut may leave it out, or empty: good for what can be made again.
        """

    def stream(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Write an object too large for memory; it appears, or is replaced, when the block ends well."""

    def delete(self, name: str) -> None:
        """Delete the object; it is no error if there is none."""


def pieces(data: Data) -> Iterable[bytes | memoryview]:
    """Give data as the pieces that they consist of; an iterator can be taken once."""
    return [data] if isinstance(data, bytes | memoryview) else data


def open_storage(location: str) -> Storage:
    """Give the storage at `location`, a path. Nothing is created or touched.

    Raises
    ------
    DestinationError
        The location cannot be a folder's path.
    """
    if not location or "\0" in location or re.match(r"[a-z][a-z0-9+.-]+://", location, re.IGNORECASE):
        raise DestinationError(
            f"A feature set lies in a folder on disk. Got {location!r}; give a path such as 'features/'."
        )
    return FolderStorage(str(Path(location).expanduser().absolute()))


@contextlib.contextmanager
def undamaged(storage: Storage, name: str) -> Iterator[None]:
    """Say which object it is that a reader inside the block cannot make sense of."""
    try:
        yield
    except (ValueError, OSError, KeyError) as error:  # Arrow's errors are ValueErrors and OSErrors
        reason = " ".join(str(error).split())
        raise FeatureSetError(
            f"'{storage.location}/{name}' is damaged: {reason}. Restore it, or embed into a new folder."
        ) from error


@dataclass(frozen=True)
class FolderStorage:
    """A folder on disk.

    New objects are written without a name (O_TMPFILE), fsynced, and then linked to their name, so that a
    process killed at any moment leaves nothing behind; where the file system cannot do that they get a
    temporary dot name first. ``link(2)`` refuses an existing name, which makes `create` safe between any
    number of processes.

    Parameters
    ----------
    root : str
        Absolute path.
    """

    root: str

    @property
    def location(self) -> str:
        """The path."""
        return self.root

    def prepare(self) -> None:
        """Make the folder, with its parents."""
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused("make", Path(self.root), error) from error

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the regular files below `prefix`; temporary names and dot files are no objects."""
        top = Path(self.root, prefix)
        try:
            with os.scandir(top) as entries:
                found = sorted(entries, key=lambda e: os.fsencode(e.name + "/" * e.is_dir()))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _refused("list", top, error) from error
        for entry in found:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    yield from self.list(name)
                elif stat.S_ISREG((status := entry.stat()).st_mode):
                    yield Entry(name, status.st_size)
            except FileNotFoundError:  # deleted since the folder was listed, or a link that leads nowhere
                continue
            except OSError as error:
                raise _refused("list", top / entry.name, error) from error

    def read(self, name: str) -> bytes | None:
        """Give the file's bytes, or None."""
        try:
            return Path(self.root, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _refused("read", Path(self.root, name), error) from error

    def open(self, name: str) -> BinaryIO:
        """Open the file for reading."""
        try:
            return Path(self.root, name).open("rb")
        except OSError as error:
            raise _refused("read", Path(self.root, name), error) from error

    def write(self, name: str, data: Data) -> None:
        """Write without a name, fsync, link; over an object that is there, rename."""
        with self.stream(name) as file:
            file.writelines(pieces(data))

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Write without a name, fsync, link."""
        target = Path(self.root, name)
        try:
            self._make_folder(target.parent)
            if target.exists():
                return False
            with _nameless(target) as (file, link):
                file.writelines(pieces(data))
                file.flush()
                if durable:
                    _settle(file)
                try:
                    link()
                except FileExistsError:
                    return False
            if durable:
                _settle_folder(target.parent)
        except OSError as error:
            raise _refused("write", target, error) from error
        return True

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Give a file without a name that takes the object's name when the block ends well."""
        target = Path(self.root, name)
        try:
            self._make_folder(target.parent)
            with _nameless(target) as (file, link):
                yield file
                _settle(file)
                link.replace()
            _settle_folder(target.parent)
        except OSError as error:
            raise _refused("write", target, error) from error

    def delete(self, name: str) -> None:
        """Unlink the file."""
        target = Path(self.root, name)
        try:
            target.unlink(missing_ok=True)
        except OSError as error:
            raise _refused("delete", target, error) from error

    def _make_folder(self, folder: Path) -> None:
        # Never the root: if that is gone the storage is lost, and a new one in its place would hide it.
        if not folder.is_dir():
            if not Path(self.root).is_dir():
                raise FileNotFoundError(errno.ENOENT, "the destination is gone", self.root)
            folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _nameless(target: Path) -> Iterator[tuple[BinaryIO, _Link]]:
    """Give a new file without a name, and the call that links it to `target` unless that exists."""
    try:
        descriptor = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except (AttributeError, OSError) as error:  # no Linux, or a file system without nameless files
        if isinstance(error, OSError) and error.errno not in _NO_NAMELESS:
            raise
        temporary = _temporary_name(target)
        try:
            with temporary.open("xb") as file:
                yield file, _Link(str(temporary), target)
        finally:
            temporary.unlink(missing_ok=True)
        return
    # Buffered: a raw file's write stops short of a full disk, and of 2 GiB, without an error.
    with os.fdopen(descriptor, "wb") as file:
        yield file, _Link(f"/proc/self/fd/{descriptor}", target)


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


@dataclass(frozen=True)
class _Link:
    source: str
    target: Path

    def __call__(self) -> None:
        try:
            self._link()
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._rename_a_copy()

    def _link(self) -> None:
        # A directory descriptor makes Python call linkat(2), whose AT_SYMLINK_FOLLOW /proc/self/fd needs.
        folder = os.open(self.target.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.link(self.source, self.target.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def _rename_a_copy(self) -> None:
        """Do without links, where there are none: that is safe for one driver, but not for two at once."""
        if self.target.exists():
            raise FileExistsError(errno.EEXIST, "it exists", str(self.target))
        temporary = _temporary_name(self.target)
        try:
            shutil.copyfile(self.source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.target)
        finally:
            temporary.unlink(missing_ok=True)

    def replace(self) -> None:
        """Link to the target even if that exists: link(2) cannot, so a rename has to follow it."""
        try:
            self()
        except FileExistsError:
            temporary = _temporary_name(self.target)
            try:
                _Link(self.source, temporary)()
                temporary.replace(self.target)
            finally:
                temporary.unlink(missing_ok=True)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _settle_folder(folder: Path) -> None:
    """Make a new name survive a power cut; where folders cannot be synced, the name is as safe as it gets."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(verb: str, path: Path, error: OSError) -> StorageError:
    reason = (error.strerror or str(error)).lower()
    advice = {
        errno.ENOSPC: "; make space and go on",
        errno.EDQUOT: "; raise the quota or make space, and go on",
        errno.EACCES: "; give this user the right and try again",
        errno.EROFS: "; choose another place with --out",
    }.get(error.errno or 0, "")
    return StorageError(f"Cannot {verb} '{path}': {reason}{advice}.")
