"""The tasks that engines run over shards: light to import and to send, they fetch the pipeline where they run."""

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
    """The task that embeds a shard, writes its part, and gives its receipt.

    Parameters
    ----------
    decode : callable, optional
        Bytes to pixels; `featurepress.images.decode` by default.
    repair : bool
        Whether the shard is one that an earlier generation has left, which is over otherwise.
    """

    decode: Decoder | None = None
    repair: bool = False

    leaves_receipts = True  # from which an engine can tell how the shards under way get on

    def __call__(self, plan: Plan, shard: int) -> Receipt:
        """Embed shard number `shard` of `plan`; see `featurepress.embedding.shard.embed_shard`."""
        from featurepress.embedding.shard import embed_shard

        return embed_shard(plan, shard, self.decode, repair=self.repair)


@dataclass(frozen=True)
class ProbeResult:
    """What the first images told.

    Parameters
    ----------
    n_tried : int
        Images that were tried.
    failures : tuple of Failure
        What was wrong with some of them.
    cosines : tuple of float
        Of each good image, the cosine between its float32 and bfloat16 features.
    can_choose : bool
        Whether the images were embedded in both precisions.
    """

    n_tried: int
    failures: tuple[Failure, ...]
    cosines: tuple[float, ...]
    can_choose: bool

    def merge(self, other: ProbeResult) -> ProbeResult:
        """Join what two workers found."""
        return ProbeResult(
            self.n_tried + other.n_tried,
            self.failures + other.failures,
            self.cosines + other.cosines,
            self.can_choose and other.can_choose,
        )

    def decide(self, asked: str) -> tuple[str, dict[str, Any]]:
        """Give the precision for what the user asked, and the certificate that says why."""
        certificate: dict[str, Any] = {"asked": asked}
        if asked == "float32":
            return "float32", certificate
        certificate["bfloat16_supported"] = self.can_choose
        if not self.can_choose or not self.cosines:
            return "float32", certificate
        lowest, mean = min(self.cosines), sum(self.cosines) / len(self.cosines)
        certificate.update(n_images=len(self.cosines), min_cosine=lowest, mean_cosine=mean, required=MIN_COSINE)
        faithful = asked == "bfloat16" or lowest >= MIN_COSINE
        return "bfloat16" if faithful else "float32", certificate


@dataclass(frozen=True)
class Probe:
    """The task that tries the first images before anything is written; each shard tries its share of them.

    Parameters
    ----------
    refs : tuple of ImageRef
        The images to try.
    n_shards : int
        Shard i tries every `n_shards`-th image, beginning with the i-th, until it has its share of
        `PROBE_SAMPLE` good ones.
    decode : callable, optional
        Bytes to pixels.
    """

    refs: tuple[ImageRef, ...]
    n_shards: int = 1
    decode: Decoder | None = None

    reads_plan = False  # there is none yet
    max_deaths = 1  # whoever runs the probe goes on without the images that were being tried

    def __call__(self, plan: Plan, shard: int) -> ProbeResult:
        """Try a share; `plan` is a draft."""
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
