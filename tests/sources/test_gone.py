"""A source that disappears during a run, as an unmounted disk or a renamed folder, and single images that do."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurepress.errors import ImageError, SourceError, StorageError
from tests.sources.files.test_folder import source, touch

LOCATIONS = ["pics", "pics/", "{base}/pics", "pics/*.jpg", "pics/**/*.jpg", "pics/a.jpg", "./pics//*"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    touch(tmp_path / "pics", "a.jpg", "b.jpg", "sub/c.jpg")
    return tmp_path


@pytest.mark.parametrize("location", LOCATIONS)
@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "in use"])
def test_reading_stops_if_the_root_is_missing(base: Path, location: str, is_fresh: bool) -> None:
    location = location.format(base=base)
    one = source(base, location)
    ref = next(one.list())
    data = one.read(ref)
    (base / "pics").rename(base / "away")
    if is_fresh:
        one = source(base, location)
    with pytest.raises(StorageError) as caught:
        one.read(ref)
    assert str(caught.value).startswith(f"The source '{location}' is gone: '{base}")
    assert str(caught.value).endswith("no such file or directory. Restore it and resume.")
    (base / "away").rename(base / "pics")
    assert one.read(ref) == data


@pytest.mark.parametrize("location", LOCATIONS)
def test_one_image_that_is_gone_is_a_failure(base: Path, location: str) -> None:
    one = source(base, location.format(base=base))
    ref = next(one.list())
    (base / "pics" / "a.jpg").unlink()
    for reader in (one, source(base, location.format(base=base))):
        with pytest.raises(ImageError, match="read: vanished since listing"):
            reader.read(ref)


def test_a_folder_below_the_root_that_is_gone_fails_image_by_image(base: Path) -> None:
    one = source(base)
    refs = list(one.list())
    (base / "pics" / "sub").rename(base / "away")
    with pytest.raises(ImageError, match="vanished since listing"):
        one.read(refs[2])


def test_a_file_instead_of_the_root(base: Path) -> None:
    one = source(base)
    ref = next(one.list())
    (base / "pics").rename(base / "away")
    (base / "pics").touch()
    with pytest.raises(StorageError, match="'pics' is gone: "):
        one.read(ref)


@pytest.mark.parametrize("location", ["pics", "pics/*.jpg"])
def test_an_empty_folder_instead_of_the_root_is_not_the_root(base: Path, location: str) -> None:
    """An unmounted disk leaves an empty folder."""
    lister, reader = source(base, location), source(base, location)
    first, second, *_ = lister.list()
    reader.read(first)
    (base / "pics").rename(base / "away")
    (base / "pics").mkdir()
    for one in (lister, reader):
        with pytest.raises(StorageError, match="pics' is not the same folder as at the start"):
            one.read(second)


def test_a_missing_folder_with_the_name_of_a_glob(tmp_path: Path) -> None:
    touch(tmp_path / "pics [2019]", "a.jpg")
    ref = next(source(tmp_path, "pics [2019]").list())
    (tmp_path / "pics [2019]").rename(tmp_path / "away")
    with pytest.raises(StorageError, match="is gone: "):
        source(tmp_path, "pics [2019]").read(ref)


def test_a_link_to_a_missing_disk(base: Path) -> None:
    (base / "link").symlink_to("pics")
    one = source(base, "link")
    ref = next(one.list())
    (base / "pics").rename(base / "away")
    with pytest.raises(StorageError, match="'link' is gone: "):
        one.read(ref)


@pytest.mark.parametrize("location", ["pics", "{base}/pics", "pics/**/*.jpg"])
@pytest.mark.parametrize("leaves_a_folder", [False, True], ids=["renamed", "unmounted"])
def test_a_listing_stops_if_the_root_is_missing(base: Path, location: str, leaves_a_folder: bool) -> None:
    location = location.format(base=base)
    refs = source(base, location).list()
    next(refs)
    (base / "pics").rename(base / "away")
    if leaves_a_folder:
        (base / "pics").mkdir()
    with pytest.raises(SourceError, match=f"^The source '{location.replace('*', '.')}' is gone: .* Restore it and"):
        list(refs)


def test_a_listing_of_a_root_that_disappears_is_not_complete(base: Path) -> None:
    touch(base / "elsewhere", "x.jpg")
    touch(base / "only links", "a.jpg")
    (base / "only links" / "b").symlink_to("../elsewhere")
    refs = source(base, "only links").list()
    next(refs)
    (base / "only links").rename(base / "away")
    with pytest.raises(SourceError, match="is gone"):
        list(refs)


def test_a_folder_that_disappears_during_the_listing_is_a_problem(base: Path) -> None:
    refs = source(base).list()
    next(refs)
    (base / "pics" / "sub").rename(base / "away")
    last = list(refs)[-1]
    assert (last.uri, last.problem) == ("pics/sub/", "cannot list the folder: no such file or directory")
