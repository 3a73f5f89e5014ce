"""Images in tar archives, as WebDataset packs them: images, each with its label files."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.settings import ImageSettings
from featurepress.sources.archives.byte_readers import (
    WINDOW_BYTES,
    BrokenArchiveError,
    ByteReader,
    FileReader,
    GzipReader,
    WindowReader,
)
from featurepress.sources.archives.tar import BLOCK_BYTES, OTHER, REST, SPARSE, Member, members
from featurepress.sources.base import IN_SEQUENCE, ON_DISK, Reading, require_unchanged
from featurepress.sources.containers import Files, OpenReaders, files_behind, in_order
from featurepress.sources.files.folder import path_text
from featurepress.sources.selection import ARCHIVE_SUFFIXES, NameFilter
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import scheme_of

IN_WINDOWS = Reading(in_flight=4, group=16, ahead_bytes=16 * 1024**2)
LABEL_SUFFIXES = ("cls", "json", "txt")  # in order of preference

_COMPRESSED_SUFFIXES = (".gz", ".tgz")
_MAX_LABEL_BYTES = 1024**2
_MAX_MEMBERS = 1000  # of a sample that are in memory at once
_LOST = b"~"  # ends the key of what cannot be read; it sorts after the digits
_NOT_AN_IMAGE = "no image suffix"

# As many bytes as other sources read ahead: so much are threads out of order that read from several sources.
_KEEP_BYTES = 16 * 1024**2
_open_readers: OpenReaders[ByteReader] = OpenReaders(most=16, most_bytes=32 * 1024**2)


class ArchiveSource:
    """Images in tar archives (``.tar``, ``.tar.gz``, ``.tgz``), with labels from the files beside them.

    Nothing is unpacked: the listing reads the headers, and `read` reads a member at its position. Consecutive
    members whose paths are equal up to the first dot of the name are a sample. Other files, members that are not
    regular files, and dot files are skipped and counted. Everything after damage is one row with a problem; members
    before it are listed and read as usual.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a path, url or glob of archives. Options ``all_files``, ``include`` and ``exclude`` (see
        `NameFilter`; they apply to the names of members); ``brings_label`` (bool): whether references have a label;
        ``label_column`` (str): the suffix of the label files; by default the first with a label of ``cls``,
        ``json`` (its ``label``, ``cls`` or ``class``) and ``txt``.
    limits : ImageSettings, optional
        Limits for one image.
    files : Files, optional
        The archives; by default those of `spec`.

    Notes
    -----
    The key of a member is that of its archive, ``#``, and the position of its data in 16 digits. A listing that
    starts inside an archive reads the headers before that position again, for samples and repeated names. It costs
    about 10 microseconds per member on disk, 1 request per 4 MiB in a bucket, and 80 bytes of memory per image of
    the archive. A compressed archive is read forward; going back starts again at its beginning.
    """

    def __init__(
        self, spec: SourceSpec, limits: ImageSettings | None = None, *, files: Files | None = None
    ) -> None:
        self.location = spec.location
        is_compressed = spec.location.lower().endswith(_COMPRESSED_SUFFIXES)
        self.reading = IN_SEQUENCE if is_compressed else IN_WINDOWS if scheme_of(spec.location) else ON_DISK
        self.skipped: collections.Counter[str] = collections.Counter()
        self._base = spec.base
        self._is_on_disk = not scheme_of(spec.location)
        self._files = files or files_behind(spec, limits or ImageSettings())
        self._filter = NameFilter(spec.options)
        self._brings_label = bool(spec.options.get("brings_label", False))
        suffix = str(spec.options.get("label_column") or "").lstrip(".").lower()
        self._label_suffixes = (suffix,) if suffix else LABEL_SUFFIXES

    # -- listing ---------------------------------------------------------------------------------------------

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images archive by archive, in the order of the members."""
        self.skipped.clear()
        archives = [*in_order(self._files)]
        _refuse_ambiguity(archives)
        if not start_after:  # else the interrupted listing has counted them
            self.skipped.update(self._files.skipped)
        for archive in archives:
            prefix = archive.order + b"#"
            if prefix <= start_after and not start_after.startswith(prefix):
                continue
            if archive.problem is None and not self._is_archive(archive):
                self.skipped["not an archive's name"] += 1
                continue
            for key, found in self._entries(archive):
                if key <= start_after:
                    continue
                if isinstance(found, str):
                    self.skipped[found] += 1
                else:
                    yield found

    def _is_archive(self, archive: ImageRef) -> bool:
        """Whether a file is an archive by its name: a glob also matches the files in a folder called ``a.tar``."""
        return archive.uri.lower().endswith(ARCHIVE_SUFFIXES) or archive.uri == self.location

    def _entries(self, archive: ImageRef) -> Iterator[tuple[bytes, ImageRef | str]]:
        """Yield the keys of all members of an archive, with their references or the reasons to skip them."""
        try:
            reader = self._opened(archive)
        except ImageError as error:
            lost = self._reference(archive, archive.uri, _key(archive, 0, _LOST), 0, error.reason)
            yield lost.order, lost
            return
        names = _UniqueNames()
        with contextlib.closing(reader):
            for sample in self._samples(members(reader, self._is_wanted)):
                label = self._label(sample.texts) if self._brings_label else None
                for member, reason in sample.members:
                    if reason:
                        is_beside = reason == _NOT_AN_IMAGE and sample.has_image and self._is_text(member.name)
                        yield _key(archive, member.start), "beside an image" if is_beside else reason
                    else:
                        ref = self._member(archive, member, names, label)
                        yield ref.order, ref

    def _samples(self, found: Iterable[Member]) -> Iterator[_Sample]:
        """Yield the samples of an archive; members without a sample belong to the one before them."""
        sample = _Sample()
        for member in found:
            reason = self._skip_reason(member)
            name = b"" if member.kind in (OTHER, REST) or reason == "dot file" else member.name
            if name:
                key, suffix = _split(name)
                if sample.key not in (None, key):
                    yield sample
                    sample = _Sample()
                sample.key = key
                sample.has_image |= reason != _NOT_AN_IMAGE
                if suffix in self._label_suffixes:
                    sample.texts.setdefault(suffix, member.data)
            if len(sample.members) >= _MAX_MEMBERS:
                # An archive whose names all begin alike is one sample: yield it in pieces. A piece has the labels
                # found so far, which are the same in every listing.
                yield sample
                sample = _Sample(sample.key, [], sample.texts, sample.has_image)
            sample.members.append((member, reason))
        yield sample

    def _skip_reason(self, member: Member) -> str:
        """Return the reason why a member is skipped; "" if it is included."""
        if member.kind == REST:
            return ""
        if member.kind == OTHER:
            return "not a regular file"
        if member.name.rpartition(b"/")[2].startswith(b"."):
            return "dot file"
        return self._filter.skip_reason(member.name.decode(errors="surrogateescape"))

    def _is_wanted(self, name: bytes, size: int) -> bool:
        """Whether a member is a label file of acceptable size."""
        return self._brings_label and size <= _MAX_LABEL_BYTES and _split(name)[1] in self._label_suffixes

    def _is_text(self, name: bytes) -> bool:
        suffix = name.rpartition(b".")[2].decode(errors="replace").lower()
        return suffix in LABEL_SUFFIXES or suffix in self._label_suffixes

    def _label(self, texts: Mapping[str, bytes | None]) -> str | None:
        """Return the label of the first file that has one; None if a file before it is broken."""
        for suffix in self._label_suffixes:
            if suffix in texts:
                try:
                    label = _label_in(texts[suffix], is_json=suffix.rpartition(".")[2] == "json")
                except (ValueError, RecursionError):
                    return None  # the other files may hold something else, such as a caption
                if label:
                    return label
        return None

    def _member(self, archive: ImageRef, member: Member, names: _UniqueNames, label: str | None) -> ImageRef:
        """Return the reference of an image, or of the rest of a broken archive."""
        name, key, problem = member.name, _key(archive, member.start), None
        if member.kind == SPARSE:
            problem = "sparse file: it is stored without its holes; pack it again without --sparse"
            key += _LOST
        elif member.kind == REST:
            self._files.stat(archive)  # raises if the whole source cannot be reached
            label = None
            name, problem = b"(rest from byte %d)" % member.start, f"broken archive: {member.problem}"
            # One block further than the data of the member before it, which may be empty.
            key = _key(archive, member.start + BLOCK_BYTES, _LOST)
        uri = f"{archive.uri}#{path_text(names.add(name))}"
        return self._reference(archive, uri, key, member.size, problem, label)

    def _reference(
        self, archive: ImageRef, uri: str, key: bytes, size: int, problem: str | None, label: str | None = None
    ) -> ImageRef:
        fields = (label,) if self._brings_label else ()
        return ImageRef(uri, 0, size, archive.version, fields, key, problem)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, ref: ImageRef) -> bytes:
        """Read a member at its position, and check that the archive has not changed since the listing."""
        archive = _archive_of(ref)
        position = ref.order.rpartition(b"#")[2]
        if position.endswith(_LOST):
            raise ImageError("read", ref.problem or "broken archive")
        name = (self._base, archive.order, ref.version)
        try:
            with _open_readers.using(name, lambda: self._opened(archive)) as reader:
                data = reader.at(int(position), ref.size)
        except (BrokenArchiveError, OSError, StorageError) as error:
            raise self._failed_read(archive, error) from None
        if self._is_on_disk:  # in a bucket, each request checks the version
            require_unchanged(self._files, archive)
        if len(data) != ref.size:
            raise ImageError("read", "broken archive: it ends inside the image")
        return data

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the current reference; the archive is listed again only if it has changed."""
        archive = _archive_of(ref)
        now = self._files.stat(archive)
        if now.problem is not None:
            return ref._replace(size=0, version="", problem=now.problem)
        if now.version == ref.version:
            return ref if ref.order.endswith(_LOST) else ref._replace(problem=None)
        for key, found in self._entries(now):
            if key == ref.order and isinstance(found, ImageRef) and found.uri == ref.uri:
                return found._replace(source=ref.source, fields=ref.fields)
            if key >= ref.order:
                break
        return ref._replace(size=0, version="", problem="changed since listing")

    def _opened(self, archive: ImageRef) -> ByteReader:
        """Open an archive, if it is still the one that was listed."""
        if archive.problem is not None:
            raise ImageError("list", archive.problem)
        now = require_unchanged(self._files, archive)
        file = self._files.open(now)
        try:
            has_descriptor = file.fileno() >= 0
        except OSError:
            has_descriptor = False
        if archive.uri.lower().endswith(_COMPRESSED_SUFFIXES):
            if isinstance(file, io.BufferedReader) and not has_descriptor:
                file = io.BufferedReader(file.detach(), WINDOW_BYTES)  # fewer and larger requests
            return GzipReader(file, _KEEP_BYTES)
        if has_descriptor:
            return FileReader(file)
        return WindowReader(file, lambda: self._files.open(now), now.size)

    def _failed_read(self, archive: ImageRef, error: Exception) -> Exception:
        """Return the error of this image, or of the whole source if it cannot be reached."""
        try:
            require_unchanged(self._files, archive)
        except ImageError as reason:
            return reason
        if isinstance(error, BrokenArchiveError):
            return ImageError("read", f"broken archive: {error}")
        if isinstance(error, OSError):
            return ImageError("read", (error.strerror or str(error)).lower())
        return error


@dataclass
class _Sample:
    """Consecutive members with the same name up to its first dot, `key`; None while no member has a name.

    `members` come with the reason to skip them ("" for an image). `texts` are the contents of the label files by
    suffix, None if too large.
    """

    key: bytes | None = None
    members: list[tuple[Member, str]] = field(default_factory=list)
    texts: dict[str, bytes | None] = field(default_factory=dict)
    has_image: bool = False


class _UniqueNames:
    """The names in one archive. To save memory, only their hashes are kept: two names that collide are numbered."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._numbers: dict[int, int] = {}  # the last number of each repeated name

    def add(self, name: bytes) -> bytes:
        """Return the name; ``name#2``, ``name#3``… if it is repeated."""
        unique, number = name, self._numbers.get(hash(name), 1)
        while hash(unique) in self._hashes:
            number += 1
            unique = b"%s#%d" % (name, number)
        self._hashes.add(hash(unique))
        if number > 1:
            self._numbers[hash(name)] = number
        return unique


def _key(archive: ImageRef, start: int, ending: bytes = b"") -> bytes:
    return b"%s#%016d%s" % (archive.order, start, ending)


def _archive_of(ref: ImageRef) -> ImageRef:
    """Return the reference of the archive that holds a member; its size is not known."""
    order = ref.order.rpartition(b"#")[0]
    uri = order.decode(errors="replace")
    if not (ref.uri + "#").startswith(uri + "#"):
        uri = path_text(order)
    return ImageRef(uri, 0, 0, ref.version, key=None if uri.encode() == order else order)


def _split(name: bytes) -> tuple[bytes, str]:
    """Split a member's name into that of its sample, up to the first dot after the last slash, and a suffix."""
    dot = name.find(b".", name.rfind(b"/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].decode(errors="replace").lower())


def _label_in(data: bytes | None, *, is_json: bool) -> str | None:
    """Return the label in a file; raise ValueError if the file is too large, or broken."""
    if data is None:
        raise ValueError("too large")
    label = data.decode("utf-8-sig").strip()
    if is_json:
        label = _scalar_text(json.loads(label)) if label else ""
        label.encode()  # raises for half of a surrogate pair
    return label or None


def _scalar_text(value: Any) -> str:
    """Return a label of a JSON file as text; "" if there is none."""
    if isinstance(value, dict):
        values = [value[name] for name in ("label", "cls", "class") if name in value]
        return next((text for one in values if not isinstance(one, dict) and (text := _scalar_text(one))), "")
    if value is None or isinstance(value, list):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_ambiguity(archives: Sequence[ImageRef]) -> None:
    """Refuse an archive whose name could be that of a member of another one."""
    for one, other in itertools.pairwise(archives):
        if other.order.startswith(one.order + b"#"):
            raise SourceError(
                f"The archive '{other.uri}' has a name like that of a member of '{one.uri}', in the same folder. "
                "Rename it: a '#' separates an archive from its members."
            )
