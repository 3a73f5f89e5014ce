"""Images that lists name: paths, and uris of buckets and web servers."""

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
from featurepress.sources.base import BY_REQUEST, LIST_SUFFIXES, TABLE_SUFFIXES, KeyFilter
from featurepress.sources.containers import files_behind, in_order
from featurepress.sources.files.folder import path_text
from featurepress.sources.lists.entries import Columns, Entry, location_in, read_entries
from featurepress.sources.lists.locations import WEB, Location, LocationReader, location_of, masked, scheme_in
from featurepress.sources.lists.sorting import RUN_ROWS, Sorted
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import scheme_of

_MOST_LIST_BYTES = 256 * 1024**2  # of a list on the web
_NO_URI = b"-"
_PROBLEMS: dict[str | None, str] = {
    "vanished since listing": "no such file",
    "not a regular file any more": "not a regular file",
}


class _List(NamedTuple):
    """A list: what people call it, its own name in keys, what its relative paths start from, and its content."""

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
    """Images named by lists: lines of text, a column of CSV, TSV or tables.

    An image is called what the list calls it. Relative paths start from the folder of their list. The listing is
    sorted, whatever the order of the list, and a uri that stands twice is refused. Urls with a password or a
    signature are listed without it; whoever reads them looks them up in the list again.

    Parameters
    ----------
    spec : SourceSpec
        `location`: a path, a glob, or a url of a bucket or a web server, of ``.txt``, ``.lst``, ``.csv`` and
        ``.tsv`` lists or tables; or the url of one picture on the web. Options: ``uri_column`` (by default the only
        one with a name such as ``url`` or ``path``), ``label_column``, ``brings_label``, ``include`` and
        ``exclude`` (matched against ``host/path`` or ``bucket/key``), ``anonymous`` and ``allow_private_hosts``.
    limits : ImageSettings, optional
        What one image may cost.

    Attributes
    ----------
    places : LocationReader
        Reads what the list names.
    run_rows : int
        Most rows that are sorted in memory; the others wait in a temporary file.

    Notes
    -----
    A listing makes no request but for the lists themselves; it looks at files on disk only. A process that reads
    secret urls goes through the lists once, at 3 microseconds a row, and keeps those urls, about 300 bytes each.
    """

    reading = BY_REQUEST
    run_rows = RUN_ROWS

    def __init__(self, spec: SourceSpec, limits: ImageSettings | None = None) -> None:
        self._spec = spec
        self._limits = limits or ImageSettings()
        self._scheme = scheme_of(spec.location)
        self._columns = Columns(spec.options.get("uri_column"), spec.options.get("label_column"))
        self._brings_label = bool(spec.options.get("brings_label", False))
        said = {name: spec.options.get(name, ()) for name in ("include", "exclude")}
        self._filter = KeyFilter(all_files=True, **said) if any(said.values()) else None
        location = os.fsencode(spec.location)
        self._home = self._folder_of(location)
        self.locations = LocationReader(spec.options, self._limits, b"/" if self._scheme else self._home)
        self._names: list[str] = []  # of the lists
        self._skipped: collections.Counter[str] = collections.Counter()

    @property
    def skipped(self) -> collections.Counter[str]:
        """What the listing has passed over, by reason."""
        return self._skipped

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
            data = fetch(url, limits=self._limits, allow_private_hosts=private, max_bytes=_MOST_LIST_BYTES)
        except ImageError as error:
            raise SourceError(f"The list '{shown}' cannot be fetched: {error.reason}.") from None
        return io.BytesIO(data)

    def _entries(self, one: _List) -> Iterator[Entry]:
        name = one.name
        if self._scheme in WEB:
            name = name.partition("?")[0].partition("#")[0]
            if not name.lower().endswith((*LIST_SUFFIXES, *TABLE_SUFFIXES)):
                yield Entry(1, self._spec.location.encode())  # a picture itself
                return
        try:
            file = one.open()
        except ImageError as error:
            raise SourceError(f"The list '{one.name}' cannot be read: {error.reason}.") from error
        with contextlib.closing(file):
            yield from read_entries(
                file,
                name,
                self._columns,
                f"list '{one.name}'",
                is_remote=bool(self._scheme) and self._scheme not in WEB,
            )

    # -- listing ---------------------------------------------------------------------------------------------

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        """Yield the images in byte order of their uris; all lists are read before the first."""
        self._skipped.clear()
        with Sorted(self._rows(), self.run_rows) as rows:
            self._refuse_repetition(rows)
            yield from self._references(rows, start_after)

    def _rows(self) -> Iterator[_Row]:
        self._names.clear()
        for number, one in enumerate(self._lists()):
            self._names.append(one.name)
            for entry in self._entries(one):
                key, kind = self._key_of(entry, one)
                yield _Row(key, number, entry.row, entry.label, kind)

    def _key_of(self, entry: Entry, one: _List) -> tuple[bytes, bytes]:
        """Return the key of an entry, and what distinguishes it from others with the same uri.

        The key is the uri; behind a zero byte it goes on with the list and row of a secret url, or with the folder
        of a relative path that does not start from the location's own.
        """
        if not entry.uri:
            return f"{one.name}#row={entry.row}".encode(), _NO_URI
        has_scheme = bool(scheme_in(entry.uri))
        if has_scheme or self._scheme in WEB:
            if any(mark in entry.uri for mark in (b"@", b"?", b"#")):
                shown = _shown(entry.uri, has_scheme=has_scheme)
                if shown != entry.uri:
                    return b"%s\0%s#%016d" % (shown, one.order, entry.row), hashlib.sha256(entry.uri).digest()
        elif one.folder != self._home and not entry.uri.startswith(b"/"):
            return entry.uri + b"\0" + one.folder, b""
        return entry.uri, b""

    def _refuse_repetition(self, rows: Sorted[_Row]) -> None:
        """Raise if a uri stands twice, but for urls that differ in what is secret: those get numbers."""
        numbered: set[bytes] = set()
        for uri, group in itertools.groupby(rows, key=_uri_of):
            seen: dict[bytes, _Row] = {}
            again: _Row | None = None
            n_rows = 0
            for row in group:
                n_rows += 1
                if seen.setdefault(row.kind, row) is not row and again is None:
                    again = row
            if again is None and uri in numbered:
                again = row
            if again is not None and not self._passes_over(uri):
                raise self._repeated(uri, n_rows, seen[again.kind], again)
            numbered.update(b"%s#%d" % (uri, n) for n in range(2, len(seen) + 1))

    def _repeated(self, uri: bytes, n_rows: int, one: _Row, other: _Row) -> SourceError:
        names = [self._names[row.list_number] for row in (one, other)]
        places = [location_in(name, row.row) for name, row in zip(names, (one, other), strict=True)]
        if names[0] == names[1]:
            who, where = f"The list '{names[0]}' names", f"in {places[0]} and {places[1]}"
        else:
            who, where = "The lists name", f"in {places[0]} of '{names[0]}' and {places[1]} of '{names[1]}'"
        first = "" if n_rows == 2 else "first "
        times = "twice" if n_rows == 2 else f"{n_rows} times"
        return SourceError(
            f"{who} '{path_text(uri)}' {times}, {first}{where}. Every image may be listed once: remove the others."
        )

    def _references(self, rows: Sorted[_Row], start_after: bytes) -> Iterator[ImageRef]:
        last, n_same = b"", 0
        for row in rows:
            uri = _uri_of(row)
            n_same = n_same + 1 if uri == last else 1
            last = uri
            if row.key <= start_after:
                continue
            if reason := self._passes_over(uri):
                self._skipped[reason] += 1
                continue
            size, version, problem = self._looked_at(row)
            fields = (row.label,) if self._brings_label else ()
            text = path_text(uri) + (f"#{n_same}" if n_same > 1 else "")
            key = None if text.encode() == row.key else row.key
            yield ImageRef(text, 0, size, version, fields, key, _PROBLEMS.get(problem, problem))

    def _looked_at(self, row: _Row) -> tuple[int, str, str | None]:
        if row.kind == _NO_URI:
            return 0, "", "no uri in this row"
        try:
            return self.locations.stat(self._location(row.key))
        except StorageError as error:
            raise SourceError(str(error)) from error

    def _passes_over(self, uri: bytes) -> str:
        """Return the reason why a uri is left out; "" if it is taken."""
        if self._filter is None:
            return ""
        path = os.fsdecode(uri)
        if scheme := scheme_in(uri):
            path = path[len(scheme) + len("://") :]
        if scheme in WEB or self._scheme in WEB:
            path = path.partition("?")[0]
        return self._filter.passes_over(path.lstrip("/"))

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, ref: ImageRef) -> bytes:
        """Read what a uri leads to."""
        return self.locations.read(self._location(ref.order, for_reading=True), ref.size, ref.version)

    def stat(self, ref: ImageRef) -> ImageRef:
        """Look at a file again; of all else there is nothing to know before it is read."""
        size, version, problem = self.locations.stat(self._location(ref.order))
        return ref._replace(size=size, version=version, problem=problem)

    def _location(self, key: bytes, *, for_reading: bool = False) -> Location:
        """Return where an image lies, from its key; a secret url is looked up in its list `for_reading`."""
        uri, has_more, more = key.partition(b"\0")
        if has_more and (self._scheme in WEB or scheme_in(uri)):
            if for_reading:
                uri = self._secret(uri, more)
            return location_of(uri, self._home)
        return location_of(uri, more if has_more else self._home)

    def _secret(self, uri: bytes, place: bytes) -> bytes:
        """Return the whole url that a list holds at a place, where `uri` is shown."""
        with _secrets_lock:
            if self._spec not in _secrets:
                _secrets.clear()
                _secrets[self._spec] = dict(self._secret_urls())
            found = _secrets[self._spec].get(place)
        if found is None or _shown(found, has_scheme=bool(scheme_in(found))) != uri:
            raise ImageError("read", "changed since listing: another url stands in its place of the list")
        return found

    def _secret_urls(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the places in the lists where secret urls stand, and those urls."""
        for one in self._lists():
            for entry in self._entries(one):
                key, kind = self._key_of(entry, one)
                if kind not in (b"", _NO_URI):
                    yield key.partition(b"\0")[2], entry.uri


_secrets: dict[SourceSpec, dict[bytes, bytes]] = {}
_secrets_lock = threading.Lock()


def _uri_of(row: _Row) -> bytes:
    return row.key.partition(b"\0")[0]


def _shown(uri: bytes, *, has_scheme: bool) -> bytes:
    """Return a url without what is secret; one without a scheme stands in a list on the web."""
    text = os.fsdecode(uri)
    if has_scheme:
        return os.fsencode(masked(text))
    before = "http:" if text.startswith("//") else "http://host/"
    return os.fsencode(masked(before + text).removeprefix(before))
