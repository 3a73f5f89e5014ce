"""Cost of the driver of a large run: planning and receipts, for generated references.

    python -m benchmarks.planning [--images N] [--remote]

It commits the listing of N references chunk by chunk, as `embed` does, and counts a receipt for each of their
shards, as an engine returns them; nothing is read or embedded.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.speed import headline
from featurepress import ledger
from featurepress.ledger import Totals
from featurepress.ledger.layout import Layout
from featurepress.models.catalog import find_card
from featurepress.runs.lister import NewListing
from featurepress.specs import ImageRef, Receipt
from featurepress.storage import FolderStorage
from featurepress.testing import draft_plan, memory_source


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000_000)
    parser.add_argument("--remote", action="store_true", help="the layout for a bucket")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        backbone = find_card("embedded").backbone("avg")
        plan = draft_plan(FolderStorage(work), memory_source({}), backbone=backbone, labels="parent")
        object.__setattr__(plan, "layout", Layout.of(None, "avg", remote=arguments.remote))
        ledger.create_plan(plan)
        started, n_shards, n_images = time.perf_counter(), 0, 0
        for chunk in NewListing(plan, None, references(arguments.images)):
            n_shards += len(chunk.shards)
            n_images += chunk.n_images
        planning = time.perf_counter() - started
        totals, message = Totals(), pickle.dumps(receipt(4_096))
        started = time.perf_counter()
        for _ in range(n_shards):
            totals.add(pickle.loads(message))
        counting = time.perf_counter() - started
        n_bytes = sum(path.stat().st_size for path in Path(work).rglob("*.parquet"))
    print(headline())
    print(f"{n_images:,} references, {n_shards:,} shards, {n_bytes / 1e6:,.0f} MB of listing")
    print(f"planning {planning:.1f} s, {planning / n_images * 1e6:.1f} us per image")
    print(f"receipts {counting / n_shards * 1e6:.0f} us per shard, {len(message):,} bytes each")
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def references(n_images: int) -> Iterator[ImageRef]:
    """Yield a listing in byte order, with labels, like that of a bucket."""
    for number in range(n_images):
        folder = f"class-{number // 5_000:05d}"
        uri = f"s3://bucket/Training/{folder}/{number:09d}.jpg"
        yield ImageRef(uri, 0, 4_000 + number % 997, f'"{number * 2_654_435_761 % 2**64:032x}"', (folder,))


def receipt(n_images: int) -> Receipt:
    """Return a receipt as workers send it."""
    versions = {"featurepress": "0.1.0", "openvino": "2026.1", "numpy": "2.4", "pyarrow": "26.0", "python": "3.11"}
    return Receipt(
        shard=1, generation=1, listed=n_images, embedded=n_images, failed=0, failed_by_kind={}, bytes_read=10**7,
        seconds=2.0, precision="float32", cpu="AMD EPYC", host="ip-10-0-0-1", versions=versions,
    )  # fmt: skip


if __name__ == "__main__":
    main()
