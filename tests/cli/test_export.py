"""featurepress export: what it prints and how it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from featurepress.runs.verbs import run_plan
from featurepress.testing import InlineEngine
from tests.running import draft, draw, names_below, run_here, snapshot, started

N_PICTURES = 11


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = draw(tmp_path_factory.mktemp("in"), N_PICTURES), tmp_path_factory.mktemp("set") / "set"
    run_plan(draft(out, source, labels="parent", images_per_part=4), engine=InlineEngine())
    return out


# -- what it prints ------------------------------------------------------------------------------------------


def test_people_read_on_stderr_what_was_written(tmp_path: Path, finished: Path) -> None:
    done = run_here("export", finished, "--to", "x.npy", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    rows, n_bytes, time, where = done.stderr.splitlines()
    assert rows == "rows   11, each of 12 features"
    assert n_bytes == f"bytes  {(tmp_path / 'x.npy').stat().st_size} B in 1 file"
    assert re.fullmatch(r"time   \d+\.\d s, [\d.]+ k?B/s", time)
    assert where == f"where  {tmp_path / 'x.npy'}"
    assert names_below(tmp_path) == ["x.npy"]


def test_few_of_many_files_are_named(tmp_path: Path, finished: Path) -> None:
    done = run_here("export", finished, "--to", tmp_path / "x.csv", "--parts", "5")
    assert done.stderr.splitlines()[3:] == [
        f"{'where' if i == 0 else '':7}{tmp_path}/x-{i:05d}-of-00005.csv" for i in range(5)
    ]
    done = run_here("export", finished, "--to", tmp_path / "y.csv", "--parts", "12")
    assert "in 12 files" in done.stderr
    assert done.stderr.splitlines()[-1] == "       and 7 more, up to y-00011-of-00012.csv"
    assert len(names_below(tmp_path)) == 17


def test_a_result_is_one_json_document(tmp_path: Path, finished: Path) -> None:
    done = run_here("export", finished, "--to", tmp_path / "x.npz", "--parts", "2", "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    paths = [tmp_path / f"x-0000{i}-of-00002.npz" for i in (0, 1)]
    assert result.pop("seconds") > 0
    assert result == {
        "files": [str(path) for path in paths],
        "rows": N_PICTURES,
        "n_features": 12,
        "bytes": sum(path.stat().st_size for path in paths),
    }


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path: Path, finished: Path) -> None:
    done = run_here("export", finished, "--to", tmp_path / "[red]früh 柠檬[/red].npy")
    assert done.returncode == 0, done.stderr
    assert f"where  {tmp_path}/[red]früh 柠檬[/red].npy" in done.stderr
    assert np.load(tmp_path / "[red]früh 柠檬[/red].npy").shape == (N_PICTURES, 12)


def test_help_names_the_formats() -> None:
    done = run_here("export", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for word in (".npy", ".npz", ".csv", ".parquet", ".arrow", "--parts", "--json"):
        assert word in done.stdout


# -- how it refuses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["set"], ["--to"]),
        (["set", "--to", "x.txt"], ["--to", ".parquet or .arrow", "'x.txt'"]),
        (["set", "--to", "x.parqet"], ["did you mean '.parquet'?"]),
        (["set", "--to", "x.npy", "--parts", "0"], ["'parts' setting", "from 1 to 99999", "Got 0"]),
        (["set", "--to", "x.npy", "--parts", "two"], ["'parts' setting", "integer", "'two'"]),
        (["set", "--to", "x.npy", "--part", "2"], ["--part", "--parts"]),
        (["set", "--to", "there.npy"], ["there.npy' already exists", "choose another --to"]),
        (["set", "--to", "set/features/x.parquet"], ["set/features'", "feature set itself"]),
        (["set", "--to", "there.npy/x.npy"], ["Cannot create", "there.npy'", "Choose another --to"]),
        (["set", "--to", "/proc/x.npy"], ["'/proc/x.npy'", "Choose another --to"]),
        (["set", "--to", "ftp://host/x.npy"], ["'ftp'", "s3://"]),
        (["nowhere", "--to", "x.npy"], ["'nowhere' is not a feature set"]),
        (["incomplete", "--to", "x.npy"], ["not complete", "featurepress resume"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line_and_writes_nothing(
    tmp_path: Path, finished: Path, arguments: list[str], parts: list[str]
) -> None:
    (tmp_path / "set").symlink_to(finished)
    (tmp_path / "incomplete" / "plan").mkdir(parents=True)
    (tmp_path / "incomplete" / "plan" / "plan.json").write_bytes((finished / "plan" / "plan.json").read_bytes())
    (tmp_path / "there.npy").write_text("mine")
    before = snapshot(tmp_path), snapshot(finished)
    done = run_here("export", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("featurepress: ")
    assert line.endswith((".", "?"))
    for part in parts:
        assert part in line
    assert (snapshot(tmp_path), snapshot(finished)) == before


def test_an_error_is_one_json_document_too(tmp_path: Path, finished: Path) -> None:
    done = run_here("export", finished, "--to", tmp_path / "x.txt", "--json")
    result = json.loads(done.stdout)
    assert (result["kind"], result["exit_code"], done.returncode) == ("SettingError", 2, 2)
    assert done.stderr == f"featurepress: {result['error']}\n"


LIMITED = """
import resource
from featurepress.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
main()
"""


def test_a_disk_that_takes_no_more_is_one_line(tmp_path: Path, finished: Path) -> None:
    command = (sys.executable, "-c", LIMITED)
    with started("export", finished, "--to", tmp_path / "x.npy", command=command) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == f"featurepress: Cannot write '{tmp_path / 'x.npy'}': file too large.\n"
    assert names_below(tmp_path) == []
