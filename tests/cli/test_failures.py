"""featurepress failures: the failure ledger, for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurepress.ledger.schemas import failure_schema
from featurepress.runs.verbs import run_plan
from featurepress.testing import InlineEngine, memory_source
from tests.running import COMMAND, clean_environment, draft, draw, read_failures, run_cli, run_here, snapshot

ODD_NAMES = ("new\nline.jpg", "esc\x1b[31m.jpg", 'com,"ma".jpg', "früh 柠檬.jpg", "[red]x[/red].jpg", "tab\t.jpg")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = draw(tmp_path_factory.mktemp("in"), 9, broken=True), tmp_path_factory.mktemp("set") / "set"
    run_plan(draft(out, source, images_per_part=4, max_failures=1.0), engine=InlineEngine())
    return out


@pytest.fixture
def many(tmp_path: Path, finished: Path) -> Path:
    """Return a set with 120 failures."""
    out = tmp_path / "many"
    for path in finished.rglob("*"):
        if path.is_file() and path.parent.name != "failures":
            (out / path.relative_to(finished)).parent.mkdir(parents=True, exist_ok=True)
            (out / path.relative_to(finished)).write_bytes(path.read_bytes())
    rows = [{"uri": f"/in/{i:03d}.jpg", "stage": "decode", "reason": "truncated: ends early"} for i in range(120)]
    (out / "failures").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, failure_schema()), out / "failures" / "part-00000000.parquet")
    return out


def odd(out: Path, good: Path) -> Path:
    """Embed pictures of which those with odd names fail."""
    data = {"a.jpg": good.read_bytes(), **dict.fromkeys(ODD_NAMES, b"no picture")}
    run_plan(draft(out, memory_source(data), max_failures=1.0), engine=InlineEngine())
    return out


def run_in_terminal(*arguments: str | Path, columns: int = 100) -> str:
    """Run with a terminal as standard output; return what appears there."""
    ours, theirs = pty.openpty()
    chunks = []
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**clean_environment(), "COLUMNS": str(columns)},
    )
    os.close(theirs)
    try:
        while chunk := os.read(ours, 65536):
            chunks.append(chunk)
    except OSError:  # the last writer has gone
        pass
    finally:
        os.close(ours)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(chunks).decode()).replace("\r\n", "\n")


# -- for people ----------------------------------------------------------------------------------------------


def test_counts_stand_above_the_rows(finished: Path) -> None:
    done = run_here("failures", finished)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *lines = done.stdout.splitlines()
    failures = read_failures(finished)
    kinds = Counter(f"{stage}: {reason.partition(':')[0]}" for _, stage, reason in failures)
    assert heading.split(" · ")[0] == "3 of 12 images failed"
    assert heading.split(" · ")[1:] == [f"{kinds[kind]} {kind}" for kind in sorted(kinds)]
    assert [tuple(line.split("\t")) for line in lines] == failures


def test_a_terminal_shows_a_table(finished: Path) -> None:
    heading, header, *lines = run_in_terminal("failures", finished, columns=200).splitlines()
    assert heading.startswith("3 of 12 images failed · ")
    assert header.split() == ["uri", "stage", "reason"]
    assert [tuple(re.split(r"\s{2,}", line.rstrip())) for line in lines] == read_failures(finished)


def test_nothing_is_cut_off_in_a_narrow_terminal(finished: Path) -> None:
    text = run_in_terminal("failures", finished, columns=60)
    assert all(len(line) <= 60 for line in text.splitlines()[1:])
    squeezed = re.sub(r"\s", "", text)
    for uri, _, _ in read_failures(finished):
        for name in Path(uri).name.split("."):
            assert name in squeezed
    assert "…" not in text


def test_a_terminal_shows_50_rows_and_says_how_many_more(many: Path) -> None:
    lines = run_in_terminal("failures", many).splitlines()
    assert lines[0] == "120 of 129 images failed · 120 decode: truncated"
    assert [line.split()[0] for line in lines[2:-1]] == [f"/in/{i:03d}.jpg" for i in range(50)]
    assert lines[-1] == "and 70 more; --limit 0 shows all, --csv prints them for programs"
    assert len(run_in_terminal("failures", many, "--limit", "0").splitlines()) == 122
    assert len(run_in_terminal("failures", many, "--limit", "120").splitlines()) == 122
    assert run_in_terminal("failures", many, "--limit", "7").splitlines()[-1].startswith("and 113 more;")


def test_a_pipe_gets_all_rows_unless_told_otherwise(many: Path) -> None:
    assert len(run_here("failures", many).stdout.splitlines()) == 121
    lines = run_here("failures", many, "--limit", "7").stdout.splitlines()
    assert len(lines) == 9
    assert lines[-1].startswith("and 113 more;")


def test_names_are_no_commands_to_the_terminal(tmp_path: Path) -> None:
    odd(tmp_path / "set", next(draw(tmp_path / "in", 1).rglob("*.jpg")))
    for text in (run_in_terminal("failures", tmp_path / "set"), run_here("failures", tmp_path / "set").stdout):
        for shown in (r"new\nline.jpg", r"esc\x1b[31m.jpg", r"tab\t.jpg", "früh 柠檬.jpg", "[red]x[/red].jpg"):
            assert shown in text
    assert len(run_here("failures", tmp_path / "set").stdout.splitlines()) == 1 + len(ODD_NAMES)


def test_a_set_without_failures_says_so(tmp_path: Path) -> None:
    run_plan(draft(tmp_path / "set", draw(tmp_path / "in", 2)), engine=InlineEngine())
    assert run_here("failures", tmp_path / "set").stdout == "0 of 2 images failed\n"
    assert run_in_terminal("failures", tmp_path / "set") == "0 of 2 images failed\n"
    assert run_here("failures", tmp_path / "set", "--csv").stdout == "uri,stage,reason\n"
    assert run_here("failures", tmp_path / "set", "--json").stdout == "[]\n"


# -- for programs --------------------------------------------------------------------------------------------


def test_csv_holds_all_failures(tmp_path: Path, finished: Path, many: Path) -> None:
    odd(tmp_path / "odd", next(draw(tmp_path / "in", 1).rglob("*.jpg")))
    for out in (finished, many, tmp_path / "odd"):
        done = run_here("failures", out, "--csv")
        assert (done.returncode, done.stderr) == (0, "")
        header, *rows = csv.reader(io.StringIO(done.stdout, newline=""))
        assert header == ["uri", "stage", "reason"]
        assert [tuple(row) for row in rows] == read_failures(out)


def test_csv_is_utf_8_whatever_the_language_of_the_terminal(tmp_path: Path) -> None:
    out = odd(tmp_path / "set", next(draw(tmp_path / "in", 1).rglob("*.jpg")))
    done = run_cli("failures", out, "--csv", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "früh 柠檬.jpg" in done.stdout


def test_json_is_one_array(finished: Path, many: Path) -> None:
    for out in (finished, many):
        done = run_here("failures", out, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert [tuple(row.values()) for row in found] == read_failures(out)
        assert {tuple(row) for row in found} == {("uri", "stage", "reason")}


def test_a_limit_holds_for_programs_too(many: Path) -> None:
    assert len(run_here("failures", many, "--csv", "--limit", "7").stdout.splitlines()) == 8
    assert len(json.loads(run_here("failures", many, "--json", "--limit", "7").stdout)) == 7
    assert len(json.loads(run_here("failures", many, "--json", "--limit", "0").stdout)) == 120


def test_a_reader_that_goes_away_is_no_error(many: Path) -> None:
    for options in ("", "--csv", "--json"):
        line = f"{' '.join(COMMAND)} failures {many} {options} | head -1"
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 1


# -- other sets ----------------------------------------------------------------------------------------------


def test_an_unfinished_set_is_shown_with_a_note(tmp_path: Path, finished: Path) -> None:
    out = tmp_path / "a set"
    source = draw(tmp_path / "in", 4, broken=True)
    run_plan(draft(out, source, max_failures=1.0), engine=InlineEngine())
    (out / "manifest.json").unlink()
    for options in ([], ["--csv"], ["--json"]):
        done = run_here("failures", out, *options)
        assert done.returncode == 0
        assert "list.jpg" in done.stdout
        (note,) = done.stderr.splitlines()
        assert "not complete" in note
        assert note.endswith(f"featurepress resume '{out}'")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["nowhere"], ["'nowhere' is not a feature set"]),
        ([], ["DEST"]),
        (["set", "--limit", "-1"], ["'limit' setting", "at least 0", "Got -1"]),
        (["set", "--limit", "few"], ["'limit' setting", "integer", "'few'"]),
        (["set", "--csv", "--json"], ["--csv and --json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line(tmp_path: Path, finished: Path, arguments: list[str], parts: list[str]) -> None:
    (tmp_path / "set").symlink_to(finished)
    before = snapshot(finished)
    done = run_here("failures", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("featurepress: ")
    assert line.endswith(".")
    for part in parts:
        assert part in line
    assert snapshot(finished) == before
