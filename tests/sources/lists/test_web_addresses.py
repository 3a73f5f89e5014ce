"""Which addresses are refused, and which certificates are trusted."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurepress.sources.lists.web import Web, is_private
from tests.sources.lists.web_server import DATA, Answer, Handler, Names, Server, failure, get, serving, unguarded

# -- addresses -----------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1",
    "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8", "2002:7f00:1::", "2002:a00:1::1", "2001:0:7f00:1::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert not is_private(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.1.2.3"])
def test_a_name_with_a_private_address_is_refused(address: str) -> None:
    web = Web(resolve=Names(inside_example=[["8.8.8.8", address]]))
    assert failure(web, "http://inside.example/a?sig=secret") == (
        f"private address refused: {address}; --allow-private-hosts allows it"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "0"])
def test_every_spelling_of_this_machine_is_refused(host: str) -> None:
    web = Web()
    with serving(lambda request: request.reply(200, DATA)) as server:
        reason = failure(web, f"http://{host}:{server.server_port}/a")
        assert reason.startswith("private address refused: ")
        assert not server.seen


def test_each_connection_checks_the_address_that_it_uses() -> None:
    """A name that resolves to another address later is refused then."""
    with serving(lambda request: request.reply(200, DATA)) as server:
        names = Names(rebind_example=[["127.0.0.2"], ["127.0.0.1"]])  # the server is at the second one
        web = Web(is_refused=lambda address: address == "127.0.0.1", resolve=names, backoff_seconds=0.001)
        reason = failure(web, f"http://rebind.example:{server.server_port}/a")
        assert reason == "private address refused: 127.0.0.1; --allow-private-hosts allows it"
        assert names.asked == ["rebind.example"] * 2
        assert not server.seen


def test_a_redirect_to_a_private_address_is_refused() -> None:
    with serving(lambda request: request.reply(200, DATA)) as inside:

        def answer(request: Handler) -> None:
            request.reply(302, Location=f"http://inside.example:{inside.server_port}/latest/meta-data")

        with serving(answer) as outside:
            names = Names(outside_example=[["127.0.0.1"]], inside_example=[["127.0.0.2"]])
            web = Web(is_refused=lambda address: address != "127.0.0.1", resolve=names)
            reason = failure(web, f"http://outside.example:{outside.server_port}/a")
            assert reason == "private address refused: 127.0.0.2; --allow-private-hosts allows it"
            assert len(outside.seen) == 1
            assert not inside.seen


def test_an_unknown_name_is_not_retried() -> None:
    names = Names()
    assert failure(Web(resolve=names), "http://nowhere.example/?sig=secret") == "unknown host name"
    assert len(names.asked) == 1
    assert failure(Web(), f"http://{'a' * 70}.example/") == "unknown host name"


def test_a_temporary_failure_of_the_resolver_is_retried() -> None:
    asked = 0

    def resolve(host: str, port: int, **options: Any) -> list[Any]:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return socket.getaddrinfo("127.0.0.1", port, **options)

    web = unguarded(resolve=resolve)
    with serving(lambda request: request.reply(200, DATA)) as server:
        assert get(web, f"http://images.example:{server.server_port}/") == DATA
    web.close()


def test_the_next_address_is_tried_if_the_first_does_not_answer() -> None:
    web = unguarded(resolve=Names(two_example=[["127.0.0.9", "127.0.0.1"]]))
    with serving(lambda request: request.reply(200, DATA)) as server:
        assert get(web, f"http://two.example:{server.server_port}/") == DATA
    web.close()


# -- https ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a self-signed certificate for images.example, in one file with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "images.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("images.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "images.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@contextlib.contextmanager
def serving_https(certificate: Path, answer: Answer) -> Iterator[tuple[Server, Web]]:
    """Run a server; yield it with a client that trusts its certificate and resolves its name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    here = [["127.0.0.1"]]
    names = Names(images_example=list(here), other_example=list(here))
    web = unguarded(resolve=names, context=ssl.create_default_context(cafile=str(certificate)))
    with serving(answer, context) as server:
        yield server, web
    web.close()


def test_https_is_fetched_and_connections_are_kept(certificate: Path) -> None:
    with serving_https(certificate, lambda request: request.reply(200, DATA)) as (server, web):
        for _ in range(3):
            assert get(web, f"https://images.example:{server.server_port}/a") == DATA
        assert server.n_connections == 1


def test_a_certificate_must_be_the_servers_own_and_trusted(certificate: Path) -> None:
    with serving_https(certificate, lambda request: request.reply(200, DATA)) as (server, web):
        reason = failure(web, f"https://other.example:{server.server_port}/a?sig=secret")
        assert reason.startswith("the server's certificate is not valid: Hostname mismatch")
        stranger = unguarded(resolve=Names(images_example=[["127.0.0.1"]]))
        reason = failure(stranger, f"https://images.example:{server.server_port}/a")
        assert reason.startswith("the server's certificate is not valid: self")
        assert not server.seen


def test_a_server_without_tls_is_a_failure(certificate: Path) -> None:
    web = unguarded(resolve=Names(images_example=[["127.0.0.1"]]))
    with serving(lambda request: request.reply(200, DATA)) as server:
        assert failure(web, f"https://images.example:{server.server_port}/a").startswith("no secure connection: ")


def test_the_deadline_holds_for_https(certificate: Path) -> None:
    def send_slowly(request: Handler) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            for _ in range(200):
                time.sleep(0.05)
                request.wfile.write(b"x")

    with serving_https(certificate, send_slowly) as (server, web):
        started = time.monotonic()
        url = f"https://images.example:{server.server_port}/a"
        assert failure(web, url, timeout_seconds=0.5) == "timed out: not fetched in 0.5 seconds"
        assert time.monotonic() - started < 3


def test_a_redirect_from_https_to_http_is_refused(certificate: Path) -> None:
    with serving(lambda request: request.reply(200, DATA)) as plain:
        with serving_https(certificate, lambda request: request.reply(302, Location=plain.url())) as (server, web):
            reason = failure(web, f"https://images.example:{server.server_port}/a")
            assert reason == "redirected from https to http, which is refused"
        assert not plain.seen
