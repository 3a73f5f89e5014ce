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
        self._names = (pattern + "**" * pattern.endswith("/")).split("/")
        self._regex = re.compile(_regex(self._names), re.DOTALL)
        self._covering_regex = re.compile(f"(?:{_regex(self._names)})(?:/.*)?", re.DOTALL)

    def matches(self, path: str) -> bool:
        """Whether the pattern matches a path."""
        return self._regex.fullmatch(path) is not None

    def covers(self, path: str) -> bool:
        """Whether the pattern matches a path or a folder above it."""
        return self._covering_regex.fullmatch(path) is not None

    def may_match_below(self, folder: str) -> bool:
        """Whether the pattern may match a path below a folder."""
        parts, names = folder.split("/"), self._names
        if "**" in names:
            names = names[: names.index("**")]
        elif len(parts) >= len(names):
            return False
        n = min(len(parts), len(names))
        return n == 0 or re.fullmatch(_regex(names[:n]), "/".join(parts[:n]), re.DOTALL) is not None


def _regex(names: Sequence[str]) -> str:
    """Translate the names of a glob into a regular expression."""
    folders = "".join("(?:[^/]+/)*" if name == "**" else f"{_name_regex(name)}/" for name in names[:-1])
    return folders + (".*" if names[-1] == "**" else _name_regex(names[-1]))


def _name_regex(name: str) -> str:
    """Translate a glob without slashes: as `fnmatch` does, except that nothing matches a slash."""
    text, end = "", 0
    for token in re.finditer(r"\*|\?|\[!?\]?[^\]]*\]", name):
        text += re.escape(name[end : token.start()])
        text += {"*": "[^/]*", "?": "[^/]"}.get(token[0]) or "(?!/)" + fnmatch.translate(token[0])[4:-3]
        end = token.end()
    return text + re.escape(name[end:])


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
            return "no image suffix"
        if self._include and not any(glob.matches(path) for glob in self._include):
            return "not included"
        return "excluded" if self._exclude and any(glob.matches(path) for glob in self._exclude) else ""
