"""The examples of the documentation run, in order, on an orchard; what the README shows is what comes out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from featurepress.demo.orchard import draw_orchard

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(README) if name == language]


@pytest.fixture(scope="module")
def orchard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    draw_orchard(folder / "orchard")
    return folder


@pytest.fixture(scope="module")
def printed(orchard: Path) -> str:
    """Run the README's embed command as it stands there; give what it prints."""
    (command,) = re.findall(r"^\$ featurepress (embed .*)$", README, re.MULTILINE)
    words = [sys.executable, "-m", "featurepress", *command.split()]
    run = subprocess.run(words, cwd=orchard, capture_output=True, text=True, timeout=120, check=True)
    return run.stderr


def test_readme_shows_what_the_command_prints(printed: str) -> None:
    shown = next(text for text in blocks("") if "$ featurepress embed" in text).splitlines()[2:]

    def stable(line: str) -> str:
        """Drop times, places, compressed sizes and measured cosines, which differ between machines and runs."""
        if line.startswith(("time", "where", "precision")):
            return line.split(maxsplit=1)[0]
        return re.sub(r"[\d.]+ MB of features", "MB of features", line)

    assert [stable(line) for line in shown] == [stable(line) for line in printed.splitlines()]


def test_readme_python_examples_run(printed: str, orchard: Path) -> None:
    script = "\n".join(blocks("python"))
    assert "open_features" in script
    assert "duckdb" in script
    guarded = "if __name__ == '__main__':\n" + "\n".join("    " + line for line in script.splitlines())
    for text in (script, guarded):  # embed works in a plain script too, without the guard multiprocessing wants
        run = subprocess.run(
            [sys.executable, "-c", text], cwd=orchard, capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, run.stderr
    assert sum(map(int, re.findall(r"^\((\d+), 1280\)$", run.stdout, re.MULTILINE))) == 572


def test_the_options_of_the_readmes_commands_stand_in_their_help() -> None:
    lines = re.sub(r"\\\n", " ", "\n".join(blocks(""))).splitlines()
    asked: dict[str, set[str]] = {}
    for line in lines:
        if match := re.match(r"(?:\$ )?featurepress ([a-z]+)(.*)", line):
            asked.setdefault(match[1], set()).update(re.findall(r" (--[a-z-]+)", match[2]))
    assert {"embed", "train", "evaluate", "predict"} <= set(asked)
    for verb, options in asked.items():
        run = subprocess.run(
            [sys.executable, "-m", "featurepress", verb, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
        )
        assert [option for option in options if option not in run.stdout] == [], verb


def test_the_models_commands_in_the_docs_are_there() -> None:
    """Every command of docs/models.md with its options, and every option of its tables."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    featurepress (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(lines) >= 8
    helped: dict[str, str] = {}

    def help_of(*words: str) -> str:
        key = " ".join(words)
        if key not in helped:
            run = subprocess.run(
                [sys.executable, "-m", "featurepress", *words, "--help"],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
                env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
            )
            helped[key] = run.stdout
        return helped[key]

    for line in lines:
        words = line.split()
        for option in re.findall(r"--[a-z-]+", line):
            assert option in help_of(*words[: 2 if words[0] == "models" else 1]), line
    for row in re.findall(r"^\| (`--.*?) \|", text, re.MULTILINE):
        for option in re.findall(r"--[a-z-]+", row):
            assert option in help_of("models", "add"), option
