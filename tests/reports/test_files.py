"""A report is promised before any work, overwrites nothing, and is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featurepress.errors import DestinationError, SettingError, StorageError
from featurepress.reports.files import free_report_files


def test_page_and_pictures_are_written_beside_each_other(tmp_path: Path) -> None:
    files = free_report_files(tmp_path / "a.b.html", pictures=("map",))
    assert list(tmp_path.iterdir()) == []  # nothing before its time
    files.write("<p>\u82f9\u679c</p>", {"map": b"png"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.b.html": "<p>\u82f9\u679c</p>".encode(),
        "a.b-map.png": b"png",
    }


@pytest.mark.parametrize(
    "name", ["report", "report.htm", "report.HTML", "report.html.gz", "", "s3://b/report.html", ".html"]
)
def test_only_a_page_on_this_machine(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=r"must be a file on this machine that ends in \.html\. Got"):
        free_report_files(name)


@pytest.mark.parametrize("taken", ["report.html", "report-map.png"])
def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(DestinationError, match=rf"'{tmp_path / taken}' is there already\. Remove it, or choose"):
        free_report_files(tmp_path / "report.html", pictures=("variance", "map"))
    assert (tmp_path / taken).read_text() == "mine"


def test_a_link_to_nothing_is_a_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "report.html").symlink_to(tmp_path / "gone")
    with pytest.raises(DestinationError, match="is there already"):
        free_report_files(tmp_path / "report.html")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match=r"no such file or directory\. Choose a folder that is there"):
        free_report_files(tmp_path / "nowhere" / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(DestinationError, match="not a directory"):
        free_report_files(tmp_path / "file" / "report.html")
    with pytest.raises(DestinationError, match="name too long"):
        free_report_files(tmp_path / f"{'x' * 300}.html")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DestinationError, match="permission denied"):
        free_report_files(tmp_path / "closed" / "report.html")


def test_what_came_meanwhile_stays_and_nothing_else_is_left(tmp_path: Path) -> None:
    files = free_report_files(tmp_path / "report.html", pictures=("map", "variance"))
    (tmp_path / "report-variance.png").write_text("mine")
    with pytest.raises(StorageError, match=r"Cannot write the report .*file exists\. All else is complete"):
        files.write("page", {"map": b"1", "variance": b"2"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report-variance.png": "mine"}
