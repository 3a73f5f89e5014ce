"""Sort any number of rows: run by run in memory, merged from a temporary file."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Generic, TypeVar, cast

from featurepress.errors import SourceError

RUN_ROWS = 200_000  # in memory at once: about 60 MB of short paths
_BLOCK_ROWS = 256  # of each run that are in memory while the runs are merged

Row = TypeVar("Row", bound=tuple[Any, ...])


class Sorted(Generic[Row]):
    """Sorted rows, which can be iterated any number of times. Close them after use.

    The values of rows can be pickled, and no two rows are equal. At most `run_rows` are in memory at once. Raises
    SourceError if the temporary folder is full or cannot be written.
    """

    def __init__(self, rows: Iterable[Row], run_rows: int = RUN_ROWS) -> None:
        self._runs: list[list[tuple[int, int]]] = []  # the blocks of each: position in the file, and bytes
        self._last: list[Row] = []  # the last run, which stays in memory
        self._file: BinaryIO | None = None
        stream = iter(rows)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            while len(run := sorted(itertools.islice(stream, run_rows))) == run_rows:
                self._runs.append(self._spilled(run))
                run.clear()  # before the next one is read
            self._last = run
            undo.pop_all()

    def close(self) -> None:
        """Delete the temporary file."""
        self._last = []
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[Row]:
        return heapq.merge(*map(self._read, self._runs), self._last) if self._runs else iter(self._last)

    def _spilled(self, run: list[Row]) -> list[tuple[int, int]]:
        """Write a run, and return the position and size of its blocks."""
        blocks = []
        try:
            if self._file is None:
                self._file = cast(BinaryIO, tempfile.TemporaryFile(prefix="featurepress-"))  # noqa: SIM115
            for start in range(0, len(run), _BLOCK_ROWS):
                data = pickle.dumps(run[start : start + _BLOCK_ROWS], pickle.HIGHEST_PROTOCOL)
                blocks.append((self._file.tell(), len(data)))
                self._file.write(data)
            self._file.flush()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SourceError(
                f"A list is too long to be sorted in memory, and cannot be written to '{tempfile.gettempdir()}': "
                f"{reason}. Set the environment variable TMPDIR to another folder."
            ) from error
        return blocks

    def _read(self, blocks: list[tuple[int, int]]) -> Iterator[Row]:
        assert self._file is not None
        for at, n_bytes in blocks:
            yield from pickle.loads(os.pread(self._file.fileno(), n_bytes, at))
