"""The contract of storages. A new one adds a row to `KINDS`."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from featurepress.errors import ReplacedError, StorageError
from featurepress.process import Child
from featurepress.storage import FolderStorage, Storage, open_storage
from featurepress.testing import MemoryStorage
from tests.contracts.tasks import race
from tests.storages import QuotaStorage


def quota_storage(folder: Path) -> Storage:
    (folder / "quota").write_text("100000000")
    return QuotaStorage(str(folder / "out"), quota_file=str(folder / "quota"))


KINDS: dict[str, Callable[[Path], Storage]] = {
    "folder": lambda folder: FolderStorage(str(folder / "out")),
    "quota": quota_storage,
    "memory": lambda folder: MemoryStorage(),
}
BUCKETS = ("s3", "fast_s3", "azure", "google")  # fixtures of tests.servers
ACROSS_PROCESSES = ("folder", "quota", *BUCKETS)


def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> Storage:
    if kind in BUCKETS:
        server = request.getfixturevalue(kind)
        storage = open_storage(server.url(server.bucket(), "sets/out"))
    else:
        storage = KINDS[kind](folder)
    storage.prepare()
    return storage


@pytest.fixture(params=[*KINDS, *BUCKETS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return opened(request.param, request, tmp_path)


@pytest.fixture(params=ACROSS_PROCESSES)
def shared_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return opened(request.param, request, tmp_path)


def names(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.name for entry in storage.list(prefix)]


NAMES = ["a-b/x", "a.b", "a/b", "a/b c%d#1", "a/b-c", "a/b/", "a/c", "a/é", "a/z/1", "ab", "b", "é/x"]
NAMES = [name for name in NAMES if not name.endswith("/")]


def test_list_returns_all_objects_in_byte_order_with_their_sizes(storage: Storage) -> None:
    for size, name in enumerate(reversed(NAMES)):
        storage.write(name, b"x" * size)
    sizes = {name: size for size, name in enumerate(reversed(NAMES))}
    expected = [(name, sizes[name]) for name in sorted(NAMES, key=str.encode)]
    assert [(entry.name, entry.size) for entry in storage.list("")] == expected


def test_list_returns_only_objects_below_the_prefix(storage: Storage) -> None:
    for name in NAMES:
        storage.write(name, b"")
    assert names(storage, "a") == sorted((n for n in NAMES if n.startswith("a/")), key=str.encode)
    assert names(storage, "a/z") == ["a/z/1"]


def test_list_of_a_missing_folder_or_an_object_is_empty(storage: Storage) -> None:
    storage.write("a", b"1")
    assert names(storage, "nothing") == []
    assert names(storage, "nothing/below") == []
    assert names(storage, "a") == []


def test_list_skips_an_object_that_is_deleted_meanwhile(storage: Storage) -> None:
    storage.write("a", b"")
    storage.write("b", b"")
    storage.write("c", b"")
    listing = storage.list("")
    assert next(listing).name == "a"
    storage.delete("b")
    rest = [entry.name for entry in listing]
    assert rest in (["c"], ["b", "c"])  # a bucket's page has come already


def test_read_returns_the_bytes_or_none(storage: Storage) -> None:
    storage.write("a/b", b"12")
    assert storage.read("a/b") == b"12"
    assert storage.read("a/c") is None
    assert storage.read("a/b/c") is None
    assert storage.read("nothing/c") is None


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=["empty", "byte", "megabyte"])
def test_write_replaces_the_whole_object(storage: Storage, data: bytes) -> None:
    storage.write("a/b", b"before" * 1000)
    storage.write("a/b", memoryview(data))
    assert storage.read("a/b") == data
    (entry,) = storage.list("")
    assert (entry.name, entry.size) == ("a/b", len(data))
    looked = storage.stat("a/b")
    assert looked is not None
    assert looked[:2] == entry[:2]
    assert entry.version in ("", looked.version)


def test_stat_of_a_missing_object_is_none(storage: Storage) -> None:
    storage.write("a/b", b"1")
    assert storage.stat("a/c") is None
    assert storage.stat("a") is None
    assert storage.stat("nothing/c") is None


def test_replace_only_the_version_that_was_read(storage: Storage) -> None:
    storage.write("a/b", b"one")
    first = storage.stat("a/b")
    assert first is not None
    assert storage.replace("a/b", iter([b"tw", b"o"]), first.version)
    assert storage.read("a/b") == b"two"
    assert not storage.replace("a/b", b"late", first.version)
    assert storage.read("a/b") == b"two"
    second = storage.stat("a/b")
    assert second is not None
    assert second.version != first.version
    assert storage.replace("a/b", b"three", second.version)
    assert storage.read("a/b") == b"three"


def test_replace_never_creates(storage: Storage) -> None:
    storage.write("a/b", b"one")
    entry = storage.stat("a/b")
    assert entry is not None
    storage.delete("a/b")
    assert not storage.replace("a/b", b"two", entry.version)
    assert storage.read("a/b") is None


def test_one_of_many_threads_replaces_a_version(storage: Storage) -> None:
    storage.write("a", b"start")
    entry = storage.stat("a")
    assert entry is not None
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.replace("a", b"%d" % i * 1000, entry.version), range(16)))
    assert sum(won) == 1
    assert storage.read("a") == b"%d" % won.index(True) * 1000


@pytest.mark.parametrize("durable", [True, False])
def test_create_only_if_absent(storage: Storage, durable: bool) -> None:
    assert storage.create("a/b", memoryview(b"first"), durable=durable)
    assert not storage.create("a/b", b"second", durable=durable)
    assert storage.read("a/b") == b"first"
    storage.write("c", b"written")
    assert not storage.create("c", b"created", durable=durable)
    assert storage.read("c") == b"written"
    assert names(storage) == ["a/b", "c"]


def test_create_again_after_delete(storage: Storage) -> None:
    assert storage.create("a", b"1")
    storage.delete("a")
    assert storage.create("a", b"2")
    assert storage.read("a") == b"2"


def test_one_of_many_threads_creates(storage: Storage) -> None:
    n_threads, n_rounds = 8, 12
    barrier = threading.Barrier(n_threads)

    def compete(who: int) -> list[bool]:
        won = []
        for i in range(n_rounds):
            barrier.wait(30)
            won.append(storage.create(f"part-{i}", bytes([who]) * 1000, durable=False))
        return won

    with ThreadPoolExecutor(n_threads) as pool:
        results = list(pool.map(compete, range(n_threads)))
    for i, column in enumerate(zip(*results, strict=True)):
        assert sum(column) == 1
        assert storage.read(f"part-{i}") == bytes([column.index(True)]) * 1000


def test_one_of_several_processes_creates(shared_storage: Storage) -> None:
    parts = [f"features/part-{i}" for i in range(40)]
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        children = [Child(preload=("tests.contracts.tasks",)) for _ in range(3)]
        for child in children:
            stack.callback(child.close)
        for child in children:  # all of them are up before the race
            child.call(race, shared_storage, [], "")
        calls = [
            pool.submit(child.call, race, shared_storage, parts, who)
            for child, who in zip(children, "abc", strict=True)
        ]
        won = dict(zip("abc", (call.result(60) for call in calls), strict=True))
    assert sorted(name for some in won.values() for name in some) == sorted(parts)
    assert all(shared_storage.read(name) == who.encode() * 1000 for who, some in won.items() for name in some)
    assert names(shared_storage) == sorted(parts)


def test_a_stream_appears_when_its_block_ends(storage: Storage) -> None:
    with storage.stream("csv/a") as file:
        file.write(b"one")
        assert names(storage) == []
        assert storage.read("csv/a") is None
        file.write(b"two")
    assert storage.read("csv/a") == b"onetwo"
    assert names(storage) == ["csv/a"]


def test_a_stream_replaces_at_its_end_only(storage: Storage) -> None:
    storage.write("a", b"before")
    with storage.stream("a") as file:
        file.write(b"after")
        assert storage.read("a") == b"before"
        assert names(storage) == ["a"]
    assert storage.read("a") == b"after"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_stream_whose_block_fails_leaves_no_object(
    storage: Storage, tmp_path: Path, error: type[BaseException]
) -> None:
    storage.write("a", b"before")
    for name in ("a", "b"):
        with pytest.raises(error), storage.stream(name) as file:
            file.write(b"half")
            raise error
    assert names(storage) == ["a"]
    assert storage.read("a") == b"before"
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_delete_of_a_missing_object_is_no_error(storage: Storage) -> None:
    storage.write("a/b", b"1")
    storage.delete("a/b")
    storage.delete("a/b")
    storage.delete("nothing/at/all")
    assert names(storage) == []
    assert storage.read("a/b") is None


def test_open_reads_at_any_position(storage: Storage) -> None:
    storage.write("a", b"0123456789")
    with storage.open("a") as file:
        assert file.seek(-3, 2) == 7
        assert file.read(2) == b"78"
        assert file.tell() == 9
        file.seek(0)
        assert file.read() == b"0123456789"


def test_open_of_a_missing_object_is_an_error(storage: Storage) -> None:
    with pytest.raises(StorageError, match="no such") as caught:
        storage.open("a/b")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_the_opened_version_can_be_replaced(storage: Storage) -> None:
    storage.write("a/b", b"one")
    file, version = storage.open_version("a/b")
    with file:
        assert file.read() == b"one"
    entry = storage.stat("a/b")
    assert entry is not None
    assert entry.version == version
    assert storage.replace("a/b", b"two", version)
    assert not storage.replace("a/b", b"late", version)
    file, version = storage.open_version("a/b")
    file.close()
    assert storage.replace("a/b", b"three", version)


@pytest.mark.parametrize("n_bytes", [100, 5_000_000])
def test_an_open_file_reads_one_version(storage: Storage, n_bytes: int) -> None:
    storage.write("a", b"1" * n_bytes)
    with storage.open("a") as file:
        assert file.read(10) == b"1" * 10
        storage.write("a", b"2" * n_bytes)
        file.seek(n_bytes - 10)
        try:
            assert file.read(10) == b"1" * 10
        except ReplacedError as error:
            assert n_bytes > 100
            assert str(error).endswith("/a': it has changed; read it again when whatever replaces it has ended.")


def test_sync_accepts_missing_and_nested_folders(storage: Storage) -> None:
    storage.sync("receipts")
    storage.create("receipts/a", b"1", durable=False)
    storage.create("receipts/b/c", b"2", durable=False)
    storage.sync("receipts")
    assert names(storage) == ["receipts/a", "receipts/b/c"]


def test_prepare_keeps_existing_objects(storage: Storage) -> None:
    storage.write("a", b"1")
    storage.prepare()
    assert storage.read("a") == b"1"


def test_a_pickled_copy_reads_the_same_objects(shared_storage: Storage) -> None:
    shared_storage.write("a", b"1")
    copy: Storage = pickle.loads(pickle.dumps(shared_storage))
    assert copy == shared_storage
    assert copy.read("a") == b"1"
    assert not copy.create("a", b"2")
    assert len(pickle.dumps(shared_storage)) < 1000


def test_location_is_a_text(storage: Storage) -> None:
    assert isinstance(storage.location, str)
    assert storage.location
