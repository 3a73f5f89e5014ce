"""Every name on disk, once."""

from __future__ import annotations

FORMAT_VERSION = 1


def part_name(shard: int) -> str:
    """Give the name of the part of a shard, below the destination."""
    return f"features/part-{shard:08d}.parquet"
