"""Speed of listing a bucket: with sequential requests, and with many at once.

    python -m benchmarks.listing [--keys N] [--delay S]

A server on this machine generates the keys, in ten folders, and delays each request, as a store does.
"""

from __future__ import annotations

import argparse
import os
import time
from unittest import mock

from benchmarks.speed import headline
from featurepress.sources import describe, open_source
from featurepress.sources.files import ranges
from tests.servers.listing import BUCKET, Listing, start_listing


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=300_000)
    parser.add_argument("--delay", type=float, default=0.1, help="additional seconds per request")
    arguments = parser.parse_args()
    print(f"{headline()}; {arguments.keys:,} keys, {arguments.delay:g} s per request\n")
    print("| requests at once | requests | seconds | keys/s |\n|---|---|---|---|")
    with start_listing(arguments.keys) as server:
        os.environ.update(server.environment)
        server.delay(arguments.delay, "ListObjectsV2")
        for streams in (1, ranges.STREAMS):
            seconds, n_requests = measure(server, arguments.keys, streams)
            print(f"| {streams} | {n_requests:,} | {seconds:.1f} | {arguments.keys / seconds:,.0f} |", flush=True)


def measure(server: Listing, n_keys: int, streams: int) -> tuple[float, int]:
    """Return the seconds of a whole listing, and the number of requests."""
    source = open_source(describe(f"s3://{BUCKET}/")[0])
    with mock.patch.object(ranges, "PAGES_ALONE", n_keys if streams == 1 else ranges.PAGES_ALONE):
        n_before = server.operations()["ListObjectsV2"]
        started = time.perf_counter()
        n_found = sum(1 for _ in source.list())
        seconds = time.perf_counter() - started
    assert n_found == n_keys
    return seconds, server.operations()["ListObjectsV2"] - n_before


if __name__ == "__main__":
    main()
