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
_HOMES = {"Spark": "spark", "Ray": "ray"}  # imported when they are asked for
_BELONGS = {"master": "spark", "spark_conf": "spark", "address": "ray"}


def open_engine(
    name: str, *, master: str | None = None, spark_conf: Sequence[str] = (), address: str | None = None
) -> Engine | None:
    """Give the engine of a name; None for ``local``, which a run makes for itself.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    master : str, optional
        Of Spark.
    spark_conf : sequence of str
        Settings of Spark, each as ``name=value``.
    address : str, optional
        Of Ray.

    Raises
    ------
    SettingError
        There is no such engine, or an option is not of this one.
    """
    if name not in NAMES:
        raise SettingError(f"The engine (--engine) must be one of {', '.join(NAMES)}. Got '{name}'.")
    for option, value in {"master": master, "spark_conf": spark_conf, "address": address}.items():
        if value and _BELONGS[option] != name:
            flag = "--" + option.replace("_", "-")
            raise SettingError(f"{flag} is for --engine {_BELONGS[option]} only. Got --engine {name}.")
    if name == "spark":
        if wrong := [text for text in spark_conf if not text.partition("=")[2]]:
            raise SettingError(
                f"A setting of Spark (--spark-conf) reads name=value, as spark.task.cpus=2. Got '{wrong[0]}'."
            )
        pairs = (text.partition("=") for text in spark_conf)
        engine: Engine = __getattr__("Spark")(master=master, conf={key: value for key, _, value in pairs})
        return engine
    return __getattr__("Ray")(address) if name == "ray" else None


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featurepress.engines' has no attribute '{name}'")
    return getattr(import_module(f"featurepress.engines.{_HOMES[name]}"), name)


__all__ = ["NAMES", "Engine", "LocalEngine", "Ray", "Spark", "Task", "open_engine"]
