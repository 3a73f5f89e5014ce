"""Every error that featurepress raises, in one tree.

Each message is one line: what is wrong, where, what is allowed, what the value is, and what to do.

FeaturepressError
|
+-- RequestError                 the request cannot be served; nothing was written      exit code 2
|   +-- SettingError             a setting has a value that is not allowed
|   +-- SourceError              a source is missing, empty, unreadable or overlaps another
|   +-- DestinationError         the destination holds something else or cannot be written
|   +-- PlanMismatchError        the destination holds another plan; the differences are named
|   +-- ModelError               no such model, or its file is not what its card says
|   +-- EngineError              the cluster cannot be used, or a library is missing
|   +-- AnalysisError            features or labels do not allow the analysis
|   +-- FeatureSetError          not a feature set
|       +-- IncompleteError      a feature set whose run has not finished
|
+-- StoppedError                 the run stopped; finished parts are kept; resume continues   exit code 1
|   +-- StorageError             the storage cannot be read or written (disk full, no permission)
|   |   +-- ReplacedError        an object was replaced while it was read
|   +-- WorkerDeathError         worker processes died too often
|
+-- TooManyFailuresError         finished and written, with more failures than allowed   exit code 3

ImageError is not part of the tree. It is raised for a single image, and becomes a row of the failure ledger; no
public function raises it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class FeaturepressError(Exception):
    """Base of all errors of this library; the message is one line."""

    exit_code: ClassVar[int] = 1


class RequestError(FeaturepressError):
    """The request cannot be served; nothing was written."""

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
    """An engine cannot run: no Java, no answer from the cluster, a library is missing, too little memory.

    A run keeps its finished parts, and `resume` continues.
    """


class AnalysisError(RequestError):
    """Features or labels do not allow the analysis: too few rows, only one class, not numeric."""


class FeatureSetError(RequestError):
    """A folder is not a feature set, or its format cannot be read by this version."""


class IncompleteError(FeatureSetError):
    """The run of the feature set has not finished."""


class StoppedError(FeaturepressError):
    """The run stopped; all finished parts are kept, and `resume` continues."""

    exit_code = 1


class StorageError(StoppedError):
    """The storage cannot be read or written."""


class ReplacedError(StorageError):
    """An object was replaced while it was read."""


class WorkerDeathError(StoppedError):
    """Worker processes died too often.

    Attributes
    ----------
    last_message : tuple
        The last message of each shard on a worker of a cluster, whose messages do not reach the driver otherwise.
    """

    last_message: tuple[Any, ...] = ()


class TooManyFailuresError(FeaturepressError):
    """The run finished and wrote everything, but more images failed than `max_failures` allows.

    Parameters
    ----------
    message : str
        One line.
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
        What is wrong, in one line without the uri.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(stage, reason)
        self.stage = stage
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"
