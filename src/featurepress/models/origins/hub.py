"""Models of a hub: ``hf:org/repo[@revision][:file]``, an ONNX file and its ``preprocessor_config.json``.

The ``.onnx`` file, the weights that it names and the config are read; the repository's code never is. They are in
huggingface_hub's own cache. A name that was used before needs no network.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from featurepress.errors import ModelError
from featurepress.models import store
from featurepress.models.card import ModelCard
from featurepress.models.conversion import guard
from featurepress.models.origins import files
from featurepress.models.origins.weights import TIMEOUT_SECONDS
from featurepress.progress import OnProgress, step
from featurepress.settings import Choices

CONFIG = "preprocessor_config.json"
# The numbers of PIL.Image.Resampling, which the configs use.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# ConvNeXT's processor resizes to a larger side and crops for smaller sides than this; else it stretches.
_CONVNEXT_STRETCHES_FROM = 384

# Steps other than resizing, cropping and normalising; and processors whose sizes have another meaning.
_UNSUPPORTED = ("do_align_long_axis", "do_color_quantize", "do_flip_channel_order", "do_pad", "do_thumbnail")
_UNSUPPORTED_KINDS = ("Levit", "PoolFormer")
# For these a single number means both sides; for the others, the shorter side.
_SQUARE_KINDS = ("Beit", "DeiT")


@dataclass(frozen=True)
class HubName:
    """The parts of ``hf:org/repo[@revision][:file]``."""

    repo: str
    revision: str | None
    file: str | None


def parse(name: str) -> HubName:
    """Read a hub name.

    Raises
    ------
    ModelError
        The name is not of this form.
    """
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./ -]+))?", name)
    if match is None or {".", ".."} & set(re.split("[/@:]", name)):
        raise ModelError(
            f"A hub's model must be written hf:org/repo, hf:org/repo@revision or hf:org/repo:file. Got '{name}'."
        )
    return HubName(match[1], match[2], match[3])


def load_card(name: str, *, size: int | None, on_progress: OnProgress) -> ModelCard:
    """Return the card of a hub's model, downloaded and converted if it is not stored.

    Raises
    ------
    ModelError
        The model cannot be downloaded or cannot be embedded.
    """
    hub_name = parse(name)
    request = {"kind": "hub", "name": name, "size": size}
    card = store.find_request(request)
    if card is None:
        on_progress(step(f"downloading {name}"))
        path, config = _download(hub_name, name, on_progress)
        choices = read_config(config, name)
        choices = replace(choices, size=size or choices.size)
        card = files.load_card(str(path), choices, on_progress=on_progress, name=name)
        store.write_request(request, card.file)
    return card


def _download(hub_name: HubName, name: str, on_progress: OnProgress) -> tuple[Path, dict[str, Any]]:
    """Return the path of the ONNX file in the hub's cache, and the config of its preprocessing."""
    hub = _hub()
    bar = _bar(f"downloading {name}", on_progress)
    try:
        # Fails at once without a network, where listing retries for half a minute. All files are of one commit.
        commit = hub.HfApi().model_info(hub_name.repo, revision=hub_name.revision, timeout=TIMEOUT_SECONDS).sha
        listed = hub.HfApi().list_repo_files(hub_name.repo, revision=commit)
        chosen = _choose(hub_name, listed, name)
        path = Path(hub.hf_hub_download(hub_name.repo, chosen, revision=commit, tqdm_class=bar))
        for external in guard.external_names(path):  # model.onnx_data
            if (whole := (PurePosixPath(chosen).parent / external).as_posix()) in listed:
                hub.hf_hub_download(hub_name.repo, whole, revision=commit, tqdm_class=bar)
        if CONFIG not in listed:
            raise ModelError(
                f"The hub's {hub_name.repo} has no {CONFIG}, so its preprocessing is unknown. Download "
                f"'{chosen}' and run featurepress models add FILE --name NAME --size … --mean … --scale …"
            )
        config = json.loads(Path(hub.hf_hub_download(hub_name.repo, CONFIG, revision=commit)).read_text("utf-8"))
    except _failures(hub) as error:
        raise ModelError(f"The hub's model '{name}' cannot be downloaded: {_reason(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"The {CONFIG} of '{name}' is not a JSON object.")
    return path, config


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ModelError(
            "Models of a hub need huggingface_hub. Install it: pip install 'featurepress[hub]'"
        ) from error
    return huggingface_hub


def _failures(hub: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions of the hub and of its HTTP library, which is the base of the hub's own errors."""
    transport: type[Exception] = hub.errors.HfHubHTTPError.__bases__[0]
    return (OSError, ValueError, hub.errors.EntryNotFoundError, transport)


def _bar(what: str, on_progress: OnProgress) -> type:
    """Return a progress bar class for the hub that calls `on_progress` instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    class CallingBar(tqdm):
        def display(self, *args: Any, **kwargs: Any) -> bool:
            on_progress(step(what, int(self.n), int(self.total or 0)))
            return True

    return CallingBar


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    known = {
        "RepositoryNotFoundError": "there is no such repository, or it is private (set HF_TOKEN).",
        "GatedRepoError": "its owner requires consent; accept the terms on its page and set HF_TOKEN.",
        "RevisionNotFoundError": "it has no such revision.",
        "EntryNotFoundError": "it has no such file.",
        "RemoteEntryNotFoundError": "it has no such file.",
        "LocalEntryNotFoundError": "no connection, and it was not downloaded before.",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and it was not downloaded before.",
        "ConnectError": "no connection. --model embedded needs no network.",
        "ConnectTimeout": "no connection. --model embedded needs no network.",
    }
    return known.get(kind, f"{kind}: {' '.join(str(error).split())[:200]}")


def _choose(hub_name: HubName, listed: list[str], name: str) -> str:
    """Return the ONNX file to use."""
    found = [file for file in listed if file.endswith(".onnx")]
    if hub_name.file is not None:
        if hub_name.file not in found:
            raise ModelError(f"The hub's {hub_name.repo} has no '{hub_name.file}'. Its ONNX files: {_few(found)}.")
        return hub_name.file
    usual = [file for file in ("onnx/model.onnx", "model.onnx") if file in found]
    if usual or len(found) == 1:
        return (usual or found)[0]
    if not found:
        raise ModelError(
            f"The hub's {hub_name.repo} has no ONNX file. Export it to ONNX, or use another repository."
        )
    raise ModelError(
        f"The hub's {hub_name.repo} has several ONNX files; choose one, as in {name}:{found[0]}. {_few(found)}."
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "none"


# -- the preprocessing ---------------------------------------------------------------------------------------


def read_config(config: dict[str, Any], name: str) -> Choices:
    """Turn a ``preprocessor_config.json`` into choices.

    Raises
    ------
    ModelError
        The preprocessing is not supported.
    """
    try:
        mean, scale = _normalisation(config, name)
        size, resize, edge = _sizes(config, name)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"The {CONFIG} of '{name}' has missing or invalid numbers.") from error
    number = config.get("resample", 2)
    if not isinstance(number, int) or number not in _RESAMPLE:
        raise ModelError(f"The {CONFIG} of '{name}' resizes in a way that is not supported, resample {number}.")
    return Choices(
        size=size,
        resize=resize,
        shortest_edge=edge,
        like="pillow",
        interpolation=_RESAMPLE[number],
        mean=mean,
        scale=scale,
    )


def _normalisation(config: dict[str, Any], name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and scale for pixels from 0 to 1."""
    factor = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    offset = 1.0 if config.get("rescale_offset") else 0.0
    mean, std = _three(0.0), _three(1.0)
    if config.get("do_normalize", True):
        try:
            mean, std = (_three(config[key]) for key in ("image_mean", "image_std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"The {CONFIG} of '{name}' normalises without image_mean and image_std.") from error
    # The processor computes (level * factor - offset - mean) / std.
    unit = 1 / (255 * factor)
    return tuple((m + offset) * unit for m in mean), tuple(s * unit for s in std)


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in (values if isinstance(values, list) else [values]))
    if len(numbers) not in (1, 3):
        raise ValueError(values)
    return numbers


def _sizes(config: dict[str, Any], name: str) -> tuple[int, str, int | None]:
    """Return the side of the input, ``stretch`` or ``crop``, and the shorter side before cropping."""
    size, crop = config.get("size"), config.get("crop_size")
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    if (unsupported := [key for key in _UNSUPPORTED if config.get(key)]) or kind.startswith(_UNSUPPORTED_KINDS):
        raise ModelError(
            f"The {CONFIG} of '{name}' has preprocessing that is not supported "
            f"({', '.join(unsupported) or kind}). Download the model and use featurepress models add."
        )
    if "ConvNext" in kind and edge:
        share = 224 / 256 if config.get("crop_pct") is None else float(config["crop_pct"])
        return (edge, "stretch", None) if edge >= _CONVNEXT_STRETCHES_FROM else (edge, "crop", int(edge / share))
    cut = _side(crop) if config.get("do_center_crop") else None
    if not config.get("do_resize", True):
        raise ModelError(f"The {CONFIG} of '{name}' does not resize: images of one size only. Use models add.")
    side = _side(size) if edge is None else None
    if edge is not None and cut is not None:
        return cut, "crop", max(int(edge), cut)
    if isinstance(size, int) and cut is not None and not kind.startswith(_SQUARE_KINDS):
        return cut, "crop", max(size, cut)
    if side is not None and cut in (None, side):
        return side, "stretch", None
    raise ModelError(
        f"The {CONFIG} of '{name}' resizes in a way that is not supported (size {size}, crop_size {crop}). "
        "Download the model and use featurepress models add."
    )


def _side(size: Any) -> int | None:
    """Return the side of a square size: a number, a pair or a dict; None if it is not square."""
    if isinstance(size, int):
        return size
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        return int(size[0])
    if isinstance(size, dict) and size.get("height") is not None and size.get("height") == size.get("width"):
        return int(size["height"])
    return None
