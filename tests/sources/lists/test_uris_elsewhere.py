"""Lists with secrets, lists on the web, and lists in buckets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurepress.errors import ImageError, SourceError
from featurepress.settings import ImageSettings
from featurepress.sources.lists.uris import UriSource
from featurepress.specs import SourceSpec
from tests.servers.s3 import FastS3
from tests.sources.listed import failure
from tests.sources.lists.web_server import Handler, serving
from tests.sources.lists.written_lists import refusal, source, write

# -- secrets -------------------------------------------------------------------------------------------------

SIGNED = [
    "https://h/a.jpg?X-Amz-Algorithm=A&X-Amz-Credential=SECRET%2F1&X-Amz-Signature=SECRET&x=1#SECRET",
    "https://user:SECRET@h/b.jpg",
    "https://h/c.jpg?sv=1&sig=SECRET%3D",
    "http://h/d?TOKEN=SECRET",
    "https://storage.googleapis.com/b/e?X-Goog-Signature=SECRET&X-Goog-Credential=SECRET",
    "https://s3/f?AWSAccessKeyId=SECRET&Signature=SECRET&Expires=1",
    "https://h/g?key=g.jpg#access_token=SECRET",
    "https://a%40b:SEC@RET@h/h?x=@#y",
]
SHOWN = [
    "https://h/a.jpg?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***&x=1",
    "https://h/b.jpg",
    "https://h/c.jpg?sv=1&sig=***",
    "http://h/d?TOKEN=***",
    "https://storage.googleapis.com/b/e?X-Goog-Signature=***&X-Goog-Credential=***",
    "https://s3/f?AWSAccessKeyId=***&Signature=***&Expires=1",
    "https://h/g?key=g.jpg",
    "https://h/h?x=@#y",
]


def test_secrets_are_used_and_never_shown(tmp_path: Path) -> None:
    write(tmp_path, "\n".join(["s3://b/plain", *SIGNED]))
    one = source(tmp_path)
    refs = list(one.list())
    assert "SECRET" not in repr(refs)
    assert sorted(ref.uri for ref in refs) == sorted(["s3://b/plain", *SHOWN])
    assert [ref.order for ref in refs] == sorted(ref.order for ref in refs)
    worker = source(tmp_path)
    found = {ref.uri: worker.read(ref).decode() for ref in refs}
    assert found == dict(zip(["s3://b/plain", *SHOWN], ["s3://b/plain", *SIGNED], strict=True))
    assert [one.stat(ref) for ref in refs] == refs
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]


def test_errors_contain_no_secret(tmp_path: Path) -> None:
    def fails(url: str) -> bytes:
        raise ImageError("read", "no such image: status 404")

    write(tmp_path, "\n".join([*SIGNED, "ftp://user:SECRET@h/a", "s3://key:SECRET@bucket/a", SIGNED[0]]))
    assert "SECRET" not in refusal(tmp_path)
    write(tmp_path, "\n".join([*SIGNED, "ftp://user:SECRET@h/a", "s3://key:SECRET@bucket/a"]))
    one = source(tmp_path)
    one.locations.readers = dict.fromkeys(one.locations.readers, fails)
    for ref in one.list():
        assert "SECRET" not in repr(ref)
        assert "SECRET" not in failure(one, ref)


def test_urls_that_differ_in_their_secrets_get_numbers(tmp_path: Path) -> None:
    write(tmp_path, "https://h/a?sig=1\nhttps://h/a?sig=2\nhttps://u:p@h/b\nhttps://h/b\nhttps://h/a?sig=3\n")
    one = source(tmp_path)
    refs = list(one.list())
    assert [(ref.uri, one.read(ref).decode()) for ref in refs] == [
        ("https://h/a?sig=***", "https://h/a?sig=1"),
        ("https://h/a?sig=***#2", "https://h/a?sig=2"),
        ("https://h/a?sig=***#3", "https://h/a?sig=3"),
        ("https://h/b", "https://h/b"),
        ("https://h/b#2", "https://u:p@h/b"),
    ]
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]
    write(tmp_path, "https://u:p@h/b\nhttps://h/b\nhttps://h/b#2")
    assert "names 'https://h/b#2'" in refusal(tmp_path)


def test_a_repeated_secret_url_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "https://h/a?sig=1\nhttps://h/a?sig=2\nhttps://h/a?sig=1\n")
    assert "names 'https://h/a?sig=***' 3 times, first in line 1 and line 3." in refusal(tmp_path)


def test_a_changed_list_does_not_return_another_image(tmp_path: Path) -> None:
    write(tmp_path, "https://h/a?sig=1\nhttps://h/b?sig=2\nhttps://h/c?sig=3")
    one = source(tmp_path)
    a, b, c = one.list()
    write(tmp_path, "https://h/a?sig=new\nhttps://h/c?sig=3")
    assert one.read(a) == b"https://h/a?sig=new"
    reason = "changed since listing: the list has another url in this position"
    assert [failure(one, ref) for ref in (b, c)] == [reason] * 2


def test_secrets_of_several_lists(tmp_path: Path) -> None:
    write(tmp_path, "url\nhttps://h/a?sig=1\n", "1.csv")
    write(tmp_path, "https://h/a?sig=2", "2.txt")
    one = source(tmp_path, "[12].*")
    assert [(ref.uri, one.read(ref)) for ref in one.list()] == [
        ("https://h/a?sig=***", b"https://h/a?sig=1"),
        ("https://h/a?sig=***#2", b"https://h/a?sig=2"),
    ]


def test_a_list_is_read_once_for_its_secrets(tmp_path: Path) -> None:
    write(tmp_path, "".join(f"https://h/{i}?sig={i}\n" for i in range(50)))
    refs = list(source(tmp_path).list())
    opened = 0
    for ref in refs:
        one = source(tmp_path)  # like every shard
        lists = one._lists

        def counted(lists: Callable[..., Any] = lists) -> Any:
            nonlocal opened
            opened += 1
            return lists()

        one._lists = counted  # type: ignore[method-assign]
        one.read(ref)
    assert opened == 1


# -- on the web ----------------------------------------------------------------------------------------------


def on_the_web(url: str, **options: Any) -> UriSource:
    spec = SourceSpec("uris", url, "/", {"allow_private_hosts": True, **options})
    return UriSource(spec, ImageSettings(timeout_seconds=10))


def echo(request: Handler) -> None:
    """Respond with the path, or with a list."""
    lists = {
        "/lists/list.txt": b"a.jpg\n/b.jpg\n../c.jpg?x=1\nd?sig=SECRET\n\xc3\xa9.jpg",
        "/lists/list.csv": b"url,label\na.jpg,cat\n",
    }
    path = request.path.partition("?")[0]
    request.reply(404) if "gone" in path else request.reply(200, lists.get(path, request.path.encode()))


def test_a_list_on_the_web_and_its_images_are_fetched(tmp_path: Path) -> None:
    with serving(echo) as server:
        one = on_the_web(server.url("/lists/list.txt?token=SECRET").replace("//", "//user:SECRET@"))
        refs = list(one.list())
        assert {ref.uri: one.read(ref).decode() for ref in refs} == {
            "../c.jpg?x=1": "/c.jpg?x=1",
            "/b.jpg": "/b.jpg",
            "a.jpg": "/lists/a.jpg",
            "d?sig=***": "/lists/d?sig=SECRET",
            "é.jpg": "/lists/%C3%A9.jpg",
        }
        assert "SECRET" not in repr(refs)
        for i, ref in enumerate(refs):
            assert list(one.list(ref.order)) == refs[i + 1 :]
        labelled = on_the_web(server.url("/lists/list.csv"), label_column="label", brings_label=True)
        assert [(ref.uri, ref.fields) for ref in labelled.list()] == [("a.jpg", ("cat",))]


def test_the_url_of_an_image_is_a_source(tmp_path: Path) -> None:
    with serving(echo) as server:
        url = server.url("/some/a.jpg?x=1&sig=")
        one = on_the_web(url + "SECRET#SECRET")
        (ref,) = one.list()
        assert (ref.uri, ref.fields, ref.problem) == (url + "***", (), None)
        assert "SECRET" not in repr(ref)
        assert one.read(ref) == b"/some/a.jpg?x=1&sig=SECRET"
        assert list(one.list(ref.order)) == []
        plain = on_the_web(server.url("/some/a.jpg"))
        assert [ref.uri for ref in plain.list()] == [server.url("/some/a.jpg")]


def test_a_list_that_cannot_be_fetched_is_refused() -> None:
    with serving(echo) as server:
        url = server.url("/gone.txt?sig=")
        with pytest.raises(SourceError) as caught:
            list(on_the_web(url + "SECRET").list())
        assert str(caught.value) == f"The list '{url}***' cannot be fetched: no such image: status 404."
        with pytest.raises(SourceError, match="cannot be fetched: private address refused: 127"):
            list(on_the_web(url, allow_private_hosts=False).list())


# -- in a bucket ---------------------------------------------------------------------------------------------


def test_lists_and_tables_in_a_bucket(fast_s3: FastS3, tmp_path: Path) -> None:
    bucket = fast_s3.bucket()
    images = {"pics/a.jpg": b"a", "pics/sub/b.jpg": b"b", "c d.jpg": b"c", "é.jpg": b"e"}
    lists = {
        "pics/list.txt": f"a.jpg\nsub/b.jpg\n../c d.jpg\n./a.jpg\n../../out.jpg\ns3://{bucket}/é.jpg\ngone.jpg",
        "pics/list.csv": f"path,label\nsub/b.jpg,cat\ns3://{bucket}/c d.jpg,dog\n",
    }
    fast_s3.put(bucket, images | {key: text.encode() for key, text in lists.items()})
    one = UriSource(SourceSpec("uris", f"s3://{bucket}/pics/list.txt", "/"))
    refs = list(one.list())
    assert {ref.uri: ref.problem for ref in refs if ref.problem} == {
        "../../out.jpg": "the path leads out of the bucket"
    }
    found = {ref.uri: one.read(ref) for ref in refs if ref.uri not in ("gone.jpg", "../../out.jpg")}
    assert found == {
        "../c d.jpg": b"c", "./a.jpg": b"a", "a.jpg": b"a", f"s3://{bucket}/é.jpg": b"e", "sub/b.jpg": b"b",
    }  # fmt: skip
    assert failure(one, next(ref for ref in refs if ref.uri == "gone.jpg")) == "vanished since listing"
    options = {"label_column": "label", "brings_label": True}
    labelled = UriSource(SourceSpec("uris", f"s3://{bucket}/*/list.csv", "/", options))
    assert [(ref.uri, ref.fields[0], labelled.read(ref)) for ref in labelled.list()] == [
        (f"s3://{bucket}/c d.jpg", "dog", b"c"),
        ("sub/b.jpg", "cat", b"b"),
    ]
