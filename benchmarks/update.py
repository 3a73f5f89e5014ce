"""Time of an update compared with the run that made the set: 1 % of the images new, 1 % changed, 1 % deleted.

    python -m benchmarks.update [--images N]

MobileNetV2 1.0 at 96, random weights, float32, pooled. No two images have the same bytes, and the changed ones get
other bytes. The counts show how many images were embedded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import featurepress as fp
from benchmarks.speed import SHARED, copy_images, headline
from featurepress.models.verbs import add

_CREATE = """
import keras, sys
keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3)).save(sys.argv[1])
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        os.environ["FEATUREPRESS_HOME"] = str(Path(work, "home"))
        create_model(Path(work), "drawn")
        folder = copy_images(SHARED / "data", Path(work, "images"), arguments.images)
        images = sorted(folder.rglob("*.jpg"))
        for number, path in enumerate(images):  # after the end marker, which decoders ignore
            with path.open("ab") as file:
                file.write(number.to_bytes(4, "little"))
        out = Path(work, "features")
        whole = fp.embed(str(folder), out, model="drawn", precision="float32").summary.seconds
        for path in images[::100]:
            path.unlink()
        for path in images[1::100]:
            with path.open("ab") as file:
                file.write(b"changed")
        for path in images[2::100]:
            path.with_name(f"new-{path.name}").write_bytes(path.read_bytes() + b"new")
        update = fp.update(out).summary
        print(headline())
        print(f"full run {whole:.1f} s, update {update.seconds:.1f} s: {update.seconds / whole:.3f}")
        print(update.changes)


def create_model(folder: Path, name: str) -> None:
    """Create MobileNetV2 1.0 at 96, and add it under a name, in FEATUREPRESS_HOME."""
    model = folder / "model.keras"
    environment = {**os.environ, "KERAS_BACKEND": "openvino"}
    subprocess.run([sys.executable, "-c", _CREATE, str(model)], env=environment, check=True)
    add(str(model), name, mode="tf")


if __name__ == "__main__":
    main()
