"""featurepress reduce: what it prints and how it refuses; the options of docs/how-to/reduce.md."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path

import pytest

import featurepress as fp
from tests.running import draw, embed, run_here


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reduce")
    draw(folder / "in", 150)
    for name in ("features", "later-features"):
        embed(str(folder / "in"), folder / name, labels="parent", precision="float32")
    return folder


def test_it_prints_the_variance_that_is_kept(work: Path, tmp_path: Path) -> None:
    done = run_here("reduce", work / "features", "--out", tmp_path / "out", "--n-components", "10", "--json")
    assert done.returncode == 0, done.stderr
    assert "150, each of 10 features instead of 1,280" in done.stderr
    kept = re.search(r"([\d.]+)% explained", done.stderr)
    result = json.loads(done.stdout)
    assert kept is not None
    assert float(kept[1]) == pytest.approx(100 * result["reduced"]["explained_variance_ratio"], abs=0.01)
    assert result["n_features"] == fp.open_features(tmp_path / "out").n_features == 10
    info = run_here("info", tmp_path / "out").stdout
    assert f"from '{work / 'features'}'" in info
    assert result["fingerprint"] in info


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n-components", "many"], "must be an integer of at least 1. Got 'many'"),
        (["--n-components", "0"], "must be an integer of at least 1. Got 0"),
        (["--n-components", "1000"], "at most 149 here"),
        (["--variance", "95"], "must be a number from 0 to 1. Got 95.0"),
        (["--n-components", "5", "--variance", "0.5"], "not both"),
        (["--solver", "exat"], "did you mean 'exact'"),
        (["--using", "features"], "is not a reduced set"),
        (["--using", "features", "--whiten"], "Leave out"),
        (["--master", "local[2]"], "--master is for --engine spark only"),
    ],
)
def test_a_bad_request_is_one_line_and_two(work: Path, tmp_path: Path, options: list[str], words: str) -> None:
    done = run_here("reduce", "features", "--out", tmp_path / "out", *options, cwd=work)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_report_is_written_with_its_pictures_beside_it(work: Path, tmp_path: Path) -> None:
    options: list[str | Path] = ["--out", tmp_path / "out", "--n-components", "10"]
    done = run_here("reduce", work / "features", *options, "--report", tmp_path / "kept.html", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"] == str(tmp_path / "kept.html")
    assert f"report    {tmp_path / 'kept.html'}" in done.stderr
    page = (tmp_path / "kept.html").read_text(encoding="utf-8")
    for words in (
        "10 components explain",
        f"{work / 'features'}",
        "10 instead of 1,280",
        "150 images, solver exact",
    ):
        assert words in page
    for name in ("variance", "map"):
        png = (tmp_path / f"kept-{name}.png").read_bytes()
        assert base64.b64encode(png).decode() in page
    again = run_here("reduce", work / "features", *options, "--report", tmp_path / "again.html")
    assert (again.returncode, (tmp_path / "again.html").read_text(encoding="utf-8")) == (0, page)
    later = tmp_path / "later.html"
    fp.reduce(work / "later-features", tmp_path / "later", using=tmp_path / "out", report=later)
    assert f"150 images, those of '{tmp_path / 'out'}'" in html.unescape(later.read_text(encoding="utf-8"))


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_done(work: Path, tmp_path: Path) -> None:
    (tmp_path / "there-map.png").write_text("mine")
    kept = sorted((work / "features").rglob("*"))
    for report, words in (
        ("report.txt", "must be a local file that ends in .html"),
        ("nowhere/report.html", "cannot be written to"),
        ("there.html", "already exists"),
    ):
        done = run_here("reduce", "features", "--out", tmp_path / "out", "--report", tmp_path / report, cwd=work)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert words in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there-map.png"]
    assert sorted((work / "features").rglob("*")) == kept


def test_no_set_and_an_unfinished_one(work: Path, tmp_path: Path) -> None:
    done = run_here("reduce", "nowhere", "--out", tmp_path / "out", cwd=work)
    assert (done.returncode, "is not a feature set" in done.stderr) == (2, True)
    (tmp_path / "begun" / "plan").mkdir(parents=True)
    (tmp_path / "begun" / "plan" / "plan.json").write_bytes((work / "features" / "plan" / "plan.json").read_bytes())
    done = run_here("reduce", tmp_path / "begun", "--out", tmp_path / "out", cwd=work)
    assert (done.returncode, "not complete" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
