"""Feature sets of rows around one centre per class, which classifiers can separate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurepress.features.feature_set import FeatureSet
from tests.features.feature_sets import made

LABELS = ("apple", "banana", "cherry")


def cloud(
    n_samples: int, n_features: int = 12, *, spread: float = 1.0, random_state: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.str_]]:
    """Return rows around fixed centres, in order of their labels."""
    centres = 2 * np.random.default_rng(7).normal(size=(len(LABELS), n_features))
    codes = np.sort(np.arange(n_samples) % len(LABELS))
    noise = np.random.default_rng(random_state).normal(size=(n_samples, n_features))
    X = (centres[codes] + spread * noise).astype(np.float32)
    return X, np.array(LABELS)[codes]


def cloud_set(out: Path, n_samples: int = 240, **options: Any) -> FeatureSet:
    """Write a cloud as a feature set with labels; lists are fields."""
    fields = {name: options.pop(name) for name in list(options) if isinstance(options[name], list)}
    rows_a_part = options.pop("rows_a_part", 50)
    X, y = cloud(n_samples, **options)
    uris = [f"{out.name}-{i:05d}.jpg" for i in range(n_samples)]
    labels = fields.pop("label", y.tolist())
    return made(out, X, uris, rows_a_part=rows_a_part, distinct=True, label=labels, **fields)
