"""The protocol of a backbone, and the loader that builds one from its specification, once per process."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from featurepress.specs import BackboneSpec
from featurepress.storage import Storage

if TYPE_CHECKING:
    from featurepress.specs import Features

# runtime of BackboneSpec -> class. Closed: a plan read from disk cannot name other code.
RUNTIMES = {
    "openvino": "featurepress.models.openvino:OpenVinoBackbone",
    "fake": "featurepress.testing:FakeBackbone",
}


class Backbone(Protocol):
    """A loaded model with its pooling.

    The features of an image do not depend on the other images of the batch, on its position, or on the size of
    the batch: they are bit-for-bit the same.
    """

    @property
    def batch_size(self) -> int:
        """Number of images per call; `__call__` takes exactly this many."""

    @property
    def precision(self) -> str:
        """The precision in use, ``float32`` or ``bfloat16``."""

    def __call__(self, pixels: Any) -> Features:
        """Run the model.

        Parameters
        ----------
        pixels : array (batch_size, H, W, 3)
            RGB, of the dtype `spec.preprocess.dtype`.

        Returns
        -------
        array (batch_size, n_features) float32
            Valid until the next call.
        """


def _implementation(runtime: str) -> Any:
    module, _, name = RUNTIMES[runtime].partition(":")
    return getattr(import_module(module), name)


def supports_bfloat16(spec: BackboneSpec) -> bool:
    """Whether this machine computes in bfloat16 natively with the backbone's runtime."""
    return bool(_implementation(spec.runtime).supports_bfloat16(spec))


def load_backbone(spec: BackboneSpec, precision: str) -> Backbone:
    """Return the backbone of a specification, loaded once per process and precision.

    Parameters
    ----------
    spec : BackboneSpec
        The model to load.
    precision : str
        ``bfloat16`` is used if the CPU has it natively; else the backbone computes in float32, and its
        `precision` says so.
    """
    if precision == "bfloat16" and not supports_bfloat16(spec):
        precision = "float32"
    return _loaded(spec, precision)


def fetch_model(spec: BackboneSpec, storage: Storage) -> None:
    """Copy the model of a specification from the destination to this machine, if it is missing here."""
    if spec.file and spec.file not in _FETCHED:
        from featurepress.models.store import take_from

        take_from(storage, spec.file)
        _FETCHED.add(spec.file)


_FETCHED: set[str] = set()  # in this process


# One at a time: `auto` tries two precisions, and a large model should not stay in memory twice.
@functools.lru_cache(maxsize=1)
def _loaded(spec: BackboneSpec, precision: str) -> Backbone:
    return cast(Backbone, _implementation(spec.runtime)(spec, precision))
