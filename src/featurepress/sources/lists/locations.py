"""Where the images of lists lie: paths, buckets and urls, what is secret in them, and the bytes at their end."""

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
from featurepress.sources.files.folder import FolderSource, path_text
from featurepress.specs import ImageRef, SourceSpec
from featurepress.storage.connection import SCHEMES, Address, scheme_of

WEB = ("http", "https")
_KNOWN = ", ".join(f"{scheme}://" for scheme in (*WEB, *SCHEMES, "file"))

_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")

# Names in the query of a url whose values let whoever knows them in.
_SECRET = re.compile(
    r"signature|credential|secret|passw|token|api[_-]?key|accesskeyid|googleaccessid|key-pair-id|^sig$|^hmac$", re.I
)


def masked(uri: str) -> str:
    """Return a uri without what is secret in it; the very same if nothing is.

    User and password are left out, the values of keys and signatures become ``***``.
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
    """Where one image lies.

    Attributes
    ----------
    scheme : str
        "" for a path on disk.
    where : bytes
        An absolute path, or a url.
    problem : str or None
        Why nothing can be read there.
    """

    scheme: str
    where: bytes
    problem: str | None = None


def scheme_in(entry: bytes) -> str:
    """Return the scheme of an entry of a list in lower case, or "" for a path."""
    match = _SCHEME.match(entry)
    return match[1].lower().decode() if match else ""


def location_of(entry: bytes, folder: bytes) -> Location:
    """Return where an entry of a list leads.

    Parameters
    ----------
    entry : bytes
        A path, or a url.
    folder : bytes
        What a relative path starts from: an absolute path, or a url whose last name is replaced.
    """
    scheme = scheme_in(entry)
    if not scheme:
        return _beside(entry, folder)
    if scheme == "file":
        host, slash, path = entry[len("file://") :].partition(b"/")
        if host.lower() not in (b"", b"localhost") or not slash:
            return Location("", path, "a file:// url needs an absolute path")
        return _on_disk(unquote_to_bytes(slash + path))
    if scheme in SCHEMES:
        return Location(scheme, entry, _bucket_problem(entry))
    if scheme in WEB:
        return Location(scheme, entry, _text_problem(entry))
    return Location(scheme, entry, f"the scheme '{scheme}' cannot be read: known are paths and {_KNOWN}")


def _beside(entry: bytes, folder: bytes) -> Location:
    scheme = scheme_in(folder)
    if entry.startswith(b"/") and scheme not in WEB:
        return _on_disk(entry)
    if not scheme:
        return _on_disk(os.path.join(folder, entry))
    if scheme in WEB:
        return Location(
            scheme, urljoin(folder.decode(), entry.decode(errors="replace")).encode(), _text_problem(entry)
        )
    address, problem = Address.parse(folder.decode()), _text_problem(entry)
    key = posixpath.join(posixpath.dirname(address.key), entry.decode(errors="replace"))
    if {".", ".."} & set(key.split("/")):
        key = posixpath.normpath(key)
        problem = problem or ("the path leads out of the bucket" if key.startswith("../") else None)
    return Location(scheme, str(replace(address, key=key)).encode(), problem)


def _on_disk(path: bytes) -> Location:
    return Location("", path, "a zero byte stands in the path" if b"\0" in path else None)


def _text_problem(entry: bytes) -> str | None:
    try:
        entry.decode()
    except UnicodeDecodeError:
        return "the url is no UTF-8"
    return None


def _bucket_problem(entry: bytes) -> str | None:
    problem = _text_problem(entry)
    if problem is None:
        try:
            problem = None if Address.parse(entry.decode(), SourceError).key else "the url names a bucket, no image"
        except SourceError:
            problem = "the url names no bucket, or holds a password"
    return problem


class LocationReader:
    """Reads images wherever they lie; safe from several threads.

    Parameters
    ----------
    options : mapping
        Of a source: ``anonymous``, ``allow_private_hosts``.
    limits : ImageSettings
        What one image may cost.
    root : bytes
        The folder without which nothing on disk can be read, as an absolute path.

    Attributes
    ----------
    readers : dict
        Scheme -> what gives the bytes of a url.
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
        """Return size, version and problem; for anything but a file on disk, size 0 and version ""."""
        if location.scheme or location.problem is not None:
            return 0, "", location.problem
        found = self._files.stat(_file(location))
        return found.size, found.version, found.problem

    def read(self, location: Location, size: int = 0, version: str = "") -> bytes:
        """Read what is at a location.

        Raises ImageError with stage ``read`` if there is nothing, too much or, of a file with `version`, something
        else than was listed.
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
            most = self._limits.max_bytes
            raise ImageError("read", f"too many bytes: {found.size}, above the limit of {most} (--max-bytes)")
        return self._files.read(found)

    def _fetch(self, url: str) -> bytes:
        from featurepress.sources.lists.web import fetch

        return fetch(
            url,
            limits=self._limits,
            allow_private_hosts=bool(self._options.get("allow_private_hosts", False)),
            max_bytes=self._limits.max_bytes,
        )

    def _get(self, url: str) -> bytes:
        from featurepress.sources.files.objects import read_object

        anonymous = bool(self._options.get("anonymous", False))
        return read_object(Address.parse(url, SourceError), anonymous=anonymous, limits=self._limits)


def _file(location: Location) -> ImageRef:
    return ImageRef(path_text(location.where), 0, 0, "", key=location.where)


def read_location(uri: str, limits: ImageSettings) -> bytes:
    """Read the image at a path or url, as Spark and Hadoop spell them too; raise ImageError where that fails."""
    spelled = re.sub(r"^s3[an]://", "s3://", re.sub(r"^file:/(?!/)", "file:///", uri))
    return _reader(limits).read(location_of(spelled.encode(), os.fsencode(Path.cwd()) + b"/"))


@functools.lru_cache(maxsize=4)
def _reader(limits: ImageSettings) -> LocationReader:
    return LocationReader({}, limits)
