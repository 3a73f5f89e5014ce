"""Tar archives: their headers, and the readable members of broken ones."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurepress.sources.archives.byte_readers import ByteReader, FileReader, GzipReader
from featurepress.sources.archives.tar import BLOCK_BYTES, FILE, OTHER, REST, SPARSE, Member, members

FORMATS: dict[str, Any] = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
GIB = 1024**3


class BytesReader:
    """An archive in memory that checks that it is read forward."""

    held_bytes = 0

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.bytes_read = 0

    def at(self, start: int, size: int) -> bytes:
        found = self._data[start : start + size]
        self.bytes_read += len(found)
        return found

    def holds(self, end: int) -> bool:
        return end <= len(self._data)

    def finish(self) -> None: ...

    def close(self) -> None: ...


def info(name: str, size: int = 0, **attributes: object) -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    one.size = size
    for attribute, value in attributes.items():
        setattr(one, attribute, value)
    return one


def packed(*contents: tuple[str | tarfile.TarInfo, bytes], form: str = "ustar", end: bool = True) -> bytes:
    """Return an archive written by tarfile."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=FORMATS[form]) as archive:
        for one, data in contents:
            header = one if isinstance(one, tarfile.TarInfo) else info(one, len(data))
            archive.addfile(header, io.BytesIO(data))
        length = archive.offset
    return file.getvalue() if end else file.getvalue()[:length]


def listed(data: bytes, is_wanted: Callable[[bytes, int], bool] = lambda name, size: True) -> list[Member]:
    return list(members(BytesReader(data), is_wanted))


def files(data: bytes) -> list[tuple[bytes, bytes | None]]:
    found = listed(data)
    assert [one for one in found if one.kind == REST] == []
    return [(one.name, one.data) for one in found if one.kind == FILE]


def problem(data: bytes) -> str:
    *_, last = listed(data)
    assert last.kind == REST
    assert "\n" not in last.problem
    return last.problem


TWO = (("a.jpg", b"one" * 300), ("b/c.jpg", b"two"))

# -- headers -------------------------------------------------------------------------------------------------

names = st.text(st.sampled_from("ab/.ü\n\\#"), min_size=1, max_size=8).flatmap(
    lambda text: st.sampled_from([text, text * 13, text * 40])
)
types = st.sampled_from(
    [tarfile.REGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"A"]
)


@settings(max_examples=300)
@given(
    form=st.sampled_from(["gnu", "pax"]),
    contents=st.lists(st.tuples(names, types, st.integers(0, 1600)), max_size=6),
)
def test_members_are_those_that_tarfile_finds(form: str, contents: list[tuple[str, bytes, int]]) -> None:
    data = packed(
        *(
            (
                info(name, size * (kind not in b"125"), type=kind, linkname="x" * size),
                bytes([65 + size % 26]) * size,
            )
            for name, kind, size in contents
        ),
        form=form,
    )
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        expected = [
            (one.name.encode().rstrip(b"/"), one.offset_data, one.size if one.isreg() else None) for one in archive
        ]
    found = listed(data)
    assert [(one.name.rstrip(b"/"), one.start, one.size if one.kind == FILE else None) for one in found] == expected
    assert all(one.data == data[one.start : one.start + one.size] for one in found if one.kind == FILE)


@pytest.mark.parametrize(
    ("form", "length"), [("ustar", 99), ("ustar", 100), ("ustar", 200), ("gnu", 600), ("pax", 600), ("pax", 254)]
)
def test_long_names(form: str, length: int) -> None:
    name = ("x" * 60 + "/") * (length // 61) + "y" * (length % 61)
    for data in (packed((name, b"1"), ("z", b"2"), form=form), packed((name, b"1"), ("z", b"2"), form="pax")):
        assert files(data) == [(name.encode(), b"1"), (b"z", b"2")]


def test_names_that_are_not_ascii() -> None:
    for form in ("gnu", "pax"):
        assert files(packed(("a\udcff.jpg", b"1"), ("é", b"2"), form=form))[1] == ("é".encode(), b"2")
    assert files(packed(("a\udcff.jpg", b"1"), form="gnu")) == [(b"a\xff.jpg", b"1")]


def test_data_are_read_only_if_requested() -> None:
    data = packed(("a.jpg", bytes(100_000)), ("a.cls", b"7"), ("b.jpg", bytes(100_000)))
    reader = BytesReader(data)
    found = list(members(reader, lambda name, size: name.endswith(b".cls") and size == 1))
    assert [one.data for one in found] == [None, b"7", None]
    assert reader.bytes_read <= 6 * BLOCK_BYTES


def patched(header: bytes, at: int, field: bytes, *, signed: bool = False) -> bytes:
    """Change a header, and its checksum."""
    block = bytearray(header)
    block[at : at + len(field)] = field
    block[148:156] = b" " * 8
    total = sum(block) - (256 * sum(byte > 127 for byte in block) if signed else 0)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def huge(size: int, form: str) -> bytes:
    header = packed((info("huge.jpg", size), b""), form=form, end=False)
    return header[: len(header) // BLOCK_BYTES * BLOCK_BYTES]


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_members_of_more_than_8_gib(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    header = info("huge.jpg", 9 * GIB + 1).tobuf(FORMATS[form])
    buffer.write(header)
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + 9 * GIB + 512)  # a hole: nothing is written
        file.write(packed(("b.jpg", b"behind")))
    with path.open("rb") as file:
        found = list(members(FileReader(file), lambda name, size: size < 100))
    assert [(one.name, one.start, one.size, one.data) for one in found] == [
        (b"huge.jpg", len(header), 9 * GIB + 1, None),
        (b"b.jpg", len(header) + 9 * GIB + 1024, 6, b"behind"),
    ]


def test_sparse_files_are_recognised() -> None:
    pax = info("GNUSparseFile.0/x.jpg", 3, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "real.jpg"})
    old = packed((info("old.jpg", 3, type=tarfile.GNUTYPE_SPARSE), b"abc"), form="gnu", end=False)
    more = patched(old[:BLOCK_BYTES], 482, b"\1") + b"\0" * 504 + b"\1" + bytes(7) + bytes(BLOCK_BYTES)
    data = packed((pax, b"abc"), form="pax", end=False) + old + more + old[BLOCK_BYTES:] + packed(("z", b"9"))
    found = listed(data)
    assert [(one.name, one.kind, one.size) for one in found] == [
        (b"real.jpg", SPARSE, 3), (b"old.jpg", SPARSE, 3), (b"old.jpg", SPARSE, 3), (b"z", FILE, 1),
    ]  # fmt: skip
    assert data[found[2].start : found[2].start + 3] == b"abc"


def test_links_and_folders_with_a_size_have_no_data() -> None:
    (block,) = (packed((info("l", type=tarfile.LNKTYPE, linkname="a"), b""), end=False),)
    data = patched(block, 124, b"%011o\0" % 5000) + packed(("z", b"9"))
    assert [(one.name, one.kind) for one in listed(data)] == [(b"l", OTHER), (b"z", FILE)]


def test_headers_from_before_ustar() -> None:
    block = packed(("dir/", b""), end=False)
    v7 = patched(patched(block, 257, bytes(8)), 156, b"\0")
    assert [(one.name, one.kind) for one in listed(v7 + packed(("z", b"9")))] == [(b"dir/", OTHER), (b"z", FILE)]


def test_a_gnu_header_has_times_in_place_of_a_prefix() -> None:
    block = patched(packed(("a.jpg", b""), form="gnu", end=False), 345, b"13371337133\0")
    assert files(block) == [(b"a.jpg", b"")]


def test_sums_of_signed_bytes() -> None:
    block = patched(packed(("a\udcff\udcfe.jpg", b""), form="gnu", end=False), 0, b"", signed=True)
    assert files(block) == [(b"a\xff\xfe.jpg", b"")]


def test_records_for_all_members() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as archive:
        archive.addfile(info("a", 1), io.BytesIO(b"1"))
    assert files(file.getvalue()) == [(b"a", b"1")]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "all"}) as archive:
        archive.addfile(info("a", 1), io.BytesIO(b"1"))
        archive.addfile(info("ü", 1), io.BytesIO(b"2"))
    assert files(file.getvalue()) == [(b"all", b"1"), ("ü".encode(), b"2")]
    with tarfile.open(fileobj=(only := io.BytesIO()), mode="w", pax_headers={"comment": "x"}):
        pass
    assert listed(only.getvalue()) == []


# -- ends ----------------------------------------------------------------------------------------------------


def test_an_archive_without_members() -> None:
    assert listed(packed()) == []
    assert listed(bytes(BLOCK_BYTES)) == []


@pytest.mark.parametrize(
    "tail", [b"", bytes(100), bytes(512), bytes(1024), bytes(1500), bytes(1024) + b"garbage" * 999]
)
def test_accepted_ends(tail: bytes) -> None:
    assert [name for name, _ in files(packed(*TWO, end=False) + tail)] == [b"a.jpg", b"b/c.jpg"]


def test_a_single_block_of_zeros_is_not_the_end() -> None:
    more = packed(("late.jpg", b"x"))
    assert len(files(packed(*TWO) + more)) == 2
    assert len(files(packed(*TWO, end=False) + bytes(BLOCK_BYTES) + more)) == 3
    assert problem(packed(*TWO, end=False) + bytes(BLOCK_BYTES) + b"x" * 512).startswith(
        "there is no header at byte"
    )


# -- damage --------------------------------------------------------------------------------------------------

WHOLE = packed(*TWO, end=False)
LONG = packed(("x" * 300, b"1"), form="gnu", end=False)
PAX = packed(("ü", b"1"), form="pax", end=False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"GIF89a", "it ends inside a header"),
        (b"\xff\xd8" + b"x" * 600, "it is not a tar file"),
        (b"\x1f\x8b" + b"x" * 600, "it is not a tar file, it is compressed by gzip: name it .tar.gz"),
        (b"PK\3\4" + b"x" * 600, "it is not a tar file, it is a zip file"),
        (WHOLE[:700], "it ends inside 'a.jpg'"),
        (WHOLE[:-1], "it ends inside a block"),
        (WHOLE + b"x", "it ends inside a header"),
        (WHOLE + b"x" * 512, f"there is no header at byte {len(WHOLE)}"),
        (WHOLE + b"0" * 512, f"there is no header at byte {len(WHOLE)}"),
        (LONG[:600], "it ends inside a header"),
        (LONG[:1024], "it ends after a header that announces another"),
        (LONG[:1024] + bytes(2048), "it ends after a header that announces another"),
        (patched(WHOLE[:512], 124, b"-7 "), "a header has a size that is not a number"),
        (patched(WHOLE[:512], 124, b"ninety"), "a header has a size that is not a number"),
        (patched(WHOLE[:512], 124, b"\xff" * 12), "a header has a negative size"),
        (patched(WHOLE[:512], 124, b"\x80" + b"\xff" * 11), "it ends inside 'a.jpg'"),
        (patched(LONG[:512], 124, b"77777777777"), "the header at byte 0 announces another of 8589934591 bytes"),
        (PAX.replace(b"11 path=", b"99 path="), "a pax header cannot be parsed"),
        (PAX.replace(b"11 path=", b"11 path "), "a pax header cannot be parsed"),
        (PAX.replace(b"11 path=", b"xx path="), "a pax header cannot be parsed"),
        (PAX.replace(b"11 path=", b" 0 path="), "a pax header cannot be parsed"),
    ],
)  # fmt: skip
def test_damage_is_named(data: bytes, reason: str) -> None:
    assert problem(data) == reason


def test_members_before_the_end_of_a_truncated_archive_are_found() -> None:
    data = packed(("a.jpg", b"1" * 700), ("x" * 150 + ".jpg", b"2"), ("c.jpg", b""), form="gnu")
    whole = [one for one in listed(data) if one.kind == FILE]
    for end in range(len(data)):
        *before, last = [*listed(data[:end]), None]
        if before and before[-1].kind == REST:
            *before, last = before
        assert before == [one for one in whole if one.start + one.size <= end]
        if last is not None:
            assert last.start == max([0, *(one.start + -(-one.size // 512) * 512 for one in before)])


@settings(max_examples=300)
@given(position=st.integers(0, len(LONG + PAX + WHOLE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_no_crash(position: int, byte: int) -> None:
    data = bytearray(LONG + PAX + WHOLE + bytes(1024))
    data[position] = byte
    for one in listed(bytes(data)):
        assert one.kind == REST or one.start + one.size <= len(data)


# -- compressed ----------------------------------------------------------------------------------------------


def gz_members(data: bytes) -> list[Member]:
    return list(members(GzipReader(io.BytesIO(data)), lambda name, size: True))


NOISY = packed(*((f"{i}.jpg", bytes((i * j * j) % 251 for j in range(700))) for i in range(6)))
PRESSED = gzip.compress(NOISY, mtime=0)


def test_a_compressed_archive_has_the_same_members() -> None:
    assert gz_members(PRESSED) == listed(NOISY)


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(NOISY[:1000])
        + gzip.compress(NOISY[1000:2000])
        + gzip.compress(b"")
        + gzip.compress(NOISY[2000:]),
        PRESSED + bytes(70_000),
        PRESSED + b"garbage",
        PRESSED + b"\x1f",
        gzip.compress(NOISY + b"garbage" * 100_000),
    ],
    ids=["several streams", "padding", "garbage", "a byte", "garbage inside"],
)
def test_compressed_archives_of_several_streams_and_padding(data: bytes) -> None:
    assert gz_members(data) == listed(NOISY)


def test_bytes_after_compressed_data_that_end_too_early_are_damage() -> None:
    n = NOISY.rindex(b"5.jpg")
    *before, last = gz_members(gzip.compress(NOISY[:n]) + b"garbage")
    assert before == listed(NOISY)[:5]
    assert (last.kind, last.problem) == (REST, "bytes that are not gzip follow the compressed data")


def test_members_before_the_end_of_truncated_compressed_data_are_found() -> None:
    whole = listed(NOISY)
    n_found = []
    for end in range(len(PRESSED)):
        *before, last = gz_members(PRESSED[:end])
        assert last.kind == REST
        assert last.problem == ("it is empty" if end == 0 else "the compressed data are cut short")
        assert before == whole[: len(before)]
        n_found.append(len(before))
    assert n_found == sorted(n_found)
    assert set(n_found) == {0, 1, 2, 3, 4, 5, 6}


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(PRESSED) - 1), bit=st.integers(0, 7))
def test_a_changed_bit_of_compressed_data_is_found(position: int, bit: int) -> None:
    data = bytearray(PRESSED)
    data[position] ^= 1 << bit
    found = gz_members(bytes(data))
    assert found == listed(NOISY) or found[-1].kind == REST


def test_a_wrong_checksum_costs_the_last_chunk() -> None:
    data = bytearray(PRESSED)
    data[-5] ^= 1
    *before, last = gz_members(bytes(data))
    assert before == listed(NOISY)[: len(before)]
    assert last.kind == REST
    assert last.problem.startswith("the compressed data are damaged, incorrect ")


def test_a_file_that_is_not_gzip() -> None:
    (last,) = gz_members(NOISY)
    assert last.problem == "it is not a gzip file"


def test_a_disk_error_is_damage() -> None:
    class Failing(BytesReader):
        def at(self, start: int, size: int) -> bytes:
            if start > 3000:
                raise OSError(5, "Input/output error")
            return super().at(start, size)

    reader: ByteReader = Failing(NOISY)
    *before, last = members(reader, lambda name, size: False)
    assert [one.name for one in before] == [b"0.jpg", b"1.jpg"]
    assert last.problem == "input/output error"
