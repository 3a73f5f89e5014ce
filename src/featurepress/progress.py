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
        ``preparing`` (the model), ``probing``, ``pressing``, ``exporting`` or ``done``.
    doing : str
        While ``preparing``: what is being done, such as a download.
    done_bytes, of_bytes : int
        How much of it, of how much; 0 where that is not known.
    listed : int
        Images found so far, and whether there may be more (`listing`).
    pressed, failed : int
        Images done in this run or an earlier one of the same plan.
    done_before : int
        How many of them an earlier run did.
    started : float
        `time.perf_counter` when pressing began.
    warning : str
        What people should know while the run goes on; "" if nothing.
    """

    stage: str = "probing"
    listed: int = 0
    listing: bool = True
    pressed: int = 0
    failed: int = 0
    done_before: int = 0
    started: float = field(default_factory=time.perf_counter)
    doing: str = ""
    done_bytes: int = 0
    of_bytes: int = 0
    warning: str = ""

    @property
    def images_per_second(self) -> float:
        """Images done by this run a second, since pressing began."""
        seconds = time.perf_counter() - self.started
        return (self.pressed + self.failed - self.done_before) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """What a finished run did.

    Attributes
    ----------
    listed, pressed, failed : int
        Images of the whole feature set.
    failed_by_kind, skipped : mapping
        Counts by reason.
    seconds : float
        Wall-clock time of this run, from the call to the manifest.
    images_per_second : float
        Images that this run pressed or failed, a second of it.
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
    pressed: int
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
Tell = Callable[[str, int, int], None]  # what is being done, how much of it, of how much (0: unknown); in bytes


def ignore_progress(progress: Progress) -> None:
    """Show nothing."""


def say_nothing(what: str, done: int, of: int) -> None:
    """Tell nobody."""


def telling(on_progress: OnProgress) -> Tell:
    """Give a `Tell` that shows its news as progress."""
    progress = Progress(stage="preparing")

    def tell(what: str, done: int, of: int) -> None:
        progress.doing, progress.done_bytes, progress.of_bytes = what, done, of
        on_progress(progress)

    return tell


# What the summary takes from the manifest.
SHARED = (
    "listed",
    "pressed",
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
