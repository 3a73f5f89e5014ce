"""Turn what the user wrote into descriptions of sources, and refuse those that overlap."""

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
from featurepress.sources.base import ARCHIVE_SUFFIXES, LIST_SUFFIXES, TABLE_SUFFIXES, is_image_name
from featurepress.sources.files.folder import FolderSource, glob_root, has_magic, is_glob
from featurepress.sources.lists.locations import masked
from featurepress.specs import SourceSpec
from featurepress.storage.connection import SCHEMES, Address, scheme_of

Locations = str | Path | SourceSpec | Sequence[str | Path | SourceSpec]

_SCHEMES = ("https", "http", *SCHEMES)


def describe(
    locations: Locations, settings: ListingSettings | None = None, *, destination: str = ""
) -> tuple[SourceSpec, ...]:
    """Turn what the user wrote into descriptions of sources.

    Parameters
    ----------
    locations : str, path, SourceSpec, or sequence of them
        Folders, places in buckets, globs of either, files with images, archives, tables and lists of uris.
        ``~`` stands for the home folder, ``{0000..0099}`` and ``{a,b}`` for several locations. A path with ``*``,
        ``?`` or ``[`` is a glob unless a file or folder has this very name: then it stands for that one alone.
        Descriptions are taken as they are.
    settings : ListingSettings, optional
        Which names are taken, and which columns hold what.
    destination : str
        Where the run writes, which is never listed.

    Raises
    ------
    SourceError
        No location at all, a scheme without support, or two locations of which one holds the other.
    """
    given = [locations] if isinstance(locations, str | Path | SourceSpec) else list(locations)
    if not given:
        raise SourceError("No source was given: name a folder, a bucket, a glob, an archive, a table or a list.")
    settings = settings or ListingSettings()
    options = _options(settings, destination)
    specs = [spec for spec in given if isinstance(spec, SourceSpec)]
    for place in (str(place) for place in given if not isinstance(place, SourceSpec)):
        specs += [_described(location, options, settings) for location in expand_braces(place)]
    _refuse_overlap([spec for spec in specs if spec.kind == "folder"])
    _refuse_repetition([spec for spec in specs if spec.kind not in ("folder", "memory")])
    return tuple(specs)


def _options(settings: ListingSettings, destination: str) -> dict[str, Any]:
    """Return the options of every source; those that are not set are left out."""
    if destination and not scheme_of(destination):
        destination = str(Path(destination).resolve())
    said = {
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "anonymous": settings.anonymous,
        "allow_private_hosts": settings.allow_private_hosts,
    }
    given = {name: value for name, value in said.items() if value}
    return {"all_files": settings.all_files, "destination": destination, **given}


def _described(location: str, options: Mapping[str, Any], settings: ListingSettings) -> SourceSpec:
    """Describe one location, by its scheme and its ending."""
    scheme = scheme_of(location)
    if scheme and scheme not in _SCHEMES:
        raise SourceError(
            f"The source '{location}' has the scheme '{scheme}', which cannot be read. Allowed are paths and "
            f"urls that begin with {', '.join(f'{name}://' for name in _SCHEMES)}."
        )
    if not location or "\0" in location:
        raise SourceError(f"The source {location!r} is no path. Name a folder, a glob or a file with images.")
    kind = _kind_of(location, settings)
    columns = {
        "image_column": settings.image_column,
        "label_column": settings.label_column,
        "uri_column": settings.uri_column,
    }
    if kind in ("archive", "table", "uris"):
        brings_label = settings.labels == "auto" and (kind == "archive" or settings.label_column is not None)
        said = {name: value for name, value in columns.items() if value is not None}
        options = {**options, **said, "brings_label": brings_label}
    if not scheme:
        return _on_disk(kind, location, options)
    if scheme in SCHEMES:
        return SourceSpec(kind, str(Address.parse(location, SourceError)), "/", options)
    if masked(location) != location:
        raise SourceError(
            f"The source '{masked(location)}' holds a password or a signature, which would be written into the "
            "plan. Put it into a list of urls (a .txt file); from there it is read when it is needed."
        )
    if kind != "uris":
        raise SourceError(
            f"The source '{location}' can be neither listed nor read in pieces by {scheme}. Give a picture's url, "
            f"a list of urls ({', '.join(LIST_SUFFIXES)}), or the bucket behind it."
        )
    return SourceSpec("uris", location, "/", options)


def _kind_of(location: str, settings: ListingSettings) -> str:
    """Return the kind of a location by its suffix; an existing folder is a folder, whatever its name."""
    scheme = scheme_of(location)
    path = location.partition("?")[0] if scheme in ("http", "https") else location
    lower = path.lower()
    if not scheme and os.path.isdir(os.path.expanduser(location)):  # noqa: PTH111, PTH112 - may not be looked at
        return "folder"
    if lower.endswith(ARCHIVE_SUFFIXES):
        return "archive"
    if lower.endswith(TABLE_SUFFIXES):
        return "table" if settings.uri_column is None else "uris"
    if lower.endswith(LIST_SUFFIXES) or (scheme in ("http", "https") and is_image_name(path)):
        return "uris"
    return "objects" if scheme else "folder"


_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")
MAX_LOCATIONS = 100_000


def expand_braces(location: str) -> list[str]:
    """Return the locations that ``{0000..0099}`` and ``{a,b}`` stand for, where the shell has left them."""
    match = _BRACES.search(location)
    if match is None or os.path.lexists(os.path.expanduser(location)):  # noqa: PTH111 - may not be looked at
        return [location]
    if span := _RANGE.fullmatch(match[1]):
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        if abs(last - first) >= MAX_LOCATIONS:
            raise SourceError(
                f"The source '{location}' stands for more than {MAX_LOCATIONS:,} locations. Use a glob."
            )
        step = 1 if last >= first else -1
        words = [str(n).zfill(width) for n in range(first, last + step, step)]
    else:
        words = match[1].split(",")
    before, after = location[: match.start()], location[match.end() :]
    found = [one for word in words for one in expand_braces(before + word + after)]
    if len(found) > MAX_LOCATIONS:
        raise SourceError(f"The source '{location}' stands for more than {MAX_LOCATIONS:,} locations. Use a glob.")
    return found


def _on_disk(kind: str, location: str, options: Mapping[str, Any]) -> SourceSpec:
    """Describe what the user wrote so that other spellings with the same uris give the same description."""
    expanded = os.path.expanduser(location)  # noqa: PTH111 - a user without a home is a folder like any other
    spec = SourceSpec(kind, expanded, "/" if Path(expanded).is_absolute() else str(Path.cwd()), options)
    bare = expanded[:-1]
    if not expanded.endswith("/") or not bare or bare.endswith("/"):
        return spec  # "//" would stand in the uris
    if is_glob(spec) or os.path.isfile(os.path.join(spec.base, bare)):  # noqa: PTH113 - False where one may not look
        return spec  # behind a glob a slash asks for folders, behind a file it is a mistake
    return replace(spec, location=bare)


def _refuse_overlap(specs: Sequence[SourceSpec]) -> None:
    """Refuse sources of which one holds the other, however they are spelled."""
    roots: dict[Path, SourceSpec] = {}
    unsure = []
    for spec in specs:
        location = glob_root(spec.location) if is_glob(spec) else spec.location
        root = resolved(spec.base, location)
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
    image, folder = os.fsencode(resolved(place.parent) / place.name), os.fsencode(resolved(place))
    for ref in source.list():
        below = ref.order[len(source.root) :].lstrip(b"/")
        yield (os.path.join(folder, below) if below else image), spec


def resolved(*parts: str | Path) -> Path:
    """Resolve links as far as they lead; unlike `Path.resolve`, one that leads to itself is left to the listing."""
    return Path(os.path.realpath(Path(*parts)))


def _overlap(one: SourceSpec, other: SourceSpec) -> str:
    return (
        f"The sources '{one.location}' and '{other.location}' overlap: images below both would be embedded twice. "
        "Name each folder once."
    )


def _refuse_repetition(specs: Sequence[SourceSpec]) -> None:
    """Refuse places in buckets, archives, tables and lists of which one is, or holds, another of its kind."""
    seen: dict[tuple[str, str], SourceSpec] = {}
    for spec in specs:
        place = spec.location if scheme_of(spec.location) else str(resolved(spec.base, spec.location))
        is_place = spec.kind == "objects" and not has_magic(spec.location)
        place = place.rstrip("/") if is_place else place
        if (other := seen.get((spec.kind, place))) is not None:
            raise SourceError(_overlap(other, spec))
        seen[spec.kind, place] = spec
    for (kind, place), spec in seen.items():
        parts = place.split("/")
        for n in range(3, len(parts)) if kind == "objects" else ():
            outer = seen.get((kind, "/".join(parts[:n])))
            if outer is not None and not has_magic(outer.location):
                raise SourceError(_overlap(outer, spec))
