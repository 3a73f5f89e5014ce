"""A guard against memory that grows with the number of images; benchmarks/ measures it in earnest."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.running import draw, started

# Embeds in its own process, so that its peak is the run's, and prints that peak in kB.
PRESS = """
import resource, sys
from pathlib import Path
from featurepress.runs.verbs import run_plan
from featurepress.testing import InlineEngine
from tests.running import draft
source, out, parts = sys.argv[1:]
run_plan(draft(Path(out), Path(source), images_per_part=int(parts), max_failures=1.0), engine=InlineEngine())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kilobytes(source: Path, out: Path, images_per_part: int = 128) -> int:
    command = (sys.executable, "-c", PRESS)
    with started(source, out, str(images_per_part), command=command) as process:
        printed, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return int(printed)


def test_six_times_the_images_take_hardly_more_memory(tmp_path: Path) -> None:
    small = peak_kilobytes(draw(tmp_path / "500", 500, image_size_px=16), tmp_path / "out-500")
    large = peak_kilobytes(draw(tmp_path / "3000", 3_000, image_size_px=16), tmp_path / "out-3000")
    assert large < 1.1 * small + 5_000


def test_large_files_are_read_ahead_within_bounds(tmp_path: Path) -> None:
    """120 files of 2 MB, all of them failures: 240 MB are read, and 32 MB may wait."""
    small, large = draw(tmp_path / "small", 3), draw(tmp_path / "large", 3)
    for i in range(120):
        (small / f"x{i}.jpg").write_bytes(b"x")
        with (large / f"x{i}.jpg").open("wb") as file:
            file.truncate(2 * 1024**2)
    base = peak_kilobytes(small, tmp_path / "out-small")
    assert peak_kilobytes(large, tmp_path / "out-large") < base + 110_000
