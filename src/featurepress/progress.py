"""The progress of a run, its display in a terminal or notebook, and the summary of a finished run."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass
class Progress:
    """The progress of a run; `on_progress` gets the same object each time, with new values.

    Attributes
    ----------
    stage : str
        ``preparing`` (the model), ``probing``, ``embedding``, ``exporting`` or ``done``.
    doing : str
        The current step while ``preparing``, such as a download.
    done_bytes, total_bytes : int
        Progress and size of that step; 0 if unknown.
    listed : int
        Images found so far.
    listing : bool
        Whether more images may be found.
    embedded, failed : int
        Images processed by this run or an earlier one of the same plan.
    done_before : int
        Number of these that an earlier run processed.
    started : float
        `time.perf_counter` when embedding began.
    warning : str
        A warning about this run, or "".
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
        """Images per second that this run has processed since embedding began."""
        seconds = time.perf_counter() - self.started
        return (self.embedded + self.failed - self.done_before) / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """The result of a finished run.

    Attributes
    ----------
    listed, embedded, failed : int
        Number of images in the whole feature set.
    failed_by_kind, skipped : mapping
        Counts by reason.
    seconds : float
        Wall-clock time of this run, from the call to the manifest.
    images_per_second : float
        Images that this run processed, per second of that time.
    bytes_read, bytes_written : int
        Size of the images, and of the parts.
    parts : int
        Number of Parquet parts.
    already_done : bool
        Whether the run had nothing to do.
    changes : Changes, optional
        The changes that an update or a retry found.
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
    """The changes that an update or a retry found.

    Attributes
    ----------
    new, changed, deleted : int
        Number of images. Changed images have another version, such as a later time, even if their bytes are equal.
    inferred : int
        Number of images that went through the model.
    """

    new: int
    changed: int
    deleted: int
    inferred: int


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Show nothing."""


def step(doing: str, done_bytes: int = 0, total_bytes: int = 0) -> Progress:
    """Return the progress of a step before embedding, such as a download; 0 bytes if unknown."""
    return Progress(stage="preparing", doing=doing, done_bytes=done_bytes, total_bytes=total_bytes)


# -- showing progress ----------------------------------------------------------------------------------------

_REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def show_progress(progress: bool | OnProgress) -> Iterator[OnProgress]:
    """Yield the callable that a public function passes its progress to.

    Parameters
    ----------
    progress : bool or callable
        True shows one line in a terminal or notebook, and nothing elsewhere. False shows nothing. A callable gets
        a `Progress` several times a second.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield ignore_progress
    elif _is_notebook():
        yield _Throttled(_NotebookLine())
    elif sys.stderr.isatty():  # Rich would also accept FORCE_COLOR
        with _terminal_line() as show:
            yield _Throttled(show)
    else:
        yield _Throttled(ignore_progress)


class _Throttled:
    """Passes on progress a few times a second, and prints each warning once."""

    def __init__(self, show: OnProgress) -> None:
        self._show, self._shown_at, self._warnings = show, 0.0, set[str]()

    def __call__(self, progress: Progress) -> None:
        if progress.warning and progress.warning not in self._warnings:
            self._warnings.add(progress.warning)
            sys.stderr.write(f"featurepress: {progress.warning}\n")
        now = time.monotonic()
        if now - self._shown_at > _REFRESH_SECONDS or progress.stage == "done":
            self._shown_at = now
            self._show(progress)


@contextlib.contextmanager
def _terminal_line() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    with Live(Text("starting …"), console=screen, auto_refresh=False, transient=True) as live:
        yield lambda progress: live.update(_shown(progress), refresh=True)


def _is_notebook() -> bool:
    """Whether this is a Jupyter kernel, which shows HTML; IPython in a terminal does not."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


class _NotebookLine:
    """A line of text with a bar below the cell of a notebook."""

    def __init__(self) -> None:
        self._display: Any = None

    def __call__(self, progress: Progress) -> None:
        from html import escape

        from IPython.display import HTML, display

        is_step = progress.stage == "preparing"
        done = progress.done_bytes if is_step else progress.embedded + progress.failed
        total = progress.total_bytes if is_step else progress.listed
        bar = f'<progress value="{done}" max="{total}"></progress> ' if total else ""
        line = HTML(f"{bar}<code>{escape(_as_text(progress))}</code>")
        if self._display is None:
            self._display = display(line, display_id=True)
        else:
            self._display.update(line)


def _shown(progress: Progress) -> RenderableType:
    """Return the line for a terminal, with a bar if a number of bytes is known."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if progress.stage != "preparing" or not progress.total_bytes:
        return Text(_as_text(progress))
    line = Table.grid(padding=(0, 1))
    sizes = f"{format_bytes(progress.done_bytes)} of {format_bytes(progress.total_bytes)}"
    bar = ProgressBar(total=progress.total_bytes, completed=progress.done_bytes, width=30)
    line.add_row(Text(progress.doing, overflow="ellipsis", no_wrap=True), bar, Text(sizes, no_wrap=True))
    return line


def _as_text(progress: Progress) -> str:
    if progress.stage == "preparing":
        return f"{progress.doing} …"
    done = progress.embedded + progress.failed
    if progress.stage == "done":
        return f"{done:,} images done, {progress.failed:,} failed"
    if progress.stage == "exporting":
        return f"{done:,} images embedded, exporting"
    speed = progress.images_per_second
    of = f"{progress.listed:,}{'+' if progress.listing else ''}"
    line = f"{progress.stage} {done:,} of {of} images · {speed:,.0f} images/s · {progress.failed:,} failed"
    left = progress.listed - done
    if speed > 0 and left > 0:
        line += f" · {'at least ' if progress.listing else ''}{format_seconds(left / speed)} left"
    return line


def format_bytes(n_bytes: float) -> str:
    """Return a size as text, such as ``5.2 MB``."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} TB"


def format_seconds(seconds: float) -> str:
    """Return a time as text, such as ``3.4 s``, ``2 min 5 s`` or ``3 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
