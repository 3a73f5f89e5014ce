"""Two runs of the same plan at the same place at the same time."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.running import assert_same_result, draw, run_cli, started, wait_for_no_orphans


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), 250, broken=True)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = run_cli(*command(source, out))
    assert done.returncode == 0, done.stderr
    return out


def command(source: Path, out: Path) -> tuple[str | Path, ...]:
    common = (
        "--images-per-part",
        "9",
        "--precision",
        "float32",
        "--workers",
        "1",
        "--format",
        "csv",
        "--parts",
        "3",
    )
    return ("embed", source, "--out", out, *common)


@pytest.mark.parametrize("lag_seconds", [0.0, 0.7])
def test_two_runs_at_once_both_succeed_and_leave_one_result(
    tmp_path: Path, source: Path, undisturbed: Path, lag_seconds: float
) -> None:
    out = tmp_path / "out"
    with contextlib.ExitStack() as stack:
        processes = []
        for lag in (0.0, lag_seconds):
            time.sleep(lag)
            processes.append(stack.enter_context(started(*command(source, out))))
        for process in processes:
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert "253 listed, 250 embedded, 3 failed" in err
            wait_for_no_orphans(process.pid)
    assert_same_result(out, undisturbed)
    for path in undisturbed.glob("csv/*"):
        assert (out / "csv" / path.name).read_bytes() == path.read_bytes()


def test_one_of_two_runs_is_killed_and_the_other_finishes(tmp_path: Path, source: Path, undisturbed: Path) -> None:
    out = tmp_path / "out"
    with started(*command(source, out)) as one, started(*command(source, out)) as other:
        time.sleep(0.9)
        one.kill()
        _, err = other.communicate(timeout=120)
        assert other.returncode == 0, err
        wait_for_no_orphans(one.pid)
    assert_same_result(out, undisturbed)


def test_a_run_of_another_plan_at_the_same_time_is_refused(tmp_path: Path, source: Path) -> None:
    """Whoever creates plan.json first wins; the other learns the difference, at whatever moment."""
    out = tmp_path / "out"
    with started(*command(source, out)) as one, started(*command(source, out), "--labels", "parent") as other:
        results = []
        for process in (one, other):
            _, err = process.communicate(timeout=120)
            results.append((process.returncode, err))
    assert sorted(code for code, _ in results) == [0, 2]
    assert any(code == 2 and "holds another plan; it has labels: " in err for code, err in results)
