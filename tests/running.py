"""Run featurepress in its own processes, and check the files that it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import pyarrow.parquet as pq

import featurepress as fp
from featurepress.cli.main import main
from featurepress.demo.orchard import draw_images
from featurepress.engines import Task
from featurepress.errors import StoppedError
from featurepress.features.feature_set import FeatureSet
from featurepress.ledger import Plan
from featurepress.runs.verbs import DEFAULT_OUT, Estimate
from featurepress.settings import ListingSettings
from featurepress.sources import describe
from featurepress.specs import BackboneSpec, SourceSpec
from featurepress.storage import FolderStorage, Storage
from featurepress.testing import InlineEngine, draft_plan

Result = TypeVar("Result")


class Watched(InlineEngine):
    """Record which tasks run for which shards; stop after `stop_after` of them."""

    def __init__(self, stop_after: int = 10**6) -> None:
        self.tasks: list[tuple[Any, int]] = []
        self.stop_after = stop_after

    @property
    def shards(self) -> list[int]:
        return [shard for _, shard in self.tasks]

    def run_one(self, task: Task[Result], plan: Plan, shard: int) -> Result:
        if len(self.tasks) == self.stop_after:
            raise StoppedError("enough")
        self.tasks.append((task, shard))
        return super().run_one(task, plan, shard)


COMMAND = (sys.executable, "-m", "featurepress")
TIMEOUT_SECONDS = 120  # against hanging only


# -- images --------------------------------------------------------------------------------------------------


def draw(folder: Path, n: int, *, image_size_px: int = 24, broken: bool = False) -> Path:
    """Draw `n` small images; with `broken`, add three files that cannot be decoded."""
    paths = draw_images(folder, n, image_size_px=image_size_px)
    if broken:
        (folder / "empty.jpg").write_bytes(b"")
        (folder / "list.jpg").write_text("6 bananas")
        (folder / "truncated.jpg").write_bytes(paths[0].read_bytes()[:300])
    return folder


def draft(
    out: Path | Storage, *sources: Path | SourceSpec, backbone: BackboneSpec | None = None, **options: Any
) -> Plan:
    """Plan to embed folders into `out` with the fake backbone."""
    storage = FolderStorage(str(out)) if isinstance(out, Path) else out
    listing = ListingSettings(**{name: options[name] for name in ("all_files",) if name in options})
    specs = describe(list(sources), listing, destination=storage.location)
    return draft_plan(storage, *specs, backbone=backbone, **options)


def embed(sources: Any, out: Any = DEFAULT_OUT, **options: Any) -> FeatureSet:
    """Embed with the model that needs no network."""
    return fp.embed(sources, out, **{"model": "embedded", **options})


def estimate(sources: Any, out: Any = DEFAULT_OUT, **options: Any) -> Estimate:
    """Estimate with the model that needs no network."""
    return fp.estimate(sources, out, **{"model": "embedded", **options})


# -- processes -----------------------------------------------------------------------------------------------


def run_cli(
    *arguments: str | Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with standard input closed and without a terminal."""
    with started(*arguments, cwd=cwd, environment=environment) as process:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_here(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the time of its imports."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    argv, hook = sys.argv, sys.unraisablehook
    sys.argv = ["featurepress", *_with_model(arguments)]
    code: Any = None
    try:
        with contextlib.chdir(cwd or "."), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv, sys.unraisablehook = argv, hook
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def _with_model(arguments: Sequence[str | Path]) -> list[str]:
    """Add the model that needs no network to an embed that names none."""
    if arguments and arguments[0] == "embed" and "--model" not in arguments:
        arguments = ("embed", "--model", "embedded", *arguments[1:])
    return [str(argument) for argument in arguments]


@contextlib.contextmanager
def started(
    *arguments: str | Path,
    cwd: Path | None = None,
    command: Sequence[str] = COMMAND,
    stderr: int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a new session; kill all its processes at the end."""
    process = subprocess.Popen(
        [*command, *_with_model(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        cwd=cwd,
        env={**clean_environment(), **(environment or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for member in session_of(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that change the colours or width of the output."""
    colours = ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TERM")
    return {**{name: value for name, value in os.environ.items() if name not in colours}, "TERM": "xterm"}


def session_of(leader: int) -> list[psutil.Process]:
    """Return the running processes of the session that `leader` started, with its workers."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def workers_of(leader: int) -> list[psutil.Process]:
    """Return the processes of a run except its driver, oldest first."""
    return sorted((p for p in session_of(leader) if p.pid != leader), key=lambda p: p.pid)


def wait_until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait until a condition is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} seconds for {what}")
        time.sleep(0.003)


def wait_for_no_orphans(leader: int) -> None:
    """Wait until all processes of a run whose driver has ended are gone."""
    wait_until(lambda: not session_of(leader), f"the end of the workers of {leader}", 20)


def interrupt(process: subprocess.Popen[str], number: signal.Signals, *, group: bool = False) -> tuple[str, str]:
    """Send a signal to the driver, or to all processes as a terminal does; return the output."""
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    wait_for_no_orphans(process.pid)
    return out, err


# -- files of a destination ----------------------------------------------------------------------------------


class Row(NamedTuple):
    """One row of a part, features as bytes so that equal means bit-equal."""

    label: str | None
    width: int
    height: int
    sha256: str
    features: bytes


def read_rows(out: Path) -> dict[str, Row]:
    """Read the parts by a glob; fail if a uri occurs twice."""
    rows: dict[str, Row] = {}
    for path in sorted(out.glob("features/*.parquet")):
        table = pq.read_table(path)
        labels = table["label"].to_pylist() if "label" in table.column_names else [None] * len(table)
        width = table.schema.field("features").type.list_size
        features = table["features"].combine_chunks().flatten().to_numpy().reshape(len(table), width)
        for i, values in enumerate(table.select(["uri", "width", "height", "sha256"]).to_pylist()):
            uri = values.pop("uri")
            assert uri not in rows, f"{uri} occurs twice"
            rows[uri] = Row(label=labels[i], features=features[i].tobytes(), **values)
    return rows


def read_failures(out: Path) -> list[tuple[str, str, str]]:
    """Read the failures (uri, stage, reason) in the order of the parts."""
    return [
        (row["uri"], row["stage"], row["reason"])
        for path in sorted(out.glob("failures/*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def read_footers(out: Path) -> list[dict[str, Any]]:
    """Read the footer of each part: receipt and failures."""
    return [
        json.loads(pq.read_metadata(path).metadata[b"featurepress"])
        for path in sorted(out.glob("features/*.parquet"))
    ]


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_bytes())


def names_below(folder: Path) -> list[str]:
    """Return the files below a folder, hidden ones included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the time and hash of each file below a folder, and each folder."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns if path.is_file() else 0,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.rglob("*")
    }


def leftovers(out: Path) -> list[str]:
    """Return the files that a finished run must not leave: hidden, temporary, and of attempts."""
    return [
        name
        for name in names_below(out)
        if name.startswith("attempts/") or Path(name).name.startswith(".") or "tmp" in name
    ]


def assert_same_result(out: Path, undisturbed: Path) -> None:
    """Check that a finished destination has the rows, failures and file names of another, and no more."""
    assert read_rows(out) == read_rows(undisturbed)
    assert read_failures(out) == read_failures(undisturbed)
    assert leftovers(out) == []
    assert names_below(out) == names_below(undisturbed)
    totals = [
        {name: read_json(where / "manifest.json")[name] for name in ("listed", "embedded", "failed", "parts")}
        for where in (out, undisturbed)
    ]
    assert totals[0] == totals[1]


def assert_only_whole_parts(out: Path) -> None:
    """Check that every file with the name of a part is a complete Parquet file."""
    for path in [*out.glob("features/*"), *out.glob("failures/*")]:
        if not path.name.startswith("."):
            pq.ParquetFile(path).read()
