"""kill -9 at random moments: whatever is killed, a resumed run ends with the very same bits."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.running import (
    assert_only_whole_parts,
    assert_same_result,
    draw,
    read_rows,
    run_cli,
    started,
    wait_for_no_orphans,
    wait_until,
    workers_of,
)

N_PICTURES = 550
VICTIMS = ("driver", "group", "worker", "driver", "group then driver at once")


@dataclass
class Undisturbed:
    source: Path
    out: Path
    embedding_seconds: float


def options(source: Path, out: Path) -> list[str | Path]:
    """Small parts, so that there are many moments between two files."""
    common = ["--images-per-part", "7", "--precision", "float32", "--workers", "2", "--labels", "parent"]
    return ["embed", source, "--out", out, *common]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("kill")
    source, out = draw(folder / "in", N_PICTURES, broken=True), folder / "out"
    with started(*options(source, out)) as process:
        wait_until((out / "plan" / "plan.json").exists, "a plan")
        begun = time.monotonic()
        _, err = process.communicate(timeout=120)
        seconds = time.monotonic() - begun
    assert process.returncode == 0, err
    rows = read_rows(out)
    assert set(rows) == {str(p) for p in source.rglob("*.jpg") if p.parent != source}
    return Undisturbed(source, out, seconds)


def kill(process: subprocess.Popen[str], victim: str, rng: random.Random) -> None:
    """Kill the processes; a killed worker alone is replaced, so the driver is killed a little later."""
    if victim == "worker":
        if workers := workers_of(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
        time.sleep(rng.uniform(0.0, 0.3))
    if victim.startswith("group"):
        with contextlib.suppress(ProcessLookupError):  # the run is over
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def begin_and_kill(
    command: list[str | Path], out: Path, delay_seconds: float, victim: str, rng: random.Random
) -> bool:
    """Run a command and kill it `delay_seconds` after its plan exists; return whether it was still running."""
    with started(*command) as process:
        wait_until(lambda: (out / "plan" / "plan.json").exists() or process.poll() is not None, "a plan")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay_seconds)
        landed = process.poll() is None and not (out / "manifest.json").exists()
        kill(process, victim, rng)
        process.communicate(timeout=60)
        wait_for_no_orphans(process.pid)
    return landed


@pytest.mark.parametrize("n_kills", [6, pytest.param(22, marks=pytest.mark.long)])
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path, undisturbed: Undisturbed, n_kills: int) -> None:
    rng = random.Random(20260731)
    startup_seconds = 0.6  # of a run that finds its plan, at the least: most kills shall hit the embedding
    n_landed, n_finished, destination = 0, 0, 0
    for attempt in range(3 * n_kills):
        if n_landed == n_kills:
            break
        out = tmp_path / f"out{destination}"
        is_new = not out.exists()
        command: list[str | Path] = options(undisturbed.source, out)
        if attempt % 2 and not is_new:
            command = ["resume", out, "--workers", str(rng.choice((1, 2)))]
        earliest = 0.0 if is_new or attempt % 4 == 0 else startup_seconds
        delay = earliest + rng.uniform(0.0, undisturbed.embedding_seconds / 3)
        n_landed += begin_and_kill(command, out, delay, VICTIMS[attempt % len(VICTIMS)], rng)
        assert_only_whole_parts(out)
        if (out / "manifest.json").exists():
            assert_same_result(out, undisturbed.out)
            destination, n_finished = destination + 1, n_finished + 1
    assert n_landed == n_kills, f"only {n_landed} kills hit a run at work, {n_finished} runs finished"
    last = tmp_path / f"out{destination}"
    if last.exists():
        done = run_cli("resume", last)
        assert done.returncode == 0, done.stderr
        assert_same_result(last, undisturbed.out)


@pytest.mark.parametrize("moment_seconds", [0.2, 0.6])
def test_kill_9_before_the_plan_stands_leaves_a_destination_that_can_be_used(
    tmp_path: Path, moment_seconds: float
) -> None:
    out = tmp_path / "out"
    source = draw(tmp_path / "in", 10)
    with started("embed", source, "--out", out) as process:
        time.sleep(moment_seconds)
        process.kill()
        process.communicate(timeout=60)
        wait_for_no_orphans(process.pid)
    done = run_cli("embed", source, "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(out)) == 10
