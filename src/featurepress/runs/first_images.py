"""List and embed the first images, to check the sources and to decide the precision before anything is written."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

from featurepress.engines import Engine
from featurepress.errors import RequestError, SourceError, WorkerDeathError
from featurepress.ledger import Plan
from featurepress.runs.tasks import Decoder, Probe, ProbeResult
from featurepress.sources import Listing
from featurepress.specs import ImageRef

PROBE_IMAGES = 1_000
MAX_PROBE_DEATHS = 32  # images rarely kill more processes than that


class StartedListing(NamedTuple):
    """A listing, its first images (at least one), and an iterator over all of its images."""

    listing: Listing
    first: tuple[ImageRef, ...]
    refs: Iterator[ImageRef]


def start_listing(plan: Plan) -> StartedListing:
    """List the first images of a plan.

    Raises
    ------
    SourceError
        There is no image, or the labels of none can be found.
    """
    settings = plan.settings
    listing = Listing(plan.sources, settings.listing, limits=settings.images)
    rest = iter(listing)
    first = tuple(itertools.islice(rest, PROBE_IMAGES))
    if not first:
        raise SourceError("The sources hold no image.")
    if "{" in settings.listing.labels and not any(any(ref.fields) for ref in first):
        raise SourceError(
            f"The pattern '{settings.listing.labels}' (--labels) fits none of the first {len(first):,} images, "
            f"such as '{first[0].uri}'. It is matched against the end of the path, name by name."
        )
    return StartedListing(listing, first, itertools.chain(first, rest))


def decide_precision(plan: Plan, refs: tuple[ImageRef, ...], engine: Engine, decoder: Decoder | None) -> Plan:
    """Embed the first images; return the plan with the precision that they allow, and the certificate for it.

    Raises
    ------
    SourceError
        All of them failed.
    RequestError
        bfloat16 was requested, and this CPU does not compute in it.
    """
    # If it saves time, each worker embeds a share, and has then loaded the model when the run begins.
    n_shares = engine.warm_up(plan.layout.n_shards(len(refs)))
    import_module("pyarrow.parquet")  # for the first chunk, while the workers start
    result = _probe(engine, plan, refs, n_shares, decoder)
    if not result.cosines:
        raise SourceError(_all_failed(result))
    requested = plan.settings.features.precision
    precision, certificate = result.decide(requested)
    if requested == "bfloat16" and precision != requested:
        raise RequestError(
            "The precision bfloat16 was requested, and this CPU has no native bfloat16. "
            "Use --precision auto or float32."
        )
    return replace(plan, precision=precision, certificate={**plan.certificate, **certificate})


def _probe(
    engine: Engine, plan: Plan, refs: tuple[ImageRef, ...], n_shares: int, decoder: Decoder | None
) -> ProbeResult:
    """Embed the first images except those that kill their process, which the run handles later."""
    n_deaths = 0
    while True:
        in_progress: dict[int, str] = {}  # uri by share

        def on_message(message: Any, in_progress: dict[int, str] = in_progress) -> None:
            if message[0] == "at":
                in_progress[message[1]] = message[2]

        try:
            results = engine.run(Probe(refs, n_shares, decoder), plan, range(n_shares), on_message)
            return functools.reduce(ProbeResult.merge, results)
        except WorkerDeathError:
            n_deaths += 1
            if n_shares > 1:
                n_shares = 1  # with one worker, the image that kills it is known
                continue
            suspects = set(in_progress.values())
            refs = tuple(ref for ref in refs if ref.uri not in suspects)
            if not refs or not suspects or n_deaths > MAX_PROBE_DEATHS:
                raise


def _all_failed(result: ProbeResult) -> str:
    kinds = collections.Counter(failure.kind for failure in result.failures)
    reasons = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
    first = result.failures[0]
    which = "The only image" if result.n_tried == 1 else f"All of the first {result.n_tried} images"
    return (
        f"{which} failed, so nothing was written: {reasons}; the first one is '{first.uri}' "
        f"({first.reason}). Check the source."
    )
