"""Where a report is written: a page and the pictures beside it, promised before any work and written whole."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurepress.errors import DestinationError, SettingError, StorageError


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report.

    Use `free_report_files` to get one.

    Attributes
    ----------
    page : Path
        Of the page.
    """

    page: Path

    def picture(self, name: str) -> Path:
        """Give the path of a picture: beside the page, with its name and the picture's."""
        return self.page.with_name(f"{self.page.stem}-{name}.png")

    @property
    def values(self) -> Path:
        """Path of the same as JSON, beside the page."""
        return self.page.with_suffix(".json")

    def write(self, page: str, pictures: Mapping[str, bytes], *, values: Mapping[str, Any] | None = None) -> None:
        """Write pictures, values as JSON, and the page last; or none of them.

        Raises
        ------
        StorageError
            A file came since it was looked, or cannot be written.
        """
        contents = {self.picture(name): png for name, png in pictures.items()}
        if values is not None:
            contents[self.values] = json.dumps(values, indent=1, ensure_ascii=False).encode()
        contents[self.page] = page.encode()
        try:
            with contextlib.ExitStack() as undo:
                for path, data in contents.items():
                    with path.open("xb") as file:
                        undo.callback(path.unlink, missing_ok=True)
                        file.write(data)
                undo.pop_all()  # all are written
        except OSError as error:
            raise StorageError(
                f"Cannot write the report '{self.page}': {_reason(error)}. All else is complete; run the same "
                "again with a --report that can be written."
            ) from error


def free_report_files(report: str | Path, pictures: tuple[str, ...] = (), *, values: bool = False) -> ReportFiles:
    """Make sure that a report can be written, and overwrites nothing.

    Parameters
    ----------
    report : str or path
        The page, on this machine; ends in ``.html``.
    pictures : tuple of str
        Names of the pictures that will be written beside it.
    values : bool
        Whether the same will be written beside it as JSON.

    Raises
    ------
    SettingError
        It does not end in ``.html``.
    DestinationError
        The folder is not there or cannot be written, or a file is there already.
    """
    given = str(report)
    if not given.endswith(".html") or "://" in given or Path(given).stem == ".html":
        raise SettingError(
            f"The report (--report) must be a file on this machine that ends in .html. Got '{given}'."
        )
    files = ReportFiles(Path(report))
    folder = files.page.parent
    try:
        for path in (files.page, *map(files.picture, pictures), *([files.values] if values else [])):
            if path.exists() or path.is_symlink():
                raise DestinationError(
                    f"The report's file '{path}' is there already. Remove it, or choose another --report."
                )
        with tempfile.TemporaryFile(dir=folder):  # what permissions say is not what a file system does
            pass
    except OSError as error:
        raise DestinationError(
            f"The report (--report) cannot be written into '{folder}': {_reason(error)}. Choose a folder that is "
            "there and can be written."
        ) from error
    return files


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
