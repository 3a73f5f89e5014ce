"""List images and read their bytes; what the user wrote, turned into sources and one ordered listing."""

from __future__ import annotations

import collections
import functools
import heapq
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from featurepress.errors import SourceError
from featurepress.records import ImageRef, SourceSpec
from featurepress.settings import ListingSettings
from featurepress.sources.base import Source, parent_label
from featurepress.sources.folder import FolderSource, glob_root, is_glob, path_text

# kind of SourceSpec -> class. Closed: a plan read from disk cannot name other code.
KINDS = {
    "folder": "featurepress.sources.folder:FolderSource",
    "memory": "featurepress.testing:MemorySource",
}


Locations = str | Path | SourceSpec | Sequence[str | Path | SourceSpec]


def describe(locations: Locations, *, all_files: bool, exclude: str = "") -> tuple[SourceSpec, ...]:
    """Turn what the user wrote into descriptions of sources.

    Parameters
    ----------
    locations : str, path, SourceSpec, or sequence of them
        Folders, globs or files. ``~`` stands for the home folder. A location with ``*``, ``?`` or ``[`` is a glob
        unless a file or folder has this very name: then it stands for that one alone. Descriptions are taken as
        they are.
    all_files : bool
        Whether every regular file is listed, not only names with an image suffix.
    exclude : str
        The run's destination, which is never listed.

    Raises
    ------
    SourceError
        No location at all, a scheme without support, or two locations of which one holds the other.
    """
    given = [locations] if isinstance(locations, str | Path | SourceSpec) else list(locations)
    if not given:
        raise SourceError("No source was given: name a folder, a glob or a file with images.")
    options = {"all_files": all_files, "exclude": str(Path(exclude).resolve()) if exclude else ""}
    specs = [spec for spec in given if isinstance(spec, SourceSpec)]
    for location in (str(place) for place in given if not isinstance(place, SourceSpec)):
        scheme, separator, _ = location.partition("://")
        if separator:
            raise SourceError(
                f"The source '{location}' has the scheme '{scheme}', which this version cannot read. "
                "Allowed are folders, globs and files on disk."
            )
        if not location or "\0" in location:
            raise SourceError(f"The source {location!r} is no path. Name a folder, a glob or a file with images.")
        specs.append(_folder_spec(location, options))
    _refuse_overlap([spec for spec in specs if spec.kind == "folder"])
    return tuple(specs)


def _folder_spec(location: str, options: Mapping[str, Any]) -> SourceSpec:
    """Describe what the user wrote so that other spellings with the same uris give the same description."""
    expanded = os.path.expanduser(location)  # noqa: PTH111 - a user without a home is a folder like any other
    spec = SourceSpec("folder", expanded, "/" if Path(expanded).is_absolute() else str(Path.cwd()), options)
    bare = expanded[:-1]
    if not expanded.endswith("/") or not bare or bare.endswith("/"):
        return spec  # "//" would stand in the uris
    if is_glob(spec) or os.path.isfile(os.path.join(spec.base, bare)):  # noqa: PTH113 - False where one may not look
        return spec  # behind a glob a slash asks for folders, behind a file it is a mistake
    return replace(spec, location=bare)


def open_source(spec: SourceSpec) -> Source:
    """Give the live source of a description."""
    module, _, name = KINDS[spec.kind].partition(":")
    return cast(Source, getattr(import_module(module), name)(spec))


class Listing:
    """The references of several sources, merged in byte order, with fields and limit applied.

    Parameters
    ----------
    specs : sequence of SourceSpec
        The sources.
    settings : ListingSettings
        Labels and limit.
    start_after : bytes
        Begin after this key: a listing that was interrupted goes on there.
    positions : sequence of bytes
        The `positions` of that listing, so that what it had passed over is not counted again.
    n_before : int
        How many references earlier chunks already hold; counts towards the limit.
    """

    def __init__(
        self,
        specs: Sequence[SourceSpec],
        settings: ListingSettings,
        *,
        start_after: bytes = b"",
        positions: Sequence[bytes] = (),
        n_before: int = 0,
    ) -> None:
        self._specs = specs
        self._sources = [open_source(spec) for spec in specs]
        self._settings = settings
        self._start_after = start_after
        # The keys after which the sources begin; whoever had looked further ahead than the last key looks again.
        starts = [min(position, start_after) for position in positions]
        self._positions = starts or [start_after] * len(specs)
        self._counts: list[Mapping[str, int]] = [{} for _ in specs]
        self._limit = None if settings.limit is None else min(max(0, settings.limit - n_before), sys.maxsize)

    @property
    def skipped(self) -> dict[str, int]:
        """What has been passed over up to the last reference that was taken, counted by reason."""
        total: collections.Counter[str] = collections.Counter()
        for counts in self._counts:
            total.update(counts)
        return dict(sorted(total.items()))

    @property
    def positions(self) -> tuple[bytes, ...]:
        """The key of the last reference that was taken from each source."""
        return tuple(self._positions)

    def __iter__(self) -> Iterator[ImageRef]:
        """Yield the references.

        Raises
        ------
        SourceError
            A source does not exist or holds no image, or two sources give the same uri.
        """
        streams = [self._stream(number) for number in range(len(self._sources))]
        return itertools.islice(self._merged(streams), self._limit)

    def _stream(self, number: int) -> Iterator[ImageRef]:
        source, with_label = self._sources[number], self._settings.labels == "parent"
        first = True
        for ref in source.list(self._positions[number]):
            first = False
            if ref.order <= self._start_after:
                continue  # new since that part of the listing was committed
            fields = (_label(self._specs[number], ref),) if with_label else ()
            yield ref._replace(source=number, fields=fields)
        if first and not self._start_after:
            raise SourceError(_nothing_found(self._specs[number], source.skipped))

    def _merged(self, streams: list[Iterator[ImageRef]]) -> Iterator[ImageRef]:
        merged = streams[0] if len(streams) == 1 else heapq.merge(*streams, key=lambda ref: ref.order)
        last: ImageRef | None = None
        for ref in merged:
            if last is not None and ref.order == last.order:
                one, other = (self._specs[i].location for i in (last.source, ref.source))
                raise SourceError(
                    f"The sources '{one}' and '{other}' both hold '{ref.uri}': every image may be listed once. "
                    "Drop one of the sources, or narrow it."
                )
            last = ref
            # Of the other sources a merge has looked one reference ahead, and counted what lies before it.
            self._positions[ref.source] = ref.order
            self._counts[ref.source] = dict(self._sources[ref.source].skipped)
            yield ref
        self._counts = [dict(source.skipped) for source in self._sources]


def field_names(settings: ListingSettings) -> tuple[str, ...]:
    """Give the names of `ImageRef.fields`."""
    return ("label",) if settings.labels == "parent" else ()


def _label(spec: SourceSpec, ref: ImageRef) -> str:
    label = parent_label(ref.uri)
    if spec.kind != "folder" or label not in ("", ".", ".."):
        return label
    return _real_name(spec.base, ref.order.rpartition(b"/")[0])


@functools.lru_cache(maxsize=64)
def _real_name(base: str, folder: bytes) -> str:
    """Give the name of a folder that its path does not tell, such as ``.``; "" for the root of the disk."""
    return path_text(os.fsencode(_resolved(base, os.fsdecode(folder)).name))


def _nothing_found(spec: SourceSpec, skipped: collections.Counter[str]) -> str:
    passed = ", ".join(f"{n} skipped ({reason})" for reason, n in skipped.most_common()) or "it is empty"
    hint = "; --all-files lists every regular file" if skipped["not an image's name"] else ""
    if is_glob(spec):
        return f"No image matches '{spec.location}': {passed if skipped else 'nothing has such a path'}{hint}."
    return f"No image below '{spec.location}': {passed}{hint}."


def _refuse_overlap(specs: Sequence[SourceSpec]) -> None:
    """Refuse sources of which one holds the other, however they are spelled."""
    roots: dict[Path, SourceSpec] = {}
    unsure = []
    for spec in specs:
        location = glob_root(spec.location) if is_glob(spec) else spec.location
        root = _resolved(spec.base, location)
        if root in roots and not (is_glob(spec) or is_glob(roots[root])):
            raise SourceError(_overlap(roots[root], spec))
        if root in roots:
            unsure += [roots[root], spec]
        roots.setdefault(root, spec)
    for root, spec in roots.items():
        for above in root.parents:
            if (outer := roots.get(above)) is None:
                continue
            if not is_glob(outer):
                raise SourceError(_overlap(outer, spec))
            unsure += [outer, spec]
    _refuse_shared_images(list({id(spec): spec for spec in unsure}.values()))


def _refuse_shared_images(specs: Sequence[SourceSpec]) -> None:
    """List sources of which a glob may reach into another, and refuse them if they share an image."""
    # Each listing is sorted, so equal paths of two become neighbours, and no listing is ever held whole.
    merged = heapq.merge(*map(_real_paths, specs), key=lambda found: found[0])
    for (path, one), (next_path, other) in itertools.pairwise(merged):
        if path == next_path:
            raise SourceError(_overlap(one, other))


def _real_paths(spec: SourceSpec) -> Iterator[tuple[bytes, SourceSpec]]:
    """Yield the paths of a source's images, sorted, with the root resolved and the links below it as they are."""
    source = FolderSource(spec)
    place = Path(spec.base, os.fsdecode(source.root))
    # The last name of a single file stays: two links to one file are two images.
    image, folder = os.fsencode(_resolved(place.parent) / place.name), os.fsencode(_resolved(place))
    for ref in source.list():
        below = ref.order[len(source.root) :].lstrip(b"/")
        yield (os.path.join(folder, below) if below else image), spec


def _resolved(*parts: str | Path) -> Path:
    """Resolve links as far as they lead; unlike `Path.resolve`, one that leads to itself is left to the listing."""
    return Path(os.path.realpath(Path(*parts)))


def _overlap(one: SourceSpec, other: SourceSpec) -> str:
    return (
        f"The sources '{one.location}' and '{other.location}' overlap: images below both would be pressed twice. "
        "Name each folder once."
    )


__all__ = ["KINDS", "Listing", "Locations", "Source", "describe", "field_names", "open_source"]
