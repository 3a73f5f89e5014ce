"""Servers of S3 for tests: the environment of a client, and the content of the server."""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote, urlencode, urlsplit

from tests.servers.process import running

REGION = "eu-west-3"
TIMEOUT_SECONDS = 60
_numbers = itertools.count()


def new_name() -> str:
    """Return a name of letters and digits for a bucket: obstore encodes others for Google, which moto refuses."""
    return f"bucket{next(_numbers)}"


@dataclass(frozen=True)
class Control:
    """The part of a server's address that only tests use, below ``/-/``."""

    _place: ClassVar[str] = "/-/"
    endpoint: str  # such as "http://127.0.0.1:9000"

    def ask(self, command: str, **given: object) -> Any:
        """Send a command; fail if the server refuses it."""
        with self.connected() as connection:
            connection.request("POST", f"{self._place}{command}?{urlencode(given, errors='surrogateescape')}")
            answer = connection.getresponse()
            body = answer.read()
        assert answer.status == 200, f"{command}: {body.decode(errors='replace')}"
        return json.loads(body)

    @contextlib.contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        """Return a connection to the server."""
        address = urlsplit(self.endpoint)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            yield connection

    # -- behaviour -------------------------------------------------------------------------------------------

    def start_over(self) -> None:
        """Reset behaviour, requests and content of the server."""
        for command in ("behave", "forget", "empty"):
            self.ask(command)

    def behave(self) -> None:
        """Reset delays, refusals and other behaviour."""
        self.ask("behave")

    def delay(self, seconds: float, operation: str = "") -> None:
        """Delay every request, or those of an operation such as ``ListObjectsV2``."""
        self.ask("delay", seconds=seconds, operation=operation)

    def refuse(
        self, code: str, status: int = 403, *, keys: str = "", methods: str = "", after: int = 0, times: int = -1
    ) -> None:
        """Answer with an error, such as ``AccessDenied``, ``ExpiredToken`` or ``InvalidAccessKeyId``.

        `keys` is a pattern that is searched in ``bucket/key`` (a listing has the key ""), `methods` are separated
        by spaces; by default, all requests match. `after` of them pass first, then `times` are refused (-1 for
        all).
        """
        self.ask("refuse", code=code, status=status, keys=keys, methods=methods, after=after, times=times)

    def require(self, access: str) -> None:
        """Refuse signed requests (``"anonymous"``), unsigned ones (``"signed"``), or none (``"any"``)."""
        self.ask("access", mode=access)

    # -- requests --------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Count from zero."""
        self.ask("forget")

    def methods(self) -> Counter[str]:
        """Count the requests by method."""
        return Counter(self.ask("seen")["methods"])

    def operations(self) -> Counter[str]:
        """Count the requests by AWS's names for them, such as ``GetObject`` and ``ListObjectsV2``."""
        return Counter(self.ask("seen")["operations"])

    def bytes_sent(self) -> int:
        """Return the sum of the bodies that were sent."""
        return int(self.ask("seen")["bytes_sent"])

    def most_at_once(self) -> int:
        """Return the largest number of concurrent requests; a delay shows them."""
        return int(self.ask("seen")["most_at_once"])

    def asked(self) -> list[str]:
        """Return all requests in order, such as ``GetObject bucket/key``."""
        return list(self.ask("asked"))


@dataclass(frozen=True)
class S3:
    """A server of S3."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which a process finds the server."""
        return self.environment_at(self.endpoint)

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """The same with something in between, that listens at `endpoint`."""
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    @functools.cached_property
    def client(self) -> Any:
        """A client of boto3."""
        import boto3
        from botocore.config import Config

        session = boto3.session.Session(
            aws_access_key_id="test-key", aws_secret_access_key="test-secret", region_name=REGION
        )
        return session.client(
            "s3",
            endpoint_url=self.endpoint,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
        )

    def close(self) -> None:
        """Close the client's connections."""
        if "client" in self.__dict__:
            self.client.close()

    def bucket(self) -> str:
        """Make a new bucket and return its name."""
        name = new_name()
        self.client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        return name

    def url(self, bucket: str, key: str = "") -> str:
        """Return a url as users write it."""
        return f"s3://{bucket}/{key}"

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Put objects by key."""
        for key, data in objects.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def get(self, bucket: str, key: str) -> bytes:
        """Get an object."""
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def keys(self, bucket: str) -> list[str]:
        """Return all keys in byte order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def uploads(self, bucket: str) -> list[str]:
        """Return the keys of the multipart uploads that are neither completed nor aborted."""
        return [upload["Key"] for upload in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())]


@dataclass(frozen=True)
class InMemory(Control):
    """A server of `tests.servers.objects`. Keys may be any bytes: str with surrogates where they are not UTF-8."""

    def bucket(self) -> str:
        """Make a new bucket and return its name."""
        name = new_name()
        with self.connected() as connection:
            _put(connection, f"/{name}", b"")
        return name

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Put objects by key; keys are sent byte by byte."""
        with self.connected() as connection:
            for key, data in objects.items():
                _put(connection, f"/{bucket}/{quote(key, safe='/', errors='surrogateescape')}", data)

    def load(self, bucket: str, folder: Path, prefix: str = "") -> int:
        """Put all files below a folder, with their paths as keys, and return their number."""
        return int(self.ask("load", bucket=bucket, folder=folder, prefix=prefix))

    def get(self, bucket: str, key: str) -> bytes:
        """Get an object."""
        with self.connected() as connection:
            connection.request("GET", f"/{bucket}/{quote(key, safe='/', errors='surrogateescape')}")
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, f"{key}: {body.decode(errors='replace')}"
            return body

    def keys(self, bucket: str) -> list[str]:
        """Return all keys in byte order."""
        return [unquote(key, errors="surrogateescape") for key in self.ask("keys", bucket=bucket)]

    def uploads(self, bucket: str) -> list[str]:
        """Return the keys of the multipart uploads that are neither completed nor aborted."""
        return [unquote(key, errors="surrogateescape") for key in self.ask("uploads", bucket=bucket)]

    def honour_conditions(self, mode: str) -> None:
        """Set what happens to conditional writes: ``"honoured"``, ``"ignored"``, or ``"unsupported"`` (501)."""
        assert mode in ("honoured", "ignored", "unsupported")
        self.ask("conditions", mode=mode)


def _put(connection: http.client.HTTPConnection, target: str, data: bytes) -> None:
    connection.request("PUT", target, data)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, f"{target}: {body.decode(errors='replace')}"


@dataclass(frozen=True)
class FastS3(InMemory, S3):
    """The fast S3."""

    def place(self, bucket: str, region: str, *, status: int = 301) -> None:
        """Set the region of a bucket: requests signed for another one are answered with 301 or 400."""
        assert status in (301, 400)
        self.ask("region", bucket=bucket, region=region, status=status)


@contextlib.contextmanager
def start_fast_s3() -> Iterator[FastS3]:
    """Run a fast S3 in a new process."""
    with running("objects") as endpoint, contextlib.closing(FastS3(endpoint)) as server:
        yield server
