"""Exports are written whole or not at all, with little memory, also to buckets."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

import featurepress as fp
from featurepress.errors import DestinationError, FeatureSetError, StorageError
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger.names import part_name
from featurepress.process import Child
from featurepress.storage import FolderStorage
from featurepress.testing import MemoryStorage
from tests.features.feature_sets import FORMATS, N_ROWS, READERS, assert_same_rows, labelled, made, numbers
from tests.running import names_below, started

every_format = pytest.mark.parametrize("kind", FORMATS)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return labelled(tmp_path_factory.mktemp("set") / "out")


# -- whole or not at all -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(FolderStorage):
    """A folder that calls some functions whenever its third part is opened."""

    calls: list[Callable[[], object]]

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading."""
        if name == part_name(2):
            for call in self.calls:
                call()
        return super().open(name)


def watched(features: FeatureSet, call: Callable[[], object]) -> FeatureSet:
    """Return the same set, which calls a function whenever the rows of its third part are read."""
    storage = Watched(features.location, [])
    again = FeatureSet(replace(features.plan, storage=storage), features.manifest)
    assert len(again) == len(features)  # reads the footers of the parts
    storage.calls.append(call)
    return again


KILLED = """
import os, signal, sys
import featurepress as fp
from tests.features.test_export_whole import watched
fp.export(watched(fp.open_features(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL)), sys.argv[2])
"""


@every_format
def test_a_killed_export_leaves_no_file(tmp_path: Path, features: FeatureSet, kind: str) -> None:
    with started(features.location, tmp_path / f"x.{kind}", command=(sys.executable, "-c", KILLED)) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGKILL, "")
    assert names_below(tmp_path) == []


@every_format
def test_an_interrupt_leaves_only_whole_files(tmp_path: Path, features: FeatureSet, kind: str) -> None:
    def interrupt() -> None:
        if (tmp_path / f"x-00000-of-00002.{kind}").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fp.export(watched(features, interrupt), tmp_path / f"x.{kind}", parts=2)
    (first,) = names_below(tmp_path)
    assert len(READERS[kind](tmp_path / first)[0]) == N_ROWS // 2


@every_format
def test_a_damaged_part_is_named_and_nothing_written(tmp_path: Path, kind: str) -> None:
    damaged = made(tmp_path / "set", numbers(400, 300), rows_a_part=100)
    part = tmp_path / "set" / part_name(2)
    data = part.read_bytes()
    part.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    with pytest.raises(FeatureSetError, match=r"part-00000002\.parquet' is damaged"):
        fp.export(damaged, tmp_path / f"x.{kind}")
    assert list(tmp_path.glob("x*")) == []


def test_a_file_created_in_the_meantime_is_not_overwritten(tmp_path: Path, features: FeatureSet) -> None:
    target = tmp_path / "x.npy"
    with pytest.raises(DestinationError, match="already exists"):
        fp.export(watched(features, lambda: target.write_text("mine")), target)
    assert target.read_text() == "mine"


LIMITED = """
import resource, sys
import featurepress as fp
from featurepress.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fp.export(*sys.argv[1:])
except StorageError as error:
    print(error)
"""


@every_format
def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path, kind: str) -> None:
    made(tmp_path / "set", numbers(400, 300), rows_a_part=100)
    out = tmp_path / "out"
    command = (sys.executable, "-W", "error", "-c", LIMITED)
    with started(tmp_path / "set", out / f"x.{kind}", command=command) as process:
        printed, err = process.communicate(timeout=60)
    assert (printed, err) == (f"Cannot write '{out}/x.{kind}': file too large.\n", "")
    assert names_below(out) == []


# -- cost ----------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
import featurepress as fp
small, large, to = sys.argv[1:]
name, _, kind = to.rpartition(".")
fp.export(small, f"{name}-small.{kind}")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fp.export(large, to)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two sets, the second of 200 MB that compress well; short texts and one long."""
    folder = tmp_path_factory.mktemp("sets")
    made(folder / "small", np.zeros((10, 1_000), np.float32))
    uris = [f"{i:06d}.jpg" for i in range(50_000)]
    uris[7] = "x" * 1_000
    made(folder / "large", np.zeros((50_000, 1_000), np.float32), uris, rows_a_part=1_000)
    return folder / "small", folder / "large"


@every_format
def test_memory_does_not_grow_with_the_set(tmp_path: Path, small_and_large: tuple[Path, Path], kind: str) -> None:
    command = (sys.executable, "-c", PEAK)
    with started(*small_and_large, tmp_path / f"x.{kind}", command=command) as process:
        printed, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert int(printed) < 120_000  # kB


def test_exporting_starts_no_threads(tmp_path: Path, features: FeatureSet) -> None:
    """As for reading: a process that ended while Arrow's threads were starting was aborted."""
    child = Child()
    try:
        before, after = child.call(count_threads, features.location, str(tmp_path))
    finally:
        child.close()
    assert before == after


def count_threads(location: str, folder: str) -> tuple[int, int]:
    import pyarrow.parquet  # noqa: F401 - has threads of its own from the start

    before = len(os.listdir("/proc/self/task"))
    for kind in FORMATS:
        fp.export(location, f"{folder}/x.{kind}", parts=2)
    return before, len(os.listdir("/proc/self/task"))


@every_format
def test_progress_counts_bytes(tmp_path: Path, features: FeatureSet, kind: str) -> None:
    seen: list[tuple[str, int, int]] = []
    fp.export(
        features,
        tmp_path / f"x.{kind}",
        parts=2,
        progress=lambda p: seen.append((p.doing, p.done_bytes, p.total_bytes)),
    )
    n_bytes = 4 * 12 * N_ROWS
    assert {(what, of) for what, _, of in seen} == {(f"exporting to x.{kind}", n_bytes)}
    done = [one for _, one, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == n_bytes


# -- other places --------------------------------------------------------------------------------------------


def test_a_set_in_memory_is_exported_too(tmp_path: Path) -> None:
    held = made(MemoryStorage(), numbers(5))
    assert_same_rows(fp.export(held, tmp_path / "x.parquet"), "parquet", held)


def test_the_home_folder_is_expanded(tmp_path: Path, features: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fp.export(features, "~/deep/x.npy") == [str(tmp_path / "deep" / "x.npy")]
    monkeypatch.chdir(tmp_path)
    assert fp.export(features, "x.npy") == [str(tmp_path / "x.npy")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a bucket of a server on this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        urllib.request.urlopen(urllib.request.Request(f"{address}/exports", method="PUT")).close()
        yield "s3://exports"
    finally:
        server.stop()


def test_a_bucket_takes_every_format(tmp_path: Path, features: FeatureSet, bucket: str) -> None:
    import obstore
    from obstore.store import S3Store

    store = S3Store("exports", endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True})
    for kind in FORMATS:
        files = fp.export(features, f"{bucket}/früh/x.{kind}", parts=2)
        assert files == [f"{bucket}/früh/x-0000{i}-of-00002.{kind}" for i in (0, 1)]
        for file in files:
            copy = tmp_path / file.rpartition("/")[2]
            copy.write_bytes(bytes(obstore.get(store, file.removeprefix(f"{bucket}/")).bytes()))
        assert_same_rows([str(path) for path in sorted(tmp_path.glob(f"*.{kind}"))], kind, features)
        with pytest.raises(DestinationError, match="already exist"):
            fp.export(features, f"{bucket}/früh/x.{kind}", parts=2)


def test_a_missing_bucket_is_an_error_of_one_line(features: FeatureSet, bucket: str) -> None:
    with pytest.raises((StorageError, DestinationError), match="s3://no-such-bucket/x") as caught:
        fp.export(features, "s3://no-such-bucket/x.npy")
    assert "\n" not in str(caught.value)
