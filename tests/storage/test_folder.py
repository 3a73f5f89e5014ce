"""Folders as storage: errors and limits of the file system."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featurepress.errors import DestinationError, StorageError
from featurepress.process import Child, ChildDiedError
from featurepress.storage import FolderStorage, Storage, open_storage
from tests.storages import QuotaStorage

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    storage = FolderStorage(str(tmp_path / "out"))
    storage.prepare()
    return storage


def hidden(storage: FolderStorage) -> list[str]:
    return [path.name for path in Path(storage.root).rglob(".*")]


def test_open_storage_creates_nothing(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "a" / "b"))
    assert storage.location == str(tmp_path / "a" / "b")
    assert list(storage.list("")) == []
    assert list(tmp_path.iterdir()) == []


def test_prepare_creates_the_parents(tmp_path: Path) -> None:
    FolderStorage(str(tmp_path / "a" / "b")).prepare()
    assert (tmp_path / "a" / "b").is_dir()


def test_prepare_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"Cannot create '.*file/out': not a directory"):
        FolderStorage(str(tmp_path / "file" / "out")).prepare()


def test_a_removed_destination_is_not_created_again(tmp_path: Path) -> None:
    storage = FolderStorage(str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="the destination is gone"):
        storage.create("features/part", b"1")
    with pytest.raises(StorageError, match="the destination is gone"):
        storage.write("manifest.json", b"1")
    assert not (tmp_path / "gone").exists()


def test_a_file_in_place_of_a_folder_is_an_error(storage: FolderStorage) -> None:
    Path(storage.root, "features").touch()
    with pytest.raises(StorageError, match="file exists"):
        storage.create("features/part", b"1")
    with pytest.raises(StorageError, match="file exists"):
        storage.write("features/part", b"1")


def test_a_name_that_is_too_long_is_an_error(storage: FolderStorage) -> None:
    name = "a" * 300
    for call in (
        lambda: storage.create(name, b"1"),
        lambda: storage.write(name, b"1"),
        lambda: storage.read(name),
        lambda: storage.open(name),
        lambda: storage.delete(name),
        lambda: list(storage.list(name)),
    ):
        with pytest.raises(StorageError, match="file name too long"):
            call()


@pytest.mark.skipif(AS_ROOT, reason="root may do everything")
def test_a_folder_without_write_permission_is_an_error(storage: FolderStorage) -> None:
    Path(storage.root).chmod(0o500)
    try:
        with pytest.raises(StorageError, match="permission denied; grant this user"):
            storage.create("a", b"1")
    finally:
        Path(storage.root).chmod(0o700)


def test_only_visible_regular_files_are_listed(storage: FolderStorage) -> None:
    storage.write("a", b"1")
    root = Path(storage.root)
    os.mkfifo(root / "pipe")
    (root / "broken").symlink_to("nowhere")
    (root / ".hidden").touch()
    (root / ".git").mkdir()
    (root / ".git" / "config").touch()
    assert [entry.name for entry in storage.list("")] == ["a"]


def write_beyond_the_limit(storage: Storage, how: str, n_bytes: int) -> str:
    """Write more than the limit of the process; a file is then cut there, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        if how == "stream":
            with storage.stream("a") as file:
                for _ in range(n_bytes // 1000):
                    file.write(b"x" * 1000)
        else:
            getattr(storage, how)("a", b"x" * n_bytes)
    except StorageError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("how", ["create", "write", "stream"])
@pytest.mark.parametrize("n_bytes", [100_001, 5_000_000])
def test_a_full_disk_is_an_error_and_leaves_no_file(storage: FolderStorage, how: str, n_bytes: int) -> None:
    n_bytes = n_bytes if how != "stream" else max(n_bytes, 101_000)
    child = Child()
    try:
        message = child.call(write_beyond_the_limit, storage, how, n_bytes)
    finally:
        child.close()
    assert message.startswith(f"Cannot write '{storage.root}/a': ")
    assert list(storage.list("")) == []
    assert hidden(storage) == []


def die_while_writing(storage: Storage, how: str) -> None:

    if how == "stream":
        with storage.stream("a") as file:
            file.write(b"x" * 100_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    # The file size limit's signal kills in the middle of the write.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    getattr(storage, how)("a", b"x" * 5_000_000)


@pytest.mark.parametrize("how", ["create", "write", "stream"])
def test_a_process_killed_while_it_writes_leaves_nothing_visible(storage: FolderStorage, how: str) -> None:
    storage.prepare()
    child = Child()
    try:
        with pytest.raises(ChildDiedError, match=r"SIGKILL|SIGXFSZ"):
            child.call(die_while_writing, storage, how)
    finally:
        child.close()
    assert list(storage.list("")) == []
    if how == "create":
        assert hidden(storage) == []
    assert storage.create("a", b"again")


@pytest.mark.parametrize("nameless", [True, False])
def test_create_works_without_hard_links(
    storage: FolderStorage, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    assert storage.create("features/part", b"one")
    assert not storage.create("features/part", b"two")
    assert storage.read("features/part") == b"one"
    storage.write("features/part", b"three")
    assert storage.read("features/part") == b"three"
    assert hidden(storage) == []


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("", "must be a folder or .* bucket.*Got ''"),
        ("a\0b", "must be a folder or .* bucket"),
        ("hdfs://host/x", "The scheme 'hdfs' of 'hdfs://host/x' .*s3://, gs://, az://"),
        ("https://host/x", "The scheme 'https'"),
        ("s3://", "names no bucket.* s3://bucket/"),
        ("az://account", "names no bucket.* az://account/container/"),
        ("s3://key:secret@bucket/x", r"must not contain a password.*'s3://\*\*\*'"),
    ],
)
def test_an_invalid_location_is_refused(location: str, text: str) -> None:
    with pytest.raises(DestinationError, match=text) as caught:
        open_storage(location)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "location", ["s3://bucket", "S3://bucket/a b", "gs://bucket/a/", "az://account/container/a"]
)
def test_a_bucket_is_opened_without_a_request(location: str) -> None:
    storage = open_storage(location)
    scheme, _, rest = location.partition("://")
    assert storage.location == f"{scheme.lower()}://{rest.rstrip('/')}"


def test_a_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_storage("~/features").location == str(tmp_path / "features")


WITHOUT_NAMELESS_FILES = """
import os, sys, threading
del os.O_TMPFILE  # as on systems that are no Linux
from featurepress.storage import FolderStorage
storage = FolderStorage(sys.argv[1])
won = []
def compete(): won.append(storage.create("features/part", b"x" * 1000))
threads = [threading.Thread(target=compete) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(won), len(won), storage.create("features/part", b"y"))
"""


def test_create_without_unnamed_files_has_one_winner(storage: FolderStorage) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_NAMELESS_FILES, storage.root],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["1", "8", "False"]
    assert [entry.name for entry in storage.list("")] == ["features/part"]
    assert hidden(storage) == []


def test_new_objects_have_the_permissions_of_the_umask(storage: FolderStorage) -> None:
    (Path(storage.root) / "plain").touch()
    storage.create("created", b"")
    storage.write("written", b"")
    modes = {path.name: path.stat().st_mode for path in Path(storage.root).iterdir()}
    assert modes["created"] == modes["written"] == modes["plain"]


def test_writing_fails_until_the_quota_is_raised(tmp_path: Path) -> None:
    quota = tmp_path / "quota"
    quota.write_text("100")
    storage = QuotaStorage(str(tmp_path / "out"), quota_file=str(quota))
    storage.prepare()
    assert storage.create("a", b"x" * 60)
    for refused in (storage.create, storage.write):
        with pytest.raises(StorageError, match="no space left on device; free some space and run again"):
            refused("b", b"x" * 60)
    with pytest.raises(StorageError, match="no space left"), storage.stream("b") as file:
        file.write(b"x" * 60)
    assert [entry.name for entry in storage.list("")] == ["a"]
    assert not storage.create("a", b"x" * 60)
    quota.write_text("200")
    assert storage.create("b", b"x" * 60)


def test_a_slow_quota_storage_is_slow(tmp_path: Path) -> None:
    (tmp_path / "quota").write_text("100")
    storage = QuotaStorage(str(tmp_path / "out"), quota_file=str(tmp_path / "quota"), delay_seconds=0.05)
    storage.prepare()
    started = time.perf_counter()
    storage.create("a", b"1")
    assert time.perf_counter() - started >= 0.05
