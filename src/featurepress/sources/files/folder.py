"""Images in folders, by globs, or as single files."""

from __future__ import annotations

import collections
import contextlib
import errno
import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.ledger.names import PLAN
from featurepress.settings import ImageSettings
from featurepress.sources.base import ON_DISK, KeyFilter
from featurepress.specs import ImageRef, SourceSpec

MAX_DEPTH = 250  # folders inside one another; Python's stack ends at a few hundred more
_MAGIC = re.compile(r"[*?\[]")
_ESCAPE = re.compile(rb"\\(?=x[0-9a-fA-F]{2})")  # a backslash in a name that reads like an escape of `path_text`


def has_magic(location: str) -> bool:
    """Whether a location is a glob rather than a path."""
    return _MAGIC.search(location) is not None


def glob_root(location: str) -> str:
    """Return the part of a glob before its first pattern: the folder that has to be walked."""
    parts = location.split("/")
    n_plain = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    return "/".join(parts[:n_plain]) or ("/" if location.startswith("/") else "")


def is_glob(spec: SourceSpec) -> bool:
    """Whether a source is a glob: a path that is there under this very name, such as ``photos [2019]``, is none."""
    return has_magic(spec.location) and not os.path.lexists(os.path.join(spec.base, spec.location))


class FolderSource:
    """Images below a folder, matched by a glob, or one file.

    Folders are walked depth-first in byte order of the whole path, a folder at a time in memory. Links to
    folders are followed, except into a folder that the walk is already inside. Dot files, everything below
    dot folders, feature sets and whatever is not a regular file are passed over and counted. A folder that
    cannot be read, or a broken link with an image's name, is listed with its problem and so ends up in the
    failure ledger. While the root is away (the folder, what stands before a glob's first pattern, or the folder
    of a file) neither listing nor reading says anything about single images: both stop.

    A location with ``*``, ``?`` or ``[`` is a glob only while nothing has this very name: where a file or folder
    is called ``a*.jpg``, the location ``a*.jpg`` stands for that one alone, and ``[a]*.jpg`` asks for the glob.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a folder, a glob (``*``, ``?``, ``[…]`` in a name; ``**`` for any folders) or a file;
        `base`: the folder that a relative location starts from, ``/`` for an absolute one; options ``all_files``
        (bool), ``include`` and ``exclude`` (patterns, see `KeyFilter`), and ``destination`` (an absolute path that
        is left out with all below it).
    """

    reading = ON_DISK

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self.location = spec.location
        self.is_glob = is_glob(spec)
        self.base = os.fsencode(spec.base)
        self._glob = re.sub("/+", "/", spec.location) if self.is_glob else ""
        self.root = os.fsencode(glob_root(self._glob) if self.is_glob else spec.location)
        self._seen: tuple[int, int] | None = None  # device and inode of the root when this object first saw it
        self._filter = KeyFilter.of(spec)
        self._start = len(self.root) + (not self.root.endswith(b"/")) if self.root else 0
        self.destination = os.fsencode(str(spec.options.get("destination", "")))
        self._skipped: collections.Counter[str] = collections.Counter()

    @property
    def skipped(self) -> collections.Counter[str]:
        """What the listing has passed over, by reason."""
        return self._skipped

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of their paths."""
        self._skipped.clear()
        top = self.root
        patterns: Sequence[str] | None = None
        if self.is_glob:
            # A closing slash asks for folders, with all that is below them.
            patterns = (self._glob + "**" * self._glob.endswith("/")).split("/")
        try:
            status = os.stat(os.path.join(self.base, top or b"."))
        except (OSError, ValueError) as error:
            raise SourceError(_missing(self.location, os.fsdecode(top), error)) from error
        if stat.S_ISDIR(status.st_mode):
            self._seen = (status.st_dev, status.st_ino)
            prefix = top if not top or top.endswith(b"/") else top + b"/"
            yield from self._walk(prefix, start_after, (self._seen,), patterns)
            self._stop_listing_if_gone()  # else what was not to be seen any more would count as not there
        elif patterns is None and not stat.S_ISREG(status.st_mode):
            raise SourceError(
                f"The source '{self.location}' is neither a regular file nor a folder. "
                "Name a folder, a glob or a file with images."
            )
        elif patterns is None and top > start_after:
            yield _reference(top, status)

    def _walk(
        self,
        prefix: bytes,
        start_after: bytes,
        above: tuple[tuple[int, int], ...],
        patterns: Sequence[str] | None,
    ) -> Iterator[ImageRef]:
        """Yield what lies below the folder `prefix` (with its closing slash, as the user spells it)."""
        folder = os.path.join(self.base, prefix or b".")
        if len(above) > MAX_DEPTH:
            yield from _unlisted(prefix, start_after, f"it lies more than {MAX_DEPTH} folders deep")
            return
        try:
            with os.scandir(folder) as found:
                entries = sorted(((e.name + b"/" if _is_folder(e) else e.name), e) for e in found)
        except OSError as error:
            self._stop_listing_if_gone()
            yield from _unlisted(prefix, start_after, (error.strerror or str(error)).lower())
            return
        for name, entry in entries:
            path = prefix + name
            if name.startswith(b"."):
                if path > start_after:  # else the interrupted listing has counted it
                    self._skipped["dot file"] += 1
                continue
            if not name.endswith(b"/"):
                wanted = patterns is None or _matches(_parts(path), patterns)
                if wanted and path > start_after and (ref := self._file(path, entry)):
                    yield ref
                continue
            if path < start_after and not start_after.startswith(path):
                continue
            below = patterns
            if patterns is not None:
                parts = _parts(path[:-1])
                if _matches(parts, patterns):
                    below = None  # a folder that the glob names whole stands for all that is below it
                elif not _matches(parts, patterns, beginning=True):
                    continue
            if (identity := self._enter(folder, name, above)) is not None:
                yield from self._walk(path, start_after, (*above, identity), below)

    def _file(self, path: bytes, entry: os.DirEntry[bytes]) -> ImageRef | None:
        """Return the reference of one directory entry that is no folder, or count why there is none."""
        if reason := self._filter.passes_over(os.fsdecode(path[self._start :])):
            self._skipped[reason] += 1
            return None
        try:
            status = entry.stat()
        except OSError as error:
            self._stop_listing_if_gone()
            if error.errno == errno.ELOOP or entry.is_symlink():
                return _problem(path, "broken link: it leads nowhere")
            return _problem(path, f"cannot be examined: {(error.strerror or str(error)).lower()}")
        if not stat.S_ISREG(status.st_mode):
            self._skipped["not a regular file"] += 1
            return None
        return _reference(path, status)

    def _enter(self, folder: bytes, name: bytes, above: tuple[tuple[int, int], ...]) -> tuple[int, int] | None:
        """Return the identity of a folder to walk into, or count why it is passed over."""
        path = os.path.join(folder, name)
        if self.destination and os.path.realpath(path) == self.destination:
            self._skipped["the destination"] += 1
            return None
        if is_feature_set(path):
            self._skipped["feature set"] += 1
            return None
        try:
            status = os.stat(path)
        except OSError:
            return (-1, -1)  # the walk into it will say what is wrong
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            self._skipped["link to a folder above it"] += 1
            return None
        return identity

    def read(self, ref: ImageRef) -> bytes:
        """Read a whole file and make sure that it is the one that was listed."""
        if self._seen is None:
            self._remember(self._root_of(ref))
        # O_NONBLOCK: a pipe that took the file's place since the listing must not block us.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(os.path.join(self.base, ref.order), flags)
        except OSError as error:
            raise self._failed_read(ref, error) from None
        try:
            data = os.read(descriptor, ref.size + 1)
            while len(data) < ref.size and (more := os.read(descriptor, ref.size + 1 - len(data))):
                data += more
            # One check, at the end, finds changes before the read and during it.
            if len(data) != ref.size or _version(os.fstat(descriptor)) != ref.version:
                raise ImageError("read", "changed since listing")
        except OSError as error:
            raise self._failed_read(ref, error) from None
        finally:
            os.close(descriptor)
        return data

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the reference of the file as it is now."""
        if self._seen is None:
            self._remember(self._root_of(ref))
        try:
            status = os.stat(os.path.join(self.base, ref.order))
        except OSError as error:
            failed = self._failed_read(ref, error)
            if isinstance(failed, StorageError):
                raise failed from None
            return ref._replace(size=0, version="", problem=failed.reason)
        if not stat.S_ISREG(status.st_mode):
            return ref._replace(size=0, version="", problem="not a regular file any more")
        return ref._replace(size=status.st_size, version=_version(status), problem=None)

    def open(self, ref: ImageRef) -> BinaryIO:
        """Open a file that is no image but holds some, and make sure that it is the one that was listed."""
        if self._seen is None:
            self._remember(self._root_of(ref))
        try:
            file = open(os.path.join(self.base, ref.order), "rb")  # noqa: PTH123, SIM115 - bytes; whoever asks closes
        except OSError as error:
            raise self._failed_read(ref, error) from None
        if _version(os.fstat(file.fileno())) != ref.version:
            file.close()
            raise ImageError("read", "changed since listing")
        return file

    # -- whether the root still stands -----------------------------------------------------------------------

    def _failed_read(self, ref: ImageRef, error: OSError) -> ImageError | StorageError:
        """Return the error of one image, or that of the whole source if it is away."""
        if reason := self._gone(self._root_of(ref)):
            return StorageError(f"The source '{self.location}' is gone: {reason}. Bring it back and resume.")
        if isinstance(error, FileNotFoundError):
            return ImageError("read", "vanished since listing")
        return ImageError("read", (error.strerror or str(error)).lower())

    def _stop_listing_if_gone(self) -> None:
        if reason := self._gone(self.root):
            raise SourceError(
                f"The source '{self.location}' is gone: {reason}. Bring it back and run the same command again."
            )

    def _root_of(self, ref: ImageRef) -> bytes:
        """Return the folder without which no image of this source can be read."""
        location = os.fsencode(self.location)
        if ref.order == location:  # a single file
            return location.rpartition(b"/")[0]
        # A folder called "[2019]" looks like a glob while it is missing; its images show that it was a folder.
        return location if ref.order.startswith(os.path.join(location, b"")) else self.root

    def _remember(self, root: bytes) -> None:
        with contextlib.suppress(OSError):  # the read that follows fails and says why
            status = os.stat(os.path.join(self.base, root or b"."))
            self._seen = (status.st_dev, status.st_ino)

    def _gone(self, root: bytes) -> str:
        """Say in what way the root is away, or give "" if it stands."""
        path = os.path.join(self.base, root or b".")
        try:
            status = os.stat(path)
        except OSError as error:
            return f"'{path_text(path)}': {(error.strerror or str(error)).lower()}"
        if self._seen is None or self._seen == (status.st_dev, status.st_ino):
            return ""
        # A disk that was unmounted leaves the empty folder that it was mounted on.
        return f"'{path_text(path)}' is not the folder that it was when the work on it began"


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_feature_set(folder: bytes) -> bool:
    """Whether a folder holds a featurepress plan."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # it may be a pipe
    try:
        descriptor = os.open(os.path.join(folder, os.fsencode(PLAN)), flags)
    except OSError:
        return False
    try:
        return b'"featurepress"' in os.read(descriptor, 256)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}"


def path_text(path: bytes) -> str:
    r"""Spell a path as text, no two paths alike.

    Bytes that are no UTF-8 are shown as ``\xff``. A backslash before what reads like that is shown as ``\x5c``, so
    that a file with this text for its name is distinguished from the other.
    """
    if b"\\" in path:
        path = _ESCAPE.sub(rb"\\x5c", path)
    return path.decode("utf-8", "backslashreplace")


def _reference(path: bytes, status: os.stat_result) -> ImageRef:
    uri = path_text(path)
    return ImageRef(uri, 0, status.st_size, _version(status), key=None if uri.encode() == path else path)


def _problem(path: bytes, reason: str) -> ImageRef:
    uri = path_text(path)
    return ImageRef(uri, 0, 0, "", key=None if uri.encode() == path else path, problem=reason)


def _unlisted(prefix: bytes, start_after: bytes, reason: str) -> Iterator[ImageRef]:
    """Yield what stands for a folder that cannot be listed, in its place in the order."""
    if prefix > start_after:
        yield _problem(prefix, f"cannot list the folder: {reason}")
    elif prefix < start_after:
        raise StorageError(
            f"The folder '{path_text(prefix)}' cannot be listed to its end: {reason}. Some of its images are in "
            "the listing already; make it readable, and resume."
        )


def _missing(location: str, root: str, error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
        reason = (error.strerror or str(error)).lower()
        return f"The source '{location}' cannot be looked up: {reason}. Check it and the folders above it."
    if root == location:
        return f"There is no source '{location}': no such file or folder."
    return f"No image matches '{location}': there is no folder '{root}'."


def _matches(parts: Sequence[str], patterns: Sequence[str], *, beginning: bool = False) -> bool:
    """Whether the parts of a path match those of a glob, or with `beginning` could be the start of a match."""
    if not parts or not patterns:
        return (not parts and not patterns) or (not parts and beginning)
    if patterns[0] == "**":
        if len(patterns) == 1 or beginning:
            return True
        return any(_matches(parts[i:], patterns[1:]) for i in range(len(parts)))
    if not fnmatch.fnmatchcase(parts[0], patterns[0]):
        return False
    return _matches(parts[1:], patterns[1:], beginning=beginning)


def _parts(path: bytes) -> Sequence[str]:
    return os.fsdecode(path).split("/")
