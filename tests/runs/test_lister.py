"""The lister: whatever moment it was killed at, and whoever else lists, the same chunks come to stand."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurepress import ledger
from featurepress.errors import SourceError, StorageError
from featurepress.ledger import Chunk, Plan
from featurepress.ledger.layout import Layout, Tier
from featurepress.runs.lister import Lister, NewListing
from featurepress.sources import Listing, describe
from featurepress.specs import SourceSpec
from featurepress.storage import FolderStorage, Storage
from featurepress.testing import MemoryStorage, draft_plan, memory_source

LAYOUT = Layout((Tier(4, 2), Tier(6, 3)))


def make_plan(storage: Storage, *sources: SourceSpec, **options: Any) -> Plan:
    return replace(draft_plan(storage, *sources, **options), layout=LAYOUT)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def images(n: int, start: int = 0) -> list[str]:
    return [f"{i:02d}.jpg" for i in range(start, start + n)]


def from_memory(folder: Path, n: int) -> tuple[SourceSpec, ...]:
    return (memory_source(dict.fromkeys(images(n), b"1")),)


def from_a_folder(folder: Path, n: int) -> tuple[SourceSpec, ...]:
    """Describe a folder with much to be passed over, between the images as well."""
    touch(folder, *(f"a/{name}" for name in images(n)), "a/.hidden", "a/!first.txt", "a/03.txt", "a/zzz.txt")
    touch(folder, "a/(1).jpg", "a/sub/.x", "a/sub/1.txt", "a/05/.x/y.jpg", "a/05/1.txt", "a/05/2.jpg", "a/05/3.txt")
    (folder / "a" / "05" / "loop").symlink_to("..")
    return describe(str(folder / "a"))


def from_three_folders(folder: Path, n: int) -> tuple[SourceSpec, ...]:
    """Describe folders of which a merge looks far ahead, and passes over much when it does."""
    from_a_folder(folder, n)
    touch(folder, "b/.1", "b/1.txt", "b/2.txt", "b/3.jpg", "b/4.txt", "b/5.jpg", "b/6.txt")
    touch(folder, "c/1.txt", *(f"c/{name}" for name in images(n)), "c/zz.txt")
    return describe([str(folder / name) for name in "cab"])


def interleaved(folder: Path, n: int) -> tuple[SourceSpec, ...]:
    """Describe globs whose images alternate."""
    for i in range(n):
        touch(folder, f"d{i:02d}/a.jpg", f"d{i:02d}/b.png", f"d{i:02d}/c.txt")
    return describe([str(folder / "*" / "*.jpg"), str(folder / "*" / "*.png")])


SOURCES: dict[str, Callable[[Path, int], tuple[SourceSpec, ...]]] = {
    "memory": from_memory,
    "folder": from_a_folder,
    "three folders": from_three_folders,
    "interleaved": interleaved,
}


def run(lister: Lister) -> list[Chunk]:
    with lister:
        return [work for work in lister if isinstance(work, Chunk)]


def run_fresh(plan: Plan, n_head: int = 3) -> list[Chunk]:
    """List as the driver of a new run does, which has looked at the first images before."""
    listing = Listing(plan.sources, plan.settings.listing)
    stream = iter(listing)
    head = list(itertools.islice(stream, n_head))
    return run(Lister(NewListing(plan, listing, itertools.chain(head, stream))))


def objects(storage: Storage) -> dict[str, bytes | None]:
    return {entry.name: storage.read(entry.name) for entry in storage.list("")}


def refs(plan: Plan, chunks: list[Chunk]) -> list[str]:
    return [ref.uri for chunk in chunks for s in chunk.shards for ref in ledger.read_shard(plan, s)]


# -- undisturbed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 4, 5, 10, 16, 17])
@pytest.mark.parametrize("kind", SOURCES)
def test_all_is_listed_and_the_chunks_are_full_but_the_last(tmp_path: Path, kind: str, n: int) -> None:
    plan = make_plan(MemoryStorage(), *SOURCES[kind](tmp_path, n))
    chunks = run_fresh(plan)
    listing = Listing(plan.sources, plan.settings.listing)
    expected = [ref.uri for ref in listing]
    assert refs(plan, chunks) == expected
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.n_images == LAYOUT.tier(chunk.number).chunk for chunk in chunks[:-1])
    assert sum(len(chunk.shards) for chunk in chunks) == LAYOUT.n_shards(len(expected))
    end = {"chunks": len(chunks), "images": len(expected), "skipped": listing.skipped}
    assert ledger.read_listing(plan) == end


@pytest.mark.parametrize("kind", SOURCES)
def test_a_started_listing_and_a_new_one_commit_the_same(tmp_path: Path, kind: str) -> None:
    specs = SOURCES[kind](tmp_path, 12)
    one, other = (make_plan(MemoryStorage(), *specs) for _ in range(2))
    run_fresh(one)
    run(Lister(NewListing(other)))
    assert objects(one.storage) == objects(other.storage)


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 10, 11, 100])
@pytest.mark.parametrize("kind", SOURCES)
def test_the_limit_ends_the_listing(tmp_path: Path, kind: str, limit: int) -> None:
    plan = make_plan(MemoryStorage(), *SOURCES[kind](tmp_path, 12), limit=limit)
    everything = [ref.uri for ref in Listing(plan.sources, replace(plan.settings.listing, limit=None))]
    assert refs(plan, run_fresh(plan)) == everything[:limit]


# -- killed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("kind", SOURCES)
def test_killed_between_any_two_steps_it_ends_with_the_same_bits(
    tmp_path: Path, kind: str, limit: int | None
) -> None:
    specs = SOURCES[kind](tmp_path, 12)
    undisturbed = make_plan(MemoryStorage(), *specs, limit=limit)
    n_chunks = len(run_fresh(undisturbed))
    expected = objects(undisturbed.storage)
    assert n_chunks >= 2
    for n_standing in range(n_chunks + 1):
        plan = make_plan(MemoryStorage(), *specs, limit=limit)
        for number in range(n_standing):
            name = f"plan/chunk-{number:08d}.parquet"
            plan.storage.write(name, expected[name] or b"")
        chunks = run(Lister(NewListing(plan)))
        assert len(chunks) == n_chunks
        assert objects(plan.storage) == expected


def test_killed_after_each_step_it_still_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Resume from what a resumed run has left, again and again."""
    specs = from_three_folders(tmp_path, 12)
    undisturbed, plan = (make_plan(MemoryStorage(), *specs) for _ in range(2))
    n_chunks = len(run_fresh(undisturbed))
    for n_standing in range(n_chunks):
        run(Lister(NewListing(plan)))
        plan.storage.delete("plan/listing.json")
        for number in range(n_standing + 1, n_chunks):
            plan.storage.delete(f"plan/chunk-{number:08d}.parquet")
    run(Lister(NewListing(plan)))
    assert objects(plan.storage) == objects(undisturbed.storage)


def test_a_complete_listing_is_not_made_again(tmp_path: Path) -> None:
    plan = make_plan(MemoryStorage(), *from_a_folder(tmp_path, 12))
    before = run_fresh(plan)
    touch(tmp_path, "a/99.jpg")
    assert run(Lister(NewListing(plan))) == before
    (tmp_path / "a").rename(tmp_path / "gone")
    assert run(Lister(NewListing(plan))) == before


def test_images_that_came_meanwhile_are_taken_where_the_listing_still_is(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{name}" for name in images(9)))
    plan = make_plan(MemoryStorage(), *describe(str(tmp_path / "a")))
    run_fresh(plan)
    plan.storage.delete("plan/listing.json")
    plan.storage.delete("plan/chunk-00000001.parquet")
    touch(tmp_path, "a/00b.jpg", "a/05b.jpg", "a/99.jpg")
    names = [Path(uri).name for uri in refs(plan, run(Lister(NewListing(plan))))]
    assert names == [*images(6), "05b.jpg", *images(3, 6), "99.jpg"]


def test_a_chunk_that_is_not_full_stays_the_last(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{name}" for name in images(6)), "a/x.txt")
    plan = make_plan(MemoryStorage(), *describe(str(tmp_path / "a")))
    run_fresh(plan)
    plan.storage.delete("plan/listing.json")
    touch(tmp_path, "a/99.jpg")
    chunks = run(Lister(NewListing(plan)))
    assert sum(chunk.n_images for chunk in chunks) == 6
    assert ledger.read_listing(plan) == {"chunks": 2, "images": 6, "skipped": {"no image suffix": 1}}
    shards = [shard for chunk in chunks for shard in chunk.shards]
    assert shards == list(range(plan.layout.n_shards(6)))


# -- two at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
def test_two_listers_at_once_see_and_leave_the_same(tmp_path: Path, kind: str) -> None:
    specs = SOURCES[kind](tmp_path, 12)
    undisturbed = make_plan(MemoryStorage(), *specs)
    expected = run_fresh(undisturbed)
    storage = FolderStorage(str(tmp_path / "out"))
    storage.prepare()
    plan = make_plan(storage, *specs)
    seen: list[list[Chunk]] = []
    ways = [lambda: run_fresh(plan), lambda: run(Lister(NewListing(plan))), lambda: run_fresh(plan)]
    threads = [threading.Thread(target=lambda go=go: seen.append(go())) for go in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 3
    assert objects(storage) == objects(undisturbed.storage)


def test_another_driver_may_have_listed_everything_already(tmp_path: Path) -> None:
    plan = make_plan(MemoryStorage(), *from_a_folder(tmp_path, 12))
    expected = run_fresh(plan)
    before = objects(plan.storage)
    assert run_fresh(plan) == expected
    assert objects(plan.storage) == before


@pytest.mark.parametrize("n_others", [1, 2, 3])
def test_where_another_driver_saw_other_images_its_chunks_stand(tmp_path: Path, n_others: int) -> None:
    touch(tmp_path, *(f"a/{name}" for name in images(15)))
    specs = describe(str(tmp_path / "a"))
    other = make_plan(MemoryStorage(), *specs)
    other_chunks = run_fresh(other)[:n_others]
    touch(tmp_path, "a/00b.jpg")  # this driver sees one image more, which the other has passed
    plan = make_plan(MemoryStorage(), *specs)
    for chunk in other_chunks:
        name = f"plan/chunk-{chunk.number:08d}.parquet"
        plan.storage.write(name, other.storage.read(name) or b"")
    uris = refs(plan, run_fresh(plan))
    assert [Path(uri).name for uri in uris] == images(15)


# -- the thread ----------------------------------------------------------------------------------------------


def test_an_error_of_the_listing_comes_where_the_chunks_are_taken(tmp_path: Path) -> None:
    plan = make_plan(MemoryStorage(), *from_a_folder(tmp_path, 12))
    run_fresh(plan)
    plan.storage.delete("plan/listing.json")
    plan.storage.delete("plan/chunk-00000002.parquet")
    (tmp_path / "a").rename(tmp_path / "gone")
    with pytest.raises(SourceError, match="There is no source"):
        run(Lister(NewListing(plan)))


def test_an_error_of_the_destination_comes_where_the_chunks_are_taken(tmp_path: Path) -> None:
    plan = make_plan(FolderStorage(str(tmp_path / "gone")), *from_memory(tmp_path, 5))
    with pytest.raises(StorageError, match="the destination is gone"):
        run_fresh(plan)


def test_whoever_leaves_early_ends_the_thread_and_can_go_on_later(tmp_path: Path) -> None:
    specs = from_three_folders(tmp_path, 30)
    undisturbed, plan = (make_plan(MemoryStorage(), *specs) for _ in range(2))
    run_fresh(undisturbed)
    with Lister(NewListing(plan)) as lister:
        first = next(iter(lister))
    assert isinstance(first, Chunk)
    assert first.number == 0
    assert not [t for t in threading.enumerate() if t.name == "featurepress-list"]
    run(Lister(NewListing(plan)))
    assert objects(plan.storage) == objects(undisturbed.storage)


def test_where_the_last_chunk_is_full_its_end_is_the_end_for_every_driver(tmp_path: Path) -> None:
    """Another driver that sees more images, a moment later, must not add a chunk that nobody else knows of."""
    plan = make_plan(FolderStorage(str(tmp_path / "out")), *from_memory(tmp_path, 10))
    plan.storage.prepare()
    assert [chunk.n_images for chunk in NewListing(plan)] == [4, 6]
    more = replace(plan, sources=from_memory(tmp_path, 11))
    assert not ledger.commit_chunk(more, 2, list(Listing(more.sources, more.settings.listing))[10:], {}).n_images
    assert [chunk.n_images for chunk in NewListing(more)] == [4, 6]
    (tmp_path / "out" / "plan" / "listing.json").unlink()
    assert [chunk.n_images for chunk in NewListing(more)] == [4, 6]
    listing = ledger.read_listing(more)
    assert listing is not None
    assert (listing["chunks"], listing["images"]) == (2, 10)
