"""How a run gets on, and what it did."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How a run gets on; the same object is updated and passed to `on_progress` again and again.

    Attributes
    ----------
    stage : str
        ``preparing`` (the model), ``probing``, ``embedding``, ``exporting`` or ``done``.
    doing : str
        While ``preparing``: what is being done, such as a download.
    done_bytes, total_bytes : int
        How much of it, of how much; 0 where that is not known.
    listed : int
        Images found so far, and whether there may be more (`listing`).
    embedded, failed : int
        Images done in this run or an earlier one of the same plan.
    done_before : int
        How many of them an earlier run did.
    started : float
        `time.perf_counter` when embedding began.
    warning : str
        What people should know while the run goes on; "" if nothing.
    """

    stage: str = "probing"
    listed: int = 0
    listing: bool = True
    embedded: int = 0
    failed: int = 0
    done_before: int = 0
    started: float = field(default_factory=time.perf_counter)
    doing: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    warning: str = ""

    @property
    def images_per_second(self) -> float:
        """Images done by this run a second, since embedding began."""
        seconds = time.perf_counter() - self.started
        return (self.embedded + self.failed - self.done_before) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """What a finished run did.

    Attributes
    ----------
    listed, embedded, failed : int
        Images of the whole feature set.
    failed_by_kind, skipped : mapping
        Counts by reason.
    seconds : float
        Wall-clock time of this run, from the call to the manifest.
    images_per_second : float
        Images that this run embedded or failed, a second of it.
    bytes_read, bytes_written : int
        Of the images, and of the parts.
    parts : int
        Number of Parquet parts.
    already_done : bool
        The run had nothing to do.
    changes : Changes, optional
        What an update or a retry found.
    """

    listed: int
    embedded: int
    failed: int
    failed_by_kind: dict[str, int]
    skipped: dict[str, int]
    seconds: float
    images_per_second: float
    bytes_read: int
    bytes_written: int
    parts: int
    already_done: bool
    changes: Changes | None = None


@dataclass(frozen=True)
class Changes:
    """What an update or a retry found, and what that cost.

    Attributes
    ----------
    new, changed, deleted : int
        Images; changed are those with another version, such as a later time, whatever their bytes.
    inferred : int
        Images that went through the model.
    """

    new: int
    changed: int
    deleted: int
    inferred: int


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Show nothing."""


def step(doing: str, done_bytes: int = 0, total_bytes: int = 0) -> Progress:
    """Return the progress of a step other than embedding, such as a download; 0 bytes where that is unknown."""
    return Progress(stage="preparing", doing=doing, done_bytes=done_bytes, total_bytes=total_bytes)


# What the summary takes from the manifest.
SHARED = (
    "listed",
    "embedded",
    "failed",
    "failed_by_kind",
    "skipped",
    "bytes_read",
    "bytes_written",
    "parts",
)


def summary_again(manifest: dict[str, Any], started: float) -> Summary:
    """Give the summary of a run that found everything done."""
    return Summary(
        **{name: manifest[name] for name in SHARED},
        seconds=time.perf_counter() - started,
        images_per_second=0.0,
        already_done=True,
    )
