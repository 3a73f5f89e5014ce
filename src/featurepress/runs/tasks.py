"""The tasks that engines run. They are quick to import and to pickle, and import the pipeline when called."""

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
    """Embed a shard, write its part, and return its receipt."""

    decode: Decoder | None = None  # None: `featurepress.images.decode`
    repair: bool = False  # the shard belongs to an earlier generation, which otherwise accepts no parts

    leaves_receipts = True  # from which an engine can report progress

    def __call__(self, plan: Plan, shard: int) -> Receipt:
        """See `featurepress.embedding.shard.embed_shard`."""
        from featurepress.embedding.shard import embed_shard

        return embed_shard(plan, shard, self.decode, repair=self.repair)


@dataclass(frozen=True)
class ProbeResult:
    """The result of embedding the first images."""

    n_tried: int
    failures: tuple[Failure, ...]
    cosines: tuple[float, ...]  # of each other image, between its float32 and bfloat16 features
    can_choose: bool  # whether the images were embedded in both precisions

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

    Shard i takes every `n_shards`-th image from the i-th on, until its share of `PROBE_SAMPLE` images is embedded.
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
