"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.runs")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder with real pictures, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder {SHARED_DATA} with real pictures is not here")
    return SHARED_DATA
