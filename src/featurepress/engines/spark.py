"""Run tasks on a Spark cluster, with the DataFrame API that every session has: classic, Connect, Databricks.

A job runs a wave: the shards that are listed when it can start, each as a task. Two jobs run at once: the second
one uses the cores that are idle at the end of the first. Spark returns all results at the end of a job; until then
the receipts show the progress. A job that lost its workers runs again; finished shards are not embedded again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from featurepress import ledger
from featurepress._version import __version__
from featurepress.engines.base import OnMessage, Task, ignore_message
from featurepress.engines.cluster import ClusterEngine, ShardTaker, first_line, missing_library
from featurepress.engines.local import MAX_DEATHS
from featurepress.engines.memory import short_of_memory
from featurepress.engines.preflight import require_answer, require_java
from featurepress.engines.worker import packed, unmarked
from featurepress.errors import EngineError, WorkerDeathError
from featurepress.ledger import Plan

Result = TypeVar("Result")

MAX_SHARDS, MIN_SHARDS = 4_096, 16  # of a full job
SHARDS_PER_CORE = 8  # of a job: enough to hide the start of the next one
JOBS_AT_ONCE = 2
_GATHER_SECONDS = 0.05  # a wave waits this long for more shards
_CANCEL_SECONDS = 1.0  # between two attempts to cancel a job
_POLL_SECONDS = 2.0  # between two checks of the receipts, or ten times as long as a check takes
_SCHEMA = "shard long, result binary"


class Spark(ClusterEngine):
    """A Spark session.

    Parameters
    ----------
    session : SparkSession, optional
        An existing session of a notebook, Databricks, EMR or Spark Connect, which stays open. By default the active
        session, or a new one that is created when it is first needed and stopped by `close`.
    master : str, optional
        Of a new session: ``local[4]``, ``spark://host:7077``, ``k8s://…``, ``yarn``. By default that of
        ``spark-submit`` or spark-defaults.conf, else ``local[*]``.
    conf : mapping, optional
        Spark settings of a new session.

    Raises
    ------
    EngineError
        pyspark or Java is missing, or the master does not answer.

    Notes
    -----
    The driver holds the numbers and receipts of the shards in progress, less than 1 kB per shard: some megabytes
    for any number of images. A task takes about 10 ms of the driver's time.
    """

    def __init__(
        self, session: Any = None, *, master: str | None = None, conf: Mapping[str, str] | None = None
    ) -> None:
        self._session = session
        self._owns = False
        self._master, self._conf = master, dict(conf or {})

    @property
    def session(self) -> Any:
        """The Spark session; created on first use."""
        if self._session is None:
            self._session, self._owns = _session(self._master, self._conf)
        return self._session

    def connect(self) -> None:
        """Create the session, if there is none."""
        self.session  # noqa: B018 - the property creates it

    def run(
        self, task: Task[Result], plan: Plan, shards: Iterable[int], on_message: OnMessage = ignore_message
    ) -> Generator[Result]:
        """Run `task` for each shard; see `Engine`."""
        work = packed(__version__, task, plan)
        run = _Run(self.session, work, shards, _ReceiptPoller(task, plan, on_message))
        try:
            yield from run.results()
        finally:
            run.stop()

    def close(self) -> None:
        """Stop the session, if this object has created it."""
        if self._owns:
            self._session.stop()
            self._session, self._owns = None, False


class _Run:
    """One run of a task, wave by wave."""

    def __init__(self, session: Any, work: bytes, shards: Iterable[int], poller: _ReceiptPoller) -> None:
        self._session, self._work, self._poller = session, work, poller
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._wave_size = shards_per_job(session)
        self._taker = ShardTaker(shards, self._events, self._wave_size * (JOBS_AT_ONCE + 1))
        self._waiting: list[int] = []
        self._jobs: dict[threading.Thread, list[int]] = {}
        self._n_lost = 0  # jobs in a row that lost their workers
        self._all_listed = False
        self._tag = f"featurepress-{secrets.token_hex(6)}"

    def results(self) -> Iterator[Any]:
        """Yield the results, wave by wave."""
        while not self._all_listed or self._waiting or self._jobs:
            try:
                kind, value = self._events.get(
                    timeout=_GATHER_SECONDS if self._can_start() else self._poller.seconds
                )
            except queue.Empty:
                if self._can_start():
                    self._start_job()
                self._poller.poll(shard for wave in self._jobs.values() for shard in wave)
                continue
            if kind == "shard":
                self._waiting.append(value)
                if self._can_start() and len(self._waiting) >= self._wave_size:
                    self._start_job()
            elif kind == "taken":
                self._all_listed = True
            elif kind == "error":
                raise value
            else:
                yield from self._ended(*value)

    def _can_start(self) -> bool:
        return bool(self._waiting) and len(self._jobs) < JOBS_AT_ONCE

    def _start_job(self) -> None:
        wave, self._waiting = self._waiting[: self._wave_size], self._waiting[self._wave_size :]
        job = threading.Thread(target=self._drive, args=(wave,), name="featurepress-job", daemon=True)
        self._jobs[job] = wave
        job.start()

    def _ended(self, job: threading.Thread, found: list[tuple[int, bytes]] | Exception) -> Iterator[Any]:
        """Yield the results of a job; queue its shards again if it lost its workers."""
        wave = self._jobs.pop(job)
        if isinstance(found, Exception):
            self._n_lost += 1
            raise_unless_lost(found, self._n_lost, self._poller.on_message)
            self._waiting = wave + self._waiting
            return
        self._n_lost = 0
        for shard, result in found:
            self._taker.add_slots()
            self._poller.forget(shard)
            yield pickle.loads(result)

    def stop(self) -> None:
        """Drop the shards in progress."""
        self._taker.stop()
        for job in self._jobs:
            while job.is_alive():  # again: it may have started after the last attempt
                with contextlib.suppress(Exception):  # the session may be gone
                    _cancel(self._session, self._tag)
                job.join(_CANCEL_SECONDS)
        self._taker.join()

    def _drive(self, wave: Sequence[int]) -> None:
        """Run a job, in a thread."""
        try:
            _tag(self._session, self._tag)
            found: Any = _job(self._session, self._work, wave)
        except Exception as error:  # noqa: BLE001 - handled by the iterator
            found = error
        self._events.put(("done", (threading.current_thread(), found)))


class _ReceiptPoller:
    """Reports the progress of the shards in progress, from their receipts at the destination."""

    def __init__(self, task: Task[Any], plan: Plan, on_message: OnMessage) -> None:
        self._plan, self.on_message = plan, on_message
        self._leaves_receipts = getattr(task, "leaves_receipts", False)
        self._reported: set[int] = set()
        self._polled_at = time.monotonic()
        self.seconds = _POLL_SECONDS

    def poll(self, shards: Iterable[int]) -> None:
        """Check the receipts, if the last check is long enough ago."""
        started = time.monotonic()
        if not self._leaves_receipts or started - self._polled_at < self.seconds:
            return
        new = sorted((set(shards) - self._reported) & ledger.finished_shards(self._plan))
        for receipt in ledger.read_receipts(self._plan, new):
            if receipt is not None:
                self._reported.add(receipt.shard)
                self.on_message(("images", receipt.shard, receipt.embedded, receipt.failed))
        self._polled_at = time.monotonic()
        self.seconds = max(_POLL_SECONDS, 10 * (self._polled_at - started))

    def forget(self, shard: int) -> None:
        """Forget a shard whose result has been returned."""
        self._reported.discard(shard)


# -- a job ---------------------------------------------------------------------------------------------------


def _job(session: Any, work: bytes, wave: Sequence[int]) -> list[tuple[int, bytes]]:
    """Run a job with a task for each shard, or for as many shards as a task has cores."""
    cores = cores_per_task(session)
    n_tasks = -(-len(wave) // cores)
    frame = session.range(0, n_tasks, 1, n_tasks).mapInArrow(_mapper(work, list(wave), cores), _SCHEMA)
    return [(row.shard, bytes(row.result)) for row in frame.collect()]


def shards_per_job(session: Any) -> int:
    """Return the size of a full wave: enough for all cores, few enough for frequent results."""
    if session.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return MAX_SHARDS  # Spark adds cores for waiting tasks
    context = _context(session)
    if context is None:  # Spark Connect does not report the number of cores
        return MAX_SHARDS // 4
    return int(min(MAX_SHARDS, max(MIN_SHARDS, SHARDS_PER_CORE * context.defaultParallelism)))


def cores_per_task(session: Any) -> int:
    """Return the number of cores of a task, and so of the shards that it runs at once."""
    return max(1, int(session.conf.get("spark.task.cpus", "1")))


def _mapper(work: bytes, wave: Sequence[int], cores: int) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Return the function that Spark runs on the rows of a task; a row is the number of a slice of the wave.

    It is pickled by value, to report a worker without featurepress.
    """
    for_memory = _FOR_MEMORY

    def run(batches: Iterator[Any]) -> Iterator[Any]:
        import socket
        import sys

        import pyarrow as pa

        try:
            from featurepress.engines import worker
        except ImportError as error:
            text = f"<no featurepress: {socket.gethostname()}: {sys.executable}: {error}>"
            raise RuntimeError(text) from None
        for batch in batches:
            for number in batch.column(0).to_pylist():
                own = wave[number * cores : (number + 1) * cores]
                found = worker.outcomes(work, own, cores, for_memory)
                shards, results = zip(*found, strict=True)
                columns = [pa.array(shards, pa.int64()), pa.array(results, pa.binary())]
                yield pa.RecordBatch.from_arrays(columns, ["shard", "result"])

    return run


def raise_unless_lost(error: Exception, n_lost: int, on_message: OnMessage = ignore_message) -> None:
    """Raise the error of a failed job, unless it lost its workers and can run again."""
    text = str(error)
    if (ours := unmarked(text, on_message)) is not None:
        raise ours
    if message := _missing_on_worker(text):
        raise EngineError(message) from error
    is_lost = re.search(_LOST, text) is not None
    if is_lost and n_lost < MAX_DEATHS:
        return
    if out_of_memory := short_of_memory(error, _FOR_MEMORY, where=_host_in(text)):
        raise out_of_memory from error
    hint = f" If workers were killed for memory, {_FOR_MEMORY}." if is_lost else ""
    raise WorkerDeathError(f"The Spark job failed: {first_line(error)}.{hint}") from error


def _missing_on_worker(text: str) -> str:
    """Return the message for workers without Python or a library, where a retry is useless; "" for other errors."""
    worker = f"The worker {host}" if (host := _host_in(text)) else "A worker"
    if match := re.search(r"<no featurepress: (.*?): (.*?): (.*?)>", text):
        host, python, reason = match.groups()
        return f"The worker {host} cannot import featurepress ({reason}; its Python is '{python}'). {_FOR_PYTHON}"
    if match := re.search(r"ModuleNotFoundError: (No module named '\w+')", text):
        return f"{worker} cannot run Python functions ({match[1]}). {_FOR_PYTHON}"
    if match := re.search(r"PYTHON_VERSION_MISMATCH\W+(.*?different.*?)(?:, PySpark|$)", text, re.MULTILINE):
        return f"{worker} has another Python than the driver: {match[1].rstrip('.')}. {_FOR_PYTHON}"
    if match := re.search(r'Cannot run program "(.*?)"', text):
        return f"{worker} has no Python at '{match[1]}' (PYSPARK_PYTHON, spark.pyspark.python). {_FOR_PYTHON}"
    return ""


def _host_in(text: str) -> str:
    """Return the host on which a task failed; "" if Spark does not name it."""
    found = re.search(r"\(TID \d+\) \((\S+) executor", text)
    return found[1] if found else ""


_FOR_PYTHON = "Install featurepress there, or send an environment with the job (spark.archives): see docs/spark.md."
_FOR_MEMORY = (
    "raise spark.executor.memoryOverhead (and spark.executor.pyspark.memory, if it is set) or lower "
    "spark.executor.cores"
)
# A worker or an executor was lost; other errors would happen again.
_LOST = (
    r"Python worker (exited|failed|.*crash)|ExecutorLostFailure|Executor.{0,40} (lost|exited)|Worker lost|"
    r"EOFException|Connection reset|FetchFailed|decommission"
)


# -- a session -----------------------------------------------------------------------------------------------


def _session(master: str | None, conf: Mapping[str, str]) -> tuple[Any, bool]:
    """Return the active session or a new one, and whether it is new."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise missing_library("spark", "pyspark", error) from error
    if master is None and not conf and (active := SparkSession.getActiveSession()) is not None:
        return active, False
    remote = (master or "").startswith("sc://") or "SPARK_REMOTE" in os.environ
    if not remote:
        require_java()
    require_answer(master or "")
    builder = SparkSession.builder.appName("featurepress")
    for name, value in {**_defaults(master), **conf}.items():
        builder = builder.config(name, value)
    if master:
        builder = builder.remote(master) if remote else builder.master(master)
    if (master or "local").startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        raise EngineError(f"A Spark session cannot be created: {first_line(error)}.") from error
    return session, True


def _defaults(master: str | None) -> dict[str, str]:
    """Return the settings of a new session that the user has not set."""
    quiet = {"spark.ui.showConsoleProgress": "false"}
    if not (master or "").startswith("local"):
        return quiet | {"spark.log.level": "ERROR"}
    if "SPARK_CONF_DIR" not in os.environ:
        log = Path(__file__).with_name("log4j2.properties").as_uri()
        quiet |= {"spark.driver.defaultJavaOptions": f"-Dlog4j2.configurationFile={log}"}
    # A local session needs no port for other machines.
    quiet |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return quiet | {"spark.ui.enabled": "false"}


def _tag(session: Any, tag: str) -> None:
    """Tag the jobs of this thread, so that they can be cancelled."""
    if (context := _context(session)) is None:
        session.addTag(tag)
    else:  # tags of a classic session do not cancel jobs
        context.setJobGroup(tag, "featurepress", interruptOnCancel=False)


def _cancel(session: Any, tag: str) -> None:
    if (context := _context(session)) is None:
        session.interruptTag(tag)
    else:
        context.cancelJobGroup(tag)


def _context(session: Any) -> Any:
    """Return the SparkContext of a classic session; None with Spark Connect."""
    try:
        return session.sparkContext
    except AttributeError:
        return None
