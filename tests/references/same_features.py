"""A small set of images as a folder, a tar archive and a Parquet table, and the hashes of their features.

Run it to write `same_features.json` anew: ``python -m tests.references.same_features``.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import featurepress as fp

REFERENCE = Path(__file__).with_suffix(".json")
SIZES = [(96, 96), (100, 100), (64, 48), (137, 91), (301, 200), (500, 375), (1, 1), (33, 640)]
POOLINGS = ("avg", "flatten")
KINDS = ("folder", "tar", "parquet")


def images() -> dict[str, bytes]:
    """Draw images as PNG, whose pixels every decoder reads alike: waves, noise and edges of several sizes."""
    drawn = {}
    for number in range(24):
        width, height = SIZES[number % len(SIZES)]
        rng = np.random.default_rng(number)
        y, x = np.mgrid[:height, :width]
        waves = np.sin(x[..., None] * rng.uniform(0.01, 0.5, 3) + y[..., None] * rng.uniform(0.01, 0.5, 3))
        levels = 127.5 + 90 * waves + rng.normal(0, 12, (height, width, 3))
        levels[y > x * rng.uniform(0.2, 2)] *= rng.uniform(0.2, 1)
        file = io.BytesIO()
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        drawn[f"{number:02d}.png"] = file.getvalue()
    return drawn


def write(kind: str, place: Path) -> str:
    """Write the images as a folder, an archive or a table; return its path."""
    drawn = images()
    if kind == "folder":
        (place / "images").mkdir(parents=True)
        for name, data in drawn.items():
            (place / "images" / name).write_bytes(data)
        return str(place / "images")
    place.mkdir(parents=True, exist_ok=True)
    if kind == "tar":
        with tarfile.open(place / "images.tar", "w") as archive:
            for name, data in drawn.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return str(place / "images.tar")
    pq.write_table(pa.table({"image": list(drawn.values())}), place / "images.parquet")
    return str(place / "images.parquet")


def features(kind: str, pooling: str, place: Path) -> Any:
    """Embed one form of the images: array (24, n_features) float32, in the order of their numbers."""
    source = write(kind, place / f"{kind}-{pooling}")
    options: dict[str, Any] = {"model": "embedded", "pooling": pooling, "precision": "float32", "workers": 1}
    found = fp.embed(source, place / f"out-{kind}-{pooling}", **options)
    order = sorted(range(len(found)), key=lambda row: str(found.uris[row]).rpartition("row=")[2].zfill(200))
    return found.to_numpy()[order]


def machine() -> dict[str, str]:
    """Return what the bits of a feature depend on: the CPU, and the versions of what computes."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    vectors = " ".join(sorted(flag for flag in flags if flag.startswith(("avx", "amx"))))
    return {"cpu": cpu, "vectors": vectors} | {
        name: version(name) for name in ("openvino", "opencv-python-headless", "numpy")
    }


def digest(X: Any) -> str:
    """Return the hash of the features' bits."""
    return hashlib.sha256(np.ascontiguousarray(X, np.float32).tobytes()).hexdigest()


def main(place: Path) -> None:
    """Write the reference."""
    found = {pooling: {kind: features(kind, pooling, place) for kind in KINDS} for pooling in POOLINGS}
    REFERENCE.write_text(
        json.dumps(
            {
                "machine": machine(),
                "sha256": {pooling: {k: digest(X) for k, X in by.items()} for pooling, by in found.items()},
                "first": {p: np.round(by["folder"][:, :4].astype(float), 4).tolist() for p, by in found.items()},
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
