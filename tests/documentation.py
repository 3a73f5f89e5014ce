"""Run the examples of README.md and docs/, and compare or replace the output that they show.

A block marked ``bash`` or ``python`` is run, and so is every ``$ `` line of an unmarked block; the other lines of
that block are its output. A block marked ``sh`` needs a bucket, a cluster or the internet, and is not run. All
examples of a page run in one folder with the orchard of ``featurepress demo``. To write the real output into the
pages: ``python -m tests.documentation [PAGE ...]``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from featurepress.demo.orchard import draw_orchard

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOME = "/home/ada"
NEEDS_A_CLUSTER = {"spark.md", "ray.md"}  # tests/engines/clusters/test_docs.py runs these


def pages(*, with_clusters: bool = False) -> list[Path]:
    """Return README.md and the pages of docs/; without clusters, only those whose examples run on any machine."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if with_clusters or page.name not in NEEDS_A_CLUSTER]


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Return the code blocks of a page: language and text."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def python_of(page: Path) -> str:
    """Return the Python blocks of a page, in order, as one script."""
    return "\n".join(
        text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language == "python"
    )


def commands_of(page: Path) -> list[str]:
    """Return the featurepress commands of all blocks of a page, each on one line and without its comment."""
    text = "\n".join(
        text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language != "python"
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [re.sub(r"^\$ |\s+#.*$", "", line) for line in lines if re.match(r"(\$ )?featurepress ", line)]


def run(command: str, folder: Path) -> str:
    """Run a shell command in a folder; return what it prints on stdout and stderr."""
    command = command.replace("featurepress ", f"{shlex.quote(sys.executable)} -m featurepress ", 1)
    environment = {**os.environ, "COLUMNS": "110", "FEATUREPRESS_HOME": str(folder / ".models")}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout.replace(str(folder.resolve()), HOME)


def run_block(text: str, folder: Path) -> str:
    """Run the ``$ `` lines of a block; return the block with the output that they print now."""
    commands = re.findall(r"^\$ (.*(?:\\\n.*)*)", text, re.MULTILINE)
    printed = [f"$ {command}\n{run(command, folder)}" for command in commands]
    return "".join(part if part.endswith("\n") else part + "\n" for part in printed)


def run_page(page: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run the examples of a page in a folder; yield each block that shows output, as it is and as it should be.

    Consecutive Python blocks share their names: each is run together with those before it.
    """
    if not (folder / "orchard").exists():
        draw_orchard(folder / "orchard")
    scripts: list[str] = []
    for language, block in blocks_of(page):
        if language == "bash":
            for command in block.replace("\\\n", " ").strip().splitlines():
                run(command, folder)
        elif language == "python":
            scripts.append(block)
        elif not language and block.startswith("$ "):
            yield block, run_block(block, folder)
    if scripts:
        script = folder / "example.py"
        script.write_text("\n".join(scripts), encoding="utf-8")
        run(f"{shlex.quote(sys.executable)} example.py", folder)


def main() -> None:
    """Replace the output in all pages, or in those named on the command line, by what the commands print now."""
    for page in pages():
        if sys.argv[1:] and page.name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            text = page.read_text(encoding="utf-8")
            for shown, printed in run_page(page, Path(folder)):
                text = text.replace(f"```\n{shown}```", f"```\n{printed}```")
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
