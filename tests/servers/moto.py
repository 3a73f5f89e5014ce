"""moto's S3 in its own process: an independent and slow implementation, for correctness only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.servers.process import running
from tests.servers.s3 import S3
from tests.servers.wire import arguments, tie


@contextlib.contextmanager
def start_moto() -> Iterator[S3]:
    """Run moto, which takes about two seconds."""
    with running("moto") as endpoint, contextlib.closing(S3(endpoint)) as server:
        yield server


def main() -> None:
    """Run moto_server on a free port, without a log of requests."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    class QuietHandler(MotoRequestHandler):
        disable_nagle_algorithm = (
            True  # head and body are separate packets; without this, each response waits 40 ms
        )

        def log(self, type: str, message: str, *args: object) -> None:
            pass

    given = arguments(__doc__).parse_args()
    if given.tied:
        tie()
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", given.port, app, threaded=True, request_handler=QuietHandler)
    print(f"listens on http://127.0.0.1:{server.port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
