"""Split a listing into chunks and shards, by numbers alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Tier(NamedTuple):
    """The size of a chunk of the listing and of its parts, in images.

    With `least`, a chunk that is not full is split evenly into a multiple of four parts of at least that size, so
    that two or four workers finish together. Otherwise all parts but the last have the full size.
    """

    chunk: int
    part: int
    least: int = 0

    def part_size(self, n_images: int) -> int:
        """Return the size of the parts of a chunk with `n_images`."""
        if not self.least or n_images in (0, self.chunk):  # an update may find nothing new
            return self.part
        n_parts = 4 * math.ceil(n_images / (4 * self.part))
        return max(self.least, math.ceil(n_images / n_parts))


@dataclass(frozen=True)
class Layout:
    """The sizes of chunks and shards, fixed before the first image is listed.

    Chunk k has the size of tier k; later chunks have that of the last tier. Parts grow with the collection: small
    first parts keep every core busy on a small collection and produce the first result early, large later parts
    keep the number of files low. The split depends on nothing else, so every driver splits the same listing the
    same way.
    """

    tiers: tuple[Tier, ...]

    @classmethod
    def of(cls, images_per_part: int | None, pooling: str, *, remote: bool = False) -> Layout:
        """Return the layout for a fixed number of images per part, or the default for a pooling.

        Parts at a `remote` destination grow sooner, since every part costs several requests.
        """
        if images_per_part is not None:
            return cls((Tier(images_per_part * max(1, min(1_000, 100_000 // images_per_part)), images_per_part),))
        # The driver holds a chunk in memory while it commits it.
        small = [(2_048, 64), (14_336, 256), (16_384, 1_024)]
        large = [(2_048, 128), (14_336, 512), (16_384, 2_048), (16_384, 2_048), (16_384, 4_096)]
        if remote:  # a part is sent from memory: 10 MB for 1,280 features
            small, large = [(2_048, 128), (16_384, 1_024)], [(2_048, 256), (16_384, 2_048), (18_432, 2_304)]
        return cls(tuple(Tier(*sizes, least=32) for sizes in (small if pooling == "flatten" else large)))

    def tier(self, chunk: int) -> Tier:
        """Return the sizes for a chunk."""
        return self.tiers[min(chunk, len(self.tiers) - 1)]

    def split(self, chunk: int, runs: Sequence[int]) -> list[int]:
        """Return the sizes of the parts of a chunk, in order; never more than the chunk has shard numbers.

        `runs` are the numbers of images in each archive or table, in order, or one number if there are none. A part
        holds images of one archive, unless the archives are so small that there would be too many parts.
        """
        n_images = sum(runs)
        size = self.tier(chunk).part_size(n_images)
        if len(runs) < 2:
            return [min(size, n_images - start) for start in range(0, n_images, size)]
        tier = self.tier(chunk)
        if sum(max(1, run // size) for run in runs) > tier.chunk // tier.part:
            runs = _joined(runs, size)
        sizes = []
        for run in runs:
            n_parts = max(1, run // size)
            bounds = [run * i // n_parts for i in range(n_parts + 1)]
            sizes += [high - low for low, high in itertools.pairwise(bounds)]
        return sizes

    def first_shard(self, chunk: int) -> int:
        """Return the number of the first shard of a chunk."""
        steps = [t.chunk // t.part for t in self.tiers]
        return sum(steps[:chunk]) + max(0, chunk - len(steps)) * steps[-1]

    def locate(self, shard: int) -> tuple[int, int]:
        """Return the chunk of a shard, and the row group of the shard in that chunk."""
        chunk = 0
        while chunk < len(self.tiers) - 1 and shard >= self.first_shard(chunk + 1):
            chunk += 1
        tier = self.tier(chunk)
        more, row_group = divmod(shard - self.first_shard(chunk), tier.chunk // tier.part)
        return chunk + more, row_group

    def n_shards(self, n_images: int) -> int:
        """Return the number of shards of a complete listing."""
        shards = chunk = 0
        while n_images > 0:
            tier = self.tier(chunk)
            n_here = min(n_images, tier.chunk)
            shards += math.ceil(n_here / tier.part_size(n_here))
            n_images -= n_here
            chunk += 1
        return shards


def _joined(runs: Sequence[int], size: int) -> list[int]:
    """Join neighbouring runs until none is smaller than `size`, if there are enough images."""
    joined: list[int] = []
    for run in runs:
        if joined and min(joined[-1], run) < size:
            joined[-1] += run
        else:
            joined.append(run)
    return joined
