"""Select images by name: suffixes and glob patterns."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from featurepress.specs import SourceSpec

# HEIC is included although its decoder is an extra: an image that cannot be decoded is a failure, not skipped.
IMAGE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif",
    ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".tga", ".qoi", ".dds", ".psd", ".heic", ".heif",
])  # fmt: skip
LIST_SUFFIXES = (".csv", ".tsv", ".txt", ".lst")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")

_MAGIC = re.compile(r"[*?\[]")


def is_image_name(name: str) -> bool:
    """Whether a name has the suffix of an image format."""
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in IMAGE_SUFFIXES


def has_magic(location: str) -> bool:
    """Whether a location has the characters of a glob."""
    return _MAGIC.search(location) is not None


def is_glob(spec: SourceSpec) -> bool:
    """Whether a source is a glob. A path that exists is not one, even if it is called ``photos [2019]``."""
    return has_magic(spec.location) and not os.path.lexists(os.path.join(spec.base, spec.location))


def glob_root(location: str) -> str:
    """Return the folder that contains everything a glob can match: the part before its first pattern."""
    parts = itertools.takewhile(lambda part: not has_magic(part), location.split("/"))
    return "/".join(parts) or ("/" if location.startswith("/") else "")


class Glob:
    """A pattern for paths: ``*``, ``?`` and ``[…]`` match within one name, ``**`` matches any number of folders.

    A pattern that ends in a slash matches everything below the folders.
    """

    def __init__(self, pattern: str) -> None:
        names = (pattern + "**" * pattern.endswith("/")).split("/")
        self._names = [None if name == "**" else re.compile(fnmatch.translate(name)) for name in names]
        self._first_names = self._names[: names.index("**") if "**" in names else None]

    def matches(self, path: str) -> bool:
        """Whether the pattern matches a path."""
        return _match(path.split("/"), self._names, is_whole=True)

    def covers(self, path: str) -> bool:
        """Whether the pattern matches a path or a folder above it."""
        return _match(path.split("/"), self._names, is_whole=False)

    def may_match_below(self, folder: str) -> bool:
        """Whether the pattern may match a path below a folder."""
        parts, names = folder.split("/"), self._first_names
        if len(names) == len(self._names) <= len(parts):
            return False
        return _match(parts[: len(names)], names[: len(parts)], is_whole=True)


def _match(parts: Sequence[str], names: Sequence[re.Pattern[str] | None], *, is_whole: bool) -> bool:
    """Whether patterns of names match the parts of a path; unless `is_whole`, more parts may follow."""
    if not names:
        return not (parts and is_whole)
    if names[0] is None:
        if len(names) == 1:
            return bool(parts)
        return any(_match(parts[i:], names[1:], is_whole=is_whole) for i in range(len(parts)))
    return bool(parts and names[0].match(parts[0])) and _match(parts[1:], names[1:], is_whole=is_whole)


class NameFilter:
    """Select images by name.

    Parameters
    ----------
    options : mapping
        The options of a source. ``all_files``: also accept names without an image suffix. ``include``, ``exclude``:
        glob patterns (see `Glob`). One without a slash is matched against the name, one with a slash against the
        path below the source.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._all_files = bool(options.get("all_files", False))
        self._include, self._exclude = (
            [Glob(pattern if "/" in pattern else f"**/{pattern}") for pattern in options.get(name, ())]
            for name in ("include", "exclude")
        )

    def skip_reason(self, path: str) -> str:
        """Return the reason why the image at `path`, relative to its source, is skipped; "" if it is included."""
        if not self._all_files and not is_image_name(path.rpartition("/")[2]):
            return "not an image's name"
        if self._include and not any(glob.matches(path) for glob in self._include):
            return "not included"
        return "excluded" if any(glob.matches(path) for glob in self._exclude) else ""
