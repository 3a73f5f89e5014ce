"""What 20 ms added to every request of a bucket cost: the same pictures with and without, in turns.

python -m benchmarks.latency [N_IMAGES] [PRECISION]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from featurepress.models.catalog import find_card
from featurepress.run import press_plan
from featurepress.sources.kinds import open_source
from featurepress.storage import FolderStorage, Storage
from featurepress.testing import DelayedStorage, PlanMaker, delayed_source
from benchmarks.stages import fruits  # type: ignore[attr-defined]

DELAY_SECONDS = 0.02
ROUNDS = 3


def images_per_second(pictures: Path, out: Path, delay_seconds: float, precision: str) -> float:
    storage: Storage = FolderStorage(str(out))
    if delay_seconds:
        storage = DelayedStorage(str(out), delay_seconds)
    backbone = find_card("embedded").backbone("avg")
    plan = PlanMaker(storage, backbone)(delayed_source(str(pictures), delay_seconds=delay_seconds), precision=precision)
    summary = press_plan(plan).summary
    return float(summary.images_per_second)
