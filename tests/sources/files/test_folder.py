"""Folders: odd names, circular links, and files that are not images."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurepress.errors import ImageError, SourceError, StorageError
from featurepress.sources.files.folder import MAX_DEPTH, FolderSource, path_text
from featurepress.specs import ImageRef, SourceSpec

AS_ROOT = os.geteuid() == 0
TIMEOUT_SECONDS = 20.0


def source(base: Path, location: str = "pics", **options: Any) -> FolderSource:
    return FolderSource(SourceSpec("folder", location, str(base), options))


def touch(folder: Path, *names: str | bytes) -> None:
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def uris(base: Path, location: str = "pics", **options: Any) -> list[str]:
    return [ref.uri for ref in source(base, location, **options).list()]


def listed(base: Path, location: str = "pics", **options: Any) -> tuple[list[ImageRef], dict[str, int]]:
    one = source(base, location, **options)
    return list(one.list()), dict(one.skipped)


# -- names ---------------------------------------------------------------------------------------------------

NAMES = [
    "Äpfel/grün.jpg", "日本/語.png", "two words.jpg", " .jpg", "line\nbreak.jpg", "tab\t.jpg", "quote'\".jpg",
    "back\\slash.jpg", "-rf.jpg", "#17.jpg", "a=b&c.jpg", "%41.jpg", "🍎.webp", "e\u0301.jpg", "é.jpg",
    "x" * 251 + ".jpg",
]  # fmt: skip


def test_names_are_unchanged(tmp_path: Path) -> None:
    touch(tmp_path / "pics", *NAMES)
    one = source(tmp_path)
    refs = list(one.list())
    assert [ref.uri for ref in refs] == sorted((f"pics/{name}" for name in NAMES), key=str.encode)
    assert [one.read(ref) for ref in refs] == [ref.uri.removeprefix("pics/").encode() for ref in refs]
    assert all(ref.key is None for ref in refs)


def test_names_that_are_not_utf_8_are_escaped_and_read_by_their_bytes(tmp_path: Path) -> None:
    names = [b"a\xff.jpg", b"\xc3\x28/b.jpg", b"a\xc3\xa9\xfe\n.jpg"]
    touch(tmp_path / "pics", *names)
    one = source(tmp_path)
    refs = list(one.list())
    assert [ref.order for ref in refs] == sorted(b"pics/" + name for name in names)
    assert sorted(ref.uri for ref in refs) == sorted(["pics/a\\xff.jpg", "pics/\\xc3(/b.jpg", "pics/aé\\xfe\n.jpg"])
    assert sorted(one.read(ref) for ref in refs) == sorted(names)
    for i, ref in enumerate(refs):
        assert list(one.list(ref.order)) == refs[i + 1 :]


def test_different_names_have_different_uris(tmp_path: Path) -> None:
    names = [
        b"\xff.jpg",
        b"\\xff.jpg",
        b"\\xFF.jpg",
        b"\\\xff.jpg",
        b"\\x5cxff.jpg",
        b"\\x5c\xff.jpg",
        b"\\x5c.jpg",
        b"\\xf.jpg",
    ]
    touch(tmp_path / "pics", *names)
    one = source(tmp_path)
    refs = list(one.list())
    assert {ref.uri for ref in refs} == {
        "pics/" + name
        for name in (
            r"\xff.jpg", r"\x5cxff.jpg", r"\x5cxFF.jpg", r"\\xff.jpg", r"\x5cx5cxff.jpg", r"\x5cx5c\xff.jpg",
            r"\x5cx5c.jpg", r"\xf.jpg",
        )
    }  # fmt: skip
    assert (
        [b"pics/" + one.read(ref) for ref in refs]
        == [ref.order for ref in refs]
        == sorted(b"pics/" + n for n in names)
    )


@given(
    names=st.lists(
        st.lists(st.sampled_from([b"\\", b"x", b"5", b"c", b"f", b"\xff", b"\\x5c", b"\\xff"]), max_size=8)
    )
)
def test_different_paths_have_different_texts(names: list[list[bytes]]) -> None:
    paths = {b"".join(parts) for parts in names}
    assert len({path_text(path) for path in paths}) == len(paths)


@pytest.mark.parametrize("name", ["a.JPG", "a.Jpeg", "a.PNG", "a.b.webp", "a.HEIC", "a.tif", "a..gif"])
def test_suffixes_of_any_case_are_images(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "pics", name)
    assert uris(tmp_path) == [f"pics/{name}"]


@pytest.mark.parametrize("name", ["a", "a.txt", "jpg", "a.jpg.txt", "a.jp", "a.jpgx", "a.json", "Thumbs.db", "a."])
def test_other_names_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "pics", name, "z.jpg")
    refs, skipped = listed(tmp_path)
    assert [ref.uri for ref in refs] == ["pics/z.jpg"]
    assert skipped == {"no image suffix": 1}
    assert uris(tmp_path, all_files=True) == sorted([f"pics/{name}", "pics/z.jpg"])


@pytest.mark.parametrize("all_files", [False, True])
def test_dot_files_and_dot_folders_are_skipped(tmp_path: Path, all_files: bool) -> None:
    touch(tmp_path / "pics", ".a.jpg", ".git/b.jpg", ".git/c/d.jpg", "sub/.e.jpg", "f.jpg")
    refs, skipped = listed(tmp_path, all_files=all_files)
    assert [ref.uri for ref in refs] == ["pics/f.jpg"]
    assert skipped == {"dot file": 3}


def test_a_dot_folder_as_the_source_is_listed(tmp_path: Path) -> None:
    touch(tmp_path / ".cache", "a.jpg", ".b.jpg")
    assert uris(tmp_path, ".cache") == [".cache/a.jpg"]


# -- spellings of the location -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "uri"),
    [
        ("pics", "pics/a.jpg"),
        ("pics/", "pics/a.jpg"),
        ("./pics", "./pics/a.jpg"),
        ("pics/../pics", "pics/../pics/a.jpg"),
        ("pics//", "pics//a.jpg"),
        (".", "./pics/a.jpg"),
        ("pics/a.jpg", "pics/a.jpg"),
        ("./pics/a.jpg", "./pics/a.jpg"),
        ("pics/*.jpg", "pics/a.jpg"),
        ("./pics/*.jpg", "./pics/a.jpg"),
        ("*/*.jpg", "pics/a.jpg"),
    ],
)
def test_uris_are_spelled_as_the_location_is(tmp_path: Path, location: str, uri: str) -> None:
    touch(tmp_path / "pics", "a.jpg")
    one = source(tmp_path, location)
    (ref,) = one.list()
    assert ref.uri == uri
    assert one.read(ref) == b"a.jpg"


def test_a_folder_without_images_is_empty(tmp_path: Path) -> None:
    (tmp_path / "pics" / "sub").mkdir(parents=True)
    assert listed(tmp_path) == ([], {})


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.txt", ".a.jpg"])
def test_a_single_file_is_listed_whatever_its_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "pics", name)
    assert uris(tmp_path, f"pics/{name}") == [f"pics/{name}"]


# -- links ---------------------------------------------------------------------------------------------------


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "x.jpg", "sub/y.jpg")
    touch(tmp_path / "pics", "a.jpg")
    (tmp_path / "pics" / "file.jpg").symlink_to("../elsewhere/x.jpg")
    (tmp_path / "pics" / "folder").symlink_to("../elsewhere")
    one = source(tmp_path)
    refs = list(one.list())
    assert [ref.uri for ref in refs] == [
        "pics/a.jpg",
        "pics/file.jpg",
        "pics/folder/sub/y.jpg",
        "pics/folder/x.jpg",
    ]
    assert [one.read(ref) for ref in refs] == [b"a.jpg", b"x.jpg", b"sub/y.jpg", b"x.jpg"]


def test_a_link_as_the_source_itself(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "x.jpg")
    (tmp_path / "pics").symlink_to("elsewhere")
    assert uris(tmp_path) == ["pics/x.jpg"]


def test_a_broken_link_is_a_row_with_a_problem(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "a.jpg")
    (tmp_path / "pics" / "b.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "pics" / "no image").symlink_to("nowhere")
    refs, skipped = listed(tmp_path)
    assert [(ref.uri, ref.problem) for ref in refs] == [
        ("pics/a.jpg", None),
        ("pics/b.jpg", "broken link: its target does not exist"),
    ]
    assert skipped == {"no image suffix": 1}


def test_circular_links_end(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "a.jpg", "sub/b.jpg")
    (tmp_path / "pics" / "self").symlink_to("self")
    (tmp_path / "pics" / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "pics" / "here").symlink_to(".")
    (tmp_path / "pics" / "sub" / "up").symlink_to("..")
    (tmp_path / "pics" / "sub" / "root").symlink_to(tmp_path)
    refs, skipped = listed(tmp_path)
    assert [ref.uri for ref in refs if ref.problem is None] == ["pics/a.jpg", "pics/sub/b.jpg"]
    assert [ref.uri for ref in refs if ref.problem] == ["pics/self.jpg"]
    assert skipped == {"link to a folder above it": 3, "no image suffix": 1}


def test_two_links_to_each_other_end(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "one/1.jpg", "two/2.jpg")
    (tmp_path / "pics" / "one" / "to two").symlink_to("../two")
    (tmp_path / "pics" / "two" / "to one").symlink_to("../one")
    refs, skipped = listed(tmp_path)
    assert [ref.uri.removeprefix("pics/") for ref in refs] == [
        "one/1.jpg", "one/to two/2.jpg", "two/2.jpg", "two/to one/1.jpg",
    ]  # fmt: skip
    assert skipped == {"link to a folder above it": 2}


# -- other kinds of files ------------------------------------------------------------------------------------


def test_pipes_sockets_and_devices_are_counted_and_never_opened(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "z.jpg")
    os.mkfifo(tmp_path / "pics" / "pipe.jpg")
    (tmp_path / "pics" / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "pics" / "zero.jpg").symlink_to("/dev/zero")
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as listening:
        os.chdir(tmp_path / "pics")  # the name of a socket is limited to 108 bytes
        try:
            listening.bind("socket.jpg")
        finally:
            os.chdir(here)
    for all_files in (False, True):
        refs, skipped = listed(tmp_path, all_files=all_files)
        assert [ref.uri for ref in refs] == ["pics/z.jpg"]
        assert skipped == {"not a regular file": 4}


def test_a_pipe_as_the_source_itself_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pics")
    with pytest.raises(SourceError, match="'pics' is neither a regular file nor a folder"):
        uris(tmp_path)


@pytest.mark.parametrize("replacement", ["pipe", "folder", "link to /dev/zero", "link to another", "socket"])
def test_a_replaced_file_is_a_failure_and_does_not_hang(tmp_path: Path, replacement: str) -> None:
    touch(tmp_path / "pics", "a.jpg", "another.jpg")
    path = tmp_path / "pics" / "a.jpg"
    one = source(tmp_path)
    ref = next(one.list())
    path.unlink()
    if replacement == "pipe":
        os.mkfifo(path)
    elif replacement == "folder":
        path.mkdir()
    elif replacement == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to("/dev/zero" if "zero" in replacement else "another.jpg")
    outcome: list[BaseException | bytes] = []

    def read() -> None:
        try:
            outcome.append(one.read(ref))
        except ImageError as error:
            outcome.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    (error,) = outcome
    assert isinstance(error, ImageError)
    assert error.stage == "read"
    assert error.reason in ("changed since listing", "no such device or address", "is a directory")


def test_a_file_that_grows_while_it_is_read_is_a_failure(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "a.jpg")
    path = tmp_path / "pics" / "a.jpg"
    one = source(tmp_path)
    (ref,) = one.list()
    times = path.stat().st_mtime_ns
    path.write_bytes(b"more than before")
    os.utime(path, ns=(times, times))
    with pytest.raises(ImageError, match="changed since listing"):
        one.read(ref)


def test_a_parent_that_became_a_file_is_a_failure(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "sub/a.jpg")
    one = source(tmp_path)
    (ref,) = one.list()
    (tmp_path / "pics" / "sub" / "a.jpg").unlink()
    (tmp_path / "pics" / "sub").rmdir()
    (tmp_path / "pics" / "sub").touch()
    with pytest.raises(ImageError, match="read: not a directory"):
        one.read(ref)


def test_an_empty_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.jpg").touch()
    one = source(tmp_path)
    (ref,) = one.list()
    assert one.read(ref) == b""


def test_a_file_of_many_megabytes_is_read_whole(tmp_path: Path) -> None:
    data = os.urandom(1000) * 30_000
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.jpg").write_bytes(data)
    one = source(tmp_path)
    (ref,) = one.list()
    assert one.read(ref) == data


@pytest.mark.skipif(AS_ROOT, reason="root may do everything")
def test_a_file_without_read_permission_is_a_failure(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "a.jpg", "locked/b.jpg")
    (tmp_path / "pics" / "a.jpg").chmod(0)
    (tmp_path / "pics" / "locked").chmod(0)
    one = source(tmp_path)
    try:
        refs = list(one.list())
        assert refs[1].problem == "cannot list the folder: permission denied"
        with pytest.raises(ImageError, match="read: permission denied"):
            one.read(refs[0])
    finally:
        (tmp_path / "pics" / "locked").chmod(0o700)


# -- folders that cannot be listed ---------------------------------------------------------------------------


def deep_folder(base: Path, n: int) -> None:
    """Make nested folders, without using the whole path."""
    here = os.open(base, os.O_RDONLY)
    for _ in range(n):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def too_long_path(base: Path) -> None:
    """Make a path of few folders with long names, which is longer than the system allows (4,096 bytes)."""
    here = os.open(base, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)


def remove_deep(base: Path) -> None:
    """Remove a path that neither `shutil` nor pytest can, by moving each inner folder up."""
    while inner := [entry for entry in os.scandir(base) if entry.is_dir(follow_symlinks=False)]:
        for entry in inner:
            here = os.open(entry.path, os.O_RDONLY)
            for name in os.listdir(here):
                info = os.stat(name, dir_fd=here, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    os.rename(name, str(base / f"up-{info.st_ino}"), src_dir_fd=here)
                else:
                    os.unlink(name, dir_fd=here)
            os.close(here)
            Path(entry.path).rmdir()


def test_a_folder_that_cannot_be_listed_is_a_row_with_a_problem(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "a.jpg", "z.jpg")
    too_long_path(tmp_path / "pics")
    try:
        refs, _ = listed(tmp_path)
    finally:
        remove_deep(tmp_path / "pics")
    assert [ref.uri for ref in refs if ref.problem is None] == ["pics/a.jpg", "pics/z.jpg"]
    (bad,) = (ref for ref in refs if ref.problem)
    assert bad.problem == "cannot list the folder: file name too long"
    assert bad.uri.startswith("pics/ddd")
    assert bad.uri.endswith("/")
    assert [ref.order for ref in refs] == sorted(ref.order for ref in refs)


def test_a_listing_continues_after_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "a.jpg", "z.jpg")
    too_long_path(tmp_path / "pics")
    one = source(tmp_path)
    try:
        refs = list(one.list())
        for i, ref in enumerate(refs):
            assert list(one.list(ref.order)) == refs[i + 1 :]
    finally:
        remove_deep(tmp_path / "pics")


def test_a_folder_that_becomes_unreadable_stops_the_listing(tmp_path: Path) -> None:
    """Some of its images are in the listing: none may be lost, or listed twice."""
    touch(tmp_path / "pics", "a.jpg", "z.jpg")
    too_long_path(tmp_path / "pics")
    one = source(tmp_path)
    try:
        (bad,) = (ref for ref in one.list() if ref.problem)
        with pytest.raises(StorageError, match="cannot be listed to its end: file name too long"):
            list(one.list(bad.order + b"image.jpg"))
    finally:
        remove_deep(tmp_path / "pics")


def test_very_deep_folders_are_rows_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    deep_folder(tmp_path / "pics", MAX_DEPTH + 5)
    try:
        refs, _ = listed(tmp_path)
    finally:
        remove_deep(tmp_path / "pics")
    assert [ref.problem for ref in refs] == [f"cannot list the folder: it is more than {MAX_DEPTH} folders deep"]


def test_many_nested_folders_are_listed(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    deep_folder(tmp_path / "pics", 100)
    try:
        assert uris(tmp_path) == ["pics/" + "d/" * 100 + "a.jpg"]
    finally:
        remove_deep(tmp_path / "pics")


# -- feature sets --------------------------------------------------------------------------------------------


def test_feature_sets_and_the_destination_are_left_out_and_counted(tmp_path: Path) -> None:
    touch(
        tmp_path / "pics", "a.jpg", "set/x.jpg", "set/features/y.jpg", "out/z.jpg", "plan/plan.json", "b/plan/c.jpg"
    )
    (tmp_path / "pics" / "set" / "plan").mkdir()
    (tmp_path / "pics" / "set" / "plan" / "plan.json").write_text('{"format": "featurepress"}')
    refs, skipped = listed(tmp_path, destination=str(tmp_path / "pics" / "out"), all_files=True)
    assert [ref.uri for ref in refs] == ["pics/a.jpg", "pics/b/plan/c.jpg", "pics/plan/plan.json"]
    assert skipped == {"feature set": 1, "the destination": 1}


def test_a_pipe_named_like_a_plan_does_not_hang(tmp_path: Path) -> None:
    touch(tmp_path / "pics", "a/plan/x.jpg", "b/plan/plan.json/y.jpg")
    os.mkfifo(tmp_path / "pics" / "a" / "plan" / "plan.json")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(uris(tmp_path)), daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    assert found == ["pics/a/plan/x.jpg", "pics/b/plan/plan.json/y.jpg"]


def test_the_destination_is_skipped_however_it_is_reached(tmp_path: Path) -> None:
    touch(tmp_path / "out", "z.jpg")
    touch(tmp_path / "pics", "a.jpg")
    (tmp_path / "pics" / "link").symlink_to("../out")
    refs, skipped = listed(tmp_path, destination=str((tmp_path / "out").resolve()))
    assert [ref.uri for ref in refs] == ["pics/a.jpg"]
    assert skipped == {"the destination": 1}
