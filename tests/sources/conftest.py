"""Fixtures for tests of sources."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which contains some images."""
    for name in ("a/x.jpg", "a/y.png", "a/b/z.jpg", "a/b/c/x.jpg", "ab/x.jpg", "d/x.jpg", "e/n.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path
