"""The test files of twelve public projects are decoded, or fail with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.images.reference import DATA, DEEP_MODES

ROOT = Path(__file__).resolve().parents[2]
TORTURE = DATA / "torture"

pytestmark = pytest.mark.skipif(not TORTURE.is_dir(), reason=f"no test images at {TORTURE}")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Return the results of a child process, since a decoder may crash or hang."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from pathlib import Path; from tests.images.reference import survey\n"
        f"survey(Path({str(TORTURE)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_torture_files_are_decoded_or_refused_in_bounded_memory(report: dict[str, Any]) -> None:
    assert len(report["files"]) > 1200
    assert report["growth"] < 300 << 20
    for row in report["files"]:
        if "failure" in row:
            assert row["failure"].startswith("decode: ")
            assert "\n" not in row["failure"]
            assert len(row["failure"]) < 260


def test_nearly_all_files_that_pillow_loads_are_decoded(report: dict[str, Any]) -> None:
    loaded = [row for row in report["files"] if row["pillow"] is not None]
    missed = [(row["name"], row["failure"]) for row in loaded if "failure" in row]
    assert len(missed) <= 0.01 * len(loaded), missed


def test_torture_files_agree_with_pillow(report: dict[str, Any]) -> None:
    apart = {
        row["name"]: (row["pillow"], row["difference"])
        for row in report["files"]
        if row["pillow"] not in (None, *DEEP_MODES) and row.get("difference", 0.0) > 2.0
    }
    assert not apart


def test_deep_torture_files_agree_with_the_reference(report: dict[str, Any]) -> None:
    deep = [row for row in report["files"] if row["pillow"] in DEEP_MODES and "failure" not in row]
    assert len(deep) >= 30
    assert not {row["name"]: row["largest"] for row in deep if row["largest"] > 1}
