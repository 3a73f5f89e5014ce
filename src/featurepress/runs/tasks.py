"""The tasks that engines run: quick to import and to pickle, they import the pipeline where they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from featurepress.ledger import Plan
from featurepress.process import send_message
from featurepress.specs import Failure, ImageRef, Receipt

Decoder = Callable[..., Any]  # (data, *, max_pixels) -> array (H, W, 3) uint8, or ImageError

PROBE_SAMPLE = 64
MIN_COSINE = 0.999


@dataclass(frozen=True)
class EmbedShard:
    """Embed a shard, write its part, and return its receipt.

    Parameters
    ----------
    decode : callable, optional
        Bytes to pixels; `featurepress.images.decode` by default.
    repair : bool
        Whether the shard belongs to an earlier generation, which otherwise accepts no parts.
    """

    decode: Decoder | None = None
    repair: bool = False

    leaves_receipts = True  # from which an engine can report progress

    def __call__(self, plan: Plan, shard: int) -> Receipt:
        """Embed shard number `shard` of `plan`; see `featurepress.embedding.shard.embed_shard`."""
        from featurepress.embedding.shard import embed_shard

        return embed_shard(plan, shard, self.decode, repair=self.repair)


@dataclass(frozen=True)
class ProbeResult:
    """The result of embedding the first images.

    Parameters
    ----------
    n_tried : int
        Number of images.
    failures : tuple of Failure
        Those of them that failed.
    cosines : tuple of float
        For each other image, the cosine between its float32 and bfloat16 features.
    can_choose : bool
        Whether the images were embedded in both precisions.
    """

    n_tried: int
    failures: tuple[Failure, ...]
    cosines: tuple[float, ...]
    can_choose: bool

    def merge(self, other: ProbeResult) -> ProbeResult:
        """Return the sum of the results of two workers."""
        return ProbeResult(
            self.n_tried + other.n_tried,
            self.failures + other.failures,
            self.cosines + other.cosines,
            self.can_choose and other.can_choose,
        )

    def decide(self, requested: str) -> tuple[str, dict[str, Any]]:
        """Return the precision for the requested one, and the certificate for it."""
        certificate: dict[str, Any] = {"asked": requested}
        if requested == "float32":
            return "float32", certificate
        certificate["bfloat16_supported"] = self.can_choose
        if not self.can_choose or not self.cosines:
            return "float32", certificate
        lowest, mean = min(self.cosines), sum(self.cosines) / len(self.cosines)
        certificate.update(n_images=len(self.cosines), min_cosine=lowest, mean_cosine=mean, required=MIN_COSINE)
        is_allowed = requested == "bfloat16" or lowest >= MIN_COSINE
        return "bfloat16" if is_allowed else "float32", certificate


@dataclass(frozen=True)
class Probe:
    """Embed the first images in both precisions before anything is written; each shard embeds a share of them.

    Parameters
    ----------
    refs : tuple of ImageRef
        The images.
    n_shards : int
        Shard i takes every `n_shards`-th image from the i-th on, until its share of `PROBE_SAMPLE` images has
        succeeded.
    decode : callable, optional
        Bytes to pixels.
    """

    refs: tuple[ImageRef, ...]
    n_shards: int = 1
    decode: Decoder | None = None

    reads_plan = False  # there is none yet
    max_deaths = 1  # the driver continues without the images that killed the process

    def __call__(self, plan: Plan, shard: int) -> ProbeResult:
        """Embed a share; `plan` is a draft."""
        from featurepress.embedding.probe import probe_images

        own = self.refs[shard :: self.n_shards]
        failures, cosines, can_choose = probe_images(
            plan,
            own,
            -(-PROBE_SAMPLE // self.n_shards),
            decoder=self.decode,
            on_image=lambda ref: send_message(("at", shard, ref.uri)),
        )
        return ProbeResult(len(failures) + len(cosines), tuple(failures), tuple(cosines), can_choose)
