"""Fixtures: servers of object stores, and the environment in which this process finds them.

Each server is a process, started when it is first needed, one for each worker of pytest-xdist. A test that asks
for `s3`, `fast_s3`, `listing`, `azure` or `google` finds the environment variables of that server set, so that
``featurepress.embed("s3://…")`` works as for users; commands need `started(..., environment=s3.environment)` no
more, as they inherit the variables.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from featurepress.storage.connection import connect
from tests.servers.azurite import Azure, start_azurite
from tests.servers.google import Google, GoogleByMoto, start_google
from tests.servers.listing import Listing, start_listing
from tests.servers.moto import start_moto
from tests.servers.proxy import Proxied, Proxy, start_proxy
from tests.servers.s3 import S3, FastS3, start_fast_s3

Use = Callable[[Mapping[str, str]], None]


class Faulty(Protocol):
    """The value of the fixture `faulty`."""

    def __call__(self, server: Proxied, **options: Any) -> Proxy:
        """Put a proxy in front of a server; `options` are the parameters of `tests.servers.proxy.Plan`."""


@pytest.fixture
def use_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Return a function that sets environment variables of object stores, without the user's own."""

    def use(variables: Mapping[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        connect.cache_clear()

    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "AZURITE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    yield use
    connect.cache_clear()


# -- S3 ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def moto_process() -> Iterator[S3]:
    """Run moto."""
    with start_moto() as server:
        yield server


@pytest.fixture
def s3(moto_process: S3, use_environment: Use) -> S3:
    """Return moto's S3: slow, for correctness; `bucket()` makes a new bucket."""
    use_environment(moto_process.environment)
    return moto_process


@pytest.fixture(scope="session")
def fast_s3_process() -> Iterator[FastS3]:
    """Run the fast S3."""
    with start_fast_s3() as server:
        yield server


@pytest.fixture
def fast_s3(fast_s3_process: FastS3, use_environment: Use) -> FastS3:
    """Return the fast S3, empty and without faults: for many objects, faults and refusals."""
    fast_s3_process.start_over()
    use_environment(fast_s3_process.environment)
    return fast_s3_process


@pytest.fixture(scope="session")
def listing_process() -> Iterator[Listing]:
    """Run the server of generated keys."""
    with start_listing() as server:
        yield server


@pytest.fixture
def listing(listing_process: Listing, use_environment: Use) -> Listing:
    """Return an S3 with a million generated keys; `make` changes their number."""
    listing_process.start_over()
    listing_process.make(1_000_000)
    use_environment(listing_process.environment)
    return listing_process


# -- Azure and Google ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def azurite_process() -> Iterator[Azure]:
    """Run Azurite, or skip."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(start_azurite())
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield server


@pytest.fixture
def azure(azurite_process: Azure, use_environment: Use) -> Azure:
    """Return Azure's emulator, or skip."""
    use_environment(azurite_process.environment)
    return azurite_process


@pytest.fixture(scope="session")
def google_process() -> Iterator[Google]:
    """Run the server of Google's interface."""
    with start_google() as server:
        yield server


@pytest.fixture
def google(google_process: Google, use_environment: Use) -> Google:
    """Return Google's storage, empty and without faults."""
    google_process.start_over()
    use_environment(google_process.environment)
    return google_process


@pytest.fixture
def google_by_moto(moto_process: S3, use_environment: Use) -> Iterator[GoogleByMoto]:
    """Return moto's S3 as Google's storage, for reading and listing: obstore cannot write to it."""
    with tempfile.TemporaryDirectory() as accounts:
        server = GoogleByMoto(moto_process.endpoint, Path(accounts))
        use_environment(server.environment)
        with contextlib.closing(server):
            yield server


@pytest.fixture(params=["s3", "fast_s3", "azure", "google"])
def each_store(request: pytest.FixtureRequest) -> Any:
    """Return each server that can be written to, in turn."""
    return request.getfixturevalue(request.param)


# -- faults --------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(use_environment: Use) -> Iterator[Faulty]:
    """Return a function that puts a proxy in front of a server, and sets the environment to go through it."""
    with contextlib.ExitStack() as stack:

        def start(server: Proxied, **options: Any) -> Proxy:
            proxy = stack.enter_context(start_proxy(server, **options))
            use_environment(proxy.environment)
            return proxy

        yield start
