"""Storage that fills up or goes away in the middle of a run."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurepress.engines import LocalEngine
from featurepress.errors import DestinationError, StorageError
from featurepress.runs.verbs import run_plan
from tests.running import (
    assert_only_whole_parts,
    assert_same_result,
    draft,
    draw,
    leftovers,
    run_cli,
    started,
    wait_for_no_orphans,
    wait_until,
)
from tests.storages import QuotaStorage

N_PICTURES = 350


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), N_PICTURES, broken=True)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = run_cli(*command(source, out))
    assert done.returncode == 0, done.stderr
    return out


def command(source: Path, out: Path) -> tuple[str | Path, ...]:
    common = ("--images-per-part", "16", "--precision", "float32", "--workers", "2", "--labels", "parent")
    return ("embed", source, "--out", out, *common)


def resume_line(out: Path) -> str:
    return f"Finished parts are kept. Continue with: featurepress resume {out}"


# -- a quota -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quota", [12_000, 50_000])
def test_a_full_quota_stops_the_run_and_more_space_lets_it_finish(tmp_path: Path, source: Path, quota: int) -> None:
    out, limit = tmp_path / "out", tmp_path / "quota"
    plan = draft(QuotaStorage(str(out), str(limit)), source, images_per_part=16)
    limit.write_text(str(quota))
    for _ in range(2):  # and stops again while there is no space
        with pytest.raises(StorageError, match="no space left on device; free some space and run again"):
            embed(plan)
        assert_only_whole_parts(out)
        assert not (out / "manifest.json").exists()
        assert leftovers(out) == []
    limit.write_text("100000000")
    embed(plan)
    embed(draft(tmp_path / "plain", source, images_per_part=16))
    assert_same_result(out, tmp_path / "plain")


def embed(plan: object) -> None:
    with LocalEngine(2) as engine:
        run_plan(plan, engine=engine)  # type: ignore[arg-type]


def test_no_space_for_the_plan_is_a_stop_with_nothing_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "quota").write_text("10")
    plan = draft(QuotaStorage(str(tmp_path / "out"), str(tmp_path / "quota")), source, limit=5)
    with pytest.raises((StorageError, DestinationError), match="no space left"):
        embed(plan)
    assert list((tmp_path / "out").rglob("*")) == []


# -- a file system -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return an empty file system of 600 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "featurepress-test", str(place)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)


def test_a_full_disk_stops_the_run_and_more_space_lets_it_finish(
    small_disk: Path, source: Path, undisturbed: Path
) -> None:
    out = small_disk / "out"
    for line in (command(source, out), ("resume", out)):
        done = run_cli(*line)
        assert done.returncode == 1
        first, last = done.stderr.splitlines()
        assert first == resume_line(out)
        assert last.startswith(f"featurepress: Cannot write '{out}/")
        assert last.endswith("': no space left on device; free some space and run again.")
        assert done.stdout == ""
        assert_only_whole_parts(out)
        assert leftovers(out) == []
        assert not (out / "manifest.json").exists()
    assert 0 < len(list(out.glob("features/*"))) < 23
    grow(small_disk)
    done = run_cli("resume", out)
    assert done.returncode == 0, done.stderr
    assert_same_result(out, undisturbed)


def test_a_disk_without_any_space_takes_nothing(small_disk: Path, source: Path) -> None:
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as file:
        file.write(bytes(2**20))
    out = small_disk / "out"
    done = run_cli("embed", source, "--out", out, "--limit", "3")
    assert done.returncode == 1
    assert "no space left on device" in done.stderr
    assert "resume " + str(out) not in done.stderr
    assert [path for path in out.rglob("*") if not path.is_dir()] == []


def test_an_export_to_a_full_disk_resumes(small_disk: Path, source: Path) -> None:
    out = small_disk / "out"
    options = ("--images-per-part", "16", "--precision", "float32", "--format", "csv", "--parts", "2")
    done = run_cli("embed", source, "--out", out, "--limit", "40", *options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == resume_line(out)
    assert "no space left on device; free some space and run again" in done.stderr
    assert len(list(out.glob("features/*"))) == 3
    whole = list(out.glob("csv/*"))
    assert len(whole) < 2
    assert [len(path.read_text().splitlines()) for path in whole] == [21] * len(whole)
    grow(small_disk)
    done = run_cli("resume", out)
    assert done.returncode == 0, done.stderr
    assert [len(path.read_text().splitlines()) for path in sorted(out.glob("csv/*.csv"))] == [21, 21]
    assert leftovers(out) == []


# -- a destination that goes away ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_destination_that_goes_away_stops_the_run_and_is_not_made_again(
    tmp_path: Path, source: Path, undisturbed: Path, how: str
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    with started(*command(source, out)) as process:
        wait_until(lambda: list(out.glob("features/*")), "the first part")
        out.rename(elsewhere)
        if how == "removed":
            shutil.rmtree(elsewhere)
        _, err = process.communicate(timeout=60)
        wait_for_no_orphans(process.pid)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("featurepress: Cannot ")
    assert str(out) in line
    assert not out.exists()
    if how == "renamed":
        assert_only_whole_parts(elsewhere)
        done = run_cli("resume", elsewhere)
        assert done.returncode == 0, done.stderr
        assert_same_result(elsewhere, undisturbed)
