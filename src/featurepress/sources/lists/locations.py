"""The locations of images in lists: paths, buckets and urls, their secrets, and how they are read."""

from __future__ import annotations

import functools
import os
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urljoin

from featurepress.errors import ImageError, SourceError
from featurepress.settings import ImageSettings
from featurepress.sources.base import too_many_bytes
from featurepress.sources.files.folder import FolderSource, path_text
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import SCHEMES, Address, scheme_of

WEB = ("http", "https")
_ALLOWED = ", ".join(f"{scheme}://" for scheme in (*WEB, *SCHEMES, "file"))

_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")

# Names of query parameters that grant access.
_SECRET = re.compile(
    r"signature|credential|secret|passw|token|api[_-]?key|accesskeyid|googleaccessid|key-pair-id|^sig$|^hmac$", re.I
)


def masked(uri: str) -> str:
    """Return a uri without its secrets; unchanged if it has none.

    User and password are removed; the values of keys and signatures become ``***``.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark or not scheme_of(uri):
        return uri
    end = next((i for i, char in enumerate(rest) if char in "/?#"), len(rest))
    host, after = rest[:end].rpartition("@")[2], rest[end:]
    path, hash_, fragment = after.partition("#")
    path, question, query = path.partition("?")
    shown = "&".join(map(_masked_value, query.split("&")))
    has_secret = shown != query or "&".join(map(_masked_value, fragment.split("&"))) != fragment
    return f"{scheme}://{host}{path}{question}{shown}{'' if has_secret else hash_ + fragment}"


def _masked_value(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}=***" if equals and _SECRET.search(unquote(name)) else pair


class Location(NamedTuple):
    """The location of one image."""

    scheme: str  # "" for a path on disk
    where: bytes  # an absolute path, or a url
    problem: str | None = None  # why it cannot be read


def scheme_in(entry: bytes) -> str:
    """Return the scheme of an entry of a list in lower case, or "" for a path."""
    match = _SCHEME.match(entry)
    return match[1].lower().decode() if match else ""


def location_of(entry: bytes, folder: bytes) -> Location:
    """Return the location of an entry of a list.

    A relative path starts from `folder`: an absolute path, or a url whose last name is replaced.
    """
    scheme = scheme_in(entry)
    if not scheme:
        return _relative(entry, folder)
    if scheme == "file":
        host, slash, path = entry[len("file://") :].partition(b"/")
        if host.lower() not in (b"", b"localhost") or not slash:
            return Location("", path, "a file:// url needs an absolute path")
        return _on_disk(unquote_to_bytes(slash + path))
    if scheme in SCHEMES:
        return Location(scheme, entry, _bucket_problem(entry))
    if scheme in WEB:
        return Location(scheme, entry, _text_problem(entry))
    return Location(scheme, entry, f"the scheme '{scheme}' cannot be read: allowed are paths and {_ALLOWED}")


def _relative(entry: bytes, folder: bytes) -> Location:
    scheme = scheme_in(folder)
    if entry.startswith(b"/") and scheme not in WEB:
        return _on_disk(entry)
    if not scheme:
        return _on_disk(os.path.join(folder, entry))
    text, problem = entry.decode(errors="replace"), _text_problem(entry)
    if scheme in WEB:
        return Location(scheme, urljoin(folder.decode(), text).encode(), problem)
    address = Address.parse(folder.decode())
    key = posixpath.join(posixpath.dirname(address.key), text)
    if {".", ".."} & set(key.split("/")):
        key = posixpath.normpath(key)
        problem = problem or ("the path leads out of the bucket" if key.startswith("../") else None)
    return Location(scheme, str(replace(address, key=key)).encode(), problem)


def _on_disk(path: bytes) -> Location:
    return Location("", path, "the path contains a zero byte" if b"\0" in path else None)


def _text_problem(entry: bytes) -> str | None:
    try:
        entry.decode()
    except UnicodeDecodeError:
        return "the url is not UTF-8"
    return None


def _bucket_problem(entry: bytes) -> str | None:
    problem = _text_problem(entry)
    if problem is None:
        try:
            problem = (
                None if Address.parse(entry.decode(), SourceError).key else "the url has no key after the bucket"
            )
        except SourceError:
            problem = "the url has no bucket, or contains a password"
    return problem


class LocationReader:
    """Read images from any location; thread-safe.

    `options` are those of a source (``anonymous``, ``allow_private_hosts``). If the folder `root` disappears,
    reading from disk raises StorageError. `readers` are the functions that return the bytes of a url, by scheme.
    """

    def __init__(self, options: Mapping[str, Any], limits: ImageSettings, root: bytes = b"/") -> None:
        self._options = options
        self._limits = limits
        self._files = FolderSource(SourceSpec("folder", os.fsdecode(root), "/"))
        self.readers: dict[str, Callable[[str], bytes]] = {
            **dict.fromkeys(WEB, self._fetch),
            **dict.fromkeys(SCHEMES, self._get),
        }

    def stat(self, location: Location) -> tuple[int, str, str | None]:
        """Return size, version and problem; except for a file on disk, size 0 and version ""."""
        if location.scheme or location.problem is not None:
            return 0, "", location.problem
        found = self._files.stat(_file(location))
        return found.size, found.version, found.problem

    def read(self, location: Location, size: int = 0, version: str = "") -> bytes:
        """Return the bytes at a location.

        Raises ImageError with stage ``read`` if it cannot be read or is too large, or if the file on disk does not
        have this size and version.
        """
        if location.problem is not None:
            raise ImageError("read", location.problem)
        if location.scheme:
            return self.readers[location.scheme](location.where.decode())
        if version:
            return self._files.read(_file(location)._replace(size=size, version=version))
        found = self._files.stat(_file(location))
        if found.problem is not None:
            raise ImageError("read", found.problem)
        if found.size > self._limits.max_bytes:
            raise too_many_bytes(found.size, self._limits.max_bytes)
        return self._files.read(found)

    def _fetch(self, url: str) -> bytes:
        from featurepress.sources.lists.web import fetch

        allow = bool(self._options.get("allow_private_hosts", False))
        return fetch(url, limits=self._limits, allow_private_hosts=allow, max_bytes=self._limits.max_bytes)

    def _get(self, url: str) -> bytes:
        from featurepress.sources.files.objects import read_object

        anonymous = bool(self._options.get("anonymous", False))
        return read_object(Address.parse(url, SourceError), anonymous=anonymous, limits=self._limits)


def _file(location: Location) -> ImageRef:
    return ImageRef(path_text(location.where), 0, 0, "", key=location.where)


def read_location(uri: str, limits: ImageSettings) -> bytes:
    """Return the image at a path or url, also as Spark and Hadoop write them; raise ImageError if that fails."""
    normal = re.sub(r"^s3[an]://", "s3://", re.sub(r"^file:/(?!/)", "file:///", uri))
    return _reader(limits).read(location_of(normal.encode(), os.fsencode(Path.cwd()) + b"/"))


@functools.lru_cache(maxsize=4)
def _reader(limits: ImageSettings) -> LocationReader:
    return LocationReader({}, limits)
