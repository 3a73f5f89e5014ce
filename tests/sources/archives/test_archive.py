"""Images in tar archives: their order and names, what is skipped, and several archives."""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from featurepress.errors import SourceError
from featurepress.runs.verbs import run_plan
from featurepress.sources import open_source
from featurepress.sources.archives.archive import ArchiveSource
from featurepress.sources.base import IN_SEQUENCE, ON_DISK
from featurepress.specs import ImageRef, SourceSpec
from featurepress.testing import InlineEngine
from tests.running import draft, draw, read_failures, read_rows
from tests.sources.archives.test_tar import info, packed

AS_ROOT = os.geteuid() == 0
Contents = tuple[str | tarfile.TarInfo, bytes]


def pack(path: Path, *contents: Contents, form: str = "gnu", end: bool = True) -> Path:
    data = packed(*contents, form=form, end=end)
    path.write_bytes(gzip.compress(data, 1) if path.suffix.lower() in (".gz", ".tgz") else data)
    return path


def source(base: Path, location: str = "a.tar", **options: Any) -> ArchiveSource:
    return ArchiveSource(SourceSpec("archive", location, str(base), options))


def listed(base: Path, location: str = "a.tar", **options: Any) -> tuple[list[ImageRef], dict[str, int]]:
    one = source(base, location, **options)
    return list(one.list()), dict(one.skipped)


def names(refs: list[ImageRef]) -> list[str]:
    return [ref.uri.partition("#")[2] for ref in refs]


def labels(base: Path, *contents: Contents, location: str = "a.tar", **options: Any) -> list[str | None]:
    pack(base / location, *contents)
    refs, _ = listed(base, location, brings_label=True, **options)
    return [ref.fields[0] for ref in refs]


# -- order, names and keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["a.tar", "a.tar.gz", "a.tgz", "A.TAR.GZ"])
def test_images_are_in_the_order_of_the_members(tmp_path: Path, location: str) -> None:
    pack(tmp_path / location, ("z.jpg", b"zz"), ("b/1.png", b"1" * 600), ("a.JPG", b""), ("b/0.png", b"0"))
    one = source(tmp_path, location)
    refs = list(one.list())
    assert [ref.uri for ref in refs] == [f"{location}#{name}" for name in ("z.jpg", "b/1.png", "a.JPG", "b/0.png")]
    starts = (512, 1536, 3072, 3584)
    assert [ref.order for ref in refs] == [f"{location}#{start:016d}".encode() for start in starts]
    assert [ref.size for ref in refs] == [2, 600, 0, 1]
    assert [one.read(ref) for ref in refs] == [b"zz", b"1" * 600, b"", b"0"]
    assert {(ref.source, ref.fields, ref.problem) for ref in refs} == {(0, (), None)}
    status = (tmp_path / location).stat()
    assert {ref.version for ref in refs} == {f"{status.st_mtime_ns}-{status.st_size}"}


ODD = ["Äpfel/grün.jpg", "line\nbreak.jpg", "#17.jpg", "a#b#.jpg", "../up.jpg", "/root.jpg", "./here.jpg",
       "x/../y.jpg", " .jpg", "-rf.jpg", "x" * 300 + ".jpg", "back\\slash.jpg", r"\xff.jpg"]  # fmt: skip


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_odd_names_are_listed_and_read(tmp_path: Path, form: str) -> None:
    pack(tmp_path / "a.tar", *((name, name.encode()) for name in ODD), form=form)
    one = source(tmp_path)
    refs = list(one.list())
    assert names(refs) == [name if name != r"\xff.jpg" else r"\x5cxff.jpg" for name in ODD]
    assert [one.read(ref) for ref in refs] == [name.encode() for name in ODD]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.tar"]
    assert [one.stat(ref) for ref in refs] == refs


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("a\udcff.jpg", b"1"), (r"a\xff.jpg", b"2"))
    one = source(tmp_path)
    refs = list(one.list())
    assert names(refs) == [r"a\xff.jpg", r"a\x5cxff.jpg"]
    assert [one.read(ref) for ref in refs] == [b"1", b"2"]


def test_an_archive_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff#.tar")
    pack(tmp_path / name, ("a.jpg", b"1"))
    one = source(tmp_path, "*.tar")
    (ref,) = one.list()
    assert (ref.uri, ref.order) == (r"\xff#.tar#a.jpg", b"\xff#.tar#0000000000000512")
    assert one.read(ref) == b"1"
    assert one.stat(ref) == ref
    pack(tmp_path / name, ("a.jpg", b"22"))
    assert (one.stat(ref).size, one.stat(ref).problem) == (2, None)


def test_repeated_names_are_numbered(tmp_path: Path) -> None:
    given = ["a.jpg", "a.jpg", "a.jpg#2", "b.jpg", "a.jpg", "b.jpg"]
    pack(tmp_path / "a.tar", *((name, str(i).encode()) for i, name in enumerate(given)))
    one = source(tmp_path, all_files=True)
    refs = list(one.list())
    assert names(refs) == ["a.jpg", "a.jpg#2", "a.jpg#2#2", "b.jpg", "a.jpg#3", "b.jpg#2"]
    assert [one.read(ref) for ref in refs] == [b"0", b"1", b"2", b"3", b"4", b"5"]
    for i, ref in enumerate(refs):
        assert list(source(tmp_path, all_files=True).list(ref.order)) == refs[i + 1 :]


# -- skipped members -----------------------------------------------------------------------------------------

MIXED: tuple[Contents, ...] = (
    (info("d", type=tarfile.DIRTYPE), b""),
    ("d/a.jpg", b"1"),
    ("d/a.cls", b"7"),
    ("d/a.npy", b"n"),
    ("d/._a.jpg", b"resource"),
    (info("d/link.jpg", type=tarfile.SYMTYPE, linkname="a.jpg"), b""),
    (info("d/hard.jpg", type=tarfile.LNKTYPE, linkname="d/a.jpg"), b""),
    (info("d/null.jpg", type=tarfile.CHRTYPE), b""),
    ("d/.hidden.jpg", b"h"),
    ("README.txt", b"text"),
    ("e/b.txt", b"before"),
    ("e/b.png", b"2"),
    ("e/b.meta.json", b"{}"),
)


def test_skipped_members_are_counted(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", *MIXED)
    refs, skipped = listed(tmp_path)
    assert names(refs) == ["d/a.jpg", "e/b.png"]
    assert skipped == {
        "not a regular file": 4, "dot file": 2, "no image suffix": 2, "beside an image": 3,
    }  # fmt: skip


def test_all_files_lists_regular_files_without_dot_files(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", *MIXED)
    refs, skipped = listed(tmp_path, all_files=True)
    assert len(refs) == 7
    assert skipped == {"not a regular file": 4, "dot file": 2}


def test_patterns_are_matched_against_the_names_of_members(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", *MIXED)
    refs, skipped = listed(tmp_path, include=["d/*.jpg"])
    assert names(refs) == ["d/a.jpg"]
    assert skipped["not included"] == 1
    refs, skipped = listed(tmp_path, exclude=["a.*"])
    assert names(refs) == ["e/b.png"]
    assert skipped["excluded"] == 1
    assert skipped["beside an image"] == 3


def test_an_archive_without_images_is_empty(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ("a.txt", b"text"))
    assert listed(tmp_path) == ([], {"no image suffix": 1})
    pack(tmp_path / "a.tar")
    assert listed(tmp_path) == ([], {})


# -- continued listings --------------------------------------------------------------------------------------

BESIDE: tuple[Contents, ...] = (
    *MIXED,
    ("f.cls", b"first"),
    ("f.a.jpg", b"1"),
    (".dot", b""),
    ("f.b.jpg", b"2"),
    ("f.json", b"3"),
    ("f.a.jpg", b"again"),
    ("z.cls", b"alone"),
)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_listing_continues_after_any_key_with_the_same_labels_and_counts(tmp_path: Path, suffix: str) -> None:
    for name in ("1", "2", "3"):
        pack(tmp_path / (name + suffix), *BESIDE, (f"{name}.jpg", b""))
    (tmp_path / ("0" + suffix)).touch()
    (tmp_path / ("2" + suffix)).write_bytes((tmp_path / ("2" + suffix)).read_bytes()[:-11000])
    (tmp_path / (".dot" + suffix)).touch()

    def fresh() -> ArchiveSource:
        return source(tmp_path, "*" + suffix, brings_label=True)

    one = fresh()
    refs = list(one.list())
    total = dict(one.skipped)
    assert [ref.order for ref in refs] == sorted({ref.order for ref in refs})
    assert len({ref.uri for ref in refs}) == len(refs)
    assert sum(ref.problem is not None for ref in refs) == 2
    for i, ref in enumerate(refs):
        before, after = fresh(), fresh()
        stream = before.list()
        for _ in range(i + 1):
            next(stream)
        assert list(after.list(ref.order)) == refs[i + 1 :]
        assert dict(before.skipped + after.skipped) == total
        assert list(fresh().list(ref.order[:-1])) == refs[i:]
    assert list(fresh().list(b"\xff")) == []


class Reads:
    """The files of a folder; records which of them are opened."""

    def __init__(self, base: Path, location: str) -> None:
        self.files: Any = open_source(SourceSpec("folder", location, str(base), {"all_files": True}))
        self.opened: list[str] = []
        self.skipped, self.reading = self.files.skipped, self.files.reading
        self.list, self.read = self.files.list, self.files.read

    def stat(self, ref: ImageRef) -> ImageRef:
        found: ImageRef = self.files.stat(ref)
        return found

    def open(self, ref: ImageRef) -> BinaryIO:
        self.opened.append(ref.uri)
        file: BinaryIO = self.files.open(ref)
        return file


def test_archives_before_the_start_are_not_opened(tmp_path: Path) -> None:
    for name in "abc":
        pack(tmp_path / f"{name}.tar", ("1.jpg", b""), ("2.jpg", b""))
    files = Reads(tmp_path, "*.tar")
    one = ArchiveSource(SourceSpec("archive", "*.tar", str(tmp_path)), files=files)
    refs = list(one.list())
    files.opened.clear()
    assert list(one.list(refs[2].order)) == refs[3:]
    assert files.opened == ["b.tar", "c.tar"]


# -- several archives ----------------------------------------------------------------------------------------


def test_archives_whose_names_sort_oddly(tmp_path: Path) -> None:
    for name in ("a.tar", "a.tar!.tar", "a.tar$.tar", "b.tar", "a-.tar"):
        pack(tmp_path / name, ("1.jpg", name.encode()), ("2.jpg", b""))
    one = source(tmp_path, "*.tar")
    refs = list(one.list())
    assert [ref.order for ref in refs] == sorted(ref.order for ref in refs)
    assert [ref.uri.rpartition("#")[0] for ref in refs[::2]] == [
        "a-.tar", "a.tar!.tar", "a.tar", "a.tar$.tar", "b.tar",
    ]  # fmt: skip
    assert [one.read(ref) for ref in refs[::2]] == [ref.uri.rpartition("#")[0].encode() for ref in refs[::2]]
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]


def test_an_archive_that_is_named_like_a_member_of_another_is_refused(tmp_path: Path) -> None:
    for name in ("a.tar", "a.tar#b.tar", "a.tar!.tar", "c.tar"):
        pack(tmp_path / name, ("1.jpg", b""))
    with pytest.raises(SourceError, match=r"'a.tar#b.tar' has a name like that of a member of 'a.tar'"):
        listed(tmp_path, "*.tar")


def test_files_in_a_folder_named_like_an_archive_are_not_archives(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "photo.jpg").write_bytes(b"x")
    pack(tmp_path / "folder.tar" / "inner.tar", ("1.jpg", b""))
    pack(tmp_path / "z.tar", ("2.jpg", b""))
    (tmp_path / ".dot.tar").touch()
    refs, skipped = listed(tmp_path, "*.tar")
    assert [ref.uri for ref in refs] == ["folder.tar/inner.tar#1.jpg", "z.tar#2.jpg"]
    assert skipped == {"not an archive's name": 1, "dot file": 1}


def test_a_single_file_is_an_archive_whatever_its_name(tmp_path: Path) -> None:
    pack(tmp_path / "shard", ("1.jpg", b"x"))
    refs, _ = listed(tmp_path, "shard")
    assert [ref.uri for ref in refs] == ["shard#1.jpg"]


def test_no_archive_at_all_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"There is no source 'a\.tar'"):
        listed(tmp_path)
    assert listed(tmp_path, "*.tar") == ([], {})


def test_reading_depends_on_the_kind_of_archive(tmp_path: Path) -> None:
    assert source(tmp_path, "a.tar").reading == ON_DISK
    assert source(tmp_path, "*.TGZ").reading == IN_SEQUENCE
    assert source(tmp_path, "s3://b/a.tar.gz").reading == IN_SEQUENCE
    assert source(tmp_path, "s3://b/a.tar").reading == (4, 16, 16 * 1024**2)


# -- runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_run_embeds_the_members_with_their_labels(tmp_path: Path, suffix: str) -> None:
    images = [path.read_bytes() for path in sorted(draw(tmp_path / "in", 12).rglob("*.jpg"))]
    contents: list[Contents] = []
    for i, data in enumerate(images):
        contents += [(f"{i:02d}.jpg", data), (f"{i:02d}.cls", str(i % 3).encode())]
    pack(tmp_path / ("a" + suffix), *contents[:12], ("bad.jpg", b"no image"))
    pack(tmp_path / ("b" + suffix), *contents[12:], end=False)
    with (tmp_path / ("b" + suffix)).open("ab") as file:
        file.write(gzip.compress(b"x" * 512) if suffix.endswith("gz") else b"x" * 512)
    spec = SourceSpec("archive", "*" + suffix, str(tmp_path), {"brings_label": True})
    out = tmp_path / "out"
    features = run_plan(draft(out, spec, images_per_part=4, max_failures=1.0), engine=InlineEngine())
    rows = read_rows(out)
    assert {uri: row.label for uri, row in rows.items()} == {
        f"{'a' if i < 6 else 'b'}{suffix}#{i:02d}.jpg": str(i % 3) for i in range(12)
    }
    (bad, rest) = read_failures(out)
    assert bad == (f"a{suffix}#bad.jpg", "decode", "not an image")
    assert (rest[0].partition("(")[0], rest[1], rest[2][:42]) == (
        f"b{suffix}#", "list", "broken archive: there is no header at byte",
    )  # fmt: skip
    assert features.summary.listed == 14
