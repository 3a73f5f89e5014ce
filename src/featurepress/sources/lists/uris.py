"""Images named by lists: paths, and urls of buckets and web servers."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.settings import ImageSettings
from featurepress.sources.base import BY_REQUEST
from featurepress.sources.containers import files_behind, in_order
from featurepress.sources.files.folder import path_text
from featurepress.sources.lists.entries import Columns, Entry, location_in, read_entries
from featurepress.sources.lists.locations import WEB, Location, LocationReader, location_of, masked, scheme_in
from featurepress.sources.lists.sorting import RUN_ROWS, Sorted
from featurepress.sources.selection import LIST_SUFFIXES, TABLE_SUFFIXES, NameFilter
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import scheme_of

_MAX_LIST_BYTES = 256 * 1024**2  # of a list on the web
_NO_URI = b"-"
_PROBLEMS: dict[str | None, str] = {
    "vanished since listing": "no such file",
    "no longer a regular file": "not a regular file",
}


class _List(NamedTuple):
    """A list: its name for people and in keys, the base of its relative paths, and how to open it."""

    name: str
    order: bytes
    folder: bytes
    open: Callable[[], BinaryIO]


class _Row(NamedTuple):
    """An entry of a list, to be sorted: `key` is that of its reference, `kind` marks secret urls."""

    key: bytes
    list_number: int
    row: int
    label: str | None
    kind: bytes


class UriSource:
    """Images named by lists: lines of text, or a column of CSV, TSV or tables.

    The uri of an image is its entry in the list. Relative paths start from the folder of their list. The listing is
    sorted, in whatever order the list is, and a repeated uri is refused. Urls with a password or a signature are
    listed without it; `read` finds the secret in the list again.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a path, a glob, or a url of a bucket or a web server, of ``.txt``, ``.lst``, ``.csv`` and
        ``.tsv`` lists or tables; or the url of one image on the web. Options: ``uri_column`` (by default the only
        one with a name such as ``url`` or ``path``), ``label_column``, ``brings_label``, ``include`` and
        ``exclude`` (matched against ``host/path`` or ``bucket/key``), ``anonymous`` and ``allow_private_hosts``.
    limits : ImageSettings, optional
        Limits for one image.

    Notes
    -----
    A listing makes no requests except for the lists themselves; it examines files on disk only. A process that
    reads secret urls reads the lists once, at 3 microseconds per row, and keeps these urls, about 300 bytes each.
    """

    reading = BY_REQUEST
    run_rows = RUN_ROWS  # that are sorted in memory; the others wait in a temporary file

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self.skipped: collections.Counter[str] = collections.Counter()
        self._spec = spec
        self._limits = limits or ImageSettings()
        self._scheme = scheme_of(spec.location)
        self._columns = Columns(spec.options.get("uri_column"), spec.options.get("label_column"))
        self._brings_label = bool(spec.options.get("brings_label", False))
        has_patterns = spec.options.get("include") or spec.options.get("exclude")
        self._filter = NameFilter({**spec.options, "all_files": True}) if has_patterns else None
        self._home = self._folder_of(os.fsencode(spec.location))
        self.locations = LocationReader(spec.options, self._limits, b"/" if self._scheme else self._home)
        self._names: list[str] = []  # of the lists

    # -- the lists -------------------------------------------------------------------------------------------

    def _folder_of(self, order: bytes) -> bytes:
        """Return what relative paths in a list start from: a folder, or the url of the list."""
        if self._scheme:
            return order
        base = os.fsencode(self._spec.base or os.getcwd())  # noqa: PTH109 - bytes
        return os.path.join(base, os.path.dirname(order))  # noqa: PTH120 - bytes

    def _lists(self) -> Iterator[_List]:
        if self._scheme in WEB:
            url, shown = self._spec.location, masked(self._spec.location)
            yield _List(shown, shown.encode(), url.encode(), functools.partial(self._fetched, url, shown))
            return
        files = files_behind(self._spec, self._limits)
        for ref in in_order(files):
            yield _List(ref.uri, ref.order, self._folder_of(ref.order), functools.partial(files.open, ref))

    def _fetched(self, url: str, shown: str) -> BinaryIO:
        from featurepress.sources.lists.web import fetch

        private = bool(self._spec.options.get("allow_private_hosts", False))
        try:
            data = fetch(url, limits=self._limits, allow_private_hosts=private, max_bytes=_MAX_LIST_BYTES)
        except ImageError as error:
            raise SourceError(f"The list '{shown}' cannot be fetched: {error.reason}.") from None
        return io.BytesIO(data)

    def _entries(self, source: _List) -> Iterator[Entry]:
        name = source.name
        if self._scheme in WEB:
            name = name.partition("?")[0].partition("#")[0]
            if not name.lower().endswith((*LIST_SUFFIXES, *TABLE_SUFFIXES)):
                yield Entry(1, self._spec.location.encode())  # the url of an image
                return
        try:
            file = source.open()
        except ImageError as error:
            raise SourceError(f"The list '{source.name}' cannot be read: {error.reason}.") from error
        is_remote = bool(self._scheme) and self._scheme not in WEB
        with contextlib.closing(file):
            yield from read_entries(file, name, self._columns, f"list '{source.name}'", is_remote=is_remote)

    # -- listing ---------------------------------------------------------------------------------------------

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of their uris; all lists are read before the first."""
        self.skipped.clear()
        with contextlib.closing(Sorted(self._rows(), self.run_rows)) as rows:
            self._refuse_repetition(rows)
            yield from self._references(rows, start_after)

    def _rows(self) -> Iterator[_Row]:
        self._names.clear()
        for number, source in enumerate(self._lists()):
            self._names.append(source.name)
            for entry in self._entries(source):
                key, kind = self._key_of(entry, source)
                yield _Row(key, number, entry.row, entry.label, kind)

    def _key_of(self, entry: Entry, source: _List) -> tuple[bytes, bytes]:
        """Return the key of an entry, and what distinguishes it from other entries with the same uri.

        The key is the uri. A zero byte and more follow for a secret url (its list and row), and for a relative path
        in a list of another folder than the source's (that folder).
        """
        if not entry.uri:
            return f"{source.name}#row={entry.row}".encode(), _NO_URI
        has_scheme = bool(scheme_in(entry.uri))
        if has_scheme or self._scheme in WEB:
            if any(mark in entry.uri for mark in (b"@", b"?", b"#")):
                shown = _shown(entry.uri, has_scheme=has_scheme)
                if shown != entry.uri:
                    return b"%s\0%s#%016d" % (shown, source.order, entry.row), hashlib.sha256(entry.uri).digest()
        elif source.folder != self._home and not entry.uri.startswith(b"/"):
            return entry.uri + b"\0" + source.folder, b""
        return entry.uri, b""

    def _refuse_repetition(self, rows: Sorted[_Row]) -> None:
        """Raise if a uri is repeated, except for urls that differ in their secrets: these get numbers."""
        numbered: set[bytes] = set()
        for uri, group in itertools.groupby(rows, key=_uri_of):
            seen: dict[bytes, _Row] = {}
            repeated: _Row | None = None
            n_rows = 0
            for row in group:
                n_rows += 1
                if seen.setdefault(row.kind, row) is not row and repeated is None:
                    repeated = row
            if repeated is None and uri in numbered:
                repeated = row
            if repeated is not None and not self._skip_reason(uri):
                raise self._repeated(uri, n_rows, seen[repeated.kind], repeated)
            numbered.update(b"%s#%d" % (uri, n) for n in range(2, len(seen) + 1))

    def _repeated(self, uri: bytes, n_rows: int, one: _Row, other: _Row) -> SourceError:
        first, second = (self._names[row.list_number] for row in (one, other))
        at_first, at_second = location_in(first, one.row), location_in(second, other.row)
        if first == second:
            who, where = f"The list '{first}' names", f"in {at_first} and {at_second}"
        else:
            who, where = "The lists name", f"in {at_first} of '{first}' and {at_second} of '{second}'"
        times = "twice," if n_rows == 2 else f"{n_rows} times, first"
        return SourceError(
            f"{who} '{path_text(uri)}' {times} {where}. Every image may be listed once: remove the others."
        )

    def _references(self, rows: Sorted[_Row], start_after: bytes) -> Iterator[ImageRef]:
        last, n_same = b"", 0
        for row in rows:
            uri = _uri_of(row)
            n_same = n_same + 1 if uri == last else 1
            last = uri
            if row.key <= start_after:
                continue
            if reason := self._skip_reason(uri):
                self.skipped[reason] += 1
                continue
            size, version, problem = self._stat_of(row)
            fields = (row.label,) if self._brings_label else ()
            text = path_text(uri) + (f"#{n_same}" if n_same > 1 else "")
            key = None if text.encode() == row.key else row.key
            yield ImageRef(text, 0, size, version, fields, key, _PROBLEMS.get(problem, problem))

    def _stat_of(self, row: _Row) -> tuple[int, str, str | None]:
        if row.kind == _NO_URI:
            return 0, "", "no uri in this row"
        try:
            return self.locations.stat(self._location(row.key))
        except StorageError as error:
            raise SourceError(str(error)) from error

    def _skip_reason(self, uri: bytes) -> str:
        """Return the reason why a uri is skipped; "" if it is included."""
        if self._filter is None:
            return ""
        path = os.fsdecode(uri)
        if scheme := scheme_in(uri):
            path = path[len(scheme) + len("://") :]
        if scheme in WEB or self._scheme in WEB:
            path = path.partition("?")[0]
        return self._filter.skip_reason(path.lstrip("/"))

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes at a uri."""
        return self.locations.read(self._location(ref.order, for_reading=True), ref.size, ref.version)

    def stat(self, ref: ImageRef) -> ImageRef:
        """Examine a file on disk again; other locations are not examined before they are read."""
        size, version, problem = self.locations.stat(self._location(ref.order))
        return ref._replace(size=size, version=version, problem=problem)

    def _location(self, key: bytes, *, for_reading: bool = False) -> Location:
        """Return the location of an image from its key; `for_reading`, with the secrets of its url."""
        uri, has_more, more = key.partition(b"\0")
        if has_more and (self._scheme in WEB or scheme_in(uri)):
            return location_of(self._secret_url(uri, more) if for_reading else uri, self._home)
        return location_of(uri, more if has_more else self._home)

    def _secret_url(self, uri: bytes, entry: bytes) -> bytes:
        """Return the whole url of an entry, which is shown as `uri`."""
        with _secrets_lock:
            if self._spec not in _secrets:
                _secrets.clear()
                _secrets[self._spec] = dict(self._secret_urls())
            found = _secrets[self._spec].get(entry)
        if found is None or _shown(found, has_scheme=bool(scheme_in(found))) != uri:
            raise ImageError("read", "changed since listing: the list has another url in this position")
        return found

    def _secret_urls(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries with secret urls, as keys name them, and the urls."""
        for source in self._lists():
            for entry in self._entries(source):
                key, kind = self._key_of(entry, source)
                if kind not in (b"", _NO_URI):
                    yield key.partition(b"\0")[2], entry.uri


_secrets: dict[SourceSpec, dict[bytes, bytes]] = {}
_secrets_lock = threading.Lock()


def _uri_of(row: _Row) -> bytes:
    return row.key.partition(b"\0")[0]


def _shown(uri: bytes, *, has_scheme: bool) -> bytes:
    """Return a url without its secrets; one without a scheme is relative to a list on the web."""
    text = os.fsdecode(uri)
    if has_scheme:
        return os.fsencode(masked(text))
    before = "http:" if text.startswith("//") else "http://host/"
    return os.fsencode(masked(before + text).removeprefix(before))
