"""Azurite, the emulator of Azure's blobs: a Node program that ``make test`` installs if npm exists."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

from tests.servers.process import running_command
from tests.servers.s3 import TIMEOUT_SECONDS, new_name

ACCOUNT = (
    "devstoreaccount1"  # it and its key are known to everybody: learn.microsoft.com, "Use the Azurite emulator"
)
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_VERSION = "2021-08-06"


@dataclass(frozen=True)
class Azure:
    """The emulator, for tests."""

    endpoint: str  # such as "http://127.0.0.1:10000"

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which a process finds the emulator."""
        return self.environment_at(self.endpoint)

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """The same with something in between, that listens at `endpoint`."""
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": endpoint}

    def container(self, *, public: bool = False) -> str:
        """Make a new container and return its name; a public one can be read without a signature."""
        name = new_name()
        headers = {"x-ms-blob-public-access": "container"} if public else {}
        self._ask("PUT", name, {"restype": "container"}, headers=headers)
        return name

    def bucket(self) -> str:
        """The same, as other stores call it."""
        return self.container()

    def url(self, container: str, key: str = "") -> str:
        """Return a url as users write it."""
        return f"az://{ACCOUNT}/{container}/{key}"

    def put(self, container: str, objects: Mapping[str, bytes]) -> None:
        """Put blobs by name."""
        for key, data in objects.items():
            self._ask("PUT", f"{container}/{key}", {}, data, {"x-ms-blob-type": "BlockBlob"})

    def get(self, container: str, key: str) -> bytes:
        """Get a blob."""
        return self._ask("GET", f"{container}/{key}", {})

    def keys(self, container: str) -> list[str]:
        """Return the names of all blobs, in order."""
        return self._names(container, {})

    def uploads(self, container: str) -> list[str]:
        """Return the names of blobs that have only uncommitted blocks."""
        there = self.keys(container)
        return [name for name in self._names(container, {"include": "uncommittedblobs"}) if name not in there]

    def _names(self, container: str, query: Mapping[str, str]) -> list[str]:
        names: list[str] = []
        marker = ""
        while True:
            asked = {"restype": "container", "comp": "list", **query, **({"marker": marker} if marker else {})}
            page = ElementTree.fromstring(self._ask("GET", container, asked))
            names += [name.text or "" for name in page.iterfind("Blobs/Blob/Name")]
            marker = page.findtext("NextMarker") or ""
            if not marker:
                return names

    def _ask(
        self,
        method: str,
        place: str,
        query: Mapping[str, str],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Make a REST request, signed with the account's key; fail if it is refused."""
        path = f"/{ACCOUNT}/{quote(place, safe='/')}"
        sent = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION, **(headers or {})}
        length = str(len(body)) if body else ""
        words = [method, "", "", length, *[""] * 8]
        words += [f"{name}:{sent[name]}" for name in sorted(sent)]
        words += [f"/{ACCOUNT}{path}", *(f"{name}:{query[name]}" for name in sorted(query))]
        digest = hmac.digest(base64.b64decode(_KEY), "\n".join(words).encode(), hashlib.sha256)
        sent["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        address = urlsplit(self.endpoint)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, body, sent)
            answer = connection.getresponse()
            data = answer.read()
        assert answer.status < 300, f"{method} {path}: {data.decode(errors='replace')}"
        return data


def find_azurite() -> Path:
    """Find the program; FileNotFoundError names the places that were searched."""
    folder = Path(os.environ.get("FEATUREPRESS_AZURITE") or Path(sys.prefix, "azurite"))
    path = folder / "node_modules" / ".bin" / "azurite-blob"
    if not path.is_file():
        raise FileNotFoundError(f"Azurite is not in {folder}: npm install --prefix {folder} azurite@3")
    if shutil.which("node") is None:
        raise FileNotFoundError("there is no node to run Azurite with")
    return path


@contextlib.contextmanager
def start_azurite() -> Iterator[Azure]:
    """Run the emulator on a free port, in memory; FileNotFoundError if it is not installed."""
    with running_command(
        str(find_azurite()),
        *("--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"),
        *("--skipApiVersionCheck", "--disableTelemetry", "--silent"),
    ) as endpoint:
        yield Azure(endpoint)
