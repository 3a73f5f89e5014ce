"""The architectures of Keras Applications, with ImageNet weights or the user's own, converted once.

The list, the sizes and the preprocessing come from the installed Keras, by a child process, and are stored: a run
with a stored model never imports Keras.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurepress.errors import ModelError
from featurepress.models import store
from featurepress.models.card import ModelCard
from featurepress.models.origins.weights import keras_folder
from featurepress.process import Child, ChildDiedError
from featurepress.progress import OnProgress, ignore_progress
from featurepress.specs import PreprocessSpec

# Sizes that differ from Keras's default. 96 is the smallest size with separate weights.
_DEFAULT_SIZES = {"mobilenet_v2": 96}

RANDOM = "random"  # weights for measuring speed, which does not depend on them

SILENCE_SECONDS = 1200  # of a conversion; the longest measured took 90. Downloads report progress.

_APACHE = "Apache-2.0"
# Family (keras's module) -> licence of the ImageNet weights, as their publishers state it.
_LICENCES = {
    "convnext": "MIT (Facebook Research)",
    "densenet": "BSD-3-Clause (the authors of DenseNet)",
    "efficientnet": f"{_APACHE} (Google)",
    "efficientnet_v2": f"{_APACHE} (Google)",
    "inception_resnet_v2": f"{_APACHE} (Google)",
    "inception_v3": f"{_APACHE} (Google)",
    "mobilenet": f"{_APACHE} (Google)",
    "mobilenet_v2": f"{_APACHE} (Google)",
    "mobilenet_v3": f"{_APACHE} (Google)",
    "nasnet": f"{_APACHE} (Google)",
    "resnet": "MIT (Kaiming He)",
    "resnet_v2": "not stated (published by Keras)",
    "vgg16": "CC-BY-4.0 (Visual Geometry Group, Oxford)",
    "vgg19": "CC-BY-4.0 (Visual Geometry Group, Oxford)",
    "xception": "MIT (François Chollet)",
}


@dataclass(frozen=True)
class Architecture:
    """One architecture of Keras Applications."""

    name: str  # for --model: mobilenet_v2
    keras_name: str  # of the function: MobileNetV2
    module: str  # in keras.applications: mobilenet_v2
    default_size: int  # side of the input in pixels
    min_size: int
    mode: str  # Keras's name for the preprocessing: tf, caffe, torch, or "inside the model"
    mean: tuple[float, ...]  # the same as numbers, see PreprocessSpec
    scale: tuple[float, ...]
    channel_order: str
    alpha: float | None  # default width, if the architecture has widths

    def preprocess(self, size: int) -> PreprocessSpec:
        """Return the preprocessing: stretched by plain bilinear interpolation, as ``tf.image.resize`` does."""
        return PreprocessSpec(
            height=size,
            width=size,
            interpolation="bilinear",
            antialias=False,
            dtype="float32",
            mean=self.mean,
            scale=self.scale,
            channel_order=self.channel_order,
        )

    @property
    def licence(self) -> str:
        """Licence of the ImageNet weights."""
        return _LICENCES.get(self.module, "see keras.io/api/applications")


def spelled(keras_name: str) -> str:
    """Return our spelling of Keras's name: ``InceptionResNetV2`` is ``inception_resnet_v2``."""
    name = re.sub(r"(NASNet|ConvNeXt|(?<=[a-z])V3|(?<=[a-z0-9])V2|Inception(?=Res))(?=[A-Z])", r"\1_", keras_name)
    name = re.sub(r"(?<=[a-z])(?=V\d)|(?<=\d)(?=V2)|(?<=[a-z])(?=B\d$)", "_", name)
    return re.sub(r"_+", "_", name).lower()


def plain(name: str) -> str:
    """Return a name in lower case without dashes and underscores, for comparison."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@functools.cache
def architectures() -> dict[str, Architecture]:
    """Return all architectures of the installed Keras by name."""
    path = store.home() / f"keras-{version('keras')}.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        from featurepress.models.conversion import keras_models

        entries = in_child(keras_models.list_architectures)
        with store.scratch_folder() as folder:
            (folder / "list.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
            (folder / "list.json").replace(path)
    found = {}
    for entry in entries:
        name = spelled(entry["keras_name"])
        size = _DEFAULT_SIZES.get(name, entry["default_size"])
        means = {"mean": tuple(entry["mean"]), "scale": tuple(entry["scale"])}
        found[name] = Architecture(**{**entry, **means, "name": name, "default_size": size})
    return found


def in_child(
    function: Callable[..., Any],
    *args: Any,
    on_progress: OnProgress = ignore_progress,
    backend: str = "openvino",
) -> Any:
    """Run a function in a child process whose Keras runs on OpenVINO, without the user's settings of Keras.

    Raises
    ------
    ModelError
        The model is invalid, or the child process died.
    """
    child = Child(
        environment={
            "KERAS_BACKEND": backend,
            "KERAS_HOME": str(store.home() / "keras"),
            "FEATUREPRESS_HOME": str(store.home()),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
    )
    try:
        return child.call(function, *args, silence_seconds=SILENCE_SECONDS, on_message=on_progress)
    except OSError as error:  # errors of the model are ModelErrors already; this is the store
        raise store.write_error(store.home(), error) from error
    except ChildDiedError as death:
        raise ModelError(f"The model cannot be read: its child process {death}.") from death
    finally:
        child.close()


def load_card(
    architecture: Architecture,
    *,
    size: int | None,
    alpha: float | None,
    weights: str | None,
    pooling: str,
    on_progress: OnProgress,
) -> ModelCard:
    """Return the card of an architecture, downloaded and converted if it is not stored.

    `weights` is ``imagenet`` (also None), the path of a Keras weights file, or `RANDOM`. Most architectures pool
    last, so that one file serves every pooling.

    Raises
    ------
    ModelError
        The architecture does not allow these options, or its weights cannot be downloaded.
    """
    request, path = _request(architecture, size=size, alpha=alpha, weights=weights, pooling=pooling)
    card = store.find_request(request)
    if card is None:
        card = _convert(architecture, request, path, on_progress)
        store.write_request(request, card.file)
    return card


def find_stored(
    architecture: Architecture, *, size: int | None, alpha: float | None, weights: str | None
) -> ModelCard | None:
    """Return the card of a stored architecture, for any pooling, or None."""
    for pooling in ("avg", "flatten", "max"):
        request, _ = _request(architecture, size=size, alpha=alpha, weights=weights, pooling=pooling)
        if (card := store.find_request(request)) is not None:
            return card
    return None


def _request(
    architecture: Architecture, *, size: int | None, alpha: float | None, weights: str | None, pooling: str
) -> tuple[dict[str, Any], Path | None]:
    """Return the request that identifies a model, and the path of the user's weights file, if any."""
    size = checked_size(architecture, size)
    if alpha is not None and architecture.alpha is None:
        raise ModelError(f"The model {architecture.name} has no widths. Leave out --alpha.")
    is_file = weights not in (None, "imagenet", RANDOM)
    path = _weights_path(str(weights)) if is_file else None
    request = {
        "kind": "keras",
        "name": architecture.name,
        "size": size,
        "alpha": architecture.alpha if alpha is None else alpha,
        "weights": (weights or "imagenet") if path is None else store.content_hash(path),
        "pooling": pooling,
    }
    return request, path


def checked_size(architecture: Architecture, size: int | None) -> int:
    """Return the side of the input, by default the architecture's; raise ModelError if it is too small."""
    size = size or architecture.default_size
    if size < architecture.min_size:
        raise ModelError(
            f"The model {architecture.name} needs images of at least {architecture.min_size} pixels a side. "
            f"Got --size {size}."
        )
    return size


def _weights_path(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ModelError(f"There is no weights file '{weights}'. Use 'imagenet', or a .h5 or .weights.h5 file.")
    if path.suffix != ".h5":
        raise ModelError(f"The weights '{weights}' must be a Keras weights file, .h5 or .weights.h5.")
    return path.absolute()


def _convert(
    architecture: Architecture, request: dict[str, Any], path: Path | None, on_progress: OnProgress
) -> ModelCard:
    from featurepress.models.conversion import keras_models

    with store.scratch_folder() as folder:
        options = {**asdict(architecture), **request, "file": None if path is None else str(path)}
        facts = in_child(keras_models.convert, options, str(keras_folder()), str(folder), on_progress=on_progress)
        made_from = {name: request[name] for name in ("kind", "name", "size", "alpha")}
        made_from |= {name: facts[name] for name in ("weights_sha256", "variant", "pooled")}
        is_imagenet, is_random = facts["variant"] == "imagenet", facts["variant"] == RANDOM
        weights_text = "random weights" if is_random else f"the weights file '{facts['weights_file']}'"
        size, alpha = request["size"], request["alpha"]
        width = "" if alpha is None else f", width {alpha:g}"
        card = ModelCard(
            name=architecture.name,
            architecture=f"{architecture.keras_name} of Keras Applications{width}, at {size}x{size}",
            n_parameters=facts["n_parameters"],
            preprocess=architecture.preprocess(size),
            output=facts["output"],
            grid=tuple(facts["grid"]),
            file=store.key_of(made_from),
            weights_sha256=facts["weights_sha256"],
            training_data="ImageNet-1k" if is_imagenet else weights_text,
            licence=architecture.licence if is_imagenet else "as the weights file",
            source=facts["weights_url"] if is_imagenet else weights_text,
            pooled=facts["pooled"],
            n_bytes=facts["n_bytes"],
            origin={"request": request, "options": options, "variant": facts["variant"], "file": options["file"]},
            versions=facts["versions"],
        )
        store.publish(folder, card)
    return card
