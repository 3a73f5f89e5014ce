"""Images in tar archives, as WebDataset packs them: images, each with its label files."""

from __future__ import annotations

import atexit
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
    OpenReaders,
    WindowReader,
)
from featurepress.sources.archives.tar import BLOCK_BYTES, OTHER, REST, SPARSE, Member, members
from featurepress.sources.base import ARCHIVE_SUFFIXES, IN_SEQUENCE, ON_DISK, KeyFilter, Reading
from featurepress.sources.containers import Files, files_behind, in_order
from featurepress.sources.files.folder import path_text
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import scheme_of

IN_WINDOWS = Reading(in_flight=4, group=16, ahead_bytes=16 * 1024**2)
LABEL_SUFFIXES = ("cls", "json", "txt")  # in the order in which they are asked

_COMPRESSED_SUFFIXES = (".gz", ".tgz")
_MOST_LABEL_BYTES = 1024**2
_MOST_MEMBERS = 1000  # of a sample that are held at once
_LOST = b"~"  # ends the key of what cannot be read; it sorts behind the digits
_NOT_AN_IMAGE = "not an image's name"

# What images of other sources, read at the same time, may be ahead: threads come that much out of order.
_KEEP_INFLATED_BYTES = 16 * 1024**2
# Shared by all sources of the process: shards follow one another, and so do the members that they read.
_OPEN = OpenReaders(most=16, most_bytes=32 * 1024**2)
atexit.register(_OPEN.close)


class ArchiveSource:
    """Images in tar archives (``.tar``, ``.tar.gz``, ``.tgz``), with labels from the files beside them.

    Nothing is ever unpacked: an archive is gone through from header to header, and a member is read from its place.
    Members with the same path up to the first dot of their names, one after the other, are a sample. What is no
    picture, no regular file, or has a dot name is passed over and counted. What lies behind damage is one row with
    a problem; what lies before it is listed and read as ever.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a path, url or glob of archives. Options ``all_files``, ``include`` and ``exclude`` (see
        `KeyFilter`, matched against member names); ``brings_label`` (bool): whether references have a label;
        ``label_column`` (str): the suffix of the files with the labels, by default the first that says one of
        ``cls``, ``json`` (its ``label``, ``cls`` or ``class``) and ``txt``.
    limits : ImageSettings, optional
        What one image may cost.
    files : Files, optional
        Where the archives are; by default what `spec` says.

    Notes
    -----
    The key of a member is its archive's, ``#``, and the position of its data, in 16 digits. A listing that goes on
    inside an archive reads the headers before that place again, because of the samples and of names that repeat.
    Costs about 10 microseconds a member on disk, 1 request per 4 MiB in a bucket; about 80 bytes of memory an
    image while its archive is listed. A compressed archive is read forward; going back starts again from its
    beginning.
    """

    def __init__(
        self, spec: SourceSpec, limits: ImageSettings | None = None, *, files: Files | None = None
    ) -> None:
        self.location = spec.location
        self.reading = _reading(spec.location)
        self._base = spec.base
        self._is_on_disk = not scheme_of(spec.location)
        self._files = files or files_behind(spec, limits or ImageSettings())
        self._filter = KeyFilter.of(spec)
        self._brings_label = bool(spec.options.get("brings_label", False))
        suffix = str(spec.options.get("label_column") or "").lstrip(".").lower()
        self._label_suffixes = (suffix,) if suffix else LABEL_SUFFIXES
        self._skipped: collections.Counter[str] = collections.Counter()

    @property
    def skipped(self) -> collections.Counter[str]:
        """What the listing has passed over, by reason."""
        return self._skipped

    # -- listing ---------------------------------------------------------------------------------------------

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images archive by archive, in the order of the members."""
        self._skipped.clear()
        archives = [*in_order(self._files)]
        _refuse_ambiguity(archives)
        if not start_after:  # else the interrupted listing has counted them
            self._skipped.update(self._files.skipped)
        for archive in archives:
            prefix = archive.order + b"#"
            if prefix <= start_after and not start_after.startswith(prefix):
                continue
            if archive.problem is None and not self._is_archive(archive):
                self._skipped["not an archive's name"] += 1
                continue
            for key, found in self._entries(archive):
                if key <= start_after:
                    continue
                if isinstance(found, str):
                    self._skipped[found] += 1
                else:
                    yield found

    def _is_archive(self, archive: ImageRef) -> bool:
        """Whether a file is one by its name: a glob takes all that is in a folder called ``a.tar``."""
        return archive.uri.lower().endswith(ARCHIVE_SUFFIXES) or archive.uri == self.location

    def _entries(self, archive: ImageRef) -> Iterator[tuple[bytes, ImageRef | str]]:
        """Yield all members of an archive with their keys: their references, or why they are passed over."""
        try:
            reader = self._opened(archive)
        except ImageError as error:
            lost = self._reference(archive, archive.uri, _key(archive, 0, _LOST), 0, error.reason)
            yield lost.order, lost
            return
        names = _Names()
        with contextlib.closing(reader):
            for sample in self._samples(members(reader, self._is_wanted)):
                label = self._label(sample.texts) if self._brings_label else None
                for member, reason in sample.members:
                    if reason:
                        is_beside = reason == _NOT_AN_IMAGE and sample.has_picture and self._is_text(member.name)
                        yield _key(archive, member.start), "beside a picture" if is_beside else reason
                    else:
                        ref = self._member(archive, member, names, label)
                        yield ref.order, ref

    def _samples(self, found: Iterable[Member]) -> Iterator[_Sample]:
        """Yield runs of members of one sample; what belongs to none is among those that it stands between."""
        sample = _Sample()
        for member in found:
            reason = self._reason(member)
            name = b"" if member.kind in (OTHER, REST) or reason == "dot file" else member.name
            if name:
                key, suffix = _split(name)
                if sample.key not in (None, key):
                    yield sample
                    sample = _Sample()
                sample.key = key
                sample.has_picture |= reason != _NOT_AN_IMAGE
                if suffix in self._label_suffixes:
                    sample.texts.setdefault(suffix, member.data)
            if len(sample.members) >= _MOST_MEMBERS:
                # An archive whose names all begin alike is a single sample: hand it on in pieces. Labels are looked
                # for in what has been seen of it, and found at the same place by every listing.
                yield sample
                sample = _Sample(sample.key, [], sample.texts, sample.has_picture)
            sample.members.append((member, reason))
        yield sample

    def _reason(self, member: Member) -> str:
        """Say why a member is passed over; "" if it is taken."""
        if member.kind == REST:
            return ""
        if member.kind == OTHER:
            return "not a regular file"
        if member.name.rpartition(b"/")[2].startswith(b"."):
            return "dot file"
        return self._filter.passes_over(member.name.decode(errors="surrogateescape"))

    def _is_wanted(self, name: bytes, size: int) -> bool:
        """Whether a member holds a label and can be read for it."""
        return self._brings_label and size <= _MOST_LABEL_BYTES and _split(name)[1] in self._label_suffixes

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
                    return None  # what the others say is something else, such as a caption
                if label:
                    return label
        return None

    def _member(self, archive: ImageRef, member: Member, names: _Names, label: str | None) -> ImageRef:
        """Return the reference of a picture, or of the rest of a broken archive."""
        name, key, problem = member.name, _key(archive, member.start), None
        if member.kind == SPARSE:
            problem = "sparse file: it is stored without its holes; pack it again without --sparse"
            key += _LOST
        elif member.kind == REST:
            self._files.stat(archive)  # raises if the whole source is away
            label = None
            name, problem = b"(rest from byte %d)" % member.start, f"broken archive: {member.problem}"
            # Members that end here have a start of at most this; the next one's would be a block further.
            key = _key(archive, member.start + BLOCK_BYTES, _LOST)
        uri = f"{archive.uri}#{path_text(names.own(name))}"
        return self._reference(archive, uri, key, member.size, problem, label)

    def _reference(
        self, archive: ImageRef, uri: str, key: bytes, size: int, problem: str | None, label: str | None = None
    ) -> ImageRef:
        fields = (label,) if self._brings_label else ()
        return ImageRef(uri, 0, size, archive.version, fields, key, problem)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, ref: ImageRef) -> bytes:
        """Read a member at its offset, and check that its archive has not changed since listing."""
        archive = _archive_of(ref)
        place = ref.order.rpartition(b"#")[2]
        if place.endswith(_LOST):
            raise ImageError("read", ref.problem or "broken archive")
        try:
            with _OPEN.using((self._base, archive.order, ref.version), lambda: self._opened(archive)) as reader:
                data = reader.at(int(place), ref.size)
        except (BrokenArchiveError, OSError, StorageError) as error:
            raise self._failed_read(archive, error) from None
        if self._is_on_disk:  # in a bucket each request names the version
            self._refuse_another(archive)
        if len(data) != ref.size:
            raise ImageError("read", "broken archive: it ends inside the image")
        return data

    def stat(self, ref: ImageRef) -> ImageRef:
        """Return the reference as it is now; the archive is listed again only if it has changed."""
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
        """Open an archive, if it still is the one that was listed."""
        if archive.problem is not None:
            raise ImageError("list", archive.problem)
        now = self._refuse_another(archive)
        file = self._files.open(now)
        try:
            has_descriptor = file.fileno() >= 0
        except OSError:
            has_descriptor = False
        if archive.uri.lower().endswith(_COMPRESSED_SUFFIXES):
            if isinstance(file, io.BufferedReader) and not has_descriptor:
                file = io.BufferedReader(file.detach(), WINDOW_BYTES)  # else there is a request a megabyte
            return GzipReader(file, _KEEP_INFLATED_BYTES)
        if has_descriptor:
            return FileReader(file)
        return WindowReader(file, lambda: self._files.open(now), now.size)

    def _refuse_another(self, archive: ImageRef) -> ImageRef:
        """Return an archive's reference as it is now; raise if that is another one's."""
        now = self._files.stat(archive)
        if now.problem is not None:
            raise ImageError("read", now.problem)
        if now.version != archive.version:
            raise ImageError("read", "changed since listing")
        return now

    def _failed_read(self, archive: ImageRef, error: Exception) -> Exception:
        """Return the error of this image, or of the whole source if it cannot be reached."""
        try:
            self._refuse_another(archive)
        except ImageError as reason:
            return reason
        if isinstance(error, BrokenArchiveError):
            return ImageError("read", f"broken archive: {error}")
        if isinstance(error, OSError):
            return ImageError("read", (error.strerror or str(error)).lower())
        return error


@dataclass
class _Sample:
    """Members that follow one another and have one name up to its first dot.

    Attributes
    ----------
    key : bytes or None
        That name; None while none of the members has one.
    members : list
        Each with the reason why it is passed over, "" for a picture.
    texts : dict
        Of the files that may hold a label: suffix -> bytes, or None where there are too many.
    has_picture : bool
        Whether a picture is among them.
    """

    key: bytes | None = None
    members: list[tuple[Member, str]] = field(default_factory=list)
    texts: dict[str, bytes | None] = field(default_factory=dict)
    has_picture: bool = False


class _Names:
    """The names met in one archive, so that each picture gets its own.

    Only the hash of each name is kept. Should two names ever have one hash, the second is called ``name#2``, which
    is still unique.
    """

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self._numbers: dict[int, int] = {}  # of names that repeat: the next one's

    def own(self, name: bytes) -> bytes:
        """Return the name, or ``name#2``, ``name#3``… where it was met before."""
        if self._add(name):
            return name
        first = self._numbers.get(hash(name), 2)
        for number in itertools.count(first):
            if self._add(own := b"%s#%d" % (name, number)):
                self._numbers[hash(name)] = number + 1
                return own
        raise AssertionError("unreachable")

    def _add(self, name: bytes) -> bool:
        """Add a name; return False if it was there."""
        before = len(self._hashes)
        self._hashes.add(hash(name))
        return len(self._hashes) > before


def _reading(location: str) -> Reading:
    if location.lower().endswith(_COMPRESSED_SUFFIXES):
        return IN_SEQUENCE
    return IN_WINDOWS if scheme_of(location) else ON_DISK


def _key(archive: ImageRef, start: int, ending: bytes = b"") -> bytes:
    return b"%s#%016d%s" % (archive.order, start, ending)


def _archive_of(ref: ImageRef) -> ImageRef:
    """Return the reference of the archive that holds a member, as far as it is known."""
    order = ref.order.rpartition(b"#")[0]
    uri = order.decode(errors="replace")
    if not (ref.uri + "#").startswith(uri + "#"):
        uri = path_text(order)
    return ImageRef(uri, 0, 0, ref.version, key=None if uri.encode() == order else order)


def _split(name: bytes) -> tuple[bytes, str]:
    """Split a member's name into the sample's, up to the first dot behind the last slash, and a suffix."""
    dot = name.find(b".", name.rfind(b"/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].decode(errors="replace").lower())


def _label_in(data: bytes | None, *, is_json: bool) -> str | None:
    """Read a label; raises ValueError if the data are too many, or broken."""
    if data is None:
        raise ValueError("too large")
    label = data.decode("utf-8-sig").strip()
    if is_json:
        label = _scalar_text(json.loads(label)) if label else ""
        label.encode()  # it may hold half of a pair of surrogates
    return label or None


def _scalar_text(value: Any) -> str:
    """Spell a label of a JSON file; "" where there is none."""
    if isinstance(value, dict):
        given: Sequence[Any] = [value[name] for name in ("label", "cls", "class") if name in value]
        return next((text for one in given if not isinstance(one, dict) and (text := _scalar_text(one))), "")
    if value is None or isinstance(value, list):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_ambiguity(archives: Sequence[ImageRef]) -> None:
    """Refuse an archive whose name begins as the names of another's members do."""
    for one, other in itertools.pairwise(archives):
        if other.order.startswith(one.order + b"#"):
            raise SourceError(
                f"The archive '{other.uri}' has a name like that of a member of '{one.uri}', which lies beside it. "
                "Rename it: a '#' stands between an archive and its members."
            )
