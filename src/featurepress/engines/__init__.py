"""Run tasks over shards somewhere."""

from featurepress.engines.base import Engine, Task
from featurepress.engines.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "Task"]
