"""Responses of object stores: an object or a range of it, and errors in XML."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from email.utils import formatdate

from tests.servers.wire import Answer, Request

XML = {"Content-Type": "application/xml"}
XML_HEAD = b'<?xml version="1.0" encoding="UTF-8"?>\n'


class Refused(Exception):  # noqa: N818
    """A response that is an error of S3."""

    def __init__(self, status: int, code: str, message: str = "", **more: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.more = status, code, message, more
        self.headers: dict[str, str] = {}

    def answer(self) -> Answer:
        """Return it as S3 does, in XML."""
        fields = {"Code": self.code, "Message": self.message or self.code, **self.more, "RequestId": "0123456789"}
        text = "".join(f"<{name}>{html.escape(value, quote=False)}</{name}>" for name, value in fields.items())
        return Answer(self.status, {**XML, **self.headers}, XML_HEAD + f"<Error>{text}</Error>".encode())


@dataclass(slots=True)
class Stored:
    """An object."""

    data: bytes
    etag: str  # without quotes
    headers: dict[str, str]  # sent with it: its type, metadata and version
    modified: float  # seconds since 1970
    version: int  # counts the writes of the server


def give(request: Request, stored: Stored) -> Answer:
    """Answer a GET or HEAD: the whole object, a range, or nothing if a condition does not hold."""
    headers, data = request.headers, stored.data
    etag = f'"{stored.etag}"'
    if (wanted := headers.get("if-match")) is not None and not matches(wanted, stored.etag):
        raise failed("If-Match")
    if (known := headers.get("if-none-match")) is not None and matches(known, stored.etag):
        return Answer(304, {"ETag": etag})
    sent = {
        "ETag": etag,
        "Last-Modified": formatdate(stored.modified, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
        **stored.headers,
    }
    status = 200
    if spelled := headers.get("range"):
        start, end = _range(spelled, len(data))
        sent["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        data, status = data[start:end], 206
    if request.method == "HEAD":
        sent["Content-Length"] = str(len(data))
    return Answer(status, sent, data)


def _range(spelled: str, size: int) -> tuple[int, int]:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", spelled)
    if match is None or not any(match.groups()):
        return 0, size
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    if start >= end:
        raise Refused(416, "InvalidRange", "The requested range is not satisfiable", ActualObjectSize=str(size))
    return start, end


def matches(spelled: str, etag: str) -> bool:
    return spelled == "*" or etag in (one.strip().removeprefix("W/").strip('"') for one in spelled.split(","))


def failed(condition: str) -> Refused:
    return Refused(
        412,
        "PreconditionFailed",
        "At least one of the pre-conditions you specified did not hold",
        Condition=condition,
    )


def xml_answer(name: str, text: bytes) -> Answer:
    return Answer(200, dict(XML), XML_HEAD + b"<%s>%s</%s>" % (name.encode(), text, name.encode()))


def kept_headers(request: Request) -> dict[str, str]:
    """Return the headers of a write that are kept with the object."""
    kept = ("content-type", "cache-control", "content-encoding", "content-disposition", "content-language")
    return {
        name.title() if name in kept else name: value
        for name, value in request.headers.items()
        if name in kept or name.startswith(("x-amz-meta-", "x-goog-meta-"))
    }
