"""Listings of S3: a page of keys in byte order, with prefix, delimiter and continuation token."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote_from_bytes

MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """The parameters of a listing; raises ValueError if they are invalid or not of version 2."""

    prefix: bytes
    delimiter: bytes
    after: bytes
    token: str
    max_keys: int
    url_encoding: bool

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Question:
        """Read the query of a request."""
        if query.get("list-type") != "2":
            raise ValueError("only list-type=2 is known here")

        def raw(name: str) -> bytes:
            return query.get(name, "").encode("utf-8", "surrogateescape")

        return cls(
            raw("prefix"),
            raw("delimiter"),
            raw("start-after"),
            query.get("continuation-token", ""),
            max(0, min(MAX_KEYS, int(query.get("max-keys", MAX_KEYS)))),
            query.get("encoding-type") == "url",
        )

    def start(self, keys: Sequence[bytes]) -> int:
        """Return the index of the first key that may be on the page."""
        start = bisect_left(keys, self.prefix)
        if self.token:  # it overrides the others
            kind, last = decode_token(self.token)
            return max(start, bisect_left(keys, successor(last)) if kind == "p" else bisect_right(keys, last))
        return max(start, bisect_right(keys, self.after)) if self.after else start

    def end(self, keys: Sequence[bytes]) -> int:
        """Return the index after the last key with the prefix."""
        return bisect_left(keys, successor(self.prefix)) if self.prefix else len(keys)


@dataclass(frozen=True, slots=True)
class Page:
    """The keys of a page by index, its common prefixes, and the token of the next page or ""."""

    indices: Sequence[int]
    prefixes: Sequence[bytes]
    token: str


def take_page(keys: Sequence[bytes], question: Question) -> Page:
    """Return a page of sorted keys; time grows with the page, not with the keys."""
    i, end = question.start(keys), question.end(keys)
    if not question.delimiter:
        indices = range(i, min(end, i + question.max_keys))
        more = indices and indices[-1] + 1 < end
        return Page(indices, (), encode_token("k", keys[indices[-1]]) if more else "")
    found: list[int] = []
    prefixes: list[bytes] = []
    token = ""
    while i < end:
        if len(found) + len(prefixes) == question.max_keys:
            return Page(found, prefixes, token)
        key = keys[i]
        at = key.find(question.delimiter, len(question.prefix))
        if at < 0:
            found.append(i)
            token = encode_token("k", key)
            i += 1
        else:
            prefixes.append(key[: at + len(question.delimiter)])
            token = encode_token("p", prefixes[-1])
            i = bisect_left(keys, successor(prefixes[-1]), i)
    return Page(found, prefixes, "")


def successor(prefix: bytes) -> bytes:
    """Return the smallest key above all with the prefix; None if it consists of ff bytes."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\xff" * 1100


def encode_token(kind: str, key: bytes) -> str:
    """Return the token that continues after a key ("k") or after all keys with a prefix ("p")."""
    return base64.urlsafe_b64encode(kind.encode() + key).decode()


def decode_token(token: str) -> tuple[str, bytes]:
    """Parse a token; raise ValueError if it is invalid."""
    try:
        data = base64.urlsafe_b64decode(token)
    except binascii.Error as error:
        raise ValueError("the continuation token is none") from error
    if data[:1] not in (b"k", b"p"):
        raise ValueError("the continuation token is none")
    return data[:1].decode(), data[1:]


# -- XML -----------------------------------------------------------------------------------------------------


def spell(key: bytes, *, url_encoding: bool = False) -> bytes:
    """Return a key as XML. Bytes that are not UTF-8 become U+FFFD, unless percent-encoded."""
    if url_encoding:
        return quote_from_bytes(key, safe="/-_.~").encode()
    text = key.decode("utf-8", "replace").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if not text.isprintable():
        text = "".join(
            c if ord(c) >= 32 else f"&#x{ord(c):x};" for c in text
        )  # as AWS does, although it is not valid XML
    return text.encode()


def write_page(bucket: str, question: Question, page: Page, contents: bytes) -> bytes:
    """Return the XML of a page; `contents` is that of its keys."""

    def spelled(key: bytes) -> bytes:
        return spell(key, url_encoding=question.url_encoding)

    lines = [
        b'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">',
        b"<Name>%s</Name><Prefix>%s</Prefix>" % (bucket.encode(), spelled(question.prefix)),
        b"<KeyCount>%d</KeyCount>" % (len(page.indices) + len(page.prefixes)),
        b"<MaxKeys>%d</MaxKeys>" % question.max_keys,
        b"<IsTruncated>%s</IsTruncated>" % (b"true" if page.token else b"false"),
    ]
    if question.delimiter:
        lines.append(b"<Delimiter>%s</Delimiter>" % spelled(question.delimiter))
    if question.url_encoding:
        lines.append(b"<EncodingType>url</EncodingType>")
    if question.after:
        lines.append(b"<StartAfter>%s</StartAfter>" % spelled(question.after))
    if question.token:
        lines.append(b"<ContinuationToken>%s</ContinuationToken>" % question.token.encode())
    if page.token:
        lines.append(b"<NextContinuationToken>%s</NextContinuationToken>" % page.token.encode())
    lines.append(contents)
    lines += [b"<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>" % spelled(one) for one in page.prefixes]
    lines.append(b"</ListBucketResult>")
    return b"".join(lines)


def write_entry(key: bytes, *, modified: str, etag: str, size: int) -> bytes:
    """Return the XML of one object; `key` is spelled already, `modified` like 2026-11-22T10:54:08.000Z."""
    return (
        b"<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&quot;%s&quot;</ETag><Size>%d</Size>"
        b"<StorageClass>STANDARD</StorageClass></Contents>"
    ) % (key, modified.encode(), etag.encode(), size)
