"""The layout: how a listing of any length is cut into chunks and shards."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurepress import ledger
from featurepress.ledger.layout import Layout, Tier
from featurepress.specs import ImageRef
from featurepress.testing import MemoryStorage
from tests.ledger.test_ledger import small_plan

LAYOUTS = {
    "avg": Layout.of(None, "avg"),
    "flatten": Layout.of(None, "flatten"),
    "remote avg": Layout.of(None, "avg", remote=True),
    "remote flatten": Layout.of(None, "flatten", remote=True),
    **{str(n): Layout.of(n, "avg") for n in (1, 3, 70, 4096, 99_999, 100_000, 1_000_000)},
    "one tier": Layout((Tier(8, 4),)),
}


def cut(layout: Layout, n_images: int) -> Iterator[tuple[int, int, int]]:
    """Cut a listing as plainly as it can be said: (chunk, row group, images) of each shard."""
    evenly = {tier.least > 0 for tier in layout.tiers} == {True}
    for chunk in range(n_images + 1):
        tier = layout.tier(chunk)
        in_chunk = min(tier.chunk, n_images)
        size = tier.part
        if evenly and in_chunk < tier.chunk:
            n_parts = next(n for n in itertools.count(4, 4) if n * tier.part >= in_chunk)
            size = max(32, next(size for size in itertools.count(1) if size * n_parts >= in_chunk))
        for row_group, start in enumerate(range(0, in_chunk, size)):
            yield chunk, row_group, min(size, in_chunk - start)
        n_images -= in_chunk
        if not n_images:
            return


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_parts_fill_chunks_without_a_rest(layout: Layout) -> None:
    for tier in layout.tiers:
        assert tier.chunk % tier.part == 0
        assert not tier.least or tier.chunk % (4 * tier.part) == 0
        assert 1 <= tier.part <= tier.chunk <= 1_000_000


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("n_images", [0, 1, 2, 127, 128, 129, 2_047, 2_048, 2_049, 16_384, 81_920, 300_001])
def test_the_number_of_shards_agrees_with_the_cut(layout: Layout, n_images: int) -> None:
    assert layout.n_shards(n_images) == sum(1 for _ in cut(layout, n_images))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_locate_is_the_inverse_of_numbering(layout: Layout) -> None:
    n_images = 4 * max(tier.chunk for tier in layout.tiers)
    numbers = []
    for chunk, row_group, _ in cut(layout, n_images):
        shard = layout.first_shard(chunk) + row_group
        assert layout.locate(shard) == (chunk, row_group)
        numbers.append(shard)
    assert numbers == list(range(len(numbers)))


@given(
    tiers=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
    n_images=st.integers(0, 200),
)
def test_any_layout_numbers_its_shards_without_a_gap(tiers: list[tuple[int, int]], n_images: int) -> None:
    layout = Layout(tuple(Tier(steps * part, part) for steps, part in tiers))
    shards = [layout.first_shard(chunk) + row_group for chunk, row_group, _ in cut(layout, n_images)]
    assert shards == list(range(layout.n_shards(n_images)))
    assert [layout.locate(s) for s in shards] == [(chunk, group) for chunk, group, _ in cut(layout, n_images)]


def test_a_listing_of_22_7_million() -> None:
    n_images = 22_700_000
    for pooling, n_parts in (("avg", 5_614), ("flatten", 22_368)):
        layout = Layout.of(None, pooling)
        n_shards = layout.n_shards(n_images)
        assert n_shards == sum(1 for _ in cut(layout, n_images))
        assert abs(n_shards - n_parts) < 200, n_shards
        chunk, row_group = layout.locate(n_shards - 1)
        assert layout.first_shard(chunk) + row_group == n_shards - 1
        assert chunk < 1_500
    assert Layout.of(1, "avg").n_shards(n_images) == n_images


def test_the_first_parts_are_small_and_the_last_as_large_as_decided() -> None:
    assert Layout.of(None, "avg").tiers[0].part <= 128
    assert Layout.of(None, "avg").tiers[-1].part == 4_096
    assert Layout.of(None, "flatten").tiers[-1].part == 1_024
    assert Layout.of(500, "flatten").tiers == (Tier(100_000, 500),)


@pytest.mark.parametrize(
    ("n_images", "sizes"),
    [
        (1, {1}),
        (32, {32}),
        (33, {32, 1}),
        (120, {32, 24}),
        (160, {40}),
        (1_200, {100}),  # 12 parts: six each for two workers, three each for four
        (1_201, {101, 90}),
        (2_047, {128, 127}),
        (2_048, {128}),
        (12_000, {128, 498, 490}),
    ],
)
def test_the_last_chunk_is_cut_evenly(n_images: int, sizes: set[int]) -> None:
    """So that the workers end together; a part is never too small for what it costs to write."""
    layout = Layout.of(None, "avg")
    plan, refs = replace(small_plan(MemoryStorage()), layout=layout), iter(range(n_images))
    for chunk in range(2):
        if here := [ImageRef(f"{i:05d}", 0, i, "v") for i in itertools.islice(refs, layout.tier(chunk).chunk)]:
            ledger.commit_chunk(plan, chunk, here, {})
    lengths = [len(ledger.read_shard(plan, layout.first_shard(k) + i)) for k, i, _ in cut(layout, n_images)]
    assert sum(lengths) == n_images
    assert set(lengths) == sizes


# -- archives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_parts_of_a_chunk_never_run_into_the_numbers_of_the_next(layout: Layout) -> None:
    rng = random.Random(3)
    for chunk in range(len(layout.tiers) + 1):
        room = layout.first_shard(chunk + 1) - layout.first_shard(chunk)
        full = layout.tier(chunk).chunk
        for n_images in {1, 2, full // 3, full - 1, full, *(rng.randint(1, full) for _ in range(40))}:
            for longest in (1, 7, layout.tier(chunk).part, full):
                runs: list[int] = []
                left = n_images
                while left:
                    runs.append(min(left, rng.randint(1, longest)) if len(runs) < 2_000 else left)
                    left -= runs[-1]
                sizes = layout.split(chunk, runs)
                assert sum(sizes) == n_images
                assert min(sizes) > 0
                assert len(sizes) <= room
                assert max(sizes) <= max(2 * layout.tier(chunk).part, *([] if len(runs) < 2_000 else runs), 1)


def test_parts_end_where_archives_do() -> None:
    layout = Layout((Tier(100, 10),))
    assert layout.split(0, [30, 25, 5]) == [10, 10, 10, 12, 13, 5]
    assert layout.split(0, [60]) == [10] * 6
    assert layout.split(0, [9] * 8) == [9] * 8
    assert sum(layout.split(0, [1] * 100)) == 100
    assert len(layout.split(0, [1] * 100)) <= 10


def test_a_chunk_without_images_has_no_parts_and_some_size_all_the_same() -> None:
    assert Tier(2_048, 128, 32).part_size(0) > 0
