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
_MISSING = (FileNotFoundError, NotADirectoryError)


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
        with _converting_errors("create", Path(self.root)):
            Path(self.root).mkdir(parents=True, exist_ok=True)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the regular files below `prefix`. Skip temporary files and dot files."""
        top = Path(self.root, prefix)
        try:
            with os.scandir(top) as entries:
                found = sorted(entries, key=lambda e: os.fsencode(e.name + "/" * e.is_dir()))
        except _MISSING:
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
        with _converting_errors("read", path), contextlib.suppress(*_MISSING):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                return Entry(name, status.st_size, _version(status))
        return None

    def read(self, name: str) -> bytes | None:
        """Return the bytes of the file. None if there is none."""
        path = Path(self.root, name)
        with _converting_errors("read", path), contextlib.suppress(*_MISSING):
            return path.read_bytes()
        return None

    def open(self, name: str) -> BinaryIO:
        """Open the file for reading. It stays the same when another file replaces it."""
        return self.open_version(name)[0]

    def open_version(self, name: str) -> tuple[BinaryIO, str]:
        """Open the file for reading, and return the file and its version."""
        path = Path(self.root, name)
        with _converting_errors("read", path):
            file = path.open("rb")
            return file, _version(os.fstat(file.fileno()))

    def write(self, name: str, data: Data) -> None:
        """Write an unnamed file, fsync, and link it; rename it over an existing object."""
        with self.stream(name) as file:
            file.writelines(pieces(data))

    def create(self, name: str, data: Data, *, durable: bool = True) -> bool:
        """Write an unnamed file, fsync, and link it."""
        target = Path(self.root, name)
        with _converting_errors("write", target):
            self._make_folder(target.parent)
            if target.exists():
                return False
            with _unnamed_file(target) as (file, source):
                file.writelines(pieces(data))
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                try:
                    _link(source, target)
                except FileExistsError:
                    return False
            if durable:
                _sync_folder(target.parent)
        return True

    def replace(self, name: str, data: Data, version: str) -> bool:
        """Write an unnamed file, fsync, and replace the object while the folder is locked."""
        target = Path(self.root, name)
        with _converting_errors("write", target):
            with _unnamed_file(target) as (file, source):
                file.writelines(pieces(data))
                _sync(file)
                with _locked(target.parent):
                    entry = self.stat(name)
                    if entry is None or entry.version != version:
                        return False
                    _link_over(source, target)
            _sync_folder(target.parent)
        return True

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """Yield an unnamed file that becomes the object when the block ends without error."""
        target = Path(self.root, name)
        with _converting_errors("write", target):
            self._make_folder(target.parent)
            with _unnamed_file(target) as (file, source):
                yield file
                _sync(file)
                _link_over(source, target)
            _sync_folder(target.parent)

    def sync(self, prefix: str) -> None:
        """Fsync the files and their folder. Files that are on disk already take a few microseconds each."""
        folder = Path(self.root, prefix)
        with _converting_errors("write", folder):
            for entry in self.list(prefix):
                with contextlib.suppress(FileNotFoundError), Path(self.root, entry.name).open("rb") as file:
                    os.fsync(file.fileno())
            if folder.is_dir():
                _sync_folder(folder)

    def delete(self, name: str) -> None:
        """Delete the file."""
        target = Path(self.root, name)
        with _converting_errors("delete", target):
            target.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        # Never create the root: if it is missing the storage is lost, and a new folder would hide that.
        if not folder.is_dir():
            if not Path(self.root).is_dir():
                raise FileNotFoundError(errno.ENOENT, "the destination is gone", self.root)
            folder.mkdir(parents=True, exist_ok=True)


# -- files and links -----------------------------------------------------------------------------------------

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


@contextlib.contextmanager
def _unnamed_file(target: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Yield a new unnamed file in the folder of `target`, and a path from which it can be linked."""
    try:
        descriptor = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    except (AttributeError, OSError) as error:  # not Linux, or a file system without unnamed files
        if isinstance(error, OSError) and error.errno not in _NO_UNNAMED_FILES:
            raise
        with _temporary(target) as temporary, temporary.open("xb") as file:
            yield file, str(temporary)
        return
    # Buffered: a raw file may write only a part, on a full disk or above 2 GiB, without an error.
    with os.fdopen(descriptor, "wb") as file:
        yield file, f"/proc/self/fd/{descriptor}"


def _link(source: str, target: Path) -> None:
    """Link a file to its name; raise FileExistsError if that exists."""
    # A directory descriptor makes Python call linkat(2), whose AT_SYMLINK_FOLLOW /proc/self/fd needs.
    folder = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.link(source, target.name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_copy(source, target)
    finally:
        os.close(folder)


def _rename_copy(source: str, target: Path) -> None:
    """Rename a copy, on file systems without links. Safe for one driver, but not for two."""
    if target.exists():
        raise FileExistsError(errno.EEXIST, "file exists", str(target))
    with _temporary(target) as temporary:
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)


def _link_over(source: str, target: Path) -> None:
    """Link a file to its name; replace an existing one by a rename, since link(2) cannot."""
    try:
        _link(source, target)
    except FileExistsError:
        with _temporary(target) as temporary:
            _link(source, temporary)
            temporary.replace(target)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Yield an unused path of a dot file next to `target`, and delete the file at the end."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


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


@contextlib.contextmanager
def _converting_errors(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(verb, path, error) from error


def _refused(verb: str, path: Path, error: OSError) -> StorageError:
    reason = (error.strerror or str(error)).lower()
    advice = {
        errno.ENOSPC: "; free some space and run again",
        errno.EDQUOT: "; raise the quota or free some space, and run again",
        errno.EACCES: "; grant this user the permission and try again",
        errno.EROFS: "; choose another folder with --out",
    }.get(error.errno or 0, "")
    return StorageError(f"Cannot {verb} '{path}': {reason}{advice}.")
