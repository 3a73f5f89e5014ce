"""A child Python process that runs importable functions, one at a time.

If the child crashes, hangs or runs out of memory, the parent gets an exception. The child is a new interpreter:
fork can deadlock when thread pools exist, and multiprocessing's spawn runs the user's script again. When the parent
dies or calls `close`, the child reads the end of its input, runs the callbacks of `when_abandoned`, and exits.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO, TypeVar

Result = TypeVar("Result")

_DRAIN_SECONDS = 1.0  # after the child's death, for its last messages

# By default glibc returns buffers above 128 kB to the kernel at once, so that every decode pays for new pages.
# Keeping them costs the size of the largest image once. One arena is enough, since one thread works.
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # glibc, for the same reason
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENCV_LOG_LEVEL": "OFF",
}

_sender: Callable[[Any], None] | None = None
_callbacks: list[Callable[[], None]] = []


class ChildDiedError(Exception):
    """The child ended while a call was running; the text is the cause, such as 'exited with code 3'."""


class ChildSilentError(ChildDiedError):
    """The child sent no message for too long and was killed."""


def send_message(message: Any) -> None:
    """Send a message to the `on_message` of the parent; do nothing if this process is not a child."""
    if _sender is not None:
        _sender(message)


@contextlib.contextmanager
def when_abandoned(callback: Callable[[], None]) -> Iterator[None]:
    """Run `callback` if the parent of this child dies, or closes it, inside the block."""
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.remove(callback)


class Child:
    """A new Python process that runs functions.

    Parameters
    ----------
    preload : sequence of str
        Modules to import while the child waits for its first call.
    environment : mapping, optional
        Environment variables in addition to those of the parent.
    """

    def __init__(self, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        bootstrap = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({tuple(preload)!r})"
        )
        with _signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-c", bootstrap],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT, **(environment or {})},
            )
        self._is_waiting = True
        self._inbox: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="featurepress-child-reader", daemon=True)
        self._waiter = threading.Thread(target=self._wait, name="featurepress-child", daemon=True)
        self._reader.start()
        self._waiter.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether the child is alive and waits for a call."""
        return self._is_waiting and self._process.poll() is None

    def call(
        self,
        function: Callable[..., Result],
        *args: Any,
        silence_seconds: float | None = None,
        on_message: Callable[[Any], None] = lambda message: None,
    ) -> Result:
        """Run an importable function in the child.

        Parameters
        ----------
        function : callable
            Pickled by reference, so it must be importable; its arguments and result are pickled too.
        silence_seconds : float, optional
            Kill the child after this time without a message or the result. By default, wait without a limit.
        on_message : callable
            Called in this thread with each message that the function sends with `send_message`.

        Raises
        ------
        ChildDiedError
            The process ended or was killed before it returned. Start a new one.
        Exception
            The exception that `function` raised.
        """
        assert self._process.stdin is not None
        request = pickle.dumps((function, args), protocol=5)
        self._is_waiting = False
        try:
            _send(self._process.stdin, request)
        except (BrokenPipeError, ValueError):
            raise ChildDiedError(self._cause_of_death()) from None
        while True:
            try:
                message = self._inbox.get(timeout=silence_seconds)
            except queue.Empty:
                self.kill()
                raise ChildSilentError(f"sent no message for {silence_seconds:g} seconds") from None
            if message is None:
                self._inbox.put(None)  # for later calls
                raise ChildDiedError(self._cause_of_death())
            kind, value = message
            if kind == "message":
                on_message(value)
                continue
            self._is_waiting = True
            if kind == "error":
                raise value
            return value  # type: ignore[no-any-return]

    def close(self, patience_seconds: float = 5.0) -> None:
        """End the child: a running call is abandoned, and the child runs its callbacks."""
        assert self._process.stdin is not None
        self._is_waiting = False
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._waiter.join()

    def kill(self) -> None:
        """End the child with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        """Pass on the messages until the end of the pipe."""
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while (data := _receive(pipe)) is not None:
                self._inbox.put(_unpickled(data))

    def _wait(self) -> None:
        """Announce the end of the process.

        The end of its output does not announce it: a process that a library of the child has forked inherits the
        pipe, and can keep it open.
        """
        self._process.wait()
        self._reader.join(_DRAIN_SECONDS)
        self._inbox.put(None)

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exited with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals that would end a new process, with a traceback, before it has installed its handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(preload: Sequence[str] = ()) -> None:
    """Run as a child: take calls from standard input until it ends."""
    global _sender  # noqa: PLW0603 - one connection per process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, but the parent decides
    signal.signal(signal.SIGTERM, lambda number, frame: _leave(128 + number))  # so that the callbacks run
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED_SIGNALS)
    inbox, outbox = _own_pipes()
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        message = pickle.dumps((kind, value), protocol=5)
        with lock:
            _send(outbox, message)

    _sender = lambda message: send("message", message)  # noqa: E731
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_take_requests, args=(inbox, requests), daemon=True).start()
    for module in preload:
        importlib.import_module(module)
    gc.freeze()  # imported modules stay: the collector can skip them
    while True:
        function, args = requests.get()
        try:
            send("result", function(*args))
        except BrokenPipeError:
            _leave()
        except Exception as error:  # noqa: BLE001 - it is raised again in the parent
            send("error", portable(error))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Move the pipes to the parent away from the standard streams.

    A library that prints must not write between the messages. The C libraries of the decoders write a line to
    standard error for many valid images: it is dropped. Python's sys.stderr still works.
    """
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    errors = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    sys.stdout = sys.stderr = errors
    return inbox, outbox


def _take_requests(inbox: BinaryIO, requests: queue.SimpleQueue[Any]) -> None:
    while (data := _receive(inbox)) is not None:
        kind, value = _unpickled(data)
        requests.put((_raise, (value,)) if kind == "error" else (kind, value))
    _leave()


def _send(pipe: IO[bytes], message: bytes) -> None:
    """Send a pickle after its length, so that a pickle that cannot be loaded does not break the stream."""
    pipe.write(len(message).to_bytes(8, "little") + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """Return the next pickle, or None at the end of the pipe."""
    size = int.from_bytes(pipe.read(8), "little")
    message = pipe.read(size)
    return message if size and len(message) == size else None


def _unpickled(message: bytes) -> tuple[Any, Any]:
    """Return the pair in a pickle, or ("error", exception) if it cannot be loaded."""
    try:
        first, second = pickle.loads(message)
    except Exception as error:  # noqa: BLE001 - raised again by the receiver
        return "error", portable(error)
    return first, second


def _raise(error: Exception) -> None:
    raise error


def _leave(code: int = 0) -> None:
    for callback in reversed(_callbacks):
        with contextlib.suppress(Exception):
            callback()
    os._exit(code)


def portable(error: Exception) -> Exception:
    """Return the exception, or one with the same text, that can be pickled."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - some libraries' exceptions cannot be rebuilt from their arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy if isinstance(copy, Exception) else RuntimeError(str(error))
