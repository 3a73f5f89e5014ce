"""Runs on clusters in separate processes, since a process has one Spark and may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.engines.clusters.conftest import ROOT

TIMEOUT_SECONDS = 240.0

Result = TypeVar("Result")


@contextlib.contextmanager
def started(kind: str, source: Path, out: Path, *settings: str, part: int = 100) -> Iterator[subprocess.Popen[str]]:
    """Start `tests.engines.clusters.embed`; all its processes have ended at the end of the block."""
    scratch = out.with_name(out.name + "-scratch")
    scratch.mkdir(exist_ok=True)
    words = [f"spark.local.dir={scratch}", f"spark.sql.warehouse.dir={scratch}", *settings]
    environment = {
        **os.environ,
        "IMAGES_PER_PART": str(part),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_HOSTNAME": "127.0.0.1",
        "SPARK_WORKER_DIR": str(scratch),
    }
    with (scratch / "stdout").open("w") as stdout, (scratch / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engines.clusters.embed", kind, str(source), str(out), *words],
            stdout=stdout,
            stderr=stderr,
            text=True,
            cwd=scratch,
            env=environment,
            start_new_session=True,
        )
        family = [psutil.Process(process.pid)]
        try:
            yield process
            family += descendants(process.pid)
        finally:
            family += descendants(process.pid)
            process.kill()
            process.wait()
            end_all(family)


def _wait_for_port(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < end, f"nobody answers at port {port}"
        time.sleep(0.1)


def descendants(pid: int) -> list[Any]:
    """Return all descendants of a process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def end_all(family: list[psutil.Process]) -> None:
    """Kill those of some processes that still run."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, 20)


def embed(kind: str, source: Path, out: Path, *settings: str, part: int = 100) -> None:
    """Embed in a new process, and wait for its end."""
    with started(kind, source, out, *settings, part=part) as process:
        finish(process, out)


def finish(process: subprocess.Popen[str], out: Path) -> None:
    """Wait for a run to end without error."""
    code = process.wait(TIMEOUT_SECONDS)
    scratch = out.with_name(out.name + "-scratch")
    assert code == 0, (scratch / "stderr").read_text()[-3000:]


def wait_for_receipts(out: Path, n: int, process: subprocess.Popen[str]) -> None:
    """Wait until a number of shards is finished."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while len(list(out.glob("receipts/*.json"))) < n:
        assert time.monotonic() < end
        assert process.poll() is None, f"it ended with {process.returncode} before {n} shards were done"
        time.sleep(0.02)


@contextlib.contextmanager
def standalone(folder: Path, hosts: list[str]) -> Iterator[tuple[str, int]]:
    """Start a standalone cluster with a worker of one core on each host; return its master and the parent pid."""
    import pyspark

    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    master, script = f"spark://127.0.0.1:{port}", Path(pyspark.__file__).parent / "bin" / "spark-class"
    deploy, page = "org.apache.spark.deploy", ["--webui-port", "0"]
    lines = [[f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port), *page]]
    for host in hosts:
        size = ["--cores", "1", "--memory", "1g", "--work-dir", str(folder / host)]
        lines.append([f"{deploy}.worker.Worker", "--host", host, *size, *page, master])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARK_LOCAL")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "PYSPARK_PYTHON": sys.executable}
    with (folder / "log").open("w") as log:
        processes = [
            subprocess.Popen([str(script), *line], stdout=log, stderr=log, env=environment) for line in lines
        ]
    try:
        _wait_for_port(port)
        yield master, os.getpid()
    finally:
        family = [one for process in processes for one in descendants(process.pid)]
        for process in processes:
            process.kill()
            process.wait()
        end_all(family)


def kill_one(pid: int, wanted: Callable[[psutil.Process], bool]) -> str:
    """Kill a descendant of a process with SIGKILL; return its command line."""

    def kill(process: psutil.Process) -> str:
        line = " ".join(process.cmdline())
        process.send_signal(signal.SIGKILL)
        return line

    return _with_one(pid, wanted, kill)


def stop_one(pid: int, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Stop a descendant of a process with all its descendants, as on a machine that hangs; return them."""

    def stop(process: psutil.Process) -> list[psutil.Process]:
        family = [process, *process.children(recursive=True)]
        for one in family:
            one.send_signal(signal.SIGSTOP)
        return family

    return _with_one(pid, wanted, stop)


def _with_one(
    pid: int, wanted: Callable[[psutil.Process], bool], act: Callable[[psutil.Process], Result]
) -> Result:
    """Call a function with a descendant of a process, as soon as there is one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in descendants(pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                if wanted(process):
                    return act(process)
        time.sleep(0.05)
    raise AssertionError("there is no such process")


def is_python_worker(process: psutil.Process) -> bool:
    """Whether it is a Python worker of Spark: a fork of the daemon."""
    parent = process.parent()
    return "pyspark.daemon" in process.cmdline() and parent is not None and "pyspark.daemon" in parent.cmdline()


def is_executor(process: psutil.Process) -> bool:
    """Whether it is an executor's JVM."""
    return any("CoarseGrainedExecutorBackend" in word for word in process.cmdline())
