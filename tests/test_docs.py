"""The examples of README.md and docs/ run, in order, on an orchard; the pages show what the commands print."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.documentation import ROOT, commands_of, pages, run_page
from tests.running import run_cli

MODELS = ROOT / "docs" / "how-to" / "models.md"


def stable(line: str) -> str:
    """Drop what differs between machines and runs: times, paths, sizes, versions and measured numbers."""
    if line.startswith(("time", "where", "precision", "bytes", "made", "parity", "        ", "report")):
        return line.split(maxsplit=1)[0]
    return re.sub(r"\b[0-9a-f]{12,}\b|[\d.,]+", "0", re.sub(r"[\d.]+ MB of features", "MB of features", line))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_and_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    for shown, printed in run_page(page, tmp_path):
        assert [stable(line) for line in shown.splitlines()] == [stable(line) for line in printed.splitlines()]


@cache
def help_of(*command: str) -> str:
    return run_cli(*command, "--help").stdout


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]), ids=lambda page: page.stem
)
def test_every_documented_command_and_option_exists(page: Path) -> None:
    for command in commands_of(page):
        words = command.split()[1:]
        known = help_of(*words[: 2 if words[0] == "models" else 1])
        options = re.findall(r" (--[a-z-]+)", command)
        assert [option for option in options if option not in known] == [], command


def test_the_documented_options_of_models_add_exist() -> None:
    rows = re.findall(r"^\| (`--.*?) \|", MODELS.read_text(encoding="utf-8"), re.MULTILINE)
    options = [option for row in rows for option in re.findall(r"--[a-z-]+", row)]
    assert len(options) >= 10
    assert [option for option in options if option not in help_of("models", "add")] == []
