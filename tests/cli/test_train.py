"""The examples of docs/train.md run, and its options are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from featurepress.demo.orchard import draw_orchard
from tests.running import run_cli

DOCS = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")


def test_the_examples_of_the_docs_run(tmp_path: Path) -> None:
    draw_orchard(tmp_path / "orchard", images_per_kind=24, scenes=0, broken=False)
    commands = re.findall(r"^    featurepress (.*)$", DOCS, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        done = run_cli(*shlex.split(command), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "leak-aware" in done.stderr
    (script,) = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120, capture_output=True)
    assert {path.name for path in (tmp_path / "fruit-model").iterdir()} == {
        "model.json",
        "classifier.npz",
        "projection.npz",
    }
    for name in ("report.html", "report.json", "python-report.html"):
        assert (tmp_path / name).is_file()


def test_every_option_of_the_docs_is_there() -> None:
    helped = {verb: run_cli(verb, "--help").stdout for verb in ("train", "evaluate")}
    options = re.findall(r"^\| `(--[a-z-]+)[ `]", DOCS.partition("## Options")[2], re.MULTILINE)
    assert len(options) == 13
    assert [option for option in options if option not in helped["train"]] == []
    own = ("--classifier", "--regularization", "--neighbors", "--balanced", "--random-state")
    assert [option for option in options if option not in own and option not in helped["evaluate"]] == []
    assert "--report" in helped["evaluate"]
