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
from typing import Any, TypeVar

from featurepress import __version__, ledger
from featurepress.engines.base import Task
from featurepress.engines.java import require_java
from featurepress.engines.local import MAX_DEATHS
from featurepress.engines.master import require_answer
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
    The driver holds the numbers of the shards that are under way and their receipts, about 2 kB a shard: some
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
        on_beat: Callable[[Any], None] = lambda news: None,
    ) -> Generator[Result]:
        """Run `task` for each shard; see `Engine`."""
        work = packed(__version__, task, plan)
        run = _Run(self.session, work, shards, _Watch(task, plan, on_beat))
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
            _require_another_try(found, self._n_lost)
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

    def __init__(self, task: Task[Any], plan: Plan, on_beat: Callable[[Any], None]) -> None:
        self._plan, self._on_beat = plan, on_beat
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
                self._on_beat(("images", receipt.shard, receipt.pressed, receipt.failed))
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
                found = worker.outcomes(work, wave[number * cores : (number + 1) * cores], cores)
                shards, results = zip(*found, strict=True)
                columns = [pa.array(shards, pa.int64()), pa.array(results, pa.binary())]
                yield pa.RecordBatch.from_arrays(columns, ["shard", "result"])

    return run


def _require_another_try(error: Exception, n_lost: int) -> None:
    """Raise what a failed job says, unless its workers were lost and may be there again."""
    text = str(error)
    if (ours := unmarked(text)) is not None:
        raise ours
    if match := re.search(r"<no featurepress: (.*?): (.*?): (.*?)>", text):
        host, python, reason = match.groups()
        raise EngineError(
            f"The worker {host} cannot import featurepress ({reason}; its Python is '{python}'). Install it there, "
            "or send an environment along (spark.archives); docs/spark.md tells how."
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if n_lost >= MAX_DEATHS or not re.search(_LOST, text):
        raise WorkerDeathError(
            f"Spark gave up: {first[:300].rstrip('.')}. If workers were killed for memory, raise "
            "spark.executor.memoryOverhead or lower spark.executor.cores."
        ) from error


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
        if not remote:
            session.sparkContext.setLogLevel("ERROR")
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EngineError(f"No Spark session can be made: {first[:300]}") from error
    return session, True


def _defaults(master: str | None) -> dict[str, str]:
    """Give what a new session is told unless the user says otherwise."""
    quiet = {"spark.ui.showConsoleProgress": "false", "spark.log.level": "ERROR"}
    if (master or "").startswith("local"):  # nothing of it is for other machines
        quiet |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        quiet |= {"spark.ui.enabled": "false"}
    return quiet


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
