"""How fast a bucket is listed: by one request after the other, and by many at once.

    python -m benchmarks.listing [--keys N] [--delay S]

A server on this machine makes the keys up, in ten folders, and takes a while for each request, as a store does.
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
    parser.add_argument("--delay", type=float, default=0.1, help="seconds that a request takes more")
    asked = parser.parse_args()
    print(f"{headline()}; {asked.keys:,} keys, {asked.delay:g} s a request\n")
    print("| requests at once | requests | seconds | keys/s |\n|---|---|---|---|")
    with start_listing(asked.keys) as server:
        os.environ.update(server.environment)
        server.delay(asked.delay, "ListObjectsV2")
        for streams in (1, ranges.STREAMS):
            seconds, n_requests = measure(server, asked.keys, streams)
            print(f"| {streams} | {n_requests:,} | {seconds:.1f} | {asked.keys / seconds:,.0f} |", flush=True)


def measure(server: Listing, n_keys: int, streams: int) -> tuple[float, int]:
    """Give the seconds of a whole listing, and the number of requests."""
    source = open_source(describe(f"s3://{BUCKET}/")[0])
    with mock.patch.object(ranges, "PAGES_ALONE", n_keys if streams == 1 else ranges.PAGES_ALONE):
        n_before = server.operations()["ListObjectsV2"]
        begun = time.perf_counter()
        n_found = sum(1 for _ in source.list())
        seconds = time.perf_counter() - begun
    assert n_found == n_keys
    return seconds, server.operations()["ListObjectsV2"] - n_before


if __name__ == "__main__":
    main()
