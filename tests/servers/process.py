"""Server processes, which end with the process that started them.

A server ends when its standard input does, so that none outlives the tests, however those end. For a command
that knows nothing of that, this file is a program which watches in its stead::

    python -m tests.servers.process COMMAND ARGUMENT...
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TIMEOUT_SECONDS = 60  # of a busy machine
_ADDRESS = re.compile(rb"listens on (http://127\.0\.0\.1:\d+)")


@contextlib.contextmanager
def running(module: str, *arguments: str) -> Iterator[str]:
    """Run a server of this folder, such as ``"objects"``; yield its address once it listens."""
    with started(sys.executable, "-m", f"tests.servers.{module}", "--tied", *arguments) as address:
        yield address


@contextlib.contextmanager
def running_command(*command: str) -> Iterator[str]:
    """Run a command that prints its address, and ends when its standard input does."""
    with started(sys.executable, "-m", "tests.servers.process", *command) as address:
        yield address


@contextlib.contextmanager
def started(*command: str) -> Iterator[str]:
    """Start a process that ends with its standard input; return the address that it prints."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,  # an interrupt from the terminal is for the tests
        )
        try:
            yield _address(process, output.fileno())
        finally:
            if process.returncode is None:  # not reaped, so that the number is still its own
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _address(process: subprocess.Popen[bytes], output: int) -> str:
    end = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        ended = process.poll()
        said = os.pread(output, 100_000, 0)
        if found := _ADDRESS.search(said):
            return found[1].decode()
        if ended is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} does not listen; it says: {said.decode(errors='replace')}")
        time.sleep(0.01)


def main(command: list[str]) -> int:
    """Run a command until it ends, or until standard input does."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        process.kill()

    threading.Thread(target=watch, daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
