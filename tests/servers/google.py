"""Google Cloud Storage in memory: its XML interface, as obstore uses it, with generations.

It differs from S3 in this: a write depends on the generation of what is there, ``x-goog-if-generation-match``,
where 0 means nothing; every answer about an object names its generation; deleting what is not there is an error.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.answers import Refused, Stored, failed
from tests.servers.objects import Bucket, ObjectServer
from tests.servers.process import running
from tests.servers.s3 import S3, InMemory
from tests.servers.wire import Answer, Request, arguments, serve

_CONDITION = "x-goog-if-generation-match"


class GoogleServer(ObjectServer):
    """The server."""

    def version_headers(self, version: int) -> dict[str, str]:
        """Return the headers of the generation."""
        return {"x-goog-generation": str(version), "x-goog-metageneration": "1"}

    def has_condition(self, request: Request) -> bool:
        """Return whether a write depends on a condition."""
        return _CONDITION in request.headers

    def check_condition(self, request: Request, present: Stored | None) -> None:
        """Raise `Refused` unless the object has the requested generation."""
        if int(request.headers[_CONDITION]) != (present.version if present else 0):
            raise failed(_CONDITION)

    def _get(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        stored = bucket.objects.get(key)
        if stored is not None and query.get("generation", str(stored.version)) != str(stored.version):
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return super()._get(request, query, bucket, key)

    def _delete(self, request: Request, query: Mapping[str, str], bucket: Bucket, key: bytes) -> Answer:
        if key not in bucket.objects:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return super()._delete(request, query, bucket, key)


@dataclass(frozen=True)
class _Accounts:
    """A folder of service account files, which name a server."""

    endpoint: str
    accounts: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which a process finds the server."""
        return self.environment_at(self.endpoint)

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """The same with something in between, that listens at `endpoint`."""
        path = self.accounts / f"{urlsplit(endpoint).port}.json"
        if not path.is_file():
            path.write_text(
                json.dumps(
                    {
                        "gcs_base_url": endpoint,
                        "disable_oauth": True,
                        "client_email": "",
                        "private_key": "",
                        "private_key_id": "",
                    }
                )
            )
        return {"GOOGLE_SERVICE_ACCOUNT": str(path)}

    def url(self, bucket: str, key: str = "") -> str:
        """Return a url as users write it."""
        return f"gs://{bucket}/{key}"


@dataclass(frozen=True)
class Google(_Accounts, InMemory):
    """The client of a test."""


@dataclass(frozen=True)
class GoogleByMoto(_Accounts, S3):
    """moto's S3 as Google's storage, for reading and listing; it has no generations."""

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Put public objects: obstore does not sign for Google."""
        for key, data in objects.items():
            self.client.put_object(Bucket=bucket, Key=key, Body=data, ACL="public-read")


@contextlib.contextmanager
def start_google() -> Iterator[Google]:
    """Run the server in a new process."""
    with running("google") as endpoint, tempfile.TemporaryDirectory() as accounts:
        yield Google(endpoint, Path(accounts))


if __name__ == "__main__":
    serve(GoogleServer(), arguments(__doc__).parse_args())
