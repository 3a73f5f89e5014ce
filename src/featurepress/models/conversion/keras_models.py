"""Convert Keras models: the part that imports Keras, and therefore runs in a child process.

The child's KERAS_BACKEND is openvino: no TensorFlow, no torch. Importing this file imports neither.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurepress.errors import ModelError
from featurepress.models.card import KERAS_MODES
from featurepress.models.conversion import guard
from featurepress.models.origins import weights
from featurepress.models.store import content_hash
from featurepress.process import send_message
from featurepress.progress import step

# What Keras and its libraries raise when a model does not fit.
_FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)


# -- architectures of Keras -----------------------------------------------------------------------------------


def list_architectures() -> list[dict[str, Any]]:
    """Return all architectures of keras.applications: the fields of `Architecture` without our name.

    Sizes come from the call by which every architecture checks its input shape, the preprocessing from the results
    of `preprocess_input` for black and coloured pixels.
    """
    send_message(step("listing the architectures of Keras"))
    keras = quiet_keras()
    found = []
    for keras_name, build in sorted(vars(keras.applications).items()):
        if not inspect.isfunction(build) or "include_top" not in inspect.signature(build).parameters:
            continue
        sizes = _sizes_of(build)
        mean, scale, order = _affine(preprocess_input(build))
        found.append(
            {
                "keras_name": keras_name,
                "module": build.__module__.rpartition(".")[2],
                "default_size": sizes["default_size"],
                "min_size": sizes["min_size"],
                "mode": _mode(mean, scale, order),
                "mean": mean,
                "scale": scale,
                "channel_order": order,
                "alpha": 1.0 if "alpha" in inspect.signature(build).parameters else None,
            }
        )
    return found


def preprocess_input(build: Callable[..., Any]) -> Any:
    """Return Keras's own preprocessing for an architecture."""
    return sys.modules[build.__module__].preprocess_input


class _CallError(Exception):
    """The arguments of a call to a replaced function."""


@contextlib.contextmanager
def _replaced(module_name: str, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a function of Keras for a while; only in the child process."""
    module = import_module(module_name)
    original = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, original)


_replaced_get_file = functools.partial(_replaced, "keras.src.utils.file_utils", "get_file")
_replaced_shape_check = functools.partial(_replaced, "keras.src.applications.imagenet_utils", "obtain_input_shape")


def _sizes_of(build: Callable[..., Any]) -> Mapping[str, Any]:
    """Return default_size and min_size of an architecture."""
    from keras.src.applications import imagenet_utils

    real = inspect.signature(imagenet_utils.obtain_input_shape)

    def raise_sizes(*args: Any, **kwargs: Any) -> None:
        raise _CallError(real.bind(*args, **kwargs).arguments)

    def raise_sizes_of_file(fname: str, *args: Any, **kwargs: Any) -> None:
        # MobileNetV3 accepts any size from 32 on without this call; its weights are named by size.
        size = re.search(r"_(\d{3})_", fname)
        raise _CallError({"default_size": int(size[1]) if size else 224, "min_size": 32})

    with _replaced_shape_check(raise_sizes), _replaced_get_file(raise_sizes_of_file):
        try:
            build(include_top=False, weights="imagenet")
        except _CallError as call:
            sizes: Mapping[str, Any] = call.args[0]
            return sizes
    raise ModelError(f"This version of Keras builds {build.__name__} in a way that featurepress does not support.")


def _affine(function: Callable[..., Any]) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Return (mean, scale, channel order) of a function that maps levels to ``(level - mean) / scale``."""
    import numpy as np

    black = np.asarray(function(np.zeros((1, 1, 1, 3), np.float32)))[0, 0, 0].astype(np.float64)
    colours = np.diag([255.0] * 3).astype(np.float32)[:, None, None, :]
    changes = np.stack([np.asarray(function(colour[None].copy()))[0, 0, 0] for colour in colours]) - black
    order = "RGB" if abs(changes[0, 0]) > abs(changes[0, 2]) else "BGR"
    slopes = np.diag(changes if order == "RGB" else changes[:, ::-1].T) / 255
    scale = tuple(float(f"{1 / slope:.6g}") for slope in slopes)
    mean = tuple(abs(float(f"{-start / slope:.6g}")) for start, slope in zip(black, slopes, strict=True))
    levels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.float32)
    ours = (levels if order == "RGB" else levels[..., ::-1]).astype(np.float64)
    if np.abs((ours - mean) / scale - np.asarray(function(levels.copy()))).max() > 1e-4:
        raise ModelError("This version of Keras preprocesses in a way that featurepress does not support.")
    return (mean[:1] if len(set(mean)) == 1 else mean), (scale[:1] if len(set(scale)) == 1 else scale), order


def _mode(mean: tuple[float, ...], scale: tuple[float, ...], order: str) -> str:
    """Return Keras's name for a normalisation."""
    mode = next((mode for mode, values in KERAS_MODES.items() if values == (mean, scale, order)), "custom")
    return "inside the model" if mode == "raw" else mode


def quiet_keras() -> Any:
    """Import Keras without its warnings, and set what the user's keras.json may have changed."""
    warnings.filterwarnings("ignore")
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    return keras


# -- one architecture ----------------------------------------------------------------------------------------


def convert(options: Mapping[str, Any], keras_cache: str, folder: str) -> dict[str, Any]:
    """Build an architecture, load its weights, write model.xml and model.bin, and return facts for its card.

    `options` are the fields of `Architecture`, and size, alpha, weights, pooling and file as requested;
    `keras_cache` is the folder of weights of the user's own Keras.
    """
    send_message(step(f"building {options['name']}"))
    application = Application(options, Path(keras_cache))
    keras = quiet_keras()
    # Some architectures have a layer after the pooling. Their features are not a pooled grid, and every pooling
    # is a separate model.
    pooling = None if options["pooling"] == "flatten" else options["pooling"]
    model = _build(application, "avg", options)
    is_last = isinstance(model.layers[-1], keras.layers.GlobalAveragePooling2D)
    if is_last:
        model = keras.Model(model.inputs, model.layers[-1].input)
    elif pooling != "avg":
        model = _build(application, pooling, options)
    send_message(step(f"converting {options['name']} to OpenVINO"))
    return {
        **write_converted(model, Path(folder)),
        **application.facts(),
        "output": model.layers[-1].name,
        "pooled": "" if is_last or pooling is None else pooling,
        "n_parameters": model.count_params(),
        "versions": {"keras": keras.__version__, "openvino": version("openvino")},
    }


def _build(application: Application, pooling: str | None, options: Mapping[str, Any]) -> Any:
    """Build the model; raise a ModelError of one line if Keras fails."""
    try:
        return application.build(pooling)
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        if options["file"] is not None:
            raise ModelError(
                f"The weights '{options['file']}' do not fit {options['name']} without its classifier ({reason}). "
                "Check --model, --size and --alpha."
            ) from error
        width = "" if options["alpha"] is None else f", width {options['alpha']:g},"
        raise ModelError(
            f"The model {options['name']} at {options['size']}x{options['size']}{width} cannot be built by Keras: "
            f"{reason}"
        ) from error


class Application:
    """An architecture of Keras Applications with its weights.

    Keras builds some architectures differently for ImageNet weights than for others. A file of the user that is
    Keras's own ImageNet file is treated as such.
    """

    def __init__(self, options: Mapping[str, Any], keras_cache: Path) -> None:
        self.function = getattr(quiet_keras().applications, options["keras_name"])
        self._arguments = {"include_top": False, "input_shape": (options["size"], options["size"], 3)}
        if options["alpha"] is not None:
            self._arguments["alpha"] = options["alpha"]
        self._keras_cache = keras_cache
        self._file = None if options["file"] is None else Path(options["file"])
        self._used, self._url = self._file, ""
        self._variant = "random" if options["weights"] == "random" else "imagenet"
        if self._file is not None:
            guard.check_weights(self._file)
            self._variant = "imagenet" if self._is_imagenet(self._file) else "custom"

    def build(self, pooling: str | None) -> Any:
        """Return a model with the weights."""
        arguments = {**self._arguments, "pooling": pooling}
        if self._variant == "random":
            import keras

            keras.utils.set_random_seed(0)
            return self.function(weights=None, **arguments)
        if self._variant == "custom":
            return self.function(weights=str(self._file), **arguments)
        with _replaced_get_file(self._fetch):
            return self.function(weights="imagenet", **arguments)

    def facts(self) -> dict[str, Any]:
        """Return the weights that were used: their variant, hash, file name and URL."""
        if self._variant == "random":
            return {"variant": "random", "weights_sha256": "random", "weights_file": "none", "weights_url": ""}
        assert self._used is not None
        return {
            "variant": self._variant,
            "weights_sha256": content_hash(self._used),
            "weights_file": self._used.name,
            "weights_url": self._url,
        }

    def _fetch(self, fname: str, origin: str, file_hash: str | None = None, **_: Any) -> str:
        """Replace Keras's get_file."""
        self._url = origin
        self._used = self._file or weights.fetch(fname, origin, file_hash, self._keras_cache, send_message)
        return str(self._used)

    def _is_imagenet(self, path: Path) -> bool:
        """Whether a file has the name or the hash of the file that Keras would download."""

        def raise_call(fname: str, origin: str, file_hash: str | None = None, **_: Any) -> None:
            raise _CallError(fname, file_hash)

        with _replaced_get_file(raise_call), contextlib.suppress(Exception):
            try:
                self.function(weights="imagenet", **self._arguments)
            except _CallError as call:
                name, known_hash = call.args
                return bool(path.name == name or (known_hash and weights.has_hash(path, known_hash)))
        return False


# -- a file of the user ---------------------------------------------------------------------------------------


def convert_file(kind: str, path: str, choices: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Convert a model file of a kind of `files.SUFFIXES` to model.xml and model.bin; return facts for its card."""
    from featurepress.models.conversion import graph

    send_message(step(f"converting {Path(path).name} to OpenVINO"))
    options = {name: choices[name] for name in ("size", "layout", "output")}
    versions = {"openvino": version("openvino")}
    if kind != "keras":
        with _gathered(kind, Path(path), folder) as whole:
            return {**graph.finish(graph.read(whole), Path(folder), **options), "versions": versions}
    keras, model = load_keras(path)
    name = options["output"] or model.layers[-1].name
    cut = _keras_sized(keras, keras_cut(keras, model, name), options["size"])
    first = [type(layer).__name__ for layer in model.layers[:4]]
    return {
        **write_converted(cut, Path(folder), layout="NHWC"),
        "output": name,
        "n_parameters": cut.count_params(),
        "normalises": bool({"Rescaling", "Normalization"} & set(first)),
        "versions": {**versions, "keras": keras.__version__},
    }


def list_outputs(kind: str, path: str) -> list[dict[str, Any]]:
    """List the tensors of a model file that can be its features: ``name``, ``shape``, ``made_by``."""
    from featurepress.models.conversion import graph

    if kind != "keras":
        with _gathered(kind, Path(path), None) as whole:
            return graph.candidates(graph.read(whole))
    _, model = load_keras(path)
    found = []
    for layer in model.layers:
        shape = getattr(layer.output, "shape", None) if not isinstance(layer.output, list | dict) else None
        if shape is not None and 2 <= len(shape) <= 4 and type(layer).__name__ != "InputLayer":
            shown = [-1 if side is None else side for side in shape]
            found.append({"name": layer.name, "shape": shown, "made_by": type(layer).__name__})
    return found


@contextlib.contextmanager
def _gathered(kind: str, path: Path, folder: str | None) -> Iterator[Path]:
    """Yield the path of a model whose files are in one folder, without links to other folders.

    Caches of hubs have links, and OpenVINO refuses weights outside the model's folder.
    """
    external = guard.external_files(path) if kind == "onnx" else []
    if not any(file.is_symlink() for file in external):
        yield path
        return
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for file in (path, *external):
            real = Path(temporary) / file.relative_to(path.parent)
            real.parent.mkdir(parents=True, exist_ok=True)
            try:
                real.hardlink_to(file.resolve())
            except OSError:  # another file system
                shutil.copyfile(file, real)
        yield Path(temporary) / path.name


def load_keras(path: str) -> tuple[Any, Any]:
    """Check and load a .keras file without executing code from it; return keras and the model."""
    guard.check_keras(Path(path))
    keras = quiet_keras()
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"The model '{path}' cannot be read by Keras: {reason}") from error
    if len(model.inputs) != 1:
        listed = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in model.inputs)
        raise ModelError(
            f"The model '{path}' must have one input, the pixels. It has {len(model.inputs)}: {listed}."
        )
    return keras, model


def keras_cut(keras: Any, model: Any, name: str) -> Any:
    """Return the model up to one layer."""
    layers = {layer.name: layer for layer in model.layers}
    if name not in layers:
        from featurepress.settings import nearest

        raise ModelError(
            f"The model has no layer '{name}'{nearest(name, list(layers))} "
            "featurepress models show FILE --outputs lists them."
        )
    output = layers[name].output
    if isinstance(output, list | dict):
        raise ModelError(f"The layer '{name}' has {len(output)} outputs. Choose another one by --output.")
    return keras.Model(model.inputs, output)


def _keras_sized(keras: Any, model: Any, size: int | None) -> Any:
    """Return the model with an input of fixed size, which Keras's export needs."""
    shape = model.inputs[0].shape
    if len(shape) != 4 or shape[3] != 3:
        raise ModelError(
            f"The model's input must be images of three colours, (N, H, W, 3). It has the shape {shape}."
        )
    if size is None and None in shape[1:3]:
        raise ModelError(f"The model accepts images of any size (its input is {shape}). Choose one with --size.")
    if size is None or (size, size) == tuple(shape[1:3]):
        return model
    try:
        pixels = keras.Input((size, size, 3))
        return keras.Model(pixels, model(pixels))
    except _FAILURES as error:
        raise ModelError(
            f"The model does not accept images of {size}x{size}; its input has the shape {shape}. Leave out --size."
        ) from error


def write_converted(model: Any, folder: Path, **options: Any) -> dict[str, Any]:
    """Export a Keras model and convert it; see `graph.finish`."""
    from featurepress.models.conversion import graph
    from featurepress.models.conversion.transpositions import channels_first

    raw = folder / "raw.xml"
    model.export(str(raw), format="openvino", verbose=False)
    try:
        plain, fast = graph.read(raw), graph.read(raw)
        channels_first(fast)
        return graph.finish(fast if graph.same_features(plain, fast) else plain, folder, **options)
    finally:
        for path in folder.glob("raw.*"):
            path.unlink()
