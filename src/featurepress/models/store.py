"""Where the files of models lie, found by the hash of their content."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from featurepress.errors import ModelError
from featurepress.models.catalog import CARDS

BUNDLED = Path(__file__).parent / "bundled"


@functools.cache
def model_file(weights_sha256: str) -> Path:
    """Give the model file with this content.

    Parameters
    ----------
    weights_sha256 : str
        64 hexadecimal digits.

    Raises
    ------
    ModelError
        There is no such file here, or its content is not what its name promises.
    """
    card = next((card for card in CARDS if card.weights_sha256 == weights_sha256), None)
    if card is None:
        raise ModelError(
            f"No model with the weights {weights_sha256[:12]}… is known to this featurepress. "
            "Install the version that made the plan."
        )
    return verified(BUNDLED / card.file, weights_sha256)


def verified(path: Path, weights_sha256: str) -> Path:
    """Give `path` if its content has this hash.

    Raises
    ------
    ModelError
        It has not, or there is no such file.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"The model file '{path}' cannot be read ({error}). Reinstall featurepress.") from error
    if found != weights_sha256:
        raise ModelError(
            f"The model file '{path}' has the hash {found[:12]}…, its card says {weights_sha256[:12]}…. "
            "Reinstall featurepress."
        )
    return path
