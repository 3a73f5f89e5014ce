"""Every error that featurepress raises, in one tree.

Each message says what is wrong, where, what is allowed, what was given and what to do, in one line.

FeaturepressError
|
+-- RequestError                 the request cannot be served; nothing was written      exit code 2
|   +-- SettingError             a setting has a value that is not allowed
|   +-- SourceError              a source is missing, empty, unreadable or overlaps another
|   +-- DestinationError         the destination holds something else or cannot be written
|   +-- PlanMismatchError        the destination holds another plan; the differences are named
|   +-- ModelError               no such model, or its file is not what its card says
|   +-- EngineError              the cluster, or a library that it needs, is not as it must be
|   +-- AnalysisError            features or labels do not allow what was asked of them
|   +-- FeatureSetError          not a feature set
|       +-- IncompleteError      a feature set whose run has not finished
|
+-- StoppedError                 the run stopped; what is done is kept, resume finishes it   exit code 1
|   +-- StorageError             the storage refused or lost something (disk full, no permission)
|   |   +-- ReplacedError        an object was replaced while it was read
|   +-- WorkerDeathError         worker processes died too often
|
+-- TooManyFailuresError         finished and written, with more failures than allowed   exit code 3

ImageError stands apart: it is the one way an image fails. The per-image boundary turns it into a row of
the failure ledger; it never reaches a caller of the library's verbs.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FeaturepressError(Exception):
    """Base of all errors of this library; its text is one line for people."""

    exit_code: ClassVar[int] = 1


class RequestError(FeaturepressError):
    """The request cannot be served as given; nothing was written."""

    exit_code = 2


class SettingError(RequestError, ValueError):
    """A setting has a value that is not allowed."""


class SourceError(RequestError):
    """A source is missing, empty, unreadable, or overlaps another."""


class DestinationError(RequestError):
    """The destination holds something else, or cannot be written."""


class PlanMismatchError(RequestError):
    """The destination already holds another plan."""


class ModelError(RequestError):
    """A model is unknown, or its file is not what its card says."""


class EngineError(RequestError):
    """An engine cannot run as things are: no Java, a silent cluster, workers that lack something.

    What a run had written by then stands, and `resume` goes on with it.
    """


class AnalysisError(RequestError):
    """Features or labels do not allow what was asked of them: too few, of one class only, no numbers."""


class FeatureSetError(RequestError):
    """A folder is not a feature set, or not of a format this version reads."""


class IncompleteError(FeatureSetError):
    """A feature set whose run has not finished was opened as if it had."""


class StoppedError(FeaturepressError):
    """The run stopped before its end; all finished parts are kept and `resume` continues."""

    exit_code = 1


class StorageError(StoppedError):
    """The storage refused, lost or could not hold something."""


class ReplacedError(StorageError):
    """An object was replaced by a newer one while it was read."""


class WorkerDeathError(StoppedError):
    """Worker processes died too often to go on.

    Attributes
    ----------
    last_message : tuple
        What was heard last of a worker of a cluster, whose beats do not reach the driver otherwise.
    """

    last_message: tuple[Any, ...] = ()


class TooManyFailuresError(FeaturepressError):
    """The run finished and wrote everything, but more images failed than `max_failures` allows.

    Parameters
    ----------
    message : str
        One line for people.
    result : FeatureSet or Predictions
        The complete result.
    """

    exit_code = 3

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class ImageError(Exception):
    """One image cannot be embedded.

    Parameters
    ----------
    stage : str
        Where it failed: ``list``, ``read``, ``decode`` or ``infer``.
    reason : str
        What is wrong with it, in one line that does not repeat the uri.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"
