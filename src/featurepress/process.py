"""A child Python process that runs importable functions, one at a time.

A crash, a hang or a memory bomb in the child leaves the parent alive and told. The child is started as a
fresh interpreter (never by fork, which hangs with live thread pools, and never by multiprocessing's spawn,
which runs the user's script again). The life of a child:

1. `Child()` starts the interpreter; it connects by its standard input and output.
2. `call(function, *args)` sends a pickle, yields nothing, and returns what the function returned or raises
   what it raised. While it runs, the function may say `send_message(...)`; each beat reaches `on_message` and shows
   that the child is alive.
3. When the parent dies, or calls `close`, the child sees the end of its input, runs the callbacks of
   `when_abandoned`, and exits at once, wherever it is.
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

# glibc gives buffers above 128 kB back to the kernel at once; with pictures every decode then pays for fresh
# pages again. Keeping them costs the size of the largest picture once. One arena is enough: one thread works.
_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # glibc's, for the same reason
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENCV_LOG_LEVEL": "OFF",
}

_beats: Callable[[Any], None] | None = None
_callbacks: list[Callable[[], None]] = []


class ChildDiedError(Exception):
    """The child ended while a call was running; the text says how."""


class ChildSilentError(ChildDiedError):
    """The child gave no sign of life for too long and was killed."""


def send_message(message: Any) -> None:
    """Tell the parent's `on_message` something, if this process is a child; otherwise do nothing."""
    if _beats is not None:
        _beats(message)


@contextlib.contextmanager
def when_abandoned(callback: Callable[[], None]) -> Iterator[None]:
    """Run `callback` if this child's parent goes away, or gives it up, inside the block."""
    _callbacks.append(callback)
    try:
        yield
    finally:
        _callbacks.remove(callback)


class Child:
    """A fresh Python process, ready for calls.

    Parameters
    ----------
    preload : sequence of str
        Modules to import while the child waits for its first call.
    environment : mapping, optional
        Environment variables to set beside the parent's.
    """

    def __init__(self, preload: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        bootstrap = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({tuple(preload)!r})"
        )
        with _signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-c", bootstrap],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT, **(environment or {})},
            )
        self._is_waiting = True
        self._inbox: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="featurepress-child", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it is alive and waits for a call."""
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
            Kill the child when neither a beat nor the result came for so long. Default: wait for ever.
        on_message : callable
            Called in this thread with whatever the function passes to `send_message`.

        Raises
        ------
        ChildDiedError
            The process ended, or was killed, before it answered. Start a new one.
        Exception
            Whatever `function` raised.
        """
        assert self._process.stdin is not None
        request = pickle.dumps((function, args), protocol=5)
        self._is_waiting = False
        try:
            _send(self._process.stdin, request)
        except (BrokenPipeError, ValueError):
            raise ChildDiedError(self._obituary()) from None
        while True:
            try:
                message = self._inbox.get(timeout=silence_seconds)
            except queue.Empty:
                self.kill()
                raise ChildSilentError(f"gave no sign of life for {silence_seconds:g} seconds") from None
            if message is None:
                self._inbox.put(None)  # so that every later call sees it too
                raise ChildDiedError(self._obituary())
            kind, value = message
            if kind == "beat":
                on_message(value)
                continue
            self._is_waiting = True
            if kind == "error":
                raise value
            return value  # type: ignore[no-any-return]

    def close(self, patience_seconds: float = 5.0) -> None:
        """End the child: a call in flight is abandoned, and the child cleans up after it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._is_waiting = False
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(patience_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._listener.join()
        self._process.stdout.close()

    def kill(self) -> None:
        """End the child with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            while (data := _receive(self._process.stdout)) is not None:
                self._inbox.put(_unpickled(data))
        except (OSError, ValueError):  # closed by `close`
            pass
        self._inbox.put(None)

    def _obituary(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exited with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back what a process inherits and would die of, with a traceback, before it has its own handlers."""
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    except AttributeError:  # Windows
        yield
        return
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_HELD = (signal.SIGINT, signal.SIGTERM)


def serve(preload: Sequence[str] = ()) -> None:
    """Be a child: take calls from standard input until it ends."""
    global _beats  # noqa: PLW0603 - one connection a process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, lambda number, frame: _leave(128 + number))  # no death: the callbacks run
    with contextlib.suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    inbox, outbox = _own_pipes()
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        message = pickle.dumps((kind, value), protocol=5)
        with lock:
            _send(outbox, message)

    _beats = lambda message: send("beat", message)  # noqa: E731
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_take_requests, args=(inbox, requests), daemon=True).start()
    for module in preload:
        importlib.import_module(module)
    gc.freeze()  # what is imported stays; the collector need not look at it again and again
    while True:
        function, args = requests.get()
        try:
            send("result", function(*args))
        except BrokenPipeError:
            _leave()
        except Exception as error:  # noqa: BLE001 - it is raised again in the parent
            send("error", portable(error))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes to the parent for ourselves.

    Stray prints of a library must not land between the messages, and the decoders' C libraries write a line
    to standard error for every slightly odd picture.
    """
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    errors = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    sys.stdout = sys.stderr = errors
    return inbox, outbox


def _take_requests(inbox: BinaryIO, requests: queue.SimpleQueue[Any]) -> None:
    while (data := _receive(inbox)) is not None:
        kind, value = _unpickled(data)
        requests.put((_raise, (value,)) if kind == "error" else (kind, value))
    _leave()


def _send(pipe: IO[bytes], message: bytes) -> None:
    """Send a pickle whole, after its length: neither end loses its place at one that cannot be read."""
    pipe.write(len(message).to_bytes(8, "little") + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """Give the next pickle, or None at the end of the pipe."""
    size = int.from_bytes(pipe.read(8), "little")
    message = pipe.read(size)
    return message if size and len(message) == size else None


def _unpickled(message: bytes) -> tuple[Any, Any]:
    """Give the pair in a pickle, or what stands in its way as ("error", exception)."""
    try:
        first, second = pickle.loads(message)
    except Exception as error:  # noqa: BLE001 - raised again by whoever waits for the message
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
    """Give an exception that survives pickling."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - some libraries' exceptions cannot be rebuilt from their arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy if isinstance(copy, Exception) else RuntimeError(str(error))
