"""The progress of a run, how it is shown in a terminal and in a notebook, and the summary at its end."""

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
    """Return the summary of a run that found everything done."""
    return Summary(
        **{name: manifest[name] for name in SHARED},
        seconds=time.perf_counter() - started,
        images_per_second=0.0,
        already_done=True,
    )


# -- showing progress ----------------------------------------------------------------------------------------

_REFRESH_SECONDS = 0.1


@contextlib.contextmanager
def show_progress(progress: bool | OnProgress) -> Iterator[OnProgress]:
    """Return the callable that a public function passes its progress to.

    Parameters
    ----------
    progress : bool or callable
        True shows one line in a terminal or notebook, and nothing elsewhere. False shows nothing. A callable is
        called with a `Progress` several times a second.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield ignore_progress
    elif _is_notebook():
        yield _Throttled(_NotebookLine())
    elif sys.stderr.isatty():  # whatever FORCE_COLOR says
        with _terminal_line() as show:
            yield _Throttled(show)
    else:
        yield _Throttled(lambda progress: None)


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
    """One line of text with a bar below a notebook's cell."""

    def __init__(self) -> None:
        self._display: Any = None

    def __call__(self, progress: Progress) -> None:
        from html import escape

        from IPython.display import HTML, display

        done, total = _done_of(progress)
        bar = f'<progress value="{done}" max="{total}"></progress> ' if total else ""
        line = HTML(f"{bar}<code>{escape(_as_text(progress))}</code>")
        if self._display is None:
            self._display = display(line, display_id=True)
        else:
            self._display.update(line)


def _done_of(progress: Progress) -> tuple[int, int]:
    if progress.stage == "preparing":
        return progress.done_bytes, progress.total_bytes
    return progress.embedded + progress.failed, progress.listed


def _as_text(progress: Progress) -> str:
    return f"{progress.doing} …" if progress.stage == "preparing" else _progress_text(progress)


def _shown(progress: Progress) -> RenderableType:
    """Return the live line: a bar while bytes are counted, otherwise text."""
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


def _progress_text(progress: Progress) -> str:
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
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """Return a time as text, such as ``3.4 s``, ``2 min 5 s`` or ``3 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
