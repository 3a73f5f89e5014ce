"""Run tasks over shards somewhere: on this machine, on Spark, or on Ray."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurepress.engines.base import Engine, Task
from featurepress.engines.local import LocalEngine
from featurepress.errors import SettingError

if TYPE_CHECKING:
    from featurepress.engines.ray import Ray
    from featurepress.engines.spark import Spark

NAMES = ("local", "spark", "ray")
_MODULES = {"Spark": "spark", "Ray": "ray"}  # imported on first use
_ENGINE_OF_OPTION = {"master": "spark", "spark_conf": "spark", "address": "ray"}


def open_engine(
    name: str, *, master: str | None = None, spark_conf: Sequence[str] = (), address: str | None = None
) -> Engine | None:
    """Return the engine with a name; None for ``local``, which each run creates and closes.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    master : str, optional
        For Spark, such as ``spark://host:7077``.
    spark_conf : sequence of str
        Settings of Spark, each ``name=value``.
    address : str, optional
        Of a Ray cluster.

    Raises
    ------
    SettingError
        There is no such engine, or an option is for another engine.
    """
    if name not in NAMES:
        raise SettingError(f"The engine (--engine) must be one of {', '.join(NAMES)}. Got '{name}'.")
    for option, value in {"master": master, "spark_conf": spark_conf, "address": address}.items():
        if value and _ENGINE_OF_OPTION[option] != name:
            flag = "--" + option.replace("_", "-")
            raise SettingError(f"{flag} is for --engine {_ENGINE_OF_OPTION[option]} only. Got --engine {name}.")
    if name == "spark":
        if wrong := [text for text in spark_conf if not text.partition("=")[2]]:
            raise SettingError(
                f"A setting of Spark (--spark-conf) must be name=value, as spark.task.cpus=2. Got '{wrong[0]}'."
            )
        pairs = (text.partition("=") for text in spark_conf)
        engine: Engine = __getattr__("Spark")(master=master, conf={key: value for key, _, value in pairs})
        return engine
    return __getattr__("Ray")(address) if name == "ray" else None


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'featurepress.engines' has no attribute '{name}'")
    return getattr(import_module(f"featurepress.engines.{_MODULES[name]}"), name)


__all__ = ["NAMES", "Engine", "LocalEngine", "Ray", "Spark", "Task", "open_engine"]
