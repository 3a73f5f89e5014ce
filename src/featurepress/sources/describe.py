"""Turn what the user wrote into descriptions of sources, and refuse sources that overlap."""

from __future__ import annotations

import heapq
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurepress.errors import SourceError
from featurepress.settings import ListingSettings
from featurepress.sources.files.folder import FolderSource
from featurepress.sources.lists.locations import masked
from featurepress.sources.selection import (
    ARCHIVE_SUFFIXES,
    LIST_SUFFIXES,
    TABLE_SUFFIXES,
    glob_root,
    has_magic,
    is_glob,
    is_image_name,
)
from featurepress.specs import SourceSpec
from featurepress.storage.connection import SCHEMES, Address, scheme_of

Locations = str | Path | SourceSpec | Sequence[str | Path | SourceSpec]

MAX_LOCATIONS = 100_000
_WEB = ("https", "http")
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")


def describe(
    locations: Locations, settings: ListingSettings | None = None, *, destination: str = ""
) -> tuple[SourceSpec, ...]:
    """Turn what the user wrote into descriptions of sources.

    Parameters
    ----------
    locations : str, path, SourceSpec, or sequence of them
        Folders, prefixes of buckets, globs of either, files with images, archives, tables and lists of uris. ``~``
        means the home folder; ``{0000..0099}`` and ``{a,b}`` expand to several locations. A path with ``*``, ``?``
        or ``[`` is a glob unless a file or folder has exactly this name. Descriptions are used unchanged.
    settings : ListingSettings, optional
        Which names are included, and which columns are used.
    destination : str
        Where the run writes; it is never listed.

    Raises
    ------
    SourceError
        No location, a scheme that is not supported, or two locations that overlap.
    """
    items = [locations] if isinstance(locations, str | Path | SourceSpec) else list(locations)
    if not items:
        raise SourceError("No source was named: name a folder, a bucket, a glob, an archive, a table or a list.")
    settings = settings or ListingSettings()
    options = _options(settings, destination)
    specs = [item for item in items if isinstance(item, SourceSpec)]
    for text in (str(item) for item in items if not isinstance(item, SourceSpec)):
        specs += [_described(location, options, settings) for location in expand_braces(text)]
    _refuse_overlap([spec for spec in specs if spec.kind == "folder"])
    _refuse_repetition([spec for spec in specs if spec.kind not in ("folder", "memory")])
    return tuple(specs)


def _options(settings: ListingSettings, destination: str) -> dict[str, Any]:
    """Return the options of every source, without those that are not set."""
    if destination and not scheme_of(destination):
        destination = str(Path(destination).resolve())
    names = ("include", "exclude", "anonymous", "allow_private_hosts")
    used = {name: value for name in names if (value := getattr(settings, name))}
    return {"all_files": settings.all_files, "destination": destination, **used}


def _described(location: str, options: Mapping[str, Any], settings: ListingSettings) -> SourceSpec:
    """Describe one location, by its scheme and its suffix."""
    scheme = scheme_of(location)
    if scheme and scheme not in (*_WEB, *SCHEMES):
        raise SourceError(
            f"The source '{location}' has the scheme '{scheme}', which cannot be read. Allowed are paths and "
            f"urls that begin with {', '.join(f'{name}://' for name in (*_WEB, *SCHEMES))}."
        )
    if not location or "\0" in location:
        raise SourceError(f"The source {location!r} is not a path. Name a folder, a glob or a file with images.")
    kind = _kind_of(location, settings)
    if kind in ("archive", "table", "uris"):
        names = ("image_column", "label_column", "uri_column")
        columns = {name: value for name in names if (value := getattr(settings, name)) is not None}
        brings_label = settings.labels == "auto" and (kind == "archive" or settings.label_column is not None)
        options = {**options, **columns, "brings_label": brings_label}
    if not scheme:
        return _on_disk(kind, location, options)
    if scheme in SCHEMES:
        return SourceSpec(kind, str(Address.parse(location, SourceError)), "/", options)
    if masked(location) != location:
        raise SourceError(
            f"The source '{masked(location)}' contains a password or a signature, which would be written into the "
            "plan. Put it into a list of urls (a .txt file), from which it is read when it is needed."
        )
    if kind != "uris":
        raise SourceError(
            f"The source '{location}' cannot be listed, or read in pieces, over {scheme}. Use the url of an image, "
            f"a list of urls ({', '.join(LIST_SUFFIXES)}), or the bucket behind it."
        )
    return SourceSpec("uris", location, "/", options)


def _kind_of(location: str, settings: ListingSettings) -> str:
    """Return the kind of a location by its suffix; an existing folder is a folder, whatever its name."""
    scheme = scheme_of(location)
    path = location.partition("?")[0] if scheme in _WEB else location
    lower = path.lower()
    if not scheme and os.path.isdir(os.path.expanduser(location)):  # noqa: PTH111, PTH112 - False if not permitted
        return "folder"
    if lower.endswith(ARCHIVE_SUFFIXES):
        return "archive"
    if lower.endswith(TABLE_SUFFIXES):
        return "table" if settings.uri_column is None else "uris"
    if lower.endswith(LIST_SUFFIXES) or (scheme in _WEB and is_image_name(path)):
        return "uris"
    return "objects" if scheme else "folder"


def expand_braces(location: str) -> list[str]:
    """Expand ``{0000..0099}`` and ``{a,b}`` into several locations, as a shell does."""
    match = _BRACES.search(location)
    if match is None or os.path.lexists(os.path.expanduser(location)):  # noqa: PTH111 - False if not permitted
        return [location]
    error = SourceError(f"The source '{location}' expands to more than {MAX_LOCATIONS:,} locations. Use a glob.")
    start, dots, stop = match[1].partition("..")
    if dots and "," not in match[1]:
        first, last = int(start), int(stop)
        if abs(last - first) >= MAX_LOCATIONS:
            raise error
        step = 1 if last >= first else -1
        words = [str(n).zfill(len(start)) for n in range(first, last + step, step)]
    else:
        words = match[1].split(",")
    before, after = location[: match.start()], location[match.end() :]
    found = [expanded for word in words for expanded in expand_braces(before + word + after)]
    if len(found) > MAX_LOCATIONS:
        raise error
    return found


def _on_disk(kind: str, location: str, options: Mapping[str, Any]) -> SourceSpec:
    """Describe a path, so that spellings that lead to the same uris have the same description."""
    expanded = os.path.expanduser(location)  # noqa: PTH111 - keeps "~name" if there is no such user
    spec = SourceSpec(kind, expanded, "/" if Path(expanded).is_absolute() else str(Path.cwd()), options)
    bare = expanded[:-1]
    if not expanded.endswith("/") or not bare or bare.endswith("/"):
        return spec  # uris contain "//" as it was written
    if is_glob(spec) or os.path.isfile(os.path.join(spec.base, bare)):  # noqa: PTH113 - False if not permitted
        return spec  # a slash after a glob asks for folders, a slash after a file is a mistake
    return replace(spec, location=bare)


def _refuse_overlap(specs: Sequence[SourceSpec]) -> None:
    """Refuse folders of which one contains the other, however they are spelled."""
    roots: dict[Path, SourceSpec] = {}
    unsure = []
    for spec in specs:
        root = resolved(spec.base, glob_root(spec.location) if is_glob(spec) else spec.location)
        if root in roots and not (is_glob(spec) or is_glob(roots[root])):
            raise _overlap(roots[root], spec)
        if root in roots:
            unsure += [roots[root], spec]
        roots.setdefault(root, spec)
    for root, spec in roots.items():
        for outer in (roots[above] for above in root.parents if above in roots):
            if not is_glob(outer):
                raise _overlap(outer, spec)
            unsure += [outer, spec]
    _refuse_shared_images(list({id(spec): spec for spec in unsure}.values()))


def _refuse_shared_images(specs: Sequence[SourceSpec]) -> None:
    """List sources that may overlap because of a glob, and refuse them if they share an image."""
    # The listings are sorted, so equal paths of two sources become neighbours, and no listing is in memory.
    merged = heapq.merge(*map(_real_paths, specs), key=lambda found: found[0])
    for (path, one), (next_path, other) in itertools.pairwise(merged):
        if path == next_path:
            raise _overlap(one, other)


def _real_paths(spec: SourceSpec) -> Iterator[tuple[bytes, SourceSpec]]:
    """Yield the paths of a source's images, sorted; links are resolved in the root, not below it."""
    source = FolderSource(spec)
    root = Path(spec.base, os.fsdecode(source.root))
    # The name of a single file is not resolved: two links to one file are two images.
    image, folder = os.fsencode(resolved(root.parent) / root.name), os.fsencode(resolved(root))
    for ref in source.list():
        below = ref.order[len(source.root) :].lstrip(b"/")
        yield (os.path.join(folder, below) if below else image), spec


def resolved(*parts: str | Path) -> Path:
    """Resolve links; unlike `Path.resolve`, without an error for a link to itself, which the listing reports."""
    return Path(os.path.realpath(Path(*parts)))


def _overlap(one: SourceSpec, other: SourceSpec) -> SourceError:
    return SourceError(
        f"The sources '{one.location}' and '{other.location}' overlap: images in both would be embedded twice. "
        "Name each folder once."
    )


def _refuse_repetition(specs: Sequence[SourceSpec]) -> None:
    """Refuse buckets, archives, tables and lists of which one contains or repeats another of its kind."""
    seen: dict[tuple[str, str], SourceSpec] = {}
    for spec in specs:
        path = spec.location if scheme_of(spec.location) else str(resolved(spec.base, spec.location))
        if spec.kind == "objects" and not has_magic(spec.location):
            path = path.rstrip("/")
        if (other := seen.get((spec.kind, path))) is not None:
            raise _overlap(other, spec)
        seen[spec.kind, path] = spec
    for (kind, path), spec in seen.items():
        parts = path.split("/")
        for n in range(3, len(parts)) if kind == "objects" else ():
            outer = seen.get((kind, "/".join(parts[:n])))
            if outer is not None and not has_magic(outer.location):
                raise _overlap(outer, spec)
