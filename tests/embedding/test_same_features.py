"""The features of a fixed set of images are those of version 0.1, bit for bit, whatever holds the images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.references import same_features as reference

KNOWN = json.loads(reference.REFERENCE.read_text())


@pytest.mark.parametrize("pooling", reference.POOLINGS)
def test_features_are_those_of_version_0_1(tmp_path: Path, pooling: str) -> None:
    found = {kind: reference.features(kind, pooling, tmp_path) for kind in reference.KINDS}
    hashes = {kind: reference.digest(X) for kind, X in found.items()}
    assert len(set(hashes.values())) == 1
    # Another CPU or library rounds otherwise: there only the values can be compared.
    if reference.machine() == KNOWN["machine"]:
        assert hashes == KNOWN["sha256"][pooling]
    np.testing.assert_allclose(found["folder"][:, :4], KNOWN["first"][pooling], rtol=2e-2, atol=2e-2)
