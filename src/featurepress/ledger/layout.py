"""How a listing is cut into chunks and shards: numbers only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Tier(NamedTuple):
    """The size of one chunk of the listing and of the parts in it, in images.

    With `least`, the last chunk, which is not full, is cut evenly into a multiple of four parts of at least that
    size, so that two or four workers end together; else all but the very last part have the full size.
    """

    chunk: int
    part: int
    least: int = 0

    def part_of(self, n_images: int) -> int:
        """Give the size of the parts of a chunk that holds `n_images`."""
        if not self.least or n_images in (0, self.chunk):  # an update may find nothing new
            return self.part
        n_parts = 4 * math.ceil(n_images / (4 * self.part))
        return max(self.least, math.ceil(n_images / n_parts))


@dataclass(frozen=True)
class Layout:
    """How the listing is cut into chunks and shards, known before the first image is listed.

    Chunk k has the size of tier k, all later ones that of the last tier. Parts grow with the collection:
    small first parts keep every core busy on a small collection and give the first result early, large later
    ones keep the number of files low on a large one. The cut depends on nothing else, so that any driver on
    any machine cuts the same listing the same way.
    """

    tiers: tuple[Tier, ...]

    @classmethod
    def of(cls, images_per_part: int | None, pooling: str, *, remote: bool = False) -> Layout:
        """Give the layout for a fixed number of images a part, or the default for a pooling.

        In a `remote` place, where every part costs some requests, the parts grow sooner.
        """
        if images_per_part is not None:
            return cls((Tier(images_per_part * max(1, min(1_000, 100_000 // images_per_part)), images_per_part),))
        # A chunk is in the driver's memory while it is committed.
        small = [(2_048, 64), (14_336, 256), (16_384, 1_024)]
        large = [(2_048, 128), (14_336, 512), (16_384, 2_048), (16_384, 2_048), (16_384, 4_096)]
        if remote:  # a part is sent whole, from memory: 10 MB for 1,280 features
            small, large = [(2_048, 128), (16_384, 1_024)], [(2_048, 256), (16_384, 2_048), (18_432, 2_304)]
        return cls(tuple(Tier(*sizes, least=32) for sizes in (small if pooling == "flatten" else large)))

    def tier(self, chunk: int) -> Tier:
        """Give the sizes of a chunk."""
        return self.tiers[min(chunk, len(self.tiers) - 1)]

    def cut(self, chunk: int, runs: Sequence[int]) -> list[int]:
        """Give the sizes of the parts of a chunk, in order.

        Parameters
        ----------
        chunk : int
            Number of the chunk.
        runs : sequence of int
            How many images lie in each archive or table, one after the other; one number where there are none.
            A part holds images of one archive, but where these are so small that there would be too many parts.

        Returns
        -------
        list of int
            Never more than fit between the numbers of this chunk's shards and the next one's.
        """
        n_images = sum(runs)
        size = self.tier(chunk).part_of(n_images)
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
        """Give the number of the first shard of a chunk."""
        steps = [t.chunk // t.part for t in self.tiers]
        return sum(steps[:chunk]) + max(0, chunk - len(steps)) * steps[-1]

    def locate(self, shard: int) -> tuple[int, int]:
        """Give the chunk of a shard, and the row group that the shard is in it."""
        chunk = 0
        while chunk < len(self.tiers) - 1 and shard >= self.first_shard(chunk + 1):
            chunk += 1
        tier = self.tier(chunk)
        more, row_group = divmod(shard - self.first_shard(chunk), tier.chunk // tier.part)
        return chunk + more, row_group

    def n_shards(self, n_images: int) -> int:
        """Give the number of shards of a whole listing."""
        shards = chunk = 0
        while n_images > 0:
            tier = self.tier(chunk)
            n_here = min(n_images, tier.chunk)
            shards += math.ceil(n_here / tier.part_of(n_here))
            n_images -= n_here
            chunk += 1
        return shards


def _joined(runs: Sequence[int], size: int) -> list[int]:
    """Join runs with their neighbours until none is smaller than `size`, unless all together are."""
    joined: list[int] = []
    for run in runs:
        if joined and min(joined[-1], run) < size:
            joined[-1] += run
        else:
            joined.append(run)
    return joined
