"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ("tests.servers.fixtures",)
pytest.register_assert_rewrite("tests.running")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores; the idle threads of BLAS would spin on them. Commands inherit this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with real images, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder {SHARED_DATA} with real images does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def model_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep models in a folder of this test run, shared by the workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATUREPRESS_HOME", str(folder))
        patch.setenv("KERAS_HOME", str(folder / "no-keras"))
        yield folder


@pytest.fixture(scope="session")
def embedded_weights() -> Path:
    """Return the embedded model's weights as a Keras file, or skip: a trained MobileNetV2 of width 0.5."""
    path = SHARED_DATA.parent / "weights" / "embedded-v1.weights.h5"
    if not path.is_file():
        pytest.skip(f"the file {path} does not exist")
    return path


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep models, certificates and speeds of one test apart from those of all others."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FEATUREPRESS_HOME", str(folder))
    return folder
