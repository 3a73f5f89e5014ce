"""Archives that are broken, that change, or are in a bucket: what is read, and by how many requests."""

from __future__ import annotations

import collections
import gzip
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from featurepress.errors import ImageError, StorageError
from featurepress.sources.archives.archive import ArchiveSource
from featurepress.sources.archives.byte_readers import WINDOW_BYTES
from featurepress.sources.base import ON_DISK
from featurepress.specs import ImageRef, SourceSpec
from tests.sources.archives.test_archive import Contents, Reads, names, pack, source
from tests.sources.archives.test_byte_readers import Requests
from tests.sources.archives.test_tar import info, packed
from tests.sources.listed import failure

# -- damage --------------------------------------------------------------------------------------------------

WHOLE = packed(("a.jpg", b"1" * 600), ("a.cls", b"7"), ("b.jpg", b"2" * 600), ("b.cls", b"8"), form="gnu")


@pytest.mark.parametrize(
    ("data", "good", "row", "problem"),
    [
        (b"", [], "(rest from byte 0)", "it is empty"),
        (b"\xff\xd8" * 999, [], "(rest from byte 0)", "it is not a tar file"),
        (WHOLE[:700], [], "(rest from byte 0)", "it ends inside 'a.jpg'"),
        (WHOLE[:2048], [("a.jpg", None)], "(rest from byte 1536)", "it ends inside 'a.cls'"),
        (WHOLE[:3200], [("a.jpg", "7")], "(rest from byte 2560)", "it ends inside 'b.jpg'"),
        (WHOLE[:2700], [("a.jpg", "7")], "(rest from byte 2560)", "it ends inside a header"),
        (WHOLE[:2560] + b"x" * 9999, [("a.jpg", "7")], "(rest from byte 2560)", "there is no header at byte 2560"),
        (WHOLE[:4090], [("a.jpg", "7"), ("b.jpg", None)], "(rest from byte 4096)", "it ends inside a block"),
    ],
)
@pytest.mark.parametrize("location", ["a.tar", "a.tar.gz"])
def test_everything_after_damage_is_one_row_with_a_problem(
    tmp_path: Path, location: str, data: bytes, good: list[tuple[str, str]], row: str, problem: str
) -> None:
    (tmp_path / location).write_bytes(gzip.compress(data) if location.endswith("gz") else data)
    pack(tmp_path / ("z" + location), ("z.jpg", b"z"))
    one = source(tmp_path, "*" + location, brings_label=True)
    *refs, rest, last = one.list()
    assert [(ref.uri.partition("#")[2], ref.fields[0]) for ref in refs] == good
    assert (rest.uri, rest.problem, rest.fields) == (f"{location}#{row}", f"broken archive: {problem}", (None,))
    assert last.uri == f"z{location}#z.jpg"
    assert max([b"", *(ref.order for ref in refs)]) < rest.order < last.order
    assert [len(one.read(ref)) for ref in refs] == [600] * len(refs)
    assert failure(one, rest) == f"broken archive: {problem}"
    assert one.stat(rest) == rest
    for ref in (*refs, rest):
        assert list(one.list(ref.order)) == [other for other in (*refs, rest, last) if other.order > ref.order]


def seamed(data: bytes, at: int) -> tuple[bytearray, int]:
    """Compress data in two streams; return them and the position of the block type in the second."""
    first = gzip.compress(data[:at])
    return bytearray(first + gzip.compress(data[at:])), len(first) + 10


@pytest.mark.parametrize(
    ("damage", "n_good", "problem"),
    [
        ("broken off", 7, "the compressed data are cut short"),
        ("checksum", 4, "the compressed data are damaged, incorrect data check"),
        ("block", 4, "the compressed data are damaged, invalid block type"),
        ("not compressed", 0, "it is not a gzip file"),
    ],
)
def test_compressed_archives_that_are_damaged(tmp_path: Path, damage: str, n_good: int, problem: str) -> None:
    contents = [(f"{i}.jpg", bytes(j * j * i % 251 for j in range(999))) for i in range(1, 9)]
    plain = packed(*contents)
    data, block = seamed(plain, plain.index(b"5.jpg") + 800)
    if damage == "broken off":
        del data[-50:]
    elif damage == "not compressed":
        data = bytearray(plain)
    else:
        data[-5 if damage == "checksum" else block] = 0xFF
    if damage == "checksum":
        data[-5] = data[-6] = 0xFF
    (tmp_path / "a.tar.gz").write_bytes(data)
    one = source(tmp_path, "a.tar.gz")
    *refs, rest = one.list()
    assert (names(refs), rest.problem) == ([f"{i + 1}.jpg" for i in range(n_good)], f"broken archive: {problem}")
    for _ in range(2):
        assert [one.read(ref) for ref in refs] == [data for _, data in contents][:n_good]


def test_a_listed_member_that_cannot_be_decompressed_is_a_failure(tmp_path: Path) -> None:
    plain = packed(("a.jpg", b"1"), ("b.jpg", bytes(9000)), ("c.jpg", b"3"))
    data, block = seamed(plain, 5000)
    path = tmp_path / "a.tgz"
    path.write_bytes(data)
    one = source(tmp_path, "a.tgz")
    refs = list(one.list())
    times = path.stat().st_mtime_ns
    data[block] = 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(times, times))  # a bad disk does not change the time
    problem = "broken archive: the compressed data are damaged, invalid block type"
    assert [one.read(refs[0]), failure(one, refs[1]), failure(one, refs[2])] == [b"1", problem, problem]
    assert one.read(refs[0]) == b"1"


def test_sparse_files_are_rows_with_a_problem(tmp_path: Path) -> None:
    sparse = info("a.jpg", 3, type=tarfile.GNUTYPE_SPARSE)
    pack(tmp_path / "a.tar", (sparse, b"abc"), ("b.jpg", b"2"), (info("c.npy", 1, type=sparse.type), b"x"))
    one = source(tmp_path)
    hole, good = one.list()
    assert hole.problem == "sparse file: it is stored without its holes; pack it again without --sparse"
    assert (good.uri, good.problem) == ("a.tar#b.jpg", None)
    assert failure(one, hole) == hole.problem
    assert one.stat(hole) == hole
    assert list(one.list(hole.order)) == [good]


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar here")
@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_archives_written_by_the_tar_command(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "in"
    (folder / "long").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"1" * 600)
    (folder / "long" / ("x" * 60 + ".jpg")).write_bytes(b"2")
    with (folder / "z.jpg").open("wb") as file:
        file.truncate(1024**2)
        file.write(b"3")
    command = ["tar", "--sort=name", f"--format={form}", "-cf", str(tmp_path / "a.tar"), "."]
    has_holes = form not in ("v7", "ustar")
    subprocess.run([*command, "--sparse"] if has_holes else command, cwd=folder, check=True)
    one = source(tmp_path)
    refs = list(one.list())
    assert names(refs) == ["./a.jpg", "./long/" + "x" * 60 + ".jpg", "./z.jpg"]
    assert [one.read(ref) for ref in refs[:2]] == [b"1" * 600, b"2"]
    assert (refs[2].problem is not None) == has_holes


def test_an_archive_that_cannot_be_opened_is_one_row(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("a.jpg", b""))
    (tmp_path / "b.tar").symlink_to("nowhere")
    pack(tmp_path / "c.tar", ("c.jpg", b""))
    one = source(tmp_path, "*.tar", brings_label=True)
    first, bad, last = one.list()
    assert [first.uri, bad.uri, last.uri] == ["a.tar#a.jpg", "b.tar", "c.tar#c.jpg"]
    assert (bad.problem, bad.fields) == ("broken link: its target does not exist", (None,))
    assert first.order < bad.order < last.order
    assert list(one.list(bad.order)) == [last]
    assert failure(one, bad) == bad.problem
    assert one.stat(bad).problem == "vanished since listing"


def test_a_sparse_file_and_damage_have_different_keys(tmp_path: Path) -> None:
    sparse = info("a.jpg", 0, type=tarfile.GNUTYPE_SPARSE)
    (tmp_path / "a.tar").write_bytes(packed((sparse, b""), form="gnu", end=False) + b"x" * 512)
    one = source(tmp_path)
    refs = list(one.list())
    assert names(refs) == ["a.jpg", "(rest from byte 512)"]
    assert list(one.list(refs[0].order)) == refs[1:]


class Gone(Reads):
    """Files that disappear once they have been opened."""

    def stat(self, ref: ImageRef) -> ImageRef:
        if self.opened:
            raise StorageError("gone")
        return super().stat(ref)


def test_a_source_that_disappears_stops_the_listing(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE[:3200])
    one = ArchiveSource(SourceSpec("archive", "a.tar", str(tmp_path)), files=Gone(tmp_path, "a.tar"))
    found = one.list()
    assert next(found).uri == "a.tar#a.jpg"
    with pytest.raises(StorageError, match="gone"):
        next(found)


class Locked(Reads):
    """Files that can be listed, but not opened."""

    def open(self, ref: ImageRef) -> BinaryIO:
        raise ImageError("read", "permission denied")


def test_an_archive_without_read_permission_is_one_row(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("a.jpg", b""))
    pack(tmp_path / "b.tar", ("b.jpg", b""))
    one = ArchiveSource(SourceSpec("archive", "*.tar", str(tmp_path)), files=Locked(tmp_path, "*.tar"))
    refs = list(one.list())
    assert [(ref.uri, ref.problem) for ref in refs] == [(name, "permission denied") for name in ("a.tar", "b.tar")]
    assert [one.stat(ref) for ref in refs] == refs
    assert failure(one, refs[0]) == "permission denied"


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["a.tar", "a.tgz"])
def test_an_archive_that_changed_or_vanished_is_a_failure(tmp_path: Path, location: str) -> None:
    path = pack(tmp_path / location, ("a.jpg", b"1"), ("b.jpg", b"2"))
    one = source(tmp_path, location)
    first, second = one.list()
    assert one.read(first) == b"1"
    data = path.read_bytes()
    os.utime(path, ns=(1, 1))
    assert failure(one, second) == failure(source(tmp_path, location), first) == "changed since listing"
    path.unlink()
    path.write_bytes(data[:100])
    assert failure(one, second) == "changed since listing"
    path.unlink()
    assert failure(one, second) == "vanished since listing"
    os.mkfifo(path)
    assert failure(one, second) == failure(source(tmp_path, location), first) == "no longer a regular file"


def test_a_missing_folder_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    pack(tmp_path / "disk" / "a.tar", ("a.jpg", b"1"))
    one = source(tmp_path, "disk/a.tar")
    (ref,) = one.list()
    (tmp_path / "disk").rename(tmp_path / "away")
    for action in (one.read, one.stat, source(tmp_path, "disk/a.tar").read):
        with pytest.raises(StorageError, match=r"The source 'disk/a\.tar' is gone"):
            action(ref)


def test_stat_reports_changes(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", ("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3"))
    one = source(tmp_path, brings_label=True)
    refs = [ref._replace(source=5, fields=("kept",)) for ref in one.list()]
    assert [one.stat(ref) for ref in refs] == refs
    pack(path, ("a.jpg", b"11"), ("x.jpg", b"2"), ("y.jpg", b"y" * 600), ("c.jpg", b"3"))
    status = path.stat()
    version = f"{status.st_mtime_ns}-{status.st_size}"
    assert [one.stat(ref) for ref in refs] == [
        refs[0]._replace(size=2, version=version),
        *(ref._replace(size=0, version="", problem="changed since listing") for ref in refs[1:]),
    ]
    assert one.read(one.stat(refs[0])) == b"11"
    path.unlink()
    assert one.stat(refs[0]).problem == "vanished since listing"


@pytest.mark.parametrize("location", ["a.tar", "a.tar.gz"])
def test_threads_read_concurrently(tmp_path: Path, location: str) -> None:
    contents = [(f"{i}.jpg", os.urandom(i * 37 % 5000)) for i in range(300)]
    pack(tmp_path / location, *contents)
    one = source(tmp_path, location)
    refs = list(one.list())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one.read, refs)) == [data for _, data in contents]


def test_the_next_shard_continues_in_a_compressed_archive(tmp_path: Path) -> None:
    pack(tmp_path / "a.tgz", *((f"{i}.jpg", bytes(5000)) for i in range(40)))
    files = Reads(tmp_path, "a.tgz")
    spec = SourceSpec("archive", "a.tgz", str(tmp_path))
    refs = list(ArchiveSource(spec, files=files).list())
    files.opened.clear()
    for i in range(0, 40, 10):
        one = ArchiveSource(spec, files=files)
        assert all(one.read(ref) == bytes(5000) for ref in refs[i : i + 10])
    assert files.opened == ["a.tgz"]


def test_many_archives_are_read_with_few_open_files(tmp_path: Path) -> None:
    for i in range(40):
        pack(tmp_path / f"{i:02d}.tar", ("a.jpg", str(i).encode()))
    one = source(tmp_path, "*.tar")
    before = len(os.listdir("/proc/self/fd"))
    refs = list(one.list())
    assert len(os.listdir("/proc/self/fd")) == before
    assert [one.read(ref) for ref in refs] == [str(i).encode() for i in range(40)]
    assert len(os.listdir("/proc/self/fd")) <= before + 16


# -- in buckets ----------------------------------------------------------------------------------------------


class Bucket:
    """Archives in a bucket that counts its requests."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = {f"s3://b/{name.replace('_', '.')}": Requests(data) for name, data in objects.items()}
        self.etags = dict.fromkeys(self.objects, "1")
        self.skipped: collections.Counter[str] = collections.Counter()
        self.reading = ON_DISK

    def list(self, start_after: bytes = b"") -> Iterator[ImageRef]:
        for uri, one in self.objects.items():
            yield ImageRef(uri, 0, len(one.data), self.etags[uri])

    def read(self, ref: ImageRef) -> bytes:
        raise AssertionError("archives are not read whole")

    def stat(self, ref: ImageRef) -> ImageRef:
        return ref._replace(size=len(self.objects[ref.uri].data), version=self.etags[ref.uri], problem=None)

    def open(self, ref: ImageRef) -> BinaryIO:
        assert ref.size == len(self.objects[ref.uri].data)
        file: BinaryIO = self.objects[ref.uri].open()
        return file

    def source(self, base: Path, location: str) -> ArchiveSource:
        # Open readers are found by the base, which no other test uses.
        return ArchiveSource(SourceSpec("archive", location, str(base), {"brings_label": True}), files=self)


def test_small_members_in_a_bucket_cost_one_request_per_window(tmp_path: Path) -> None:
    contents = [(f"{i}.jpg", os.urandom(100_000)) for i in range(100)]
    bucket = Bucket(a_tar=packed(*contents))
    requests = bucket.objects["s3://b/a.tar"]
    n_windows = -(-len(requests.data) // WINDOW_BYTES)
    one = bucket.source(tmp_path, "s3://b/a.tar")
    refs = list(one.list())
    assert len(requests.ranges) == n_windows
    assert requests.n_open == 0
    requests.ranges.clear()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one.read, refs)) == [data for _, data in contents]
    assert len(requests.ranges) == n_windows
    assert requests.n_open <= 4


def test_a_compressed_archive_in_a_bucket_is_read_in_large_pieces(tmp_path: Path) -> None:
    contents: list[Contents] = [(f"{i}.jpg", os.urandom(100_000)) for i in range(60)]
    bucket = Bucket(a_tgz=gzip.compress(packed(*contents, ("59.cls", b"7")), 0))
    requests = bucket.objects["s3://b/a.tgz"]
    one = bucket.source(tmp_path, "s3://b/a.tgz")
    refs = list(one.list())
    assert [ref.fields[0] for ref in refs] == [None] * 59 + ["7"]
    requests.ranges.clear()
    for i in range(0, 60, 20):  # threads that also read other sources are out of order
        assert [one.read(ref) for ref in refs[i : i + 20][::-1]] == [data for _, data in contents[i : i + 20][::-1]]
    assert len([end for start, end in requests.ranges if end > start]) == 2


def test_a_key_with_a_backslash_is_requested_unchanged(tmp_path: Path) -> None:
    bucket = Bucket(**{r"a\xff_tar": packed(("a.jpg", b"1"))})
    one = bucket.source(tmp_path, "s3://b/*.tar")
    (ref,) = one.list()
    assert ref.uri == r"s3://b/a\xff.tar#a.jpg"
    assert one.read(ref) == b"1"
    assert one.stat(ref) == ref


def test_an_object_that_became_shorter_is_a_failure(tmp_path: Path) -> None:
    bucket = Bucket(a_tar=packed(("a.jpg", b"1"), ("b.jpg", b"2" * 600)))
    one = bucket.source(tmp_path, "s3://b/a.tar")
    refs = list(one.list())
    bucket.objects["s3://b/a.tar"].data = bucket.objects["s3://b/a.tar"].data[:1700]  # a store without etags
    assert one.read(refs[0]) == b"1"
    assert failure(one, refs[1]) == "broken archive: it ends inside the image"


def test_an_archive_that_changes_in_its_bucket_is_a_failure(tmp_path: Path) -> None:
    bucket = Bucket(a_tar=packed(("a.jpg", b"1"), ("b.jpg", bytes(5 * 1024**2)), ("c.jpg", b"3")))
    requests = bucket.objects["s3://b/a.tar"]
    one = bucket.source(tmp_path, "s3://b/a.tar")
    refs = list(one.list())
    assert one.read(refs[0]) == b"1"
    requests.faults = [StorageError("no answer")]
    with pytest.raises(StorageError, match="no answer"):
        one.read(refs[2])
    bucket.etags["s3://b/a.tar"] = "2"
    requests.faults = [StorageError("Cannot read 's3://b/a.tar': it has changed.")]
    assert failure(one, refs[2]) == "changed since listing"
    requests.faults.clear()
    assert one.stat(refs[2]) == refs[2]._replace(version="2")
