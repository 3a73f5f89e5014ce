"""Functions and tasks that worker processes run in the tests; quick to import."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurepress.ledger import Plan
from featurepress.process import Child, send_message, when_abandoned
from featurepress.storage import Storage

# -- functions for a child -----------------------------------------------------------------------------------


def echo(value: Any) -> Any:
    return value


def process_id() -> int:
    return os.getpid()


def variable(name: str) -> str | None:
    return os.environ.get(name)


def noisy(value: Any) -> Any:
    print("a library's greeting")
    os.write(1, b"a C library's greeting\n")
    os.write(2, b"a C library's complaint\n")
    return value


def fail(error: Exception) -> None:
    raise error


def fail_unportably() -> None:
    raise UnportableError(code=7, reason="no two arguments")


class UnportableError(Exception):
    """Cannot be rebuilt from its arguments, as exceptions of some libraries."""

    def __init__(self, *, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


def return_lambda() -> Any:
    return lambda: None


class OnlyThere:
    """Can be unpickled only in the process that created it."""

    def __reduce__(self) -> Any:
        return _here, (os.getpid(),)


def _here(pid: int) -> OnlyThere:
    if os.getpid() != pid:
        raise ModuleNotFoundError("there is no such module here")
    return OnlyThere()


def return_value_of_this_process_only() -> Any:
    return OnlyThere()


def die(how: str) -> None:
    if how == "exit":
        os._exit(3)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def count_by_messages(n: int, pause_seconds: float = 0.0) -> int:
    for i in range(n):
        send_message(i)
        time.sleep(pause_seconds)
    return n


def wait_for_abandonment(started: Path, abandoned: Path) -> None:
    with when_abandoned(abandoned.touch):
        started.touch()
        time.sleep(600)


def start_grandchild(pid_file: Path) -> None:
    grandchild = Child()
    pid_file.write_text(str(grandchild.pid))
    grandchild.call(sleep, 600)


def fork_and_return(seconds: float) -> int:
    """Fork a process that keeps the pipes of this child open, as some libraries do; return its process id."""
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)
        os._exit(0)
    return pid


def fork_and_die(pid_file: Path, seconds: float) -> None:
    pid_file.write_text(str(fork_and_return(seconds)))
    die("abort")


def race(storage: Storage, names: Sequence[str], who: str) -> list[str]:
    """Create objects as fast as possible; return the names of those that this process has created."""
    return [name for name in names if storage.create(name, who.encode() * 1000)]


def mark_attempt(plan: Plan, shard: int, entered: Path) -> None:
    from featurepress.ledger import attempt

    with attempt(plan, shard):
        entered.touch()
        time.sleep(600)


def running() -> set[int]:
    """Return the processes that this process has started and that still run, but for the servers of tests."""
    import psutil

    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not any(
                word in line for word in ("tests.servers", "azurite")
            ):
                found.add(process.pid)
    return found


# -- tasks for an engine -------------------------------------------------------------------------------------


def square(plan: Plan, shard: int) -> int:
    return shard * shard


def square_but_never(plan: Plan, shard: int) -> int:
    """Fail at shard 2."""
    if shard == 2:
        raise ArithmeticError("2 has no square today")
    return shard * shard


def sending(plan: Plan, shard: int) -> int:
    send_message(("images", shard, 0))
    return shard


def sending_slowly(plan: Plan, shard: int) -> int:
    return count_by_messages(6, 0.5)


def worker_id(plan: Plan, shard: int) -> int:
    time.sleep(0.05)
    return os.getpid()


@dataclass(frozen=True)
class Recorded:
    """Writes a file for every attempt, and then does what `then` says."""

    folder: Path
    then: Callable[[Plan, int], Any] = square

    def __call__(self, plan: Plan, shard: int) -> Any:
        number = len(attempts(self.folder, shard))
        (self.folder / f"{shard}-{number}").touch()
        return self.then(plan, shard)


def attempts(folder: Path, shard: int) -> list[Path]:
    """Return the attempts that `Recorded` has recorded for a shard."""
    return list(folder.glob(f"{shard}-*"))


@dataclass(frozen=True)
class Dying:
    """Dies at shard 1 `times` times, and writes a file for each attempt."""

    folder: Path
    how: str
    times: int
    max_deaths: int = 5
    says: tuple[Any, ...] = ()

    def __call__(self, plan: Plan, shard: int) -> int:
        if shard == 1:
            if self.says:
                send_message(self.says)
            n_before = len(attempts(self.folder, shard))
            (self.folder / f"{shard}-{n_before}").touch()
            if n_before < self.times:
                die(self.how)
        return shard * shard


def starve(plan: Plan, shard: int) -> None:
    raise RuntimeError("Exception from a library:\nbad_alloc")


def hang(plan: Plan, shard: int) -> None:
    time.sleep(600)


@dataclass(frozen=True)
class Unplanned:
    """Does what `then` says, though there is no plan at the destination."""

    then: Callable[[Plan, int], Any]
    reads_plan = False

    def __call__(self, plan: Plan, shard: int) -> Any:
        return self.then(plan, shard)


def loads(plan: Plan, shard: int) -> tuple[int, int]:
    """Return this process, and how often it has loaded the fake backbone."""
    from featurepress.testing import FakeBackbone

    time.sleep(0.2)
    return os.getpid(), FakeBackbone.loads
