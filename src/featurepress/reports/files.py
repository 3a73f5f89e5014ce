"""Files of a report: checked before the work starts, then written all or none."""

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
    """The files of a report, as `free_report_files` returns them: an HTML page, and others beside it."""

    page: Path

    def plot(self, name: str) -> Path:
        """Return the path of a plot, beside the page: ``report-map.png`` for ``report.html``."""
        return self.page.with_name(f"{self.page.stem}-{name}.png")

    @property
    def values(self) -> Path:
        """Path of the values as JSON, beside the page."""
        return self.page.with_suffix(".json")

    def write(self, page: str, plots: Mapping[str, bytes], *, values: Mapping[str, Any] | None = None) -> None:
        """Write plots, values and page; remove what was written, and raise StorageError, if one fails."""
        contents = {self.plot(name): png for name, png in plots.items()}
        if values is not None:
            contents[self.values] = json.dumps(values, indent=1, ensure_ascii=False).encode()
        contents[self.page] = page.encode()
        try:
            with contextlib.ExitStack() as undo:
                for path, data in contents.items():
                    with path.open("xb") as file:
                        undo.callback(path.unlink, missing_ok=True)
                        file.write(data)
                undo.pop_all()
        except OSError as error:
            raise StorageError(
                f"Cannot write the report '{self.page}': {_reason(error)}. The results are complete. Run the "
                "command again with another --report."
            ) from error


def free_report_files(report: str | Path, plots: tuple[str, ...] = (), *, values: bool = False) -> ReportFiles:
    """Return the files of a report after checking that they can be written and do not exist.

    `plots` are the names of plots beside the page; `values` says whether there are values as JSON.

    Raises
    ------
    SettingError
        The path is not a local file that ends in ``.html``.
    DestinationError
        The folder does not exist or cannot be written, or a file exists.
    """
    text = str(report)
    if not text.endswith(".html") or "://" in text or Path(text).stem == ".html":
        raise SettingError(f"The report (--report) must be a local file that ends in .html. Got '{text}'.")
    files = ReportFiles(Path(report))
    folder = files.page.parent
    try:
        for path in (files.page, *map(files.plot, plots), *([files.values] if values else [])):
            if path.exists() or path.is_symlink():
                raise DestinationError(
                    f"The report's file '{path}' already exists. Remove it, or choose another --report."
                )
        with tempfile.TemporaryFile(dir=folder):  # permissions alone do not say whether a file system is writable
            pass
    except OSError as error:
        raise DestinationError(
            f"The report (--report) cannot be written to '{folder}': {_reason(error)}. Choose an existing folder "
            "that can be written."
        ) from error
    return files


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
