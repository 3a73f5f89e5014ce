"""Images in folders, matched by globs, or as single files."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from typing import BinaryIO

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.ledger.names import PLAN
from featurepress.settings import ImageSettings
from featurepress.sources.base import ON_DISK
from featurepress.sources.selection import Glob, NameFilter, glob_root, is_glob
from featurepress.specs import ImageRef, SourceSpec

MAX_DEPTH = 250  # of nested folders; Python's recursion limit is a few hundred more
_ESCAPE = re.compile(rb"\\(?=x[0-9a-fA-F]{2})")  # a backslash in a name that reads like an escape of `path_text`
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # do not block on a pipe that has replaced the file

_Identity = tuple[int, int]  # device and inode


class FolderSource:
    """Images below a folder, matched by a glob, or one file.

    Folders are walked depth-first in byte order of the whole path; one folder at a time is in memory. Links to
    folders are followed, except into a folder that contains them. Dot files, everything below dot folders, feature
    sets and anything but regular files are skipped and counted. A folder that cannot be read, or a broken link with
    the name of an image, is listed with its problem and becomes a failure. If the root is missing (the folder, the
    part of a glob before its first pattern, or the folder of a file), listing and reading stop with an error.

    A location with ``*``, ``?`` or ``[`` is a glob unless a path has exactly this name: if a file is called
    ``a*.jpg``, the location ``a*.jpg`` means this file, and ``[a]*.jpg`` is the glob.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a folder, a glob (see `Glob`) or a file; `base`: the folder that a relative location starts
        from, ``/`` for an absolute one. Options ``all_files`` (bool), ``include`` and ``exclude`` (see
        `NameFilter`), and ``destination`` (an absolute path that is skipped, with everything below it).
    """

    reading = ON_DISK

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self.location = spec.location
        self.skipped: collections.Counter[str] = collections.Counter()
        location = re.sub("/+", "/", spec.location)
        self._glob = Glob(location) if is_glob(spec) else None
        self.base = os.fsencode(spec.base)
        self.root = os.fsencode(glob_root(location) if self._glob else spec.location)
        self._seen: _Identity | None = None  # of the root, when this object first used it
        self._filter = NameFilter(spec.options)
        self._start = len(self.root) + (not self.root.endswith(b"/")) if self.root else 0
        self._destination = os.fsencode(str(spec.options.get("destination", "")))

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of their paths."""
        self.skipped.clear()
        try:
            status = os.stat(self._path(self.root))
        except (OSError, ValueError) as error:
            raise SourceError(_missing(self.location, os.fsdecode(self.root), error)) from error
        if stat.S_ISDIR(status.st_mode):
            self._seen = _identity(status)
            prefix = self.root if not self.root or self.root.endswith(b"/") else self.root + b"/"
            yield from self._walk(prefix, start_after, (self._seen,), self._glob)
            self._stop_listing_if_gone()  # otherwise images of a folder that disappeared would count as deleted
        elif self._glob is None and not stat.S_ISREG(status.st_mode):
            raise SourceError(
                f"The source '{self.location}' is neither a regular file nor a folder. "
                "Name a folder, a glob or a file with images."
            )
        elif self._glob is None and self.root > start_after:
            yield _reference(self.root, status)

    def _walk(
        self, prefix: bytes, start_after: bytes, above: tuple[_Identity, ...], glob: Glob | None
    ) -> Iterator[ImageRef]:
        """Yield the images below the folder `prefix` (as the user spells it, with a slash at its end)."""
        if len(above) > MAX_DEPTH:
            yield from _unlisted(prefix, start_after, f"it is more than {MAX_DEPTH} folders deep")
            return
        try:
            with os.scandir(self._path(prefix)) as found:
                entries = sorted(((e.name + b"/" if _is_folder(e) else e.name), e) for e in found)
        except OSError as error:
            self._stop_listing_if_gone()
            yield from _unlisted(prefix, start_after, _text_of(error))
            return
        for name, entry in entries:
            path = prefix + name
            if name.startswith(b"."):
                if path > start_after:  # else the interrupted listing has counted it
                    self.skipped["dot file"] += 1
            elif not name.endswith(b"/"):
                is_wanted = path > start_after and (glob is None or glob.covers(os.fsdecode(path)))
                if is_wanted and (ref := self._file(path, entry)):
                    yield ref
            elif path >= start_after or start_after.startswith(path):
                # A folder that the glob matches includes everything below it.
                below = None if glob and glob.covers(os.fsdecode(path[:-1])) else glob
                if below is not None and not below.may_match_below(os.fsdecode(path[:-1])):
                    continue
                if (identity := self._enter(path, above)) is not None:
                    yield from self._walk(path, start_after, (*above, identity), below)

    def _file(self, path: bytes, entry: os.DirEntry[bytes]) -> ImageRef | None:
        """Return the reference of a directory entry, or count why it is skipped."""
        if reason := self._filter.skip_reason(os.fsdecode(path[self._start :])):
            self.skipped[reason] += 1
            return None
        try:
            status = entry.stat()
        except OSError as error:
            self._stop_listing_if_gone()
            if error.errno == errno.ELOOP or entry.is_symlink():
                return _reference(path, problem="broken link: its target does not exist")
            return _reference(path, problem=f"cannot be examined: {_text_of(error)}")
        if not stat.S_ISREG(status.st_mode):
            self.skipped["not a regular file"] += 1
            return None
        return _reference(path, status)

    def _enter(self, path: bytes, above: tuple[_Identity, ...]) -> _Identity | None:
        """Return the identity of a folder to walk into, or count why it is skipped."""
        full = self._path(path)
        if self._destination and os.path.realpath(full) == self._destination:
            self.skipped["the destination"] += 1
            return None
        if is_feature_set(full):
            self.skipped["feature set"] += 1
            return None
        try:
            identity = _identity(os.stat(full))
        except OSError:
            return (-1, -1)  # the walk into it reports the error
        if identity in above:
            self.skipped["link to a folder above it"] += 1
            return None
        return identity

    def read(self, ref: ImageRef) -> bytes:
        """Read a whole file, and check that it is the one that was listed."""
        self._remember_root(ref)
        try:
            descriptor = os.open(self._path(ref.order), _FLAGS)
        except OSError as error:
            raise self._failed_read(ref, error) from None
        try:
            data = os.read(descriptor, ref.size + 1)
            while len(data) < ref.size and (more := os.read(descriptor, ref.size + 1 - len(data))):
                data += more
            # One check at the end detects changes before and during the read.
            if len(data) != ref.size or _version(os.fstat(descriptor)) != ref.version:
                raise ImageError("read", "changed since listing")
        except OSError as error:
            raise self._failed_read(ref, error) from None
        finally:
            os.close(descriptor)
        return data

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the current reference of a file."""
        self._remember_root(ref)
        try:
            status = os.stat(self._path(ref.order))
        except OSError as error:
            failed = self._failed_read(ref, error)
            if isinstance(failed, StorageError):
                raise failed from None
            return ref._replace(size=0, version="", problem=failed.reason)
        if not stat.S_ISREG(status.st_mode):
            return ref._replace(size=0, version="", problem="no longer a regular file")
        return ref._replace(size=status.st_size, version=_version(status), problem=None)

    def open(self, ref: ImageRef) -> BinaryIO:
        """Open a file that contains images, and check that it is the one that was listed."""
        self._remember_root(ref)
        try:
            file = open(self._path(ref.order), "rb")  # noqa: PTH123, SIM115 - bytes; the caller closes it
        except OSError as error:
            raise self._failed_read(ref, error) from None
        if _version(os.fstat(file.fileno())) != ref.version:
            file.close()
            raise ImageError("read", "changed since listing")
        return file

    def _path(self, path: bytes) -> bytes:
        return os.path.join(self.base, path or b".")

    # -- whether the root still exists -----------------------------------------------------------------------

    def _failed_read(self, ref: ImageRef, error: OSError) -> ImageError | StorageError:
        """Return the error of one image, or that of the whole source if its root is gone."""
        if reason := self._gone(self._root_of(ref)):
            return StorageError(f"The source '{self.location}' is gone: {reason}. Restore it and resume.")
        if isinstance(error, FileNotFoundError):
            return ImageError("read", "vanished since listing")
        return ImageError("read", _text_of(error))

    def _stop_listing_if_gone(self) -> None:
        if reason := self._gone(self.root):
            raise SourceError(
                f"The source '{self.location}' is gone: {reason}. Restore it and run the same command again."
            )

    def _root_of(self, ref: ImageRef) -> bytes:
        """Return the folder without which no image of this source can be read."""
        location = os.fsencode(self.location)
        if ref.order == location:  # a single file
            return location.rpartition(b"/")[0]
        # A missing folder called "[2019]" looks like a glob; the paths of its images show that it is a folder.
        return location if ref.order.startswith(os.path.join(location, b"")) else self.root

    def _remember_root(self, ref: ImageRef) -> None:
        if self._seen is None:
            with contextlib.suppress(OSError):  # the read that follows fails with the reason
                self._seen = _identity(os.stat(self._path(self._root_of(ref))))

    def _gone(self, root: bytes) -> str:
        """Return the reason why the root is gone; "" if it exists."""
        path = self._path(root)
        try:
            identity = _identity(os.stat(path))
        except OSError as error:
            return f"'{path_text(path)}': {_text_of(error)}"
        if self._seen in (None, identity):
            return ""
        # The empty mount point of a disk that was unmounted.
        return f"'{path_text(path)}' is not the same folder as at the start"


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_feature_set(folder: bytes) -> bool:
    """Whether a folder contains a plan of featurepress."""
    try:
        descriptor = os.open(os.path.join(folder, os.fsencode(PLAN)), _FLAGS)
    except OSError:
        return False
    try:
        return b'"featurepress"' in os.read(descriptor, 256)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def _text_of(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def path_text(path: bytes) -> str:
    r"""Return a path as text; different paths have different texts.

    Bytes that are not UTF-8 are written as ``\xff``. A backslash before text that looks like such an escape is
    written as ``\x5c``.
    """
    if b"\\" in path:
        path = _ESCAPE.sub(rb"\\x5c", path)
    return path.decode("utf-8", "backslashreplace")


def _reference(path: bytes, status: os.stat_result | None = None, problem: str | None = None) -> ImageRef:
    uri = path_text(path)
    size, version = (status.st_size, _version(status)) if status else (0, "")
    return ImageRef(uri, 0, size, version, key=None if uri.encode() == path else path, problem=problem)


def _unlisted(prefix: bytes, start_after: bytes, reason: str) -> Iterator[ImageRef]:
    """Yield a reference with a problem for a folder that cannot be listed."""
    if prefix > start_after:
        yield _reference(prefix, problem=f"cannot list the folder: {reason}")
    elif prefix < start_after:
        raise StorageError(
            f"The folder '{path_text(prefix)}' cannot be listed to its end: {reason}. Some of its images are in "
            "the listing already. Make it readable, and resume."
        )


def _missing(location: str, root: str, error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
        return f"The source '{location}' cannot be read: {_text_of(error)}. Check it and the folders above it."
    if root == location:
        return f"There is no source '{location}': no such file or folder."
    return f"No image matches '{location}': there is no folder '{root}'."
