"""Lists of uris: formats, order, locations, and repetitions."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.settings import ListingSettings
from featurepress.sources import Listing
from featurepress.sources.lists.entries import Columns, read_entries
from featurepress.sources.lists.sorting import Sorted
from featurepress.specs import ImageRef, SourceSpec
from tests.sources.listed import failure
from tests.sources.lists.written_lists import refusal, source, uris, write
from tests.sources.tables.tables import FORMATS

# -- lines of text -------------------------------------------------------------------------------------------


def test_a_list_is_listed_in_byte_order(tmp_path: Path) -> None:
    names = ["https://h/b.jpg", "s3://b/a.jpg", "https://h/a", "gs://b/ü.jpg", "https://h/a?x=1", "az://a/c/z.png"]
    write(tmp_path, "\n".join(names))
    one = source(tmp_path)
    refs = list(one.list())
    assert [ref.uri for ref in refs] == sorted(names, key=str.encode)
    assert refs[0] == ImageRef("az://a/c/z.png", 0, 0, "")
    assert {(ref.size, ref.version, ref.key, ref.problem, ref.fields) for ref in refs} == {(0, "", None, None, ())}
    assert [one.read(ref) for ref in refs] == [ref.uri.encode() for ref in refs]


def test_a_listing_continues_after_any_key(tmp_path: Path) -> None:
    write(tmp_path, "\n".join(f"https://h/{i}?token={i}" for i in range(20)) + "\nb.jpg\nx/c.jpg\ns3://b/d")
    one = source(tmp_path, exclude=["*5", "b.*"])
    refs = list(one.list())
    total = dict(one.skipped)
    assert total == {"excluded": 3}
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]
        skipped_after = one.skipped["excluded"]
        assert list(one.list(ref.order + b"\0")) == refs[i + 1 :]
        assert list(one.list(ref.order[:-1])) == [r for r in refs if r.order > ref.order[:-1]]
        before = source(tmp_path, exclude=["*5", "b.*"])
        listing = before.list()
        for _ in range(i + 1):
            next(listing)
        assert before.skipped["excluded"] + skipped_after == 3


def test_blank_lines_comments_and_other_line_ends(tmp_path: Path) -> None:
    write(tmp_path, b"\xef\xbb\xbfs3://b/first\r\n\r\n  \n# a comment\n#\n#17.jpg\ns3://b/ space \ns3://b/last")
    assert uris(tmp_path) == ["#17.jpg", "s3://b/ space ", "s3://b/first", "s3://b/last"]


def test_an_empty_list_has_no_images(tmp_path: Path) -> None:
    for name in ("list.txt", "list.csv", "list.tsv"):
        for text in ("", "\n\n"):
            write(tmp_path, text, name)
            assert uris(tmp_path, name) == []
    with pytest.raises(SourceError, match=r"No image in 'list.txt': it is empty\."):
        list(Listing([SourceSpec("uris", "list.txt", str(tmp_path))], ListingSettings()))


def test_a_list_that_is_not_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg\nb\0.jpg\n")
    assert refusal(tmp_path).startswith("The list 'list.txt' cannot be read: a zero byte")
    write(tmp_path, "a.jpg\n" + "x" * 65_537)
    assert "line 2 has over 65,536 bytes" in refusal(tmp_path)
    for name in ("list.txt", "list.csv"):
        write(tmp_path, "url\na.jpg".encode("utf-16"), name)
        assert f"'{name}' is in UTF-16" in refusal(tmp_path, name)


def test_columns_of_a_text_list_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    for flag, option in (("--uri-column", "uri_column"), ("--label-column", "label_column")):
        assert f"no columns: {flag} is for CSV and tables" in refusal(tmp_path, **{option: "url"})


def test_no_such_list(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "There is no source 'list.txt': no such file or folder."


# -- locations -----------------------------------------------------------------------------------------------


def test_paths_start_from_the_folder_of_the_list(tmp_path: Path) -> None:
    for name in ("lists/a.jpg", "b.jpg", "lists/sub/c.jpg", "d e.jpg"):
        write(tmp_path, name, name)
    write(tmp_path, f"a.jpg\n../b.jpg\nsub/c.jpg\n{tmp_path}/b.jpg\nfile://{tmp_path}/d%20e.jpg", "lists/list.txt")
    one = source(tmp_path, "lists/list.txt")
    refs = list(one.list())
    assert [ref.uri for ref in refs] == sorted(
        ["../b.jpg", "a.jpg", "sub/c.jpg", f"{tmp_path}/b.jpg", f"file://{tmp_path}/d%20e.jpg"]
    )
    assert {ref.uri: one.read(ref).decode() for ref in refs} == {
        "../b.jpg": "b.jpg",
        "a.jpg": "lists/a.jpg",
        "sub/c.jpg": "lists/sub/c.jpg",
        f"{tmp_path}/b.jpg": "b.jpg",
        f"file://{tmp_path}/d%20e.jpg": "d e.jpg",
    }
    assert [ref.size for ref in refs] == [len(one.read(ref)) for ref in refs]


def test_the_lists_of_a_glob_have_their_own_folders(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path, f"{folder}.jpg\ns3://b/{folder}", f"{folder}/list.txt")
        write(tmp_path, folder, f"{folder}/{folder}.jpg")
    one = source(tmp_path, "*/list.txt")
    refs = list(one.list())
    assert [ref.uri for ref in refs] == ["one.jpg", "s3://b/one", "s3://b/two", "two.jpg"]
    assert [one.read(ref) for ref in refs] == [b"one", b"s3://b/one", b"s3://b/two", b"two"]
    assert [one.stat(ref) for ref in refs] == refs
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path, "gone.jpg\nfolder\nfolder/gone.jpg")
    assert [(ref.uri, ref.problem) for ref in source(tmp_path).list()] == [
        ("folder", "not a regular file"),
        ("folder/gone.jpg", "no such file"),
        ("gone.jpg", "no such file"),
    ]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (
            "ftp://host/a.jpg",
            "the scheme 'ftp' cannot be read: allowed are paths and http://, https://, s3://, gs://, az://, file://",
        ),
        ("file:///", "not a regular file"),
        ("file://host/a.jpg", "a file:// url needs an absolute path"),
        ("file:///a%00.jpg", "the path contains a zero byte"),
        ("s3://bucket", "the url has no key after the bucket"),
        ("s3://bucket/", "the url has no key after the bucket"),
        ("s3:///key", "the url has no bucket, or contains a password"),
        ("az://account", "the url has no bucket, or contains a password"),
        (b"https://host/\xff.jpg", "the url is not UTF-8"),
        (b"s3://bucket/\xff.jpg", "the url is not UTF-8"),
    ],
)
def test_entries_that_cannot_be_read_are_problems(tmp_path: Path, entry: str | bytes, problem: str) -> None:
    write(tmp_path, entry)
    one = source(tmp_path)
    (ref,) = one.list()
    assert ref.problem == problem
    with pytest.raises(ImageError):
        one.read(ref)


def test_names_that_are_not_utf_8_are_read_by_their_bytes(tmp_path: Path) -> None:
    names = [b"a\xff.jpg", b"a\\xff.jpg", "é.jpg".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    write(tmp_path, b"\n".join(names))
    one = source(tmp_path)
    refs = list(one.list())
    assert [ref.order for ref in refs] == sorted(names)
    assert {ref.uri for ref in refs} == {"a\\xff.jpg", "a\\x5cxff.jpg", "é.jpg"}
    assert [one.read(ref) for ref in refs] == sorted(names)


def test_a_file_that_changed_or_vanished_is_a_failure(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg\nb.jpg")
    write(tmp_path, "before", "a.jpg")
    write(tmp_path, "gone soon", "b.jpg")
    one = source(tmp_path)
    a, b = one.list()
    assert a.version == f"{(tmp_path / 'a.jpg').stat().st_mtime_ns}-6"
    assert one.stat(a) == a
    write(tmp_path, "other!", "a.jpg")
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    (tmp_path / "b.jpg").unlink()
    assert failure(one, a) == "changed since listing"
    assert failure(one, b) == "vanished since listing"
    assert one.stat(a) == a._replace(version="1-6")
    assert one.stat(b).problem == "vanished since listing"


def test_a_folder_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "disk/list.txt")
    write(tmp_path, "a", "disk/a.jpg")
    one = source(tmp_path, "disk/list.txt")
    (ref,) = one.list()
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(StorageError, match="is gone"):
        one.read(ref)


def test_urls_have_no_size_or_version(tmp_path: Path) -> None:
    write(tmp_path, "https://h/a.jpg")
    one = source(tmp_path)
    (ref,) = one.list()
    assert one.stat(ref._replace(problem="read: gone")) == ref


# -- patterns ------------------------------------------------------------------------------------------------


def test_names_without_a_suffix_are_listed(tmp_path: Path) -> None:
    write(tmp_path, "https://h/photo\nhttps://h/.hidden\nhttps://h/a.txt?x=.jpg")
    assert len(uris(tmp_path, all_files=False)) == 3


def test_include_and_exclude_match_the_path(tmp_path: Path) -> None:
    names = ["https://h/cats/a.jpg?x=1", "https://h/dogs/a.jpg", "https://h/dogs/b.png"]
    write(tmp_path, "\n".join(names))
    assert uris(tmp_path, include=["*.jpg"]) == names[:2]
    assert uris(tmp_path, exclude=["**/dogs/*"]) == names[:1]
    assert uris(tmp_path, include=["h/dogs/*"]) == names[1:]
    write(tmp_path, "/data/cats/a.jpg\ns3://bucket/cats/a?.jpg\ncats/a.jpg", "more.txt")
    assert uris(tmp_path, "more.txt", include=["**/cats/a*.jpg"]) == [
        "/data/cats/a.jpg",
        "cats/a.jpg",
        "s3://bucket/cats/a?.jpg",
    ]
    one = source(tmp_path, include=["*.jpg"])
    list(one.list())
    assert one.skipped == {"not included": 1}


# -- repetitions ---------------------------------------------------------------------------------------------


def test_a_repeated_uri_is_refused_before_anything_is_listed(tmp_path: Path) -> None:
    write(tmp_path, "s3://b/a\ns3://b/z\n\ns3://b/c\ns3://b/z\n")
    assert "'list.txt' names 's3://b/z' twice, in line 2 and line 5." in refusal(tmp_path)
    write(tmp_path, "x\ns3://b/z\n" + "s3://b/z\n" * 3)
    assert "'list.txt' names 's3://b/z' 4 times, first in line 2 and line 3." in refusal(tmp_path)


def test_a_uri_in_two_lists_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "s3://b/a", "1.txt")
    write(tmp_path, "\ns3://b/a", "2.txt")
    assert "'s3://b/a' twice, in line 1 of '1.txt' and line 2 of '2.txt'." in refusal(tmp_path, "*.txt")
    for folder in ("x", "y"):
        write(tmp_path, "a.jpg", f"{folder}/list.lst")
    assert "name 'a.jpg' twice, in line 1 of 'x/list.lst' and line 1 of 'y/list.lst'" in refusal(
        tmp_path, "*/*.lst"
    )


def test_rows_of_csv_are_counted(tmp_path: Path) -> None:
    write(tmp_path, 'url,n\n"a\nb",1\nc,2\n"a\nb",3\n', "list.csv")
    assert "twice, in row 0 (counted from 0) and row 2 (counted from 0). Every" in refusal(tmp_path, "list.csv")


def test_an_excluded_uri_may_be_repeated(tmp_path: Path) -> None:
    write(tmp_path, "s3://b/a\ns3://b/z\ns3://b/z\n")
    assert uris(tmp_path, exclude=["z"]) == ["s3://b/a"]


# -- CSV and tables ------------------------------------------------------------------------------------------


CSV = 'n,url,label\r\n1,"https://h/b,1",cat\r\n2,"https://h/""a""",\r\n3,s3://b/c,"do\ng"\r\n'
TSV = 'n\turl\tlabel\n1\thttps://h/b,1\tcat\n2\t"https://h/""a"""\t\n3\ts3://b/c\t"do\ng"\n'


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", CSV), ("A.CSV", CSV[:-2]), ("bom.csv", "\ufeff" + CSV), ("a.tsv", TSV)]
)
def test_csv_with_labels(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, text, name)
    one = source(tmp_path, name, label_column="label", brings_label=True)
    assert [(ref.uri, ref.fields) for ref in one.list()] == [
        ('https://h/"a"', (None,)),
        ("https://h/b,1", ("cat",)),
        ("s3://b/c", ("do\ng",)),
    ]
    assert {ref.fields for ref in source(tmp_path, name).list()} == {()}


def test_csv_values_stay_texts(tmp_path: Path) -> None:
    write(tmp_path, "path,label\n001,01\nNA,null\ntrue,1.50\n", "list.csv")
    one = source(tmp_path, "list.csv", label_column="label", brings_label=True)
    assert [(ref.uri, ref.fields[0]) for ref in one.list()] == [("001", "01"), ("NA", "null"), ("true", "1.50")]


def test_csv_that_is_read_in_many_blocks(tmp_path: Path) -> None:
    rows = [(f"s3://b/{i:06d}/{'x' * 50}", f"l{i % 3}") for i in range(50_000)]
    write(tmp_path, "uri,more,label\n" + "".join(f'{uri},"a\nb",{label}\n' for uri, label in rows), "list.csv")
    one = source(tmp_path, "list.csv", label_column="label", brings_label=True)
    assert [(ref.uri, ref.fields[0]) for ref in one.list()] == rows


def test_csv_columns_are_named_if_none_is_found(tmp_path: Path) -> None:
    write(tmp_path, "where,label\na,b\n", "list.csv")
    assert "it has where (string), label (string)" in refusal(tmp_path, "list.csv")
    assert uris(tmp_path, "list.csv", uri_column="where") == ["a"]
    assert "'wher' (--uri-column); did you mean 'where'?" in refusal(tmp_path, "list.csv", uri_column="wher")
    assert "no column 'labels' (--label-column); did you mean 'label'?" in refusal(
        tmp_path, "list.csv", uri_column="where", label_column="labels"
    )
    write(tmp_path, "url,url\na,b\n", "list.csv")
    assert "has 2 columns 'url' (--uri-column)" in refusal(tmp_path, "list.csv", uri_column="url")


def test_invalid_csv_is_refused_without_its_content(tmp_path: Path) -> None:
    write(tmp_path, "url,label\nhttps://h/?sig=secret,x,y\n", "list.csv")
    assert "record 2 has 3 columns, not 2" in refusal(tmp_path, "list.csv")
    write(tmp_path, 'url,label\n"https://h/?sig=secret' + "x" * 3_000_000, "list.csv")
    assert "secret" not in refusal(tmp_path, "list.csv")
    write(tmp_path, b"url,\xff\na,b\n", "list.csv")
    assert "'list.csv' is not in UTF-8" in refusal(tmp_path, "list.csv")


@pytest.mark.parametrize("ending", ["txt", "csv", "tsv"])
def test_an_error_while_a_list_is_read_is_raised(ending: str) -> None:
    class Away(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1_000_000:
                raise StorageError("the bucket is away")
            return super().read(size)

        def readline(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1_000_000:
                raise StorageError("the bucket is away")
            return super().readline(size)

    file = Away(b"url\n" + b"s3://b/a\n" * 500_000)
    with pytest.raises(StorageError, match="the bucket is away"):
        for _ in read_entries(file, f"list.{ending}", Columns(), "list", is_remote=True):
            pass


def test_a_row_without_a_uri_is_a_failure(tmp_path: Path) -> None:
    write(tmp_path, "url,label\ns3://b/a,x\n,y\n,z\n", "list.csv")
    one = source(tmp_path, "list.csv", label_column="label", brings_label=True)
    assert [(ref.uri, ref.fields, ref.problem) for ref in one.list()] == [
        ("list.csv#row=1", ("y",), "no uri in this row"),
        ("list.csv#row=2", ("z",), "no uri in this row"),
        ("s3://b/a", ("x",), None),
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_tables_of_uris(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    names = [f"s3://b/{i}" for i in (3, 1, 2)] + [None, "a.jpg", "http://h/a"]
    column = (
        pa.array(names).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(names, kind)
    )
    FORMATS[name](pa.table({"n": [[1]] * 6, "url": column, "label": [1, 2, None, 4, 5, 6]}), tmp_path / name)
    one = source(tmp_path, name, uri_column="url", label_column="label", brings_label=True)
    found = {ref.uri: ref.fields[0] for ref in one.list()}
    assert found == {
        "s3://b/3": "1", "s3://b/1": "2", "s3://b/2": None, f"{name}#row=3": "4", "a.jpg": "5", "http://h/a": "6",
    }  # fmt: skip


def test_a_damaged_table_of_uris(tmp_path: Path) -> None:
    write(tmp_path, "no table", "a.parquet")
    assert refusal(tmp_path, "a.parquet") == "The list 'a.parquet' cannot be read: it is neither Parquet nor Arrow."


# -- long lists ----------------------------------------------------------------------------------------------


def test_a_long_list_is_sorted_run_by_run(tmp_path: Path) -> None:
    rows = [(f"s3://b/{i * 7919 % 10_007:05d}", f"l{i}") for i in range(10_007)]
    write(tmp_path, "url,label\n" + "".join(f"{uri},{label}\n" for uri, label in rows), "list.csv")
    one = source(tmp_path, "list.csv", label_column="label", brings_label=True)
    one.run_rows = 300
    assert [(ref.uri, ref.fields[0]) for ref in one.list()] == sorted(rows)
    assert [ref.uri for ref in one.list(b"s3://b/10000")] == [f"s3://b/{i:05d}" for i in range(10_001, 10_007)]


def test_repetitions_are_found_across_runs(tmp_path: Path) -> None:
    write(tmp_path, "".join(f"s3://b/{i}\n" for i in [*range(5000), 17]))
    one = source(tmp_path)
    one.run_rows = 100
    with pytest.raises(SourceError, match=r"names 's3://b/17' twice, in line 18 and line 5001\."):
        next(iter(one.list()))


@pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 200, 1234])
def test_sorting_any_number_of_rows(n: int) -> None:
    rows = [(b"%d" % i, i, None) for i in range(n)]
    random.Random(n).shuffle(rows)
    with contextlib.closing(Sorted(rows, 100)) as found:
        assert list(found) == sorted(rows)
        assert list(found) == sorted(rows)
        one, other = iter(found), iter(found)
        assert [next(one) == next(other) for _ in range(n)] == [True] * n


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", write)
    with pytest.raises(SourceError, match=r"cannot be written to .*: no space left on device\. .* TMPDIR"):
        Sorted([(1,), (2,), (3,)], 2)


LONG_LIST = """
import sys
from featurepress.specs import SourceSpec
from featurepress.sources.lists.uris import UriSource
def peak_bytes():  # ru_maxrss would include the parent process
    return 1024 * int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
source = UriSource(SourceSpec("uris", sys.argv[1], "/", {}))
source.run_rows = 20_000
next(iter(UriSource(SourceSpec("uris", sys.argv[2], "/", {})).list()))
before, n, last = peak_bytes(), 0, b""
for n, ref in enumerate(source.list(), 1):
    assert ref.order > last
    last = ref.order
print(n, peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_list_of_300_000_lines_is_sorted_in_little_memory(tmp_path: Path) -> None:
    numbers = list(range(300_000))
    random.Random(0).shuffle(numbers)
    write(tmp_path, "".join(f"https://images.example.org/some/folder/{n:09d}.jpg\n" for n in numbers))
    write(tmp_path, "s3://b/a", "short.txt")
    done = subprocess.run(
        [sys.executable, "-c", LONG_LIST, str(tmp_path / "list.txt"), str(tmp_path / "short.txt")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    n, grown = map(int, done.stdout.split())
    assert n == 300_000
    assert grown < 8_000_000  # two runs at once take 9, the whole list 70
