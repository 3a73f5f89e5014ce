"""Clusters on this machine: Spark in all its modes, and Ray. They are started once per test process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featurepress import ledger
from featurepress.engines.preflight import require_java
from featurepress.errors import EngineError
from featurepress.ledger import Plan
from featurepress.storage import FolderStorage
from featurepress.testing import draft_plan, memory_source

ROOT = Path(__file__).parents[3]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as long that a faster test of the same cluster covers."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "clusters" in item.nodeid and params.get("how") in ("abort", "exit"):
            item.add_marker(pytest.mark.long)


def require_spark() -> None:
    """Skip if Spark cannot run."""
    pytest.importorskip("pyspark", reason="pyspark is not installed: make test-engines")
    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = draft_plan(FolderStorage(str(tmp_path / "out")), memory_source({"a": b"1"}))
    plan.storage.prepare()
    ledger.create_plan(plan)
    return plan


@pytest.fixture(scope="session")
def loopback() -> Iterator[None]:
    """Keep clusters on this machine, and let their workers import the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        patch.setenv("SPARK_LOCAL_HOSTNAME", "127.0.0.1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("PYTHONWARNINGS", "ignore")  # of the workers' own libraries
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        yield


@pytest.fixture(scope="session")
def spark(loopback: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a session of local[2]."""
    require_spark()
    from featurepress.engines import Spark

    place = str(tmp_path_factory.mktemp("spark"))
    with Spark(master="local[2]", conf={"spark.local.dir": place, "spark.sql.warehouse.dir": place}) as engine:
        yield engine.session


@pytest.fixture(params=["spark", "ray"])
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Return the engine of each cluster."""
    from featurepress import engines

    if request.param == "spark":
        engine: Any = engines.Spark(request.getfixturevalue("spark"))
    else:
        request.getfixturevalue("ray_here")
        engine = engines.Ray()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def ray_here(loopback: None) -> Iterator[None]:
    """Connect to a Ray cluster of only this machine."""
    pytest.importorskip("ray", reason="ray is not installed: make test-engines")
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
