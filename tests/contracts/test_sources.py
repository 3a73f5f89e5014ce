"""The contract of all sources. A new source adds a row to `KINDS`."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc
import pytest

from featurepress.errors import SourceError
from featurepress.sources import describe, open_source
from featurepress.specs import SourceSpec
from featurepress.testing import memory_source
from tests.servers.s3 import FastS3
from tests.sources.listed import failure

IMAGES = {
    f"pics/{name}": name.encode() * 7
    for name in [
        "a/1.jpg", "a/10.jpg", "a/2.jpg", "a b/1.jpg", "a-b.jpg", "a.jpg", "a.png/x.JPG", "a/b/c/d.webp", "a0.gif",
        "z/(1).jpg", "z/!.jpg", "é/ü.png", "日本/語.jpg", "line\nbreak.jpg", "~.tiff", "[x].bmp",
    ]
}  # fmt: skip


class Case(NamedTuple):
    spec: SourceSpec
    images: dict[str, bytes]


def draw(folder: Path) -> None:
    for name, data in IMAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "pics" / "notes.txt").touch()
    (folder / "pics" / ".hidden.jpg").touch()


def folder_source(folder: Path, location: str) -> SourceSpec:
    return SourceSpec("folder", location, str(folder), {"all_files": False, "destination": ""})


def in_a_folder(folder: Path) -> Case:
    draw(folder)
    return Case(folder_source(folder, "pics"), IMAGES)


def by_an_absolute_path(folder: Path) -> Case:
    draw(folder)
    return Case(
        folder_source(Path("/"), str(folder / "pics")), {f"{folder}/{uri}": data for uri, data in IMAGES.items()}
    )


def by_a_glob(folder: Path) -> Case:
    draw(folder)
    chosen = {uri: data for uri, data in IMAGES.items() if uri.startswith(("pics/a", "pics/z", "pics/~"))}
    return Case(folder_source(folder, "pics/[az~]*"), chosen)


def by_a_deep_glob(folder: Path) -> Case:
    draw(folder)
    return Case(folder_source(folder, "**/*.jpg"), {u: d for u, d in IMAGES.items() if u.endswith(".jpg")})


def one_file(folder: Path) -> Case:
    draw(folder)
    return Case(folder_source(folder, "pics/é/ü.png"), {"pics/é/ü.png": IMAGES["pics/é/ü.png"]})


def in_an_archive(folder: Path, name: str = "a.tar") -> Case:
    draw(folder)
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for path in sorted((folder / "pics").rglob("*"), key=os.fsencode):
            archive.add(path, path.relative_to(folder), recursive=False)
    images = {f"{name}#{uri}": data for uri, data in IMAGES.items()}
    return Case(SourceSpec("archive", name, str(folder), {"brings_label": False}), images)


def in_a_compressed_archive(folder: Path) -> Case:
    return in_an_archive(folder, "a.tar.gz")


def in_tables(folder: Path) -> Case:
    images: dict[str, bytes] = {}
    for n in range(0, len(IMAGES), 10):  # "#row=10" would come before "#row=2" where uris are sorted
        batch = pa.record_batch({"image": list(IMAGES.values())[n : n + 10]})
        with pa.ipc.new_stream(folder / f"{n}.arrow", batch.schema) as writer:
            writer.write_batch(batch)
        images |= {f"{n}.arrow#row={i}": data for i, data in enumerate(batch["image"].to_pylist())}
    return Case(SourceSpec("table", "*.arrow", str(folder), {"brings_label": False}), images)


def in_a_list(folder: Path) -> Case:
    draw(folder)
    (folder / "list.csv").write_text("path\n" + "".join(f'"{uri}"\n' for uri in reversed(IMAGES)))
    return Case(SourceSpec("uris", "list.csv", str(folder), {"brings_label": False}), IMAGES)


def in_memory(folder: Path) -> Case:
    return Case(memory_source(IMAGES), IMAGES)


KINDS: dict[str, Callable[[Path], Case]] = {
    "folder": in_a_folder,
    "absolute": by_an_absolute_path,
    "glob": by_a_glob,
    "deep glob": by_a_deep_glob,
    "file": one_file,
    "archive": in_an_archive,
    "compressed archive": in_a_compressed_archive,
    "tables": in_tables,
    "list": in_a_list,
    "memory": in_memory,
}
BUCKETS = ("s3", "fast_s3", "azure", "google")  # fixtures of tests.servers
ON_DISK = [name for name in KINDS if name not in ("memory", "tables") and "archive" not in name]


def in_a_bucket(server: Any) -> Case:
    """Put the images into a bucket, without the one whose name only the fast S3 keeps unchanged."""
    images = {name: data for name, data in IMAGES.items() if isinstance(server, FastS3) or "\n" not in name}
    bucket = server.bucket()
    server.put(bucket, {**images, "pics/notes.txt": b"", "pics/.hidden.jpg": b"", "pics-not.jpg": b"1"})
    (spec,) = describe(server.url(bucket, "pics/"))
    return Case(spec, {server.url(bucket, name): data for name, data in images.items()})


@pytest.fixture(params=[*KINDS, *BUCKETS])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param in BUCKETS:
        return in_a_bucket(request.getfixturevalue(request.param))
    return KINDS[request.param](tmp_path)


@pytest.fixture(params=ON_DISK)
def disk_case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return KINDS[request.param](tmp_path)


def test_list_yields_every_image_once_in_byte_order(case: Case) -> None:
    refs = list(open_source(case.spec).list())
    assert [ref.uri for ref in refs] == sorted(case.images, key=str.encode)
    assert [ref.order for ref in refs] == sorted(ref.order for ref in refs)
    assert [ref.size for ref in refs] == [len(case.images[ref.uri]) for ref in refs]
    assert all(ref.source == 0 and ref.fields == () and ref.problem is None for ref in refs)


def test_list_is_repeatable(case: Case) -> None:
    source = open_source(case.spec)
    first = list(source.list())
    skipped = dict(source.skipped)
    assert list(source.list()) == first
    assert dict(source.skipped) == skipped
    assert list(open_source(case.spec).list()) == first


def test_list_continues_exactly_after_any_key(case: Case) -> None:
    source = open_source(case.spec)
    refs = list(source.list())
    for i, ref in enumerate(refs):
        assert list(source.list(ref.order)) == refs[i + 1 :]
        assert list(source.list(ref.order + b"\0")) == refs[i + 1 :]
        assert list(source.list(ref.order[:-1])) == [r for r in refs if r.order > ref.order[:-1]]
    assert list(source.list(b"\xff")) == []
    assert list(source.list(b"!")) == [ref for ref in refs if ref.order > b"!"]


def test_an_interrupted_listing_counts_skipped_files_once(case: Case) -> None:
    source = open_source(case.spec)
    all_refs = list(source.list())
    total = dict(source.skipped)
    for n in range(1, len(all_refs) + 1):
        before, after = open_source(case.spec), open_source(case.spec)
        refs = before.list()
        for _ in range(n):
            last = next(refs)
        list(after.list(last.order))
        assert dict(before.skipped + after.skipped) == total


def test_read_returns_the_bytes(case: Case) -> None:
    source = open_source(case.spec)
    for ref in source.list():
        assert source.read(ref) == case.images[ref.uri]


def test_read_is_safe_from_several_threads(case: Case) -> None:
    source = open_source(case.spec)
    refs = list(source.list()) * 10
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, refs)) == [case.images[ref.uri] for ref in refs]


def test_reads_in_flight_is_a_number_of_threads(case: Case) -> None:
    assert 1 <= open_source(case.spec).reading.in_flight <= 256


@pytest.mark.parametrize("way", ["pickle", "json"])
def test_a_description_can_be_serialised(case: Case, way: str) -> None:
    if way == "pickle":
        spec = pickle.loads(pickle.dumps(case.spec))
    else:
        spec = SourceSpec(**json.loads(json.dumps(case.spec.to_json())))
    assert spec == case.spec
    source, here = open_source(spec), open_source(case.spec)
    refs = list(here.list())
    assert list(source.list()) == refs
    assert source.read(refs[0]) == case.images[refs[0].uri]


def test_an_image_that_vanished_or_changed_is_a_failure(disk_case: Case) -> None:
    source = open_source(disk_case.spec)
    ref = next(iter(source.list()))
    path = Path(disk_case.spec.base, ref.uri)
    for change in (b"longer than it was before " * 10, b"short", b"x" * ref.size, b""):
        path.write_bytes(change)
        os.utime(path, ns=(1, 1))
        assert failure(source, ref) == "changed since listing"
    path.unlink()
    assert failure(source, ref) == "vanished since listing"


def test_a_fault_of_a_memory_source_is_a_failure() -> None:
    source = open_source(memory_source({"a": b"1", "b": b"2"}, faults={"a": "vanished since listing"}))
    one, other = source.list()
    assert failure(source, one) == "vanished since listing"
    assert source.read(other) == b"2"


def test_a_missing_location_is_a_source_error(tmp_path: Path) -> None:
    for location in ("nothing", "nothing/*.jpg"):
        with pytest.raises(SourceError, match="nothing"):
            list(open_source(folder_source(tmp_path, location)).list())


def test_a_description_is_used_unchanged(case: Case) -> None:
    assert describe(case.spec) == (case.spec,)


def test_stat_returns_what_a_listing_would(case: Case) -> None:
    source = open_source(case.spec)
    for ref in source.list():
        assert open_source(case.spec).stat(ref) == ref


def test_stat_reports_what_has_changed_or_vanished(disk_case: Case, tmp_path: Path) -> None:
    refs = list(open_source(disk_case.spec).list())
    base = Path(disk_case.spec.base)
    (base / refs[0].uri).write_bytes(b"longer than it was before, by far")
    source = open_source(disk_case.spec)
    now = source.stat(refs[0])
    assert now.problem is None
    assert (now.size, now.uri, now.key) == (33, refs[0].uri, refs[0].key)
    assert now.version != refs[0].version
    if len(refs) > 1:
        (base / refs[1].uri).unlink()
        assert source.stat(refs[1]).problem == "vanished since listing"
