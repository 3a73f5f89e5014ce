"""Report files are checked before any work, overwrite nothing, and are written all or none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from featurepress.errors import DestinationError, SettingError, StorageError
from featurepress.reports.files import free_report_files


def test_page_and_plots_are_written_beside_each_other(tmp_path: Path) -> None:
    files = free_report_files(tmp_path / "a.b.html", plots=("map",))
    assert list(tmp_path.iterdir()) == []
    files.write("<p>\u82f9\u679c</p>", {"map": b"png"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.b.html": "<p>\u82f9\u679c</p>".encode(),
        "a.b-map.png": b"png",
    }


@pytest.mark.parametrize(
    "name", ["report", "report.htm", "report.HTML", "report.html.gz", "", "s3://b/report.html", ".html"]
)
def test_the_page_must_be_a_local_html_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match=re.escape(f"ends in .html. Got '{name}'")):
        free_report_files(name)


@pytest.mark.parametrize("taken", ["report.html", "report-map.png"])
def test_an_existing_file_is_not_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(DestinationError, match=rf"'{tmp_path / taken}' already exists"):
        free_report_files(tmp_path / "report.html", plots=("variance", "map"))
    assert (tmp_path / taken).read_text() == "mine"


def test_a_broken_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "report.html").symlink_to(tmp_path / "gone")
    with pytest.raises(DestinationError, match="already exists"):
        free_report_files(tmp_path / "report.html")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DestinationError, match="no such file or directory"):
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


def test_a_file_created_meanwhile_stays_and_no_other_is_left(tmp_path: Path) -> None:
    files = free_report_files(tmp_path / "report.html", plots=("map", "variance"))
    (tmp_path / "report-variance.png").write_text("mine")
    with pytest.raises(StorageError, match=r"Cannot write the report .*file exists"):
        files.write("page", {"map": b"1", "variance": b"2"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report-variance.png": "mine"}
