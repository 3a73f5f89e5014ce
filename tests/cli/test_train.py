"""featurepress train and evaluate: the options of docs/how-to/train.md exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.running import run_cli

DOCS = (Path(__file__).parents[2] / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")


def test_every_documented_option_exists() -> None:
    helped = {verb: run_cli(verb, "--help").stdout for verb in ("train", "evaluate")}
    options = re.findall(r"^\| `(--[a-z-]+)[ `]", DOCS.partition("## Options")[2], re.MULTILINE)
    assert len(set(options)) == 13
    assert [option for option in options if option not in helped["train"]] == []
    own = ("--kind", "--regularization", "--n-neighbors", "--balanced", "--random-state")
    assert [option for option in options if option not in own and option not in helped["evaluate"]] == []
    assert "--report" in helped["evaluate"]
