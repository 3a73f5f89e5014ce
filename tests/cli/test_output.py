"""What the command prints, and where: results for machines on stdout, everything for people on stderr."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import threading
from pathlib import Path

import pytest

import featurepress as fp
from tests.running import (
    COMMAND,
    draw,
    read_rows,
    run_cli,
    run_here,
    snapshot,
    started,
    wait_for_no_orphans,
    wait_until,
)

SMALL = ("--precision", "float32", "--workers", "1")
# Spaces, what rich takes for markup or an emoji, globs' brackets, quotes, letters beyond ASCII, a dash in front.
ODD_NAMES = ('früh 柠檬 it\'s "quoted"', "[red]x[/red] [bold] :apple:", "-dash")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("in"), 8)


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "out"
    assert run_cli("embed", source, "--out", out, "--labels", "parent", *SMALL).returncode == 0
    return out


# -- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("embed",), ("resume",), ("info",), ("demo",)])
def test_help_is_printed_on_stdout(command: tuple[str, ...]) -> None:
    done = run_here(*command, "--help" if command else "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: featurepress" in done.stdout


def test_help_names_every_setting() -> None:
    from featurepress.settings import declared

    text = run_here("embed", "--help").stdout
    for _, item, rule in declared():
        assert (rule.flag or "--" + item.name.replace("_", "-")) in text


def test_the_version_is_printed() -> None:
    done = run_cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"featurepress {fp.__version__}\n", "")


def test_the_command_alone_shows_its_help() -> None:
    done = run_here()
    assert done.returncode == 2
    assert "Usage: featurepress" in done.stdout + done.stderr
    assert "featurepress: ." not in done.stderr


# -- bad options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["embed"], ["SOURCES"]),
        (["embad"], ["embad", "'embed'"]),
        (["embed", "in", "--lables", "parent"], ["--lables", "--labels"]),
        (["embed", "in", "--workers", "two"], ["workers", "integer", "'two'"]),
        (["embed", "in", "--workers", "0"], ["workers", "from 1 to 1024", "0"]),
        (["embed", "in", "--workers", "1.5"], ["workers", "integer", "1.5"]),
        (["embed", "in", "--limit", "-3"], ["limit", "at least 1", "-3"]),
        (["embed", "in", "--max-failures", "nan"], ["max_failures", "from 0 to 1", "nan"]),
        (["embed", "in", "--max-failures", "lots"], ["max_failures", "from 0 to 1", "lots"]),
        (["embed", "in", "--timeout-seconds", "0"], ["timeout", "0.1"]),
        (["embed", "in", "--pooling", "avgg"], ["pooling", "'avg', 'flatten' or 'max'", "'avgg'", "did you mean"]),
        (["embed", "in", "--labels", "folder"], ["labels", "'parent' or a pattern", "'folder'"]),
        (["embed", "in", "--format", "cvs"], ["format", "did you mean 'csv'"]),
        (["embed", "in", "--model", "embeded"], ["embeded", "did you mean", "embedded"]),
        (["embed", "in", "--memory-bytes", "4XB"], ["memory", "4GB", "'4XB'"]),
        (["embed", "in", "--memory-bytes", "10MB"], ["memory_bytes", "at least", "10000000"]),
        (["embed", "in", "--max-bytes", "-1"], ["max_bytes", "'-1'"]),
        (["embed", "hdfs://host/x"], ["'hdfs'", "s3://"]),
        (["embed", "s3://bucket/x"], ["credentials", "AWS_ACCESS_KEY_ID", "--anonymous"]),
        (["embed", "nowhere"], ["'nowhere'", "no such file or folder"]),
        (["embed", "in/*.png"], ["in/*.png", "No image matches"]),
        (["embed", "in", "in"], ["overlap"]),
        (["resume", "nowhere"], ["nowhere", "nothing to resume"]),
        (["resume"], ["DEST"]),
        (["info", "nowhere"], ["nowhere", "not a feature set"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line_that_says_what_and_how_to_mend_it(
    tmp_path: Path, source: Path, arguments: list[str], parts: list[str]
) -> None:
    (tmp_path / "in").symlink_to(source)
    before = snapshot(tmp_path)
    done = run_here(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("featurepress: ")
    for part in parts:
        assert part in line
    assert line.endswith((".", "?"))
    assert not line.endswith(("..", "?."))
    assert snapshot(tmp_path) == before


# -- JSON ----------------------------------------------------------------------------------------------------


def only_json(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    value = json.loads(done.stdout)  # fails on two documents, and on any other text
    assert isinstance(value, dict)
    return value


def test_a_result_is_one_json_document_and_people_read_stderr(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    for already_done in (False, True):
        done = run_here("embed", source, "--out", out, "--json", *SMALL)
        assert done.returncode == 0
        result = only_json(done)
        assert result["listed"] == result["embedded"] == 8
        assert result["failed"] == 0
        assert result["already_done"] is already_done
        assert result["location"] == str(out)
        assert result["status"] == "complete"
        assert result["n_features"] == 1280
        assert "8 listed, 8 embedded, 0 failed" in done.stderr
    assert only_json(run_here("resume", out, "--json"))["already_done"] is True
    assert only_json(run_here("info", out, "--json"))["status"] == "complete"


def test_too_many_failures_are_one_json_document(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 4, broken=True)
    done = run_here("embed", source, "--out", tmp_path / "out", "--json", *SMALL)
    assert done.returncode == 3
    result = only_json(done)
    assert (result["listed"], result["failed"]) == (7, 3)
    assert isinstance(result["failed_by_kind"], dict)
    assert sum(result["failed_by_kind"].values()) == 3


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["embed", "nowhere"], "SourceError"),
        (["embed", "nowhere", "--dry-run"], "SourceError"),
        (["embed", "in", "--memory-bytes", "4XB"], "SettingError"),
        (["embed", "in", "--lables", "x"], "UsageError"),
        (["embed", "in", "--out", "/proc/x"], "DestinationError"),
        (["resume", "nowhere"], "FeatureSetError"),
        (["info", "nowhere"], "FeatureSetError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_json_document_too(tmp_path: Path, source: Path, arguments: list[str], kind: str) -> None:
    (tmp_path / "in").symlink_to(source)
    done = run_here(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2
    result = only_json(done)
    assert (result["kind"], result["exit_code"]) == (kind, 2)
    assert done.stderr == f"featurepress: {result['error']}\n"


# -- estimates -----------------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing_and_agrees_with_the_run(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    line = ("embed", source, "--out", out, "--images-per-part", "3", "--limit", "7")
    said = run_here(*line, "--dry-run")
    assert said.returncode == 0
    assert said.stdout == ""
    assert "7 images" in said.stderr
    assert "3 parts of 1,280 features" in said.stderr
    estimate = only_json(run_here(*line, "--dry-run", "--json"))
    assert not out.exists()
    result = only_json(run_here(*line, "--json", *SMALL))
    assert estimate["images"] == result["listed"] == 7
    assert estimate["parts"] == result["parts"] == 3
    assert estimate["bytes"] == result["bytes_read"]
    assert estimate["skipped"] == result["skipped"]


def test_patterns_select_images_and_can_be_repeated(source: Path) -> None:
    first, second, *others = sorted(path.name for path in source.rglob("*.*"))
    line = ("embed", source, "--dry-run", "--json")
    assert only_json(run_here(*line, "--include", first, "--include", second))["images"] == 2
    assert only_json(run_here(*line, "--exclude", first, "--exclude", second))["images"] == len(others)


# -- info ----------------------------------------------------------------------------------------------------


def test_info_is_printed_on_stdout(finished: Path, source: Path) -> None:
    done = run_here("info", finished)
    assert (done.returncode, done.stderr) == (0, "")
    for text in (str(finished), "complete", "8 embedded, 0 failed", "1,280 float32", "float32", str(source)):
        assert text in done.stdout


def test_info_of_an_unfinished_set_says_so(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    assert run_here("embed", source, "--out", out, *SMALL).returncode == 0
    (out / "manifest.json").unlink()
    done = run_here("info", out)
    assert done.returncode == 0
    assert "incomplete" in done.stdout
    assert only_json(run_here("info", out, "--json"))["status"] == "incomplete"


def test_a_reader_that_goes_away_is_no_error(finished: Path) -> None:
    command = " ".join(COMMAND)
    for options in ("", "--json"):
        line = f"{command} info {finished} {options} | head -1"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 1
        assert done.stderr == ""


def test_output_that_cannot_be_written_is_an_error(finished: Path) -> None:
    for options in ([], ["--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*COMMAND, "info", str(finished), *options],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr == "featurepress: Cannot write the output: no space left on device.\n"


def test_a_closed_standard_error_does_no_harm(finished: Path) -> None:
    line = f"{' '.join(COMMAND)} info {finished} --json 2>&-"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "complete"


def test_a_reader_that_is_gone_from_the_start_is_no_error(finished: Path) -> None:
    for options in ([], ["--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            process = subprocess.run(
                [*COMMAND, "info", str(finished), *options],
                stdout=writing,
                stderr=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        finally:
            os.close(writing)
        assert process.stderr == b""


# -- odd names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_places_are_printed_as_they_are(tmp_path: Path, name: str) -> None:
    draw(tmp_path / f"{name} in", 2)
    source = f"./{name} in" if "[" not in name else f"./{name.replace('[', '[[]')} in"
    out = tmp_path / f"{name} out"
    done = run_here("embed", "--out", str(out), *SMALL, "--", source, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stderr
    assert set(read_rows(out)) == {f"./{p.relative_to(tmp_path)}" for p in tmp_path.rglob("*.jpg")}
    done = run_here("info", "--", str(out))
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    assert source in done.stdout
    (out / "manifest.json").unlink()
    failed = run_here("embed", "--limit", "1", "--out", str(out), "--", source, cwd=tmp_path)
    assert failed.returncode == 2
    assert f"'{out}' holds another plan" in failed.stderr


def test_a_name_that_is_no_utf_8_is_printed_somehow(tmp_path: Path) -> None:
    place = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    draw(Path(place), 2)
    out = place + " out"
    done = run_cli("embed", place, "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    for options in ((), ("--json",)):
        shown = run_cli("info", out, *options)
        assert shown.returncode == 0, shown.stderr
        assert "Traceback" not in shown.stderr


def test_a_resume_line_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    """Whatever the destination's name: the printed command finishes the run."""
    source, out = draw(tmp_path / "in", 400), tmp_path / "it's [red] früh"
    with started("embed", source, "--out", out, "--images-per-part", "6", "--precision", "float32") as process:
        wait_until(lambda: list(out.glob("features/*")), "a part")
        process.terminate()
        _, err = process.communicate(timeout=60)
        wait_for_no_orphans(process.pid)
    assert process.returncode == 143
    (line,) = re.findall(r"Continue with: featurepress (resume .*)", err)
    done = subprocess.run(
        f"{' '.join(COMMAND)} {line}", shell=True, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (out / "manifest.json").exists()


# -- the live line -------------------------------------------------------------------------------------------


def run_in_terminal(*arguments: str | Path) -> tuple[int, str]:
    """Run with a terminal as standard error; return the exit code and the output."""
    ours, theirs = pty.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the last writer has gone
                return
            if not chunk:
                return
            chunks.append(chunk)

    reader = threading.Thread(target=read)
    try:
        with started(*arguments, stderr=theirs) as process:
            os.close(theirs)
            reader.start()
            process.communicate(timeout=120)
        reader.join(30)
        assert not reader.is_alive()
    finally:
        os.close(ours)
    return process.returncode, b"".join(chunks).decode()


def test_a_terminal_shows_one_live_line(tmp_path: Path) -> None:
    source = draw(tmp_path / "in", 1_200, broken=True)
    line = ("embed", source, "--out", tmp_path / "out", "--images-per-part", "50", *SMALL)
    code, text = run_in_terminal(*line)
    assert code == 0, text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    shown = re.findall(r"embedding ([\d,]+) of [^·]*1,203[^·]* · ([\d,]+) images/s · (\d+) failed", plain)
    assert len(shown) >= 2, plain
    done = [int(one[0].replace(",", "")) for one in shown]
    assert done == sorted(done)
    assert done[-1] <= 1_203
    assert " left" in plain
    assert "1,203 listed, 1,200 embedded, 3 failed" in plain
    assert max(map(len, re.split(r"[\r\n]+", plain.partition("images     ")[0]))) < 120


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_without_a_terminal_nothing_of_the_live_line_appears(
    tmp_path: Path, source: Path, environment: dict[str, str]
) -> None:
    done = run_cli("embed", source, "--out", tmp_path / "out", *SMALL, environment=environment)
    assert done.returncode == 0
    for trace in ("embedding", "probing", "starting", "\r", " left"):
        assert trace not in done.stderr
    if not environment:
        assert "\x1b" not in done.stderr


# -- demo ----------------------------------------------------------------------------------------------------


def test_the_demo_draws_what_embed_then_embeds(tmp_path: Path) -> None:
    drawn = run_here("demo", "orchard", cwd=tmp_path)
    assert drawn.returncode == 0
    assert "broken files into orchard" in drawn.stderr
    estimate = only_json(run_here("embed", "orchard", "--dry-run", "--json", cwd=tmp_path))
    assert isinstance(estimate["images"], int)
    assert estimate["images"] > 300


def test_a_demo_into_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = run_here("demo", tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
