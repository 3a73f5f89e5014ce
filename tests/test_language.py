"""Source, docs and README are written in the plain words of the field: old words do not come back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.html"),
        *(ROOT / "src").rglob("*.j2"),
    ]
)

INSTEAD = {  # a pattern of the old words, and what to write instead
    r"\bpress(es|ed|ing|er)?\b": "embed, process",
    r"\"\"\"Gives?\b": "Return",
    r"\b(tells?|told|telling)\b": "predict, classify, report",
    r"\btwins?\b": "near-duplicates",
    r"\bpictures?\b": "image",
    r"\btapes?\b": "reader",
    r"\bsight\b": "access, visibility",
    r"\b(unspeakable|bury|buried|obituary)\b": "the concrete word",
    r"\b(say_nothing|standing)\b": "ignore_progress, existing",
    r"\bfor the price of\b": "only what changed is processed",
    r"\bis held against\b": "is matched against, is compared with",
    r"\bbrings? along\b|\bbrought along\b": "the concrete verb",
    r"\blonger and longer apart\b": "with exponential back-off",
    r"\b(the|of|no|two|some|these|their) looks\b": "the concrete noun",
    r"\b(comes of it|is to be had|at hand|stands? in for)\b": "the concrete verb",
}
WORDS = re.compile("|".join(f"(?P<w{i}>{pattern})" for i, pattern in enumerate(INSTEAD)), re.IGNORECASE)
ALLOWED = re.compile(r"\.tell\b|def tell\(|[Pp]ress (Ctrl|Enter|a key)")  # of files, and of keys


def old_words(text: str) -> list[tuple[int, str, str]]:
    """Return line number, word and replacement of each old word in a text."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for match in WORDS.finditer(ALLOWED.sub("", line)):
            assert match.lastgroup is not None
            replacement = list(INSTEAD.values())[int(match.lastgroup[1:])]
            found.append((number, match.group(), replacement))
    return found


def test_no_old_words_in_source_and_docs() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: '{word}' (write: {replacement})"
        for path in FILES
        for number, word, replacement in old_words(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "\n".join(["words to avoid:", *found])


@pytest.mark.parametrize(
    "line",
    [
        '"""Give the rows."""',
        "a model tells fruit",
        "12 pressed",
        "twins",
        "420 pictures",
        "for the price of the change",
    ],
)
def test_old_words_are_found(line: str) -> None:
    assert [number for number, _, _ in old_words(f"fine\n{line}")] == [2]


@pytest.mark.parametrize("line", ["featurepress", "file.tell()", "compressed", "impression", "Press Ctrl-C"])
def test_other_words_are_not(line: str) -> None:
    assert old_words(line) == []
