"""Fixtures that every test may use."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.runs")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder with real pictures, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder {SHARED_DATA} with real pictures is not here")
    return SHARED_DATA
