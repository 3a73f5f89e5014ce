"""Run tasks on a Spark cluster: one shard a task, a job per wave of shards, nothing but results comes back.

It goes through the DataFrame API, so that a session of any kind serves: classic, Connect, Databricks. What runs on
the workers is `featurepress.engines.worker`.

The life of a wave:

1. A thread takes shards from the caller as they are listed. What has come by the time that a job can begin is a
   wave: a few shards at first, many later.
2. A job runs each of its shards as a task (as many shards as a task has cores, where that is more than one).
   Two jobs are under way at once, so that the cores which the end of one leaves idle are taken by the next.
3. Spark runs tasks of lost workers again, speculates if it is told to, and gives all results at the end of the job.
   Until then progress is told from the receipts that appear at the destination.
4. A job that fails with an exception of ours raises it here; one that lost too many workers is run again as a
   whole: what stands of its shards is only looked at.
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
from featurepress.engines.base import Task
from featurepress.engines.java import require_java
from featurepress.engines.local import MAX_DEATHS
from featurepress.engines.master import require_answer
from featurepress.engines.memory import short_of_memory
from featurepress.engines.worker import packed, unmarked
from featurepress.errors import EngineError, WorkerDeathError
from featurepress.ledger import Plan

Result = TypeVar("Result")

MOST_SHARDS, LEAST_SHARDS = 4_096, 16  # of a job, where there are so many
SHARDS_A_CORE = 8  # of a job: enough to hide the start of the next one
JOBS_AT_ONCE = 2
_GATHER_SECONDS = 0.05  # so long a wave waits for more shards once there are some
_CANCEL_SECONDS = 1.0  # between two tries to cancel a job
_LOOK_SECONDS = 2.0  # between two looks at the receipts; longer where a look takes long itself
_SCHEMA = "shard long, result binary"


class Spark:
    """Tasks of a Spark session.

    Parameters
    ----------
    session : SparkSession, optional
        A session that is there: of a notebook, of Databricks, of EMR, or of Spark Connect. It is used as it is, and
        stays. By default the active one, or one that is made when it is first needed and stopped by `close`.
    master : str, optional
        Of a session that is made: ``local[4]``, ``spark://host:7077``, ``k8s://…``, ``yarn``. By default what
        ``spark-submit`` or spark-defaults.conf say, else ``local[*]``.
    conf : mapping, optional
        Spark settings of a session that is made.

    Raises
    ------
    EngineError
        There is no pyspark, no Java, or no answer from the master.

    Notes
    -----
    The driver holds the numbers of the shards that are under way and their receipts, less than 1 kB a shard: some
    megabytes, whatever the number of images. A task costs Spark about 10 ms of the driver's time.
    """

    is_cluster = True

    def __init__(
        self, session: Any = None, *, master: str | None = None, conf: Mapping[str, str] | None = None
    ) -> None:
        self._session = session
        self._owns = False
        self._master, self._conf = master, dict(conf or {})

    def __enter__(self) -> Spark:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def session(self) -> Any:
        """The Spark session; made if need be."""
        if self._session is None:
            self._session, self._owns = _session(self._master, self._conf)
        return self._session

    def connect(self) -> None:
        """Make the session, if there is none yet."""
        self.session  # noqa: B018 - the property makes it

    def run(
        self,
        task: Task[Result],
        plan: Plan,
        shards: Iterable[int],
        on_message: Callable[[Any], None] = lambda message: None,
    ) -> Generator[Result]:
        """Run `task` for each shard; see `Engine`."""
        work = packed(__version__, task, plan)
        run = _Run(self.session, work, shards, _Watch(task, plan, on_message))
        try:
            yield from run.results()
        finally:
            run.stop()

    def close(self) -> None:
        """Stop the session, if it was made here."""
        if self._owns:
            self._session.stop()
            self._session, self._owns = None, False


class _Run:
    """One run of a task; see the life of a wave."""

    def __init__(self, session: Any, work: bytes, shards: Iterable[int], watch: _Watch) -> None:
        self._session, self._work, self._watch = session, work, watch
        self._shards = iter(shards)
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._most = _shards_a_job(session)
        self._room = threading.Semaphore(self._most * (JOBS_AT_ONCE + 1))
        self._waiting: list[int] = []
        self._jobs: dict[threading.Thread, list[int]] = {}
        self._n_lost = 0  # jobs in a row that lost their workers
        self._all_taken = self._stopping = False
        self._tag = f"featurepress-{secrets.token_hex(6)}"
        self._taker = threading.Thread(target=self._take, name="featurepress-shards", daemon=True)

    def results(self) -> Iterator[Any]:
        """Yield the results, wave by wave."""
        self._taker.start()
        while not self._all_taken or self._waiting or self._jobs:
            try:
                kind, value = self._events.get(
                    timeout=_GATHER_SECONDS if self._may_begin() else self._watch.seconds
                )
            except queue.Empty:
                if self._may_begin():
                    self._begin()
                self._watch.look(shard for wave in self._jobs.values() for shard in wave)
                continue
            if kind == "shard":
                self._waiting.append(value)
                if self._may_begin() and len(self._waiting) >= self._most:
                    self._begin()
            elif kind == "taken":
                self._all_taken = True
            elif kind == "error":
                raise value
            else:
                yield from self._ended(*value)

    def _may_begin(self) -> bool:
        return bool(self._waiting) and len(self._jobs) < JOBS_AT_ONCE

    def _begin(self) -> None:
        wave, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        job = threading.Thread(target=self._drive, args=(wave,), name="featurepress-job", daemon=True)
        self._jobs[job] = wave
        job.start()

    def _ended(self, job: threading.Thread, found: list[tuple[int, bytes]] | Exception) -> Iterator[Any]:
        """Give the results of a job that has ended, or see to what became of it."""
        wave = self._jobs.pop(job)
        if isinstance(found, Exception):
            self._n_lost += 1
            _require_another_try(found, self._n_lost, self._watch.on_message)
            self._waiting = wave + self._waiting
            return
        self._n_lost = 0
        for shard, result in found:
            self._room.release()
            self._watch.forget(shard)
            yield pickle.loads(result)

    def stop(self) -> None:
        """Drop what is under way."""
        self._stopping = True
        self._room.release()  # whoever waits for room sees that it is over
        for job in self._jobs:
            while job.is_alive():  # again, since it may have begun only after the last time
                with contextlib.suppress(Exception):  # the session may be gone
                    _cancel(self._session, self._tag)
                job.join(_CANCEL_SECONDS)
        if self._taker.is_alive():
            self._taker.join()

    # -- in threads of their own -----------------------------------------------------------------------------

    def _take(self) -> None:
        try:
            for shard in self._shards:
                self._events.put(("shard", shard))
                self._room.acquire()
                if self._stopping:
                    break
            self._events.put(("taken", None))
        except BaseException as error:  # noqa: BLE001 - raised again where the results are taken
            self._events.put(("error", error))

    def _drive(self, wave: Sequence[int]) -> None:
        try:
            _tag(self._session, self._tag)
            found: Any = _job(self._session, self._work, wave)
        except Exception as error:  # noqa: BLE001 - seen to where the results are taken
            found = error
        self._events.put(("done", (threading.current_thread(), found)))


class _Watch:
    """Tells how the shards under way get on, from the receipts that appear at the destination."""

    def __init__(self, task: Task[Any], plan: Plan, on_message: Callable[[Any], None]) -> None:
        self._plan, self.on_message = plan, on_message
        self._leaves_receipts = getattr(task, "leaves_receipts", False)
        self._told: set[int] = set()
        self._looked_at = time.monotonic()
        self.seconds = _LOOK_SECONDS

    def look(self, shards: Iterable[int]) -> None:
        """Look at the receipts, if the last look is long enough ago."""
        begun = time.monotonic()
        if not self._leaves_receipts or begun - self._looked_at < self.seconds:
            return
        new = sorted((set(shards) - self._told) & ledger.finished_shards(self._plan))
        for receipt in ledger.read_receipts(self._plan, new):
            if receipt is not None:
                self._told.add(receipt.shard)
                self.on_message(("images", receipt.shard, receipt.embedded, receipt.failed))
        self._looked_at = time.monotonic()
        self.seconds = max(_LOOK_SECONDS, 10 * (self._looked_at - begun))

    def forget(self, shard: int) -> None:
        """Take a shard off the list: its result has come."""
        self._told.discard(shard)


# -- a job ---------------------------------------------------------------------------------------------------


def _job(session: Any, work: bytes, wave: Sequence[int]) -> list[tuple[int, bytes]]:
    """Run a job with a task for each shard, or for as many shards as a task has cores."""
    cores = _cores_of_a_task(session)
    n_tasks = -(-len(wave) // cores)
    frame = session.range(0, n_tasks, 1, n_tasks).mapInArrow(_mapper(work, list(wave), cores), _SCHEMA)
    return [(row.shard, bytes(row.result)) for row in frame.collect()]


def _shards_a_job(session: Any) -> int:
    """Give the size of a full wave: enough for all cores, few enough that results come soon."""
    if session.conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return MOST_SHARDS  # the more are waiting, the more cores come
    context = _context(session)
    if context is None:  # Spark Connect does not say how many cores there are
        return MOST_SHARDS // 4
    return int(min(MOST_SHARDS, max(LEAST_SHARDS, SHARDS_A_CORE * context.defaultParallelism)))


def _cores_of_a_task(session: Any) -> int:
    return max(1, int(session.conf.get("spark.task.cpus", "1")))


def _mapper(work: bytes, wave: Sequence[int], cores: int) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """Give the function that Spark runs on the rows of a task: numbers of cuts through the wave.

    It travels by value, and so can say what is wrong where there is no featurepress.
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


def _require_another_try(
    error: Exception, n_lost: int, on_message: Callable[[Any], None] = lambda message: None
) -> None:
    """Raise what a failed job says, unless its workers were lost and may be there again."""
    text = str(error)
    if (ours := unmarked(text, on_message)) is not None:
        raise ours
    if lacking := _lacking(text):
        raise EngineError(lacking) from error
    is_lost = re.search(_LOST, text) is not None
    if is_lost and n_lost < MAX_DEATHS:
        return
    if starved := short_of_memory(error, _FOR_MEMORY, where=_host_in(text)):
        raise starved from error
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    hint = f" If workers were killed for memory, {_FOR_MEMORY}." if is_lost else ""
    raise WorkerDeathError(f"Spark gave up: {first[:300].rstrip('.')}.{hint}") from error


def _lacking(text: str) -> str:
    """Give what to tell of workers that lack something which no other try would bring; "" if that is not it."""
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
    """Give the host of which Spark tells that a task failed there; "" if it does not."""
    found = re.search(r"\(TID \d+\) \((\S+) executor", text)
    return found[1] if found else ""


_FOR_PYTHON = "Install featurepress there, or send an environment along (spark.archives); docs/spark.md tells how."
_FOR_MEMORY = (
    "raise spark.executor.memoryOverhead (and spark.executor.pyspark.memory, if it is set) or lower "
    "spark.executor.cores"
)
# A worker or an executor went away; a task that did not is no reason to try again.
_LOST = (
    r"Python worker (exited|failed|.*crash)|ExecutorLostFailure|Executor.{0,40} (lost|exited)|Worker lost|"
    r"EOFException|Connection reset|FetchFailed|decommission"
)


# -- a session -----------------------------------------------------------------------------------------------


def _session(master: str | None, conf: Mapping[str, str]) -> tuple[Any, bool]:
    """Give the active session or a new one, and whether it is new."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise EngineError(
            f"The engine 'spark' needs pyspark ({error}). Install it with: pip install 'featurepress[spark]'"
        ) from error
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
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(f"No Spark session can be made: {first[:300]}") from error
    return session, True


def _defaults(master: str | None) -> dict[str, str]:
    """Give what a new session is told unless the user says otherwise."""
    quiet = {"spark.ui.showConsoleProgress": "false"}
    if not (master or "").startswith("local"):
        return quiet | {"spark.log.level": "ERROR"}
    if "SPARK_CONF_DIR" not in os.environ:
        log = Path(__file__).with_name("log4j2.properties").as_uri()
        quiet |= {"spark.driver.defaultJavaOptions": f"-Dlog4j2.configurationFile={log}"}
    # Nothing of it is for other machines.
    quiet |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return quiet | {"spark.ui.enabled": "false"}


def _tag(session: Any, tag: str) -> None:
    """Name the jobs of this thread, so that they can be cancelled."""
    if (context := _context(session)) is None:
        session.addTag(tag)
    else:  # a classic session's tags name other things
        context.setJobGroup(tag, "featurepress", interruptOnCancel=False)


def _cancel(session: Any, tag: str) -> None:
    if (context := _context(session)) is None:
        session.interruptTag(tag)
    else:
        context.cancelJobGroup(tag)


def _context(session: Any) -> Any:
    """Give the SparkContext of a classic session; None with Spark Connect."""
    try:
        return session.sparkContext
    except AttributeError:
        return None
