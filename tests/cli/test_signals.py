"""Every exit code, by real processes and real signals: no traceback, no orphan, a resume line when it helps."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.running import (
    assert_same_result,
    draw,
    interrupt,
    leftovers,
    names_below,
    run_cli,
    snapshot,
    started,
    wait_for_no_orphans,
    wait_until,
)

SMALL = ("--images-per-part", "6", "--precision", "float32", "--workers", "2")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), 450)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run_cli("embed", source, "--out", out, *SMALL).returncode == 0
    return out


def resume_line(out: Path) -> str:
    return f"Finished parts are kept. Continue with: featurepress resume {out}"


@pytest.mark.parametrize("group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_in_the_middle_stops_cleanly_and_resume_finishes(
    tmp_path: Path, source: Path, undisturbed: Path, number: signal.Signals, code: int, word: str, group: bool
) -> None:
    out = tmp_path / "out"
    with started("embed", source, "--out", out, *SMALL) as process:
        wait_until(lambda: len(list(out.glob("features/*"))) > 3, "some parts")
        begun = time.monotonic()
        printed, err = interrupt(process, number, group=group)
        assert time.monotonic() - begun < 15
    assert process.returncode == code
    assert err.splitlines() == [resume_line(out), f"featurepress: Stopped by {word}."]
    assert printed == ""
    assert leftovers(out) == []
    assert not (out / "manifest.json").exists()
    with started("resume", out, "--workers", "2") as process:
        wait_until(lambda: any((out / "attempts").iterdir()) or process.poll() is not None, "a shard at work")
        interrupt(process, number, group=group)
    assert process.returncode in (0, code)
    assert leftovers(out) == []
    done = run_cli("resume", out)
    assert done.returncode == 0, done.stderr
    assert_same_result(out, undisturbed)


@pytest.mark.parametrize("delay_seconds", [0.0, 0.15, 0.4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_early_moment_leaves_no_traceback_and_no_orphan(
    tmp_path: Path, source: Path, number: signal.Signals, delay_seconds: float
) -> None:
    """From the start of the first worker on; before that the command's own code is imported."""
    out = tmp_path / "out"
    with started("embed", source, "--out", out, *SMALL) as process:
        wait_until(lambda: psutil.Process(process.pid).children(), "the first worker")
        time.sleep(delay_seconds)
        _, err = interrupt(process, number, group=True)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "Error" not in err
    assert (resume_line(out) in err) == (out / "plan" / "plan.json").exists()
    assert leftovers(out) == []


def test_an_impatient_second_ctrl_c_is_no_harm(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    with started("embed", source, "--out", out, *SMALL) as process:
        wait_until(lambda: list(out.glob("features/*")), "a part")
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.005)
        _, err = process.communicate(timeout=60)
        wait_for_no_orphans(process.pid)
    assert process.returncode == 130
    assert err.splitlines() == [resume_line(out), "featurepress: Stopped by Ctrl-C."]


def test_nothing_to_resume_means_no_resume_line(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    assert run_cli("embed", source, "--out", out, "--limit", "3", *SMALL).returncode == 0
    done = run_cli("resume", out)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    for line in (("embed", source, "--out", out, *SMALL), ("resume", tmp_path), ("embed", "no", "--out", out)):
        failed = run_cli(*line)
        assert failed.returncode == 2
        assert len(failed.stderr.splitlines()) == 1
        assert "Continue with" not in failed.stderr


def test_done_is_0_and_done_again_is_0(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    for expected in ("images/s", "nothing to do: an earlier run has embedded everything"):
        done = run_cli("embed", source, "--out", out, "--limit", "5", *SMALL)
        assert done.returncode == 0
        assert expected in done.stderr
        assert done.stdout == ""
        before = snapshot(out)
    assert snapshot(out) == before


def test_too_many_failures_are_3_with_everything_written(tmp_path: Path) -> None:
    source, out = draw(tmp_path / "in", 6, broken=True), tmp_path / "out"
    for line in (
        ("embed", source, "--out", out, *SMALL),
        ("resume", out),
        ("resume", out, "--max-failures", "0.2"),
    ):
        done = run_cli(*line)
        assert done.returncode == 3
        assert "9 listed, 6 embedded, 3 failed" in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("featurepress: 3 of 9 images failed (33.3%), more than the allowed ")
        assert "Continue with" not in done.stderr
    assert run_cli("resume", out, "--max-failures", "0.34").returncode == 0


def test_a_bad_request_is_2_and_writes_nothing(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    for place in ("file", "full", "file/below", "/proc/featurepress-test"):
        done = run_cli("embed", source, "--out", tmp_path / place, "--limit", "2", *SMALL)
        assert done.returncode == 2, (place, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith("featurepress: ")
        assert "--out" in line
        assert snapshot(tmp_path) == before


def test_the_default_destination_is_named_by_the_time(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 2)
    done = run_cli("embed", source, *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = (path for path in tmp_path.iterdir() if path != source)
    assert made.name.startswith("results2")
    assert "manifest.json" in names_below(made)


IN_A_DESTRUCTOR = """
import os, signal, sys, time
from featurepress.cli.main import _Stop

class Victim:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.01)  # the exception is raised here, where Python drops it

_Stop().install()
try:
    victim = Victim()
    del victim
    time.sleep(60)
except BaseException as stopped:
    print(type(stopped).__name__)
"""


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "_Terminated")]
)
def test_a_signal_that_meets_a_destructor_is_not_lost(number: signal.Signals, raised: str) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_DESTRUCTOR, str(int(number))], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [raised]
    assert done.stderr == ""
    assert time.monotonic() - begun < 30


def test_a_run_without_any_warning(tmp_path: Path) -> None:
    source, out = draw(tmp_path / "in", 20, broken=True), tmp_path / "out"
    command = (sys.executable, "-W", "error", "-X", "dev", "-m", "featurepress")
    options = ("--max-failures", "1", "--format", "csv", "--parts", "2", "--images-per-part", "5")
    with started("embed", source, "--out", out, *options, command=command) as process:
        _, err = process.communicate(timeout=120)
        wait_for_no_orphans(process.pid)
    assert process.returncode == 0, err
    assert "Warning" not in err
    assert "Traceback" not in err


def test_a_killed_export_resumes(tmp_path: Path) -> None:
    source, out = draw(tmp_path / "in", 150), tmp_path / "out"
    options = (
        "--pooling",
        "flatten",
        "--format",
        "csv",
        "--parts",
        "3",
        "--precision",
        "float32",
        "--workers",
        "1",
    )
    with started("embed", source, "--out", out, *options) as process:
        wait_until(lambda: list(out.glob("csv/*.csv")), "the first CSV file")
        process.kill()
        process.communicate(timeout=60)
        wait_for_no_orphans(process.pid)
    assert not (out / "manifest.json").exists()
    whole = {path: path.stat().st_mtime_ns for path in out.glob("csv/*.csv")}
    assert 0 < len(whole) < 3
    done = run_cli("resume", out)
    assert done.returncode == 0, done.stderr
    paths = sorted(out.glob("csv/*"))
    assert [len(path.read_text().splitlines()) for path in paths] == [51, 51, 51]
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert leftovers(out) == []
