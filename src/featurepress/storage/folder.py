"""A folder on disk as a storage."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurepress.errors import StorageError
from featurepress.storage.base import Data, Entry, pieces

TEMPORARY_SUFFIX = ".featurepress-tmp"


@dataclass(frozen=True)
class FolderStorage:
    """A folder on disk.

    New objects are written to an unnamed file (O_TMPFILE), fsynced, and then linked to their name, so that a
    process killed at any moment leaves nothing behind. File systems without unnamed files use a temporary dot file.
    ``link(2)`` refuses an existing name, which makes `create` safe between any number of processes.

    Parameters
    ----------
    root : str
        Absolute path.
    """

    root: str

    @property
    def location(self) -> str:
        """The path of the root."""
        return self.root

    @property
    def is_remote(self) -> bool:
        """Always False."""
        return False

    @property
    def is_conditional(self) -> bool:
        """Always True: the kernel guarantees it."""
        return True

    def prepare(self) -> None:
        """Create the folder and its parents."""
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused("make", Path(self.root), error) from error

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the regular files below `prefix`. Skip temporary files and dot files."""
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
                    yield Entry(name, status.st_size, _version(status))
            except FileNotFoundError:  # deleted since the folder was listed, or a broken link
                continue
            except OSError as error:
                raise _refused("list", top / entry.name, error) from error

    def stat(self, name: str) -> Entry | None:
        """Return name, size and version of the file. None if there is none."""
        path = Path(self.root, name)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _refused("look at", path, error) from error
        if not stat.S_ISREG(status.st_mode):
            return None
        return Entry(name, status.st_size, _version(status))

    def read(self, name: str) -> bytes | None:
        """Return the bytes of the file. None if there is none."""
        try:
            return Path(self.root, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _refused("read", Path(self.root, name), error) from error

    def open(self, name: str) -> BinaryIO:
        """Open the file for reading. It stays the same when another file replaces it."""
        return self.open_version(name)[0]

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the file for reading, and return the file and its version."""
        try:
            file = Path(self.root, name).open("rb")  # noqa: SIM115 - the caller closes it
            return file, _version(os.fstat(file.fileno()))
        except OSError as error:
            raise _refused("read", Path(self.root, name), error) from error

    def write(self, name: str, data: Data) -> None:
        """Write an unnamed file, fsync, and link it; rename it over an existing object."""
        with self.stream(name) as file:
            file.writelines(pieces(data))

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Write an unnamed file, fsync, and link it."""
        target = Path(self.root, name)
        try:
            self._make_folder(target.parent)
            if target.exists():
                return False
            with _unnamed_file(target) as (file, link):
                file.writelines(pieces(data))
                file.flush()
                if durable:
                    _sync(file)
                try:
                    link()
                except FileExistsError:
                    return False
            if durable:
                _sync_folder(target.parent)
        except OSError as error:
            raise _refused("write", target, error) from error
        return True

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Write an unnamed file, fsync, and replace the object while the folder is locked."""
        target = Path(self.root, name)
        try:
            with _unnamed_file(target) as (file, link):
                file.writelines(pieces(data))
                _sync(file)
                with _locked(target.parent):
                    entry = self.stat(name)
                    if entry is None or entry.version != version:
                        return False
                    link.replace()
            _sync_folder(target.parent)
        except OSError as error:
            raise _refused("write", target, error) from error
        return True

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Yield an unnamed file that becomes the object when the block ends without error."""
        target = Path(self.root, name)
        try:
            self._make_folder(target.parent)
            with _unnamed_file(target) as (file, link):
                yield file
                _sync(file)
                link.replace()
            _sync_folder(target.parent)
        except OSError as error:
            raise _refused("write", target, error) from error

    def sync(self, prefix: str) -> None:
        """Fsync the files and their folder. Files that are on disk already take a few microseconds each."""
        folder = Path(self.root, prefix)
        try:
            for entry in self.list(prefix):
                with contextlib.suppress(FileNotFoundError), Path(self.root, entry.name).open("rb") as file:
                    os.fsync(file.fileno())
            if folder.is_dir():
                _sync_folder(folder)
        except OSError as error:
            raise _refused("write", folder, error) from error

    def delete(self, name: str) -> None:
        """Delete the file."""
        target = Path(self.root, name)
        try:
            target.unlink(missing_ok=True)
        except OSError as error:
            raise _refused("delete", target, error) from error

    def _make_folder(self, folder: Path) -> None:
        # Never create the root: if it is missing the storage is lost, and a new folder would hide that.
        if not folder.is_dir():
            if not Path(self.root).is_dir():
                raise FileNotFoundError(errno.ENOENT, "the destination is gone", self.root)
            folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _unnamed_file(target: Path) -> Iterator[tuple[BinaryIO, _Link]]:
    """Yield a new unnamed file, and a function that links it to `target` unless that exists."""
    try:
        descriptor = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except (AttributeError, OSError) as error:  # not Linux, or a file system without unnamed files
        if isinstance(error, OSError) and error.errno not in _NO_UNNAMED_FILES:
            raise
        temporary = _temporary_name(target)
        try:
            with temporary.open("xb") as file:
                yield file, _Link(str(temporary), target)
        finally:
            temporary.unlink(missing_ok=True)
        return
    # Buffered: a raw file may write only a part, on a full disk or above 2 GiB, without an error.
    with os.fdopen(descriptor, "wb") as file:
        yield file, _Link(f"/proc/self/fd/{descriptor}", target)


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


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
            self._rename_copy()

    def _link(self) -> None:
        # A directory descriptor makes Python call linkat(2), whose AT_SYMLINK_FOLLOW /proc/self/fd needs.
        folder = os.open(self.target.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.link(self.source, self.target.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def _rename_copy(self) -> None:
        """Rename a copy, on file systems without links. Safe for one driver, but not for two."""
        if self.target.exists():
            raise FileExistsError(errno.EEXIST, "file exists", str(self.target))
        temporary = _temporary_name(self.target)
        try:
            shutil.copyfile(self.source, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.target)
        finally:
            temporary.unlink(missing_ok=True)

    def replace(self) -> None:
        """Link to the target, or replace an existing one by a rename, since link(2) cannot."""
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


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that one process at a time replaces its files. Without locks, only one driver is safe."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _version(status: os.stat_result) -> str:
    """Return the version of a file. Objects are never written in place."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, if the file system can sync folders."""
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
